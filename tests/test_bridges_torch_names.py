"""What ``from_torch`` makes is filled from files of the module it was made of, and saved so."""

from __future__ import annotations

import numpy as np
import pytest

import moduli as nnx
from moduli_interop import BridgeError, load_weights, read_tensors, save_weights

torch = pytest.importorskip("torch")
nn = torch.nn
norm = nn.utils.parametrizations.weight_norm

MODULES = {  # a module, and the shape of its inputs
    "conv": (lambda: nn.Conv2d(4, 6, 3, 2, padding=1, groups=2), (2, 4, 7, 7)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 4, 3, 2, 1, 1), (2, 4, 5, 5)),
    "transposed in groups": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2), (2, 4, 5, 5)),
    "square in groups": (lambda: nn.ConvTranspose1d(4, 4, 3, 2, groups=2), (2, 4, 5)),
    "square without strides": (lambda: nn.ConvTranspose1d(4, 4, 3, groups=2), (2, 4, 5)),
    "batch norm": (lambda: nn.BatchNorm2d(4), (2, 4, 5, 5)),
    "instance norm": (lambda: nn.InstanceNorm1d(4, affine=True), (2, 4, 5)),
    "norm of two axes": (lambda: nn.LayerNorm((5, 4)), (2, 5, 4)),
    "norm of three axes": (lambda: nn.RMSNorm((2, 5, 4)), (2, 2, 5, 4)),
    "slopes": (lambda: nn.PReLU(4), (2, 4, 5)),
    "padding": (lambda: nn.Embedding(9, 4, padding_idx=0), None),
    "cell": (lambda: nn.LSTMCell(4, 5), (2, 4)),
    "recurrent": (lambda: nn.GRU(4, 5, batch_first=True, bidirectional=True), (2, 6, 4)),
    "recurrent layers": (lambda: nn.LSTM(4, 5, 3, dropout=0.1, bidirectional=True), (6, 2, 4)),
    "weight norm": (lambda: norm(nn.Conv1d(4, 6, 3)), (2, 4, 5)),
    "in a chain": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2)
        ),
        (2, 1, 5, 5),
    ),
}


@pytest.mark.parametrize("name", MODULES)
def test_files_of_a_module_are_files_of_what_is_made_of_it(name, tmp_path) -> None:
    make, shape = MODULES[name]
    torch.manual_seed(0)
    module = make().eval()
    model = nnx.from_torch(module)
    model.eval()
    with torch.no_grad():  # other numbers, as after training
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.5)
    torch.save(module.state_dict(), tmp_path / "trained.pt")
    report = load_weights(tmp_path / "trained.pt", model)
    assert (report.missing, report.unexpected) == ((), ())
    rng = np.random.default_rng(0)
    inputs = np.arange(6).reshape(2, 3) if shape is None else rng.normal(size=shape)
    inputs = inputs.astype(np.int32 if shape is None else np.float32)
    ours, theirs = model(inputs), module(torch.tensor(inputs))
    for one, other in zip(_first(ours), _first(theirs), strict=True):
        np.testing.assert_allclose(one, other.detach(), atol=1e-5, rtol=1e-5)

    save_weights(tmp_path / "ours.safetensors", model)
    written = read_tensors(tmp_path / "ours.safetensors")
    expected = {n: t for n, t in module.state_dict().items() if not n.endswith("batches_tracked")}
    assert set(written) == set(expected)
    for key, tensor in expected.items():
        summed = "LSTM" in str(module) and "bias" in key  # of two biases ours keeps the sum
        if not summed:
            np.testing.assert_array_equal(written[key].read(), tensor)
    others = {n: torch.tensor(t.read()) for n, t in written.items()}
    module.load_state_dict(others)
    for one, other in zip(_first(ours), _first(module(torch.tensor(inputs))), strict=True):
        np.testing.assert_allclose(one, other.detach(), atol=1e-5, rtol=1e-5)


def _first(outputs):
    return [outputs[0]] if isinstance(outputs, tuple) else [outputs]


def test_files_with_the_names_of_the_wrappers_are_read() -> None:
    model = nnx.from_torch(nn.Sequential(nn.Conv1d(2, 3, 1), nn.LSTMCell(3, 3)))
    shapes = {"0.layer.weight": (3, 2, 1), "0.layer.bias": (3,)}
    shapes |= {f"1.cell.weight_{end}": (12, 3) for end in ("ih", "hh")}
    shapes |= {f"1.cell.bias_{end}": (12,) for end in ("ih", "hh")}
    report = load_weights({n: np.ones(s, np.float32) for n, s in shapes.items()}, model)
    assert len(report.loaded) == len(shapes)


def test_a_weight_norm_around_groups_is_refused() -> None:
    with pytest.raises(BridgeError, match="a transposed convolution in groups"):
        nnx.from_torch(norm(nn.ConvTranspose1d(4, 6, 3, groups=2)))
