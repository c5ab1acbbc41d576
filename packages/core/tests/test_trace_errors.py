"""Writing to what belongs to an outer trace: golden messages, in every transform of JAX and ours.

Each names the Variable, its path and owner, the line that made it, the transform and the remedy.
"""

from __future__ import annotations

import inspect
import re

import jax
import jax.numpy as jnp
import pytest

import moduli as nnx
from moduli import errors
from moduli.testing import assert_unchanged


class Norm(nnx.Module):
    def __init__(self):
        self.mean = nnx.BatchStat(jnp.zeros(3))


class Model(nnx.Module):
    def __init__(self):
        self.bn = Norm()
        self.mode = "train"


LINE = inspect.getsourcelines(Norm.__init__)[1] + 1
WRITE = (
    "cannot write the BatchStat at `bn/mean` of Model (made at HERE:{line}) here: it was made "
    "outside of the trace that is running, that of {running}, so the write would leak a tracer or "
    "be lost. Pass the module that holds it as an argument of the transformed function, use "
    "moduli's transform (`moduli.jit`, `moduli.grad`) instead of JAX's own, or return the new "
    "value and write it outside."
)
X = jnp.ones((2, 3))
MESH = jax.sharding.Mesh(jax.devices("cpu")[:1], ("i",))


def run_custom_vjp(f):
    g = nnx.custom_vjp(f)
    g.defvjp(lambda x: (f(x), None), lambda r, g: (g[1],))
    return jax.jit(g)(X)  # outside of jit its rule runs eagerly, and may write


OURS = {
    "jit": lambda f: nnx.jit(f)(X),
    "grad": lambda f: nnx.grad(lambda x: f(x).sum())(X),
    "value_and_grad": lambda f: nnx.value_and_grad(lambda x: f(x).sum())(X),
    "vjp": lambda f: nnx.vjp(f, X),
    "jvp": lambda f: nnx.jvp(f, (X,), (X,)),
    "custom_vjp": run_custom_vjp,
    "vmap": lambda f: nnx.vmap(f)(X),
    "scan": lambda f: nnx.scan(f, in_axes=0, out_axes=0)(X),
    "remat": lambda f: nnx.remat(f)(X),
    "cond": lambda f: nnx.cond(jnp.array(True), f, f, X),
    "switch": lambda f: nnx.switch(jnp.array(0), [f, f], X),
    "while_loop": lambda f: nnx.while_loop(lambda x: x.sum() < 9, f, X),
    "fori_loop": lambda f: nnx.fori_loop(0, 2, lambda i, x: f(x), X),
    "shard_map": lambda f: nnx.shard_map(f, mesh=MESH, in_specs=jax.P(), out_specs=jax.P())(X),
    "pmap": lambda f: nnx.pmap(f)(X[:1]),
    "checkify": lambda f: nnx.checkify(f)(X),
    "eval_shape": lambda f: nnx.eval_shape(f, X),
    "make_jaxpr": lambda f: nnx.make_jaxpr(f)(X),
}
JAX = {
    "jit": lambda f: jax.jit(f)(X),
    "vmap": lambda f: jax.vmap(f)(X),
    "scan": lambda f: jax.lax.scan(lambda c, x: (c, f(x)), 0, X),
    "grad": lambda f: jax.grad(lambda x: f(x).sum())(X),
    "cond": lambda f: jax.lax.cond(jnp.array(True), f, f, X),
}


def said(call, f, kind=errors.TraceError):
    with pytest.raises(kind) as caught:
        call(f)
    text = str(caught.value).split("\n-----")[0]
    return re.sub(r"[\w/]*test_trace_errors\.py", "HERE", text)


@pytest.mark.parametrize("name", OURS)
def test_a_write_from_an_inner_trace_of_ours(name):
    model = Model()

    def update(x):
        model.bn.mean.value = model.bn.mean.value + x.sum()
        return x

    with assert_unchanged(model):
        text = said(OURS[name], update)
    before, after = WRITE.format(line=LINE, running="|").split("|")
    assert text.startswith(before) and text.endswith(after), text
    running = text[len(before) : len(text) - len(after)]
    assert re.fullmatch(rf"(a transform of JAX's own inside )?moduli\.{name} of .+", running)
    assert "inside" not in running  # it is ours that is running, and nothing of JAX's in it


@pytest.mark.parametrize("name", JAX)
def test_a_write_from_an_inner_trace_of_jax(name):
    model = Model()

    def update(x):
        model.bn.mean.value = model.bn.mean.value + x.sum()
        return x

    with assert_unchanged(model):
        text = said(JAX[name], update)
    running = "a transform of JAX's own (jit, grad, vmap, ...)"
    assert text == WRITE.format(line=LINE, running=running)


def test_jax_inside_of_ours_is_told_apart():
    model = Model()

    def update(x, model):
        model.bn.mean.value = model.bn.mean.value + x.sum()
        return x

    @nnx.jit
    def step(model):
        return jax.vmap(lambda x: update(x, model))(X)

    with assert_unchanged(model):
        text = said(step, model)
    running = "a transform of JAX's own inside moduli.jit of step"
    assert text == WRITE.format(line=LINE, running=running)


def test_ours_inside_of_ours():
    @nnx.jit
    def step(model):
        return nnx.vmap(lambda x: model.bn.mean.set_value(x))(X)

    model = Model()
    with assert_unchanged(model):
        text = said(step, model)
    assert f"BatchStat at `bn/mean` of Model (made at HERE:{LINE})" in text
    assert "that of moduli.vmap of " in text


@pytest.mark.parametrize("transform", ["jit", "vmap", "remat"])
def test_structure_of_an_outer_module(transform):
    model = Model()

    def sets(x):
        model.mode = "eval"
        return x

    def adds(x):
        model.bn.extra = nnx.Param(x)
        return x

    def removes(x):
        del model.bn.mean
        return x

    with assert_unchanged(model):
        texts = [said(OURS[transform], f) for f in (sets, adds, removes)]
    for text, what in zip(texts, ["`mode` of", "`extra` of", "`mean` of"], strict=True):
        assert what in text and f"moduli.{transform} of " in text, text
        assert "Pass " in text or "pass " in text, text
    assert "Norm at `bn` of Model" in texts[1], texts[1]


def test_metadata_and_lists_of_an_outer_module():
    model = nnx.Dict(layers=nnx.List([Norm()]))

    def tags(x):
        model["layers"][0].mean.set_metadata("tag", 1)
        return x

    def appends(x):
        model["layers"].append(Norm())
        return x

    with assert_unchanged(model):
        assert "BatchStat at `layers/0/mean` of Dict" in said(OURS["jit"], tags)
        assert "List at `layers` of Dict" in said(OURS["jit"], appends)


def test_a_stream_from_outside_is_named():
    rngs = nnx.Rngs(params=0)
    text = said(OURS["scan"], lambda x: x + jax.random.normal(rngs.params(), (3,)))
    assert text.startswith("cannot write the RngCount at `params/count` of Rngs (made at HERE:")
    assert "moduli.scan of " in text
    assert int(rngs.params.count.value) == 0
