"""Finds the random streams inside a model, and which of them a filter or a rule is for.

The walk goes by sorted keys, as in flax.nnx, because :func:`moduli.reseed` deals out keys in the
order of the walk.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any

import jax

from moduli import errors
from moduli._base.node import Node
from moduli._base.type_variables import Path
from moduli._graph.data import is_graph_leaf, iter_pytree, sort_key
from moduli._graph.walk import node_children
from moduli._rngs.streams import RngStream
from moduli._variable.filters import Nothing, Predicate, to_predicate

__all__ = ["Change", "Path", "Rule", "Streams"]

Change = Callable[[jax.Array], jax.Array]
"""From the key that a stream gives next to the key of the stream that replaces it."""


class Streams:
    """The streams below a node, each once, with their paths.

    Args:
      node: any pytree that holds nodes.
      caller: the public function, for messages.
      is_call: the node is ``(args, kwargs)`` of a decorated function; then it may hold no graph.
    """

    def __init__(self, node: Any, caller: str, *, is_call: bool = False):
        self.caller, self.is_call = caller, is_call
        roots = [((), node)] if is_graph_leaf(node) else list(iter_pytree(node))
        if not is_call and not any(isinstance(root, Node) for _, root in roots):
            self._raise_no_graph(node)
        self.items: list[tuple[Path, RngStream]] = []
        seen: set[int] = set()
        for path, root in roots:
            self._walk(root, path, seen)

    def _walk(self, value: Any, path: Path, seen: set[int]) -> None:
        if not isinstance(value, Node) or id(value) in seen:
            return
        seen.add(id(value))
        if isinstance(value, RngStream):
            # two streams may share their Variables, as after clone(variables=False)
            if id(value.key) not in seen:
                seen.add(id(value.key))
                self.items.append((path, value))
            return
        value._check_source()
        children = list(node_children(value))
        if isinstance(value, dict):
            children.sort(key=lambda child: sort_key(child[0][0]))
        for relative, child in children:
            self._walk(child, path + relative, seen)

    def _raise_no_graph(self, node: Any) -> None:
        hint = "pass the model, its Rngs, or a list or dict of these"
        if callable(node):
            hint += f". As a decorator write `@moduli.{self.caller}(...)`, with parentheses"
        raise errors.StructureError(
            f"{self.caller} got {type(node).__name__}, which holds no module and no Rngs, so no "
            f"streams; {hint}"
        )

    def name(self, path: Path, stream: RngStream) -> str:
        """Names a stream for a message."""
        if self.is_call:
            path = ("kwargs" if path[0] else "args", *path[1:])
        return f"the stream {stream.tag!r} at `{errors.format_path(path)}`"

    def select_by_variables(self, rules: Sequence[tuple[Predicate, Change]]) -> list[Any]:
        """Pairs streams with the change of the first filter that selects key and count."""
        chosen = []
        for path, stream in self.items:
            for predicate, change in rules:
                key = predicate((*path, "key"), stream.key)
                if predicate((*path, "count"), stream.count) and key:
                    chosen.append((path, stream, change))
                    break
        self._check_any(chosen, [predicate for predicate, _ in rules])
        return chosen

    def select_by_rules(self, rules: Sequence[Rule], allowed: Predicate) -> list[Any]:
        """Pairs streams with the change of the one rule that is for them."""
        chosen = []
        for path, stream in self.items:
            if not allowed(path, stream):
                continue
            found: dict[str, Rule] = {}
            for rule in rules:
                if rule.kind not in found and rule.predicate(path, stream):
                    found[rule.kind] = rule
            exact = [rule for rule in found.values() if not rule.takes_all]
            if len(exact) > 1:
                listed = " and ".join(f"{rule.kind} by {rule.filter!r}" for rule in exact)
                raise errors.RngError(
                    f"{self.caller}: {self.name(path, stream)} is selected twice, for {listed}; "
                    "let one rule select each stream, or write `...` for the remaining ones"
                )
            if found:
                rule = next(iter(found.values()))
                chosen.append((path, stream, rule.change))
        predicates = [rule.predicate for rule in rules]
        self._check_any(chosen, [] if isinstance(allowed, Nothing) else predicates)
        return chosen

    def _check_any(self, chosen: list[Any], predicates: Sequence[Predicate]) -> None:
        """Raises if there are streams and filters, but the filters take none of the streams."""
        meant = [predicate for predicate in predicates if not isinstance(predicate, Nothing)]
        if chosen or not self.items or not meant:
            return
        tags = sorted({stream.tag for _, stream in self.items})
        wanted = [tag for tag in (getattr(test, "tag", None) for test in meant) if tag is not None]
        near = difflib.get_close_matches(str(wanted[0]), tags, n=1) if wanted else []
        hint = f"did you mean {near[0]!r}?" if near else f"select by name, as in {tags[0]!r}"
        places = ", ".join(self.name(path, stream) for path, stream in self.items[:5])
        more = f" and {len(self.items) - 5} more" if len(self.items) > 5 else ""
        raise errors.RngError(
            f"{self.caller}: the filter {' or '.join(map(repr, meant))} selects no stream; there "
            f"is {places}{more}; {hint}"
        )


class Rule:
    """One filter of ``with_rngs``, and what happens to the streams that it selects."""

    def __init__(self, kind: str, filter: Any, change: Change):
        self.kind, self.filter, self.change = kind, filter, change
        self.predicate = to_predicate(filter)
        self.takes_all = filter is ... or filter is True
