"""How attribute values are deep-copied and pickled.

Functions are part of a module's structure, so a copy shares them. JAX's jitted functions, such as
``jax.nn.relu``, do not pickle by themselves. Functions are pickled here as the name under which
they are found, JAX's by their public names, so that a pickle does not depend on JAX's inside.
"""

from __future__ import annotations

import copy
import functools
import importlib
import types
from typing import Any

import jax

from moduli._graph.data import is_graph_leaf

__all__ = ["deepcopy_item", "picklable_item"]

_PUBLIC = ("jax.nn", "jax.numpy", "jax.lax", "jax.nn.initializers", "jax.scipy.special")
_PICKLES_ALONE = (type, types.BuiltinFunctionType, types.MethodType)


def deepcopy_item(value: Any, memo: dict[int, Any]) -> Any:
    """Deep-copies one attribute value; arrays (immutable) and functions are shared.

    Args:
      value: the value.
      memo: as of ``copy.deepcopy``.
    """
    shared = isinstance(value, jax.Array) or (callable(value) and not is_graph_leaf(value))
    return value if shared else copy.deepcopy(value, memo)


def picklable_item(value: Any) -> Any:
    """Returns what to pickle in the place of one attribute value."""
    if not callable(value) or is_graph_leaf(value) or isinstance(value, _PICKLES_ALONE):
        return value
    qualname = getattr(value, "__qualname__", None)
    module = getattr(value, "__module__", None)
    if not isinstance(qualname, str) or not isinstance(module, str):
        return value
    for place in (*_PUBLIC, module):
        if _find(place, qualname) is value:
            return _ByName(place, qualname)
    return value


def _find(module: str, qualname: str) -> Any:
    try:
        return functools.reduce(getattr, qualname.split("."), importlib.import_module(module))
    except (ImportError, AttributeError):
        return None


class _ByName:
    """Pickles as a function that is looked up by name."""

    def __init__(self, module: str, qualname: str):
        self.place = (module, qualname)

    def __reduce__(self) -> tuple[Any, ...]:
        return _find, self.place
