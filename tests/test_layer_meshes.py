"""Layers on a mesh with explicit axes, the batch spread over it: as without a mesh.

The mesh is (4, 2) with eight devices (``nox -s long``), else (2, 2); the rows are every one of the
table there, else one for each thing that a layer does with its inputs' layout.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from layer_table import EVERY, TABLE, Row

import moduli

AXES = ("data", "model")
SIZES = (4, 2) if len(jax.devices()) >= 8 else (2, 2)
MESH = jax.make_mesh(SIZES, AXES, axis_types=(jax.sharding.AxisType.Explicit,) * 2)
BATCH = 8

SOME = """
    linear embed batch_norm-vector-features group_norm-vectors conv-groups conv_transpose-same
    avg_pool dropout-broadcast stochastic_depth-row attention-dropout
    rnn-lengths-lstm
""".split()
EAGER = "linear embed conv-groups dropout-half rnn-simple".split()
ROUGH = {"attention-large": 5e-4}  # outputs in the thousands: eager and jit differ by as much
ROWS = [row for row in TABLE if EVERY or row.name in SOME]
ROWS_EAGERLY = [row for row in TABLE if EVERY or row.name in EAGER]


def batch_of(row: Row) -> list[np.ndarray]:
    """Returns the row's inputs, with eight examples if there is a batch."""
    if not row.batched:
        return [np.asarray(x) for x in row.arrays()]
    several = [row.arrays(seed) for seed in range(BATCH)]
    return [np.concatenate(parts)[:BATCH] for parts in zip(*several, strict=True)]


def spread(row: Row, arrays: list[np.ndarray]) -> list[jax.Array]:
    """Lays the first axis of the inputs out over the mesh's."""
    return [jax.device_put(x, P("data") if row.batched else P()) for x in arrays]


def numbers(tree: Any) -> list[np.ndarray]:
    """Returns what is in a State or a tree as arrays; keys as their bits."""
    pure = moduli.to_pure_dict(tree) if isinstance(tree, moduli.State) else tree
    return [
        np.asarray(jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a)
        for a in jax.tree.leaves(pure)
    ]


def trained(row: Row, model: Any, args: list[jax.Array], *, jitted: bool) -> list[Any]:
    """Returns output, gradients of parameters and inputs, and the state after the call."""
    weights = np.random.default_rng(5).normal(size=1000)

    def loss(model: Any, *args: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = model(*args)
        factors = jnp.asarray(np.resize(weights, y.shape), y.dtype)
        return jnp.sum(y * factors), y

    floats = [n for n, x in enumerate(args, 1) if jnp.issubdtype(x.dtype, jnp.floating)]
    run = moduli.grad(loss, argnums=(0, *floats), has_aux=True)
    grads, y = (moduli.jit(run) if jitted else run)(model, *args)
    return [y, grads, moduli.state(model)]


def check(row: Row, *, jitted: bool, inside: bool) -> None:
    """Compares the row on the mesh with the row without it."""
    arrays = batch_of(row)
    plain = [jnp.asarray(x) for x in arrays]
    expected = trained(row, row.model(), plain, jitted=True)
    made = row.model()
    with jax.set_mesh(MESH):
        model = row.model() if inside else made
        got = trained(row, model, spread(row, arrays), jitted=jitted)
        layout = jax.typeof(got[0]).sharding.spec
    if row.batched:
        assert layout[0] == "data"
    tolerance = ROUGH.get(row.name, 2e-5)
    for ours, theirs in zip(got, expected, strict=True):
        pairs = [*zip(numbers(ours), numbers(theirs), strict=True)]
        largest = max([1.0, *[float(np.abs(b).max()) for _, b in pairs if b.size]])
        for a, b in pairs:
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=tolerance * largest)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_layer_with_its_batch_spread_over_a_mesh(row: Row) -> None:
    check(row, jitted=True, inside=True)


@pytest.mark.parametrize("row", ROWS_EAGERLY, ids=lambda row: row.name)
def test_eagerly_and_made_outside_of_the_mesh(row: Row) -> None:
    check(row, jitted=EVERY, inside=False)
    if EVERY:
        check(row, jitted=False, inside=True)
