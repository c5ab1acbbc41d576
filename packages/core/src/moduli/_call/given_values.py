"""Values that a user gives for those of a call: in a State, or in a module like the argument."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax

from moduli import errors
from moduli._base.node import Node
from moduli._call.call import Call
from moduli._call.signature import Leaf
from moduli._graph.cache import flat_of
from moduli._graph.data import is_graph_leaf
from moduli._graph.state import _flat_items
from moduli._variable.box import Variable

__all__ = ["given_values", "unboxed", "match_given", "value_of"]


def value_of(given: Any) -> Any:
    """Returns what a Variable holds, past its hooks; anything else as it is."""
    return given._value if isinstance(given, Variable) else given


def unboxed(given: Any) -> Any:
    """Returns what a Variable holds, as ``.value`` does; anything else as it is."""
    return given.value if isinstance(given, Variable) else given


def given_values(given: Node | Mapping[Any, Any]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yields (path, value) of a module, a State or a nested dict.

    Args:
      given: the module, State or dict.
    """
    if isinstance(given, Node):
        flat = flat_of(given)
        yield from zip(flat.graphdef.leaf_paths, flat.values(), strict=True)
    else:
        for path, value in _flat_items(given):
            yield path, value_of(value)


def match_given(
    call: Call,
    items: Iterable[tuple[Any, Any, str]],
    take: Callable[[int, Any, Any, str, dict[Leaf, tuple[Any, str]]], None],
    misfit: Callable[[str, Any, Any], str],
    *,
    name_parts: bool = True,
) -> Iterator[tuple[Any, tuple[Any, str]]]:
    """Pairs each traced value of a call with what was given for it.

    Args:
      call: the call.
      items: for each argument itself, what was given for it (None for nothing), and its name.
      take: ``(number of the root, root, given, name, found)`` notes in ``found`` what was given for
        the values below a module or Variable, and under which name.
      misfit: ``(name, given, argument) -> text`` of the error if their structures differ.
      name_parts: whether the name of a part of an argument says which part it is.

    Returns:
      An iterator of (value, (given, name)); without anything given (None, "").

    Raises:
      StructureError: if something has another structure than its argument.
    """
    found: dict[Leaf, tuple[Any, str]] = {}
    plain: list[tuple[Any, str]] = []
    roots = iter(range(call.signature.num_roots))
    for argument, given, name in items:
        pairs, treedef = jax.tree_util.tree_flatten_with_path(argument, is_leaf=is_graph_leaf)
        try:
            parts = [None] * len(pairs) if given is None else treedef.flatten_up_to(given)
        except (ValueError, TypeError):
            raise errors.StructureError(misfit(name, given, argument)) from None
        for (path, leaf), part in zip(pairs, parts, strict=True):
            spot = name + jax.tree_util.keystr(path) if name_parts else name
            if not is_graph_leaf(leaf):
                plain.append((part, spot))
                continue
            number = next(roots)
            if part is not None:
                take(number, leaf, part, spot, found)
    graphs = [found.get(leaf, (None, "")) for leaf in call.signature.leaves]
    return zip(call.dynamic, call.pick([*graphs, *plain]), strict=True)
