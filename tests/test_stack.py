"""Stack together with the other packages, JAX's compiler, and flax.nnx."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import moduli
from moduli_interop import inspect_checkpoint, load, save

N = 3
X = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)), jnp.float32)
CLOSE: dict[str, Any] = {"rtol": 2e-5, "atol": 2e-6}
WAYS = list(itertools.permutations([True, False], 2))

both_ways = pytest.mark.parametrize(("first", "second"), WAYS, ids=["scan to loop", "loop to scan"])
remat_or_not = pytest.mark.parametrize("remat", [False, True], ids=["plain", "remat"])


def block_of(nnx: Any, sows: bool = False) -> Any:
    """The same block written for moduli and for flax.nnx."""

    class Block(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.norm = nnx.BatchNorm(4, rngs=rngs)
            self.linear = nnx.Linear(4, 4, rngs=rngs)
            self.dropout = nnx.Dropout(0.3, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            hidden = jnp.tanh(self.linear(self.norm(x)))
            if sows:
                self.sow(nnx.Intermediate, "hidden", hidden)
                hidden = self.perturb("change", hidden)
            return x + self.dropout(hidden)

    return Block


Block = block_of(moduli)
Sowing = block_of(moduli, sows=True)


class Net(moduli.Module):
    """A stack in a list, and a head."""

    def __init__(self, seed: int, block: Any = Block, **options: Any) -> None:
        rngs = moduli.Rngs(seed)
        self.stages = [moduli.Stack(block, N, rngs=rngs, **options)]
        self.head = moduli.Linear(4, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.stages[0](x))


call = moduli.jit(lambda model, x: model(x))


def values(node: Any) -> dict[Any, np.ndarray]:
    """Values by path; keys as their numbers."""
    return {
        path: np.asarray(
            jax.random.key_data(leaf[...])
            if jnp.issubdtype(leaf[...].dtype, jax.dtypes.prng_key)
            else leaf[...]
        )
        for path, leaf in moduli.to_flat_state(
            node if isinstance(node, moduli.State) else moduli.state(node)
        ).items()
    }


def assert_close(one: Any, other: Any, **options: Any) -> None:
    ours, theirs = values(one), values(other)
    assert ours.keys() == theirs.keys()
    for path, value in theirs.items():
        np.testing.assert_allclose(ours[path], value, err_msg=str(path), **{**CLOSE, **options})


# -- checkpoints -----------------------------------------------------------------------------------


@both_ways
def test_a_checkpoint_of_one_form_is_one_of_the_other(
    tmp_path: Path, first: bool, second: bool
) -> None:
    net, fresh = Net(0, scan=first), Net(1, scan=second, remat=True)
    call(net, X)  # moves statistics and streams
    save(tmp_path / "net.npz", net)
    load(tmp_path / "net.npz", fresh)
    assert_close(fresh, net, rtol=0, atol=0)
    np.testing.assert_allclose(call(fresh, X), call(net, X), **CLOSE)
    assert_close(fresh, net)


def test_checkpoints_of_both_forms_hold_the_same_leaves(tmp_path: Path) -> None:
    leaves = []
    for scan in (True, False):
        save(tmp_path / f"{scan}.npz", Net(0, scan=scan))
        leaves.append(inspect_checkpoint(tmp_path / f"{scan}.npz").leaves)
    assert leaves[0] == leaves[1]
    (kernel,) = [
        leaf for leaf in leaves[0] if leaf.path == ("stages", 0, "block", "linear", "kernel")
    ]
    assert kernel.type == "float32[3,4,4]"


def test_another_number_of_blocks_is_refused_by_path(tmp_path: Path) -> None:
    save(tmp_path / "stack.npz", moduli.Stack(Block, 2, rngs=moduli.Rngs(0)))
    with pytest.raises(ValueError, match=r"block/linear/kernel"):
        load(tmp_path / "stack.npz", moduli.Stack(Block, 3, rngs=moduli.Rngs(0)))


# -- captured and sown -----------------------------------------------------------------------------


@remat_or_not
def test_captured_values_have_equal_paths_and_values_in_both_forms(remat: bool) -> None:
    seen = []
    for scan in (True, False):
        net = Net(0, Sowing, scan=scan, remat=remat)
        out, *states = moduli.capture(net, moduli.Intermediate, moduli.Perturbation)(X)
        seen.append((out, states))
        assert moduli.state(net, moduli.Intermediate) == moduli.State({})
    np.testing.assert_allclose(seen[0][0], seen[1][0], **CLOSE)
    for scanned, looped in zip(seen[0][1], seen[1][1], strict=True):
        assert moduli.to_flat_state(scanned).paths == moduli.to_flat_state(looped).paths
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), scanned, looped)


@pytest.mark.parametrize("scan", [True, False], ids=["scan", "loop"])
def test_what_blocks_sow_is_stacked_as_by_hand(scan: bool) -> None:
    stack = moduli.Stack(Sowing, N, rngs=moduli.Rngs(0), scan=scan)
    x, expected = X, []
    for block in stack:
        x = block(x)
        expected.append(block.hidden.value[0])
    stack(X)
    sown = moduli.pop(stack, moduli.Intermediate)
    assert moduli.to_flat_state(sown).paths == (("block", "change"), ("block", "hidden"))
    np.testing.assert_allclose(sown["block"]["hidden"].value[0], jnp.stack(expected), **CLOSE)


def test_gradients_of_what_is_inside_are_equal_in_both_forms() -> None:
    def loss(net: Any, perturbations: Any, x: jax.Array) -> jax.Array:
        out, _ = moduli.capture(net, moduli.Perturbation, init=perturbations)(x)
        return (out**2).sum()

    found = []
    for scan in (True, False):
        net = Net(0, Sowing, scan=scan)
        _, zeros = moduli.capture(moduli.clone(net), moduli.Perturbation)(X)
        found.append(moduli.jit(moduli.grad(loss, argnums=1))(net, zeros, X))
    scanned, looped = (values(grads) for grads in found)
    assert list(scanned) == list(looped) == [("stages", 0, "block", "change")]
    for ours, theirs in zip(scanned.values(), looped.values(), strict=True):
        assert ours.any()
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


# -- training --------------------------------------------------------------------------------------


@remat_or_not
def test_training_steps_are_equal_in_both_forms(remat: bool) -> None:
    @moduli.jit
    def step(net: Any, optimizer: Any, x: jax.Array) -> jax.Array:
        value, grads = moduli.value_and_grad(lambda net: (net(x) ** 2).mean())(net)
        optimizer.update(net, grads)
        return value

    trained = []
    for scan in (True, False):
        net = Net(0, scan=scan, remat=remat)
        optimizer = moduli.Optimizer(net, optax.sgd(0.1, momentum=0.9), wrt=moduli.Param)
        losses = [float(step(net, optimizer, X)) for _ in range(3)]
        trained.append((losses, net, optimizer))
    (losses, net, optimizer), (other_losses, other_net, other_optimizer) = trained
    np.testing.assert_allclose(losses, other_losses, rtol=1e-4)
    assert losses[-1] < losses[0]
    assert_close(net, other_net, rtol=1e-3, atol=1e-5)
    assert_close(optimizer, other_optimizer, rtol=1e-3, atol=1e-5)


# -- flax.nnx --------------------------------------------------------------------------------------


def flax_blocks() -> Any:
    @flax.nnx.split_rngs(splits=N)
    @flax.nnx.vmap(in_axes=0, out_axes=0)
    def make(rngs: Any) -> Any:
        return block_of(flax.nnx)(rngs)

    return make(flax.nnx.Rngs(0))


def flax_forward(blocks: Any, x: jax.Array) -> jax.Array:
    @flax.nnx.scan(in_axes=(flax.nnx.Carry, 0), out_axes=flax.nnx.Carry)
    def forward(x: jax.Array, block: Any) -> jax.Array:
        return block(x)

    return forward(x, blocks)


def flax_values(node: Any, kind: Any) -> dict[Any, np.ndarray]:
    state = node if isinstance(node, flax.nnx.State) else flax.nnx.state(node)
    return {
        ("block", *path): np.asarray(leaf[...])
        for path, leaf in flax.nnx.to_flat_state(state)
        if isinstance(leaf, kind)
    }


def own_values(node: Any, kind: Any) -> dict[Any, np.ndarray]:
    return values(moduli.state(node, kind))


@pytest.mark.parametrize("scan", [True, False], ids=["scan", "loop"])
def test_flax_blocks_made_by_vmap_and_scanned_do_the_same(scan: bool) -> None:
    """Equal seeds: equal parameters, masks, statistics, outputs and gradients."""
    stack, blocks = moduli.Stack(Block, N, rngs=moduli.Rngs(0), scan=scan), flax_blocks()
    ours, theirs = own_values(stack, moduli.Param), flax_values(blocks, flax.nnx.Param)
    assert ours.keys() == theirs.keys()
    for path, value in theirs.items():
        np.testing.assert_array_equal(ours[path], value, err_msg=str(path))

    out, grads = moduli.value_and_grad(lambda stack: (stack(X) ** 2).sum())(stack)
    expected, flax_grads = flax.nnx.value_and_grad(lambda b: (flax_forward(b, X) ** 2).sum())(
        blocks
    )
    np.testing.assert_allclose(out, expected, rtol=1e-5)
    for got, wanted in (
        (values(grads), flax_values(flax_grads, flax.nnx.Param)),
        (own_values(stack, moduli.BatchStat), flax_values(blocks, flax.nnx.BatchStat)),
        (own_values(stack, moduli.RngCount), flax_values(blocks, flax.nnx.RngCount)),
    ):
        assert got.keys() == wanted.keys()
        for path, value in wanted.items():
            np.testing.assert_allclose(got[path], value, rtol=1e-4, atol=1e-5, err_msg=str(path))


# -- the compiled program --------------------------------------------------------------------------


class Wide(moduli.Module):
    """Keeps much inside: four times the width of its input."""

    def __init__(self, rngs: moduli.Rngs) -> None:
        self.up = moduli.Linear(64, 256, rngs=rngs)
        self.down = moduli.Linear(256, 64, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.down(jnp.tanh(jnp.sin(self.up(x))))


def gradient(stack: Any, x: jax.Array) -> Any:
    return moduli.grad(lambda stack: (stack(x) ** 2).sum())(stack)


def temporary_bytes(**options: Any) -> int:
    stack = moduli.Stack(Wide, 16, rngs=moduli.Rngs(0), **options)
    compiled = moduli.jit(gradient).lower(stack, jnp.ones((256, 64))).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_remat_lowers_the_memory_of_the_gradient() -> None:
    assert temporary_bytes(remat=True) < 0.5 * temporary_bytes()


def test_a_policy_lies_between() -> None:
    save_dots = jax.checkpoint_policies.dots_saveable
    least, most = temporary_bytes(remat=True), temporary_bytes()
    assert least < temporary_bytes(remat=True, policy=save_dots) < most


def lowered(n: int, scan: bool, function: Any, **options: Any) -> int:
    stack = moduli.Stack(Block, n, rngs=moduli.Rngs(0), scan=scan, **options)
    return len(moduli.jit(function).lower(stack, X).as_text())


@pytest.mark.parametrize("function", [lambda stack, x: stack(x), gradient], ids=["call", "grad"])
@remat_or_not
def test_the_program_of_a_scanned_stack_does_not_grow_with_it(remat: bool, function: Any) -> None:
    few, many = (lowered(n, True, function, remat=remat) for n in (10, 40))
    assert abs(many - few) < 0.01 * few


def test_the_program_of_a_looped_stack_grows_with_it() -> None:
    few, many = (lowered(n, False, lambda stack, x: stack(x)) for n in (10, 40))
    assert many > 2 * few
