"""from_flax and to_flax: each layer computes and differentiates the same in both libraries."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bridge_checks import float64, floats, gradients, same, weight, wide
from layer_table import STRUCTURES, Row

import moduli
from moduli.testing import assert_unchanged

flax = pytest.importorskip("flax")
nnx = pytest.importorskip("flax.nnx")

LACKS = (moduli.MLP, moduli.RoPE, moduli.Stack, moduli.StochasticDepth)  # flax has no such layer
DIFFERS = {  # what flax's layer does not take, or computes otherwise
    "attention-cache": "`rotary`",
    "attention-rotary": "`rotary`",
    "attention-window": "`window`",
    "attention-window-causal": "`window`",
    "group_norm-last-axis-only": "reduction_axes",
    "group_norm-batch-too": "reduction_axes",
    "group_norm-two-batch-axes": "reduction_axes",
}
CANNOT = ("conv-input-dilation", "conv_transpose-causal", "linear_general-order", "rnn-lengths")


def without_row(name: str) -> bool:
    return name.startswith(CANNOT)


def lacks(row: Row) -> bool:
    return isinstance(row.build(moduli.Rngs(0)), LACKS)


ROWS = [row for row in STRUCTURES if not (row.name in DIFFERS or without_row(row.name))]
REFUSED = [row for row in STRUCTURES if row.name in DIFFERS]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_values_and_gradients_are_flaxs_own(row: Row) -> None:
    if lacks(row):
        with pytest.raises(moduli.BridgeError, match=r"has no counterpart in flax\.nnx"):
            moduli.to_flax(row.model())
        return
    with float64():
        model, inputs = wide(row)
        with assert_unchanged(model):
            theirs = moduli.to_flax(model)
        assert type(theirs).__name__ == type(model).__name__ and isinstance(theirs, nnx.Module)
        at = floats(inputs)

        def loss(theirs: Any, given: list[Any]) -> Any:
            whole = list(inputs)
            for n, x in zip(at, given, strict=True):
                whole[n] = x
            out = theirs(*whole)
            return (out * weight(out)).sum()

        # flax's softmax is in float32 whatever the dtype, ours in float64 here
        tolerance = 3e-6 if row.name.startswith("attention") else 1e-9
        same(theirs(*inputs), model(*inputs), tolerance)
        if at:
            fresh = moduli.to_flax(model)  # flax's norms of weights overwrite them in a call
            of_theirs, of_inputs = nnx.grad(loss, argnums=(0, 1))(fresh, [inputs[n] for n in at])
            mine, of_mine = gradients(model, inputs)
            flat = {
                moduli.errors.format_path(path): leaf.get_raw_value()
                for path, leaf in nnx.to_flat_state(of_theirs)
            }
            assert set(flat) == set(mine)
            same((flat, of_inputs), (mine, of_mine), 100 * tolerance)
        back = moduli.from_flax(theirs)
        assert type(back) is type(model)
        same(back(*inputs), model(*inputs), tolerance)
        kinds = {path: type(v) for path, v in moduli.to_flat_state(moduli.state(model))}
        assert kinds == {path: type(v) for path, v in moduli.to_flat_state(moduli.state(back))}


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row.name)
def test_what_flax_would_leave_out_is_refused(row: Row) -> None:
    with pytest.raises(moduli.BridgeError, match=DIFFERS[row.name]):
        moduli.to_flax(row.model())


# -- models ------------------------------------------------------------------------------------


def block_of(library: Any) -> type:
    """Makes a class of a library, as its users write one: with a base class, super, a property."""

    class Base(library.Module):
        def __init__(self, width: int, *, rngs: Any) -> None:
            self.linear = library.Linear(width, width, rngs=rngs)
            self.width = width

        def __call__(self, x: Any) -> Any:
            return library.relu(self.linear(x))

    class Block(Base):
        def __init__(self, width: int, *, rngs: Any) -> None:
            super().__init__(width, rngs=rngs)
            self.norm = library.BatchNorm(width, rngs=rngs)
            self.dropout = library.Dropout(0.5, rngs=rngs)
            self.steps = library.Variable(jnp.array(3))

        @property
        def double(self) -> int:
            return 2 * self.width

        @staticmethod
        def shifted(x: Any) -> Any:
            return x + 1

        def __call__(self, x: Any) -> Any:
            return self.dropout(self.norm(super().__call__(self.shifted(x)))) / self.double

    class Net(library.Module):
        def __init__(self, *, rngs: Any) -> None:
            self.blocks = library.List([Block(4, rngs=rngs) for _ in range(2)])
            self.again = self.blocks[0]
            self.heads = library.Dict(a=library.Linear(4, 2, rngs=rngs))
            self.heads.a.kernel = library.Param(jnp.ones((4, 2)), out_sharding=None, tag="head")
            self.tied = self.heads.a.kernel
            self.rngs = rngs

        def __call__(self, x: Any) -> Any:
            for block in [*self.blocks, self.again]:
                x = block(x)
            return self.heads["a"](x) + x @ self.tied

    return Net


@functools.cache
def theirs_class() -> type:
    return block_of(nnx)


@functools.cache
def ours_class() -> type:
    return block_of(moduli)


@pytest.mark.parametrize("way", ["from", "to"])
def test_a_model_of_the_users_classes(way: str) -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)
    if way == "from":
        source: Any = theirs_class()(rngs=nnx.Rngs(0, dropout=1))
        made, library = moduli.from_flax(source), moduli
    else:
        source = ours_class()(rngs=moduli.Rngs(0, dropout=1))
        made, library = moduli.to_flax(source), nnx
    assert isinstance(made, library.Module) and type(made).__name__ == "Net"
    assert made.again is made.blocks[0] and made.tied is made.heads.a.kernel
    assert made.tied.get_metadata()["tag"] == "head"
    assert made.blocks[0].double == 8 and made.blocks[0].steps.get_raw_value() == 3
    for _ in range(2):  # in training: dropout draws the same keys, the statistics move alike
        same(made(x), source(x), 1e-5)
    same(made.again.norm.mean.get_raw_value(), source.again.norm.mean.get_raw_value(), 1e-5)
    key, expected = made.rngs.dropout.key.get_raw_value(), source.rngs.dropout.key.get_raw_value()
    assert jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key == expected
    source.eval()
    made.eval()
    same(made(x), source(x), 1e-5)
    again = (moduli.to_flax if way == "from" else moduli.from_flax)(made)
    assert type(again) is type(source)
    same(again(x), source(x), 1e-5)


def test_a_converted_model_trains_under_our_transforms() -> None:
    model = moduli.from_flax(theirs_class()(rngs=nnx.Rngs(0)))

    @moduli.jit
    def step(model: Any, x: Any) -> Any:
        loss, grads = moduli.value_and_grad(lambda model: (model(x) ** 2).sum())(model)
        params = moduli.state(model, moduli.Param)
        moduli.update(model, jax.tree.map(lambda p, g: p - 1e-2 * g, params, grads))
        return loss

    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 4)), jnp.float32)
    losses = [float(step(model, x)) for _ in range(9)]
    assert losses[-1] < losses[0] and model.tied is model.heads.a.kernel


@pytest.mark.parametrize("way", ["from", "to"])
def test_states_keep_integer_keys_keys_and_kinds(way: str) -> None:
    source, target = (nnx, moduli) if way == "from" else (moduli, nnx)
    state = source.State(
        {
            "layers": {
                0: {"kernel": source.Param(jnp.ones(2))},
                1: {"mean": source.BatchStat(2.0)},
            },
            "rng": source.RngKey(jax.random.key(3), tag="dropout"),
            "plain": jnp.arange(3),
        }
    )
    made = getattr(moduli, f"{way}_flax")(state)
    assert isinstance(made, target.State)
    flat = dict(target.to_flat_state(made))
    assert set(flat) == {("layers", 0, "kernel"), ("layers", 1, "mean"), ("rng",), ("plain",)}
    assert type(flat["layers", 0, "kernel"]) is target.Param
    assert type(flat["layers", 1, "mean"]) is target.BatchStat
    assert flat[("rng",)].get_raw_value() == jax.random.key(3)
    assert flat[("rng",)].get_metadata()["tag"] == "dropout"


def test_kinds_of_the_users_come_over() -> None:
    class Average(nnx.BatchStat):
        pass

    nnx.register_variable_name("averages_of_bridges", Average)
    made = moduli.from_flax(Average(jnp.ones(2)))
    assert isinstance(made, moduli.BatchStat) and type(made) is not moduli.BatchStat
    assert type(moduli.to_flax(made)) is Average


# -- what is refused ---------------------------------------------------------------------------


def test_a_class_that_runs_the_other_librarys_transforms_is_refused() -> None:
    class Scanned(nnx.Module):
        def __init__(self) -> None:
            self.w = nnx.Param(jnp.ones(2))

        def __call__(self, x: Any) -> Any:
            return nnx.vmap(lambda x: x * self.w)(x)

    class Jitted(nnx.Module):
        @nnx.jit
        def __call__(self, x: Any) -> Any:
            return x

    with pytest.raises(moduli.BridgeError, match=r"`1`.*Scanned.*`__call__` runs flax.nnx's vmap"):
        moduli.from_flax([nnx.Linear(2, 2, rngs=nnx.Rngs(0)), Scanned()])
    with pytest.raises(moduli.BridgeError, match=r"`__call__` is made by flax\.nnx's Jit"):
        moduli.from_flax(Jitted())

    class Ours(moduli.Module):
        w: moduli.Param[jax.Array]

        def __call__(self, x: Any) -> Any:
            return x * self.w

    made = moduli.from_flax(Scanned(), classes={Scanned: Ours})
    assert type(made) is Ours and made(jnp.ones(2)).shape == (2,)


def test_an_optimizer_is_refused_with_its_place() -> None:
    optax = pytest.importorskip("optax")
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    held = {"model": model, "optimizer": nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)}
    with pytest.raises(moduli.BridgeError, match=r"at `optimizer` of the model.*Optimizer"):
        moduli.from_flax(held)
