"""Where the time to build a model goes: JAX's eager calls, or the library's Python.

A model is built three times over: as users build it; with initializers that return a ready array;
and not at all, only the random keys drawn that it needs. What initializers take is the difference
of the first two; what is left of the second is the norms' zeros and ones, and Python.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import initializers

from benchmarks.libraries import libraries
from benchmarks.peers import _nnx_models
from benchmarks.problem import WIDTH
from benchmarks.settings import Settings
from benchmarks.tables import table
from benchmarks.timing import round_robin

PARAMETERS = {
    "kernel": initializers.lecun_normal(),
    "bias": initializers.zeros,
    "scale": initializers.ones,
    "offset": initializers.zeros,
}
"""The parameters of a block, and the initializers that the layers use for them."""
RAW = "jax by hand"
PARTS = ("initializers", "random keys", "running statistics and Python")


def measure(settings: Settings) -> dict[Any, Any]:
    """Returns "depth", and library -> what is built -> microseconds in each round."""
    depth = settings.detail_depth
    made = {RAW: _by_hand(depth)}
    made |= {name: _by_library(nnx, depth) for name, nnx in libraries().items()}
    times = round_robin(
        {f"{name}/{what}": call for name, calls in made.items() for what, call in calls.items()},
        rounds=settings.some_rounds,
        budget_s=settings.budget_s,
        repeats=settings.repeats,
    )
    return {
        "depth": depth,
        **{name: {w: times[f"{name}/{w}"] for w in calls} for name, calls in made.items()},
    }


def _by_library(nnx: Any, depth: int) -> dict[str, Callable[[], Any]]:
    usual = _nnx_models.model_class(nnx, depth)
    constant = _nnx_models.model_class(
        nnx,
        depth,
        kernel=_ready(jnp.zeros((WIDTH, WIDTH))),
        bias=_ready(jnp.zeros(WIDTH)),
        scale=_ready(jnp.ones(WIDTH)),
    )

    def keys() -> Any:
        rngs = nnx.Rngs(0)
        return [rngs.params() for _ in range(depth * len(PARAMETERS))]

    return {
        "whole": lambda: usual(nnx.Rngs(0)),
        "ready arrays": lambda: constant(nnx.Rngs(0)),
        "keys": keys,
    }


def _ready(value: jax.Array) -> Callable[..., jax.Array]:
    """Returns an initializer that costs nothing."""
    return lambda key, shape, dtype: value


def _by_hand(depth: int) -> dict[str, Callable[[], Any]]:
    def keys() -> list[jax.Array]:
        key = jax.random.key(0)
        return [jax.random.fold_in(key, n) for n in range(depth * len(PARAMETERS))]

    def ready_arrays() -> Any:
        return keys(), _statistics(depth)

    def whole() -> Any:
        drawn = iter(keys())
        made = [
            initializer(next(drawn), (WIDTH, WIDTH) if name == "kernel" else (WIDTH,), jnp.float32)
            for _ in range(depth)
            for name, initializer in PARAMETERS.items()
        ]
        return made, _statistics(depth)

    return {
        "whole": whole,
        "ready arrays": ready_arrays,
        "keys": keys,
    }


def _statistics(depth: int) -> Any:
    shape = (WIDTH,)
    return [(jnp.zeros(shape, jnp.float32), jnp.ones(shape, jnp.float32)) for _ in range(depth)]


def parts(times: dict[str, list[float]]) -> dict[str, float]:
    """Returns part of building -> median of its milliseconds, of one library."""
    rounds = zip(*[times[what] for what in ("whole", "ready arrays", "keys")], strict=True)
    split = [(whole - ready, keys, ready - keys) for whole, ready, keys in rounds]
    return {
        name: statistics.median(values) / 1e3
        for name, values in zip(PARTS, zip(*split, strict=True), strict=True)
    }


def report(found: dict[Any, Any]) -> list[str]:
    """Formats the table of parts."""
    by_library = {name: times for name, times in found.items() if name != "depth"}
    split = {name: parts(times) for name, times in by_library.items()}
    rows = [[part, *[f"{split[name][part]:.2f}" for name in split]] for part in PARTS]
    whole = [f"{statistics.median(times['whole']) / 1e3:.2f}" for times in by_library.values()]
    return [
        f"Where the time to build the model of depth {found['depth']} goes, in ms:",
        "",
        *table(["part", *split], [*rows, ["whole", *whole]]),
    ]
