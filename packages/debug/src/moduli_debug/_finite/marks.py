"""Marks that a search for NaN leaves in a traced program: whose call an operation belongs to.

The plugin :data:`MARKS` puts each module's call into a named scope, which JAX keeps with every
operation through grad, vmap, scan, remat and the rest, and passes what goes into a call and what
comes out of it through ``optimization_barrier``, an identity, in a scope of its own. In the
backward pass the same barrier shows the gradients that come to the module and leave it. The marks
are in the program that is searched, never in the one that the user runs.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import jax

import moduli
from moduli import plugins
from moduli_debug._finite.statistics import is_inexact

__all__ = [
    "MARKS",
    "Call",
    "Mark",
    "call_of",
    "call_scope",
    "following",
    "is_backward",
    "is_object",
    "mark_of",
    "objects_in",
    "place_of_call",
]

Path = tuple[Any, ...]


class Call(NamedTuple):
    """A call of a module.

    Attributes:
      root: in which of the followed roots it stands; see :func:`following`.
      path: where.
      module_type: its class.
      number: how many of its calls came before.
    """

    root: int
    path: Path
    module_type: type[Any]
    number: int


class Mark(NamedTuple):
    """A value that goes into a call or comes out of it.

    Attributes:
      call: the number of the call.
      side: which of the two.
      name: where it stands in the arguments or the output.
    """

    call: int
    side: Literal["input", "output"]
    name: str


class _Root(NamedTuple):
    """Owns the recording that follows the paths of one root."""

    number: int


# What the numbers in the scopes mean. Programs that were traced earlier are used again, so the
# numbers are the same for the whole process.
_numbers: dict[Call | Mark, int] = {}
_meanings: list[Call | Mark] = []
_CALL, _MARK = re.compile(r"@call(\d+)@"), re.compile(r"@mark(\d+)@")


def _number(meaning: Call | Mark) -> int:
    number = _numbers.get(meaning)
    if number is None:
        number = _numbers[meaning] = len(_meanings)
        _meanings.append(meaning)
    return number


def call_of(scopes: str) -> tuple[int, Call] | None:
    """Returns the innermost call (and its number) in the scopes of an operation."""
    found = _CALL.findall(scopes)
    return (int(found[-1]), _meanings[int(found[-1])]) if found else None  # type: ignore[return-value]


def mark_of(scopes: str) -> Mark | None:
    """Returns the mark that an operation is, going by its innermost scopes."""
    found = _MARK.search(scopes.rpartition("/")[2])
    return _meanings[int(found[1])] if found else None  # type: ignore[return-value]


def is_backward(scopes: str) -> bool:
    """Returns whether an operation belongs to a backward pass.

    What ``remat`` computes again in the backward pass belongs to the forward pass.
    """
    return scopes.rfind("transpose(") > scopes.rfind("rematted_computation")


@contextlib.contextmanager
def following(roots: list[Any], plugin: Any) -> Iterator[None]:
    """Turns a plugin on for a block in which :func:`place_of_call` knows these modules."""
    with contextlib.ExitStack() as stack:
        for number, root in enumerate(roots):
            if isinstance(root, moduli.Variable):
                continue
            started = stack.enter_context(plugins.recording(_Root(number), root))
            started.mute()
        stack.enter_context(moduli.using(plugin))
        yield


def call_scope(root: int, path: Path, module_type: type[Any], number: int) -> Any:
    """Returns the scope of a call."""
    return jax.named_scope(f"@call{_number(Call(root, path, module_type, number))}@")


class Marks:
    """The plugin."""

    def __init__(self) -> None:
        self._here = threading.local()

    @moduli.hookimpl
    def moduli_before_call(
        self,
        module: moduli.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        path: Path,
        number: int,
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Marks the arguments."""
        call = self._open[id(module), path, number] = _number(place_of_call(module, path, number))
        marked = [_marked(call, "input", f"[{i}]", arg) for i, arg in enumerate(args)]
        return tuple(marked), {n: _marked(call, "input", n, arg) for n, arg in kwargs.items()}

    @moduli.hookimpl
    def moduli_call_context(self, module: moduli.Module, path: Path, number: int) -> Any:
        """Puts the call into its scope."""
        return jax.named_scope(f"@call{self._open[id(module), path, number]}@")

    @moduli.hookimpl
    def moduli_after_call(
        self, module: moduli.Module, output: Any, path: Path, number: int
    ) -> moduli.Replace:
        """Marks the output."""
        call = self._open.pop((id(module), path, number))
        return moduli.Replace(_marked(call, "output", "", output))

    @property
    def _open(self) -> dict[tuple[int, Path, int], int]:
        """The calls that are running, and their numbers."""
        return self._here.__dict__.setdefault("open", {})

    def forget(self) -> None:
        """Forgets the calls that an exception has ended."""
        self._open.clear()


MARKS = Marks()


def place_of_call(module: moduli.Module, path: Path, number: int) -> Call:
    """Returns what a call is: seen from the first root in which the module stands."""
    known = {
        recording.owner.number: recording
        for recording in plugins.recordings()
        if isinstance(recording.owner, _Root)
    }
    for root in sorted(known):
        place = known[root].path_of(module)
        if place is not None and not any(str(part).startswith("<") for part in place):
            return Call(root, place, type(module), max(known[root].counts().get(place, 0) - 1, 0))
    return Call(0, path, type(module), number)


def is_object(value: Any) -> bool:
    """Returns whether a value is a module, another object of a graph, or a Variable."""
    return isinstance(value, (moduli.Pytree, moduli.Module, moduli.Variable))


def objects_in(tree: Any) -> list[Any]:
    """Lists the modules and other objects of a pytree, as ``moduli.to_tree`` finds them."""
    leaves = jax.tree.leaves(tree, is_leaf=is_object)
    return [leaf for leaf in leaves if is_object(leaf)]


def _marked(call: int, side: Literal["input", "output"], name: str, tree: Any) -> Any:
    """Passes the floating-point arrays of a pytree through barriers."""

    def mark(path: Any, leaf: Any) -> Any:
        if not (isinstance(leaf, jax.Array) and is_inexact(leaf)):
            return leaf
        place = Mark(call, side, name + jax.tree_util.keystr(path))
        with jax.named_scope(f"@mark{_number(place)}@"):
            return jax.lax.optimization_barrier(leaf)

    return jax.tree_util.tree_map_with_path(mark, tree, is_leaf=is_object)
