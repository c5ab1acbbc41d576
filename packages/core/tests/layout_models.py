"""A model, an optimizer and layouts for the tests of layouts: four devices, two axes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from core_models import Linear
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import moduli as nnx

KINDS = {"auto": (AxisType.Auto,) * 2, "explicit": (AxisType.Explicit,) * 2}
MESHES = {kind: jax.make_mesh((2, 2), ("data", "model"), axis_types=KINDS[kind]) for kind in KINDS}
MESH = MESHES["auto"]


class MLP(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, size: int = 8):
        self.layers = [Linear(size, 2 * size, rngs=rngs), Linear(2 * size, size, rngs=rngs)]
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))
        self.table = nnx.data(jnp.arange(4.0))
        self.rngs = rngs.fork()

    def __call__(self, x: jax.Array) -> jax.Array:
        self.calls.value += 1
        return self.layers[1](jnp.tanh(self.layers[0](x)))


class Trace(nnx.Variable):
    """What an optimizer keeps of a parameter."""


class Momentum(nnx.Pytree):
    """Keeps the running gradient, and of each kernel the means of its rows and columns."""

    def __init__(self, model: nnx.Module):
        params = nnx.to_flat_state(nnx.state(model, nnx.Param))
        values = {path: leaf.value for path, leaf in params}
        kernels = {path: value for path, value in values.items() if value.ndim == 2}
        self.trace = self._state({p: jnp.zeros_like(v) for p, v in values.items()})
        self.rows = self._state({p: v.mean(1) for p, v in kernels.items()})
        self.columns = self._state({p: v.mean(0) for p, v in kernels.items()})
        self.last = self._state({p: jnp.zeros((3, *v.shape)) for p, v in values.items()})

    @staticmethod
    def _state(values: dict[Any, Any]) -> Any:
        return nnx.data(nnx.from_flat_state({path: Trace(v) for path, v in values.items()}))

    def update(self, model: nnx.Module, grads: nnx.State) -> None:
        traces = nnx.to_flat_state(self.trace)
        params = nnx.to_flat_state(nnx.state(model, nnx.Param))
        for path, grad in nnx.to_flat_state(grads):
            traces[path].value = 0.9 * traces[path] + grad.value
            params[path].value = params[path] - 0.1 * traces[path]


def pair(size: int = 8) -> tuple[MLP, Momentum]:
    model = MLP(nnx.Rngs(0), size)
    return model, Momentum(model)


def specs(node: Any) -> dict[str, tuple[Any, ...]]:
    """The spec of each array, without None at its end, by path."""
    found = {}
    for row in nnx.show_layout(node).rows:
        spec = tuple(row.spec)
        while spec and spec[-1] is None:
            spec = spec[:-1]
        found[row.path] = spec
    return found


def loss(model: MLP, x: jax.Array) -> jax.Array:
    return (model(x) ** 2).mean()


def step(model: MLP, momentum: Momentum, x: jax.Array) -> jax.Array:
    value, grads = nnx.value_and_grad(loss)(model, x)
    momentum.update(model, grads)
    return value


TENSOR_PARALLEL = [
    ("layers/0/kernel", P(None, "model")),
    ("layers/0/bias", P("model")),
    ("layers/1/kernel", P("model")),
]
