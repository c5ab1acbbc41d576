"""Attributes that are JAX pytrees of another library: arrays in them are data, the rest is static.

Configs of solvers are such: their leaves are functions, flags and names beside arrays.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest

import moduli as nnx


@jax.tree_util.register_pytree_with_keys_class
class Registered:
    NAMES = ("function", "scale", "name", "flag", "steps")

    def __init__(self, function: Any, scale: Any, name: Any, flag: Any, steps: Any) -> None:
        self.function, self.scale, self.name = function, scale, name
        self.flag, self.steps = flag, steps

    def tree_flatten_with_keys(self) -> Any:
        keys = map(jax.tree_util.GetAttrKey, self.NAMES)
        return tuple(zip(keys, (getattr(self, name) for name in self.NAMES), strict=True)), None

    @classmethod
    def tree_unflatten(cls, _: Any, children: Any) -> Registered:
        return cls(*children)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Dataclass:
    function: Any
    scale: Any
    name: Any
    flag: Any
    steps: Any


class Named(NamedTuple):
    function: Any
    scale: Any
    name: Any
    flag: Any
    steps: Any


def twice(x: Any) -> Any:
    return 2 * x


def squared(x: Any) -> Any:
    return x * x


class Model(nnx.Module):
    def __init__(self, kind: Any, mark: Any) -> None:
        self.weight = nnx.Param(jnp.float32(3.0))
        self.config = mark(kind(twice, jnp.float32(5.0), "sum", True, 2))

    def __call__(self, x: Any) -> Any:
        config = self.config
        if not config.flag:  # under a transform this has to be a bool, not a tracer
            return x
        for _ in range(config.steps):
            x = config.function(x)
        return getattr(jnp, config.name)(x) * config.scale * self.weight


KINDS = pytest.mark.parametrize("kind", [Registered, Dataclass, Named])
MARKS = pytest.mark.parametrize("mark", [lambda v: v, nnx.data], ids=["plain", "data"])
X = jnp.ones(2, jnp.float32)
EXPECTED = 4 * 2 * 5 * 3


def in_scan(model: Model, x: Any) -> Any:
    return nnx.scan(lambda model, c: (c, model(x)), in_axes=(None, nnx.Carry), length=2)(model, x)


WAYS: dict[str, Any] = {
    "eager": lambda m, x: m(x),
    "jit": nnx.jit(lambda m, x: m(x)),
    "remat": nnx.remat(lambda m, x: m(x)),
    "vmap": lambda m, x: nnx.vmap(lambda m, x: m(x), in_axes=(None, 0))(m, jnp.stack([x, x]))[1],
    "scan": lambda m, x: in_scan(m, x)[1][1],
    "split": lambda m, x: nnx.merge(*nnx.split(m))(x),
    "raw jit": lambda m, x: jax.jit(lambda s: nnx.merge(nnx.graphdef(m), s)(x))(nnx.state(m)),
    "clone": lambda m, x: nnx.clone(m)(x),
}


@pytest.mark.parametrize("way", WAYS)
@MARKS
@KINDS
def test_every_way_of_calling(kind: Any, mark: Any, way: str) -> None:
    assert float(WAYS[way](Model(kind, mark), X)) == EXPECTED


@MARKS
@KINDS
def test_the_state_has_the_arrays_alone(kind: Any, mark: Any) -> None:
    model = Model(kind, mark)
    paths = [path for path, _ in nnx.to_flat_state(nnx.state(model))]
    assert sorted(paths) == [("config", "scale"), ("weight",)]
    gradient = nnx.grad(lambda model, x: model(x))(model, X)
    assert float(gradient.weight[...]) == EXPECTED / 3
    made = nnx.eval_shape(lambda: Model(kind, mark))
    assert made.config.function is twice and made.config.scale.shape == ()


@MARKS
@pytest.mark.parametrize("kind", [Registered, Dataclass])
def test_a_changed_leaf_is_seen(kind: Any, mark: Any) -> None:
    model, run = Model(kind, mark), WAYS["jit"]
    assert float(run(model, X)) == EXPECTED
    model.config.function = squared
    assert float(run(model, X)) == EXPECTED / 4
    model.config.scale = jnp.float32(7.0)
    assert float(run(model, X)) == 2 * 7 * 3
    model.config.flag = False
    assert run(model, X).shape == (2,)


def test_a_number_that_is_marked_is_still_data() -> None:
    class Counter(nnx.Module):
        def __init__(self) -> None:
            self.count = nnx.data(2)

    assert [float(leaf) for leaf in jax.tree.leaves(nnx.state(Counter()))] == [2.0]
