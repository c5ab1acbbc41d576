"""Initializers draw what JAX's draw, to the bit, and compile few programs."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.nn import initializers as plain

import moduli as nnx
from moduli_layers import initializers

FACTORIES = {
    "glorot_normal": {},
    "glorot_uniform": {},
    "he_normal": {"in_axis": 0, "out_axis": 1},
    "he_uniform": {},
    "kaiming_normal": {},
    "kaiming_uniform": {},
    "lecun_normal": {"batch_axis": (0,)},
    "lecun_uniform": {"in_axis": [0, 1]},
    "normal": {"stddev": 0.3},
    "truncated_normal": {"stddev": 0.7, "lower": -1.0, "upper": 3.0},
    "uniform": {"scale": 0.2},
    "variance_scaling": {"scale": 0.4, "mode": "fan_out", "distribution": "normal"},
    "xavier_normal": {},
    "xavier_uniform": {},
}
SHAPES = [(3, 3, 5, 7), (1, 1, 2, 3), (40, 50, 3), (7, 9, 70, 3), (2, 1024)]


def same(got, want):
    assert got.dtype == want.dtype
    assert got.weak_type == want.weak_type
    np.testing.assert_array_equal(np.asarray(got), np.asarray(want))


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", None])
def test_equal_to_the_bit(name, dtype):
    options = FACTORIES[name]
    ours, jaxs = getattr(initializers, name)(**options), getattr(plain, name)(**options)
    for number, shape in enumerate(SHAPES):
        key = jax.random.key(number)
        same(ours(key, shape, dtype), jaxs(key, shape, dtype))
        same(ours(key, list(shape)), jaxs(key, shape))


def test_equal_with_64_bits():
    with jax.enable_x64(True):
        for name, options in FACTORIES.items():
            ours, jaxs = getattr(initializers, name)(**options), getattr(plain, name)(**options)
            for dtype in (jnp.float64, jnp.float32, None):
                same(
                    ours(jax.random.key(3), (3, 5, 9), dtype),
                    jaxs(jax.random.key(3), (3, 5, 9), dtype),
                )


@settings(max_examples=30, deadline=None)
@given(
    shape=st.lists(st.integers(1, 12), min_size=2, max_size=4),
    seed=st.integers(0, 2**31),
    name=st.sampled_from(["normal", "uniform", "truncated_normal", "exponential", "gumbel"]),
)
def test_draws_of_rngs_equal_those_of_jax(shape, seed, name):
    key = jax.random.fold_in(jax.random.key(seed), 0)
    arguments = (-2.0, 2.0, shape) if name == "truncated_normal" else (shape,)
    same(getattr(nnx.Rngs(seed), name)(*arguments), getattr(jax.random, name)(key, *arguments))


def test_draws_of_rngs_with_all_their_arguments():
    key, rngs = jax.random.fold_in(jax.random.key(5), 0), lambda: nnx.Rngs(5)
    same(
        rngs().uniform((3, 4), jnp.bfloat16, -2, maxval=5),
        jax.random.uniform(key, (3, 4), jnp.bfloat16, -2, maxval=5),
    )
    same(rngs().uniform(), jax.random.uniform(key))
    low = jnp.arange(4.0)
    same(
        rngs().uniform((3, 4), minval=low, maxval=9),
        jax.random.uniform(key, (3, 4), minval=low, maxval=9),
    )
    same(rngs().truncated_normal(lower=low, upper=8.0), jax.random.truncated_normal(key, low, 8.0))
    same(rngs().gumbel((2,), mode="high"), jax.random.gumbel(key, (2,), mode="high"))
    same(rngs().normal((0, 3)), jax.random.normal(key, (0, 3)))
    same(rngs().normal((2,), jnp.complex64), jax.random.normal(key, (2,), jnp.complex64))
    with pytest.raises(TypeError):
        rngs().normal((2,), shape=(3,))


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_other_implementations_of_keys(impl):
    key = jax.random.key(0, impl=impl)
    same(initializers.normal()(key, (3, 5)), plain.normal()(key, (3, 5)))


def test_without_partitionable_threefry():
    with jax.threefry_partitionable(False):
        same(
            initializers.normal()(jax.random.key(0), (3, 5)),
            plain.normal()(jax.random.key(0), (3, 5)),
        )


def test_raw_keys_traced_and_mapped_draws():
    init, jaxs = initializers.lecun_normal(), plain.lecun_normal()
    raw, keys = jax.random.PRNGKey(0), jax.random.split(jax.random.key(0), 3)
    same(init(raw, (3, 5)), jaxs(raw, (3, 5)))
    program = jax.make_jaxpr(lambda key: init(key, (3, 5)))(jax.random.key(0))
    assert str(program) == str(jax.make_jaxpr(lambda key: jaxs(key, (3, 5)))(jax.random.key(0)))
    same(
        jax.vmap(lambda key: init(key, (3, 5)))(keys), jax.vmap(lambda key: jaxs(key, (3, 5)))(keys)
    )


def test_a_committed_key_commits_the_array():
    device = jax.devices()[1]
    key = jax.device_put(jax.random.key(0), device)
    got = initializers.normal()(key, (3, 5))
    assert got.devices() == {device}
    assert got.committed
    same(got, plain.normal()(key, (3, 5)))


def test_a_mesh_that_is_set_is_respected():
    mesh = jax.make_mesh((2,), ("data",))
    with jax.set_mesh(mesh):
        same(
            initializers.normal()(jax.random.key(0), (4, 5)),
            plain.normal()(jax.random.key(0), (4, 5)),
        )
        spec = jax.P("data")
        got = initializers.normal()(jax.random.key(0), (4, 5), out_sharding=spec)
        assert tuple(got.sharding.spec)[:1] == tuple(spec)


@pytest.mark.parametrize("name", ["lecun_normal", "variance_scaling"])
def test_what_jax_refuses_is_refused_alike(name):
    options = FACTORIES[name] if name == "variance_scaling" else {}
    for shape in [(3,), (), (2, -1), 5]:
        with pytest.raises(Exception) as want:
            getattr(plain, name)(**options)(jax.random.key(0), shape)
        with pytest.raises(type(want.value)) as got:
            getattr(initializers, name)(**options)(jax.random.key(0), shape)
        assert str(got.value) == str(want.value)
    with pytest.raises(TypeError):
        initializers.lecun_normal(scale=3)


def test_initializers_are_values():
    one, other = initializers.normal(0.1), initializers.normal(stddev=0.1)
    assert one == other
    assert hash(one) == hash(other)
    assert one != initializers.normal(0.2)
    assert repr(one) == "normal(stddev=0.1)"
    copy = pickle.loads(pickle.dumps(initializers.he_normal(in_axis=[0])))
    assert copy == initializers.he_normal(in_axis=[0])
    same(
        copy(jax.random.key(0), (3, 5)),
        initializers.he_normal(in_axis=[0])(jax.random.key(0), (3, 5)),
    )


@pytest.mark.skipif(jax.__version_info__ >= (0, 11), reason="XLA's bits depend on the shape there")
def test_many_shapes_compile_few_programs():
    compiled = []

    def listen(event, duration, **_):
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    init = initializers.truncated_normal(0.123)
    for width in range(2, 30):
        init(jax.random.key(0), (width, 31), jnp.float32)
    assert len(compiled) <= 4, len(compiled)
    before = len(compiled)
    jaxs = plain.truncated_normal(0.123)
    for width in range(2, 5):
        jaxs(jax.random.key(0), (width, 31), jnp.float32)
    assert len(compiled) > before, "the listener hears nothing"
    jax.monitoring.unregister_event_duration_listener(listen)
