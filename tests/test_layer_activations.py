"""The table of layers has every activation, each under its own name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_rows import activations
from layer_table import TABLE, Row

import moduli
import moduli_layers as layers
from moduli_layers import _activations


def functions(module: Any, names: Any) -> dict[str, Callable[..., Any]]:
    """Returns the functions of a module among names, without classes."""
    found = {name: getattr(module, name) for name in names}
    return {name: thing for name, thing in found.items() if name[0].islower() and callable(thing)}


def in_rows() -> set[str]:
    """Returns the names of the functions that have a row."""
    return {row.name.partition("-")[0] for row in activations.ROWS}


def test_every_activation_has_a_row() -> None:
    assert set(functions(_activations, vars(_activations))) == in_rows()
    assert {row.name for row in activations.ROWS} <= {row.name for row in TABLE}


def test_every_activation_of_flax_has_a_row() -> None:
    theirs = pytest.importorskip("flax.nnx.nn.activations")
    assert set(functions(theirs, theirs.__all__)) <= in_rows()


@pytest.mark.parametrize("row", activations.ROWS, ids=lambda row: row.name)
def test_a_row_calls_the_function_that_it_names(row: Row) -> None:
    name = row.name.partition("-")[0]
    assert row.model().function is getattr(layers, name) is getattr(moduli, name)


@pytest.mark.parametrize(
    "row", [row for row in activations.ROWS if row.smooth], ids=lambda row: row.name
)
def test_far_from_zero_and_at_zero_values_are_right_and_gradients_finite(row: Row) -> None:
    (inputs,) = row.arrays()
    inputs = (inputs * 1000).at[0].set(0.0)
    function = row.model()
    rounding = float(np.spacing(jnp.abs(inputs).max()))
    expected = row.reference(function, inputs)
    np.testing.assert_allclose(function(inputs), expected, rtol=1e-5, atol=2 * rounding)
    grads = jax.grad(lambda x: jnp.sum(function(x)))(inputs)
    assert np.isfinite(grads).all()
    assert np.abs(grads).max() < 4  # none of them is steeper than that anywhere
