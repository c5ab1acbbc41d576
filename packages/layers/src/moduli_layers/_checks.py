"""Checks of what a layer is given; each error names the layer's class and says what to write."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

import moduli
from moduli.errors import RngError, ShapeError
from moduli_layers.errors import ArgumentError

__all__ = [
    "check_features",
    "check_positive",
    "check_rngs",
    "check_sliced",
    "resolve_mode",
    "shape_of",
    "shape_text",
]


def check_positive(layer: object, **sizes: int) -> None:
    """Raises unless every size is at least one.

    Args:
      layer: the layer that is being built.
      **sizes: the constructor's arguments, by name.

    Raises:
      ArgumentError: a size is zero or negative.
    """
    for name, size in sizes.items():
        if size < 1:
            raise ArgumentError(
                f"{type(layer).__name__} got {name}={size}; write a size of at least 1"
            )


def check_rngs(layer: object, rngs: Any) -> moduli.Rngs:
    """Returns ``rngs`` if it can give a layer the keys for its parameters.

    Args:
      layer: the layer that is being built.
      rngs: what the caller passed.

    Returns:
      The same object.

    Raises:
      RngError: it is not a :class:`moduli.Rngs`.
    """
    if not isinstance(rngs, moduli.Rngs):
        raise RngError(
            f"{type(layer).__name__} got rngs of type {type(rngs).__name__}; "
            f"write rngs=moduli.Rngs(0){_class_called(layer, rngs)}"
        )
    return rngs


def _class_called(layer: object, rngs: Any) -> str:
    """Says what an array in the place of rngs means: that a class was called, not a model."""
    if not isinstance(rngs, (jax.Array, np.ndarray)) or not jnp.issubdtype(rngs.dtype, jnp.number):
        return ""
    return (
        " (an array there is often the input of a model that was never made: call "
        "`model = Model(rngs=...)` first, then `model(x)`)"
    )


def check_sliced(layer: Any) -> None:
    """Raises if a transform has taken an axis of the layer's own parameters away.

    Args:
      layer: the layer that is being called, under a transform.

    Raises:
      ShapeError: a parameter has fewer axes than the layer gave it.
    """
    for name, sizes in getattr(layer, "__value_shapes__", {}).items():
        value = getattr(layer, name, None)
        wanted: list[Any] = []
        for size in sizes:
            found = getattr(layer, size, None)
            wanted += found if isinstance(found, (tuple, list)) else [found]
        if value is None or None in wanted or not hasattr(value, "shape"):
            continue
        if len(value.shape) < len(wanted):
            raise ShapeError(
                f"the {name} of {type(layer).__name__} has the shape {tuple(value.shape)} here, of "
                f"{tuple(wanted)}: vmap, scan or another transform has mapped over an axis of "
                "the layer itself. Give the layer the axis None, as in `in_axes=(None, 0)`, or map "
                "over a stack of layers, which `moduli.vmap(make_layer)(rngs.split(n))` makes"
            )


def check_features(
    layer: object,
    inputs: ArrayLike,
    axis: int,
    features: int,
    name: str,
    held: int | None = None,
) -> None:
    """Raises unless the inputs have the layer's number of features on an axis.

    Args:
      layer: the layer that is being called.
      inputs: what it is called with.
      axis: the axis of the features, as the layer counts it (may be negative).
      features: the size expected on that axis.
      name: the constructor's argument that holds this size.
      held: the size of the parameters at hand, where they may be a part of the layer's, as under
        ``shard_map``; it is then the size expected.

    Raises:
      ShapeError: the axis does not exist or has another size.
    """
    shape = shape_of(inputs)
    rank = len(shape)
    if -rank <= axis < rank and shape[axis] == (features if held is None else held):
        return
    if held is not None and held < features:
        raise ShapeError(
            f"{type(layer).__name__}({name}={features}) has a part of its parameters here, for "
            f"{held} of {features} features, and expects inputs with size {held} on axis {axis}; "
            f"got shape {shape_text(inputs)}; take the same part of the inputs, or put "
            "parameters of the layer's own shape there"
        )
    expected = f"(..., {features})" if axis == -1 else f"with size {features} on axis {axis}"
    remedy = f"give the inputs an axis {axis} of size {features}"
    if held is not None and held != features:
        remedy = f"its parameters are for {held} now; put parameters of the layer's own shape there"
    elif -rank <= axis < rank:
        remedy = f"build the layer with {name}={shape[axis]}, or {remedy}"
    if axis == -1 and rank > 2 and shape[1] == features:
        remedy += (
            "; if the features stand on axis 1, as in PyTorch, write `jnp.moveaxis(inputs, 1, -1)`"
        )
    raise ShapeError(
        f"{type(layer).__name__}({name}={features}) expects inputs of shape {expected}, "
        f"got shape {shape_text(inputs)}; {remedy}"
    )


def resolve_mode(layer: object, name: str, given: bool | None) -> bool:
    """Decides a mode: what the call says, else what the layer's attribute says.

    Args:
      layer: the layer that is being called; it has an attribute of that name.
      name: ``"deterministic"`` or ``"use_running_average"``.
      given: the call's argument; None to take the attribute.

    Returns:
      The mode.

    Raises:
      ArgumentError: both are None.
    """
    mode = getattr(layer, name) if given is None else given
    if mode is None:
        kind = type(layer).__name__
        raise ArgumentError(
            f"{kind} does not know whether to train or to evaluate, because {name} is None in "
            f"the layer and in the call; write model.train() or model.eval() first, or "
            f"{kind}(..., {name}=False), or pass {name}=... to the call"
        )
    return mode


def shape_of(array: Any) -> tuple[int, ...]:
    """Returns the shape of an array, or of the array that nested lists of numbers make."""
    if array is None:
        raise ArgumentError(
            "the layer got None in the place of an array; is the `return` of what came before it "
            "missing?"
        )
    # of NumPy: converters of models put their own functions in the place of jax.numpy's
    return np.shape(array if hasattr(array, "shape") else jnp.asarray(array))


def shape_text(array: Any) -> str:
    """Returns an array's shape as text: ``(2, 3)``."""
    return str(tuple(shape_of(array)))
