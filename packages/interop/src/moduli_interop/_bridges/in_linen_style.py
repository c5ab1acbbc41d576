"""Modules of the other two kinds inside of one in linen's style (``nnx.bridge.Module``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import moduli
from moduli.errors import StructureError
from moduli_interop._bridges.linen_style import (
    ModuleStackEntry,
    Scope,
    current_context,
    place_in_parent,
)
from moduli_interop._bridges.linen_wrappers import ToNNX

__all__ = ["linen_in_bridge_mdl", "nnx_in_bridge_mdl"]


def _parent(caller: str) -> tuple[ModuleStackEntry, Scope]:
    entry = current_context()
    if entry is None or entry.module.scope is None:
        raise StructureError(
            f"{caller} makes a submodule of an nnx.bridge.Module: call it in `setup`, or in a "
            "method that `init` or `apply` runs"
        )
    return entry, entry.module.scope


def _place(entry: ModuleStackEntry, cls: type, module: Any, name: str | None) -> Any:
    if entry.in_compact:
        place_in_parent(entry.module, entry.name_for(cls) if name is None else name, module)
    return module


def nnx_in_bridge_mdl(factory: Callable[[moduli.Rngs], Any], name: str | None = None) -> Any:
    """Makes a module of ours a submodule of an ``nnx.bridge.Module``.

    Args:
      factory: makes the module of streams. After ``init`` it runs abstractly: the values are those
        that were given.
      name: the submodule's name in a compact method; in ``setup`` it is the attribute's.

    Returns:
      The module.

    Example:
      >>> import jax.numpy as jnp, moduli as nnx
      >>> class Net(nnx.bridge.Module):
      ...     @nnx.bridge.compact
      ...     def __call__(self, x):
      ...         return nnx.bridge.nnx_in_bridge_mdl(lambda r: nnx.Linear(3, 2, rngs=r), "head")(x)
      >>> Net().init(0, jnp.ones((1, 3)))["params"]["head"]["kernel"].shape
      (3, 2)
    """
    entry, scope = _parent("nnx_in_bridge_mdl")
    if scope.is_initializing:
        module = factory(scope.rngs)
    else:
        # Its parameters are replaced by those that were given, so a stream for them is made up.
        known = dict(scope.rngs.items())
        made_up = not {"params", "default"} & set(known)
        rngs = moduli.Rngs(**known, **({"default": 0} if made_up else {}))
        module = moduli.eval_shape(factory, moduli.clone(rngs))

        def streams(rngs: moduli.Rngs) -> Any:
            of_ours = moduli.Not(moduli.WithTag("default")) if made_up else ...
            return moduli.state(factory(rngs), moduli.All(moduli.RngState, of_ours))

        moduli.update(module, moduli.jit(streams)(rngs))
    return _place(entry, type(module), module, name)


def linen_in_bridge_mdl(linen_module: Any, name: str | None = None) -> Any:
    """Makes a module of flax.linen a submodule of an ``nnx.bridge.Module``.

    Args:
      linen_module: the module.
      name: the submodule's name in a compact method; in ``setup`` it is the attribute's.

    Returns:
      The module, as :class:`ToNNX`.

    Example:
      >>> import flax.linen, jax.numpy as jnp, moduli as nnx
      >>> class Net(nnx.bridge.Module):
      ...     @nnx.bridge.compact
      ...     def __call__(self, x):
      ...         return nnx.bridge.linen_in_bridge_mdl(flax.linen.Dense(2))(x)
      >>> Net().init(0, jnp.ones((1, 3)))["params"]["Dense_0"]["kernel"].shape
      (3, 2)
    """
    entry, scope = _parent("linen_in_bridge_mdl")
    return _place(entry, type(linen_module), ToNNX(linen_module, scope.rngs), name)
