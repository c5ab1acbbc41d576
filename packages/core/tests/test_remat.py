"""remat: the same values, keys and updates, computed again in the backward pass."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_models import batch, mlp

import moduli as nnx
from moduli import errors


class Noisy(nnx.Module):
    def __init__(self):
        self.w = nnx.Param(jnp.arange(1.0, 4.0))
        self.rngs = nnx.Rngs(0).fork()
        self.mean = nnx.BatchStat(jnp.zeros(3))

    def __call__(self, x):
        y = jnp.sin(self.w.value * x) * jax.random.normal(self.rngs.noise(), (3,))
        self.mean.value = self.mean.value + jax.lax.stop_gradient(y)
        return y


def count(jaxpr, name):
    """How often a primitive stands in a jaxpr, with all that it calls."""
    found = 0
    for eqn in jaxpr.eqns:
        found += eqn.primitive.name == name
        for value in eqn.params.values():
            for item in value if isinstance(value, (tuple, list)) else [value]:
                inner = getattr(item, "jaxpr", item)
                if hasattr(inner, "eqns"):
                    found += count(inner, name)
    return found


def loss(f):
    return lambda model, x: (f(model, x) ** 2).sum()


@pytest.mark.parametrize("jitted", [False, True])
def test_values_gradients_keys_and_updates_are_those_without_it(jitted):
    plain = Noisy.__call__
    model, twin, x = Noisy(), Noisy(), jnp.ones(3)
    run, expected = nnx.grad(loss(nnx.remat(plain))), nnx.grad(loss(plain))
    if jitted:
        run, expected = nnx.jit(run), nnx.jit(expected)
    for _ in range(2):
        ours, theirs = run(model, x), expected(twin, x)
        np.testing.assert_allclose(ours.w.value, theirs.w.value, rtol=1e-5)
        np.testing.assert_allclose(model.mean.value, twin.mean.value, rtol=1e-6)
    assert int(model.rngs.noise.count.value) == int(twin.rngs.noise.count.value) == 2


def test_the_backward_pass_computes_again_what_the_policy_does_not_store():
    """As often as jax.checkpoint around the same function by hand."""

    def block(w, x):
        return jnp.sin(jnp.sin(w @ x))

    def lifted(model, x):
        return block(model["w"].value, x)

    w, x = jnp.ones((3, 3)), jnp.ones(3)
    model = nnx.Dict(w=nnx.Param(w))
    counts = []
    for options in (None, {}, {"policy": jax.checkpoint_policies.dots_saveable}):
        ours = lifted if options is None else nnx.remat(lifted, **options)
        raw = block if options is None else jax.checkpoint(block, **options)
        jaxprs = (
            nnx.make_jaxpr(nnx.grad(loss(ours)))(model, x),
            jax.make_jaxpr(jax.grad(loss(raw)))(w, x),
        )
        found = [[count(jaxpr.jaxpr, name) for name in ("sin", "dot_general")] for jaxpr in jaxprs]
        assert found[0] == found[1]
        counts.append(found[0])
    (sines, products), all_again, stored = counts
    assert all_again[0] > sines and all_again[1] > products
    assert stored[0] > sines and stored[1] == products


def test_static_arguments_decorators_and_methods():
    class Block(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.array(3.0))

        @nnx.remat(static_argnums=2)
        def power(self, x, n):
            assert isinstance(n, int)
            return self.w.value * x**n

        @nnx.remat
        def __call__(self, x, *, scale=1.0):
            return scale * self.w.value * x

    model = Block()
    assert float(nnx.grad(lambda m: m.power(2.0, 3))(model).w.value) == 8.0
    assert float(nnx.grad(lambda m: m(2.0, scale=5.0))(model).w.value) == 10.0
    assert float(nnx.remat(model)(2.0)) == 6.0
    assert float(nnx.remat(model.power, static_argnums=1)(2.0, 2)) == 12.0
    assert nnx.remat(model.power).__name__ == "power"


def test_structure_made_inside_is_seen_outside():
    model = mlp()

    @nnx.remat
    def block(model, x):
        model.seen = nnx.Intermediate(x.sum())
        return model(x).sum(), model.seen

    for run in (block, nnx.jit(block)):
        total, seen = run(model, batch())
        assert seen is model.seen and np.isclose(seen.value, batch().sum(), rtol=1e-5)
        assert total.shape == ()
        del model.seen


def test_an_exception_leaves_the_model_as_it_was():
    model = Noisy()

    @nnx.remat
    def fails(model):
        model(jnp.ones(3))
        raise KeyError("here")

    with pytest.raises(KeyError, match="here"):
        fails(model)
    assert int(model.rngs.noise.count.value) == 0 and not model.mean.value.any()


def test_matches_flax():
    flax = pytest.importorskip("flax.nnx")

    def build(lib):
        class Block(lib.Module):
            def __init__(self):
                self.w = lib.Param(jnp.arange(3.0))
                self.stat = lib.BatchStat(jnp.zeros(()))

            def __call__(self, x):
                y = jnp.tanh(self.w[...] * x)
                self.stat[...] += jax.lax.stop_gradient(y.sum())
                return y

        model = Block()
        run = lib.remat(lambda m, x: m(x))
        grads = lib.grad(lambda m, x: run(m, x).sum())(model, jnp.ones(3))
        return grads["w"][...], model.stat[...]

    for ours, theirs in zip(build(nnx), build(flax), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_wrong_use_says_what_is_wrong():
    with pytest.raises(errors.StructureError, match=r"remat needs a callable; got a tuple"):
        nnx.remat((1,))
    with pytest.raises(errors.StructureError, match=r"remat: argument 0 of .* holds a module and"):
        nnx.remat(lambda m, x: x, static_argnums=0)(mlp(), 1.0)
    with pytest.raises(
        errors.StructureError, match=r"remat: static_argnums has 3, but .* was call"
    ):
        nnx.remat(lambda m, x: x, static_argnums=3)(mlp(), 1.0)
