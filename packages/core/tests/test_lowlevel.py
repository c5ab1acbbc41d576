"""The public door to transforms: a third party's transform has what ours have."""

from __future__ import annotations

import gc
import inspect
import itertools
import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import moduli as nnx
from moduli import lowlevel

ONE = jnp.array(1.0)


def linearize(f: Callable[..., Any], *primals: Any) -> Any:
    """``jax.linearize``, which moduli does not lift; docs/lowlevel.md explains each line."""
    function = lowlevel.Function(f)
    args, kwargs = function.complete(primals, {})
    call = lowlevel.PlainCall("linearize", args, kwargs)

    def pure(values: Any) -> Any:
        frame = call.make_frame(values)
        out = frame.run("linearize", function.name, function.call)
        return out, call.finish(frame, None)

    with lowlevel.naming("linearize", function.call):
        out, pushforward, outputs = jax.linearize(
            call.named(pure, function), call.dynamic, has_aux=True
        )
    call.apply(outputs)

    def linear(*tangents: Any) -> Any:
        names = [f"tangents[{number}]" for number in range(len(tangents))]
        return pushforward(lowlevel.match_tangents(call, args, tangents, names))

    return out, linear


class Cell(nnx.Module):
    def __init__(self, w: float):
        self.w = nnx.Param(jnp.array(w))
        self.calls = nnx.Variable(jnp.array(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        self.calls += 1
        return jnp.tanh(self.w * x)


class Shared(nnx.Module):
    def __init__(self) -> None:
        self.one = self.two = Cell(0.5)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.two(self.one(x))


def in_dict(model: Any, x: jax.Array) -> jax.Array:
    return model["cells"][1](model["cells"][0](x))


CASES: dict[str, tuple[Callable[[], Any], Callable[..., Any]]] = {
    "a module": (lambda: Cell(2.0), lambda model, x: model(x)),
    "a shared module": (Shared, lambda model, x: model(x)),
    "a list in a dict": (lambda: {"cells": [Cell(2.0), Cell(0.3)]}, in_dict),
    "the same module twice": (lambda: {"cells": [cell := Cell(2.0), cell]}, in_dict),
    "a List": (lambda: nnx.List([Cell(2.0)]), lambda model, x: model[0](x)),
}


def ones(model: Any) -> Any:
    """A tangent of one for every Param, zero elsewhere."""
    return jax.tree.map(
        lambda node: jax.tree.map(lambda _: ONE, nnx.state(node, nnx.Param)),
        model,
        is_leaf=lambda item: isinstance(item, nnx.Module),
    )


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jit"])
def test_a_third_partys_transform_agrees_with_jvp(name: str, jitted: bool):
    make, f = CASES[name]
    x, dx = jnp.array(0.7), jnp.array(0.25)
    model, other = make(), make()

    def both(model: Any) -> Any:
        out, linear = linearize(f, model, x)
        return out, linear(ones(model), dx)

    out, tangent = nnx.jit(both)(model) if jitted else both(model)
    expected = nnx.jvp(f, (other, x), (ones(other), dx))
    assert jnp.allclose(jnp.stack([out, tangent]), jnp.stack(expected))
    mine, theirs = (jax.tree.leaves(nnx.to_tree(tree)) for tree in (model, other))
    for got, wanted in zip(mine, theirs, strict=True):
        assert jnp.array_equal(got, wanted)  # updates reach the caller's modules, once


def test_it_changes_nothing_when_the_function_raises():
    def fails(model: Cell) -> None:
        model.calls += 1
        model.more = nnx.Param(1.0)
        raise RuntimeError

    model = Cell(1.0)
    with pytest.raises(RuntimeError):
        linearize(fails, model)
    assert int(model.calls.value) == 0 and not hasattr(model, "more")


def call_of(labels: Any = None) -> tuple[lowlevel.Call, Any]:
    shared = nnx.Param(jnp.array(1.0))
    tree = {"one": nnx.Dict(v=shared), "two": nnx.List([shared, nnx.Variable(jnp.array(2.0))])}
    args = (tree, jnp.array(3.0), (jnp.array(4.0), "five"))
    if labels is not None:
        labels = lowlevel.Labels("axes", labels, lambda label: True, "anything")
    return lowlevel.Call("third", args, {}, function="f", labels=labels), tree


@pytest.mark.parametrize("positions", [*itertools.permutations(range(4), 3), range(4), ()], ids=str)
def test_a_call_traces_what_it_is_told_in_this_order(positions: Any):
    call, _ = call_of()
    assert list(call.traced) == [0, 1, 2, 3]  # by default all that JAX can trace
    call.trace(positions)
    every = [1.0, 2.0, 3.0, 4.0, "five"]
    assert [float(value) for value in call.dynamic] == [every[n] for n in positions]
    tree, x, (y, text) = call.make_frame([-every[n] for n in positions]).args
    got = [tree["one"]["v"].value, tree["two"][1].value, x, y]
    assert got == [-every[n] if n in positions else every[n] for n in range(4)]
    assert tree["two"][0] is tree["one"]["v"] and text == "five"
    names = call.pick(call.value_names(None))
    assert names == [
        ["args[0]['one'].v", "args[0]['two'][1]", "args[1]", "args[2][0]"][n] for n in positions
    ]


def test_a_value_has_one_label():
    call, _ = call_of(({"one": "a", "two": "a"}, "b", ("c", "d")))
    assert call.all_labels() == ["a", "a", "b", "c", "d"]
    with pytest.raises(nnx.errors.StructureError) as caught:
        call_of(({"one": "a", "two": "b"}, "b", ("c", "d")))
    assert "`v` of argument 0['one'] and `0` of argument 0['two'] are the same" in str(caught.value)
    assert "gives it 'a' there and 'b' here" in str(caught.value)


@pytest.mark.parametrize("labels", [None, (0, 1, 2)], ids=["plain", "labelled"])
def test_a_detached_call_keeps_no_model_and_no_value(labels: Any):
    call, tree = call_of(labels)
    gone = [weakref.ref(item) for item in (*tree.values(), *call.dynamic)]
    kept = call.detached()
    del call, tree
    gc.collect()
    assert [ref() for ref in gone] == [None] * len(gone)
    again, _, (_, text) = kept.make_frame([10.0, 20.0, 30.0, 40.0]).args
    assert again["two"][1].value == 20.0 and text == "five"


def test_every_name_is_documented_and_annotated():
    names = [name for name in vars(lowlevel) if name[0] != "_"]
    assert {"Frame", "PlainCall", "Signature", "bind", "flat_draw"} <= {*names}
    for name in names:
        item = getattr(lowlevel, name)
        if name == "Leaf":  # a pair of ints
            continue
        assert f"`{name}`" in lowlevel.__doc__, name
        assert inspect.getdoc(item), name
        for parameter in inspect.signature(item).parameters.values():
            assert parameter.annotation is not inspect.Parameter.empty, (name, parameter)
