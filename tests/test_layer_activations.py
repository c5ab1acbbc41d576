"""The table of layers has every activation, each under its own name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
