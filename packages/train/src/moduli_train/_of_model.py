"""of_model: a loss of a model where optax wants a function of the parameters.

Line searches (``optax.lbfgs``, ``optax.scale_by_backtracking_linesearch``) and ``optax.contrib.
sophia`` evaluate the loss at parameters that they try out. They know nothing of a model: what it
holds beside the parameters is taken as it stands, and what an evaluation writes is dropped.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

import moduli
from moduli.lowlevel import check_callable

__all__ = ["OfModel", "bound_to", "of_model"]


class OfModel:
    """A loss of a model, to be evaluated at other parameters; made by :func:`of_model`."""

    def __init__(
        self,
        loss_fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        has_aux: bool,
    ):
        self._loss_fn, self._args, self._kwargs, self._has_aux = loss_fn, args, kwargs, has_aux

    def __call__(self, model: Any, /, **kwargs: Any) -> Any:
        """Returns the loss of a copy of the model; the model stays as it is."""
        return self._value(moduli.merge(*moduli.split(model), copy=True), kwargs)

    def _value(self, model: Any, kwargs: Mapping[str, Any]) -> Any:
        value = self._loss_fn(model, *self._args, **self._kwargs, **kwargs)
        return value[0] if self._has_aux else value

    def of_parameters(self, model: Any, wrt: Any) -> Callable[..., Any]:
        """Returns a function of the parameters, for a model as it stands now.

        Args:
          model: the model.
          wrt: a filter that selects the parameters.
        """
        graphdef, _, rest = moduli.split(model, wrt, ...)
        counts = bool(moduli.filter_state(rest, moduli.RngCount))

        def value(params: Any, **kwargs: Any) -> Any:
            copy = moduli.merge(graphdef, params, rest, copy=True)
            if counts:  # the draws of the loss whose value and gradient the search begins with
                twin = moduli.merge(graphdef, params, rest, copy=True)
                self._value(twin, kwargs)  # (all but the counts is left out of the program)
                _rewind(copy, twin)
            return self._value(copy, kwargs)

        value.__signature__ = self._signature()  # type: ignore[attr-defined]
        return value

    def _signature(self) -> inspect.Signature:
        """What optax reads: the parameters, and by name what of ``update`` goes to the loss."""
        parameters = [inspect.Parameter("params", inspect.Parameter.POSITIONAL_ONLY)]
        try:
            own = list(inspect.signature(self._loss_fn).parameters.values())
        except (TypeError, ValueError):
            return inspect.Signature(parameters)
        by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        parameters += [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in own[1 + len(self._args) :]
            if parameter.kind in by_name and parameter.name not in {"params", *self._kwargs}
        ]
        return inspect.Signature(parameters)


def of_model(
    loss_fn: Callable[..., Any], *args: Any, has_aux: bool = False, **kwargs: Any
) -> OfModel:
    """A loss of a model for :meth:`Optimizer.update`, where optax wants one of the parameters.

    The optimizer gives the loss a copy of the model with the parameters that optax tries out. What
    the loss writes, such as statistics of a BatchNorm, is dropped with the copy. Random streams
    draw in each evaluation what the last call of the loss drew, so that a line search compares
    losses under one mask of a Dropout.

    Args:
      loss_fn: takes a model and returns a scalar.
      *args: more arguments of it, after the model.
      has_aux: whether it returns a pair (scalar, anything).
      **kwargs: more arguments of it, by name. Others may be given to ``update`` by name.

    Returns:
      What to pass as ``value_fn`` (or ``obj_fn``). Called with a model, it returns the loss and
      leaves the model as it is.

    Raises:
      StructureError: if ``loss_fn`` cannot be called.

    Example:
      >>> import moduli as nnx, optax, jax.numpy as jnp
      >>> model = nnx.Dict({"w": nnx.Param(jnp.array(3.0)), "calls": nnx.Variable(0)})
      >>> optimizer = nnx.Optimizer(model, optax.lbfgs())
      >>> def loss_fn(model):
      ...     model["calls"].value += 1
      ...     return (model["w"].value - 1.0) ** 2
      >>> for _ in range(3):
      ...     value, grads = nnx.value_and_grad(loss_fn)(model)
      ...     updates = optimizer.update(
      ...         model, grads, value=value, grad=grads, value_fn=nnx.of_model(loss_fn)
      ...     )
      >>> round(float(model["w"].value), 3), int(model["calls"].value)
      (1.0, 3)
    """
    check_callable(loss_fn, "of_model", "...")
    return OfModel(loss_fn, args, kwargs, has_aux)


def bound_to(model: Any, wrt: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns arguments of ``update``, with functions of the parameters for those of a model."""
    return {
        name: value.of_parameters(model, wrt) if isinstance(value, OfModel) else value
        for name, value in kwargs.items()
    }


def _rewind(model: Any, later: Any) -> None:
    """Sets the counts of a model's streams back by what a twin has drawn since."""
    now = moduli.to_flat_state(moduli.state(model, moduli.RngCount))
    then = dict(moduli.to_flat_state(moduli.state(later, moduli.RngCount)))
    for path, count in now:
        value = count.get_raw_value()
        drawn = then[path].get_raw_value() - value
        count.set_raw_value(
            jax.tree.map(jnp.asarray, jnp.where(value < drawn, value, value - drawn))
        )
