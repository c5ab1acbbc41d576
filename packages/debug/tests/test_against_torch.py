"""Captured values and gradients against those of PyTorch's hooks, on equal weights."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import moduli as nnx

torch = pytest.importorskip("torch")


class Net(nnx.Module):
    """A convolution, a normalisation, and two layers, one of them called twice."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.hidden = nnx.Linear(4, 4, rngs=rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = nnx.relu(self.norm(self.conv(x))).mean(axis=(1, 2))
        return self.head(jnp.tanh(self.hidden(jnp.tanh(self.hidden(x)))))


def in_torch(model: Net) -> Any:
    """The same model in PyTorch."""

    class Theirs(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3, padding="same")
            self.norm = torch.nn.BatchNorm2d(4)
            self.hidden = torch.nn.Linear(4, 4)
            self.head = torch.nn.Linear(4, 2)

        def forward(self, x: Any) -> Any:
            x = torch.relu(self.norm(self.conv(x))).mean(dim=(2, 3))
            return self.head(torch.tanh(self.hidden(torch.tanh(self.hidden(x)))))

    def tensor(variable: Any, *axes: int) -> Any:
        value = np.asarray(variable.value)
        return torch.nn.Parameter(torch.tensor(value.transpose(axes) if axes else value))

    theirs = Theirs()
    theirs.conv.weight, theirs.conv.bias = (
        tensor(model.conv.kernel, 3, 2, 0, 1),
        tensor(model.conv.bias),
    )
    for name in ("hidden", "head"):
        ours, layer = getattr(model, name), getattr(theirs, name)
        layer.weight, layer.bias = tensor(ours.kernel, 1, 0), tensor(ours.bias)
    return theirs


@pytest.mark.parametrize("wrap", [lambda f: f, nnx.jit], ids=["eager", "jit"])
def test_activations_and_gradients_are_those_of_torch_hooks(wrap: Any) -> None:
    model = Net(nnx.Rngs(0))
    theirs = in_torch(model)
    x = np.random.default_rng(0).normal(size=(6, 5, 5, 3)).astype(np.float32)
    seen: dict[str, list[Any]] = {}
    grads: dict[str, list[Any]] = {}
    for name in ("conv", "norm", "hidden", "head"):
        layer = getattr(theirs, name)

        def forward(_: Any, __: Any, output: Any, name: str = name) -> None:
            seen.setdefault(name, []).append(output.detach().numpy())

        def backward(_: Any, __: Any, gradient: Any, name: str = name) -> None:
            grads.setdefault(name, []).insert(0, gradient[0].numpy())  # last call first

        layer.register_forward_hook(forward)
        layer.register_full_backward_hook(backward)
    images = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    loss = (theirs(images) ** 2).sum()
    loss.backward()

    run = wrap(nnx.capture_grads(lambda model, x: (model(x) ** 2).sum(), "*"))
    value, ours, our_grads = run(model, jnp.asarray(x))
    np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
    assert set(ours) == set(seen)
    for name in seen:
        for mine, other in ((ours, seen), (our_grads, grads)):
            values = mine[name].outputs.value
            assert len(values) == len(other[name]) == (2 if name == "hidden" else 1)
            for one, two in zip(values, other[name], strict=True):
                two = two.transpose(0, 2, 3, 1) if two.ndim == 4 else two
                np.testing.assert_allclose(one, two, rtol=2e-4, atol=2e-5)
