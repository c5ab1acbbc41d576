"""Arguments of a jitted function that are not traced: which they are, and what they may be."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from moduli import errors
from moduli._base.node import Node
from moduli._base.static_keys import UnhashableStatic, static_key
from moduli._call.bind import Binding, owners

__all__ = ["StaticArguments", "as_names", "check_plain", "match_names"]


class StaticArguments:
    """The static arguments of one call of a jitted function.

    Args:
      fun: the function, for messages.
      args: all positional arguments.
      kwargs: all keyword arguments.
      numbers: which positional arguments are static.
      names: which keyword arguments are.

    Attributes:
      args: the other positional arguments.
      kwargs: the other keyword arguments.
      fixed: the static positional arguments, by position.
      fixed_names: the static keyword arguments, by name.
      key: a hashable key of both; empty if there are none.

    Raises:
      StructureError: if a static argument is a module or unhashable.
    """

    __slots__ = ("args", "fixed", "fixed_names", "key", "kwargs")

    def __init__(
        self,
        fun: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        numbers: Iterable[int],
        names: Iterable[str],
    ):
        count = len(args)
        positions = {n + count if n < 0 else n for n in numbers}
        fixed = self.fixed = {n: args[n] for n in positions if n < count}
        fixed_names = self.fixed_names = {n: kwargs[n] for n in names if n in kwargs}
        for name, value in (*fixed.items(), *fixed_names.items()):
            _check_static(name, value, fun)
        self.args = tuple([arg for n, arg in enumerate(args) if n not in fixed])
        self.kwargs = {n: v for n, v in kwargs.items() if n not in fixed_names}
        self.key: tuple[Any, ...] = ()
        if fixed or fixed_names:
            self.key = (
                tuple((n, static_key(v)) for n, v in sorted(fixed.items())),
                tuple((n, static_key(v)) for n, v in sorted(fixed_names.items())),
            )


def check_plain(fun: Callable[..., Any], binding: Binding, positions: list[int]) -> None:
    """Raises if an argument is text or a function, which JAX cannot trace."""
    places = [*positions, *binding.names]
    for value, owner in zip(binding.plain, owners(binding.template)[1], strict=True):
        if isinstance(value, (str, bytes, types.FunctionType)):
            place = places[owner]
            option = "static_argnames" if isinstance(place, str) else "static_argnums"
            raise errors.StructureError(
                f"jit: argument {place!r} of {getattr(fun, '__qualname__', fun)} is a "
                f"{type(value).__name__} ({value!r}), which cannot be traced; mark it static: "
                f"`moduli.jit(f, {option}={place!r})`"
            )


def _check_static(name: int | str, value: Any, fun: Callable[..., Any]) -> None:
    where = f"argument {name!r} of {getattr(fun, '__qualname__', fun)}"
    if isinstance(value, Node):
        raise errors.StructureError(
            f"jit: {where} is a {type(value).__name__} and marked static; modules carry arrays, so "
            "leave it out of static_argnums / static_argnames"
        )
    try:
        static_key(value)
    except UnhashableStatic:
        raise errors.StructureError(
            f"jit: the static {where} is a {type(value).__name__}, which cannot be hashed; use a "
            "hashable value such as a tuple, or do not mark it static"
        ) from None


def as_names(value: str | Iterable[str] | None) -> frozenset[str]:
    """Returns the names of an option such as ``static_argnames``."""
    if value is None:
        return frozenset()
    return frozenset((value,) if isinstance(value, str) else value)


def match_names(
    fun: Callable[..., Any], numbers: tuple[int, ...], names: frozenset[str]
) -> tuple[tuple[int, ...], frozenset[str]]:
    """Completes numbers by names and names by numbers, as JAX does, from the signature.

    Args:
      fun: the function.
      numbers: positions of arguments.
      names: names of arguments.

    Raises:
      StructureError: if a name is not an argument.
    """
    try:
        parameters = list(inspect.signature(fun).parameters.values())
    except (TypeError, ValueError):
        return numbers, names
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    positional = [p.name for p in parameters if p.kind in kinds]
    known = {p.name for p in parameters}
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    unknown = sorted(names - known)
    if unknown and not takes_any:
        raise errors.StructureError(
            f"jit: {getattr(fun, '__qualname__', fun)} has no argument {unknown[0]!r}; it has "
            f"{[p.name for p in parameters]}"
        )
    more_names = {positional[n] for n in numbers if -len(positional) <= n < len(positional)}
    more_numbers = {positional.index(name) for name in names if name in positional}
    return tuple(sorted({*numbers, *more_numbers})), frozenset(names | more_names)
