"""Small computations with loops and branches, by hand in raw JAX and with flax.nnx's interface."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

STEPS, WIDTH = 4, 32


@dataclasses.dataclass(frozen=True)
class EagerCase:
    """One computation; both functions give a call without arguments that returns an array.

    Attributes:
      raw: makes the call in raw JAX.
      lifted: makes it with a library (moduli or flax.nnx).
    """

    raw: Callable[[], Callable[[], jax.Array]]
    lifted: Callable[[Any], Callable[[], jax.Array]]


def _weights() -> jax.Array:
    return jax.random.normal(jax.random.key(0), (STEPS, WIDTH, WIDTH)) / WIDTH**0.5


def _input() -> jax.Array:
    return jnp.linspace(-1.0, 1.0, WIDTH)


def _model(nnx: Any, weights: jax.Array) -> Any:
    class Dense(nnx.Module):
        def __init__(self) -> None:
            self.w = nnx.Param(weights)

        def __call__(self, x: Any) -> Any:
            return jnp.tanh(x @ self.w[...])

    return Dense()


def _layer(x: Any, w: Any) -> Any:
    return jnp.tanh(x @ w)


# -- raw JAX ---------------------------------------------------------------------------------------


def _raw_scan() -> Callable[[], jax.Array]:
    weights, x = _weights(), _input()

    def step(x: Any, w: Any) -> Any:
        return _layer(x, w), None

    return lambda: jax.lax.scan(step, x, weights)[0]


def _raw_grad() -> Callable[[], jax.Array]:
    weights, x = _weights(), _input()

    def step(x: Any, w: Any) -> Any:
        return _layer(x, w), None

    gradient = jax.grad(lambda w: jax.lax.scan(step, x, w)[0].sum())
    return lambda: gradient(weights)


def _raw_cond() -> Callable[[], jax.Array]:
    w, x, yes = _weights()[0], _input(), jnp.array(True)

    def other(x: Any, w: Any) -> Any:
        return -_layer(x, w)

    return lambda: jax.lax.cond(yes, _layer, other, x, w)


def _raw_switch() -> Callable[[], jax.Array]:
    w, x, index = _weights()[0], _input(), jnp.array(1)

    def other(x: Any, w: Any) -> Any:
        return -_layer(x, w)

    branches = (other, _layer)
    return lambda: jax.lax.switch(index, branches, x, w)


def _raw_while() -> Callable[[], jax.Array]:
    w, x, zero = _weights()[0], _input(), jnp.array(0)

    def goes_on(carry: Any) -> Any:
        return carry[2] < STEPS

    def body(carry: Any) -> Any:
        w, x, count = carry
        return w, _layer(x, w), count + 1

    return lambda: jax.lax.while_loop(goes_on, body, (w, x, zero))[1]


def _raw_fori() -> Callable[[], jax.Array]:
    w, x = _weights()[0], _input()

    def body(index: Any, carry: Any) -> Any:
        w, x = carry
        return w, _layer(x, w)

    return lambda: jax.lax.fori_loop(0, STEPS, body, (w, x))[1]


def _raw_rnn() -> Callable[[], jax.Array]:
    w_in, w_state, bias = *_weights()[:2], jnp.zeros(WIDTH)
    xs = jnp.ones((16, 8, WIDTH))  # time, batch, features

    def step(state: Any, x: Any) -> Any:
        (w_in, w_state, bias), h = state
        h = jnp.tanh(x @ w_in + bias + h @ w_state)
        return (state[0], h), h

    return lambda: jax.lax.scan(step, ((w_in, w_state, bias), jnp.zeros((8, WIDTH))), xs)[1]


# -- libraries -------------------------------------------------------------------------------------


def _scan(nnx: Any) -> Callable[[], jax.Array]:
    model, x = _model(nnx, _weights()), _input()

    def step(x: Any, block: Any) -> Any:
        return block(x)

    run = nnx.scan(step, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    return lambda: run(x, model)


def _grad(nnx: Any) -> Callable[[], jax.Array]:
    model, x = _model(nnx, _weights()), _input()

    def step(x: Any, block: Any) -> Any:
        return block(x)

    run = nnx.scan(step, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    gradient = nnx.grad(lambda model, x: run(x, model).sum())
    return lambda: gradient(model, x)["w"][...]


def _cond(nnx: Any) -> Callable[[], jax.Array]:
    model, x, yes = _model(nnx, _weights()[0]), _input(), jnp.array(True)

    def one(model: Any, x: Any) -> Any:
        return model(x)

    def other(model: Any, x: Any) -> Any:
        return -model(x)

    return lambda: nnx.cond(yes, one, other, model, x)


def _switch(nnx: Any) -> Callable[[], jax.Array]:
    model, x, index = _model(nnx, _weights()[0]), _input(), jnp.array(1)

    def one(model: Any, x: Any) -> Any:
        return model(x)

    def other(model: Any, x: Any) -> Any:
        return -model(x)

    branches = (other, one)
    return lambda: nnx.switch(index, branches, model, x)


def _while(nnx: Any) -> Callable[[], jax.Array]:
    model, x, zero = _model(nnx, _weights()[0]), _input(), jnp.array(0)

    def goes_on(carry: Any) -> Any:
        return carry[2] < STEPS

    def body(carry: Any) -> Any:
        model, x, count = carry
        return model, model(x), count + 1

    return lambda: nnx.while_loop(goes_on, body, (model, x, zero))[1]


def _fori(nnx: Any) -> Callable[[], jax.Array]:
    model, x = _model(nnx, _weights()[0]), _input()

    def body(index: Any, carry: Any) -> Any:
        model, x = carry
        return model, model(x)

    return lambda: nnx.fori_loop(0, STEPS, body, (model, x))[1]


def _rnn(nnx: Any) -> Callable[[], jax.Array]:
    rnn = nnx.RNN(nnx.SimpleCell(WIDTH, WIDTH, rngs=nnx.Rngs(0)), time_major=True)
    xs = jnp.ones((16, 8, WIDTH))
    return lambda: rnn(xs)


CASES = {
    "scan over 4 blocks": EagerCase(_raw_scan, _scan),
    "grad of that scan": EagerCase(_raw_grad, _grad),
    "cond": EagerCase(_raw_cond, _cond),
    "switch": EagerCase(_raw_switch, _switch),
    "while_loop of 4 steps": EagerCase(_raw_while, _while),
    "fori_loop of 4 steps": EagerCase(_raw_fori, _fori),
    "RNN(SimpleCell), 16 steps of 8 x 32": EagerCase(_raw_rnn, _rnn),
}
"""Name in the table -> the computation."""
