"""Seeds: a stream takes the integers that ``jax.random.key`` takes, and gives the same keys."""

from __future__ import annotations

import contextlib
import enum
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli as nnx
from moduli import errors


class Seed(enum.IntEnum):
    DATA = 12


SEEDS = {
    "zero": 0,
    "largest int32": 2**31 - 1,
    "2**31": 2**31,
    "hexadecimal": 0xDEADBEEF,
    "largest uint32": 2**32 - 1,
    "2**32": 2**32,
    "2**40 + 7": 2**40 + 7,
    "largest int64": 2**63 - 1,
    "minus one": -1,
    "smallest int32": -(2**31),
    "smallest int64": -(2**63),
    "clock": time.time_ns(),
    "enum": Seed.DATA,
    **{
        f"{kind.__name__} {word}": kind(value)
        for kind in (
            np.int8,
            np.uint8,
            np.int16,
            np.uint16,
            np.int32,
            np.uint32,
            np.int64,
            np.uint64,
        )
        for word, value in (("low", np.iinfo(kind).min), ("high", np.iinfo(kind).max))
    },
    "array of int64": np.array(2**40 + 9),
    "array of int8": np.array(-5, np.int8),
}
WAYS = {
    "default": lambda seed: nnx.Rngs(seed).noise,
    "named default": lambda seed: nnx.Rngs(default=seed).default,
    "named": lambda seed: nnx.Rngs(params=seed).params,
    "mapping": lambda seed: nnx.Rngs({"params": seed}).params,
    "stream": lambda seed: nnx.RngStream(seed, tag="params"),
    "variable": lambda seed: nnx.Rngs(params=nnx.Variable(seed)).params,
    "fork of a copy": lambda seed: nnx.clone(nnx.Rngs(params=seed)).params,
}


def data(key: jax.Array) -> list[int]:
    return np.asarray(jax.random.key_data(key)).tolist()


@pytest.fixture(params=[False, True], ids=["x32", "x64"])
def x64(request):
    with jax.enable_x64(request.param):
        yield request.param


@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS)
def test_every_way_gives_the_key_of_jax(seed, x64):
    expected = jax.random.key(seed)
    first = jax.random.fold_in(expected, 0)
    for name, make in WAYS.items():
        stream = make(seed)
        assert data(stream.key.value) == data(expected), name
        assert data(stream()) == data(first), name
    rngs = nnx.Rngs(params=0, dropout=1)
    nnx.reseed(rngs, params=seed)
    again = nnx.RngStream(0, tag="params")
    again.key.value = jax.random.fold_in(expected, 0)  # reseed numbers the streams of one name
    assert data(rngs.params.key.value) in (data(again.key.value), data(expected))


@pytest.mark.parametrize("seed", [2**31, -1, np.uint32(2**32 - 1), 2**40 + 7])
def test_forks_and_splits_of_a_seed(seed, x64):
    drawn = jax.random.fold_in(jax.random.key(seed), 0)
    assert data(nnx.Rngs(seed).fork().default.key.value) == data(drawn)
    many = nnx.Rngs(params=seed).split(3).params.key.value
    assert data(many) == data(jax.random.split(drawn, 3))
    layer = nnx.Rngs(dropout=seed).fork(split={"dropout": (2,)}).dropout.key
    assert layer.shape == (2,)


def test_jax_arrays_old_keys_and_typed_keys(x64):
    for seed in (jnp.array(3), jnp.array(7, jnp.uint8), jnp.array(-2, jnp.int16)):
        assert data(nnx.Rngs(seed).default.key.value) == data(jax.random.key(seed))
    for key in (
        jax.random.key(5),
        jax.random.PRNGKey(5),
        np.asarray(jax.random.PRNGKey(5)),
        jax.random.split(jax.random.key(5), 4),
        jax.random.split(jax.random.PRNGKey(5), 4),
        jax.random.key(5, impl="rbg"),
    ):
        expected = data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key.tolist()
        stream = nnx.Rngs(params=key).params
        assert data(stream.key.value) == expected
        assert jnp.issubdtype(stream.key.dtype, jax.dtypes.prng_key)
    assert str(nnx.Rngs(jax.random.key(5, impl="rbg")).default.key.dtype) == "key<rbg>"


@pytest.mark.parametrize("jit", [jax.jit, nnx.jit])
@pytest.mark.parametrize("seed", [3, 2**31 - 1, -1, np.uint32(2**32 - 1), np.int8(-4)])
def test_a_traced_seed(jit, seed):
    @jit
    def draw(seed):
        return jax.random.key_data(nnx.Rngs(seed).params()), jax.random.key_data(
            nnx.Rngs(params=seed).params()
        )

    expected = data(jax.random.fold_in(jax.random.key(seed), 0))
    assert [x.tolist() for x in draw(seed)] == [expected] * 2


def test_seeds_mapped_over():
    seeds = jnp.arange(4, dtype=jnp.uint32) + np.uint32(2**31)
    draws = jax.vmap(lambda seed: jax.random.key_data(nnx.Rngs(seed)()))(seeds)
    expected = [data(jax.random.fold_in(jax.random.key(seed), 0)) for seed in seeds]
    assert draws.tolist() == expected


def test_a_large_seed_builds_the_same_model_wherever_it_is_built():
    def build():
        return nnx.RngStream(0xDEADBEEF, tag="params").normal((3,))

    expected = jax.random.normal(jax.random.fold_in(jax.random.key(0xDEADBEEF), 0), (3,))
    for built in (build(), jax.jit(build)(), nnx.jit(build)()):
        np.testing.assert_array_equal(built, expected)
    assert jax.eval_shape(build).shape == (3,)


REFUSED = [
    2**63,
    2**64,
    -(2**63) - 1,
    10**40,
    1.0,
    np.float32(1),
    np.bool_(True),
    np.array(1.5),
    jnp.array(2.5),
    [1, 2],
    np.array([1, 2]),
    jnp.ones((2, 2), jnp.int32),
    np.array([1, 2, 3], np.uint32),
    None,
    "7",
    {"a": 1},
    2 + 0j,
]


@pytest.mark.parametrize("seed", REFUSED, ids=repr)
@pytest.mark.parametrize("way", ["Rngs", "stream", "reseed", "traced"])
def test_what_jax_refuses_is_an_error_that_names_the_stream(seed, way):
    rngs = nnx.Rngs(noise=0)
    before = data(rngs.noise.key.value)
    with contextlib.ExitStack() as stack:
        caught = stack.enter_context(pytest.raises(errors.RngError))
        if way == "Rngs":
            nnx.Rngs(noise=seed)
        elif way == "stream":
            nnx.RngStream(seed, tag="noise")
        elif way == "reseed":
            nnx.reseed(rngs, noise=seed)
        else:
            jax.jit(lambda: jax.random.key_data(nnx.Rngs(noise=seed)()))()
    assert "the stream 'noise' got" in str(caught.value)
    assert "an int or a key from jax.random.key" in str(caught.value)
    assert type(seed).__name__ in str(caught.value) or "array" in str(caught.value)
    assert data(rngs.noise.key.value) == before
