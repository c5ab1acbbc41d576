"""Every layer says what its tensors are called elsewhere, and how they are laid out."""

import jax
import numpy as np
import pytest
from layer_table import STRUCTURES, TABLE, Row

import moduli
from moduli_interop import NameMap, load_weights, read_tensors, save_weights
from moduli_interop._weights.targets import Plain, targets

WITH_WEIGHTS = [
    row
    for row in TABLE
    if moduli.to_flat_state(
        moduli.state(
            moduli.eval_shape(lambda row=row: row.build(moduli.Rngs(0))),
            (moduli.Param, moduli.BatchStat),
        )
    )
]


def weights(model):
    """Returns the Params and BatchStats by their paths."""
    return dict(moduli.to_flat_state(moduli.state(model, (moduli.Param, moduli.BatchStat))))


@pytest.mark.parametrize("row", WITH_WEIGHTS, ids=lambda row: row.name)
def test_each_weight_is_in_exactly_one_declared_tensor(row: Row) -> None:
    model = moduli.eval_shape(lambda: row.build(moduli.Rngs(0)))
    listed, _ = targets(model, NameMap())
    holding: dict[int, list[str]] = {}
    for target in listed:
        assert not isinstance(target.tensor, Plain), f"{target.ours} is declared by no layer"
        target.tensor.shape(target.shapes())  # the layout fits
        for place, path in zip(target.places, target.tensor.paths, strict=True):
            if path not in target.tensor.zero:  # a second bias, of zeros
                holding.setdefault(id(place.value), []).append(target.names[0])
    shared = {id(v) for _, *others in moduli.find_duplicates(model) for v in [others] if others}
    for path, variable in weights(model).items():
        names = holding.get(id(variable), [])
        assert len(names) == 1 or (names and shared), (path, names)


@pytest.mark.parametrize(
    "row", [row for row in STRUCTURES if row in WITH_WEIGHTS], ids=lambda row: row.name
)
def test_what_was_saved_is_loaded_bit_for_bit(row: Row, tmp_path) -> None:
    model = row.model()
    path = tmp_path / "weights.safetensors"
    save_weights(path, model)
    other = row.model(seed=7)
    report = load_weights(path, other)
    assert not report.missing
    assert len(report.loaded) == len(read_tensors(path))
    expected = weights(model)
    for where, variable in weights(other).items():
        np.testing.assert_array_equal(variable.value, expected[where].value)
    abstract = moduli.eval_shape(lambda: row.build(moduli.Rngs(0)))
    load_weights(path, abstract)
    for where, variable in weights(abstract).items():
        assert isinstance(variable.value, jax.Array)
        np.testing.assert_array_equal(variable.value, expected[where].value)
