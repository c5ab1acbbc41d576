"""EMA: an exponential moving average of a model's Variables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

import moduli
from moduli.errors import StructureError, VariableError
from moduli.lowlevel import folded
from moduli_train._variables import OptState

__all__ = ["EMA"]

M = TypeVar("M")


class EMA(moduli.Pytree):
    """Keeps an exponential moving average of Variables: ``decay * average + (1 - decay) * new``.

    Sums are in float32 at least: in bfloat16 a decay of 0.999 would be 1.

    Args:
      params: a model, or anything that :func:`moduli.state` takes.
      decay: how much of the average each update keeps, from 0 to 1; or a schedule, a function of
        the number of updates made before, such as
        ``lambda step: jnp.minimum(0.999, (1 + step) / (10 + step))``.
      only: a filter that selects the Variables.
      graph: accepted, as everywhere.
      debias: whether the first values are left out, as if the average had begun with nothing. After
        the first update the average is then the values of that time.

    Attributes:
      params: a State of Variables that hold the averages. Their arrays are copies, so that the
        model's may be donated.
      decay: see above.
      filter: the filter.
      step: how many updates were made, where the decay is a schedule; else None.
      weight: the sum of the weights of all updates, with ``debias``; else None.

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

    step: OptState[Any] | None = None
    weight: OptState[Any] | None = None
    _wide: Any = None  # in float32, what is narrower in params

    def __init__(
        self,
        params: Any,
        decay: float | Callable[[Any], Any],
        *,
        only: Any = ...,
        graph: bool | None = None,
        debias: bool = False,
    ) -> None:
        self.decay = decay
        self.filter = tuple(only) if isinstance(only, list) else only
        self.params = moduli.data(moduli.map_state(_copied, moduli.state(params, only)))
        if callable(decay):
            self.step = OptState(jnp.zeros((), jnp.uint32))
        if debias:
            self.weight = OptState(jnp.zeros((), jnp.float32))
        wide = [
            (path, OptState(jax.tree.map(_widened, average.get_raw_value())))
            for path, average in moduli.to_flat_state(self.params)
            if any(map(_is_narrow, jax.tree.leaves(average.get_raw_value())))
        ]
        if wide:
            self._wide = moduli.data(moduli.from_flat_state(wide))

    @folded
    def update(self, updates: Any) -> None:
        """Takes in the present values.

        Args:
          updates: the model, or a State of the same structure. Integers, keys and other values that
            have no average are taken as they are.

        Raises:
          StructureError: a value is missing. Nothing is changed then.
        """
        given = dict(moduli.to_flat_state(moduli.state(updates, self.filter)))
        wide = {} if self._wide is None else dict(moduli.to_flat_state(self._wide))
        found = []
        for path, average in moduli.to_flat_state(self.params):
            if path not in given:
                raise StructureError(
                    f"EMA.update: what was given has no `{moduli.errors.format_path(path)}`; pass "
                    "the model whose averages are kept, or a State of all of them"
                )
            value = given[path]
            value = value.get_value() if isinstance(value, moduli.Variable) else value
            found.append((average, wide.get(path, average), value))
        keep, rest, weight = self._shares()
        new = [
            jax.tree.map(lambda old, new: _mean(old, new, keep, rest), holder.get_value(), value)
            for _, holder, value in found
        ]
        for (average, holder, _), value in zip(found, new, strict=True):
            if holder is not average:
                holder.set_value(value)
                value = jax.tree.map(_as, value, average.get_value())
            average.set_value(value)
        if self.step is not None:
            self.step.value = self.step.value + 1
        if self.weight is not None:
            self.weight.value = weight

    def _shares(self) -> tuple[Any, Any, Any]:
        """The shares of the average and of the new values, and the sum of weights afterwards."""
        decay: Any = self.decay
        if callable(decay):
            assert self.step is not None
            decay = jnp.asarray(decay(self.step.value), jnp.float32)
        if self.weight is None:
            return decay, 1.0 - decay, None
        kept = decay * self.weight.value
        weight = kept + (1.0 - decay)
        keep = jnp.where(weight > 0, kept / jnp.where(weight > 0, weight, 1.0), 1.0)
        return keep, 1.0 - keep, weight

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


def _is_narrow(value: Any) -> bool:
    dtype = jnp.result_type(value)
    return jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4


def _widened(value: Any) -> Any:
    if _is_narrow(value):
        return jnp.asarray(value, jnp.float32)
    return _copied_array(value)


def _as(new: Any, old: Any) -> Any:
    return jnp.asarray(new, old.dtype) if hasattr(old, "dtype") else new


def _mean(old: Any, new: Any, keep: Any, rest: Any) -> Any:
    if not jnp.issubdtype(jnp.result_type(old), jnp.inexact):
        return new
    return _as(keep, old) * old + _as(rest, old) * _as(new, old)
