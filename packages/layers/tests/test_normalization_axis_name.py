"""BatchNorm over a mapped axis: equal to one layer that sees the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import moduli
from moduli_layers import BatchNorm, Linear

DEVICES = 4
MESH = jax.make_mesh((DEVICES,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
X = np.random.default_rng(0).normal(1.0, 2.0, (8, 5, 3)).astype(np.float32)

Parallel = Callable[[Callable[..., jax.Array]], Callable[..., jax.Array]]


def by_device(transform: Any) -> Parallel:
    """Gives each element of the mapped axis its part of the batch, to one model for all."""

    def parallel(f: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        mapped = transform(f, in_axes=(None, 0), axis_name="batch")

        def call(model: Any, x: jax.Array) -> jax.Array:
            y = mapped(model, jnp.reshape(x, (DEVICES, -1, *x.shape[1:])))
            return y.reshape(-1, *y.shape[2:])

        return call

    return parallel


def by_shard(f: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The same through shard_map."""
    return moduli.shard_map(f, mesh=MESH, in_specs=(P(), P("batch")), out_specs=P("batch"))


PARALLEL = {
    "vmap": by_device(moduli.vmap),
    "pmap": by_device(moduli.pmap),
    "shard_map": by_shard,
}


@pytest.fixture(params=PARALLEL)
def parallel(request: pytest.FixtureRequest) -> Parallel:
    """What splits the batch."""
    return PARALLEL[request.param]


class Block(moduli.Module):
    def __init__(self, **options: Any) -> None:
        rngs = moduli.Rngs(0)
        self.linear = Linear(3, 3, rngs=rngs)
        self.norm = BatchNorm(3, momentum=0.5, **options, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.linear(x))


def call(model: Any, x: jax.Array) -> jax.Array:
    return model(x)


def pair(**options: Any) -> tuple[Block, Block]:
    return Block(**options), Block(**options, axis_name="batch")


@pytest.mark.parametrize("fast", [True, False], ids=["one pass", "two passes"])
def test_outputs_and_running_statistics_are_those_of_the_whole_batch(
    parallel: Parallel, fast: bool
) -> None:
    whole, parts = pair(use_fast_variance=fast)
    for _ in range(2):
        np.testing.assert_allclose(parallel(call)(parts, X), whole(X), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(parts.norm.mean.value, whole.norm.mean.value, rtol=1e-5)
    np.testing.assert_allclose(parts.norm.var.value, whole.norm.var.value, rtol=1e-5)
    assert parts.norm.mean.shape == (3,)


def test_evaluation_takes_the_running_statistics_and_keeps_them(parallel: Parallel) -> None:
    whole, parts = pair()
    whole(X)
    parallel(call)(parts, X)
    before = np.asarray(parts.norm.mean.value)
    whole.eval()
    parts.eval()
    np.testing.assert_allclose(parallel(call)(parts, X), whole(X), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(parts.norm.mean.value, before)


def test_gradients_are_those_of_the_whole_batch(parallel: Parallel) -> None:
    whole, parts = pair()
    weights = jnp.sin(jnp.arange(X.size, dtype=jnp.float32)).reshape(X.shape)

    def loss(model: Any, forward: Any) -> jax.Array:
        return jnp.sum(weights * forward(model, X) ** 2)

    expected = moduli.grad(lambda model: loss(model, call))(whole)
    found = moduli.grad(lambda model: loss(model, parallel(call)))(parts)
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(
            found["linear"][name].value, expected["linear"][name].value, rtol=1e-3, atol=1e-3
        )
    np.testing.assert_allclose(
        found["norm"]["scale"].value, expected["norm"]["scale"].value, rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(parts.norm.var.value, whole.norm.var.value, rtol=1e-5)


def test_without_axis_name_one_layer_for_all_parts_is_refused(parallel: Parallel) -> None:
    with pytest.raises(moduli.errors.StructureError, match=r"BatchStat .* at `norm/mean`.*pmean"):
        parallel(call)(Block(), X)


@pytest.mark.parametrize("name", ["vmap", "pmap"])
def test_without_axis_name_each_part_may_have_statistics_of_its_own(name: str) -> None:
    transform = getattr(moduli, name)
    model = Block()
    axes = moduli.StateAxes({moduli.BatchStat: 0, ...: None})
    moduli.update(
        model,
        jax.tree.map(lambda v: jnp.stack([v] * DEVICES), moduli.state(model, moduli.BatchStat)),
    )
    parts = X.reshape(DEVICES, 2, 5, 3)
    outputs = transform(call, in_axes=(axes, 0))(model, parts)
    for number, part in enumerate(parts):
        alone = Block()
        np.testing.assert_allclose(outputs[number], alone(part), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            model.norm.mean.value[number], alone.norm.mean.value, rtol=1e-4, atol=1e-6
        )


def test_groups_of_devices_share_statistics_among_themselves() -> None:
    parts = X.reshape(DEVICES, 2, 5, 3)
    groups = ((0, 1), (2, 3))
    models = moduli.vmap(lambda _: Block(axis_name="batch", axis_index_groups=groups))(
        jnp.arange(DEVICES)
    )
    outputs = moduli.pmap(call, axis_name="batch")(models, parts)
    for number, group in enumerate(groups):
        alone = Block()
        expected = alone(parts[list(group)])
        np.testing.assert_allclose(
            outputs[2 * number : 2 * number + 2], expected, rtol=1e-4, atol=1e-5
        )
        np.testing.assert_allclose(
            models.norm.mean.value[2 * number], alone.norm.mean.value, rtol=1e-4
        )


def test_a_jit_that_shards_the_batch_needs_no_axis_name() -> None:
    whole, parts = Block(), Block()
    sharding = jax.sharding.NamedSharding
    step = moduli.jit(call, in_shardings=(sharding(MESH, P()), sharding(MESH, P("batch"))))
    np.testing.assert_allclose(step(parts, X), whole(X), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(parts.norm.var.value, whole.norm.var.value, rtol=1e-5)
