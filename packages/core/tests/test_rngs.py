"""Rngs: named streams that give the same numbers as flax's for the same seeds."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli as nnx
from moduli import errors


def data(key):
    return np.asarray(jax.random.key_data(key)).tolist()


def test_a_draw_is_the_counter_folded_into_the_key():
    rngs = nnx.Rngs(params=7)
    root = jax.random.key(7)
    for count in range(3):
        assert data(rngs.params()) == data(jax.random.fold_in(root, count))
    assert int(rngs.params.count.value) == 3
    assert data(rngs.params.last()) == data(jax.random.fold_in(root, 2))


def test_streams_and_the_default():
    rngs = nnx.Rngs(0, dropout=1)
    assert "dropout" in rngs and "noise" not in rngs and len(rngs) == 2
    assert data(rngs.dropout()) == data(jax.random.fold_in(jax.random.key(1), 0))
    draws = [data(rngs()), data(rngs.params()), data(rngs["noise"]())]
    assert draws == [data(jax.random.fold_in(jax.random.key(0), n)) for n in range(3)]
    assert sorted(rngs) == ["default", "dropout"]


def test_every_kind_of_seed():
    expected = data(nnx.Rngs(3)())
    for seed in (jnp.asarray(3), np.int64(3), jax.random.key(3), jax.random.PRNGKey(3)):
        assert data(nnx.Rngs(seed)()) == expected
    assert data(nnx.Rngs({"default": 3})()) == expected
    assert data(nnx.Rngs(nnx.Rngs(3))()) == expected


@pytest.mark.parametrize("seed", [1.5, "3", True, jnp.ones(2), object()])
def test_what_is_no_seed_is_an_error(seed):
    with pytest.raises(errors.RngError, match=r"'params' got .*an int or a key"):
        nnx.Rngs(params=seed)


def test_a_missing_stream_says_which_there_are():
    rngs = nnx.Rngs(params=0)
    with pytest.raises(AttributeError, match=r"no stream 'parms'.*did you mean 'params'"):
        rngs.parms()
    with pytest.raises(errors.RngError, match=r"Rngs\(dropout=seed\)"):
        rngs.dropout()
    with pytest.raises(errors.PathError):
        rngs()


def test_fork_gives_independent_streams_and_arrays_of_keys():
    rngs = nnx.Rngs(0, dropout=1)
    child = rngs.fork()
    assert data(child()) != data(rngs()) and int(rngs.dropout.count.value) == 1
    many = rngs.split({"dropout": (2, 3)})
    assert many.dropout.key.shape == (2, 3) and many.default.key.shape == ()
    four = nnx.Rngs(0).fork(split=4)
    expected = jax.random.split(jax.random.fold_in(jax.random.key(0), 0), 4)
    assert data(four.default.key.value) == data(expected)


def test_jax_random_functions_are_methods():
    rngs = nnx.Rngs(0, noise=1)
    key = jax.random.fold_in(jax.random.key(1), 0)
    np.testing.assert_array_equal(rngs.noise.normal((3,)), jax.random.normal(key, (3,)))
    assert rngs.uniform((2,), minval=1.0, maxval=2.0).min() >= 1


def test_state_saved_and_restored_continues_bit_for_bit():
    rngs = nnx.Rngs(0)
    rngs()
    saved = nnx.clone(nnx.state(rngs))
    expected = [data(rngs()) for _ in range(3)]
    fresh = nnx.Rngs(99)
    nnx.update(fresh, saved)
    assert [data(fresh()) for _ in range(3)] == expected


def test_jit_draws_the_same_keys_and_counts_on():
    eager, jitted = nnx.Rngs(0), nnx.Rngs(0)
    draw = nnx.jit(lambda rngs: rngs.params())
    assert [data(draw(jitted)) for _ in range(3)] == [data(eager.params()) for _ in range(3)]


def test_matches_flax():
    flax = pytest.importorskip("flax.nnx")
    ours, theirs = (lib.Rngs(5, params=6, dropout=7) for lib in (nnx, flax))
    for name in ("params", "dropout", "other", "params", "default"):
        assert data(getattr(ours, name)()) == data(getattr(theirs, name)())
    assert data(ours.fork().dropout()) == data(theirs.fork().dropout())
    split = [rngs.split(3).params.key for rngs in (ours, theirs)]
    assert data(split[0].value) == data(split[1][...])


@pytest.mark.parametrize("shape", [4, (2, 3), {"params": 4, ...: (2, 3)}, {"dropout": 4}, None])
def test_broadcast_repeats_one_fresh_key_as_in_flax(shape):
    flax = pytest.importorskip("flax.nnx")
    if not hasattr(flax.Rngs, "broadcast"):
        pytest.skip("this flax, older than 0.12.8, has no broadcast")
    made = [lib.Rngs(0, params=1, dropout=2) for lib in (nnx, flax)]
    ours, theirs = (rngs.broadcast(shape) for rngs in made)
    for name in ("default", "params", "dropout"):
        key, reference = getattr(ours, name).key.value, getattr(theirs, name).key[...]
        assert key.shape == reference.shape and data(key) == data(reference)
        counts = [int(getattr(rngs, name).count[...]) for rngs in made]
        assert counts[0] == counts[1] == (1 if key.ndim else 0)
        assert (getattr(ours, name) is getattr(made[0], name)) == (not key.ndim)


def test_a_broadcast_stream_gives_all_elements_of_vmap_the_same_numbers():
    draw = nnx.vmap(lambda rngs: rngs.normal((2,)))
    same, different = draw(nnx.Rngs(0).broadcast(3)), draw(nnx.Rngs(0).split(3))
    np.testing.assert_array_equal(same, np.broadcast_to(same[0], (3, 2)))
    assert len(np.unique(different)) == 6
    assert nnx.Rngs(noise=0).noise.broadcast((2, 2)).key.shape == (2, 2)


@pytest.mark.parametrize("name", ["lecun_normal", "he_uniform", "xavier_normal"])
def test_initializers_are_methods_that_draw_their_key_when_called(name):
    rngs = nnx.Rngs(0, noise=1)
    initialize = getattr(rngs.noise, name)()
    assert int(rngs.noise.count.value) == 0
    expected = getattr(jax.nn.initializers, name)()
    for draw in range(2):
        key = jax.random.fold_in(jax.random.key(1), draw)
        got = initialize((3, 4), jnp.float32)
        np.testing.assert_array_equal(got, expected(key, (3, 4), jnp.float32))
    key = jax.random.fold_in(jax.random.key(0), 0)
    scaled = rngs.variance_scaling(2.0, "fan_in", distribution="normal")((3, 4))
    reference = jax.nn.initializers.variance_scaling(2.0, "fan_in", distribution="normal")
    np.testing.assert_array_equal(scaled, reference(key, (3, 4)))
    flax = pytest.importorskip("flax.nnx")
    np.testing.assert_array_equal(
        getattr(nnx.Rngs(0), name)()((3, 4)), getattr(flax.Rngs(0), name)()((3, 4))
    )
