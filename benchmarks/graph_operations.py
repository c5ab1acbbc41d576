"""What flax.nnx and moduli both do to graphs, without compiled code: split, merge, clone, ..."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.libraries import libraries
from benchmarks.peers import _nnx_models
from benchmarks.settings import Settings
from benchmarks.tables import ratio_cell, table
from benchmarks.timing import round_robin

OPERATIONS: dict[str, Callable[[Any, Any, Callable[[], Any]], Callable[[], Any]]] = {
    "split + merge": lambda nnx, model, build: lambda: nnx.merge(*nnx.split(model)),
    "state": lambda nnx, model, build: lambda: nnx.state(model),
    "update": lambda nnx, model, build: (lambda state: lambda: nnx.update(model, state))(
        nnx.clone(nnx.state(model))
    ),
    "clone": lambda nnx, model, build: lambda: nnx.clone(model),
    "iter_modules": lambda nnx, model, build: lambda: list(nnx.iter_modules(model)),
    "build the model": lambda nnx, model, build: build,
}
"""Name -> function of (library, model, what builds another) that returns the call to measure."""


def calls(nnx: Any, depth: int) -> dict[str, Callable[[], Any]]:
    """Returns the calls of one library."""
    model_class = _nnx_models.model_class(nnx, depth)

    def build() -> Any:
        return model_class(nnx.Rngs(0))

    model = build()
    return {name: make(nnx, model, build) for name, make in OPERATIONS.items()}


def measure(settings: Settings) -> dict[Any, Any]:
    """Returns operation -> depth -> library -> microseconds in each round."""
    found: dict[str, Any] = {}
    for depth in settings.depths:
        made = {name: calls(nnx, depth) for name, nnx in libraries().items()}
        for operation in OPERATIONS:
            found.setdefault(operation, {})[depth] = round_robin(
                {name: made[name][operation] for name in made},
                rounds=settings.some_rounds,
                budget_s=settings.budget_s,
                repeats=settings.repeats,
            )
    return found


def report(found: dict[Any, Any]) -> list[str]:
    """Formats how many times faster moduli is."""
    if not any("flax.nnx" in times for by in found.values() for times in by.values()):
        return ["Graph operations: flax is not installed, so there is nothing to compare with.", ""]
    depths = list(next(iter(found.values())))
    return [
        "How many times faster than flax.nnx, by depth:",
        "",
        *table(
            ["operation", *depths],
            [
                [op, *[ratio_cell(times, "flax.nnx", "moduli", 1) for times in by_depth.values()]]
                for op, by_depth in found.items()
            ],
        ),
    ]
