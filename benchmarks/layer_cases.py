"""One layer at a time, at realistic sizes: how each library builds it, and its maths by hand.

moduli and flax.nnx have the same constructors, so one builder serves both. The maths by hand take
the values of moduli's layer as a dict by path, and return what the layer returns and the state it
wrote.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Values = Mapping[str, jax.Array]
ByHand = Callable[[Values, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
      needs: name of the layer in either library.
      build: makes it, from the library and its Rngs.
      inputs: shape of the inputs.
      by_hand: ``(values, x) -> (output, written values)``.
      call: how the layer is called.
      vocabulary: the inputs are integers below it; None for floats.
    """

    needs: str
    build: Callable[[Any, Any], Any]
    inputs: tuple[int, ...]
    by_hand: ByHand
    call: Callable[[Any, jax.Array], Any] = lambda layer, x: layer(x)
    vocabulary: int | None = None

    def data(self) -> jax.Array:
        """Makes the inputs."""
        rng = np.random.default_rng(0)
        if self.vocabulary is not None:
            return jnp.asarray(rng.integers(0, self.vocabulary, self.inputs), jnp.int32)
        return jnp.asarray(rng.normal(size=self.inputs), jnp.float32)


def _linear(values: Values, x: jax.Array) -> Any:
    return x @ values["kernel"] + values["bias"], {}


def _einsum(values: Values, x: jax.Array) -> Any:
    return jnp.einsum("bti,hid->bthd", x, values["kernel"]) + values["bias"], {}


def _lora_linear(values: Values, x: jax.Array) -> Any:
    adapted = x @ values["lora.lora_a"] @ values["lora.lora_b"]
    return x @ values["kernel"] + values["bias"] + adapted, {}


def _prelu(values: Values, x: jax.Array) -> Any:
    return jnp.where(x >= 0, x, values["negative_slope"] * x), {}


def _linear_general(values: Values, x: jax.Array) -> Any:
    return jnp.einsum("bti,ihd->bthd", x, values["kernel"]) + values["bias"], {}


def _conv(groups: int) -> ByHand:
    def by_hand(values: Values, x: jax.Array) -> Any:
        y = lax.conv_general_dilated(
            x,
            values["kernel"],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )
        return y + values["bias"], {}

    return by_hand


def _conv_transpose(values: Values, x: jax.Array) -> Any:
    y = lax.conv_transpose(
        x, values["kernel"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y + values["bias"], {}


def _embed(values: Values, x: jax.Array) -> Any:
    return jnp.take(values["embedding"], x, axis=0), {}  # NaN where there is no such row


def _moments(x: jax.Array, axes: Any, keepdims: bool = True) -> tuple[jax.Array, jax.Array]:
    mean = jnp.mean(x, axes, keepdims=keepdims)
    squares = jnp.mean(lax.square(x), axes, keepdims=keepdims)
    return mean, jnp.maximum(squares - lax.square(mean), 0)


def _batch_norm(values: Values, x: jax.Array) -> Any:
    mean, var = _moments(x, (0, 1, 2), keepdims=False)
    factor = lax.rsqrt(var + 1e-5) * values["scale"]
    y = (x - mean) * factor + values["bias"]
    new = {
        name: 0.99 * values[name] + 0.01 * lax.stop_gradient(now)
        for name, now in (("mean", mean), ("var", var))
    }
    return y, new


def _layer_norm(values: Values, x: jax.Array) -> Any:
    mean, var = _moments(x, -1)
    return (x - mean) * (lax.rsqrt(var + 1e-6) * values["scale"]) + values["bias"], {}


def _rms_norm(values: Values, x: jax.Array) -> Any:
    squares = jnp.mean(lax.square(x), -1, keepdims=True)
    return x * (lax.rsqrt(squares + 1e-6) * values["scale"]), {}


def _group_norm(values: Values, x: jax.Array) -> Any:
    shape = x.shape
    grouped = x.reshape((*shape[:-1], 8, shape[-1] // 8))
    mean, var = _moments(grouped, (1, 2, 4))
    normal = ((grouped - mean) * lax.rsqrt(var + 1e-6)).reshape(shape)
    return normal * values["scale"] + values["bias"], {}


def _instance_norm(values: Values, x: jax.Array) -> Any:
    mean, var = _moments(x, (1, 2))
    return (x - mean) * (lax.rsqrt(var + 1e-6) * values["scale"]) + values["bias"], {}


def _dropout(values: Values, x: jax.Array) -> Any:
    key = jax.random.fold_in(values["rngs.key"], values["rngs.count"])
    kept = jax.random.bernoulli(key, 0.9, x.shape)
    return jnp.where(kept, x / 0.9, 0.0), {"rngs.count": values["rngs.count"] + 1}


def _attention(values: Values, x: jax.Array) -> Any:
    def project(name: str) -> jax.Array:
        heads = jnp.einsum("bti,ihd->bthd", x, values[f"{name}.kernel"])
        return heads + values[f"{name}.bias"]

    q, k, v = project("query"), project("key"), project("value")
    out = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    return jnp.einsum("bthd,hdo->bto", out, values["out.kernel"]) + values["out.bias"], {}


def _simple(values: Values, x: jax.Array) -> Any:
    dense, bias = values["cell.dense_i.kernel"], values["cell.dense_i.bias"]
    hidden = values["cell.dense_h.kernel"]

    def step(h: jax.Array, x: jax.Array) -> Any:
        h = jnp.tanh(x @ dense + bias + h @ hidden)
        return h, h

    zeros = jnp.zeros((x.shape[0], hidden.shape[0]))
    _, outputs = lax.scan(step, zeros, jnp.swapaxes(x, 0, 1))
    return jnp.swapaxes(outputs, 0, 1), {}


def _lstm_by_gates(values: Values, x: jax.Array) -> Any:
    ours = [values[f"cell.{name}.kernel"] for name in ("ii", "if_", "ig", "io")]
    hidden = [values[f"cell.h{gate}.kernel"] for gate in "ifgo"]
    biases = [values[f"cell.h{gate}.bias"] for gate in "ifgo"]
    zeros = jnp.zeros((x.shape[0], biases[0].shape[0]))

    def step(carry: Any, x: jax.Array) -> Any:
        c, h = carry
        i, f, g, o = (
            x @ own + (h @ other + bias)
            for own, other, bias in zip(ours, hidden, biases, strict=True)
        )
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (c, h), h

    _, outputs = lax.scan(step, (zeros, zeros), jnp.swapaxes(x, 0, 1))
    return jnp.swapaxes(outputs, 0, 1), {}


def _bidirectional(values: Values, x: jax.Array) -> Any:
    def direction(name: str) -> Values:
        return {
            key.removeprefix(f"{name}."): value
            for key, value in values.items()
            if key.startswith(f"{name}.")
        }

    forth, _ = _gru(direction("forward_rnn"), x)
    back, _ = _gru(direction("backward_rnn"), jnp.flip(x, 1))
    return jnp.concatenate([forth, jnp.flip(back, 1)], -1), {}


def _lstm(values: Values, x: jax.Array) -> Any:
    ours = values["cell.dense_i.kernel"]  # the four gates next to each other
    hidden, bias = values["cell.dense_h.kernel"], values["cell.dense_h.bias"]
    zeros = jnp.zeros((x.shape[0], hidden.shape[0]))

    def step(carry: Any, x: jax.Array) -> Any:
        c, h = carry
        i, f, g, o = jnp.split(x @ ours + h @ hidden + bias, 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (c, h), h

    _, outputs = lax.scan(step, (zeros, zeros), jnp.swapaxes(x, 0, 1))
    return jnp.swapaxes(outputs, 0, 1), {}


def _gru(values: Values, x: jax.Array) -> Any:
    dense = values["cell.dense_i.kernel"], values["cell.dense_i.bias"]
    hidden, new = values["cell.dense_h.kernel"], values.get("cell.dense_h.bias")
    zeros = jnp.zeros((x.shape[0], hidden.shape[0]))

    def step(h: jax.Array, x: jax.Array) -> Any:
        from_x, from_h = x @ dense[0] + dense[1], h @ hidden
        r_x, z_x, n_x = jnp.split(from_x, 3, -1)
        r_h, z_h, n_h = jnp.split(from_h, 3, -1)
        r, z = jax.nn.sigmoid(r_x + r_h), jax.nn.sigmoid(z_x + z_h)
        n = jnp.tanh(n_x + r * (n_h if new is None else n_h + new))
        h = (1 - z) * n + z * h
        return h, h

    _, outputs = lax.scan(step, zeros, jnp.swapaxes(x, 0, 1))
    return jnp.swapaxes(outputs, 0, 1), {}


CASES: dict[str, Case] = {
    "Linear 512 to 512, 1024 rows": Case(
        "Linear", lambda nnx, r: nnx.Linear(512, 512, rngs=r), (1024, 512), _linear
    ),
    "LinearGeneral 256 to (8, 32), 8 x 512": Case(
        "LinearGeneral",
        lambda nnx, r: nnx.LinearGeneral(256, (8, 32), rngs=r),
        (8, 512, 256),
        _linear_general,
    ),
    "Einsum 256 to (8, 32), 8 x 512": Case(
        "Einsum",
        lambda nnx, r: nnx.Einsum("bti,hid->bthd", (8, 256, 32), (8, 32), rngs=r),
        (8, 512, 256),
        _einsum,
    ),
    "LoRALinear of rank 8, 512 to 512, 1024 rows": Case(
        "LoRALinear",
        lambda nnx, r: nnx.LoRALinear(512, 512, lora_rank=8, rngs=r),
        (1024, 512),
        _lora_linear,
    ),
    "PReLU, 16 x 512 x 256": Case("PReLU", lambda nnx, r: nnx.PReLU(), (16, 512, 256), _prelu),
    "Conv 3 x 3, 32 to 32, 16 x 32^2": Case(
        "Conv", lambda nnx, r: nnx.Conv(32, 32, (3, 3), rngs=r), (16, 32, 32, 32), _conv(1)
    ),
    "Conv 3 x 3, 4 groups": Case(
        "Conv",
        lambda nnx, r: nnx.Conv(32, 32, (3, 3), feature_group_count=4, rngs=r),
        (16, 32, 32, 32),
        _conv(4),
    ),
    "ConvTranspose 4 x 4, stride 2": Case(
        "ConvTranspose",
        lambda nnx, r: nnx.ConvTranspose(32, 16, (4, 4), (2, 2), rngs=r),
        (8, 16, 16, 32),
        _conv_transpose,
    ),
    "Embed 4096 x 256, 16 x 512": Case(
        "Embed",
        lambda nnx, r: nnx.Embed(4096, 256, rngs=r),
        (16, 512),
        _embed,
        vocabulary=4096,
    ),
    "BatchNorm, 32 x 32^2 x 32": Case(
        "BatchNorm", lambda nnx, r: nnx.BatchNorm(32, rngs=r), (32, 32, 32, 32), _batch_norm
    ),
    "LayerNorm, 16 x 512 x 256": Case(
        "LayerNorm", lambda nnx, r: nnx.LayerNorm(256, rngs=r), (16, 512, 256), _layer_norm
    ),
    "RMSNorm, 16 x 512 x 256": Case(
        "RMSNorm", lambda nnx, r: nnx.RMSNorm(256, rngs=r), (16, 512, 256), _rms_norm
    ),
    "GroupNorm of 8, 16 x 32^2 x 64": Case(
        "GroupNorm",
        lambda nnx, r: nnx.GroupNorm(64, num_groups=8, rngs=r),
        (16, 32, 32, 64),
        _group_norm,
    ),
    "InstanceNorm, 16 x 32^2 x 64": Case(
        "InstanceNorm",
        lambda nnx, r: nnx.InstanceNorm(64, rngs=r),
        (16, 32, 32, 64),
        _instance_norm,
    ),
    "Dropout, 16 x 512 x 256": Case(
        "Dropout", lambda nnx, r: nnx.Dropout(0.1, rngs=r), (16, 512, 256), _dropout
    ),
    "causal attention, 8 heads, 4 x 512 x 256": Case(
        "MultiHeadAttention",
        lambda nnx, r: nnx.MultiHeadAttention(8, 256, decode=False, rngs=r),
        (4, 512, 256),
        _attention,
        lambda layer, x: layer(x, is_causal=True),
    ),
    "the same with 2 heads of keys": Case(
        "MultiHeadAttention",
        lambda nnx, r: nnx.MultiHeadAttention(8, 256, num_kv_heads=2, decode=False, rngs=r),
        (4, 512, 256),
        _attention,
        lambda layer, x: layer(x, is_causal=True),
    ),
    "RNN(SimpleCell), 16 x 512 x 128": Case(
        "SimpleCell",
        lambda nnx, r: nnx.RNN(nnx.SimpleCell(128, 128, rngs=r)),
        (16, 512, 128),
        _simple,
    ),
    "RNN(LSTMCell), 16 x 512 x 128": Case(
        "LSTMCell",
        lambda nnx, r: nnx.RNN(nnx.LSTMCell(128, 128, rngs=r)),
        (16, 512, 128),
        _lstm_by_gates,
    ),
    "RNN(OptimizedLSTMCell), 16 x 512 x 128": Case(
        "OptimizedLSTMCell",
        lambda nnx, r: nnx.RNN(nnx.OptimizedLSTMCell(128, 128, rngs=r)),
        (16, 512, 128),
        _lstm,
    ),
    "RNN(GRUCell), 16 x 512 x 128": Case(
        "GRUCell", lambda nnx, r: nnx.RNN(nnx.GRUCell(128, 128, rngs=r)), (16, 512, 128), _gru
    ),
    "Bidirectional(RNN(GRUCell)), 8 x 512 x 64": Case(
        "Bidirectional",
        lambda nnx, r: nnx.Bidirectional(
            *(nnx.RNN(nnx.GRUCell(64, 64, rngs=r)) for _ in range(2)), rngs=r
        ),
        (8, 512, 64),
        _bidirectional,
    ),
}
"""Name in the report -> the layer."""
