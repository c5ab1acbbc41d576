"""What a loop carries: modules keep their identity and structure, values keep shape and dtype."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from moduli import errors
from moduli._graph.data import is_graph_leaf

__all__ = ["check_same_objects", "check_same_types", "is_array_like"]


def is_array_like(value: Any) -> bool:
    """Returns whether JAX can trace a value: each of its leaves is an array or a number."""
    if isinstance(value, jax.Array):
        return True
    return all(
        hasattr(leaf, "dtype") or isinstance(leaf, (bool, int, float, complex))
        for leaf in jax.tree.leaves(value)
    )


def check_same_objects(transform: str, function: str, given: Any, returned: Any) -> None:
    """Raises unless ``returned`` is a pytree like ``given`` with the same modules in it.

    Args:
      transform: its name, for messages.
      function: its name, for messages.
      given: the carry that the function got.
      returned: the carry that it returned.
    """
    before = jax.tree_util.tree_flatten_with_path(given, is_leaf=is_graph_leaf)
    after = jax.tree_util.tree_flatten_with_path(returned, is_leaf=is_graph_leaf)
    if before[1] != after[1]:
        raise errors.StructureError(
            f"{transform}: {function} got the carry {_outline(given)} and returned "
            f"{_outline(returned)}; a carry keeps its structure: return it in the same form"
        )
    for (path, old), (_, new) in zip(before[0], after[0], strict=True):
        if (is_graph_leaf(old) or is_graph_leaf(new)) and old is not new:
            spot = "carry" + jax.tree_util.keystr(path)
            raise errors.StructureError(
                f"{transform}: {function} got a {type(old).__name__} at {spot} and returned "
                f"another object there, of type {type(new).__name__}; a carry keeps its objects: "
                "change the object in place (`moduli.update(old, moduli.state(new))`) and return it"
            )


def _outline(tree: Any) -> str:
    return str(jax.tree.map(lambda leaf: type(leaf).__name__, tree, is_leaf=is_graph_leaf))


def check_same_types(
    transform: str,
    function: str,
    old: Sequence[Any],
    new: Sequence[Any],
    describe: Callable[[int], str],
) -> None:
    """Raises if a carried value changes its structure, shape or dtype from step to step.

    Args:
      transform: its name, for messages.
      function: its name, for messages.
      old: the values that the function got.
      new: the values that it left.
      describe: writes where the value of a number stands.
    """
    for number, (before, after) in enumerate(zip(old, new, strict=True)):
        if before is after:
            continue
        first, second = jax.tree.structure(before), jax.tree.structure(after)
        if first != second:
            raise errors.StructureError(
                f"{transform}: {function} changes the structure of {describe(number)}, which is "
                f"carried, from {first} to {second}; a carried value keeps its structure. A value "
                "that grows with every step (a sown tuple) has to be popped before, or captured"
            )
        for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
            was, now = jax.typeof(a), jax.typeof(b)
            if was.shape != now.shape or (was.dtype != now.dtype and not was.weak_type):
                raise errors.ShapeError(
                    f"{transform}: {function} changes {describe(number)}, which is carried, from "
                    f"{was.dtype}{list(was.shape)} to {now.dtype}{list(now.shape)}; a carried "
                    "value keeps shape and dtype. Cast the new value (`.astype(old.dtype)`), or "
                    "start with what the loop makes"
                )
