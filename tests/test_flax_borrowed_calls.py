"""A layer's ``__call__`` on an object that has the layer's attributes and is no layer.

Libraries borrow flax's layers so: a convolution with another kernel is ``nnx.Conv.__call__(other,
x)``. The object has the attributes of flax's layer, and not the methods by which ours is written.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import flax.nnx
import jax
import numpy as np
import pytest

import moduli

X = np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32)

LAYERS: dict[str, Callable[[Any, Any], Any]] = {
    "Linear": lambda nnx, rngs: nnx.Linear(4, 3, rngs=rngs),
    "LinearGeneral": lambda nnx, rngs: nnx.LinearGeneral((5, 4), (2, 3), axis=(-2, -1), rngs=rngs),
    "Conv": lambda nnx, rngs: nnx.Conv(4, 6, 3, rngs=rngs),
    "ConvTranspose": lambda nnx, rngs: nnx.ConvTranspose(4, 6, 3, rngs=rngs),
    "BatchNorm": lambda nnx, rngs: nnx.BatchNorm(4, rngs=rngs),
    "LayerNorm": lambda nnx, rngs: nnx.LayerNorm(4, rngs=rngs),
    "RMSNorm": lambda nnx, rngs: nnx.RMSNorm(4, rngs=rngs),
    "GroupNorm": lambda nnx, rngs: nnx.GroupNorm(4, 2, rngs=rngs),
    "InstanceNorm": lambda nnx, rngs: nnx.InstanceNorm(4, rngs=rngs),
    "Dropout": lambda nnx, rngs: nnx.Dropout(0.5, rngs=rngs),
    "PReLU": lambda nnx, rngs: nnx.PReLU(),
    "MultiHeadAttention": lambda nnx, rngs: nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs),
    "LoRA": lambda nnx, rngs: nnx.LoRA(4, 2, 3, rngs=rngs),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_call_is_as_flaxs(name: str) -> None:
    theirs = LAYERS[name](flax.nnx, flax.nnx.Rngs(0))
    names = [key for key in vars(theirs) if not key.startswith("_pytree")]
    expected = type(theirs).__call__(types.SimpleNamespace(**vars(theirs)), X)
    ours = LAYERS[name](moduli, moduli.Rngs(0))
    lender = types.SimpleNamespace(**{key: getattr(ours, key, None) for key in names})
    np.testing.assert_allclose(type(ours).__call__(lender, X), expected, rtol=1e-5, atol=1e-5)
    # what the call has written is written: statistics, counts of keys
    for wanted, got in zip(states(flax.nnx, theirs), states(moduli, ours), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def states(nnx: Any, layer: Any) -> list[Any]:
    """The numbers of a layer, in an order that both libraries have."""
    flat = nnx.to_flat_state(nnx.state(layer, nnx.Not(nnx.RngKey)))
    return [variable[...] for _, variable in sorted(flat, key=lambda item: item[0])]


def test_another_kernel_under_jit_and_grad() -> None:
    layer = moduli.Conv(4, 6, 3, use_bias=False, rngs=moduli.Rngs(0))

    @jax.jit
    def loss(kernel: Any, x: Any) -> Any:
        other: Any = types.SimpleNamespace(**{**vars(layer), "kernel": kernel})
        return moduli.Conv.__call__(other, x).sum()

    def of_layer(layer: Any, x: Any) -> Any:
        return layer(x).sum()

    got = jax.grad(loss)(layer.kernel[...], X)
    np.testing.assert_allclose(got, moduli.grad(of_layer)(layer, X).kernel[...], rtol=1e-6)


def test_what_the_object_lacks_is_said() -> None:
    other: Any = types.SimpleNamespace(in_features=4)
    with pytest.raises(AttributeError, match="SimpleNamespace' object has no attribute 'kernel'"):
        moduli.Linear.__call__(other, X)


def test_a_users_module_gets_the_object_itself() -> None:
    class Mine(moduli.Module):
        def __call__(self) -> Any:
            return self

    other = types.SimpleNamespace()
    assert Mine.__call__(other) is other  # type: ignore[arg-type]
