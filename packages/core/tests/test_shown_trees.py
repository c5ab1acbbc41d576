"""``print(model)``: short, and nothing that differs is hidden."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest

import moduli as nnx


class Layer(nnx.Module):
    def __init__(self, size, scale=1.0, dtype=None, param_dtype=jnp.float32, act=jax.nn.relu):
        self.size, self.scale, self.dtype, self.param_dtype = size, scale, dtype, param_dtype
        self.act = act
        self.w = nnx.Param(jnp.full(size, scale, param_dtype))


class Wide(Layer):
    def __init__(self, size, extra="none", **rest):
        super().__init__(size, **rest)
        self.extra = extra


@nnx.dataclass
class Record(nnx.Module):
    size: int
    rate: float = 0.5
    tags: tuple = dataclasses.field(default=("a",))


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (lambda: Layer(20), "Layer(size=20, w=Param(float32[20]))"),
        (lambda: Layer(20, 2.0), "Layer(size=20, scale=2.0, w=Param(float32[20]))"),
        (lambda: Layer(20, 1), "Layer(size=20, scale=1, w=Param(float32[20]))"),  # 1 is not 1.0
        (
            lambda: Layer(20, param_dtype="bfloat16"),
            "Layer(size=20, param_dtype='bfloat16', w=Param(bfloat16[20]))",
        ),
        (lambda: Layer(9, param_dtype=jnp.dtype("float32")), "Layer(size=9, w=Param(float32[9]))"),
        (lambda: Layer(20, act=None), "Layer(size=20, act=None, w=Param(float32[20]))"),
        (lambda: Layer(20, act=jax.nn.gelu), "Layer(size=20, act=gelu, w=Param(float32[20]))"),
        (lambda: Wide(20), "Wide(size=20, w=Param(float32[20]))"),  # defaults of the base
        (lambda: Wide(9, "x", scale=3), "Wide(size=9, scale=3, w=Param(float32[9]), extra='x')"),
        (lambda: Record(3), "Record(size=3)"),
        (lambda: Record(3, tags=("b",)), "Record(size=3, tags=('b'))".replace("'b'", "'b',")),
    ],
)
def test_defaults_are_hidden_and_nothing_else(made, text):
    assert repr(made()) == text


def test_a_small_array_stands_on_one_line():
    model = nnx.Dict(w=nnx.Param(jnp.ones((2, 2), jnp.float32)))
    assert "'w': Param(float32[2, 2] [[1., 1.], [1., 1.]])" in repr(model)


@pytest.mark.parametrize("make", [nnx.List, list])
def test_equal_blocks_are_folded(make):
    model = nnx.Dict(blocks=nnx.data(make([Layer(3, scale=1.0) for _ in range(12)])))
    for number, block in enumerate(model.blocks):
        block.w.value = jnp.full(3, float(number), jnp.float32)  # other values, but the same block
    lines = repr(model).splitlines()
    assert len(lines) == 5
    assert "[0-11] 12 x Layer(size=3, w=Param(float32[3]))" in lines[2]


@pytest.mark.parametrize(
    "change",
    [
        lambda block: setattr(block, "scale", 5.0),
        lambda block: setattr(block, "w", nnx.BatchStat(block.w.value)),
        lambda block: setattr(block, "w", nnx.Param(jnp.ones(4))),
        lambda block: setattr(block, "w", nnx.Param(jnp.ones(3, jnp.bfloat16))),
        lambda block: setattr(block, "more", nnx.Param(1.0)),
        lambda block: block.w.set_metadata(tag="frozen"),
    ],
)
def test_a_block_that_differs_is_not_folded(change):
    blocks = nnx.List([Layer(3) for _ in range(5)])
    change(blocks[2])
    text = repr(blocks)
    assert "[0-1] 2 x Layer" in text and "[2] Layer(" in text and "[3-4] 2 x Layer" in text


def test_shared_blocks_are_named_one_by_one():
    block = Layer(3)
    text = repr(nnx.List([block, block, block]))
    assert "[0] Layer(" in text
    assert "[1] Layer(shared with 0)" in text and "[2] Layer(shared with 0)" in text


def test_a_model_of_a_few_layers_is_a_few_lines():
    class Block(nnx.Module):
        def __init__(self, rngs):
            self.attention = nnx.MultiHeadAttention(num_heads=2, in_features=16, rngs=rngs)
            self.norm = nnx.LayerNorm(16, rngs=rngs)

    rngs = nnx.Rngs(0)
    model = nnx.Dict(blocks=nnx.List([Block(rngs) for _ in range(8)]))
    assert len(repr(model).splitlines()) < 60
