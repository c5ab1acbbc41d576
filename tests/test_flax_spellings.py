"""Arguments in the other spellings that flax takes: one row for each kind of argument.

Found by calling the public functions and constructors of both libraries with numbers, arrays,
lists, iterators, flags, dtypes and streams in each other's places (4,426 calls).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli

theirs = pytest.importorskip("flax.nnx")

X = np.linspace(-1, 1, 24).reshape(2, 3, 4).astype("f4")
IMAGE = np.linspace(-1, 1, 72).reshape(1, 6, 6, 2).astype("f4")
PAIRS = np.array([[0, 1], [1, 1]])

Program = Callable[[Any, Any], Any]


def general(nnx: Any, **kwargs: Any) -> Any:
    given = {"in_features": (3, 4), "out_features": (2, 3), "axis": (-2, -1), **kwargs}
    return nnx.LinearGeneral(**given, rngs=nnx.Rngs(0))(X)


def attention(nnx: Any, **kwargs: Any) -> Any:
    return nnx.MultiHeadAttention(2, 4, **kwargs, decode=False, rngs=nnx.Rngs(0))(X)


def rnn(nnx: Any, *, made: Any = (), **kwargs: Any) -> Any:
    cell = nnx.GRUCell(4, 3, rngs=nnx.Rngs(0))
    return nnx.RNN(cell, **dict(made), rngs=nnx.Rngs(0))(X, **kwargs)


def norm(nnx: Any, epsilon: Any) -> Any:
    return [
        getattr(nnx, name)(4, epsilon=epsilon, rngs=nnx.Rngs(0))(X)
        for name in ("BatchNorm", "LayerNorm", "RMSNorm", "InstanceNorm")
    ]


def normed(nnx: Any, epsilon: Any) -> Any:
    layer = nnx.LayerNorm(4, epsilon=epsilon, rngs=nnx.Rngs(0))
    return nnx.jit(lambda layer, x: layer(x))(layer, X)


def steps(nnx: Any, momentum: Any) -> Any:
    layer = nnx.BatchNorm(4, momentum=momentum, use_running_average=False, rngs=nnx.Rngs(0))
    nnx.jit(lambda layer: layer(X))(layer)
    return layer.mean[...]


def loss(model: Any, x: Any) -> Any:
    return (model(x) ** 2).mean()


def both(nnx: Any, argnums: Any) -> Any:
    return nnx.grad(lambda a, b: (a * b).sum(), argnums=argnums)(X, 2 * X)


def jitted(nnx: Any, **options: Any) -> Any:
    model = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
    return nnx.jit(lambda model, x, n: model(x) * n, **options)(model, jnp.asarray(X), 2)


def keys(rngs: Any, name: str) -> Any:
    return jax.random.key_data(rngs[name].key[...])


def split(nnx: Any, splits: Any) -> Any:
    rngs = nnx.Rngs(params=0)
    nnx.split_rngs(rngs, splits=splits)
    return keys(rngs, "params")


def variable(nnx: Any) -> Any:
    return lambda x: nnx.Variable(jnp.asarray(x, "float32"))


def plain(nnx: Any) -> Any:
    return lambda x: x


def array(nnx: Any) -> Any:
    return lambda x: np.asarray(x, "float32" if np.asarray(x).dtype == "float64" else None)


SPELLINGS: dict[str, tuple[Program, Any]] = {
    "sizes, a set": (lambda nnx, _: general(nnx, axis={-2, -1}), plain),
    "sizes, a range": (lambda nnx, _: general(nnx, axis=range(1, 3)), plain),
    "sizes, an iterator": (lambda nnx, _: general(nnx, out_features=iter((2, 3))), plain),
    "sizes by axis, pairs": (lambda nnx, _: general(nnx, batch_axis=[]), plain),
    "pooling, arrays": (
        lambda nnx, as_: [
            getattr(nnx, f"{name}_pool")(IMAGE, (2, 2), (2, 2), as_(PAIRS))
            for name in ("avg", "min")
        ],
        array,
    ),
    "flag, a float": (lambda nnx, _: general(nnx, use_bias=0.0), plain),
    "flag of a call, an array": (lambda nnx, as_: rnn(nnx, reverse=as_(True)), array),
    "flag of a call, jax's": (lambda nnx, _: rnn(nnx, reverse=jnp.array(True)), plain),
    "unroll, a flag": (lambda nnx, _: rnn(nnx, made={"unroll": True}), plain),
    "lengths, one": (lambda nnx, as_: rnn(nnx, seq_lengths=as_(2), return_carry=True)[0], array),
    "number, an array": (lambda nnx, as_: norm(nnx, as_([0.5])), array),
    "number, a Variable under jit": (lambda nnx, as_: normed(nnx, as_(0.5)), variable),
    "number, an array under jit": (lambda nnx, as_: normed(nnx, as_([0.5])), array),
    "number, a Variable": (lambda nnx, as_: norm(nnx, as_(0.5)), variable),
    "momentum, one a feature": (lambda nnx, as_: steps(nnx, as_([0.1, 0.5, 0.9, 0.0])), array),
    "momentum, a Variable": (lambda nnx, as_: steps(nnx, as_(0.5)), variable),
    "rate, a Variable": (lambda nnx, as_: nnx.Dropout(as_(0.5), rngs=nnx.Rngs(0))(X), variable),
    "features of several axes": (lambda nnx, _: attention(nnx, out_features=(2, 3)), plain),
    "argnums of numpy": (lambda nnx, _: both(nnx, (np.int64(0), np.int32(1))), plain),
    "argnums, an array": (lambda nnx, as_: both(nnx, as_([1, 0])), plain),
    "argnums, a range": (lambda nnx, _: both(nnx, range(2)), plain),
    "static_argnums of numpy": (lambda nnx, _: jitted(nnx, static_argnums=np.int64(2)), plain),
    "static_argnums of jax": (lambda nnx, _: jitted(nnx, static_argnums=jnp.array(2)), plain),
    "donate_argnums of numpy": (lambda nnx, _: jitted(nnx, donate_argnums=np.array([1])), plain),
    "splits, a range": (lambda nnx, _: split(nnx, range(2, 4)), plain),
    "no default stream": (lambda nnx, _: keys(nnx.Rngs(default=None, a=1), "a"), plain),
}


def ran(nnx: Any, name: str) -> list[Any]:
    program, made = SPELLINGS[name]
    return jax.tree.leaves(program(nnx, made(nnx)))


@pytest.mark.filterwarnings("ignore:Some donated buffers")
@pytest.mark.parametrize("name", SPELLINGS)
def test_what_flax_takes_is_taken(name: str) -> None:
    with jax.numpy_dtype_promotion("standard"):
        ours, others = ran(moduli, name), ran(theirs, name)
    assert len(ours) == len(others) > 0
    for one, other in zip(ours, others, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-6)
        assert jnp.asarray(one).dtype == jnp.asarray(other).dtype
