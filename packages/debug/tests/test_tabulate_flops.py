"""FLOPs of tabulate against counts by hand, and against XLA's count of the whole program.

XLA's count is before optimization. It differs from what papers count in this: elementwise
operations count one for each element, those that are called transcendental (exp, tanh, rsqrt, ...)
count nothing, and a convolution's products with padding are left out. The hand counts below follow
each of these rules where it is not negligible.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from summary_models import Attention, Block, ResNet, Transformer, abstract, shape

import moduli as nnx
import moduli_debug

tabulate = functools.partial(moduli_debug.tabulate, compute_flops=True, compute_vjp_flops=True)


def xla(function: Any, *args: Any) -> float:
    return jax.jit(function).lower(*args).cost_analysis()["flops"]


def whole_program(model: nnx.Module, *inputs: Any) -> float:
    """XLA's count of a call, new state included, as one program."""
    graphdef, state = nnx.split(model)

    def call(state: Any, *inputs: Any) -> Any:
        model = nnx.merge(graphdef, state)
        return model(*inputs), nnx.state(model).to_pure_dict()

    return xla(call, state, *inputs)


def test_linear() -> None:
    batch, size_in, size_out = 8, 64, 32
    model = abstract(lambda rngs: nnx.Linear(size_in, size_out, rngs=rngs))
    summary = tabulate(model, shape(batch, size_in))
    product = 2 * batch * size_in * size_out
    assert summary.flops == product + batch * size_out  # and the bias
    assert summary.vjp_flops == pytest.approx(3 * product, rel=0.02)


@pytest.mark.parametrize(("padding", "strides"), [("VALID", 1), ("SAME", 1), ("SAME", 2)])
def test_conv(padding: str, strides: int) -> None:
    batch, side, size_in, size_out, kernel = 2, 16, 8, 12, 3
    model = abstract(
        lambda rngs: nnx.Conv(
            size_in, size_out, (kernel, kernel), strides=strides, padding=padding, rngs=rngs
        )
    )
    summary = tabulate(model, shape(batch, side, side, size_in))
    side_out = summary.rows[0].outputs.shape[1]
    # along one axis: how many (output, kernel) positions meet the image and not the padding
    low = max((side_out - 1) * strides + kernel - side, 0) // 2 if padding == "SAME" else 0
    positions = sum(
        0 <= place * strides + offset - low < side
        for place in range(side_out)
        for offset in range(kernel)
    )
    products = 2 * batch * size_in * size_out * positions**2
    assert summary.flops == pytest.approx(products, rel=0.02)
    assert summary.flops == products + batch * side_out**2 * size_out  # and the bias
    # the gradients of the kernel and of the image are made of the same products
    assert summary.vjp_flops == pytest.approx(3 * products, rel=0.02)
    if padding == "SAME" and strides == 1:  # papers count the padding too, which matters here
        assert products / (2 * batch * size_in * size_out * (side * kernel) ** 2) < 0.93


def attention_by_hand(batch: int, length: int, size: int, heads: int) -> int:
    projections = 4 * 2 * batch * length * size * size
    products = 2 * 2 * batch * length * length * size
    softmax = 5 * batch * heads * length * length  # max, subtract, (exp), sum, divide; and a few
    return projections + products + softmax


def test_attention() -> None:
    batch, length, size, heads = 2, 32, 64, 2
    model = abstract(lambda rngs: Attention(size, heads, rngs))
    summary = tabulate(model, shape(batch, length, size))
    by_hand = attention_by_hand(batch, length, size, heads)
    assert summary.flops == pytest.approx(by_hand, rel=0.02)
    assert summary.vjp_flops == pytest.approx(3 * by_hand, rel=0.02)
    query = next(row for row in summary.rows if row.name == "query")
    assert query.flops == 2 * batch * length * size * size


def test_the_layer_of_moduli_layers() -> None:
    batch, length, size, heads = 2, 32, 64, 2
    model = abstract(
        lambda rngs: nnx.MultiHeadAttention(
            heads, size, qkv_features=size, decode=False, use_bias=False, rngs=rngs
        )
    )
    summary = tabulate(model, shape(batch, length, size), compute_vjp_flops=False)
    by_hand = attention_by_hand(batch, length, size, heads)
    assert summary.flops == pytest.approx(by_hand, rel=0.02)


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (lambda rngs: ResNet(4, 2, 10, rngs), shape(2, 8, 8, 3)),
        (lambda rngs: Transformer(16, 8, 2, False, rngs), shape(2, 5, dtype=jnp.int32)),
    ],
    ids=["resnet", "transformer"],
)
def test_the_parts_add_up_to_xlas_count_of_the_whole_program(model: Any, inputs: Any) -> None:
    model = abstract(model)
    summary = tabulate(model, inputs, compute_vjp_flops=False)
    assert summary.flops == whole_program(model, inputs)


def test_forward_and_backward_add_up_too() -> None:
    model = abstract(lambda rngs: Block(8, 2, rngs))
    graphdef, state = nnx.split(model)

    def call(state: Any, x: Any) -> Any:
        return nnx.merge(graphdef, state)(x)

    def both(state: Any, x: Any, cotangent: Any) -> Any:
        y, pullback = jax.vjp(call, state, x)
        return y, pullback(cotangent)

    x = shape(2, 5, 8)
    assert tabulate(model, x).vjp_flops == xla(both, state, x, x)


def test_a_modules_count_is_that_of_its_own_call() -> None:
    model = abstract(lambda rngs: Transformer(16, 8, 2, False, rngs))
    summary = tabulate(model, shape(2, 5, dtype=jnp.int32), compute_vjp_flops=False)
    rows = {row.name: row for row in summary.rows}
    for name, module in [
        ("blocks/1", model.blocks[1]),
        ("blocks/1/attention", model.blocks[1].attention),
        ("blocks/0/norm1", model.blocks[0].norm1),
    ]:
        assert rows[name].flops == whole_program(module, *rows[name].args)
    assert rows["blocks/0"].flops == rows["blocks/1"].flops


def test_every_step_of_a_loop_counts() -> None:
    tokens, depth = shape(2, 5, dtype=jnp.int32), 3
    unrolled = abstract(lambda rngs: Transformer(16, 8, depth, False, rngs))
    scanned = abstract(lambda rngs: Transformer(16, 8, depth, True, rngs))
    one, other = tabulate(unrolled, tokens), tabulate(scanned, tokens)
    assert other.flops == one.flops
    assert other.vjp_flops == pytest.approx(one.vjp_flops, rel=0.02)  # gradients are stacked
    rows = {row.name: row for row in other.rows}
    assert rows["blocks"].calls == 1
    assert rows["blocks/block"].calls == rows["blocks/block/attention/query"].calls == depth
    assert rows["blocks/block"].flops == rows["blocks"].flops
    each = next(row for row in one.rows if row.name == "blocks/0")
    assert rows["blocks/block"].flops == depth * each.flops
    assert rows["blocks/block"].args == each.args  # of one step
    # XLA's own count, of the same program, has one step
    assert whole_program(scanned, tokens) < 0.6 * other.flops


def test_a_loop_in_a_loop_and_a_module_called_twice() -> None:
    class Twice(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.inner = nnx.Linear(4, 4, use_bias=False, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.inner(self.inner(x))

    model = abstract(
        lambda rngs: nnx.Stack(lambda rngs: nnx.Stack(Twice, 3, rngs=rngs), 2, rngs=rngs)
    )
    summary = tabulate(model, shape(1, 4), compute_vjp_flops=False)
    rows = {row.name: row for row in summary.rows}
    assert [rows[name].calls for name in ("", "block", "block/block", "block/block/inner")] == [
        *(1, 2, 6, 12)
    ]
    assert {row.flops for row in summary.rows} == {12 * 2 * 16}


def test_inside_of_transforms() -> None:
    class Wrapped(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.jitted, self.again, self.batched = (
                nnx.Linear(4, 4, use_bias=False, rngs=rngs) for _ in range(3)
            )

        def __call__(self, x: Any) -> Any:
            x = nnx.jit(lambda module, x: module(x))(self.jitted, x)
            x = nnx.remat(lambda module, x: jnp.square(module(x)))(self.again, x)
            return nnx.vmap(lambda module, x: module(x), in_axes=(None, 0))(self.batched, x)

    model = abstract(Wrapped)
    summary = tabulate(model, shape(5, 4))
    product = 2 * 5 * 4 * 4
    rows = {row.name: row for row in summary.rows}
    for name in ("jitted", "again", "batched"):
        assert (rows[name].calls, rows[name].flops) == (1, product)
    assert rows["batched"].args[0].shape == (4,)  # of one example
    assert rows["jitted"].vjp_flops == rows["batched"].vjp_flops == 3 * product
    assert rows["again"].vjp_flops == 4 * product  # its forward pass runs again
    assert summary.vjp_flops == pytest.approx(10 * product, rel=0.1)


def test_work_on_several_devices_is_that_of_all() -> None:
    devices = jax.devices()
    mesh = jax.sharding.Mesh(np.array(devices), ("d",))

    class Sharded(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.linear = nnx.Linear(4, 4, use_bias=False, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            def body(module: Any, x: Any) -> Any:
                return jax.lax.psum(module(x), "d")

            specs = (PartitionSpec(), PartitionSpec("d"))
            run = nnx.shard_map(body, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())
            return run(self.linear, x)

    summary = tabulate(abstract(Sharded), shape(2 * len(devices), 4), compute_vjp_flops=False)
    rows = {row.name: row for row in summary.rows}
    assert (rows["linear"].calls, rows["linear"].flops) == (1, 2 * 2 * len(devices) * 16)
    assert any("'psum" in note for note in summary.notes)  # which only exists on devices


def test_branches_and_loops_of_unknown_length() -> None:
    class Choice(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.small = nnx.Linear(4, 4, use_bias=False, rngs=rngs)
            self.large = nnx.Stack(
                lambda rngs: nnx.Linear(4, 4, use_bias=False, rngs=rngs), 3, rngs=rngs
            )

        def __call__(self, x: Any, n: Any) -> Any:
            x = nnx.cond(n > 3, lambda m, x: m.large(x), lambda m, x: m.small(x), self, x)
            return jax.lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, c[1] * 2), (0, x))

    summary = tabulate(abstract(Choice), shape(1, 4), shape(dtype=jnp.int32))
    assert summary.flops == pytest.approx(3 * 2 * 16, rel=0.1)
    rows = {row.name: row for row in summary.rows}
    assert (rows["large"].calls, rows["large/block"].calls, rows["small"].calls) == (1, 3, 1)
    assert any("while loop" in note for note in summary.notes)
    assert any("condition" in note for note in summary.notes)
    assert summary.vjp_flops is None  # a while loop has no reverse mode, which is said
    assert any("no backward pass" in note for note in summary.notes)


def test_only_params_and_inputs_have_gradients() -> None:
    class Frozen(nnx.Variable[Any]):
        pass

    class Adapted(nnx.Module):
        def __init__(self, kind: type[nnx.Variable[Any]]) -> None:
            self.kernel = kind(jnp.ones((8, 8), jnp.float32))

        def __call__(self, x: Any) -> Any:
            return x @ self.kernel.value

    product = 2 * 4 * 8 * 8
    assert tabulate(Adapted(nnx.Param), shape(4, 8)).vjp_flops == 3 * product
    assert tabulate(Adapted(Frozen), shape(4, 8)).vjp_flops == 2 * product


def test_counts_that_are_not_wanted() -> None:
    model = abstract(lambda rngs: nnx.Linear(2, 3, rngs=rngs))
    neither = tabulate(model, shape(1, 2), compute_flops=False, compute_vjp_flops=False)
    assert (neither.flops, neither.vjp_flops, neither.rows[0].flops) == (None, None, None)
    assert "flops" not in neither
    forward = tabulate(model, shape(1, 2), compute_vjp_flops=False)
    assert forward.flops == 15 and forward.vjp_flops is None and "vjp" not in forward
    backward = tabulate(model, shape(1, 2), compute_flops=False)
    assert backward.flops is None and backward.vjp_flops > 30


def test_no_floating_point_output() -> None:
    class Index(nnx.Module):
        def __call__(self, x: Any) -> Any:
            return x.argmax(-1)

    summary = tabulate(Index(), shape(2, 3))
    assert summary.vjp_flops is None
    assert summary.notes == ["vjp_flops: no output is floating point, so there is no backward pass"]
