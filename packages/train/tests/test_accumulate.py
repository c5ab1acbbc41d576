"""accumulate: the whole batch's numbers, part by part, with less memory."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli as nnx
from moduli.errors import ShapeError, StructureError

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(10, 3)).astype(np.float32), RNG.normal(size=(10, 2)).astype(np.float32)
MASK = np.array([1, 0, 1, 1, 0, 0, 1, 1, 0, 0], np.float32)


class Model(nnx.Module):
    def __init__(self) -> None:
        self.layers = [nnx.Linear(3, 8, rngs=nnx.Rngs(0)), nnx.Linear(8, 2, rngs=nnx.Rngs(1))]
        self.calls = nnx.Variable(jnp.array(0))

    def __call__(self, x: Any) -> Any:
        self.calls.value = self.calls.value + 1
        return self.layers[1](jnp.tanh(self.layers[0](x)))


def loss(model: Model, x: Any, y: Any) -> Any:
    return ((model(x) - y) ** 2).mean()


def masked(model: Model, batch: Any) -> Any:
    error = ((model(batch["x"]) - batch["y"]) ** 2).mean(1)
    mean = (error * batch["mask"]).sum() / batch["mask"].sum()
    return mean, {"error": error, "mean": mean}


def same(got: Any, expected: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
        assert one.dtype == other.dtype


@pytest.mark.parametrize(("parts", "jitted"), [(1, True), (2, True), (4, False), (99, True)])
def test_as_the_whole_batch(parts: int, jitted: bool) -> None:
    model, twin = Model(), Model()
    f = nnx.accumulate(loss, parts)
    got = (nnx.jit(f) if jitted else f)(model, X, y=Y)
    same(got, nnx.value_and_grad(loss)(twin, X, Y))
    size = -(-10 // parts)
    assert int(model.calls) == -(-10 // size)


@pytest.mark.parametrize("parts", [3, 5])
def test_parts_weigh_unequally_and_aux_is_joined(parts: int) -> None:
    batch = {"x": X, "y": Y, "mask": MASK}  # of 5 parts the third one has only masked rows
    f = nnx.accumulate(masked, parts, weight=lambda batch: batch["mask"].sum(), has_aux=True)
    same(nnx.jit(f)(Model(), batch), nnx.value_and_grad(masked, has_aux=True)(Model(), batch))
    with_model = nnx.accumulate(
        masked, parts, weight=lambda model, batch: batch["mask"].sum(), has_aux=True
    )
    same(nnx.jit(with_model)(Model(), batch), nnx.jit(f)(Model(), batch))


class Forward(Model):
    def loss(self, scale: Any, x: Any, y: Any) -> Any:
        return loss(self, x * scale, y)


FORMS: dict[str, Any] = {
    "filter": (loss, nnx.DiffState(0, nnx.PathContains("kernel")), lambda m: (m, X, Y)),
    "two": (
        lambda x, m, n, y: loss(m, x, y) + loss(n, x, y),
        (1, -2),
        lambda m: (X, m, Model(), Y),
    ),
    "arrays": (
        lambda p, x, y: jnp.mean((x @ p["w"] - y) ** 2),
        0,
        lambda m: ({"w": X[:3, :2]}, X, Y),
    ),
    "model and array": (
        lambda m, s, x, y: loss(m, x * s, y),
        [0, 1],
        lambda m: (m, jnp.ones(3), X, Y),
    ),
    "switch": (
        lambda m, x, y, how: loss(m, x, y) if how == "on" else 0.0,
        0,
        lambda m: (m, X, Y, "on"),
    ),
    "no hash": (lambda m, x, y, f: loss(m, f[0](x), y), 0, lambda m: (m, X, Y, [jnp.sin])),
    "scalar": (lambda m, x, y, s: loss(m, x, y) * s, 0, lambda m: (m, X, Y, jnp.float32(3))),
}


@pytest.mark.parametrize("name", FORMS)
def test_arguments_of_every_form(name: str) -> None:
    f, argnums, arguments = FORMS[name]
    args = arguments(Model())
    expected = nnx.value_and_grad(f, argnums=argnums)(*arguments(Model()))
    same(nnx.accumulate(f, 4, argnums=argnums)(*args), expected)


def test_a_method_of_a_module_is_a_loss() -> None:
    model, scale = Forward(), jnp.ones(3)
    same(
        nnx.accumulate(model.loss, 4)(scale, X, Y), nnx.value_and_grad(Forward().loss)(scale, X, Y)
    )
    assert int(model.calls) == 4


def test_statistics_and_streams_are_those_of_a_loop_over_parts() -> None:
    def make() -> Any:
        rngs = nnx.Rngs(0)
        return nnx.Sequential(
            nnx.Linear(3, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs), nnx.Dropout(0.5, rngs=rngs),
            nnx.Linear(4, 2, rngs=rngs),
        )  # fmt: skip

    model, twin = make(), make()
    value, grads = nnx.jit(nnx.accumulate(loss, 4))(model, X, Y)
    total, sums = 0.0, None
    for start in (0, 3, 6, 9):
        rows = slice(start, start + 3)
        one, own = nnx.value_and_grad(loss)(twin, X[rows], Y[rows])
        share = len(X[rows]) / 10
        own = jax.tree.map(lambda g: g * share, own)
        total = total + one * share
        sums = own if sums is None else jax.tree.map(jnp.add, sums, own)
    same((value, grads), (total, sums))
    arrays = lambda m: jax.tree.leaves(nnx.state(m, (nnx.BatchStat, nnx.RngCount)))
    same(arrays(model), arrays(twin))


def test_memory_is_that_of_a_part() -> None:
    def deep(weight: Any, x: Any) -> Any:
        for _ in range(6):
            x = jnp.tanh(x @ weight.value)
        return x.mean()

    weight, x = nnx.Param(jnp.zeros((64, 64))), jnp.zeros((4096, 64))
    whole, part = (
        nnx.jit(f).lower(weight, x).compile().memory_analysis().temp_size_in_bytes
        for f in (nnx.value_and_grad(deep), nnx.accumulate(deep, 8))
    )
    assert part <= 0.4 * whole


def test_sums_of_narrow_floats_are_wide() -> None:
    f = lambda p, x: (p * x).mean()
    x = jnp.asarray([1.0] + [2**-9] * 511, jnp.bfloat16)
    value, grad = nnx.accumulate(f, 512)(jnp.ones((), jnp.bfloat16), x)
    assert value.dtype == grad.dtype == jnp.bfloat16
    np.testing.assert_allclose(float(grad), np.mean(np.asarray(x, np.float64)), rtol=2**-8)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: nnx.accumulate(loss, 0), StructureError, "got 0"),
        (lambda: nnx.accumulate(2, loss), StructureError, "needs a callable"),
        (
            lambda: nnx.accumulate(loss, 2)(Model(), X, Y[:9]),
            ShapeError,
            r"'x': 10, 'y': 9.*batch_argnums",
        ),
        (lambda: nnx.accumulate(lambda m: 0.0, 2)(Model()), StructureError, "no array with rows"),
        (
            lambda: nnx.accumulate(loss, 2, lambda x, y: x)(Model(), X, Y),
            ShapeError,
            "is a scalar; got",
        ),
        (
            lambda: nnx.accumulate(lambda m, x: (m(x).sum(), {"n": 3}), 2, has_aux=True)(
                Model(), X
            ),
            StructureError,
            r"aux\['n'\] is int(32|64)\[\].*part of 5 rows",
        ),
    ],
)
def test_errors(call: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        call()


def test_an_error_changes_nothing() -> None:
    model = Model()
    f = nnx.accumulate(lambda m, x: (m(x).sum(), 3), 2, has_aux=True)
    with pytest.raises(StructureError):
        f(model, X)
    assert int(model.calls) == 0


def test_an_argument_of_as_many_rows_can_go_whole() -> None:
    square = RNG.normal(size=(10, 10)).astype(np.float32)
    f = lambda m, x, w: (m(x) ** 2).mean() * jnp.trace(w)
    expected = nnx.value_and_grad(f)(Model(), X, square)
    same(nnx.accumulate(f, 5, batch_argnums=1)(Model(), X, square), expected)
    bound = functools.partial(f, w=square)
    same(nnx.accumulate(lambda m, x: bound(m, x), 5)(Model(), X), expected)


@pytest.mark.parametrize("parts", [4, 3])  # of 8 rows: even, and with a rest
def test_a_batch_on_an_explicit_mesh(parts: int) -> None:
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    f = lambda model, x: ((model(x) ** 2).mean(), model(x))
    expected = nnx.value_and_grad(f, has_aux=True)(Model(), X[:8])
    with jax.set_mesh(mesh):
        spec = jax.sharding.PartitionSpec("data")
        x = jax.device_put(X[:8], jax.sharding.NamedSharding(mesh, spec))
        got = nnx.jit(nnx.accumulate(f, parts, has_aux=True))(Model(), x)
    same(jax.tree.map(np.asarray, got), jax.tree.map(np.asarray, expected))
