"""Each layer computes what its definition says, training and evaluating."""

import jax
import numpy as np
import pytest
from layer_table import TABLE, Row


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_training_forward_equals_the_reference(row: Row) -> None:
    model, inputs = row.model(), row.arrays()
    expected = row.reference(model, *inputs)
    outputs = model(*inputs)
    assert isinstance(outputs, jax.Array)
    assert outputs.dtype == np.float32
    assert outputs.shape == row.shape
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_evaluating_forward_equals_the_reference_and_changes_nothing(row: Row) -> None:
    model, inputs = row.model(), row.arrays()
    model.eval()
    expected = (row.reference_eval or row.reference)(model, *inputs)
    first, second = model(*inputs), model(*inputs)
    assert first.shape == row.shape
    np.testing.assert_allclose(first, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(first, second)
