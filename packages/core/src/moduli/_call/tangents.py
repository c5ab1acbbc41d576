"""Tangents that a user gives, matched with the values of a call."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moduli import errors
from moduli._base.node import Node
from moduli._call.call import Call
from moduli._call.change_texts import outline
from moduli._call.given_values import given_values, match_given, value_of
from moduli._call.signature import Leaf
from moduli._graph.cache import flat_of
from moduli._graph.state import State
from moduli._variable.box import Variable

__all__ = ["match_tangents"]


def match_tangents(
    call: Call, args: Sequence[Any], tangents: Sequence[Any], names: Sequence[str]
) -> list[Any]:
    """Returns the tangent of each traced value of a call, in order: zero where none was given.

    Args:
      call: the call.
      args: its arguments.
      tangents: a tangent like each argument: for a module a module, a State, or None.
      names: what each tangent is, for messages.

    Raises:
      StructureError: if a tangent does not fit its argument.
      ShapeError: if it has another shape.
    """

    def misfit(name: str, tangent: Any, primal: Any) -> str:
        return (
            f"{call.transform}: {name} is {outline(tangent)}, but its primal is {outline(primal)}; "
            "give a tangent of the same structure"
        )

    items = zip(args, tangents, names, strict=True)
    take = functools.partial(_take, call)
    return [
        _tangent(call.transform, primal, *item)
        for primal, item in match_given(call, items, take, misfit)
    ]


def _take(
    call: Call,
    number: int,
    root: Any,
    tangent: Any,
    name: str,
    found: dict[Leaf, tuple[Any, str]],
) -> None:
    """Notes the tangents of the values below one module or Variable."""
    transform, leaves = call.transform, call.signature.leaves_below(number)
    if isinstance(root, Variable):
        known: Any = {(): value_of(tangent)}
    elif isinstance(tangent, (State, Node)):
        known = dict(given_values(tangent))
        for path in flat_of(root).graphdef.leaf_paths if isinstance(tangent, Node) else ():
            if path not in known:
                raise errors.StructureError(
                    f"{transform}: {name} has no value at `{errors.format_path(path)}`, where its "
                    f"primal, a {type(root).__name__}, has one; give a module of the same "
                    "structure, or a State with the tangents that are not zero"
                )
    else:
        raise errors.StructureError(
            f"{transform}: {name} is a {type(tangent).__name__} in the place of a "
            f"{type(root).__name__}; give a module of the same structure, a State, or None for zero"
        )
    for path, value in known.items():
        text = f"{name} at `{errors.format_path(path)}`" if path else name
        leaf = leaves.get(path)
        if leaf is None:
            raise errors.StructureError(
                f"{transform}: {text} is a tangent without a primal: the {type(root).__name__} "
                "has no value there"
            )
        other, where = found.setdefault(leaf, (value, text))
        if other is not value:
            holder = call.binding.flats[leaf[0]].holders[leaf[1]]
            raise errors.StructureError(
                f"{transform}: {where} and {text} are two tangents of the same "
                f"{type(holder).__name__}, which was passed twice; give the same tangent, or leave "
                "it out of one State"
            )


def _tangent(transform: str, primal: Any, tangent: Any, name: str) -> Any:
    leaves, treedef = jax.tree.flatten(primal)
    given: Any = [None] * len(leaves)
    if tangent is not None:
        given, structure = jax.tree.flatten(tangent)
        if structure != treedef:
            raise errors.StructureError(
                f"{transform}: {name} has the structure {outline(tangent)}, but its primal "
                f"{outline(primal)}; give a tangent of the same structure"
            )
    made = []
    for leaf, direction in zip(leaves, given, strict=True):
        kind = jax.typeof(leaf)
        if not jnp.issubdtype(kind.dtype, jnp.inexact):
            made.append(np.zeros(kind.shape, jax.dtypes.float0))
        elif direction is None:
            made.append(jnp.zeros(kind.shape, kind.dtype))
        else:
            if jnp.shape(direction) != kind.shape:
                raise errors.ShapeError(
                    f"{transform}: {name} has shape {jnp.shape(direction)}, but its primal has "
                    f"shape {kind.shape}; a tangent has the shape of its primal"
                )
            made.append(jnp.asarray(direction, kind.dtype))
    return jax.tree.unflatten(treedef, made)
