"""LoRA around maps of several axes: the matrix that they are is adapted, or the shapes are told."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli
import moduli_layers as layers
from moduli.errors import ShapeError


def filled(adapter: layers.LoRA) -> np.ndarray:
    """Gives both matrices values, and returns their product."""
    adapter.lora_b.value = jax.random.normal(jax.random.key(1), adapter.lora_b.shape)
    return np.asarray(adapter.lora_a.value @ adapter.lora_b.value, np.float64)


@pytest.mark.parametrize(
    ("sizes", "outs", "axis", "shape", "equation"),
    [
        (6, (2, 3), -1, (2, 5, 6), "bti,ihd->bthd"),
        ((2, 3), 6, (-2, -1), (2, 5, 2, 3), "bthd,hdo->bto"),
        ((3, 2), (2, 3), (2, 0), (2, 5, 3), "abc,cahd->bhd"),
    ],
)
def test_a_general_map_is_adapted_as_its_matrix(
    sizes: Any, outs: Any, axis: Any, shape: tuple[int, ...], equation: str
) -> None:
    base = layers.LinearGeneral(sizes, outs, axis=axis, rngs=moduli.Rngs(0))
    adapter = layers.LoRA(6, 2, 6, base_module=base, rngs=moduli.Rngs(0))
    x = jax.random.normal(jax.random.key(0), shape)
    np.testing.assert_allclose(adapter(x), base(x), atol=1e-6)
    kernel = np.asarray(base.kernel.value, np.float64)
    kernel = kernel + filled(adapter).reshape(kernel.shape)
    np.testing.assert_allclose(adapter(x), np.einsum(equation, x, kernel), atol=1e-4)


def test_projections_of_attention_are_adapted_in_their_places() -> None:
    attention = layers.MultiHeadAttention(2, 4, decode=False, rngs=moduli.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 5, 4))
    before = attention(x)
    merged = moduli.clone(attention)
    for name in ("query", "key", "value", "out"):
        base = getattr(attention, name)
        adapter = layers.LoRA(4, 2, 4, base_module=base, rngs=moduli.Rngs(1))
        setattr(attention, name, adapter)
        if name == "out":
            np.testing.assert_allclose(attention(x), before, atol=1e-6)
    for name in ("query", "key", "value", "out"):
        kernel = getattr(merged, name).kernel
        change = filled(getattr(attention, name))
        kernel.value = kernel.value + jnp.asarray(change, jnp.float32).reshape(kernel.shape)
    np.testing.assert_allclose(attention(x), merged(x), atol=1e-4)
    assert not np.allclose(attention(x), before, atol=1e-3)


@pytest.mark.parametrize(
    ("base", "shape"),
    [
        (lambda r: layers.LinearGeneral(4, (2, 3), rngs=r), (2, 5, 4)),
        (lambda r: layers.Einsum("bti,iho->btho", (4, 2, 2), rngs=r), (2, 5, 4)),
        (lambda r: layers.Conv(4, 4, (3,), padding="VALID", rngs=r), (2, 5, 4)),
        (lambda r: layers.Linear(4, 1, rngs=r), (2, 4)),  # would broadcast
    ],
)
def test_a_module_of_other_shapes_is_refused_with_the_shapes(base: Any, shape: Any) -> None:
    adapter = layers.LoRA(4, 2, 4, base_module=base(moduli.Rngs(0)), rngs=moduli.Rngs(0))
    with pytest.raises(ShapeError, match=r"LoRA\(in_features=4, out_features=4\) adds .* returned"):
        adapter(jnp.ones(shape))
