"""Each structure of layers under vmap, scan and remat is the layer called one by one."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_table import STRUCTURES, Row

import moduli

each_row = pytest.mark.parametrize("row", STRUCTURES, ids=lambda row: row.name)
CLOSE = {"rtol": 2e-5, "atol": 2e-5}


def numbers(model: Any) -> list[np.ndarray]:
    """Returns a model's state, or a State, as arrays; keys as their bits."""
    state = model if isinstance(model, moduli.State) else moduli.state(model)
    return [
        np.asarray(jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a)
        for a in jax.tree.leaves(moduli.to_pure_dict(state))
    ]


def stacked(trees: list[Any]) -> Any:
    """Stacks trees of equal structure along a new first axis."""
    return jax.tree.map(lambda *values: jnp.stack(values), *trees)


def call(model: Any, *args: Any) -> Any:
    """Calls the model."""
    return model(*args)


@each_row
def test_vmap_over_models_is_each_model(row: Row) -> None:
    models = [row.model(seed) for seed in range(2)]
    inputs = [row.arrays(seed) for seed in range(2)]
    parts = [moduli.split(model) for model in models]
    both = moduli.merge(parts[0][0], stacked([state for _, state in parts]))
    expected = [model(*args) for model, args in zip(models, inputs, strict=True)]
    outputs = moduli.vmap(call)(both, *stacked(inputs))
    np.testing.assert_allclose(outputs, np.stack(expected), **CLOSE)
    for after, *alone in zip(numbers(both), *map(numbers, models), strict=True):
        np.testing.assert_allclose(after, np.stack(alone), **CLOSE)


@each_row
def test_vmap_over_examples_in_evaluation_is_a_loop(row: Row) -> None:
    model = row.model()
    model.eval()
    inputs = [row.arrays(seed) for seed in range(3)]
    axes = (None, *[0] * len(row.inputs))
    outputs = moduli.vmap(call, in_axes=axes)(model, *stacked(inputs))
    np.testing.assert_allclose(outputs, np.stack([model(*args) for args in inputs]), **CLOSE)


@each_row
def test_scan_is_a_loop(row: Row) -> None:
    looped, scanned = row.model(), row.model()
    inputs = [row.arrays(seed) for seed in range(3)]
    expected = np.stack([looped(*args) for args in inputs])
    axes = (None, *[0] * len(row.inputs))
    outputs = moduli.scan(call, in_axes=axes, out_axes=0)(scanned, *stacked(inputs))
    np.testing.assert_allclose(outputs, expected, **CLOSE)
    for after, alone in zip(numbers(scanned), numbers(looped), strict=True):
        np.testing.assert_allclose(after, alone, **CLOSE)


@each_row
def test_remat_gives_the_same_gradients_and_state(row: Row) -> None:
    plain, remat = row.model(), row.model()
    inputs = row.arrays()
    weights = jnp.asarray(np.random.default_rng(5).normal(size=row.shape), jnp.float32)

    def loss(run: Any) -> Any:
        return lambda model: jnp.sum(run(model, *inputs) * weights)

    expected = moduli.grad(loss(call))(plain)
    grads = moduli.grad(loss(moduli.remat(call)))(remat)
    for ours, theirs in zip(numbers(grads), numbers(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, **CLOSE)
    for ours, theirs in zip(numbers(remat), numbers(plain), strict=True):
        np.testing.assert_allclose(ours, theirs, **CLOSE)
