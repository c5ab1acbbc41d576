"""Structures of layers come back from a file as they were, in the middle of their training."""

from pathlib import Path

import numpy as np
import pytest
from layer_table import STRUCTURES, Row

import moduli
from moduli_interop import load, save


@pytest.mark.parametrize("row", STRUCTURES, ids=lambda row: row.name)
def test_a_fresh_layer_filled_from_a_file_goes_on_as_the_saved_one(
    row: Row, tmp_path: Path
) -> None:
    model, inputs = row.model(0), row.arrays()
    model(*inputs)  # moves statistics and streams
    save(tmp_path / "layer.npz", model)
    fresh = load(tmp_path / "layer.npz", row.model(1))
    assert moduli.graphdef(fresh) == moduli.graphdef(model)
    np.testing.assert_array_equal(fresh(*inputs), model(*inputs))
    fresh.eval()
    model.eval()
    np.testing.assert_array_equal(fresh(*inputs), model(*inputs))
