"""Arrays that are gone: their places, the program that took them, and what to write instead.

A program to which an argument is donated reuses its buffers. The objects that it was given hold new
arrays afterwards; whatever else held the old ones, such as a clone, is left with deleted arrays.
Nothing is looked for before JAX has raised.
"""

from __future__ import annotations

import contextlib
import inspect
import re
import weakref
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax

from moduli import errors
from moduli._base.compat import Tracer
from moduli._base.locate import locate
from moduli._graph.data import is_graph_leaf
from moduli._graph.walk import iter_graph
from moduli._variable.box import Variable

__all__ = ["deleted_in_call", "deleted_in_module", "deleted_values", "donates", "given_twice"]

Named = Sequence[tuple[str, Any]]


class Donating(Protocol):
    """A program that reuses the buffers of some of its arguments."""

    def donated(self) -> tuple[str, Collection[str]]:
        """Returns the function with its place, and names such as ``model/kernel``."""
        ...


_programs: weakref.WeakSet[Any] = weakref.WeakSet()


def donates(program: Donating) -> None:
    """Notes a program that reuses buffers, when it is made."""
    _programs.add(program)


def deleted_in_call(
    error: Exception, f: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> errors.DonatedError | None:
    """Returns the error to raise where JAX has met a deleted array; None if it is about another.

    Raise it from its ``__cause__``, which is JAX's error.

    Args:
      error: JAX's.
      f: the function that was called.
      args: its positional arguments: nodes, Variables, or pytrees with such and arrays.
      kwargs: its keyword arguments.
    """
    if not _is_about_deleted(_of_jax(error)):
        return None
    named: dict[str, Any] = {f"args[{n}]": value for n, value in enumerate(args)}
    with contextlib.suppress(TypeError, ValueError):
        named = dict(inspect.signature(f).bind_partial(*args).arguments)
    names = list(_deleted_in({**named, **kwargs}))
    function = getattr(f, "__name__", None) or type(f).__name__
    return _donated_error(error, names, function)


def deleted_values(error: Exception, function: str, values: Named) -> errors.DonatedError | None:
    """The same for the values of a call, each with its name."""
    if not _is_about_deleted(_of_jax(error)):
        return None
    names = [name for name, leaf in _leaves(values) if _is_deleted(leaf)]
    return _donated_error(error, names, function)


def deleted_in_module(error: Exception, module: Any) -> errors.DonatedError | None:
    """The same for the call of a module."""
    found = list(_deleted(module)) if _is_about_deleted(error) else []
    if not found:
        return None
    root, above = locate(module)
    names = [errors.format_path((*above, *path)) for path in found]
    return _donated_error(error, names, f"a {type(root).__name__}")


def given_twice(
    error: Exception, function: str, donated: Named, others: Named
) -> errors.DonatedError | None:
    """Returns the error to raise where a donated array is passed twice; None if none is.

    Args:
      error: JAX's.
      function: what was called.
      donated: the values that are donated, each with its name.
      others: the other values.
    """
    if "to donate" not in str(error):
        return None
    names: dict[int, str] = {}
    for name, leaf in _leaves(donated):
        names.setdefault(id(leaf), name)
    for name, leaf in [*_leaves(donated), *_leaves(others)]:
        first = names.get(id(leaf), name)
        if first != name and isinstance(leaf, jax.Array):
            new = errors.DonatedError(
                f"`{first}` and `{name}` are one array, and {function} is given its buffer to "
                "reuse (donate_argnums); it can be passed once then. Make one a copy: "
                "`jnp.copy(array)`, or `jax.tree.map(jnp.copy, model)` in the place of a clone, "
                "which shares its arrays"
            )
            new.__cause__ = error
            return new
    return None


def _of_jax(error: Exception) -> Any:
    """JAX's error below one of a module's call inside, which knows a copy of the arguments."""
    return error.__cause__ if isinstance(error, errors.DonatedError) else error


def _is_about_deleted(error: Any) -> bool:
    of_jax = isinstance(error, (RuntimeError, ValueError))
    return of_jax and not isinstance(error, errors.ModuliError) and "deleted" in str(error)


def _is_deleted(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer) and leaf.is_deleted()


def _leaves(values: Named) -> Iterator[tuple[str, Any]]:
    for name, value in values:
        for path, leaf in jax.tree_util.tree_flatten_with_path(value)[0]:
            yield name + jax.tree_util.keystr(path), leaf


def _deleted_in(arguments: Mapping[str, Any]) -> Iterator[str]:
    """Yields names: an argument as Python writes it, and paths below the modules in it."""
    for name, value in sorted(arguments.items()):
        for place, leaf in jax.tree_util.tree_flatten_with_path(value, is_leaf=is_graph_leaf)[0]:
            spot = name + jax.tree_util.keystr(place)
            found = _deleted(leaf) if is_graph_leaf(leaf) else [()] if _is_deleted(leaf) else []
            yield from (f"{spot}/{errors.format_path(path)}" if path else spot for path in found)


def _deleted(root: Any) -> Iterator[tuple[Any, ...]]:
    for path, item in iter_graph(root):
        value = item.get_raw_value() if isinstance(item, Variable) else item
        holds = isinstance(value, jax.Array) or value is not item  # a Variable may hold a pytree
        if holds and any(map(_is_deleted, jax.tree.leaves(value))):
            yield path


def _donated_error(error: Exception, gone: list[str], function: str) -> errors.DonatedError | None:
    if not gone:
        return None
    more = f" and {len(gone) - 4} more" if len(gone) > 4 else ""
    listed = ", ".join(f"`{name}`" for name in gone[:4]) + more
    took = " or ".join(_who_took(gone)[:3]) or "an earlier call, or .delete(),"
    new = errors.DonatedError(
        f"{function} was called with arrays that exist no more. Deleted: {listed}; {took} took "
        "their buffers (donate_argnums). What that call was given holds new arrays afterwards; a "
        "clone, a State or an array from before it does not. Take the values from there, or copy "
        "before the call what is to stay: `kept = jax.tree.map(jnp.copy, model)`"
    )
    new.__cause__ = _of_jax(error)
    return new


def _who_took(gone: list[str]) -> list[str]:
    """The programs that may have taken the buffers: those that have most of these paths."""
    scores: dict[str, int] = {}
    for program in list(_programs):
        place, names = program.donated()
        ends = [_words(name)[1:] or _words(name) for name in names]  # below the argument
        scores[place] = sum(any(_ends_with(_words(name), end) for end in ends) for name in gone)
    best = max(scores.values(), default=0)
    return sorted(place for place, score in scores.items() if score == best)


def _words(name: str) -> list[str]:
    """The parts of a name, also where it is one of JAX's: ``model``, ``layers`` and ``0``."""
    return re.findall(r"[^./\[\]'\"]+", name)


def _ends_with(words: list[str], end: list[str]) -> bool:
    return words[len(words) - len(end) :] == end
