"""LossScale: gradients of float16 that neither vanish nor overflow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import moduli
from moduli.lowlevel import wraps
from moduli_train._gradients import raw_value
from moduli_train._optimizer import ModelAndOptimizer, Optimizer
from moduli_train._variables import OptState

__all__ = ["LossScale"]

_SMALLEST, _LARGEST = 2.0**-24, 2.0**24


class LossScale(moduli.Pytree):
    """A factor for the loss, as large as float16 bears; bfloat16 needs none.

    Gradients below 6e-8 are zero in float16. The loss is multiplied before it is differentiated and
    the gradients are divided afterwards, in float32. Where they are not finite, nothing is updated,
    statistics that the loss wrote are as before, and the factor becomes smaller; after many finite
    steps it becomes larger.

    Args:
      scale: the first factor.
      growth: by what it grows,
      interval: after so many finite steps in a row.
      backoff: by what it is multiplied after a step that is not finite.

    Attributes:
      scale: the factor now.
      finite_steps: how many steps in a row were finite, since it last changed.

    Example:
      >>> import moduli as nnx, optax, jax.numpy as jnp
      >>> model = nnx.Dict({"w": nnx.Param(jnp.float16(1.0))})
      >>> optimizer, scale = nnx.Optimizer(model, optax.sgd(0.5)), nnx.LossScale(2.0**15)
      >>> @nnx.jit
      ... def step(model, optimizer, scale, x):
      ...     loss, grads = scale.value_and_grad(lambda model: model["w"].value * x)(model)
      ...     return scale.update(optimizer, model, grads)
      >>> bool(step(model, optimizer, scale, jnp.float16(1e4)))  # 1e4 * 2**15 is no float16
      False
      >>> float(model["w"].value), int(optimizer.step), float(scale.scale.value) == 2.0**14
      (1.0, 0, True)
    """

    def __init__(
        self,
        scale: float = 2.0**15,
        *,
        growth: float = 2.0,
        interval: int = 2000,
        backoff: float = 0.5,
    ) -> None:
        self.scale = OptState(jnp.asarray(scale, jnp.float32))
        self.finite_steps = OptState(jnp.zeros((), jnp.int32))
        self.growth, self.interval, self.backoff = growth, interval, backoff

    def value_and_grad(
        self,
        loss_fn: Callable[..., Any],
        *,
        has_aux: bool = False,
        by: Callable[..., Any] = moduli.value_and_grad,
        **options: Any,
    ) -> Callable[..., Any]:
        """Like :func:`moduli.value_and_grad`, computed with the loss times the factor.

        Args:
          loss_fn: the loss.
          has_aux: whether it returns a pair (scalar, anything).
          by: what differentiates; to accumulate gradients over 8 parts of a batch
            ``functools.partial(nnx.accumulate, parts=8)``.
          **options: of ``by``, such as ``argnums``.

        Returns:
          A function that returns the loss and its gradients, in float32 and not scaled.
        """
        scale = self.scale.get_value()

        @wraps(loss_fn)
        def scaled(*args: Any, **kwargs: Any) -> Any:
            out = loss_fn(*args, **kwargs)
            loss = (out[0] if has_aux else out).astype(jnp.float32) * scale
            return (loss, out[1]) if has_aux else loss

        @wraps(loss_fn)
        def both(*args: Any, **kwargs: Any) -> Any:
            nodes = [a for a in (*args, *kwargs.values()) if isinstance(a, moduli.Pytree)]
            before = [_flat(node) for node in nodes]
            out, grads = by(scaled, has_aux=has_aux, **options)(*args, **kwargs)
            finite = _all_finite(grads)
            for node, old in zip(nodes, before, strict=True):
                _restore(node, old, finite, jnp.inexact)
            grads = jax.tree.map(lambda grad: grad.astype(jnp.float32) / scale, grads)
            return ((out[0] / scale, out[1]) if has_aux else out / scale), grads

        return both

    def update(self, optimizer: Optimizer, model: Any, grads: Any, /, **kwargs: Any) -> jax.Array:
        """Updates the model if all gradients are finite, and the factor.

        Args:
          optimizer: the optimizer.
          model: the model.
          grads: what :meth:`value_and_grad` returned.
          **kwargs: see :meth:`Optimizer.update`.

        Returns:
          Whether they are finite. If not, parameters and optimizer are as they were.
        """
        finite = _all_finite(grads)
        wrt = optimizer.wrt
        before = _flat(model, wrt), _flat(optimizer)
        own = isinstance(optimizer, ModelAndOptimizer)
        optimizer.update(*((grads,) if own else (model, grads)), **kwargs)
        _restore(model, before[0], finite, filter=wrt)
        _restore(optimizer, before[1], finite)
        steps = jnp.where(finite, self.finite_steps.value + 1, 0)
        grown = jnp.where(steps < self.interval, 1.0, self.growth)
        factor = jnp.where(finite, grown, self.backoff)
        self.scale.value = jnp.clip(self.scale.value * factor, _SMALLEST, _LARGEST)
        self.finite_steps.value = jnp.where(steps < self.interval, steps, 0)
        return finite


def _all_finite(tree: Any) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def _flat(node: Any, filter: Any = ...) -> dict[tuple[Any, ...], Any]:
    """The values of a node by path."""
    state = moduli.state(node, filter)
    return {path: raw_value(leaf) for path, leaf in moduli.to_flat_state(state)}


def _restore(
    node: Any, before: dict[Any, Any], use: jax.Array, kind: Any = None, filter: Any = ...
) -> None:
    """Writes the values of before back into a node where ``use`` is false.

    Args:
      node: the node.
      before: what :func:`_flat` returned.
      use: whether the values of now are used.
      kind: only values of this kind of dtype; None for all.
      filter: selects values.
    """

    def chosen(new: Any, old: Any) -> Any:
        skip = new is old or (kind is not None and not jnp.issubdtype(jnp.result_type(new), kind))
        return new if skip else jnp.where(use, new, old)

    pairs = []
    for path, leaf in moduli.to_flat_state(moduli.state(node, filter)):
        new = raw_value(leaf)
        if path in before and new is not before[path]:
            value = jax.tree.map(chosen, new, before[path])
            pairs.append((path, leaf.replace(value) if leaf is not new else value))
    if pairs:
        moduli.update(node, moduli.from_flat_state(pairs))
