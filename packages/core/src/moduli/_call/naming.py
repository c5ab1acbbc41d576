"""The user's names in JAX's errors: which function is traced, and how its arguments are called.

JAX gets a pure function of lists of values. What it says about that function in its errors comes
from the function's attributes, as for any decorated function: ``__wrapped__`` leads to the source,
``__signature__`` names the arguments. So ours lead to the user's function, and give each value
the name that it has there, as Python writes it: ``model.layers[0].kernel``. JAX writes other
arguments so too, and XLA keeps these names and takes a slash for a scope. In our own messages it is
``model/layers/0/kernel``. Names are written when JAX asks for them, which it does when it traces.

For errors in which JAX names no function, :func:`naming` adds a sentence.
"""

from __future__ import annotations

import functools
import inspect
import re
import types
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import jax

from moduli import errors
from moduli._base.type_variables import Path

if TYPE_CHECKING:
    from moduli._call.signature import Signature

__all__ = [
    "code_of",
    "name_function",
    "Names",
    "explain",
    "named",
    "naming",
    "parameter_name",
    "replace_text",
]

P = TypeVar("P", bound=Callable[..., Any])


class _Source:
    """Stands for a function where JAX looks for its name, file and line."""

    def __init__(self, fun: Any):
        code = code_of(fun)
        self.__name__ = getattr(fun, "__name__", type(fun).__name__)
        if code is not None:
            self.__name__, self.__code__ = code.co_name, code

    def __repr__(self) -> str:
        return f"<built-in function {self.__name__}>"  # the only text from which JAX takes a name


class _Signature(inspect.Signature):
    """A signature that binds each value to the user's name for it."""

    __slots__ = ("_pairs",)
    _pairs: Callable[..., Iterable[tuple[str, Any]]]

    def bind(self, *args: Any, **kwargs: Any) -> inspect.BoundArguments:
        """Binds names to the values, in the order in which JAX finds them."""
        bound = super().bind(*args, **kwargs)
        found: dict[str, Any] = {}
        try:
            for name, value in self._pairs(*args):
                while name in found:
                    name += "'"
                found[name] = value
        except Exception:  # names are for messages only: a call must not fail for them
            return bound
        named = _Bound(self, found)  # type: ignore[arg-type]
        named.given = bound.args
        return named


class _Bound(inspect.BoundArguments):
    __slots__ = ("given",)
    given: tuple[Any, ...]

    @property
    def args(self) -> tuple[Any, ...]:
        return self.given

    @property
    def kwargs(self) -> dict[str, Any]:
        return {}

    def apply_defaults(self) -> None:
        """There are none."""


@functools.cache
def _parameters(names: tuple[str, ...]) -> list[inspect.Parameter]:
    return [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in names]


def named(pure: P, fun: Any, pairs: Callable[..., Iterable[tuple[str, Any]]]) -> P:
    """Makes JAX speak of the user's function and arguments when it means a pure function.

    Args:
      pure: the pure function, which takes positional arguments only.
      fun: the user's function.
      pairs: takes the arguments of ``pure`` and gives a name and a value for each part of them, in
        the order of their leaves.

    Returns:
      ``pure``.
    """
    pure.__wrapped__ = _Source(fun)  # type: ignore[attr-defined]
    code = pure.__code__
    signature = _Signature(_parameters(code.co_varnames[: code.co_argcount]))
    signature._pairs = pairs
    pure.__signature__ = signature  # type: ignore[attr-defined]
    return pure


class Names:
    """The names of the values of a call, as the user's function has them.

    Args:
      parameters: the signature of the function that takes all arguments, if it is known.
      signature: of the call.
      positions: the function's parameter for each positional argument; all in order by default.
    """

    def __init__(
        self,
        parameters: inspect.Signature | None,
        signature: Signature,
        positions: Sequence[int] | None = None,
    ):
        self._parameters, self._signature, self._positions = parameters, signature, positions

    @functools.cached_property
    def _tops(self) -> tuple[list[str], list[str]]:
        """The names of the roots and of the other arguments."""
        roots: list[str] = []
        plain: list[str] = []
        template, keywords = self._signature.template, self._signature.names
        count = len(template) - len(keywords)
        positions = range(count) if self._positions is None else self._positions
        tops = [parameter_name(self._parameters, position) for position in positions]
        tops += keywords
        for name, mark in zip(tops, template, strict=True):
            if not isinstance(mark, tuple):
                (roots if mark else plain).append(name)
                continue
            treedef, marks = mark
            tree = jax.tree.unflatten(treedef, [_PLACE] * len(marks))
            paths = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_place)[0]
            for (path, _), is_root in zip(paths, marks, strict=True):
                (roots if is_root else plain).append(name + jax.tree_util.keystr(path))
        return roots, plain

    @property
    def plain(self) -> list[str]:
        """The names of the arguments that are no graphs."""
        return self._tops[1]

    @functools.cached_property
    def groups(self) -> list[list[str]]:
        """The names of the values of each graph, for JAX."""
        return self._groups(errors.format_code)

    @functools.cached_property
    def places(self) -> list[list[str]]:
        """The same for our own messages: the argument, and the path below it."""
        return self._groups(lambda path: f"/{errors.format_path(path)}")

    def _groups(self, written: Callable[[Path], str]) -> list[list[str]]:
        roots = iter(self._tops[0])
        groups = []
        for graphdef in self._signature.graphdefs:
            tops = [next(roots) for _ in graphdef.roots]
            groups.append([_below(tops, path, written) for path in graphdef.leaf_paths])
        return groups

    def flat(self, treedef: Any) -> list[str]:
        """The names of all values, those of the graphs first.

        Args:
          treedef: the structure of the list of the other arguments.
        """
        tree = jax.tree.unflatten(treedef, [_PLACE] * treedef.num_leaves)
        paths = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_place)[0]
        rest = [self.plain[path[0].idx] + jax.tree_util.keystr(path[1:]) for path, _ in paths]
        return [name for group in self.groups for name in group] + rest


_PLACE = object()


def _is_place(item: Any) -> bool:
    return item is _PLACE


def _below(tops: list[str], path: Path, written: Callable[[Path], str]) -> str:
    top = tops[0]
    if len(tops) > 1:
        top, path = tops[path[0]], path[1:]
    return top + written(path) if path else top


def parameter_name(signature: inspect.Signature | None, position: int) -> str:
    """Returns the name of a positional argument."""
    parameters = [] if signature is None else list(signature.parameters.values())
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [p.name for p in parameters if p.kind in kinds]
    rest = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), "args")
    return names[position] if position < len(names) else f"{rest}[{position - len(names)}]"


def explain(error: Exception, transform: str, fun: Any) -> None:
    """Adds to an error of JAX's own about a call which function it is about.

    Args:
      error: the error, which has left the transform.
      transform: its name.
      fun: the user's function.
    """
    if isinstance(error, errors.ModuliError) or getattr(error, "_moduli_inside", False):
        return  # it is about what the function did, or says it already
    if not isinstance(error, (TypeError, ValueError, RuntimeError)):
        return
    replace_text(
        error, _COMPONENT, lambda found: f" {found[1] or ''} in its result, ".replace("  ", " ")
    )
    name_function(error, transform, fun)


_COMPONENT = re.compile(r" at output component (?:\[0\]((?:\[\S*\])*)|\S*), ")


def replace_text(
    error: Exception, pattern: re.Pattern[str], new: Callable[[re.Match[str]], str]
) -> None:
    """Replaces parts of the text of an error."""
    if error.args and isinstance(error.args[0], str):
        error.args = (pattern.sub(new, error.args[0]), *error.args[1:])


class naming:
    """A context in which JAX is called for a transform: its errors name the user's function."""

    __slots__ = ("_fun", "_transform")

    def __init__(self, transform: str, fun: Any):
        self._transform, self._fun = transform, fun

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if isinstance(error, Exception):
            explain(error, self._transform, self._fun)


def name_function(error: Exception, transform: str, fun: Any) -> None:
    """Adds to the text of an error of JAX's which function it is about, if it does not say it.

    Args:
      error: the error.
      transform: the transform that traces the function.
      fun: the function.
    """
    code = code_of(fun)
    text = error.args[0] if error.args else None
    if not isinstance(text, str) or isinstance(error, KeyError):
        return
    name, place = getattr(fun, "__name__", type(fun).__name__), ""
    if code is not None:
        name = code.co_name
        place = f" at {code.co_filename}:{code.co_firstlineno}"
        if f"{name}{place}" in text:
            return
        if " _fun at " in text:  # a pure function of JAX's own in the place of the user's: pmap
            return
        varargs = code.co_flags & 4 > 0
        count = code.co_argcount + code.co_kwonlyargcount
        name += f"({', '.join(code.co_varnames[: count + varargs])})"
    add = f"The error occurred while moduli.{transform} traced the function {name}{place}."
    start, dash, rest = text.partition("\n--------------------")
    error.args = (f"{start.rstrip()}\n{add}{dash}{rest}", *error.args[1:])


def code_of(fun: Any) -> types.CodeType | None:
    """Returns the code of the function that a user wrote, below partials and decorators."""
    for _ in range(100):
        if isinstance(fun, functools.partial):
            fun = fun.func
        elif isinstance(fun, type):
            fun = fun.__init__
        elif isinstance(getattr(fun, "__code__", None), types.CodeType) and not hasattr(
            fun, "__wrapped__"
        ):
            return fun.__code__
        elif getattr(fun, "__wrapped__", None) is not None:
            fun = fun.__wrapped__
        elif getattr(fun, "__func__", None) is not None:
            fun = fun.__func__
        elif callable(fun) and hasattr(type(fun).__call__, "__code__"):
            fun = type(fun).__call__
        else:
            return None
    return None
