"""Each layer computes under JAX's strict modes what it computes without them.

The modes that only refuse (no promotion of ranks or dtypes, no tracer that leaks) do so while a
function is traced, so every row is traced under all of them, forward and backward. Values are
computed, with a look for NaN, for one row of each structure. 64 bits have a call of their own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_table import STRUCTURES, TABLE, Row

import moduli


@contextlib.contextmanager
def strict() -> Iterator[None]:
    """All modes of JAX that refuse what is let pass otherwise."""
    with (
        jax.numpy_rank_promotion("raise"),
        jax.numpy_dtype_promotion("strict"),
        jax.debug_nans(True),
        jax.checking_leaks(),
    ):
        yield


def step(model: Any, *inputs: Any) -> Any:
    """One forward and backward pass: outputs and gradients."""

    def loss(model: Any, *inputs: Any) -> Any:
        outputs = model(*inputs)
        return (outputs**2).sum(), outputs

    if not jax.tree.leaves(moduli.state(model, moduli.Param)):
        return model(*inputs), None
    (_, outputs), gradients = moduli.value_and_grad(loss, has_aux=True)(model, *inputs)
    return outputs, moduli.to_pure_dict(gradients)


def run(row: Row) -> tuple[Any, list[np.ndarray]]:
    """Returns what a compiled step returns, and what it leaves in the layer."""
    model = row.model()
    result = moduli.jit(step)(model, *row.arrays())
    return result, numbers(model)


def numbers(model: Any) -> list[np.ndarray]:
    """Returns a model's state as arrays, keys as their bits."""
    return [
        np.asarray(jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a)
        for a in jax.tree.leaves(moduli.to_pure_dict(moduli.state(model)))
    ]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_strict_modes_refuse_nothing(row: Row) -> None:
    model, inputs = row.model(), row.arrays()
    expected = jax.eval_shape(lambda: step(moduli.clone(model), *inputs))
    with strict():
        got = jax.eval_shape(lambda: step(moduli.clone(model), *inputs))
    assert jax.tree.map(signature, got) == jax.tree.map(signature, expected)


def signature(leaf: Any) -> tuple[Any, Any, bool]:
    """Returns shape, dtype and whether the dtype is weak."""
    return leaf.shape, leaf.dtype, leaf.weak_type


@pytest.mark.parametrize("row", STRUCTURES, ids=lambda row: row.name)
def test_strict_modes_change_no_number(row: Row) -> None:
    expected = run(row)
    with strict():
        got = run(row)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def smallest_floats(tree: Any) -> set[str]:
    """Returns the names of the floating dtypes in a tree."""
    return {a.dtype.name for a in jax.tree.leaves(tree) if jnp.issubdtype(a.dtype, jnp.floating)}


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_64_bits_enabled_leave_float32_as_it_is(row: Row) -> None:
    model, inputs = row.model(), row.arrays()
    expected, _ = jax.eval_shape(lambda: step(moduli.clone(model), *inputs))
    with jax.enable_x64(True):
        outputs, gradients = jax.eval_shape(lambda: step(moduli.clone(model), *inputs))
        state = jax.eval_shape(lambda: moduli.to_pure_dict(moduli.state(row.model())))
    assert (outputs.shape, outputs.dtype) == (expected.shape, expected.dtype)
    assert smallest_floats((gradients, state)) <= {"float32"}
