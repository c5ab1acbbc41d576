"""Initializers that draw from a distribution: JAX's own, with few programs when called eagerly.

XLA would compile a random function for each shape of a kernel. ``moduli.lowlevel.flat_draw`` cuts
arrays of all shapes from a few flat draws, equal to the bit; where it cannot, JAX's initializer is
called. An initializer here is an object that equals another one of the same distribution and
arguments, so layers that keep one have the same structure.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Hashable
from typing import Any

import jax
import numpy as np
from jax.nn import initializers

from moduli.lowlevel import flat_draw

__all__ = ["Drawn", "drawn"]

_TRUNCATED = 0.87962566103423978  # standard deviation of a standard normal truncated to (-2, 2)
_MODES: dict[str, Callable[[float, float], float]] = {
    "fan_in": lambda fan_in, fan_out: fan_in,
    "fan_out": lambda fan_in, fan_out: fan_out,
    "fan_avg": lambda fan_in, fan_out: (fan_in + fan_out) / 2,
}
_SCALES = {  # scale, mode and distribution of the named cases of variance scaling
    "glorot_normal": (1.0, "fan_avg", "truncated_normal"),
    "glorot_uniform": (1.0, "fan_avg", "uniform"),
    "he_normal": (2.0, "fan_in", "truncated_normal"),
    "he_uniform": (2.0, "fan_in", "uniform"),
    "lecun_normal": (1.0, "fan_in", "truncated_normal"),
    "lecun_uniform": (1.0, "fan_in", "uniform"),
}


class Drawn:
    """An initializer: ``(key, shape, dtype) -> array``.

    Args:
      factory: the name of JAX's factory.
      arguments: its arguments, by name.
    """

    __slots__ = ("__weakref__", "_arguments", "_factory", "_plain")

    def __init__(self, factory: str, arguments: dict[str, Any]):
        self._factory, self._arguments = factory, arguments
        self._plain = getattr(initializers, factory)(**arguments)

    def __call__(
        self, key: jax.Array, shape: Any, dtype: Any = None, out_sharding: Any = None
    ) -> jax.Array:
        """Fills an array, as JAX's initializer does.

        Args:
          key: a random key.
          shape: the shape of the array.
          dtype: its dtype; default: that of the factory.
          out_sharding: as of JAX's initializers.
        """
        values = None
        if out_sharding is None:
            values = self._draw(key, shape, self._arguments["dtype"] if dtype is None else dtype)
        if values is not None:
            return values
        given = {} if dtype is None else {"dtype": dtype}
        if out_sharding is not None:
            given["out_sharding"] = out_sharding
        return self._plain(key, shape, **given)

    def _draw(self, key: Any, shape: Any, dtype: Any) -> jax.Array | None:
        if not isinstance(shape, (tuple, list)):
            return None
        try:
            kind = jax.dtypes.canonicalize_dtype(float if dtype is None else dtype)
            distribution, bounds, factor = self._recipe(tuple(shape), kind)
        except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError):
            return None  # JAX says what is wrong
        return flat_draw(distribution, key, shape, kind, bounds, factor)

    def _recipe(self, shape: tuple[int, ...], dtype: Any) -> tuple[str, tuple[float, ...], Any]:
        """Returns the distribution, its bounds, and the factor in the dtype of the result."""
        given = self._arguments
        number = dtype.type
        if self._factory == "normal":
            return "normal", (), number(given["stddev"])
        if self._factory == "truncated_normal":
            return "truncated_normal", (given["lower"], given["upper"]), number(given["stddev"])
        if self._factory == "uniform":
            return "uniform", (), number(given["scale"])
        scale, mode, distribution = _SCALES.get(self._factory) or (
            given["scale"],
            given["mode"],
            given["distribution"],
        )
        if min(shape) < 0:
            raise ValueError(shape)
        axes = (given["in_axis"], given["out_axis"], given["batch_axis"])
        variance = number(scale / _MODES[mode](*_fans(shape, *axes)))
        if distribution == "normal":
            return "normal", (), number(np.sqrt(variance))
        if distribution == "uniform":
            return "uniform", (-1, 1.0), number(np.sqrt(number(number(3) * variance)))
        if distribution == "truncated_normal":
            return distribution, (-2, 2), number(number(np.sqrt(variance)) / number(_TRUNCATED))
        raise ValueError(distribution)

    def _key(self) -> Hashable:
        items = ((n, tuple(v) if isinstance(v, list) else v) for n, v in self._arguments.items())
        return (self._factory, *items)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Drawn) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __reduce__(self) -> tuple[Any, ...]:
        return Drawn, (self._factory, self._arguments)

    def __repr__(self) -> str:
        defaults = inspect.signature(getattr(initializers, self._factory)).parameters
        given = [
            f"{name}={value!r}"
            for name, value in self._arguments.items()
            if value is not defaults[name].default and value != defaults[name].default
        ]
        return f"{self._factory}({', '.join(given)})"


def _fans(shape: tuple[int, ...], in_axis: Any, out_axis: Any, batch_axis: Any) -> tuple[Any, Any]:
    if len(shape) <= 1:
        raise ValueError(shape)  # JAX refuses it

    def size(axis: Any) -> int:
        axes = (axis,) if isinstance(axis, int) else tuple(axis)
        return math.prod([shape[number] for number in axes])

    size_in, size_out = size(in_axis), size(out_axis)
    field = math.prod(shape) / size_in / size_out / size(batch_axis)
    return size_in * field, size_out * field


def drawn(name: str) -> Any:
    """Returns a factory like ``jax.nn.initializers.<name>``, whose initializers are Drawn."""
    original = getattr(initializers, name)
    signature = inspect.signature(original)

    @functools.wraps(original)
    def factory(*args: Any, **kwargs: Any) -> Drawn:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return Drawn(name, dict(bound.arguments))

    factory.__module__ = "moduli_layers.initializers"
    factory.__qualname__ = factory.__name__ = name
    return factory
