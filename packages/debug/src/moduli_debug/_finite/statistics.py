"""Statistics of an array, for reports on NaN and infinity."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["ArrayStatistics", "is_finite", "is_inexact", "statistics_of"]

_inexact: dict[Any, bool] = {}
_ON_HOST = 1 << 14  # below this many elements numpy is quicker than a compiled reduction


class ArrayStatistics(NamedTuple):
    """What a report says of an array.

    Attributes:
      name: where it stands in the arguments or the output of its module, such as ``"[0]"``; empty
        for an output that is one array.
      shape: its shape.
      dtype: its dtype.
      minimum: the smallest of its finite elements, None if there is none; of the absolute values
        if it is complex.
      maximum: the largest of them.
      nans: how many elements are NaN.
      infinities: how many elements are infinite.
    """

    name: str
    shape: tuple[int, ...]
    dtype: Any
    minimum: float | None
    maximum: float | None
    nans: int
    infinities: int

    @property
    def is_finite(self) -> bool:
        """Whether no element is NaN or infinite."""
        return not (self.nans or self.infinities)

    @property
    def size(self) -> int:
        """How many elements there are."""
        return int(np.prod(self.shape))

    def __str__(self) -> str:
        text = f"{self.dtype}[{','.join(map(str, self.shape))}]"
        if self.minimum is not None:
            text += f" from {self.minimum:.4g} to {self.maximum:.4g}"
        if not self.is_finite:
            parts = [
                f"{count} {word}"
                for count, word in ((self.nans, "NaN"), (self.infinities, "inf"))
                if count
            ]
            text += f", {' and '.join(parts)} of {self.size}"
        return f"{self.name}: {text}" if self.name else text


def is_inexact(value: Any) -> bool:
    """Returns whether a value is an array of floating-point or complex numbers."""
    if not isinstance(value, (jax.Array, np.ndarray, np.generic)):
        return False
    known = _inexact.get(value.dtype)
    if known is None:
        known = _inexact[value.dtype] = bool(jnp.issubdtype(value.dtype, jnp.inexact))
    return known


@jax.jit
def _all_finite(value: jax.Array) -> jax.Array:
    return jnp.isfinite(value).all()


def is_finite(value: Any) -> bool:
    """Returns whether a floating-point array is finite everywhere."""
    if value.size < _ON_HOST:
        return bool(np.isfinite(np.asarray(value)).all())
    return bool(_all_finite(value))


@functools.partial(jax.jit, static_argnums=1)
def _measure(value: jax.Array, work_dtype: Any) -> tuple[jax.Array, ...]:
    nan, infinite = jnp.isnan(value), jnp.isinf(value)
    size = jnp.abs(value) if jnp.iscomplexobj(value) else value
    size = size.astype(work_dtype)
    good = ~(nan | infinite)
    low = jnp.min(size, where=good, initial=jnp.inf)
    high = jnp.max(size, where=good, initial=-jnp.inf)
    return low, high, nan.sum(), infinite.sum()


def statistics_of(name: str, value: Any) -> ArrayStatistics:
    """Measures an array.

    Args:
      name: where it stands.
      value: a floating-point or complex array.
    """
    shape, dtype = tuple(value.shape), value.dtype
    if value.size < _ON_HOST:
        array = np.asarray(value)
        nans, infinities = int(np.isnan(array).sum()), int(np.isinf(array).sum())
        good = array[np.isfinite(array)]
        if np.iscomplexobj(good):
            good = np.abs(good)
        low, high = (float(good.min()), float(good.max())) if good.size else (np.inf, -np.inf)
    else:
        work = jnp.float64 if dtype == jnp.float64 else jnp.float32
        measured = _measure(value, work)
        low, high, nans, infinities = (item.item() for item in measured)
    known = low <= high
    return ArrayStatistics(
        name, shape, dtype, low if known else None, high if known else None, nans, infinities
    )
