"""The table of docs/bridges.md is what the bridges do: a layer converts, or is refused."""

from __future__ import annotations

import pathlib
import warnings
from collections.abc import Callable
from typing import Any

import jax
import pytest
from layer_table import STRUCTURES

import moduli

for _package in ("torch", "equinox", "flax", "haiku"):
    pytest.importorskip(_package)

WAYS: dict[str, tuple[Callable[..., Any], Callable[[Any], Any]]] = {  # of a model and its inputs
    "flax.nnx": (lambda model, *_: moduli.to_flax(model), moduli.from_flax),
    "flax.linen": (
        lambda model, *_: moduli.bridge.as_linen(model),
        lambda made: moduli.bridge.from_linen(*made),
    ),
    "equinox": (lambda model, *_: moduli.to_equinox(model), moduli.from_equinox),
    "haiku": (
        moduli.bridge.as_haiku_layers,
        lambda made: moduli.bridge.from_haiku_layers(*made),
    ),
    "torch": (lambda model, *_: moduli.to_torch(model), moduli.from_torch),
}
DOCS = pathlib.Path(__file__).parents[1] / "docs" / "bridges.md"


def converts(model: Any, way: str, inputs: tuple[Any, ...]) -> bool:
    """Returns whether a layer goes there and back; every other error than a BridgeError is one."""
    there, back = WAYS[way]
    try:
        back(there(model, *inputs))
    except moduli.BridgeError:
        return False
    return True


def stated() -> dict[str, list[str]]:
    """Returns the cells of the table in the docs, by the layer's name."""
    rows = [line for line in DOCS.read_text().splitlines() if line.startswith("| `")]
    cells = ([cell.strip(" `") for cell in row.strip("|").split("|")] for row in rows)
    return {name: row for name, *row in cells}


def test_the_table_is_what_the_bridges_do() -> None:
    table, wrong = stated(), []
    for row in STRUCTURES:  # all rows in `nox -s long`
        model = row.model()
        kind = type(model)
        if kind.__module__.partition(".")[0] not in ("moduli", "moduli_layers"):
            continue  # a class of the tests around a function or a cell
        for way, cell in zip(WAYS, table[kind.__name__], strict=True):
            with warnings.catch_warnings(), jax.numpy_dtype_promotion("standard"):
                warnings.simplefilter("ignore", UserWarning)
                does = converts(model, way, row.arrays())
            if cell != "some settings" and does != (cell == "yes"):
                wrong.append(f"{row.name}: {way} {'converts' if does else 'refuses'} it")
    assert not wrong, "docs/bridges.md says otherwise:\n" + "\n".join(wrong)
