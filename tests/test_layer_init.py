"""Each layer is built abstractly without an allocation; parameters spread as they should."""

import jax
import numpy as np
import pytest
from layer_table import TABLE, Row

import moduli

SPREAD = [row for row in TABLE if row.init]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_eval_shape_builds_without_an_array(row: Row) -> None:
    abstract = moduli.eval_shape(lambda: row.build(moduli.Rngs(0)))
    real = row.build(moduli.Rngs(0))
    shapes = jax.tree.leaves(moduli.to_pure_dict(moduli.state(abstract)))
    arrays = jax.tree.leaves(moduli.to_pure_dict(moduli.state(real)))
    assert [(s.shape, s.dtype) for s in shapes] == [(a.shape, a.dtype) for a in arrays]
    assert all(isinstance(shape, jax.ShapeDtypeStruct) for shape in shapes)
    assert moduli.graphdef(abstract) == moduli.graphdef(real)
    output = moduli.eval_shape(lambda model, *args: model(*args), abstract, *row.arrays())
    assert (output.shape, output.dtype) == (row.shape, np.float32)


@pytest.mark.parametrize("row", SPREAD, ids=lambda row: row.name)
def test_initial_parameters_have_the_expected_spread(row: Row) -> None:
    assert row.init is not None
    build, expected = row.init
    model = build(moduli.Rngs(0))
    params = {
        moduli.errors.format_path(path): node
        for path, node in moduli.iter_graph(model)
        if isinstance(node, moduli.Param)
    }
    assert set(params) == set(expected), "the row says a spread for every parameter"
    for path, spread in expected.items():
        array = np.asarray(params[path].value, np.float64)
        if spread == 0:
            assert np.ptp(array) == 0
            continue
        assert array.size >= 1000, f"{path} is too small for statistics"
        tolerance = 5 / np.sqrt(array.size)  # five standard errors, and more
        assert abs(np.std(array) / spread - 1) < tolerance
        assert abs(np.mean(array)) < tolerance * spread
