"""nnx.bridge.ToNNX and ToLinen: flax.linen's modules as ours, and the other way."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bridge_checks import same

import moduli as nnx
from moduli.errors import StructureError

linen = pytest.importorskip("flax.linen")
meta = pytest.importorskip("flax.core.meta")


class Net(linen.Module):
    @linen.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        init = linen.with_partitioning(linen.initializers.lecun_normal(), ("in", "out"))
        x = linen.Dense(4, kernel_init=init)(x)
        x = linen.BatchNorm(use_running_average=not train)(x)
        return linen.Dropout(0.5, deterministic=not train)(x)

    @linen.compact
    def double(self, x: Any) -> Any:
        return 2 * linen.Dense(4)(x)


X = np.random.default_rng(0).normal(size=(6, 3)).astype("f4")


def made() -> Any:
    return nnx.bridge.ToNNX(Net(), rngs=nnx.Rngs(0, dropout=1)).lazy_init(X)


def variables_of(model: Any) -> Any:
    held = {k: v for k, v in vars(model).items() if k in ("Dense_0", "BatchNorm_0")}
    return nnx.bridge.nnx_attrs_to_linen_vars(held)


def test_variables_of_linen_are_attributes_of_their_kinds() -> None:
    model = made()
    assert type(model.Dense_0.kernel) is nnx.Param
    assert type(model.BatchNorm_0.mean) is nnx.BatchStat
    assert model.Dense_0.kernel.get_metadata()["linen_meta_type"] is meta.Partitioned
    boxed = variables_of(model)["params"]["Dense_0"]["kernel"]
    assert isinstance(boxed, meta.Partitioned) and boxed.names == ("in", "out")
    expected = Net().init(jax.random.key(0), X)
    assert jax.tree.structure(variables_of(model)) == jax.tree.structure(expected)
    same(model(X), Net().apply(variables_of(model), X), 1e-6)


@pytest.mark.parametrize("way", [lambda f: f, nnx.jit], ids=["eager", "jit"])
def test_gradients_and_written_collections(way: Any) -> None:
    model = made()
    before = variables_of(model)

    def loss(model: Any) -> Any:
        return (model(X, train=True, mutable=["batch_stats"]) ** 2).sum()

    grads = way(lambda model: nnx.grad(loss)(model))(model)
    assert set(nnx.to_pure_dict(grads)) == {"Dense_0", "BatchNorm_0"}
    assert not np.allclose(
        model.BatchNorm_0.mean.value, before["batch_stats"]["BatchNorm_0"]["mean"]
    )
    assert model(X).shape == (6, 4)  # in evaluation nothing is written
    mean = model.BatchNorm_0.mean.value
    model(X)
    np.testing.assert_array_equal(mean, model.BatchNorm_0.mean.value)


def test_gradients_are_linens() -> None:
    model = made()
    variables = variables_of(model)

    def theirs(params: Any) -> Any:
        return (Net().apply({**variables, "params": params}, X) ** 2).sum()

    expected = jax.grad(theirs)(variables["params"])
    grads = nnx.grad(lambda model: (model(X) ** 2).sum())(model)
    same(grads.Dense_0.kernel.value, expected["Dense_0"]["kernel"].value, 1e-5)
    same(grads.BatchNorm_0.scale.value, expected["BatchNorm_0"]["scale"], 1e-5)


def test_other_methods_and_missing_variables() -> None:
    model = nnx.bridge.ToNNX(Net(), rngs=nnx.Rngs(0))
    nnx.bridge.lazy_init(model, X)
    dense = model.Dense_0
    same(model.double(X), 2 * (X @ dense.kernel.value + dense.bias.value), 1e-5)
    with pytest.raises(AttributeError, match="its variables exist after `lazy_init`"):
        _ = nnx.bridge.ToNNX(Net()).kernel
    with pytest.raises(StructureError, match="lazy_init needs a module or a method"):
        nnx.bridge.lazy_init(print, X)


def test_a_linen_module_inside_of_one_of_ours() -> None:
    class Outer(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.inner = nnx.bridge.ToNNX(linen.Dense(4), rngs=rngs)
            self.head = nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.head(self.inner(x))

    model = nnx.bridge.lazy_init(Outer(nnx.Rngs(0)), X)
    assert set(nnx.to_pure_dict(nnx.state(model, nnx.Param))) == {"inner", "head"}
    assert nnx.jit(lambda model, x: model(x))(model, X).shape == (6, 2)


class Block(nnx.Module):
    def __init__(self, width: int, *, rngs: Any) -> None:
        self.layers = [nnx.Linear(3, width, rngs=rngs), nnx.BatchNorm(width, rngs=rngs)]
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: Any, train: bool = False) -> Any:
        self.train() if train else self.eval()
        for layer in self.layers:
            x = layer(x)
        return self.dropout(x)

    def first(self, x: Any) -> Any:
        return self.layers[0](x)


def test_a_module_of_ours_in_linen() -> None:
    model = nnx.bridge.to_linen(Block, 4)
    assert isinstance(model, nnx.bridge.ToLinen)
    variables = model.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, X)
    assert set(variables) == {"params", "batch_stats"}
    params = variables["params"]
    kernel = params["layers"]["0"]["kernel"]
    out = model.apply(variables, X)
    scale = 1 / np.sqrt(1 + 1e-5)
    same(out, (X @ kernel) * scale, 1e-5)
    same(model.apply(variables, X, method="first"), X @ kernel, 1e-5)
    rngs = {"dropout": jax.random.key(2)}
    out, written = model.apply(variables, X, train=True, mutable=["batch_stats"], rngs=rngs)
    assert np.any(np.asarray(out) == 0) and set(written) == {"batch_stats"}
    mean = written["batch_stats"]["layers"]["1"]["mean"]
    same(mean, 0.01 * np.mean(X @ kernel, 0), 1e-5)
    grads = jax.grad(lambda p: model.apply({**variables, "params": p}, X).sum())(params)
    same(grads["layers"]["0"]["kernel"], np.tile(X.sum(0)[:, None] * scale, 4), 1e-4)
    with pytest.raises(StructureError, match=r"params/layers/7/kernel, of which Block has none"):
        model.apply({"params": {"layers": {"7": {"kernel": kernel}}}}, X)


def test_a_module_of_ours_inside_of_one_of_linen() -> None:
    class Outer(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            x = nnx.bridge.to_linen(nnx.Linear, 3, 4, name="ours")(x)
            return linen.Dense(2)(x)

    out, variables = Outer().init_with_output(jax.random.key(0), X)
    assert set(variables["params"]) == {"ours", "Dense_0"} and out.shape == (6, 2)
    assert jax.jit(Outer().apply)(variables, X).shape == (6, 2)


def test_there_and_back_again() -> None:
    inner = nnx.bridge.to_linen(nnx.Linear, 3, 4)
    model = nnx.bridge.ToNNX(inner, rngs=nnx.Rngs(0)).lazy_init(X)
    same(model(X), X @ model.kernel.value + model.bias.value, 1e-5)


def test_two_collections_with_one_path_are_an_error() -> None:
    class Twice(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            self.param("w", linen.initializers.ones, ())
            self.variable("other", "w", lambda: jnp.zeros(()))
            return x

    with pytest.raises(StructureError, match=r"both have `w`, where an attribute"):
        nnx.bridge.ToNNX(Twice(), rngs=nnx.Rngs(0)).lazy_init(X)


def test_functional() -> None:
    model = nnx.bridge.functional(nnx.Linear)(3, 4)
    state = model.init(rngs=nnx.Rngs(0))
    out, (_, after) = model.apply(state)(X)
    assert out.shape == (6, 4) and set(after) == {"kernel", "bias"}
