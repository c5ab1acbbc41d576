"""What public functions, classes and their methods take in flax.nnx, they take here."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest

import moduli

nnx = pytest.importorskip("flax.nnx")

# Members and arguments that we have not, and why no program misses them.
INSIDE = "a part of how flax's own transforms are made; moduli.lowlevel has ours"
BY_POSITION = "always passed by position, as any predicate is"
MISSING: dict[str, str] = {
    "GraphDef.with_matching_outer_index": INSIDE,
    "GraphDef.with_no_outer_index": INSIDE,
    "GraphDef.with_same_outer_index": INSIDE,
    "GraphDef(nodes, attributes, num_leaves)": INSIDE,
    "MergeContext(index_ref, is_inner)": INSIDE,
    "SplitContext(ref_index, is_inner)": INSIDE,
    "NodeStates.from_prefixes": INSIDE,
    "NodeStates.from_split": INSIDE,
    "NodeStates.from_states": INSIDE,
    "NodeStates.replace": INSIDE,
    "NodeStates.state": INSIDE,
    "NodeStates(_graphdef, states, metadata)": INSIDE,
    "UpdateContext.flatten_end": INSIDE,
    "UpdateContext.unflatten_end": INSIDE,
    "UpdateContext(outer_ref_outer_index, outer_index_inner_ref, outer_index_outer_ref, "
    "inner_ref_outer_index, static_cache)": INSIDE,
    "flatten(ref_index, ref_outer_index)": INSIDE,
    "unflatten(index_ref, outer_index_outer_ref)": INSIDE,
    "from_tree(prefix, merge_fn, is_node_leaf, is_leaf, map_non_graph_nodes, is_inner, ctxtag)": (
        INSIDE
    ),
    "to_tree(prefix, split_fn, map_non_graph_nodes, ctxtag, check_aliasing)": INSIDE,
    "set_graph_mode.get_default": INSIDE,
    "set_graph_mode.get_stack": INSIDE,
    "set_graph_updates.get_default": INSIDE,
    "set_graph_updates.get_stack": INSIDE,
    "use_eager_sharding.get_default": INSIDE,
    "use_eager_sharding.get_stack": INSIDE,
    "State(_copy)": INSIDE,
    "GraphState(_graphdef, _state)": INSIDE,
    "PathContains.exact": "an attribute of the instance",
    "Bidirectional.merge_fn": "an attribute of the instance",
    "Bidirectional.return_carry": "an attribute of the instance",
    "Bidirectional.time_major": "an attribute of the instance",
    "Metric.__init__(**kwargs)": "a base class without arguments",
    "LoRALinear.__call__(x)": BY_POSITION,
}
SKIPPED_ARGUMENTS = {"self", "graph", "graph_updates"}
PRIVATE = {"_copy_ref", "_unsafe_bypass_check"}


def parameters(function: Any) -> dict[str, inspect.Parameter] | None:
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return None


def lacking(theirs: Any, ours: Any) -> list[str]:
    given, taken = parameters(theirs), parameters(ours)
    if given is None or taken is None:
        return []
    kinds = {parameter.kind for parameter in taken.values()}
    found = []
    for name, parameter in given.items():
        if name in SKIPPED_ARGUMENTS | PRIVATE or parameter.kind is parameter.POSITIONAL_ONLY:
            continue
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            stars = "*" if parameter.kind is parameter.VAR_POSITIONAL else "**"
            found += [] if parameter.kind in kinds else [stars + name]
        elif name not in taken:
            found += [] if parameter.VAR_KEYWORD in kinds else [name]
    return found


def differences() -> Iterator[str]:
    for name in dir(nnx):
        theirs = getattr(nnx, name)
        if name.startswith("_") or inspect.ismodule(theirs) or not callable(theirs):
            continue
        ours = getattr(moduli, name)
        if not inspect.isclass(theirs):
            missing = lacking(theirs, ours)
            yield from [f"{name}({', '.join(missing)})"] if missing else []
            continue
        missing = lacking(theirs.__init__, ours.__init__)
        yield from [f"{name}({', '.join(missing)})"] if missing else []
        variable = issubclass(theirs, nnx.Variable)
        for member in dir(theirs):
            if (member.startswith("_") and member != "__call__") or (
                variable and member == "shape"
            ):
                continue
            if not hasattr(ours, member):
                yield f"{name}.{member}"
                continue
            method = getattr(theirs, member)
            missing = lacking(method, getattr(ours, member)) if callable(method) else []
            if member == "__call__" and hasattr(nnx.filterlib, name):
                continue  # a predicate: (path, value) by position
            yield from [f"{name}.{member}({', '.join(missing)})"] if missing else []


def test_every_argument_and_member_of_flax_is_here_or_has_a_reason() -> None:
    found = set(differences())
    assert sorted(found - MISSING.keys()) == []


@pytest.mark.parametrize("name", ["split", "state", "pop"])
def test_a_node_may_be_passed_by_name(name: str) -> None:
    model = moduli.Dict(a=moduli.Param(1.0))
    with pytest.raises(moduli.errors.StructureError) if name == "pop" else _nothing():
        getattr(moduli, name)(node=model)


def _nothing() -> Any:
    import contextlib

    return contextlib.nullcontext()
