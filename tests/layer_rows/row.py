"""What one row of the table of layers says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import moduli

Reference = Callable[..., np.ndarray]
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Bad:
    """A call that a layer refuses.

    Args:
      inputs: as in :class:`Row`.
      error: the class of the error.
      match: a regular expression that its message contains; the layer's class and place in the
        model are looked for besides.
    """

    inputs: tuple[Any, ...]
    error: type[Exception]
    match: str


@dataclasses.dataclass(frozen=True)
class Row:
    """One layer.

    Args:
      name: the row's name in test reports.
      build: makes the layer from streams of random keys.
      inputs: the positional inputs: a shape, to be filled with normal random numbers (mean 1,
        standard deviation 2), or a function from a NumPy generator to an array.
      shape: expected shape of the output.
      reference: ``(layer, *inputs) -> output``, independent of our own code, for the layer in
        training; it reads the parameters, and the running statistics as they were before the call.
        See :func:`layer_rows.by_torch.by_torch` for layers with a ``torch_counterpart``.
      reference_eval: the same in evaluation, where that differs.
      random: whether a call draws random numbers.
      bad: calls that are refused.
      init: a builder of a layer large enough for statistics, and the standard deviation expected
        of each of its initial parameters, by path with dots.
      bfloat16: largest error in bfloat16, relative to the largest output.
      batched: whether the first axis of all inputs and of the output is one of examples that do not
        see each other in evaluation.
      checks_features: whether the layer knows the size of its inputs' last axis, so that another
        one is refused.
      needs_rngs: whether it cannot be built without random streams.
      torch: whether the layer's ``torch_counterpart``, if it has one, takes such inputs.
      smooth: whether finite differences make sense (no maximum, no rounding, no integer).
    """

    name: str
    build: Callable[[moduli.Rngs], Any]
    inputs: tuple[Shape | Callable[[np.random.Generator], Any], ...]
    shape: Shape
    reference: Reference
    reference_eval: Reference | None = None
    random: bool = False
    bad: tuple[Bad, ...] = ()
    init: tuple[Callable[[moduli.Rngs], Any], Mapping[str, float]] | None = None
    bfloat16: float = 0.03
    batched: bool = True
    checks_features: bool = True
    needs_rngs: bool = True
    torch: bool = True
    smooth: bool = True

    def model(self, seed: int = 0) -> Any:
        """Builds the layer with every parameter and statistic at a value of its own."""
        model = self.build(moduli.Rngs(seed))
        rng = np.random.default_rng(seed)
        for _, variable in moduli.iter_graph(model):
            if isinstance(variable, (moduli.Param, moduli.BatchStat)):
                noise = rng.uniform(0.05, 0.5, variable.shape)  # positive: a variance stays one
                variable.value = variable.value + jnp.asarray(noise, variable.dtype)
        return model

    def arrays(self, seed: int = 0) -> tuple[jax.Array, ...]:
        """Makes the inputs."""
        return make_inputs(self.inputs, seed)

    def nested(self) -> Any:
        """Builds the layer two levels down in a model, at ``blocks[0][0]`` of ``Outer``."""
        return Outer(self.model())


class Outer(moduli.Module):
    """Holds a layer two levels down, in a list."""

    def __init__(self, layer: moduli.Module) -> None:
        self.blocks = [[layer]]

    def __call__(self, *args: Any) -> Any:
        return self.blocks[0][0](*args)


def make_inputs(inputs: tuple[Any, ...], seed: int = 0) -> tuple[jax.Array, ...]:
    """Makes arrays of what a row says of its inputs.

    Args:
      inputs: shapes, or functions from a NumPy generator to an array.
      seed: of the generator.
    """
    rng = np.random.default_rng(seed + 1)

    def make(given: Any) -> jax.Array:
        array = given(rng) if callable(given) else rng.normal(1, 2, given)
        if np.issubdtype(np.asarray(array).dtype, np.floating):
            return jnp.asarray(array, jnp.float32)
        return jnp.asarray(array)

    return tuple(map(make, inputs))


def value(variable: Any) -> np.ndarray:
    """Returns a Variable's value in float64; zero for a parameter that is not used."""
    return np.zeros(()) if variable is None else np.asarray(variable.value, np.float64)
