"""What the tests of bridges share: a row's model in float64, and gradients of both frameworks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from layer_table import Row

import moduli


@contextlib.contextmanager
def float64() -> Iterator[None]:
    """Computes in float64, with implicit promotion as other frameworks need it."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield


def wide(row: Row) -> tuple[Any, tuple[Any, ...]]:
    """Returns a row's model in evaluation, and its inputs, in float64."""
    model = row.model()
    for _, node in moduli.iter_graph(model):
        if isinstance(node, moduli.Variable):
            node.value = jax.tree.map(widened, node.get_raw_value())
            continue
        if getattr(node, "dtype", None) is jnp.float32:
            node.dtype = None  # of SimpleCell, whose default it is to compute in float32
        if hasattr(node, "param_dtype"):
            node.param_dtype = jnp.float64  # flax's layers also compute in it
    model.eval()
    return model, tuple(map(widened, row.arrays()))


def widened(array: Any) -> Any:
    """Returns floats in float64, and other arrays as they are."""
    if not hasattr(array, "dtype") or not jnp.issubdtype(array.dtype, jnp.floating):
        return array
    return jnp.asarray(np.asarray(array), jnp.float64)


def floats(inputs: tuple[Any, ...]) -> list[int]:
    """Returns which inputs can be differentiated."""
    return [n for n, x in enumerate(inputs) if jnp.issubdtype(x.dtype, jnp.floating)]


def weight(output: Any) -> np.ndarray:
    """Returns weights that make a scalar of an output in which every entry counts."""
    return np.cos(np.arange(np.size(output))).reshape(np.shape(output))


def gradients(model: Any, inputs: tuple[Any, ...]) -> tuple[dict[str, Any], list[Any]]:
    """Returns the gradients of a model of ours: of its Params by path, and of its float inputs."""
    at = floats(inputs)

    def loss(model: Any, given: list[Any]) -> Any:
        whole = list(inputs)
        for n, x in zip(at, given, strict=True):
            whole[n] = x
        out = model(*whole)
        return (out * weight(out)).sum()

    of_model, of_inputs = moduli.grad(loss, argnums=(0, 1))(model, [inputs[n] for n in at])
    flat = {
        moduli.errors.format_path(path): leaf.get_raw_value()
        for path, leaf in moduli.to_flat_state(of_model)
    }
    return flat, of_inputs


def same(actual: Any, expected: Any, tolerance: float = 1e-9) -> None:
    """Compares trees of arrays."""
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=tolerance, atol=tolerance
        ),
        actual,
        expected,
    )
