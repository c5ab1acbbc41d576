"""Optimizers, metrics, streams and initializers under JAX's strict modes.

optax's adam promotes dtypes itself, with plain dicts of arrays too, so it has the standard
promotion; the other modes hold for all.
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import moduli as nnx

X = np.ones((4, 3), np.float32)
BITS = pytest.mark.parametrize("bits", [32, 64])


@contextlib.contextmanager
def strict(bits, promotion="strict"):
    with (
        jax.numpy_rank_promotion("raise"),
        jax.numpy_dtype_promotion(promotion),
        jax.debug_nans(True),
        jax.checking_leaks(),
        jax.enable_x64(bits == 64),
    ):
        yield


def loss(model):
    return (model(jnp.asarray(X)) ** 2).mean()


def train(tx):
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(loss)(model))

    step(model, optimizer)
    optimizer.update(model, nnx.grad(loss)(model))
    return jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model)))


@BITS
@pytest.mark.parametrize(
    ("tx", "promotion"),
    [
        (optax.sgd(0.1, momentum=0.9), "strict"),
        (optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)), "strict"),
        (optax.adam(1e-2), "standard"),
        (optax.adamw(optax.cosine_decay_schedule(1e-2, 10)), "standard"),
    ],
    ids=["sgd", "clip", "adam", "schedule"],
)
def test_optimizers_train_alike(tx, promotion, bits):
    want = train(tx)
    with strict(bits, promotion):
        got = train(tx)
    for name in ("kernel", "bias"):
        assert got[name].dtype == np.float32
        np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-7)


@BITS
def test_metrics_compute_alike(bits):
    def run():
        metric = nnx.MultiMetric(
            loss=nnx.metrics.Average(),
            accuracy=nnx.metrics.Accuracy(),
            spread=nnx.metrics.Welford(),
        )
        logits, labels = jnp.eye(4, 3, dtype=jnp.float32), jnp.array([0, 1, 1, 0], jnp.int32)
        values = jnp.arange(4, dtype=jnp.float32)

        @nnx.jit
        def update(metric):
            metric.update(values=values, logits=logits, labels=labels)
            return metric.compute()

        update(metric)
        metric.update(values=values, logits=logits, labels=labels)
        return metric.compute()

    with strict(bits):
        got = run()
    assert float(got["loss"]) == 1.5
    assert float(got["accuracy"]) == 0.75
    np.testing.assert_allclose(got["spread"].mean, 1.5)


@BITS
def test_streams_and_initializers_draw_alike(bits):
    def run():
        rngs = nnx.Rngs(0, dropout=1)
        drawn = [rngs.normal((2, 3), jnp.float32), rngs.dropout.uniform((2,), jnp.float32)]
        forked = nnx.jit(lambda rngs: rngs.fork(split=2).params.key.value)(rngs)
        drawn.append(jax.random.key_data(forked))
        for name in ("lecun_normal", "he_uniform", "orthogonal"):
            init = getattr(nnx.initializers, name)()
            drawn.append(init(jax.random.key(0), (3, 4), jnp.float32))
        return [np.asarray(value) for value in drawn]

    want = run()
    with strict(bits):
        got = run()
    for one, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(one, other)


@BITS
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parts_scales_and_averages_compute_alike(dtype, bits):
    def run():
        model = nnx.Linear(3, 2, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0))
        optimizer, scale = nnx.Optimizer(model, optax.sgd(0.1)), nnx.LossScale(4.0)
        ema = nnx.EMA(model, lambda step: 0.5 * step.astype(jnp.float32) / 2.0, debias=True)
        f = lambda model, x: (model(x) ** 2).mean()
        value, grads = nnx.accumulate(f, 3)(model, jnp.asarray(X, dtype))
        optimizer.update(model, grads)
        ema.update(model)
        loss, grads = scale.value_and_grad(f)(model, jnp.asarray(X, dtype))
        scale.update(optimizer, model, jax.tree.map(lambda grad: grad.astype(dtype), grads))
        ema.update(model)
        return [np.asarray(v, np.float32) for v in [value, loss, *jax.tree.leaves(nnx.state(ema))]]

    want = run()
    with strict(bits):
        got = run()
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
