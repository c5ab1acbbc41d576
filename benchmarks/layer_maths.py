"""The maths of single layers by hand, in raw JAX.

Each function takes the values of moduli's layer as a dict by path, and the inputs; it returns what
the layer returns, and a dict of the values that it wrote.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Values = Mapping[str, jax.Array]
ByHand = Callable[[Values, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]


def linear(values: Values, x: jax.Array) -> Any:
    return x @ values["kernel"] + values["bias"], {}


def einsum(values: Values, x: jax.Array) -> Any:
    return jnp.einsum("bti,hid->bthd", x, values["kernel"]) + values["bias"], {}


def lora_linear(values: Values, x: jax.Array) -> Any:
    adapted = x @ values["lora.lora_a"] @ values["lora.lora_b"]
    return x @ values["kernel"] + values["bias"] + adapted, {}


def prelu(values: Values, x: jax.Array) -> Any:
    return jnp.where(x >= 0, x, values["negative_slope"] * x), {}


def linear_general(values: Values, x: jax.Array) -> Any:
    return jnp.einsum("bti,ihd->bthd", x, values["kernel"]) + values["bias"], {}


def conv(groups: int) -> ByHand:
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


def conv_transpose(values: Values, x: jax.Array) -> Any:
    y = lax.conv_transpose(
        x, values["kernel"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y + values["bias"], {}


def embed(values: Values, x: jax.Array) -> Any:
    return jnp.take(values["embedding"], x, axis=0), {}  # NaN where there is no such row


def _moments(x: jax.Array, axes: Any, keepdims: bool = True) -> tuple[jax.Array, jax.Array]:
    mean = jnp.mean(x, axes, keepdims=keepdims)
    squares = jnp.mean(lax.square(x), axes, keepdims=keepdims)
    return mean, jnp.maximum(squares - lax.square(mean), 0)


def batch_norm(values: Values, x: jax.Array) -> Any:
    mean, var = _moments(x, (0, 1, 2), keepdims=False)
    factor = lax.rsqrt(var + 1e-5) * values["scale"]
    y = (x - mean) * factor + values["bias"]
    new = {
        name: 0.99 * values[name] + 0.01 * lax.stop_gradient(now)
        for name, now in (("mean", mean), ("var", var))
    }
    return y, new


def layer_norm(values: Values, x: jax.Array) -> Any:
    mean, var = _moments(x, -1)
    return (x - mean) * (lax.rsqrt(var + 1e-6) * values["scale"]) + values["bias"], {}


def rms_norm(values: Values, x: jax.Array) -> Any:
    squares = jnp.mean(lax.square(x), -1, keepdims=True)
    return x * (lax.rsqrt(squares + 1e-6) * values["scale"]), {}


def group_norm(values: Values, x: jax.Array) -> Any:
    batch, *_, features = x.shape

    def of_groups(average: jax.Array) -> jax.Array:  # (batch, features) -> (batch, groups)
        return jnp.mean(average.reshape((batch, 8, features // 8)), -1)

    def of_features(number: jax.Array) -> jax.Array:  # (batch, groups) -> (batch, 1, 1, features)
        each = jnp.broadcast_to(number[..., None], (batch, 8, features // 8))
        return each.reshape((batch, 1, 1, features))

    mean = of_groups(jnp.mean(x, (1, 2)))
    squares = of_groups(jnp.mean(lax.square(x), (1, 2)))
    factor = lax.rsqrt(jnp.maximum(squares - lax.square(mean), 0) + 1e-6)
    normal = (x - of_features(mean)) * (of_features(factor) * values["scale"])
    return normal + values["bias"], {}


def instance_norm(values: Values, x: jax.Array) -> Any:
    mean, var = _moments(x, (1, 2))
    return (x - mean) * (lax.rsqrt(var + 1e-6) * values["scale"]) + values["bias"], {}


def dropout(values: Values, x: jax.Array) -> Any:
    key = jax.random.fold_in(values["rngs.key"], values["rngs.count"])
    kept = jax.random.bernoulli(key, 0.9, x.shape)
    return jnp.where(kept, x / 0.9, 0.0), {"rngs.count": values["rngs.count"] + 1}


def stochastic_depth(values: Values, x: jax.Array) -> Any:
    key = jax.random.fold_in(values["rngs.key"], values["rngs.count"])
    kept = jax.random.bernoulli(key, 0.9, (x.shape[0], 1, 1))
    return jnp.where(kept, x / 0.9, 0.0), {"rngs.count": values["rngs.count"] + 1}


def _unit(vector: jax.Array, axes: Any = None) -> jax.Array:
    return vector * lax.rsqrt(jnp.sum(lax.square(vector), axes, keepdims=True) + 1e-12)


def spectral_norm(values: Values, x: jax.Array) -> Any:
    kernel, path = values["layer_instance.kernel"], "batch_stats.('kernel', '{}')"
    dot = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    fixed, u = lax.stop_gradient((kernel, values[path.format("u")]))
    v = _unit(dot(u, fixed.T))
    u = _unit(dot(v, fixed))
    sigma = dot(dot(v, kernel), u.T)[0, 0]
    kernel = kernel / jnp.where(sigma == 0, 1, sigma)
    written = {
        "layer_instance.kernel": kernel,
        path.format("u"): u,
        path.format("sigma"): sigma,
    }
    return x @ kernel + values["layer_instance.bias"], written


def weight_norm(values: Values, x: jax.Array) -> Any:
    direction = _unit(values["layer_instance.kernel"], 0)
    kernel = direction * values["scales.('kernel',)"]
    return x @ kernel + values["layer_instance.bias"], {"layer_instance.kernel": direction}


def mlp(values: Values, x: jax.Array) -> Any:
    hidden = x @ values["layers.0.kernel"] + values["layers.0.bias"]
    mean, var = _moments(hidden, -1)
    factor = lax.rsqrt(var + 1e-6) * values["norms.0.scale"]
    hidden = jax.nn.relu((hidden - mean) * factor + values["norms.0.bias"])
    return hidden @ values["layers.1.kernel"] + values["layers.1.bias"], {}


def avg_pool(values: Values, x: jax.Array) -> Any:
    window = (1, 2, 2, 1)
    return lax.reduce_window(x, np.float32(0), lax.add, window, window, "VALID") / 4, {}


def max_pool(values: Values, x: jax.Array) -> Any:
    start = np.float32(-np.inf)
    return lax.reduce_window(x, start, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME"), {}


def min_pool(values: Values, x: jax.Array) -> Any:
    window = (1, 2, 2, 1)
    return lax.reduce_window(x, np.float32(np.inf), lax.min, window, window, "VALID"), {}


def adaptive_pool(reduce: Callable[..., jax.Array], parts: int) -> ByHand:
    """Makes parts of the two spatial axes, by hand: cut where they are even, else sliced."""

    def even(values: Values, x: jax.Array) -> Any:
        batch, high, wide, features = x.shape
        cut = x.reshape((batch, parts, high // parts, parts, wide // parts, features))
        return reduce(cut, (2, 4)), {}

    def uneven(values: Values, x: jax.Array) -> Any:
        for axis in (1, 2):
            length = x.shape[axis]
            slices = [
                lax.slice_in_dim(x, i * length // parts, -(-(i + 1) * length // parts), axis=axis)
                for i in range(parts)
            ]
            x = jnp.stack([reduce(piece, axis) for piece in slices], axis)
        return x, {}

    return lambda values, x: (uneven if x.shape[1] % parts else even)(values, x)


def attention(values: Values, x: jax.Array) -> Any:
    def project(name: str) -> jax.Array:
        heads = jnp.einsum("bti,ihd->bthd", x, values[f"{name}.kernel"])
        return heads + values[f"{name}.bias"]

    q, k, v = project("query"), project("key"), project("value")
    out = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    return jnp.einsum("bthd,hdo->bto", out, values["out.kernel"]) + values["out.bias"], {}


def simple(values: Values, x: jax.Array) -> Any:
    dense, bias = values["cell.dense_i.kernel"], values["cell.dense_i.bias"]
    hidden = values["cell.dense_h.kernel"]

    def step(h: jax.Array, x: jax.Array) -> Any:
        h = jnp.tanh(x @ dense + bias + h @ hidden)
        return h, h

    zeros = jnp.zeros((x.shape[0], hidden.shape[0]))
    _, outputs = lax.scan(step, zeros, jnp.swapaxes(x, 0, 1))
    return jnp.swapaxes(outputs, 0, 1), {}


def lstm_by_gates(values: Values, x: jax.Array) -> Any:
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


def bidirectional(values: Values, x: jax.Array) -> Any:
    def direction(name: str) -> Values:
        return {
            key.removeprefix(f"{name}."): value
            for key, value in values.items()
            if key.startswith(f"{name}.")
        }

    forth, _ = gru(direction("forward_rnn"), x)
    back, _ = gru(direction("backward_rnn"), x, reverse=True)
    return jnp.concatenate([forth, back], -1), {}


def lstm(values: Values, x: jax.Array) -> Any:
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


def gru(values: Values, x: jax.Array, reverse: bool = False) -> Any:
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

    _, outputs = lax.scan(step, zeros, jnp.swapaxes(x, 0, 1), reverse=reverse)
    return jnp.swapaxes(outputs, 0, 1), {}
