"""Stack: what the loop over its blocks does, in every form in which it may run."""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import pickle
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli
from moduli.errors import PathError, RngError, ShapeError, StructureError
from moduli.testing import assert_equal_graphs, assert_unchanged
from moduli_layers import BatchNorm, Dropout, Linear, Stack, initializers, with_partitioning

N = 3
X = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)
CLOSE: dict[str, Any] = {"rtol": 2e-5, "atol": 2e-6}


class Block(moduli.Module):
    """Uses all there is: parameters, a statistic, random numbers."""

    def __init__(self, rngs: moduli.Rngs) -> None:
        self.norm = BatchNorm(3, rngs=rngs)
        self.linear = Linear(3, 3, rngs=rngs)
        self.dropout = Dropout(0.4, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.dropout(jnp.tanh(self.linear(self.norm(x))))


class Plain(moduli.Module):
    """Has parameters only; smooth."""

    def __init__(self, rngs: moduli.Rngs) -> None:
        self.linear = Linear(3, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(self.linear(x))


class Double(moduli.Module):
    """Holds no value."""

    def __call__(self, x: Any) -> Any:
        return jax.tree.map(lambda leaf: 2 * leaf, x)


def make(block: Any = Block, n: int = N, **options: Any) -> Stack:
    return Stack(block, n, rngs=moduli.Rngs(7), **options)


def loop(blocks: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    for block in blocks:
        x = block(x, *args, **kwargs)
    return x


def bits(node: Any) -> list[np.ndarray]:
    """The values of a model or State as arrays; keys as their numbers."""
    state = node if isinstance(node, moduli.State) else moduli.state(node)
    return [
        np.asarray(jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a)
        for a in jax.tree.leaves(state)
    ]


def assert_close(one: Any, other: Any, **options: Any) -> None:
    for a, b in zip(bits(one), bits(other), strict=True):
        np.testing.assert_allclose(a, b, **{**CLOSE, **options})


def assert_same(one: Any, other: Any) -> None:
    for a, b in zip(bits(one), bits(other), strict=True):
        np.testing.assert_array_equal(a, b)


def call(stack: Any, *args: Any, **kwargs: Any) -> Any:
    return stack(*args, **kwargs)


run = moduli.jit(call)  # compiles once for all tests with equal stacks


def loss(stack: Any, x: jax.Array) -> jax.Array:
    return (stack(x) ** 2).sum()


FORMS = {
    f"{'scan' if scan else 'loop'}{'-remat' if remat else ''}": {"scan": scan, "remat": remat}
    for scan, remat in itertools.product((True, False), (False, True))
}
each_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
both_forms = pytest.mark.parametrize("scan", [True, False], ids=["scan", "loop"])
jitted_or_not = pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jit"])


# -- against the loop ------------------------------------------------------------------------------


@functools.cache
def twice_the_loop() -> tuple[Any, Any]:
    """The blocks after two calls, and the outputs."""
    blocks = list(make())
    return blocks, [loop(blocks, X) for _ in range(2)]


@jitted_or_not
@each_form
def test_outputs_and_state_are_those_of_the_loop(form: Any, jitted: bool) -> None:
    stack = make(**form)
    blocks, outputs = twice_the_loop()
    forward = run if jitted else call
    for expected in outputs:  # the second call meets moved statistics and streams
        np.testing.assert_allclose(forward(stack, X), expected, **CLOSE)
    for index, block in enumerate(blocks):
        assert_close(stack[index], block)


@functools.cache
def gradients_of_the_loop() -> tuple[Any, Any, Any]:
    """The blocks after it, the loss, and its gradients by blocks and input."""
    blocks = moduli.List(list(make()))
    value, grads = moduli.value_and_grad(
        lambda blocks, x: (loop(blocks, x) ** 2).sum(), argnums=(0, 1)
    )(blocks, X)
    return blocks, value, grads


@jitted_or_not
@each_form
def test_gradients_are_those_of_the_loop(form: Any, jitted: bool) -> None:
    stack = make(**form)
    gradient = moduli.value_and_grad(loss, argnums=(0, 1))
    value, (grads, by_x) = (moduli.jit(gradient) if jitted else gradient)(stack, X)
    blocks, expected, (by_block, expected_by_x) = gradients_of_the_loop()
    np.testing.assert_allclose(value, expected, **CLOSE)
    np.testing.assert_allclose(by_x, expected_by_x, rtol=1e-4, atol=1e-5)
    for index in range(N):
        one = jax.tree.map(lambda leaf, index=index: leaf[index], grads["block"])
        assert_close(one, by_block[index], rtol=1e-4, atol=1e-5)
    for index, block in enumerate(blocks):  # the state moved too
        assert_close(stack[index], block)


@pytest.mark.parametrize(
    ("scan", "unroll"), [(True, 2), (True, N), (True, 10), (False, 2)], ids=str
)
def test_unrolling_changes_no_value(scan: bool, unroll: int) -> None:
    stack, expected = make(scan=scan, unroll=unroll), make()
    np.testing.assert_allclose(run(stack, X), run(expected, X), **CLOSE)
    assert_close(stack, expected)


def test_a_policy_changes_no_value() -> None:
    stack = make(remat=True, policy=jax.checkpoint_policies.dots_saveable)
    gradient = moduli.jit(moduli.grad(loss))
    assert_close(gradient(stack, X), gradient(make(), X), rtol=1e-4, atol=1e-5)


@both_forms
def test_a_policy_says_what_is_computed_again(scan: bool) -> None:
    def products(**options: Any) -> int:
        stack = make(Plain, n=2, scan=scan, **options)
        return str(moduli.make_jaxpr(moduli.grad(loss))(stack, X)).count("dot_general[")

    save_dots = jax.checkpoint_policies.dots_saveable
    assert products(remat=True) > products(remat=True, policy=save_dots)
    assert products(remat=True, policy=save_dots) == products()


@both_forms
def test_one_block_is_that_block(scan: bool) -> None:
    stack = make(n=1, scan=scan)
    block = stack[0]
    np.testing.assert_allclose(stack(X), block(X), **CLOSE)
    assert_close(stack[0], block)


def test_the_form_may_be_switched_at_any_time() -> None:
    stack = make()
    blocks = list(stack)
    for scan, remat in itertools.product((True, False, True), (True, False)):
        stack.scan, stack.remat = scan, remat
        np.testing.assert_allclose(run(stack, X), loop(blocks, X), **CLOSE)
    assert_same(stack.block.dropout, Stack.of(blocks).block.dropout)


def test_in_evaluation_it_is_a_function_of_the_input() -> None:
    stack = make()
    run(stack, X)
    stack.eval()
    with assert_unchanged(stack):
        out = run(stack, X)
    np.testing.assert_allclose(out, loop(stack, X), **CLOSE)
    np.testing.assert_array_equal(out, run(stack, X))


def test_under_vmap_over_inputs_it_is_a_loop() -> None:
    stack = make(Plain)
    xs = jnp.stack([X, 2 * X])
    out = moduli.vmap(call, in_axes=(None, 0))(stack, xs)
    np.testing.assert_allclose(out, jnp.stack([stack(x) for x in xs]), **CLOSE)


def test_directional_derivatives_are_those_of_the_loop() -> None:
    stack = make(Plain)
    _, expected = jax.jvp(lambda x: loop(list(stack), x), (X,), (X + 1,))
    _, tangent = moduli.jvp(lambda x: stack(x), (X,), (X + 1,))
    np.testing.assert_allclose(tangent, expected, **CLOSE)


# -- the blocks it makes ---------------------------------------------------------------------------


def test_every_value_has_a_first_axis_of_n() -> None:
    stack = make()
    assert all(leaf.shape[0] == N for leaf in jax.tree.leaves(moduli.state(stack)))
    assert stack.block.linear.kernel.shape == (N, 3, 3)


def test_parameters_are_equal_in_every_form() -> None:
    first, *others = [make(**form) for form in FORMS.values()]
    for other in others:
        assert_same(first, other)


def test_no_two_blocks_are_equal() -> None:
    stack = make()
    assert len({np.asarray(block.linear.kernel).tobytes() for block in stack}) == N
    keys = [jax.random.key_data(block.dropout.rngs.key.value) for block in stack]
    assert len({np.asarray(key).tobytes() for key in keys}) == N


def test_block_i_is_made_of_the_i_th_streams() -> None:
    """As by hand, with ``rngs.split``."""
    streams = moduli.Rngs(7).split(N)
    graphdef, state = moduli.split(streams)
    for index, block in enumerate(make()):
        own = moduli.merge(graphdef, jax.tree.map(lambda leaf, index=index: leaf[index], state))
        assert_close(block, Block(own), rtol=0, atol=0)


def test_equal_seeds_make_flax_blocks(flax_nnx: Any) -> None:
    @flax_nnx.split_rngs(splits=N)
    @flax_nnx.vmap(in_axes=0, out_axes=0)
    def theirs(rngs: Any) -> Any:
        return flax_nnx.Linear(3, 3, rngs=rngs)

    ours = make(lambda rngs: Linear(3, 3, rngs=rngs))
    np.testing.assert_array_equal(ours.block.kernel.value, theirs(flax_nnx.Rngs(7)).kernel[...])


def test_the_callers_streams_count_one_draw_each() -> None:
    rngs = moduli.Rngs(0, params=1)
    Stack(Block, N, rngs=rngs)
    assert [int(stream.count) for _, stream in rngs.items()] == [1, 1]


def test_two_stacks_of_the_same_streams_differ() -> None:
    rngs = moduli.Rngs(0)
    one, other = (Stack(Plain, N, rngs=rngs) for _ in range(2))
    assert (one.block.linear.kernel.value != other.block.linear.kernel.value).all()


def test_streams_that_were_split_before_are_used_as_they_are() -> None:
    stack = Stack(Plain, N, rngs=moduli.Rngs(7).split(N))
    assert_same(stack, make(Plain))


class Keeper(moduli.Module):
    """Keeps the streams that it is given."""

    def __init__(self, rngs: moduli.Rngs) -> None:
        self.rngs = rngs

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + jax.random.uniform(self.rngs.noise(), x.shape, x.dtype)


@both_forms
def test_blocks_may_keep_the_streams_that_they_are_given(scan: bool) -> None:
    rngs = moduli.Rngs(7)
    stack = Stack(Keeper, N, rngs=rngs, scan=scan)
    blocks = list(stack)
    np.testing.assert_allclose(stack(X), loop(blocks, X), **CLOSE)
    assert stack.block.rngs is not rngs
    assert stack.block.rngs.default.count.value.tolist() == [1] * N


def test_a_function_without_rngs_makes_equal_blocks() -> None:
    stack = Stack(lambda: Plain(moduli.Rngs(3)), N)
    for block in stack:
        assert_close(block, Plain(moduli.Rngs(3)), rtol=0, atol=0)


@each_form
def test_blocks_may_hold_no_value(form: Any) -> None:
    np.testing.assert_array_equal(Stack(Double, 5, **form)(X), 32 * X)


def test_the_function_runs_once_for_all_blocks() -> None:
    made = []

    def block(rngs: moduli.Rngs) -> Plain:
        made.append(1)
        return Plain(rngs)

    make(block, n=16)
    assert len(made) == 1


# -- randomness and statistics ---------------------------------------------------------------------


class Mask(moduli.Module):
    """Puts its mask into its row of the input, which starts as ones."""

    def __init__(self, rngs: moduli.Rngs) -> None:
        self.dropout = Dropout(0.5, rngs=rngs)

    def __call__(self, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        index, rows = carry
        return index + 1, rows.at[index].set(self.dropout(rows[index]))


def masks(**options: Any) -> np.ndarray:
    _, rows = run(make(Mask, **options), (jnp.array(0), jnp.ones((N, 64))))
    return np.asarray(rows)


def test_every_block_draws_a_mask_of_its_own() -> None:
    assert len(np.unique(masks() != 0, axis=0)) == N


@each_form
def test_masks_are_the_same_in_every_form(form: Any) -> None:
    expected = np.stack([block.dropout(jnp.ones(64)) for block in make(Mask)])
    np.testing.assert_array_equal(masks(**form), expected)


def test_masks_differ_from_call_to_call() -> None:
    stack = make(lambda rngs: Dropout(0.5, rngs=rngs))
    one, other = stack(jnp.ones(256)), stack(jnp.ones(256))
    assert (one != other).any()
    assert stack.block.rngs.count.value.tolist() == [2] * N


@both_forms
def test_rngs_in_the_call_are_one_stream_for_all_blocks(scan: bool) -> None:
    stack = Stack(lambda: Dropout(0.2), 3, scan=scan)
    ours, theirs = moduli.Rngs(5), moduli.Rngs(5)
    np.testing.assert_array_equal(
        stack(jnp.ones(64), rngs=ours), loop(stack, jnp.ones(64), rngs=theirs)
    )
    assert int(ours.default.count) == 3


@each_form
def test_statistics_are_updated_block_by_block(form: Any) -> None:
    stack = make(lambda rngs: BatchNorm(3, momentum=0.9, rngs=rngs), **form)
    run(stack, 2 * X + 3)
    first = 2 * X + 3
    np.testing.assert_allclose(stack[0].mean.value, 0.1 * first.mean(0), **CLOSE)
    np.testing.assert_allclose(stack[0].var.value, 0.9 + 0.1 * first.var(0), **CLOSE)
    for block in list(stack)[1:]:  # their input is normal already
        np.testing.assert_allclose(block.mean.value, np.zeros(3), atol=1e-6)
        np.testing.assert_allclose(block.var.value, np.ones(3), rtol=1e-4)


# -- other arguments and other carries -------------------------------------------------------------


class Flexible(moduli.Module):
    """Takes arguments of every kind."""

    def __init__(self, rngs: moduli.Rngs) -> None:
        self.linear = Linear(3, 3, rngs=rngs)

    def __call__(
        self, x: jax.Array, mask: Any = None, *, mode: str = "plain", scale: Any = 1.0, f: Any = abs
    ) -> jax.Array:
        y = f(self.linear(x)) * scale
        y = y if mask is None else jnp.where(mask, y, 0)
        return -y if mode == "negative" else y


MASK = jnp.array([True, False, True])
ARGUMENTS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((), {}),
    ((MASK,), {}),
    ((), {"mask": MASK}),
    ((None,), {"mode": "negative"}),
    ((), {"scale": 2}),
    ((MASK,), {"mode": "negative", "scale": jnp.arange(3, dtype=X.dtype), "f": jnp.sin}),
]


@pytest.mark.parametrize(("args", "kwargs"), ARGUMENTS)
@both_forms
def test_all_blocks_get_the_other_arguments(
    scan: bool, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    stack = make(Flexible, scan=scan, remat=scan)

    def with_arguments(stack: Any, x: jax.Array) -> Any:
        return stack(x, *args, **kwargs)

    out = moduli.jit(with_arguments)(stack, X)
    np.testing.assert_allclose(out, loop(stack, X, *args, **kwargs), **CLOSE)


@each_form
def test_a_module_among_the_arguments_is_one_module_for_all_blocks(form: Any) -> None:
    stack = make(Flexible, **form)
    ours, theirs = (BatchNorm(3, rngs=moduli.Rngs(0)) for _ in range(2))
    out = moduli.jit(lambda stack, x, f: stack(x, f=f))(stack, X, ours)
    np.testing.assert_allclose(out, loop(stack, X, f=theirs), **CLOSE)
    assert_close(ours, theirs)


@each_form
def test_gradients_reach_the_other_arguments(form: Any) -> None:
    stack = make(Flexible, **form)
    grads = moduli.grad(lambda scale: stack(X, scale=scale).sum())(jnp.ones(3, X.dtype))
    expected = jax.grad(lambda scale: loop(list(stack), X, scale=scale).sum())(jnp.ones(3, X.dtype))
    np.testing.assert_allclose(grads, expected, rtol=1e-4)


CARRIES: dict[str, Any] = {
    "pair": (X, jnp.ones(2)),
    "nested": {"a": [X, (X, X)], "b": {"c": jnp.arange(3)}},
    "numpy": np.ones((2, 2), np.float32),
    "integers": jnp.arange(3),
    "a number": 1.5,
    "with None": (X, None),
    "empty": (),
}


@pytest.mark.parametrize("carry", CARRIES.values(), ids=CARRIES)
@both_forms
def test_the_input_may_be_any_tree(scan: bool, carry: Any) -> None:
    out = Stack(Double, 3, scan=scan, remat=scan)(carry)
    assert jax.tree.structure(out) == jax.tree.structure(carry)
    for ours, given in zip(jax.tree.leaves(out), jax.tree.leaves(carry), strict=True):
        np.testing.assert_array_equal(ours, 8 * given)


# -- of --------------------------------------------------------------------------------------------


@each_form
def test_of_runs_the_blocks_in_order(form: Any) -> None:
    blocks = [Block(moduli.Rngs(seed)) for seed in range(3)]
    stack = Stack.of(blocks, **form)
    assert (len(stack), stack.scan, stack.remat) == (3, form["scan"], form["remat"])
    np.testing.assert_allclose(stack(X), loop(blocks, X), **CLOSE)
    for index, block in enumerate(blocks):
        assert_close(stack[index], block)


def test_of_the_blocks_of_a_stack_is_the_stack() -> None:
    stack = make(unroll=2)
    again = Stack.of(list(stack), unroll=2)
    assert_equal_graphs(again, stack)


def test_of_takes_copies() -> None:
    blocks = [Plain(moduli.Rngs(seed)) for seed in range(2)]
    stack = Stack.of(blocks)
    with assert_unchanged(moduli.List(blocks)):
        stack.block.linear.kernel.value *= 0
    assert not bits(stack[0])[1].any()


def test_of_takes_options() -> None:
    save_dots = jax.checkpoint_policies.dots_saveable
    stack = Stack.of([Double()], scan=False, remat=True, policy=save_dots, unroll=3)
    assert (stack.scan, stack.remat, stack.policy, stack.unroll) == (False, True, save_dots, 3)


def test_of_takes_any_sequence() -> None:
    blocks = [Plain(moduli.Rngs(seed)) for seed in range(2)]
    for form in (tuple(blocks), moduli.List(blocks), (block for block in blocks)):
        assert_equal_graphs(Stack.of(form), Stack.of(blocks))


def linear(**options: Any) -> Linear:
    return Linear(3, 3, rngs=moduli.Rngs(0), **options)


def wide() -> Linear:
    block = linear()
    block.kernel.value = jnp.ones((3, 4), jnp.float32)
    return block


def half() -> Linear:
    block = linear()
    block.bias.value = jnp.ones(3, jnp.bfloat16)
    return block


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (lambda: [], "Stack.of needs at least one block, got none"),
        (
            lambda: [linear(), abs],
            "Stack.of needs Modules, got a builtin_function_or_method as block 1",
        ),
        (
            lambda: [linear(), linear(), wide()],
            "Stack.of: `kernel` is float32[3,4] in block 2, but float32[3,3] in block 0; stacked "
            "blocks have equal shapes and dtypes",
        ),
        (
            lambda: [linear(), half()],
            "Stack.of: `bias` is bfloat16[3] in block 1, but float32[3] in block 0; stacked blocks "
            "have equal shapes and dtypes",
        ),
    ],
    ids=["none", "no module", "shape", "dtype"],
)
def test_of_refuses_what_cannot_be_stacked(blocks: Callable[[], list[Any]], message: str) -> None:
    with pytest.raises(StructureError) as caught:
        Stack.of(blocks())
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("other", "shown"),
    [
        (lambda: linear(use_bias=False), "use_bias=False"),
        (lambda: Plain(moduli.Rngs(0)), "0 Plain()"),
        (lambda: linear(dtype=jnp.bfloat16), "dtype=bfloat16"),
    ],
    ids=["setting", "class", "dtype"],
)
def test_of_shows_both_structures_where_they_differ(other: Any, shown: str) -> None:
    block = other()
    with pytest.raises(StructureError) as caught:
        Stack.of([linear(), block])
    head, rest = str(caught.value).split("\n", 1)
    assert head == (
        f"Stack.of: block 1 ({type(block).__name__}) has another structure than block 0 (Linear); "
        "stacked blocks have the same classes, attributes and settings:"
    )
    theirs, first = rest.split("\nis not\n")
    assert shown in theirs
    assert shown not in first


def test_of_sees_a_mode_that_differs() -> None:
    blocks = [Block(moduli.Rngs(seed)) for seed in range(2)]
    blocks[1].eval()
    with pytest.raises(StructureError, match=r"block 1 \(Block\) has another structure"):
        Stack.of(blocks)


# -- one block -------------------------------------------------------------------------------------


def test_an_index_gives_a_copy_of_that_block() -> None:
    stack = make()
    for index in range(N):
        block = stack[index]
        assert type(block) is Block
        np.testing.assert_array_equal(
            block.linear.kernel.value, stack.block.linear.kernel.value[index]
        )
    with assert_unchanged(stack):
        block.linear.kernel.value *= 0
        block(X)


def test_a_negative_index_counts_from_the_end() -> None:
    stack = make()
    for index in range(1, N + 1):
        assert_same(stack[-index], stack[N - index])


@pytest.mark.parametrize("index", [np.int32(1), jnp.array(1)], ids=["numpy", "jax"])
def test_an_index_may_be_of_any_integer_type(index: Any) -> None:
    stack = make()
    assert_same(stack[index], stack[1])


@pytest.mark.parametrize("index", [N, -N - 1, 100])
def test_an_index_out_of_range_is_refused(index: int) -> None:
    with pytest.raises(PathError) as caught:
        make()[index]
    assert str(caught.value) == f"Stack has {N} blocks, got the index {index}"


@pytest.mark.parametrize("index", ["0", 1.0, slice(0, 2), None])
def test_what_is_no_index_is_a_type_error(index: Any) -> None:
    with pytest.raises(TypeError, match="cannot be interpreted as an integer"):
        make()[index]


def test_it_has_a_length_and_may_be_iterated_over_again() -> None:
    stack = make()
    assert len(stack) == stack.n == N
    for _ in range(2):
        assert [type(block) for block in stack] == [Block] * N


def test_blocks_may_be_taken_out_inside_jit() -> None:
    stack = make(Plain)
    out = moduli.jit(lambda stack, x: loop(stack, x))(stack, X)
    np.testing.assert_allclose(out, stack(X), **CLOSE)


def test_one_block_may_be_written_through_the_stacked_value() -> None:
    stack = make(Plain)
    kernel = stack.block.linear.kernel
    kernel.value = kernel.value.at[1].set(0)
    assert not np.asarray(stack[1].linear.kernel).any()
    np.testing.assert_allclose(stack(X), loop(stack, X), **CLOSE)


# -- as a module -----------------------------------------------------------------------------------


@both_forms
def test_modes_reach_the_blocks(scan: bool) -> None:
    stack = make(scan=scan)
    stack.eval()
    assert stack.block.dropout.deterministic and stack.block.norm.use_running_average
    assert stack[2].dropout.deterministic
    stack.train()
    assert not stack.block.dropout.deterministic and not stack[2].norm.use_running_average


COPIES: dict[str, Callable[[Stack], Stack]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda stack: pickle.loads(pickle.dumps(stack)),
    "clone": moduli.clone,
    "split and merge": lambda stack: moduli.merge(*moduli.split(stack), copy=True),
}


@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES)
@each_form
def test_copies_go_on_as_the_original_and_apart_from_it(form: Any, make_copy: Any) -> None:
    stack = make(**form)
    run(stack, X)
    other = make_copy(stack)
    assert_equal_graphs(other, stack)
    with assert_unchanged(stack):
        out = run(other, X)
    np.testing.assert_array_equal(run(stack, X), out)
    assert_same(stack, other)


def test_paths_are_those_of_one_block_below_block() -> None:
    paths = moduli.to_flat_state(moduli.state(make())).paths
    one = moduli.to_flat_state(moduli.state(Block(moduli.Rngs(0)))).paths
    assert paths == tuple(("block", *path) for path in one)


def test_state_of_one_form_updates_the_other() -> None:
    scanned = make(scan=True)
    looped = Stack(Block, N, rngs=moduli.Rngs(1), scan=False)
    moduli.update(looped, moduli.state(scanned))
    np.testing.assert_allclose(run(looped, X), run(scanned, X), **CLOSE)


def test_forms_differ_in_structure_and_nothing_else() -> None:
    scanned, looped = make(scan=True), make(scan=False)
    assert moduli.graphdef(scanned) != moduli.graphdef(looped)
    looped.scan = True
    assert moduli.graphdef(scanned) == moduli.graphdef(looped)


# -- stacks of stacks ------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", [True, False], ids=["inner scan", "inner loop"])
@pytest.mark.parametrize("outer", [True, False], ids=["outer scan", "outer loop"])
def test_stacks_nest(outer: bool, inner: bool) -> None:
    stack = make(lambda rngs: Stack(Block, 3, rngs=rngs, scan=inner), 2, scan=outer)
    blocks = [block for part in stack for block in part]
    np.testing.assert_allclose(run(stack, X), loop(blocks, X), **CLOSE)
    for one, other in zip((b for part in stack for b in part), blocks, strict=True):
        assert_close(one, other)


def test_a_stack_of_stacks_has_an_axis_for_each() -> None:
    stack = make(lambda rngs: Stack(Plain, 3, rngs=rngs), 2)
    kernel = stack.block.block.linear.kernel
    assert kernel.shape == (2, 3, 3, 3)
    assert len(np.unique(np.asarray(kernel).reshape(6, 9), axis=0)) == 6
    assert (len(stack), len(stack[0]), type(stack[0])) == (2, 3, Stack)


@each_form
def test_gradients_of_nested_stacks_are_those_of_the_loop(form: Any) -> None:
    stack = make(lambda rngs: Stack(Plain, 2, rngs=rngs, **form), 3, **form)
    parts = moduli.List([moduli.List(list(part)) for part in stack])
    grads = moduli.jit(moduli.grad(loss))(stack, X)
    expected = moduli.grad(lambda parts: (loop([b for p in parts for b in p], X) ** 2).sum())(parts)
    for i, j in itertools.product(range(3), range(2)):
        np.testing.assert_allclose(
            grads["block"]["block"]["linear"]["kernel"].value[i, j],
            expected[i][j]["linear"]["kernel"].value,
            rtol=1e-4,
            atol=1e-5,
        )


# -- tracing ---------------------------------------------------------------------------------------


class Traced(moduli.Module):
    """Says when its body runs."""

    runs = 0

    def __call__(self, x: jax.Array) -> jax.Array:
        Traced.runs += 1
        return x + 1


def traces(n: int, transform: Any, **options: Any) -> int:
    stack = Stack(Traced, n, **options)
    Traced.runs = 0
    transform(lambda stack, x: stack(x).sum())(stack, X)
    return Traced.runs


@pytest.mark.parametrize(
    "transform",
    [lambda f: f, moduli.jit, lambda f: moduli.grad(f, argnums=1)],
    ids=["eager", "jit", "grad"],
)
@each_form
def test_tracing_takes_as_long_for_few_blocks_as_for_many(form: Any, transform: Any) -> None:
    assert traces(2, transform, **form) == traces(16, transform, **form) <= 2


def test_a_compiled_stack_is_not_traced_again() -> None:
    stack = Stack(Traced, 3)
    Traced.runs = 0
    for _ in range(3):
        run(stack, X)
    assert Traced.runs == 1


# -- errors ----------------------------------------------------------------------------------------


class Cast(moduli.Module):
    def __call__(self, x: jax.Array) -> jax.Array:
        return x.astype(jnp.bfloat16)


class Pair(moduli.Module):
    def __call__(self, x: Any) -> Any:
        return [x, x]


class Counts(moduli.Module):
    def __init__(self) -> None:
        self.total = moduli.Variable(jnp.zeros((), jnp.float32))

    def __call__(self, x: jax.Array, other: Any) -> jax.Array:
        other.total.value = jnp.zeros(2, jnp.float32)
        return x


class Net(moduli.Module):
    """Has the stack one level down."""

    def __init__(self, stack: Stack) -> None:
        self.stages = [stack]

    def __call__(self, *args: Any) -> Any:
        return self.stages[0](*args)


def made(cls: type, name: str) -> str:
    lines, start = inspect.getsourcelines(cls)
    number = start + next(n for n, text in enumerate(lines) if f"self.{name} =" in text)
    return f"made at test_stack.py:{number}"


CHANGES: dict[str, Any] = {
    "shape": (
        lambda rngs: Linear(3, 4, rngs=rngs),
        lambda: (X,),
        ShapeError,
        "scan: Stack of Linear changes argument 0, which is carried, from float32[5, 3] to "
        "float32[5, 4]; a carried value keeps shape and dtype. Cast the new value "
        "(`.astype(old.dtype)`), or start with what the loop makes",
    ),
    "dtype": (
        lambda rngs: Cast(),
        lambda: (X,),
        ShapeError,
        "scan: Stack of Cast changes argument 0, which is carried, from float32[5, 3] to "
        "bfloat16[5, 3]; a carried value keeps shape and dtype. Cast the new value "
        "(`.astype(old.dtype)`), or start with what the loop makes",
    ),
    "structure": (
        lambda rngs: Pair(),
        lambda: ((X, X),),
        StructureError,
        "scan: Stack of Pair got the carry ('DynamicJaxprTracer', 'DynamicJaxprTracer') and "
        "returned [('DynamicJaxprTracer', 'DynamicJaxprTracer'), ('DynamicJaxprTracer', "
        "'DynamicJaxprTracer')]; a carry keeps its structure: return it in the same form",
    ),
    "a module among the arguments": (
        lambda rngs: Counts(),
        lambda: (X, Counts()),
        ShapeError,
        "scan: Stack of Counts changes the Variable ({total}) at `total` of argument 2[0], which "
        "is carried, from float32[] to float32[2]; a carried value keeps shape and dtype. Cast the "
        "new value (`.astype(old.dtype)`), or start with what the loop makes",
    ),
}


@pytest.mark.parametrize(("block", "args", "kind", "message"), CHANGES.values(), ids=CHANGES)
@each_form
def test_a_block_that_changes_what_is_carried_is_refused_by_name(
    form: Any, block: Any, args: Any, kind: type[Exception], message: str
) -> None:
    stack = make(block, **form)
    with assert_unchanged(stack), pytest.raises(kind) as caught:
        stack(*args())
    text = re.sub(r"made at [^()]*test_stack", "made at test_stack", str(caught.value))
    assert text == message.format(total=made(Counts, "total"))


@jitted_or_not
@each_form
def test_the_place_of_the_stack_in_the_model_is_said(form: Any, jitted: bool) -> None:
    net = Net(make(lambda rngs: Linear(3, 4, rngs=rngs), **form))
    with pytest.raises(ShapeError, match="Stack of Linear") as caught:
        (run if jitted else call)(net, X)
    assert str(caught.value).endswith("what the loop makes (in `stages/0` of Net)")


WRONG = "Linear(in_features=3) expects inputs of shape (..., 3), got shape (5, 2); build the layer "
WRONG += "with in_features=2, or give the inputs an axis -1 of size 3"


@jitted_or_not
@each_form
def test_an_error_inside_a_block_says_the_place_in_the_block_and_of_the_stack(
    form: Any, jitted: bool
) -> None:
    net = Net(make(Plain, **form))
    with assert_unchanged(net), pytest.raises(ShapeError) as caught:
        (run if jitted else call)(net, X[:, :2])
    assert str(caught.value) == f"{WRONG} (in `linear` of Plain) (in `stages/0` of Net)"


@each_form
def test_an_error_of_a_block_itself_says_the_place_of_the_stack(form: Any) -> None:
    net = Net(make(lambda rngs: Linear(3, 3, rngs=rngs), **form))
    with pytest.raises(ShapeError) as caught:
        net(X[:, :2])
    assert str(caught.value) == f"{WRONG} (in `stages/0` of Net)"


@pytest.mark.parametrize(
    ("block", "n", "message"),
    [
        (
            linear(),
            3,
            "Stack needs a function that makes one block, got a Linear; write `Stack(lambda rngs: "
            "Block(..., rngs=rngs), n, rngs=rngs)`, or `Stack.of([block, block, ...])` for blocks "
            "that exist",
        ),
        (
            [linear()],
            1,
            "Stack needs a function that makes one block, got a list; write `Stack(lambda rngs: "
            "Block(..., rngs=rngs), n, rngs=rngs)`, or `Stack.of([block, block, ...])` for blocks "
            "that exist",
        ),
        (Plain, 0, "Stack needs a number of blocks of at least 1, got n=0"),
        (Plain, -2, "Stack needs a number of blocks of at least 1, got n=-2"),
        (Plain, True, "Stack needs a number of blocks of at least 1, got n=True"),
        (Plain, 2.0, "Stack needs a number of blocks of at least 1, got n=2.0"),
        (Plain, None, "Stack needs a number of blocks of at least 1, got n=None"),
        (dict, 2, "Stack: dict must return a Module, it returned a dict"),
    ],
)
def test_wrong_arguments_are_refused(block: Any, n: Any, message: str) -> None:
    with pytest.raises(StructureError) as caught:
        Stack(block, n, rngs=moduli.Rngs(0))
    assert str(caught.value) == message


@pytest.mark.parametrize("rngs", [0, jax.random.key(0), {"params": 0}], ids=["int", "key", "dict"])
def test_what_are_no_streams_is_refused(rngs: Any) -> None:
    with pytest.raises(RngError) as caught:
        Stack(Plain, 2, rngs=rngs)
    assert str(caught.value) == (
        f"Stack got rngs of type {type(rngs).__name__}; write rngs=moduli.Rngs(0)"
    )


def test_a_block_that_needs_streams_and_gets_none_is_pythons_error() -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'rngs'"):
        Stack(Plain, 2)


def test_arguments_that_the_block_does_not_take_are_pythons_error() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'mask'"):
        make(Plain)(X, mask=MASK)


def test_an_error_in_a_block_leaves_everything_as_it_was() -> None:
    class Fails(Block):
        def __call__(self, x: jax.Array) -> jax.Array:
            super().__call__(x)
            self.new = moduli.Param(x)
            raise RuntimeError("stop")

    stack = make(Fails)
    with assert_unchanged(stack), pytest.raises(RuntimeError, match="stop"):
        stack(X)


# -- names of axes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [None, "layers"])
@pytest.mark.parametrize("made", ["new", "of"])
def test_the_axis_of_the_blocks_is_named_in_partition_names(made: str, name: str | None) -> None:
    metadata = {moduli.PARTITION_NAME: name} if name else None
    init = with_partitioning(initializers.lecun_normal(), ("in", "out"))

    def block(rngs: moduli.Rngs) -> Linear:
        return Linear(4, 4, kernel_init=init, rngs=rngs)

    if made == "new":
        stack = Stack(block, 3, rngs=moduli.Rngs(0), transform_metadata=metadata)
    else:
        blocks = [block(moduli.Rngs(seed)) for seed in range(3)]
        stack = Stack.of(blocks, transform_metadata=metadata)
        assert blocks[0].kernel.out_sharding == ("in", "out")
    assert stack.block.kernel.out_sharding == (name, "in", "out")
    assert stack[1].kernel.out_sharding == ("in", "out")
    assert stack(jnp.ones((2, 4))).shape == (2, 4)
    assert stack.block.kernel.out_sharding == (name, "in", "out")
