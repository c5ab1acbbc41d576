"""Each layer with a ``torch_counterpart`` computes what PyTorch does with the same parameters."""

import jax
import numpy as np
import pytest
from layer_rows.by_torch import by_torch, run_torch, torch_module
from layer_table import TABLE, Row

import moduli


def counterparts() -> list[Row]:
    """Returns the rows whose layer has a counterpart."""
    pytest.importorskip("torch")
    rngs = moduli.Rngs(0)
    rows = [row for row in TABLE if row.torch]
    return [row for row in rows if getattr(row.build(rngs), "torch_counterpart", None)]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("row", counterparts(), ids=lambda row: row.name)
def test_output_equals_pytorchs(row: Row, training: bool) -> None:
    model, inputs = row.model(), row.arrays()
    model.train() if training else model.eval()
    expected = by_torch(model, *inputs)
    np.testing.assert_allclose(model(*inputs), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("row", counterparts(), ids=lambda row: row.name)
def test_pytorchs_own_parameters_come_over_and_go_back(row: Row) -> None:
    torch = pytest.importorskip("torch")
    model, inputs = row.model(), row.arrays()
    model.eval()
    theirs = torch_module(model, *inputs)
    rng = np.random.default_rng(3)
    described = model.torch_counterpart.tensors
    with torch.no_grad():
        for name, tensor in theirs.state_dict().items():
            if tensor.is_floating_point():
                array = rng.uniform(0.1, 1.0, tuple(tensor.shape)).astype(np.float32)
                if described[name].absent is not None:
                    described[name].absent(array)[...] = 0  # what our layer has no parameter for
                tensor.copy_(torch.tensor(array))
    tensors = theirs.state_dict()  # float64, and parameters are float32
    floating = {name for name, tensor in tensors.items() if tensor.is_floating_point()}
    arrays = {k: (v.float() if k in floating else v).numpy() for k, v in tensors.items()}
    model.torch_counterpart.to_ours(model, arrays)
    expected = run_torch(theirs, model, *inputs)
    np.testing.assert_allclose(model(*inputs), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(by_torch(model, *inputs), expected, rtol=1e-5, atol=1e-5)


def test_counterparts_take_every_tensor_or_none() -> None:
    row = next(row for row in TABLE if row.name == "linear")
    model = row.model()
    before = jax.tree.map(np.asarray, moduli.to_pure_dict(moduli.state(model)))
    with pytest.raises(moduli.errors.StructureError, match="has no tensor 'bias' for Linear"):
        model.torch_counterpart.to_ours(model, {"weight": np.ones((4, 3))})
    with pytest.raises(moduli.errors.ShapeError, match=r"\(3, 4\), expected \(4, 3\)"):
        model.torch_counterpart.to_ours(model, {"weight": np.ones((3, 4)), "bias": np.ones(4)})
    after = moduli.to_pure_dict(moduli.state(model))
    jax.tree.map(np.testing.assert_array_equal, before, after)
