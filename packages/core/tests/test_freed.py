"""A model dies with its last reference, whatever was done with it, without the cyclic collector."""

import collections
import copy
import gc
import weakref

import jax
import jax.numpy as jnp
import pytest
from core_models import Linear

import moduli as nnx


class Net(nnx.Module):
    def __init__(self):
        self.linear = Linear(3, 3, rngs=nnx.Rngs(0))
        self.layers = [Linear(3, 3, rngs=nnx.Rngs(1))]
        self.pair = (jnp.ones(3), Linear(3, 3, rngs=nnx.Rngs(2)))
        self.by_name = collections.OrderedDict(a=Linear(3, 3, rngs=nnx.Rngs(3)), b=jnp.ones(2))
        self.bare = jnp.ones(3)
        self.mode = True


ROOTS = {
    "module": Net,
    "list": lambda: nnx.List([Linear(3, 3, rngs=nnx.Rngs(0)), jnp.ones(3)]),
    "dict": lambda: nnx.Dict(a=Linear(3, 3, rngs=nnx.Rngs(0)), b=jnp.ones(3)),
    "rngs": lambda: nnx.Rngs(0, dropout=1),
}
values = nnx.jit(lambda m: jax.tree.map(lambda v: v, nnx.state(m)))
pair = nnx.jit(lambda one, other: 1.0)


def total(m):
    return sum(jnp.sum(p) for p in jax.tree.leaves(nnx.state(m, nnx.Param)))


def differentiate(m):
    if nnx.state(m, nnx.Param):
        nnx.grad(total)(m)


def raises(m):
    @nnx.jit
    def function(m):
        raise KeyError("inside")

    with pytest.raises(KeyError):
        function(m)


def switch_modes(m):
    nnx.graphdef(m)
    if isinstance(m, Net):
        m.mode = False
        nnx.graphdef(m)
    if isinstance(m, nnx.Module):
        m.eval()
        nnx.graphdef(m)


def change_inside(m):
    @nnx.jit
    def function(m):
        if isinstance(m, Net):
            m.layers.append(nnx.Param(jnp.ones(2)))

    function(m)
    function(m)


USES = {
    "split": nnx.split,
    "state": nnx.state,
    "clone": nnx.clone,
    "graphdef": nnx.graphdef,
    "update": lambda m: nnx.update(m, nnx.state(m)),
    "pop": lambda m: nnx.pop(m, nnx.Intermediate),
    "find_duplicates": nnx.find_duplicates,
    "iter_modules": lambda m: list(nnx.iter_modules(m)),
    "iter_graph": lambda m: list(nnx.iter_graph(m)),
    "recursive_map": lambda m: nnx.recursive_map(lambda path, value: value, m),
    "repr": repr,
    "deepcopy": copy.deepcopy,
    "tree.map": lambda m: jax.tree.map(lambda leaf: leaf, m),
    "jax.jit": lambda m: jax.jit(jax.tree.leaves)(m),
    "jit": values,
    "jit twice": lambda m: (values(m), values(m)),
    "jit of shared": lambda m: pair(m, m),
    "jit of a tree": lambda m: pair(m, {"again": m}),
    "lower": values.lower,
    "grad": differentiate,
    "vmap": lambda m: nnx.vmap(lambda m, x: x, in_axes=(None, 0))(m, jnp.ones(2)),
    "raises": raises,
    "modes": switch_modes,
    "changed inside": change_inside,
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("root", ROOTS)
def test_a_root_dies_with_its_last_reference(root, use):
    gc.collect()
    gc.disable()
    try:
        made = ROOTS[root]()
        USES[use](made)
        reference = weakref.ref(made)
        del made
        assert reference() is None
    finally:
        gc.enable()


def test_a_part_outlives_its_root_and_still_works():
    net = Net()
    nnx.split(net)
    linear, nested = net.linear, net.layers
    nnx.split(linear), nnx.split(nested)
    del net
    assert len(jax.tree.leaves(values(linear))) == len(jax.tree.leaves(nnx.state(linear)))
    assert len(jax.tree.leaves(values(nested))) == len(jax.tree.leaves(nnx.state(nested)))
