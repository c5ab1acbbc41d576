"""Sequential: hands outputs on as flax.nnx does, and grows like a list."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli
from moduli.errors import StructureError
from moduli_layers import Dropout, Linear, Sequential, relu

X = jnp.arange(8.0)


def two(x: Any) -> Any:
    """Returns two values."""
    return x, x + 1


def add(a: Any, b: Any) -> Any:
    """Takes two values."""
    return a + 2 * b


def named(x: Any) -> Any:
    """Returns values by name."""
    return {"b": x, "a": x + 1}


def single(x: Any) -> Any:
    """Returns a tuple of one."""
    return (x,)


def draw(x: Any, *, rngs: Any) -> Any:
    """Uses rngs."""
    return x + jax.random.uniform(rngs())


def swallow(x: Any, **kwargs: Any) -> Any:
    """Takes any keyword."""
    return x + len(kwargs)


CHAINS: list[tuple[Any, Any, Any]] = [
    ((two, add), (X,), {}),
    ((named, add), (X,), {}),
    ((single, relu), (X,), {}),
    ((two,), (X,), {}),
    ((), (X,), {}),
    ((), (), {}),
    ((add, relu), (X,), {"b": 3.0}),
    ((jnp.sin, jnp.cos), (X,), {}),
]


@pytest.mark.parametrize(("fns", "args", "kwargs"), CHAINS)
def test_hands_on_arguments_as_flax_does(flax_nnx: Any, fns: Any, args: Any, kwargs: Any) -> None:
    ours = Sequential(*fns)(*args, **kwargs)
    theirs = flax_nnx.Sequential(*fns)(*args, **kwargs)
    assert type(ours) is type(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(a, b)


def test_values_of_the_rules() -> None:
    np.testing.assert_array_equal(Sequential(two, add)(X), X + 2 * (X + 1))
    np.testing.assert_array_equal(Sequential(named, add)(X), X + 1 + 2 * X)
    assert Sequential()() is None
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        Sequential(lambda x: [x, x], add)(X)  # a list is one value


def test_rngs_reach_only_what_takes_them(flax_nnx: Any) -> None:
    ours = Sequential(draw, relu, draw)(X, rngs=moduli.Rngs(0))
    theirs = flax_nnx.Sequential(draw, relu, draw)(X, rngs=flax_nnx.Rngs(0))
    np.testing.assert_array_equal(ours, theirs)
    # as the newest flax.nnx 0.12; 0.12.8 leaves functions with **kwargs out
    np.testing.assert_array_equal(Sequential(swallow, swallow)(X, rngs=moduli.Rngs(0)), X + 2)
    assert Sequential(single, max)([1, 3, 2], rngs=moduli.Rngs(0)) == 3  # has no signature


def test_rngs_reach_layers() -> None:
    model = Sequential(Linear(8, 8, rngs=moduli.Rngs(0)), Dropout(0.5))
    outputs = model(X, rngs=moduli.Rngs(3))
    np.testing.assert_array_equal(outputs, model.layers[1](model.layers[0](X), rngs=moduli.Rngs(3)))


def test_layers_is_a_list_that_can_grow() -> None:
    rngs = moduli.Rngs(0)
    model = Sequential(Linear(8, 4, rngs=rngs), relu)
    before = model(X)
    model.layers.append(Linear(4, 2, rngs=rngs))
    np.testing.assert_array_equal(model(X), model.layers[2](before))
    paths = {path for path, _ in moduli.to_flat_state(moduli.state(model))}
    assert paths == {("layers", i, name) for i in (0, 2) for name in ("kernel", "bias")}


def test_equal_seeds_give_flax_outputs(flax_nnx: Any) -> None:
    def build(nnx: Any, linear: Any, sequential: Any) -> Any:
        rngs = nnx.Rngs(0)
        return sequential(linear(8, 4, rngs=rngs), jax.nn.relu, linear(4, 2, rngs=rngs))

    ours = build(moduli, Linear, Sequential)
    theirs = build(flax_nnx, flax_nnx.Linear, flax_nnx.Sequential)
    np.testing.assert_allclose(ours(X), theirs(X), rtol=1e-6)


def test_what_is_not_callable_is_named() -> None:
    with pytest.raises(
        StructureError, match=r"Sequential expects callables, got 3 of type int as argument 1"
    ):
        Sequential(relu, 3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(StructureError, match=r"argument 0; write Sequential\(\*layers\)"):
        Sequential([relu, relu])  # pyright: ignore[reportArgumentType]


def test_an_empty_chain_returns_its_arguments() -> None:
    assert Sequential()(12) == 12
    assert Sequential()(12, 23) == (12, 23)
    assert Sequential()() is None
