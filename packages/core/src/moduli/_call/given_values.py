"""Values that a user gives for those of a call: in a State, or in a module like the argument."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from moduli._base.node import Node
from moduli._call.call import Call
from moduli._call.signature import Leaf
from moduli._graph.cache import flat_of
from moduli._graph.state import _flat_items
from moduli._variable.box import Variable

__all__ = ["given_values", "unboxed", "value_of", "with_values"]


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


def with_values(
    call: Call, found: Mapping[Leaf, tuple[Any, str]], plain: Sequence[tuple[Any, str]]
) -> Iterator[tuple[Any, tuple[Any, str]]]:
    """Pairs each dynamic value of a call with what was given for it.

    Args:
      call: the call.
      found: what was given for values of graphs, with its name for messages.
      plain: what was given for all other values, in order, likewise.

    Returns:
      An iterator of (value, (given, name)); without anything given (None, "").
    """
    graphs = [found.get(leaf, (None, "")) for leaf in call.signature.leaves]
    return zip(call.dynamic, call.pick([*graphs, *plain]), strict=True)
