"""Reducers of captured values: what ``moduli.capture(..., reduce=...)`` keeps of each.

A reducer runs where the value is captured, inside of compiled programs, so that only its result is
kept. Any function of one array is a reducer too.

Example:
  >>> import moduli as nnx, jax.numpy as jnp
  >>> model = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
  >>> _, seen = nnx.capture(model, outputs="", reduce=nnx.reducers.mean)(jnp.zeros((8, 4)))
  >>> seen.outputs.value[0].shape
  ()
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from moduli import errors

__all__ = ["Reducer", "every", "histogram", "last", "make_reducer", "mean", "norm", "top_k"]


@dataclasses.dataclass(frozen=True)
class Reducer:
    """What is kept of captured values.

    Attributes:
      each: what is done to each array of a value, where it is captured.
      kept: which of a module's calls are kept, and of a ``scan`` around it which steps: start, stop
        and step of a slice.
    """

    each: Callable[[Any], Any] | None = None
    kept: tuple[int | None, int | None, int | None] = (None, None, None)

    def of(self, value: Any) -> Any:
        """Applies ``each`` to every array of a value."""
        return value if self.each is None else jax.tree.map(self.each, value)


@dataclasses.dataclass(frozen=True)
class _Histogram:
    bins: int
    low: float
    high: float

    def __call__(self, value: Any) -> jax.Array:
        edges = jnp.linspace(self.low, self.high, self.bins + 1)
        flat = jnp.clip(jnp.ravel(value).astype(edges.dtype), self.low, self.high)
        return jnp.histogram(flat, edges)[0].astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class _TopK:
    k: int

    def __call__(self, value: Any) -> jax.Array:
        flat = jnp.ravel(value)
        return jax.lax.top_k(flat, min(self.k, flat.size))[0]


def _norm(value: Any) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(jnp.abs(jnp.asarray(value)))))


last = Reducer(kept=(-1, None, None))
"""Keeps the last call of each module alone, and of a ``scan`` the last step."""

mean = Reducer(jnp.mean)
"""Keeps the mean of each array, a scalar."""

norm = Reducer(_norm)
"""Keeps the Euclidean norm of each array, a scalar."""


def histogram(bins: int = 64, *, range: tuple[float, float]) -> Reducer:
    """Keeps how many elements of each array lie in bins of equal width.

    Args:
      bins: how many bins.
      range: the edges of the first and of the last bin; what lies outside counts in these.

    Returns:
      A reducer to int32 counts of shape ``(bins,)``.

    Raises:
      StructureError: if there is no bin, or the range is empty.

    Example:
      >>> import jax.numpy as jnp
      >>> from moduli_debug import reducers
      >>> reducers.histogram(2, range=(0.0, 1.0)).of(jnp.array([0.1, 0.2, 5.0])).tolist()
      [2, 1]
    """
    low, high = range
    if bins < 1 or not low < high:
        raise errors.StructureError(
            f"reducers.histogram: got {bins} bins over {range!r}; write for example "
            "`histogram(64, range=(-3.0, 3.0))`"
        )
    return Reducer(_Histogram(bins, float(low), float(high)))


def top_k(k: int) -> Reducer:
    """Keeps the ``k`` largest elements of each array, the largest first.

    Args:
      k: how many, at least 1; an array that has fewer is kept sorted.

    Raises:
      StructureError: if ``k`` is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> from moduli_debug import reducers
      >>> reducers.top_k(2).of(jnp.array([[1.0, 5.0], [3.0, 2.0]])).tolist()
      [5.0, 3.0]
    """
    if k < 1:
        raise errors.StructureError(f"reducers.top_k: got k={k!r}; write `top_k(5)` for the five")
    return Reducer(_TopK(k))


def every(n: int) -> Reducer:
    """Keeps every n-th call of each module, and every n-th step of a ``scan``, from the first on.

    Args:
      n: at least 1.

    Raises:
      StructureError: if ``n`` is not positive.

    Example:
      >>> import moduli as nnx, jax.numpy as jnp
      >>> stack = nnx.Stack(lambda rngs: nnx.Linear(3, 3, rngs=rngs), 5, rngs=nnx.Rngs(0))
      >>> run = nnx.capture(stack, outputs="block", reduce=nnx.reducers.every(2))
      >>> run(jnp.ones(3))[1].block.outputs.value[0].shape
      (3, 3)
    """
    if n < 1:
        raise errors.StructureError(
            f"reducers.every: got n={n!r}; write `every(10)` for each tenth"
        )
    return Reducer(kept=(None, None, n))


def make_reducer(reduce: Any, caller: str) -> Reducer | None:
    """Turns what a user gives as ``reduce=`` into a Reducer.

    Raises:
      VariableError: if it is neither a Reducer, a function, nor None.
    """
    if reduce is None or isinstance(reduce, Reducer):
        return reduce
    if callable(reduce):
        if reduce in (histogram, top_k, every):
            raise errors.VariableError(
                f"{caller}: reduce={reduce.__name__} needs its arguments; write for example "
                "`reducers.histogram(64, range=(-3.0, 3.0))`, `reducers.top_k(5)`"
            )
        return Reducer(reduce)
    raise errors.VariableError(
        f"{caller}: reduce is a {type(reduce).__name__} ({reduce!r}); give one of moduli.reducers, "
        "such as `moduli.reducers.mean`, or a function of an array"
    )
