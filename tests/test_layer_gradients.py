"""Each layer's gradients agree with finite differences of its independent reference."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_table import TABLE, Row

import moduli

STEP = 1e-4


SMOOTH = [row for row in TABLE if row.smooth]
CASES = [(row, True) for row in SMOOTH] + [(row, False) for row in SMOOTH if row.reference_eval]


@pytest.mark.parametrize(
    ("row", "training"),
    CASES,
    ids=[f"{row.name}-{'train' if training else 'eval'}" for row, training in CASES],
)
def test_gradients_equal_finite_differences_of_the_reference(row: Row, training: bool) -> None:
    """Checks the derivative along one random direction of all parameters and inputs."""
    model, inputs = row.model(), row.arrays()
    model.train() if training else model.eval()
    reference = row.reference if training else row.reference_eval or row.reference
    rng = np.random.default_rng(5)
    weights = rng.normal(size=row.shape)

    def loss(model: Any, *args: jax.Array) -> jax.Array:
        return jnp.sum(model(*args) * jnp.asarray(weights, jnp.float32))

    floats = [i for i, x in enumerate(inputs) if jnp.issubdtype(x.dtype, jnp.floating)]
    argnums = (0, *(i + 1 for i in floats))
    grads, *input_grads = moduli.grad(loss, argnums=argnums)(row_copy(model), *inputs)
    slope = 0.0
    directions = {}
    variables = dict(moduli.iter_graph(model))
    for path, grad in moduli.to_flat_state(grads):
        array = np.asarray(getattr(grad, "value", grad), np.float64)
        directions[id(variables[path])] = direction = rng.normal(size=array.shape)
        slope += float(np.sum(array * direction))
    input_directions = {i: rng.normal(size=inputs[i].shape) for i in floats}
    for i, grad in zip(floats, input_grads, strict=True):
        slope += float(np.sum(np.asarray(grad, np.float64) * input_directions[i]))

    def reference_loss(step: float) -> float:
        moved = Shifted(model, directions, step)
        args = [
            np.asarray(x, np.float64) + step * input_directions[i] if i in floats else x
            for i, x in enumerate(inputs)
        ]
        return float(np.sum(reference(moved, *args) * weights))

    expected = (reference_loss(STEP) - reference_loss(-STEP)) / (2 * STEP)
    np.testing.assert_allclose(slope, expected, rtol=2e-4, atol=2e-4)


def row_copy(model: Any) -> Any:
    """Returns a copy, so that the reference sees the state before the call."""
    return moduli.clone(model)


class Shifted:
    """Reads like the model, with each parameter moved along its direction, in float64."""

    def __init__(self, node: Any, directions: dict[int, np.ndarray], step: float) -> None:
        self._node, self._directions, self._step = node, directions, step

    def _child(self, child: Any) -> Any:
        if isinstance(child, moduli.Param):
            moved = np.asarray(child.value, np.float64) + self._step * self._directions[id(child)]
            return type("Moved", (), {"value": moved})
        if isinstance(child, (list, moduli.Module)):
            return Shifted(child, self._directions, self._step)
        return child

    def __getattr__(self, name: str) -> Any:
        return self._child(getattr(self._node, name))

    def __getitem__(self, index: int) -> Any:
        return self._child(self._node[index])
