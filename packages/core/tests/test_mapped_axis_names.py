"""Names of axes in metadata: as many as axes, wherever a transform adds or removes one."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.layout import Format, Layout
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import moduli as nnx
from moduli.lowlevel import add_axis_name, remove_axis_name

MESH = jax.make_mesh((2, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


class Named(nnx.Module):
    """Values of one, two and three axes, with a name for each; and one without names."""

    def __init__(self, rngs=None, key: str = "out_sharding"):
        self.bias = nnx.Param(jnp.zeros(3), **{key: ("out",)})
        self.kernel = nnx.Param(jnp.ones((2, 3)), **{key: ("in", "out")})
        self.below = {"list": [nnx.BatchStat(jnp.ones((5, 2, 3)), **{key: (None, "in", "out")})]}
        self.plain = nnx.Param(jnp.ones((2, 3)))
        self.tagged = nnx.Variable(jnp.zeros(3), tag="step")


class Late(Named):
    """Makes its Variables in a call."""

    def __init__(self, rngs=None):
        self.count = nnx.Variable(jnp.zeros(()))

    def make(self, key="out_sharding"):
        Named.__init__(self, None, key)


def names_of(node, key="out_sharding"):
    variables = [v for _, v in nnx.iter_graph(node) if isinstance(v, nnx.Variable)]
    return {v.shape: v.get_metadata()[key] for v in variables if key in v.get_metadata()}


def assert_full(node, count=3, key="out_sharding"):
    names = names_of(node, key)
    assert len(names) == count
    for shape, entries in names.items():
        assert len(entries) == len(shape), (shape, entries)


def with_names(names: tuple, axis: int, name=None):
    place = axis if axis >= 0 else axis + len(names) + 1
    return (*names[:place], name, *names[place:])


ORIGINAL = [("out",), ("in", "out"), (None, "in", "out")]
NAME = {nnx.PARTITION_NAME: "layers"}


def build(axis, metadata=None):
    return nnx.vmap(Named, out_axes=axis, axis_size=4, in_axes=None, transform_metadata=metadata)(
        None
    )


@pytest.mark.parametrize("metadata", [None, NAME, {}], ids=["without", "with", "empty"])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_vmap_of_a_class_names_the_axis_or_says_none(axis, metadata):
    models = build(axis, metadata)
    name = "layers" if metadata else None
    assert sorted(map(str, names_of(models).values())) == sorted(
        str(with_names(names, axis, name)) for names in ORIGINAL
    )
    assert_full(models)
    assert models.plain.get_metadata() == {}


@pytest.mark.parametrize("name", [None, "layers"])
@pytest.mark.parametrize("kind", ["decorated __init__", "method", "argument", "StateAxes"])
def test_variables_that_are_put_below_an_argument_are_named(kind, name):
    options = {"transform_metadata": {nnx.PARTITION_NAME: name}} if name else {}
    if kind == "decorated __init__":

        class Stacked(Named):
            @functools.partial(nnx.vmap, in_axes=(0, 0), **options)
            def __init__(self, rngs):
                Named.__init__(self, rngs)

        model = Stacked(nnx.Rngs(0).split(4))
    else:
        model = Late()
        model.count.value = jnp.zeros(4)
        axes = nnx.StateAxes({nnx.Param: 0, ...: 0}) if kind == "StateAxes" else 0
        make = model.make if kind == "method" else Late.make
        run = nnx.vmap(make, axis_size=4, in_axes=() if kind == "method" else (axes,), **options)
        if kind == "method":  # its module is one for all: what is added is so too
            run()
            assert model.kernel.out_sharding == ("in", "out")
            return
        run(model)
    assert model.kernel.shape == (4, 2, 3)
    assert model.kernel.out_sharding == (name, "in", "out")
    assert_full(model)


@pytest.mark.parametrize("axis", [0, 2, -1])
@pytest.mark.parametrize("transform", ["vmap", "scan"])
def test_inside_the_axis_has_no_name_and_outside_it_has_its_own_again(transform, axis):
    model = nnx.Param(jnp.ones((4, 4, 4)), out_sharding=("x", "y", "z"))
    seen = []

    def look(param):
        seen.append((param.ndim, param.out_sharding))
        param.value = param * 2
        return param.sum()

    run = getattr(nnx, transform)
    run(look, in_axes=axis, out_axes=0)(model)
    names = ["x", "y", "z"]
    del names[axis]
    assert set(seen) == {(2, tuple(names))}
    assert model.out_sharding == ("x", "y", "z")


def test_pmap_and_nesting_keep_as_many_names_as_axes():
    assert_full(nnx.pmap(lambda x: Named())(jnp.arange(4.0)))
    twice = nnx.vmap(lambda x: nnx.vmap(lambda y: Named(), out_axes=-1)(x), out_axes=1)
    models = twice(jnp.ones((5, 4)))
    assert models.kernel.shape == (2, 5, 3, 4)
    assert models.kernel.out_sharding == ("in", None, "out", None)
    assert_full(models)
    inner = nnx.vmap(lambda model: names_of(model), in_axes=-1, out_axes=None)
    nnx.vmap(lambda model: assert_full(model), in_axes=1)(models)
    nnx.vmap(lambda m: nnx.vmap(assert_full, in_axes=-1)(m) or inner, in_axes=1, out_axes=None)
    assert_full(models)


def test_state_axes_name_what_is_mapped_alone():
    model = Named()
    axes = nnx.StateAxes({nnx.Param: -1, ...: None})
    models = nnx.vmap(lambda x: Named(), out_axes=axes)(jnp.arange(4.0))
    assert models.kernel.out_sharding == ("in", "out", None)
    assert models.below["list"][0].out_sharding == (None, "in", "out")
    assert_full(models)
    seen = []
    nnx.vmap(lambda m: seen.append(names_of(m)), in_axes=axes, out_axes=None)(models)
    assert seen[0] == names_of(model)


def test_names_that_are_written_inside_get_the_axis_too():
    model = nnx.Param(jnp.ones((4, 2)), out_sharding=("a", "b"))

    def rename(param):
        param.set_metadata(out_sharding=("c",), tag="new")

    nnx.vmap(rename)(model)
    assert model.out_sharding == (None, "c") and model.tag == "new"
    plain = nnx.Param(jnp.ones((4, 2)))
    nnx.vmap(rename)(plain)
    assert plain.out_sharding == (None, "c")


def test_variables_that_a_scan_makes_are_named():
    _, models = nnx.scan(lambda carry, x: (carry, Named()))(jnp.zeros(()), jnp.arange(4.0))
    assert models.kernel.out_sharding == (None, "in", "out")
    assert_full(models)


@pytest.mark.parametrize("key", ["out_sharding", "sharding_names", "optimizer_sharding"])
def test_all_keys_that_name_axes_are_kept_right(key):
    models = nnx.vmap(lambda x: Named(key=key))(jnp.arange(4.0))
    assert_full(models, key="out_sharding" if key == "sharding_names" else key)


@pytest.mark.parametrize(
    ("names", "stacked"),
    [
        (P("a", None), P(None, "a", None)),
        (P(("a", "b")), P(None, ("a", "b"))),
        (["a", None], [None, "a", None]),
        (("a",), (None, "a")),
        ((), (None,)),
        (NamedSharding(MESH, P("a", "b")), NamedSharding(MESH, P(None, "a", "b"))),
        (
            Format(Layout((1, 0)), NamedSharding(MESH, P("a", "b"))),
            Format(Layout((0, 2, 1)), NamedSharding(MESH, P(None, "a", "b"))),
        ),
        (None, None),
        ("a", "a"),
    ],
    ids=str,
)
def test_every_spelling_of_names_gets_and_loses_the_axis(names, stacked):
    param = nnx.Param(jnp.ones((4, 2, 4)))
    param.set_metadata(out_sharding=names)
    add_axis_name(param)
    assert param.out_sharding == stacked and type(param.out_sharding) is type(names)
    seen = []
    nnx.vmap(lambda p: seen.append(p.out_sharding))(param)
    assert seen == [names]
    remove_axis_name(param)
    assert param.out_sharding == names


def test_a_name_of_no_mesh_axis_is_none_in_a_sharding():
    param = nnx.Param(jnp.ones((4, 2, 4)))
    param.set_metadata(out_sharding=NamedSharding(MESH, P("a")))
    add_axis_name(param, -1, NAME)
    assert param.out_sharding == NamedSharding(MESH, P("a", None, None))
    add_axis_name(param, 0, {nnx.PARTITION_NAME: "b"})
    assert param.out_sharding.spec == P("b", "a", None, None)
