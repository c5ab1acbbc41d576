"""``train()`` and ``eval()`` reach each layer, in any depth, and can be undone."""

import numpy as np
import pytest
from layer_rows.row import Outer
from layer_table import STRUCTURES, Row


@pytest.mark.parametrize("row", STRUCTURES, ids=lambda row: row.name)
def test_outer_eval_and_train_switch_the_layer(row: Row) -> None:
    inputs = row.arrays()
    layer = row.model()
    outer = Outer(layer)
    in_eval = (row.reference_eval or row.reference)(layer, *inputs)
    in_training = row.reference(layer, *inputs)

    outer.eval()
    np.testing.assert_allclose(layer(*inputs), in_eval, rtol=1e-5, atol=1e-5)
    outer.train()
    np.testing.assert_allclose(layer(*inputs), in_training, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "row", [row for row in STRUCTURES if row.reference_eval], ids=lambda row: row.name
)
def test_the_two_modes_differ(row: Row) -> None:
    inputs = row.arrays()
    model = row.model()
    training = np.asarray(model(*inputs))
    model.eval()
    assert not np.allclose(training, model(*inputs))
