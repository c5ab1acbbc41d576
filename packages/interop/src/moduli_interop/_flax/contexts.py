"""Contexts of ``split`` and ``merge``: objects keep their identity through raw JAX transforms.

A context numbers the objects that are split in it. What it gives out in the place of a GraphDef is
a :class:`NumberedGraphDef`, which says the number of each object; so the objects that a later merge
makes, or changes, are told from each other, across several splits.

``moduli.jit`` and the other transforms need none of this; it is for code that was written with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable, Hashable, Iterator
from typing import Any, TypeVar

import jax

import moduli
from moduli.errors import StructureError
from moduli.lowlevel import rebuild

__all__ = [
    "MergeContext",
    "NumberedGraphDef",
    "SplitContext",
    "UpdateContext",
    "current_update_context",
    "merge_context",
    "split_context",
    "update_context",
]

F = TypeVar("F", bound=Callable[..., Any])


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class NumberedGraphDef:
    """A GraphDef whose objects have numbers; hashable, and static for JAX.

    Attributes:
      graphdef: the structure.
      numbers: the number of each object of the structure's table; None for a new one.
      given: for each object whether its values were split before, so that the State has none.
    """

    graphdef: moduli.GraphDef[Any]
    numbers: tuple[int | None, ...]
    given: tuple[bool, ...]


class _Numbers:
    """Objects and their numbers, both ways. It holds the objects."""

    def __init__(self) -> None:
        self.objects: dict[int, Any] = {}
        self._numbers: dict[int, int] = {}

    def number_of(self, item: Any) -> int | None:
        return self._numbers.get(id(item))

    def note(self, number: int, item: Any) -> None:
        self.objects[number] = item
        self._numbers[id(item)] = number


@jax.tree_util.register_static
class UpdateContext:
    """What the four steps of an update know of each other; made by :func:`update_context`.

    Attributes:
      tag: the context's name.
    """

    def __init__(self, tag: Hashable):
        self.tag = tag
        self._outer: _Numbers | None = None
        self._inner: _Numbers | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UpdateContext)  # opaque: JAX need not compile again for another

    def __hash__(self) -> int:
        return hash(UpdateContext)


class _Contexts(threading.local):
    def __init__(self) -> None:
        self.stacks: dict[Hashable, list[UpdateContext]] = {}


_contexts = _Contexts()


class _Entering:
    """A context manager that is a decorator too."""

    def __init__(self, tag: Hashable):
        self._tag = tag

    def __enter__(self) -> UpdateContext:
        context = UpdateContext(self._tag)
        _contexts.stacks.setdefault(self._tag, []).append(context)
        return context

    def __exit__(self, *error: object) -> None:
        context = _contexts.stacks[self._tag].pop()
        context._outer = context._inner = None
        if not _contexts.stacks[self._tag]:
            del _contexts.stacks[self._tag]

    def __call__(self, function: F) -> F:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return wrapper  # type: ignore[return-value]


def update_context(tag: Hashable) -> _Entering:
    """Opens a context in which split and merge, called four times, update the caller's objects.

    Outside of a JAX transform ``split_context(tag)`` splits them (1); inside ``merge_context(tag,
    inner=True)`` makes copies (2), and ``split_context(tag)`` splits these when they have changed
    (3); outside ``merge_context(tag, inner=False)`` does the same to the caller's objects (4).

    Args:
      tag: the context's name.

    Returns:
      A context manager, which is a decorator too.

    Example:
      >>> import jax, moduli as nnx
      >>> @jax.jit
      ... def step(graphdef, state):
      ...     with nnx.merge_context("example", inner=True) as context:
      ...         model = context.merge(graphdef, state)
      ...     model["doubled"] = nnx.Param(2 * model["w"].value)
      ...     with nnx.split_context("example") as context:
      ...         return context.split(model)
      >>> model = nnx.Dict({"w": nnx.Param(1.0)})
      >>> with nnx.update_context("example"):
      ...     with nnx.split_context("example") as context:
      ...         graphdef, state = context.split(model)
      ...     graphdef, state = step(graphdef, state)
      ...     with nnx.merge_context("example", inner=False) as context:
      ...         same = context.merge(graphdef, state)
      >>> same is model, float(model["doubled"].value)
      (True, 2.0)
    """
    return _Entering(tag)


def current_update_context(tag: Hashable) -> UpdateContext:
    """Returns the innermost open context of this name.

    Raises:
      StructureError: (a ValueError) there is none.
    """
    if not _contexts.stacks.get(tag):
        raise StructureError(
            f"no update_context is open for the tag {tag!r}; write `with "
            f"moduli.update_context({tag!r}):` around the call"
        )
    return _contexts.stacks[tag][-1]


def _objects(node: Any, graphdef: moduli.GraphDef[Any]) -> list[Any]:
    """Returns a graph's objects in the order of the GraphDef's table."""
    by_path = dict(moduli.iter_graph(node))
    return [by_path[path] for path in graphdef.object_paths]


class SplitContext:
    """Splits objects of one context; made by :func:`split_context`."""

    def __init__(self, ctxtag: Hashable | None):
        self.ctxtag = ctxtag
        update = None if ctxtag is None else current_update_context(ctxtag)
        self._inner = None if update is None else update._inner
        self._seen = _Numbers()

    def split(self, node: Any, /, *filters: Any) -> tuple[Any, ...]:
        """Like :func:`moduli.split`; an object that was split before is only referred to.

        Args:
          node: a Module or another graph node.
          *filters: divide the values; together they select all.

        Returns:
          ``(graphdef, state, ...)`` for :meth:`MergeContext.merge`.
        """
        graphdef, flat, *_ = self.flatten(node)
        states = moduli.split_state(moduli.from_flat_state(flat), *(filters or (...,)))
        return graphdef, *(states if isinstance(states, tuple) else (states,))

    def flatten(self, node: Any, /, *filters: Any, with_paths: bool = True) -> tuple[Any, ...]:
        """Like :meth:`split`, with the values as FlatStates, or as a list.

        Args:
          node: a Module or another graph node.
          *filters: divide the values; together they select all.
          with_paths: give FlatStates; otherwise a list of values, without filters.
        """
        if filters and not with_paths:
            raise StructureError("flatten divides values by path: with_paths=False has no filters")
        graphdef, flat = moduli.flatten(node)
        numbers, given = [], []
        for item in _objects(node, graphdef):
            given.append(self._seen.number_of(item) is not None)
            numbers.append(self._number(item))
        owners = graphdef.leaf_objects
        pairs = [
            pair
            for pair, owner in zip(flat, owners, strict=True)
            if owner is None or not given[owner]
        ]
        numbered = NumberedGraphDef(graphdef, tuple(numbers), tuple(given))
        if not with_paths:
            return numbered, [value for _, value in pairs]
        state = moduli.FlatState(pairs)
        if not filters:
            return numbered, state
        states = state.split(*filters)
        return numbered, *(states if isinstance(states, tuple) else (states,))

    def _number(self, item: Any) -> int | None:
        """Returns the number of an object, the old one if it was made by an inner merge."""
        known = self._seen.number_of(item)
        if known is not None:
            return known
        number = None if self._inner is None else self._inner.number_of(item)
        if number is None:  # negative: it has none outside, but may be met again
            count = len(self._seen.objects)
            number = count if self._inner is None else -1 - count
        self._seen.note(number, item)
        return number


class MergeContext:
    """Merges what was split in one context; made by :func:`merge_context`."""

    def __init__(self, ctxtag: Hashable | None, inner: bool | None):
        self.ctxtag = ctxtag
        update = None if ctxtag is None else current_update_context(ctxtag)
        self._old = update._outer.objects if update and update._outer and not inner else {}
        self._made = _Numbers()

    def merge(self, graphdef: Any, state: Any, /, *states: Any) -> Any:
        """Like :func:`moduli.merge`; an object that was merged before is only referred to.

        Args:
          graphdef: from :meth:`SplitContext.split`.
          state: the values.
          *states: more of them.

        Returns:
          The root: a new object inside, the caller's own one outside.
        """
        flat = [moduli.to_flat_state(one) for one in (state, *states)]
        return self.unflatten(graphdef, *flat)

    def unflatten(self, graphdef: Any, flat_state: Any, /, *flat_states: Any) -> Any:
        """Like :meth:`merge`, of FlatStates or of a list of values."""
        structure, numbers = graphdef.graphdef, graphdef.numbers
        known = [
            self._made.objects.get(n, self._old.get(n)) if n is not None else None for n in numbers
        ]
        values = self._values(graphdef, (flat_state, *flat_states), known)
        kept = {i for i, n in enumerate(numbers) if n in self._made.objects}
        existing = {i: item for i, item in enumerate(known) if item is not None}
        root, objects = rebuild(structure, values, existing, kept=kept)
        for number, item in zip(numbers, objects, strict=True):
            if number is not None:
                self._made.note(number, item)
        return root

    @staticmethod
    def _values(graphdef: NumberedGraphDef, states: tuple[Any, ...], known: list[Any]) -> list[Any]:
        """Returns a value for each leaf: those that were given before stand in their Variables."""
        structure = graphdef.graphdef
        by_path: dict[Any, Any] = {}
        in_order: Iterator[Any] = iter(())
        if isinstance(states[0], list):
            in_order = iter(states[0])
        else:
            for state in states:
                by_path.update(dict(state))
        found = []
        for path, owner in zip(structure.leaf_paths, structure.leaf_objects, strict=True):
            if owner is not None and graphdef.given[owner]:
                found.append(known[owner])
                continue
            value = by_path[path] if path in by_path else next(in_order, _MISSING)
            if value is _MISSING:
                raise StructureError(
                    f"merge: the States have no value for `{moduli.errors.format_path(path)}`; "
                    "pass every State that split gave"
                )
            found.append(value)
        return found


_MISSING: Any = object()


@contextlib.contextmanager
def split_context(ctxtag: Hashable | None = None) -> Iterator[SplitContext]:
    """Opens a context whose splits know each other, so that what they share stays shared.

    Args:
      ctxtag: the tag of an :func:`update_context` around it; None without one.

    Example:
      >>> import moduli as nnx
      >>> shared = nnx.Dict({"w": nnx.Param(1.0)})
      >>> a, b = nnx.Dict({"shared": shared}), nnx.Dict({"shared": shared})
      >>> with nnx.split_context() as context:
      ...     first, second = context.split(a), context.split(b)
      >>> with nnx.merge_context() as context:
      ...     a, b = context.merge(*first), context.merge(*second)
      >>> a["shared"] is b["shared"]
      True
    """
    context = SplitContext(ctxtag)
    yield context
    if ctxtag is None:
        return
    update = current_update_context(ctxtag)
    if update._outer is None:
        update._outer = context._seen
    else:
        update._inner = None


@contextlib.contextmanager
def merge_context(
    ctxtag: Hashable | None = None, inner: bool | None = None
) -> Iterator[MergeContext]:
    """Opens a context whose merges know each other; see :func:`split_context`.

    Args:
      ctxtag: the tag of an :func:`update_context` around it; None without one.
      inner: whether it is inside of the JAX transform; needed with a tag.

    Raises:
      StructureError: a tag is given without ``inner``.
    """
    if ctxtag is not None and inner is None:
        raise StructureError(
            "merge_context with a tag needs inner=True inside of the transform, inner=False outside"
        )
    context = MergeContext(ctxtag, inner)
    yield context
    if ctxtag is not None and inner:
        current_update_context(ctxtag)._inner = context._made
