"""Questions about attributes: what of a value is data, and whether an object is a sound pytree."""

from __future__ import annotations

from typing import Any

import jax

import moduli
from moduli.errors import StructureError

__all__ = ["check_pytree", "has_data"]


def has_data(value: Any, /) -> list[Any]:
    """Lists the data inside a value: Variables, arrays, modules, registered data types.

    Args:
      value: a module's attribute, or any pytree.

    Returns:
      The data, outermost ones; an empty list if there is none.

    Example:
      >>> import moduli as nnx
      >>> nnx.has_data((1, nnx.Param(2.0), "three"))
      [Param(2.0)]
    """
    found: list[Any] = []
    seen: set[int] = set()

    def is_leaf(part: Any) -> bool:
        return isinstance(part, (moduli.Pytree, moduli.Variable))

    for leaf in jax.tree.leaves(value, is_leaf=is_leaf):
        if moduli.is_data(leaf) and id(leaf) not in seen:
            seen.add(id(leaf))
            found.append(leaf)
    return found


def check_pytree(pytree: Any) -> None:
    """Raises if an object's attributes are not sound: a static one that holds data, for example.

    Args:
      pytree: a Module or another :class:`moduli.Pytree`.

    Raises:
      StructureError: it is none, or an attribute is not sound.

    Example:
      >>> import moduli as nnx
      >>> nnx.check_pytree(nnx.Dict({"w": nnx.Param(1.0)}))
    """
    if not isinstance(pytree, (moduli.Pytree, moduli.List, moduli.Dict)):
        raise StructureError(
            f"check_pytree needs a Module or another moduli.Pytree; got a {type(pytree).__name__}"
        )
    moduli.graphdef(pytree)
