"""Structures of layers survive ``copy.deepcopy`` and ``pickle``; the copy shares nothing."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from layer_table import STRUCTURES, Row

import moduli


def pickled(model: Any) -> Any:
    """Returns a copy by way of bytes."""
    return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("row", STRUCTURES, ids=lambda row: row.name)
def test_copy_computes_the_same_and_shares_nothing(row: Row, copied: Callable[[Any], Any]) -> None:
    model, inputs = row.model(), row.arrays()
    twin = copied(model)
    assert type(twin) is type(model)
    assert moduli.graphdef(twin) == moduli.graphdef(model)  # else each copy compiles anew
    expected = model(*inputs)  # may change the model's statistics and streams, not the twin's
    np.testing.assert_array_equal(twin(*inputs), expected)

    before = {path: np.asarray(v.value) for path, v in params(model)}
    for _, variable in params(twin):
        variable.value = variable.value + 1
    for path, variable in params(model):
        np.testing.assert_array_equal(variable.value, before[path])


def params(model: Any) -> list[tuple[Any, moduli.Param]]:
    """Returns a model's parameters with their paths."""
    return [(path, v) for path, v in moduli.iter_graph(model) if isinstance(v, moduli.Param)]
