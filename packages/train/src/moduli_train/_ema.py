"""EMA: an exponential moving average of a model's Variables."""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import jax.numpy as jnp

import moduli
from moduli.errors import StructureError, VariableError

__all__ = ["EMA"]

M = TypeVar("M")


class EMA(moduli.Pytree):
    """Keeps an exponential moving average of Variables: ``decay * average + (1 - decay) * new``.

    Args:
      params: a model, or anything that :func:`moduli.state` takes.
      decay: how much of the average each update keeps, from 0 to 1.
      only: a filter that selects the Variables.
      graph: accepted, as everywhere.

    Attributes:
      params: a State of Variables that hold the averages. Their arrays are copies, so that the
        model's may be donated.
      decay: see above.
      filter: the filter.

    Raises:
      VariableError: (a TypeError) the filter selects a value that is no Variable.

    Example:
      >>> import moduli as nnx
      >>> model = nnx.Dict({"w": nnx.Param(1.0)})
      >>> ema = nnx.EMA(model, decay=0.5)
      >>> averaged = ema.apply_to(model)
      >>> model["w"].value = 3.0
      >>> ema.update(model)
      >>> float(averaged["w"].value), model["w"].value
      (2.0, 3.0)
    """

    def __init__(
        self, params: Any, decay: float, *, only: Any = ..., graph: bool | None = None
    ) -> None:
        self.decay = decay
        self.filter = tuple(only) if isinstance(only, list) else only
        self.params = moduli.data(moduli.map_state(_copied, moduli.state(params, only)))

    def update(self, updates: Any) -> None:
        """Takes in the present values.

        Args:
          updates: the model, or a State of the same structure. Integers, keys and other values that
            have no average are taken as they are.

        Raises:
          StructureError: a value is missing. Nothing is changed then.
        """
        given = dict(moduli.to_flat_state(moduli.state(updates, self.filter)))
        new = []
        for path, average in moduli.to_flat_state(self.params):
            if path not in given:
                raise StructureError(
                    f"EMA.update: what was given has no `{moduli.errors.format_path(path)}`; pass "
                    "the model whose averages are kept, or a State of all of them"
                )
            value = given[path]
            value = value.get_value() if isinstance(value, moduli.Variable) else value
            new.append((average, jax.tree.map(self._averaged, average.get_value(), value)))
        for average, value in new:
            average.set_value(value)

    def _averaged(self, old: Any, new: Any) -> Any:
        if not jnp.issubdtype(jnp.result_type(old), jnp.inexact):
            return new
        return self.decay * old + (1.0 - self.decay) * new

    def apply_to(self, model: M) -> M:
        """Returns a model with the averages.

        Args:
          model: a model of the structure of the first one. It stays as it is.

        Returns:
          A new model that holds the Variables of :attr:`params`, so that later updates show in it,
          and copies of the others.
        """
        graphdef, state = moduli.split(model)
        copies = moduli.map_state(lambda path, leaf: _as_copy(leaf), state)
        return moduli.merge(graphdef, moduli.merge_state(copies, self.params))


def _as_copy(leaf: Any) -> Any:
    return leaf.copy() if isinstance(leaf, moduli.Variable) else leaf


def _copied(path: tuple[Any, ...], leaf: Any) -> Any:
    if not isinstance(leaf, moduli.Variable):
        raise VariableError(
            f"EMA keeps Variables; the value at `{moduli.errors.format_path(path)}` is a "
            f"{type(leaf).__name__}. Select Variables: `EMA(model, decay, only=moduli.Param)`"
        )
    return leaf.copy(jax.tree.map(_copied_array, leaf.get_raw_value()))


def _copied_array(value: Any) -> Any:
    return jnp.copy(value) if isinstance(value, jax.Array) else value
