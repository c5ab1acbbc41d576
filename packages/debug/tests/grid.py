"""Every transform, and nestings of them, around one computation with a known answer.

Each run is a function ``(model, batch) -> loss`` of a Probed model (see ``debug_models``) and of a
batch of shape (2, 5, 3): the loss is the sum of squares of the outputs over both parts of the
batch. What a tool collects is then, put in a row, the same under every transform.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import moduli as nnx

Run = Callable[[Any, jax.Array], Any]


def loss(model: Any, x: jax.Array) -> jax.Array:
    """The loss of one part of the batch."""
    return (model(x) ** 2).sum()


def eager(model: Any, batch: jax.Array) -> Any:
    """Both parts one after the other."""
    return loss(model, batch[0]) + loss(model, batch[1])


def grad(model: Any, batch: jax.Array) -> Any:
    """Differentiates inside."""
    value, _ = nnx.value_and_grad(eager)(model, batch)
    return value


def vmap(model: Any, batch: jax.Array) -> Any:
    """Both parts at once."""
    return nnx.vmap(loss, in_axes=(None, 0))(model, batch).sum()


def scan(model: Any, batch: jax.Array) -> Any:
    """A compiled loop."""
    return nnx.scan(loss, in_axes=(None, 0), out_axes=0)(model, batch).sum()


def remat(model: Any, batch: jax.Array) -> Any:
    """Computed again in the backward pass."""
    return nnx.remat(eager)(model, batch)


def cond(model: Any, batch: jax.Array) -> Any:
    """The branch that is taken runs the model, the other does not."""
    return nnx.cond(batch.sum() < jnp.inf, eager, lambda model, batch: jnp.float32(0), model, batch)


def switch(model: Any, batch: jax.Array) -> Any:
    """The branch that is taken runs the model, the others a part of it, or nothing."""
    branches = [
        lambda model, batch: jnp.float32(0),
        lambda model, batch: model.first(batch[0]).sum(),
        eager,
    ]
    return nnx.switch(jnp.int32(2), branches, model, batch)


def fori_loop(model: Any, batch: jax.Array) -> Any:
    """A loop whose length is known."""

    def body(i: Any, carry: Any) -> Any:
        model, total = carry
        return model, total + loss(model, batch[i])

    return nnx.fori_loop(0, 2, body, (model, jnp.zeros(())))[1]


def while_loop(model: Any, batch: jax.Array) -> Any:
    """A loop whose length is not known."""

    def body(carry: Any) -> Any:
        model, i, total = carry
        return model, i + 1, total + loss(model, batch[i])

    return nnx.while_loop(lambda carry: carry[1] < 2, body, (model, 0, jnp.zeros(())))[2]


def jit(run: Run) -> Run:
    """Compiles a run."""
    return nnx.jit(run)


def vjp(model: Any, batch: jax.Array) -> Any:
    """The forward pass of a pullback."""
    return nnx.vjp(eager, model, batch)[0]


def jvp(model: Any, batch: jax.Array) -> Any:
    """A forward-mode derivative along the input."""
    return nnx.jvp(eager, (model, batch), (None, jnp.ones_like(batch)))[0]


def grad_of_scan(model: Any, batch: jax.Array) -> Any:
    """The train step of a recurrent model."""
    return nnx.value_and_grad(scan)(model, batch)[0]


def grad_of_scan_of_vmap_of_remat(model: Any, batch: jax.Array) -> Any:
    """Four transforms in each other."""
    inner = nnx.vmap(nnx.remat(loss), in_axes=(None, 0))
    looped = nnx.scan(inner, in_axes=(None, 0), out_axes=0)
    return nnx.value_and_grad(lambda model, batch: looped(model, batch[:, None]).sum())(
        model, batch
    )[0]


def vmap_of_grad(model: Any, batch: jax.Array) -> Any:
    """Gradients for each part."""
    values, _ = nnx.vmap(nnx.value_and_grad(loss), in_axes=(None, 0))(model, batch)
    return values.sum()


def scan_of_cond(model: Any, batch: jax.Array) -> Any:
    """A choice in each step."""

    def step(model: Any, x: jax.Array) -> Any:
        return nnx.cond(x.sum() < jnp.inf, loss, lambda model, x: jnp.float32(0), model, x)

    return nnx.scan(step, in_axes=(None, 0), out_axes=0)(model, batch).sum()


def cond_of_scan(model: Any, batch: jax.Array) -> Any:
    """A loop in a branch."""
    return nnx.cond(batch.sum() < jnp.inf, scan, lambda model, batch: jnp.float32(0), model, batch)


def jit_inside_of_scan(model: Any, batch: jax.Array) -> Any:
    """A compiled function in each step."""
    return nnx.scan(nnx.jit(loss), in_axes=(None, 0), out_axes=0)(model, batch).sum()


RUNS: dict[str, Run] = {
    "eager": eager,
    "jit": jit(eager),
    "grad": grad,
    "vjp": vjp,
    "jvp": jvp,
    "vmap": vmap,
    "scan": scan,
    "remat": remat,
    "cond": cond,
    "switch": switch,
    "fori_loop": fori_loop,
    "while_loop": while_loop,
    "jit(grad)": jit(grad),
    "jit(vmap)": jit(vmap),
    "jit(grad(scan))": jit(grad_of_scan),
    "jit(grad(scan(vmap(remat))))": jit(grad_of_scan_of_vmap_of_remat),
    "vmap(grad)": vmap_of_grad,
    "scan(cond)": scan_of_cond,
    "cond(scan)": cond_of_scan,
    "scan(jit)": jit_inside_of_scan,
    "jit(while_loop)": jit(while_loop),
}
"""The runs by name, as the page of the docs has them."""


def reference(model: Any, batch: Any, scale: float = 1.0) -> dict[str, Any]:
    """The same computation by hand, in float64.

    Args:
      model: a Probed.
      batch: shape (2, 5, 3).
      scale: by what the output of the first layer is multiplied.

    Returns:
      ``first``, the output of the first layer; ``hidden``, its hyperbolic tangent; ``gradient``,
      that of the loss at ``hidden``; ``loss``. All but the loss have shape (2, 5, 4).
    """
    weights = [model.first.kernel, model.first.bias, model.second.kernel, model.second.bias]
    w1, b1, w2, b2 = [np.asarray(variable.value, np.float64) for variable in weights]
    first = np.asarray(batch, np.float64) @ w1 + b1
    hidden = np.tanh(scale * first)
    out = hidden @ w2 + b2
    return {
        "first": first,
        "hidden": hidden,
        "gradient": 2 * out @ w2.T,
        "loss": (out**2).sum(),
    }


def in_a_row(values: Any) -> np.ndarray:
    """Puts what calls, steps and elements have given in a row of shape (2, 5, 4).

    A branch that was not taken gives NaN, and is left out.
    """
    rows = np.concatenate([np.asarray(value).reshape(-1, 5, 4) for value in values])
    return rows[~np.isnan(rows).any(axis=(1, 2))]
