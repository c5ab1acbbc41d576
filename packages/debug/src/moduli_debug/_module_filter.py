"""Filters that select modules of a model, the same for every tool of this package.

A filter is one of

- a path pattern such as ``"blocks/*/attention"`` (``"blocks[*].attention"`` is understood too):
  parts of the module's path, indices as digits.
  ``*`` stands for one part (or, inside a part, for any characters: ``"conv*"``), ``**`` for any
  number of parts, also none; ``""`` is the root
- a class: modules of that class and its subclasses
- a callable ``(path, module) -> bool``
- ``...`` or ``True``: every module; ``False`` or ``None``: none
- a tuple or list of filters: any of them
- ``moduli.Any``, ``moduli.All``, ``moduli.Not`` of filters; a string in them is a path pattern too
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import moduli
from moduli import errors
from moduli.lowlevel import PathPart, PathText, parse_path

__all__ = ["PathPattern", "module_predicate", "other_paths", "path_text", "select_modules"]

Path = tuple[Any, ...]
ModulePredicate = Callable[[Path, Any], bool]

_SHOWN = 8
_KINDS = (
    "write a path pattern such as 'blocks/*/attention', a Module class, a callable "
    "(path, module) -> bool, `...`, or a tuple, moduli.Any, moduli.All or moduli.Not of these"
)


def path_text(path: Iterable[Any]) -> str:
    """Formats a module's path as :func:`moduli.errors.format_path`, but ``""`` for the root.

    Args:
      path: attribute names and indices.

    Example:
      >>> from moduli_debug._module_filter import path_text
      >>> path_text(("blocks", 0, "attention"))
      'blocks/0/attention'
    """
    path = tuple(path)
    return errors.format_path(path) if path else ""


class PathPattern:
    """Modules whose path fits a pattern; see the text of this file.

    Args:
      pattern: the pattern.

    Raises:
      StructureError: if a part between two slashes is empty.

    Example:
      >>> from moduli_debug._module_filter import PathPattern
      >>> fits = PathPattern("blocks/*/norm*")
      >>> fits(("blocks", 3, "norm1"), None), fits(("blocks", 3), None)
      (True, False)
    """

    def __init__(self, pattern: str):
        self.pattern = pattern
        parts = pattern.split("/") if pattern else []
        if "" in parts and not set(pattern) & set("'\""):  # quotes may hold slashes
            raise errors.StructureError(
                f"the path pattern {pattern!r} has an empty part; write "
                f"{'/'.join(part for part in parts if part)!r} ('' is the root, '**' everything)"
            )
        self._readings = tuple(
            tuple("**" if part == ("**", "name") else _part_pattern(part) for part in reading)
            for reading in PathText(pattern).readings
        )

    def __call__(self, path: Path, module: Any) -> bool:
        return self.fits(path)

    def fits(self, path: Path) -> bool:
        """Returns whether a path fits."""
        return any(_fits(parts, tuple(path)) for parts in self._readings)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PathPattern) and other.pattern == self.pattern

    def __hash__(self) -> int:
        return hash((PathPattern, self.pattern))

    def __repr__(self) -> str:
        return repr(self.pattern)


def _part_pattern(part: PathPart) -> Callable[[Any], bool]:
    if part.kind != "name" or "*" not in part.text:
        return part.fits
    pattern = re.compile(".*".join(map(re.escape, part.text.split("*"))), re.DOTALL)
    return lambda given: pattern.fullmatch(str(given)) is not None


def _fits(parts: tuple[Any, ...], path: Path) -> bool:
    reached = {0}  # how many parts of the path the pattern's parts so far may have used
    for part in parts:
        if part == "**":
            reached = set(range(min(reached), len(path) + 1))
        else:
            reached = {place + 1 for place in reached if place < len(path) and part(path[place])}
        if not reached:
            return False
    return len(path) in reached


def module_predicate(filter: Any) -> ModulePredicate:
    """Turns a filter into a callable ``(path, module) -> bool``.

    Equal filters of classes and strings give equal predicates, so that they can be keys.

    Args:
      filter: see the text of this file.

    Returns:
      The predicate.

    Raises:
      VariableError: if ``filter``, or a part of it, is none of the kinds of filter.
      StructureError: if a path pattern is none.

    Example:
      >>> import moduli
      >>> from moduli_debug._module_filter import module_predicate
      >>> inner = module_predicate(moduli.All("blocks/**", moduli.Not(moduli.List)))
      >>> inner(("blocks", 0), moduli.Dict()), inner(("blocks",), moduli.List())
      (True, False)
    """
    if isinstance(filter, str):
        return PathPattern(filter)
    if isinstance(filter, moduli.WithTag):  # a string inside of moduli.Any and the like
        return PathPattern(filter.tag)
    if isinstance(filter, moduli.OfType):
        return module_predicate(filter.type)
    if isinstance(filter, type):
        if issubclass(filter, moduli.Variable):
            raise errors.VariableError(
                f"{filter.__name__} is a kind of Variable, and this filter selects modules; "
                f"{_KINDS}"
            )
        return moduli.OfType(filter)
    if isinstance(filter, bool):
        return moduli.Everything() if filter else moduli.Nothing()
    if filter is Ellipsis:
        return moduli.Everything()
    if filter is None:
        return moduli.Nothing()
    if isinstance(filter, (moduli.Any, moduli.All)):
        return type(filter)(*map(module_predicate, filter.predicates))
    if isinstance(filter, moduli.Not):
        return moduli.Not(module_predicate(filter.predicate))
    if isinstance(filter, moduli.Pytree):
        raise errors.VariableError(
            f"a {type(filter).__name__} object is no filter of modules (inside of a transform the "
            f"modules are copies, so an object cannot select one); {_KINDS}"
        )
    if isinstance(filter, (list, tuple)):
        return moduli.Any(*map(module_predicate, _filters_of(filter)))
    if callable(filter):
        return _checked(filter)
    raise errors.VariableError(f"{filter!r} of type {type(filter).__name__} is no filter; {_KINDS}")


def _filters_of(filter: Any) -> Any:
    if any(isinstance(part, int) and not isinstance(part, bool) for part in filter):
        raise errors.VariableError(
            f"{filter!r} is no filter of modules: a tuple means any of its filters. Write the path "
            f"as a string, {path_text(filter)!r}"
        )
    return filter


def _checked(filter: Any) -> Any:
    try:
        signature = inspect.signature(filter)
    except (TypeError, ValueError):  # a builtin without one
        return filter
    try:
        signature.bind((), None)
    except TypeError:
        raise errors.VariableError(
            f"the filter {getattr(filter, '__qualname__', filter)}{signature} cannot be called "
            "with (path, module); write `lambda path, module: ...`"
        ) from None
    return filter


def select_modules(root: Any, filter: Any, caller: str) -> list[tuple[Path, Any]]:
    """Returns the modules of a model that a filter selects.

    Lists and Dicts, which nobody calls, are left out, but not their subclasses with a ``__call__``.
    A module that stands in several places is one module: a pattern may name it by any of its
    paths, and the result has the first.

    Args:
      root: the model.
      filter: see the text of this file.
      caller: the tool's name, with which an error begins.

    Returns:
      Pairs (path, module), in the order of ``moduli.iter_modules``.

    Raises:
      PathError: if the filter selects no module, unless it is ``False`` or ``None``; the text has
        near misses.
      VariableError: as :func:`module_predicate`.
      StructureError: as :func:`module_predicate`.

    Example:
      >>> import moduli
      >>> from moduli_debug._module_filter import select_modules
      >>> class Block(moduli.Module):
      ...     pass
      >>> model = moduli.List([Block(), Block()])
      >>> [path for path, _ in select_modules(model, "*", "capture")]
      [(0,), (1,)]
      >>> select_modules(model, "2", "capture")
      Traceback (most recent call last):
      moduli.errors.PathError: capture: the filter '2' selects no module of List; its modules are \
'0' (Block), '1' (Block)
    """
    try:
        predicate = module_predicate(filter)
    except errors.ModuliError as error:
        raise type(error)(f"{caller}: {error}") from None
    modules = list(moduli.iter_modules(root))
    places = other_paths(root) if any(_patterns(predicate)) else {}
    chosen = [
        (path, module)
        for path, module in modules
        if not _is_container(module)
        and any(predicate(place, module) for place in places.get(path, (path,)))
    ]
    if not chosen and filter is not None and filter is not False:
        raise errors.PathError(_nothing(root, filter, predicate, modules, places, caller))
    return chosen


def _is_container(module: Any) -> bool:
    return isinstance(module, (moduli.List, moduli.Dict)) and not callable(module)


def other_paths(root: Any) -> dict[Path, list[Path]]:
    """Returns the paths of every module, its first one first, if some module has several.

    Args:
      root: the model.

    Returns:
      Lists of paths by first path; empty if no module has more than one.
    """
    groups = moduli.find_duplicates(root, only=moduli.Module)
    if not groups:
        return {}
    groups.sort(key=lambda paths: len(paths[0]), reverse=True)  # inner ones before outer ones
    found = {}
    for path, _ in moduli.iter_modules(root):
        places = [path]
        for first, *others in groups:
            inside = [place for place in places if place[: len(first)] == first]
            places += [other + place[len(first) :] for other in others for place in inside]
        found[path] = places
    return found


def _patterns(predicate: Any) -> Iterator[PathPattern]:
    """Yields the path patterns in a predicate, except those that it excludes."""
    if isinstance(predicate, PathPattern):
        yield predicate
    elif isinstance(predicate, (moduli.Any, moduli.All)):
        for part in predicate.predicates:
            yield from _patterns(part)


def _classes(predicate: Any) -> Iterator[type]:
    if isinstance(predicate, moduli.OfType):
        yield predicate.type
    elif isinstance(predicate, (moduli.Any, moduli.All)):
        for part in predicate.predicates:
            yield from _classes(part)


def _nothing(
    root: Any,
    filter: Any,
    predicate: Any,
    modules: list[tuple[Path, Any]],
    other_paths: dict[Path, list[Path]],
    caller: str,
) -> str:
    """Makes the error for a filter that selects nothing."""
    places = {place: module for path, module in modules for place in other_paths.get(path, (path,))}
    called = {
        path_text(place): module for place, module in places.items() if not _is_container(module)
    }
    containers = {
        path_text(place): module for place, module in places.items() if _is_container(module)
    }
    classes = {type(module).__name__: type(module) for module in called.values()}
    hints: list[str] = []
    for pattern in _patterns(predicate):
        hints.extend(_near_paths(pattern, called, containers, classes))
    for wanted in _classes(predicate):
        hints.extend(_near_classes(wanted, classes))
    shown = _filter_text(filter) or repr(filter)
    text = f"{caller}: the filter {shown} selects no module of {type(root).__name__}; "
    text += "".join(f"{hint}; " for hint in dict.fromkeys(hints))
    listed = [
        f"{path_text(path)!r} ({type(module).__name__})"
        for path, module in sorted(modules, key=lambda item: (len(item[0]), path_text(item[0])))
        if not _is_container(module)
    ]
    if not listed:
        return text + "it has no modules but Lists and Dicts"
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return text + f"its modules are {', '.join(listed[:_SHOWN])}{more}"


def _filter_text(filter: Any) -> str | None:
    if isinstance(filter, type):
        return filter.__name__
    return getattr(filter, "__qualname__", None)


def _near_paths(
    pattern: PathPattern,
    called: dict[str, Any],
    containers: dict[str, Any],
    classes: dict[str, type],
) -> Iterator[str]:
    """Yields what the author of a pattern that fits nothing may have meant."""
    text = pattern.pattern
    if text in classes:
        yield f"{text!r} is a path pattern; for modules of a class, write the class {text}"
        return
    for path, module in containers.items():
        if pattern.fits(_texts(path)):
            pattern_inside = f"{text}/*" if text else "*"
            kind = type(module).__name__
            yield f"{path!r} is a {kind}, which is never called: write {pattern_inside!r}"
            return
    deeper = f"**/{text}"
    if any(map(PathPattern(deeper).fits, _split_all(called))):
        yield f"a pattern begins at the root: did you mean {deeper!r}?"
        return
    near = _nearest(text, _with_wildcards(text, called)) or _nearest(text, called)
    if near:
        yield f"did you mean {' or '.join(map(repr, near))}?"
        return
    near = _nearest(text, classes)
    if near:
        yield f"did you mean the class {' or '.join(near)}?"


def _split_all(paths: Iterable[str]) -> Iterator[Path]:
    return map(_texts, paths)


def _texts(path: str) -> Path:
    return tuple(part.text for part in parse_path(path))


def _with_wildcards(text: str, paths: Iterable[str]) -> set[str]:
    """Returns the paths with the wildcards of a pattern in them, which make it unlike any path."""
    parts = _texts(text)
    candidates = set()
    for path in _split_all(paths):
        if "*" in text and len(path) == len(parts):
            candidate = [o if "*" in o else p for o, p in zip(parts, path, strict=True)]
            candidates.add("/".join(candidate))
    return candidates


def _nearest(text: str, candidates: Iterable[str]) -> list[str]:
    """Returns up to three of the candidates that are most alike, about as near as the nearest."""

    def likeness(candidate: str) -> float:
        return difflib.SequenceMatcher(None, text, candidate).ratio()

    ranked = sorted((-likeness(candidate), candidate) for candidate in candidates)[:3]
    return [c for rank, c in ranked if rank <= -0.6 and rank - ranked[0][0] < 0.1]


def _near_classes(wanted: type, classes: dict[str, type]) -> Iterator[str]:
    name = wanted.__name__
    if name in classes:
        theirs = classes[name]
        yield (
            f"the model's {name} is {theirs.__module__}.{theirs.__qualname__}, another class than "
            f"{wanted.__module__}.{wanted.__qualname__}"
        )
        return
    near = _nearest(name, classes)
    if near:
        yield f"did you mean the class {' or '.join(near)}?"
