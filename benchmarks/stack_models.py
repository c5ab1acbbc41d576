"""A deep model as a list of blocks and as a stack that is scanned: forward and backward.

``looped`` and ``stacked`` take a depth and return what traces and lowers the gradient of the loss,
from the start. The same two in raw JAX say what a loop and a scan cost there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import moduli as nnx
from benchmarks import problem

HIDDEN = 2 * problem.WIDTH

Lower = Callable[[], Any]


class StackMissing(Exception):
    """``moduli.Stack`` does not exist here."""


class Block(nnx.Module):
    """A residual block: two linear maps with a gelu between them."""

    def __init__(self, rngs: nnx.Rngs):
        self.up = nnx.Linear(problem.WIDTH, HIDDEN, rngs=rngs)
        self.down = nnx.Linear(HIDDEN, problem.WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.down(jax.nn.gelu(self.up(x)))


class Looped(nnx.Module):
    """The blocks in a list, one after another."""

    def __init__(self, depth: int, rngs: nnx.Rngs):
        self.blocks = nnx.List([Block(rngs) for _ in range(depth)])

    def __call__(self, x: jax.Array) -> jax.Array:
        for block in self.blocks:
            x = block(x)
        return x


def looped(depth: int) -> Lower:
    """Forward and backward through a list of blocks."""
    return _lower_gradient(Looped(depth, nnx.Rngs(0)))


def stacked(depth: int) -> Lower:
    """Forward and backward through a scanned stack of the same blocks.

    Raises:
      StackMissing: if this ``moduli`` has no ``Stack``.
    """
    if not hasattr(nnx, "Stack"):
        raise StackMissing("moduli has no Stack: moduli-layers is not installed")
    return _lower_gradient(nnx.Stack(lambda rngs: Block(rngs), depth, rngs=nnx.Rngs(0)))


def _lower_gradient(model: Any) -> Lower:
    x, y = problem.data()

    def lower() -> Any:
        def gradient(model: Any, x: jax.Array, y: jax.Array) -> Any:
            return nnx.value_and_grad(lambda model: problem.loss(model(x), y))(model)

        return nnx.jit(gradient).lower(model, x, y)

    return lower


# -- the same by hand -----------------------------------------------------------------------------


def looped_by_hand(depth: int) -> Lower:
    """Forward and backward through a Python loop over the blocks' parameters."""

    def apply(blocks: Any, x: jax.Array) -> jax.Array:
        for block in blocks:
            x = _block(block, x)
        return x

    return _lower_by_hand(apply, _parameters(depth))


def scanned_by_hand(depth: int) -> Lower:
    """Forward and backward through ``jax.lax.scan`` over the blocks' stacked parameters."""

    def apply(stacked: Any, x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, block: (_block(block, x), None), x, stacked)[0]

    return _lower_by_hand(apply, jax.tree.map(lambda *v: jnp.stack(v), *_parameters(depth)))


def _parameters(depth: int) -> list[dict[str, jax.Array]]:
    random = np.random.default_rng(0)
    shapes = {
        "up": (problem.WIDTH, HIDDEN),
        "up_bias": (HIDDEN,),
        "down": (HIDDEN, problem.WIDTH),
        "down_bias": (problem.WIDTH,),
    }
    return [
        {name: jnp.asarray(random.normal(size=s) / 8, jnp.float32) for name, s in shapes.items()}
        for _ in range(depth)
    ]


def _block(block: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    hidden = jax.nn.gelu(x @ block["up"] + block["up_bias"])
    # the brackets are the layers'; without them XLA's compile time doubles with each few blocks
    return x + (hidden @ block["down"] + block["down_bias"])


def _lower_by_hand(apply: Callable[[Any, jax.Array], jax.Array], params: Any) -> Lower:
    x, y = problem.data()

    def lower() -> Any:
        def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
            return problem.loss(apply(params, x), y)

        return jax.jit(jax.value_and_grad(loss)).lower(params, x, y)

    return lower


MODELS: dict[str, Callable[[int], Lower]] = {
    "raw loop": looped_by_hand,
    "raw lax.scan": scanned_by_hand,
    "moduli loop": looped,
    "moduli Stack": stacked,
}
"""Name in the report -> function of the depth."""
