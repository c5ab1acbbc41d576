"""Random streams in shard_map: numbers of its own for each part of the data."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import moduli as nnx
from moduli import errors
from moduli.lowlevel import draw_for, key_for
from moduli.testing import assert_unchanged

AUTO = (jax.sharding.AxisType.Auto,) * 2
MESH = jax.make_mesh((2, 2), ("data", "model"), axis_types=AUTO)
X = jnp.ones((4, 8))


class Noise(nnx.Module):
    """A layer of a user's: draws from its own stream."""

    def __init__(self, rngs):
        self.rngs = rngs.noise.fork()
        self.scale = nnx.Param(jnp.ones(()))
        self.last = nnx.Variable(jnp.zeros(8))

    def __call__(self, x):
        return self.scale * x + jax.random.normal(self.rngs(), x.shape)


class Aware(Noise):
    """Draws for its input, as our own layers do."""

    def __call__(self, x):
        return self.scale * x + jax.random.normal(draw_for(self.rngs, x), x.shape)


def parts(y):
    """Returns how many different parts there are along the data, and along the model."""
    rows = np.asarray(y).reshape(2, 2, *y.shape[1:])
    return len({row.tobytes() for row in rows})


def run(f, *args, specs, out=P("data"), **options):
    return nnx.shard_map(f, mesh=MESH, in_specs=specs, out_specs=out, **options)(*args)


each_check = pytest.mark.parametrize("check_vma", [True, False], ids=["vma", "no vma"])
BY_DATA = (P(), P("data"))


def call(model, x):
    return model(x)


def gradient(model, x):
    return nnx.grad(lambda model, x: (model(x) ** 2).sum(), argnums=1)(model, x)


def scanned(model, x):
    step = nnx.scan(call, in_axes=(None, nnx.Carry), out_axes=nnx.Carry, length=2)
    return step(model, x)


def compiled(model, x):
    return nnx.jit(nnx.remat(call))(model, x)


def mapped(model, x):
    return nnx.vmap(call, in_axes=(None, 0))(model, x)


@pytest.mark.parametrize(
    ("kind", "inner", "check_vma"),
    [
        *[(Noise, inner, True) for inner in (call, gradient, scanned, compiled, mapped)],
        (Noise, call, False),
        (Aware, gradient, True),
        (Aware, call, False),
    ],
)
def test_each_part_of_the_data_gets_numbers_of_its_own(kind, inner, check_vma):
    model, again = kind(nnx.Rngs(0)), kind(nnx.Rngs(0))
    key = jax.random.key_data(model.rngs.key.value)
    first = run(inner, model, X, specs=BY_DATA, check_vma=check_vma)
    assert parts(first) == 2
    np.testing.assert_array_equal(jax.random.key_data(model.rngs.key.value), key)
    assert int(model.rngs.count[...]) == (2 if inner is scanned else 1)
    second = run(inner, model, X, specs=BY_DATA, check_vma=check_vma)
    assert (first != second).any()
    np.testing.assert_array_equal(run(inner, again, X, specs=BY_DATA, check_vma=check_vma), first)


@each_check
def test_numbers_are_those_of_the_key_with_the_place_folded_in(check_vma):
    model = Noise(nnx.Rngs(0))
    key = jax.random.fold_in(model.rngs.key.value, 1)
    expected = 1 + jax.random.normal(jax.random.fold_in(key, 0), (2, 8))
    y = run(call, model, X, specs=BY_DATA, check_vma=check_vma)
    np.testing.assert_allclose(y[2:], expected, rtol=1e-5)
    np.testing.assert_array_equal(y[:2, :0], y[2:, :0])


@each_check
@pytest.mark.parametrize("kind", [Noise, Aware])
def test_data_that_are_the_same_everywhere_get_the_same_numbers(kind, check_vma):
    model = kind(nnx.Rngs(0))
    y = run(call, model, X, specs=(P(), P()), out=P(), check_vma=check_vma)
    np.testing.assert_allclose(y, kind(nnx.Rngs(0))(X), rtol=1e-5)


def test_a_layer_that_draws_for_its_input_sees_which_input_differs():
    def both(model, x, same):
        return model(x), model(same)

    specs, out = (P(), P("data"), P()), (P("data"), P())
    y, same = run(both, Aware(nnx.Rngs(0)), X, X, specs=specs, out=out)
    assert parts(y) == 2
    model = Aware(nnx.Rngs(0))
    model(X)
    np.testing.assert_allclose(same, model(X), rtol=1e-5)


def test_all_axes_over_which_the_data_differ_count():
    y = run(call, Noise(nnx.Rngs(0)), X, specs=(P(), P(("data", "model"))), out=P(MESH.axis_names))
    assert len({row.tobytes() for row in np.asarray(y)}) == 4
    y = run(call, Aware(nnx.Rngs(0)), X, specs=(P(), P("data", "model")), out=P("data", "model"))
    assert len({block.tobytes() for part in np.split(y, 2) for block in np.split(part, 2, 1)}) == 4


@pytest.mark.parametrize(
    ("make", "spec", "expected"),
    [
        (Noise, nnx.StateSharding({nnx.RngState: P(), ...: P()}), 1),
        (Noise, nnx.StateSharding({nnx.PathContains("rngs"): P(), ...: P()}), 1),
        (Noise, nnx.StateSharding({"noise": P(), ...: P()}), 1),
        (Noise, nnx.StateSharding({nnx.Param: P(), ...: P()}), 2),
        (Noise, nnx.StateSharding({nnx.Param: P(), nnx.Not(nnx.Param): P()}), 2),
        (lambda rngs: rngs, P(), 1),
        (lambda rngs: rngs.noise, P(), 1),
        (lambda rngs: {"a": rngs}, P(), 1),
        (lambda rngs: {"a": Noise(rngs)}, P(), 2),
        (lambda rngs: nnx.Dict(a=Noise(rngs)), P(), 2),
    ],
)
def test_streams_that_are_named_or_passed_are_shared(make, spec, expected):
    def draw(node, x):
        node = node["a"] if isinstance(node, (dict, nnx.Dict)) else node
        if isinstance(node, Noise):
            return node(x)
        stream = node.noise if isinstance(node, nnx.Rngs) else node
        return x + stream.normal(x.shape)

    y = run(draw, make(nnx.Rngs(noise=0)), X, specs=(spec, P("data")))
    assert parts(y) == expected


def test_models_that_are_made_inside_are_the_same_everywhere():
    model = run(lambda rngs, x: Noise(rngs), nnx.Rngs(0), X, specs=BY_DATA, out=P())
    expected = Noise(nnx.Rngs(0)).rngs.key.value
    np.testing.assert_array_equal(
        jax.random.key_data(model.rngs.key.value), jax.random.key_data(expected)
    )


def test_arrays_of_keys_stay_as_they_are():
    def draw(node, x):
        return x + jax.vmap(lambda key: jax.random.normal(key, (8,)))(node.rngs.key.value)

    model = Noise(nnx.Rngs(0))
    nnx.split_rngs(model, splits=4)
    expected = draw(model, X)
    specs = (nnx.StateSharding({nnx.RngState: P("data"), ...: P()}), P("data"))
    np.testing.assert_allclose(run(draw, model, X, specs=specs), expected, rtol=1e-5)


def test_a_batch_in_a_variable_is_data():
    y = run(lambda m, v: m(v[...]), Noise(nnx.Rngs(0)), nnx.Variable(X), specs=BY_DATA)
    assert parts(y) == 2


def test_an_error_about_a_value_that_differs_says_how_to_share_a_stream():
    def keep(model, x):
        model.last.value = jax.random.normal(model.rngs(), (8,))
        return x

    model = Noise(nnx.Rngs(0))
    with assert_unchanged(model), pytest.raises(errors.StructureError) as caught:
        run(keep, model, X, specs=BY_DATA)
    assert "`last`" in str(caught.value)
    assert str(caught.value).endswith(
        "; if it is drawn from a random stream of a module, whose numbers differ between devices, "
        "name the streams in in_specs to share them: "
        "`moduli.StateSharding({moduli.RngState: P(), ...: P()})`"
    )
    shared = nnx.StateSharding({nnx.RngState: P(), ...: P()})
    run(keep, model, X, specs=(shared, P("data")))
    expected = jax.random.normal(jax.random.fold_in(model.rngs.key.value, 0), (8,))
    np.testing.assert_allclose(model.last.value, expected, rtol=1e-5)


def test_the_functions_are_jaxs_own_elsewhere():
    key = jax.random.key(0)
    assert key_for(key, X) is key
    stream = nnx.Rngs(0).default
    np.testing.assert_array_equal(
        jax.random.key_data(draw_for(stream, X)), jax.random.key_data(nnx.Rngs(0)())
    )

    @functools.partial(jax.shard_map, mesh=MESH, in_specs=(P(), P("data")), out_specs=P("data"))
    def raw(key, x):
        return jax.random.normal(key_for(key, x), x.shape)

    assert parts(raw(key, X)) == 2
