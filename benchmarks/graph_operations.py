"""What flax.nnx and moduli both do to graphs, without compiled code: split, merge, clone, ..."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.peers import _nnx_models

OPERATIONS: dict[str, Callable[[Any, Any, int], Callable[[], Any]]] = {
    "split + merge": lambda nnx, model, depth: lambda: nnx.merge(*nnx.split(model)),
    "state": lambda nnx, model, depth: lambda: nnx.state(model),
    "update": lambda nnx, model, depth: (lambda state: lambda: nnx.update(model, state))(
        nnx.clone(nnx.state(model))
    ),
    "clone": lambda nnx, model, depth: lambda: nnx.clone(model),
    "iter_modules": lambda nnx, model, depth: lambda: list(nnx.iter_modules(model)),
    "build the model": lambda nnx, model, depth: lambda: _nnx_models.build(nnx, depth),
}
"""Name -> function of (library, model, depth) that returns the call to measure."""


def calls(nnx: Any, depth: int) -> dict[str, Callable[[], Any]]:
    """Returns the calls of one library."""
    model = _nnx_models.build(nnx, depth)
    return {name: make(nnx, model, depth) for name, make in OPERATIONS.items()}
