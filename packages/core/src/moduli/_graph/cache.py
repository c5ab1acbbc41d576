"""The structure cache: each root keeps the flatten of the graph below it.

``flat_of(root)`` is the one way to flatten a root. While nothing structural happened anywhere (one
comparison) or to any object of this graph (one cheap pass), it returns the same Flat. The cache
lives on the root, so it dies with it.
"""

from __future__ import annotations

from typing import Any

from moduli._graph.flatten import Flat, flatten_roots
from moduli._graph.nodes import Node

__all__ = ["flat_of"]


def flat_of(root: Any) -> Flat:
    """Returns the flattened graph below a node or Variable, from the cache while it holds.

    Args:
      root: a node or a Variable.

    Returns:
      The Flat of this single root.
    """
    if isinstance(root, Node):
        book = root._moduli
        flat = book.flat
        if flat is not None and flat.is_current():
            return flat
        book.flat = flat = flatten_roots((root,))
        return flat
    return flatten_roots((root,))
