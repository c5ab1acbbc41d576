"""Names that flax.nnx renamed; here they work without a warning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import moduli

__all__ = ["M", "VariableState", "as_abstract", "backup_keys", "deprecated", "pure"]

F = TypeVar("F", bound=Callable[..., Any])
M = TypeVar("M", bound=moduli.Module)

VariableState = moduli.Variable
as_abstract = moduli.abstract_with_sharding
pure = moduli.as_pure


def deprecated(new_fn: F) -> F:
    """Returns a function under its old name: the same one.

    Args:
      new_fn: the function.
    """
    return new_fn


def backup_keys(node: Any, /, *, graph: bool | None = None) -> list[tuple[moduli.RngStream, Any]]:
    """Returns each random stream of a graph with its key, for :func:`moduli.restore_rngs`.

    Args:
      node: a Module or another graph node.
      graph: accepted, as everywhere.
    """
    return [
        (stream, stream.key.value)
        for _, stream in moduli.iter_graph(node)
        if isinstance(stream, moduli.RngStream)
    ]
