"""from_equinox and to_equinox: values and gradients are equinox's own."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bridge_checks import float64, same

import moduli

equinox = pytest.importorskip("equinox")
nn = equinox.nn
KEY = jax.random.key(0)

LAYERS: dict[str, tuple[Any, Any]] = {
    "linear": (lambda: nn.Linear(3, 4, key=KEY), (3,)),
    "linear-no-bias": (lambda: nn.Linear(3, 4, use_bias=False, key=KEY), (3,)),
    "embedding": (lambda: nn.Embedding(5, 3, key=KEY), 4),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3, stride=2, padding=1, key=KEY), (3, 7)),
    "conv2d": (lambda: nn.Conv2d(4, 4, (3, 2), dilation=2, groups=2, key=KEY), (4, 8, 9)),
    "conv2d-same": (lambda: nn.Conv2d(2, 3, 3, padding="SAME", key=KEY), (2, 5, 6)),
    "conv2d-circular": (
        lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="CIRCULAR", key=KEY),
        (2, 5, 6),
    ),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2, key=KEY), (2, 3, 4, 5)),
    "layer_norm": (lambda: nn.LayerNorm(4), (4,)),
    "layer_norm-plain": (lambda: nn.LayerNorm(4, use_weight=False, use_bias=False), (4,)),
    "rms_norm": (lambda: nn.RMSNorm(4, use_bias=False), (4,)),
    "prelu": (lambda: nn.PReLU(0.3), (3, 2)),
    "dropout": (lambda: nn.Dropout(0.5, inference=True), (3,)),
    "mlp": (lambda: nn.MLP(3, 2, 5, 2, activation=jax.nn.tanh, key=KEY), (3,)),
    "network": (
        lambda: nn.Sequential(
            [
                nn.Conv2d(1, 2, 3, key=KEY),
                nn.Lambda(jax.nn.relu),
                nn.Lambda(jnp.ravel),
                nn.Linear(24, 5, key=KEY),
                nn.Identity(),
            ]
        ),
        (1, 5, 6),
    ),
}


@pytest.mark.parametrize("make,shape", LAYERS.values(), ids=LAYERS)
def test_a_layer_comes_over_and_goes_back(make: Any, shape: Any) -> None:
    with float64():
        theirs = jax.tree.map(lambda x: x + 0.1 if equinox.is_inexact_array(x) else x, make())
        x = jnp.asarray(shape) if isinstance(shape, int) else jax.random.normal(KEY, shape)
        ours = moduli.from_equinox(theirs)

        def loss(model: Any) -> Any:
            return (model(x) ** 2).sum()

        same(ours(x), theirs(x))
        grads = equinox.filter_grad(loss)(theirs)
        mine = moduli.grad(loss)(ours)
        norms = [sum(float((g**2).sum()) for g in jax.tree.leaves(tree)) for tree in (mine, grads)]
        np.testing.assert_allclose(*norms, rtol=1e-6)
        again = moduli.to_equinox(ours)
        same(again(x), theirs(x))
        if not isinstance(theirs, nn.MLP):
            same(jax.tree.leaves(equinox.filter(again, equinox.is_array)),
                 jax.tree.leaves(equinox.filter(theirs, equinox.is_array)))  # fmt: skip


class Net(equinox.Module):
    linear: Any
    steps: jax.Array
    name: str

    def __call__(self, x: Any) -> Any:
        return jnp.tanh(self.linear(x)) * self.steps


def test_a_class_of_the_users_is_called_with_our_variables() -> None:
    theirs = Net(nn.Linear(3, 4, key=KEY), jnp.array(2), "net")
    model: Any = moduli.from_equinox({"net": [theirs]})["net"][0]
    assert type(model.arrays[".steps"]) is moduli.Variable
    x = jnp.ones(3)
    same(moduli.jit(lambda model, x: model(x))(model, x), theirs(x), 1e-6)
    grads = moduli.grad(lambda model: model(x).sum())(model)
    expected = equinox.filter_grad(lambda model: model(x).sum())(theirs)
    same(grads.arrays[".linear.weight"].value, expected.linear.weight, 1e-6)
    back = moduli.to_equinox(model)
    assert isinstance(back, Net) and back.name == "net"


REFUSED = {
    "GroupNorm.*has no layer of moduli": lambda: nn.GroupNorm(2, 4),
    "LayerNorm, with shape": lambda: nn.LayerNorm((2, 3)),
    "Conv1d, with padding_mode='REPLICATE'": lambda: nn.Conv1d(
        1, 1, 3, padding=1, padding_mode="REPLICATE", key=KEY
    ),
    'Linear, with the size "scalar"': lambda: nn.Linear("scalar", 2, key=KEY),
}


@pytest.mark.parametrize("match", REFUSED)
def test_what_has_no_counterpart_is_refused_with_its_place(match: str) -> None:
    with pytest.raises(moduli.BridgeError, match=rf"at `layers\[1\]` of the model.*{match}"):
        moduli.from_equinox(nn.Sequential([nn.Identity(), REFUSED[match]()]))


def test_ours_that_equinox_lacks_and_what_is_shared_are_refused() -> None:
    rngs = moduli.Rngs(0)
    linear = moduli.Linear(3, 3, rngs=rngs)
    with pytest.raises(moduli.BridgeError, match=r"layers\[1\].*also stands at `layers\[0\]`"):
        moduli.to_equinox(moduli.Sequential(linear, linear))
    with pytest.raises(moduli.BridgeError, match=r"BatchNorm.*no layer of equinox.*are pytrees"):
        moduli.to_equinox(moduli.BatchNorm(3, rngs=rngs))


def test_a_dtype_of_its_own_is_not_left_out() -> None:
    layer = moduli.Linear(3, 4, dtype=jnp.bfloat16, rngs=moduli.Rngs(0))
    with pytest.raises(moduli.BridgeError, match=r"computes in bfloat16 and keeps .* in float32"):
        moduli.to_equinox(layer)
