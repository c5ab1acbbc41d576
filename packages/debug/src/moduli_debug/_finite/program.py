"""A function of modules as a program to search: its operations, and its arguments by name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import moduli
from moduli_debug._finite.marks import MARKS, call_scope, following, objects_in
from moduli_debug._finite.places import parts_of
from moduli_debug._finite.statistics import is_inexact

__all__ = ["Argument", "Program", "as_program", "name_arguments"]

Path = tuple[Any, ...]


class Argument(NamedTuple):
    """An array that a program is given.

    Attributes:
      place: where it stands among the arguments, as text: ``argument 1`` or ``argument 'x'``.
      root: the number of the module in which it stands, None if it stands in none.
      path: where in the module.
    """

    place: str
    root: int | None
    path: Path


class Program(NamedTuple):
    """A program with what it is run on.

    Attributes:
      jaxpr: the program.
      values: its arguments.
      arguments: what they are.
      roots: the types of the modules and other objects among the arguments.
      places: where each of them stands, as text.
    """

    jaxpr: Any
    values: list[Any]
    arguments: list[Argument]
    roots: list[type[Any]]
    places: list[str]


def as_program(
    fn: Callable[..., Any], tree: Any, *, owned: bool, method: type[Any] | None
) -> Program:
    """Traces a function, with marks on the calls of modules.

    Args:
      fn: a function that takes all its modules as arguments.
      tree: ``moduli.to_tree((args, kwargs))``.
      owned: whether the first argument is the module to which ``fn`` belongs.
      method: the class of that module if calling ``fn`` calls it without the module's own hooks.

    Raises:
      Exception: what JAX raises if the function cannot be traced.
    """
    leaves, treedef = jax.tree.flatten(tree)
    dynamic = [n for n, leaf in enumerate(leaves) if isinstance(leaf, (jax.Array, np.ndarray))]
    roots: list[Any] = []

    def run(values: list[Any]) -> list[Any]:
        filled = list(leaves)
        for number, value in zip(dynamic, values, strict=True):
            filled[number] = value
        args, kwargs = moduli.from_tree(jax.tree.unflatten(treedef, filled))
        roots[:] = objects_in((args, kwargs))
        scope: Any = contextlib.nullcontext()
        if method is not None:
            scope = call_scope(0, (), method, 0)
        MARKS.forget()
        with following(roots, MARKS), scope:
            result = fn(*args, **kwargs)
        given = set(map(id, values))
        after = jax.tree.leaves(moduli.to_tree((args, kwargs)))
        written = [leaf for leaf in after if id(leaf) not in given]
        outputs = jax.tree.leaves(moduli.to_tree(result))
        return [leaf for leaf in (*outputs, *written) if is_inexact(leaf)]

    values = [leaves[number] for number in dynamic]
    with _apart():
        jaxpr = jax.make_jaxpr(run)(values)
    arguments, places = name_arguments(tree, owned)
    return Program(jaxpr, values, [arguments[n] for n in dynamic], list(map(type, roots)), places)


def _apart() -> Any:
    """A context in which JAX traces anew what raw ``jax.jit`` has traced before, without marks."""
    try:
        from jax.experimental.xla_metadata import set_xla_metadata
    except ImportError:
        return contextlib.nullcontext()
    return set_xla_metadata(moduli="check_finite")


def name_arguments(tree: Any, owned: bool) -> tuple[list[Argument], list[str]]:
    """Names the leaves of ``moduli.to_tree((args, kwargs))``, and the objects in it, in order."""
    found: list[Argument] = []
    places: list[str] = []
    for place, part in parts_of(*tree, owned=owned):
        pairs, _ = jax.tree_util.tree_flatten_with_path(part, is_leaf=_is_taken_apart)
        for path, leaf in pairs:
            spot = place + jax.tree_util.keystr(path)
            if not _is_taken_apart(leaf):
                found.append(Argument(spot, None, ()))
                continue
            many = len(leaf.graphdef.roots) > 1
            for index, value in zip(leaf.places, leaf.values, strict=True):
                inner = leaf.graphdef.leaf_paths[index]
                inner = inner[1:] if many else inner
                found += [Argument(spot, len(places), inner)] * len(jax.tree.leaves(value))
            places.append(spot)
    return found, places


def _is_taken_apart(leaf: Any) -> bool:
    return isinstance(leaf, moduli.NodeStates)
