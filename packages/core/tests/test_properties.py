"""Properties that hold for every graph of modules."""

from __future__ import annotations

import copy
import pickle

import jax
import jax.numpy as jnp
import pytest
from hypothesis import HealthCheck, given, settings

import moduli as nnx
from moduli import errors
from moduli.testing import RandomModule, assert_equal_graphs, assert_unchanged, graphs

fast = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
few = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def sharing(model):
    """The pattern of references, independent of moduli's GraphDef: paths grouped by identity."""
    groups = {}
    seen = set()

    def visit(value, path):
        if isinstance(value, tuple):
            for number, item in enumerate(value):
                visit(item, (*path, number))
            return
        if not isinstance(value, (nnx.Module, nnx.Variable)):
            return
        groups.setdefault(id(value), []).append(path)
        if id(value) in seen or isinstance(value, nnx.Variable):
            return
        seen.add(id(value))
        if isinstance(value, list):
            items = enumerate(value)
        elif isinstance(value, dict):
            items = value.items()
        else:
            items = sorted((k, v) for k, v in vars(value).items() if k != "_moduli")
        for key, item in items:
            visit(item, (*path, key))

    visit(model, ())
    return sorted(sorted(map(str, paths)) for paths in groups.values())


@pytest.mark.parametrize(
    "how",
    [
        lambda m: nnx.merge(*nnx.split(m), copy=True),
        nnx.clone,
        copy.deepcopy,
        lambda m: pickle.loads(pickle.dumps(m)),
    ],
    ids=["merge", "clone", "deepcopy", "pickle"],
)
def test_a_copy_keeps_values_structure_and_sharing(how):
    @fast
    @given(graphs())
    def check(model):
        with assert_unchanged(model):
            other = how(model)
        assert_equal_graphs(other, model)
        assert sharing(other) == sharing(model)
        assert not {id(v) for _, v in nnx.iter_graph(model) if isinstance(v, nnx.Variable)} & {
            id(v) for _, v in nnx.iter_graph(other) if isinstance(v, nnx.Variable)
        }

    check()


@fast
@given(graphs())
def test_the_walk_meets_every_object_once_and_the_root_last(model):
    pairs = list(nnx.iter_graph(model))
    objects = [id(v) for _, v in pairs if isinstance(v, (nnx.Module, nnx.Variable))]
    assert len(objects) == len(set(objects)) == len(sharing(model))
    assert pairs[-1] == ((), model)


@fast
@given(graphs())
def test_update_with_its_own_state_changes_nothing(model):
    with assert_unchanged(model):
        nnx.update(model, nnx.clone(nnx.state(model)))


@fast
@given(graphs(cycles=False, shared=False))
def test_a_tree_is_a_jax_pytree_that_comes_back(model):
    leaves, treedef = jax.tree.flatten(model)
    assert_equal_graphs(jax.tree.unflatten(treedef, leaves), model)


@fast
@given(graphs())
def test_a_graph_that_is_no_tree_is_no_jax_pytree(model):
    if nnx.find_duplicates(model):
        with pytest.raises(errors.StructureError, match=r"plain JAX pytree: .* are the same "):
            jax.tree.leaves(model)
    else:
        jax.tree.leaves(model)


def change(model):
    """Changes values and structure in a way that depends on nothing but the graph."""
    for path, value in list(nnx.iter_graph(model)):
        if isinstance(value, nnx.Variable):
            value.value = jax.tree.map(lambda x: x * 2, value.value)
        elif isinstance(value, RandomModule):
            value.depth = len(path)
            value.added = nnx.Cache(jnp.ones(len(path)))
            value.root = model
    for _, value in list(nnx.iter_graph(model)):
        if isinstance(value, list) and len(value) > 1:
            value.reverse()
        if isinstance(value, RandomModule) and hasattr(value, "alpha"):
            del value.alpha


@few
@given(graphs(max_nodes=4))
def test_jit_does_to_a_graph_what_the_eager_call_does(model):
    with jax.numpy_dtype_promotion("standard"):
        eager, jitted, again = nnx.clone(model), nnx.clone(model), nnx.clone(model)
        run = nnx.jit(change)
        change(eager)
        run(jitted)
        run(again)  # hits the compiled program, with other objects
    assert_equal_graphs(jitted, eager)
    assert_equal_graphs(again, eager)
    assert sharing(jitted) == sharing(eager) == sharing(again)


def once(f):
    """A loop that runs a function of a model once."""
    return lambda model: f(model) or model


MESH = jax.sharding.Mesh(jax.devices("cpu")[:1], ("i",))
STRUCTURE = {
    "remat": nnx.remat,
    "jit of remat": lambda f: nnx.jit(nnx.remat(f)),
    "cond": lambda f: lambda model: nnx.cond(jnp.array(False), f, f, model),
    "switch in jit": lambda f: nnx.jit(lambda model: nnx.switch(1, [f, f], model)),
    "grad": lambda f: lambda model: nnx.grad(lambda x, m: (x, f(m)), has_aux=True)(1.0, model),
    "vjp": lambda f: lambda model: nnx.vjp(lambda m: (1.0, f(m)), model, has_aux=True),
    "checkify": lambda f: lambda model: nnx.checkify(f)(model),
    "vmap": lambda f: nnx.vmap(f, in_axes=None, out_axes=None, axis_size=2),
    "shard_map": lambda f: nnx.shard_map(f, mesh=MESH, in_specs=jax.P(), out_specs=jax.P()),
    "compiled": lambda f: lambda model: nnx.jit(f).lower(model).compile()(model),
}
VALUES = {
    "scan": lambda f: nnx.scan(f, in_axes=None, out_axes=0, length=1),
    "scan, carried": lambda f: nnx.scan(once(f), in_axes=nnx.Carry, out_axes=nnx.Carry, length=1),
    "while_loop": lambda f: (
        lambda model: nnx.while_loop(
            lambda carry: carry[1] < 1, lambda carry: (once(f)(carry[0]), carry[1] + 1), (model, 0)
        )
    ),
    "fori_loop": lambda f: lambda model: nnx.fori_loop(0, 1, lambda i, m: once(f)(m), model),
    "all of them": lambda f: nnx.jit(
        lambda model: nnx.scan(
            lambda m: nnx.cond(True, nnx.remat(f), f, m), in_axes=None, out_axes=0, length=1
        )(model)
    ),
}


def change_values(model):
    """Changes the values of Variables and of bare arrays, and nothing else."""
    for _, value in list(nnx.iter_graph(model)):
        if isinstance(value, nnx.Variable):
            value.value = jax.tree.map(lambda x: (x * 2).astype(x.dtype), value.value)


@pytest.mark.parametrize("name", [*STRUCTURE, *VALUES])
def test_every_transform_does_to_a_graph_what_the_eager_call_does(name):
    f, lift = (change, STRUCTURE[name]) if name in STRUCTURE else (change_values, VALUES[name])

    @settings(few, max_examples=8)
    @given(graphs(max_nodes=4))
    def test(model):
        with jax.numpy_dtype_promotion("standard"):
            eager, lifted = nnx.clone(model), nnx.clone(model)
            f(eager)
            lift(f)(lifted)
        assert_equal_graphs(lifted, eager)
        assert sharing(lifted) == sharing(eager)

    test()


def test_the_comparison_finds_what_differs():
    a, b = nnx.Dict(x=nnx.Param(1.0)), nnx.Dict(x=nnx.Param(2.0))
    with pytest.raises(AssertionError, match="at `x`"):
        assert_equal_graphs(a, b)
    with pytest.raises(AssertionError, match="structure"):
        assert_equal_graphs(a, nnx.Dict(y=nnx.Param(1.0)))
    with pytest.raises(AssertionError, match="structure changed"), assert_unchanged(a):
        a["z"] = 1
    with pytest.raises(AssertionError, match="at `x`"), assert_unchanged(a):
        a["x"].value = 5.0
