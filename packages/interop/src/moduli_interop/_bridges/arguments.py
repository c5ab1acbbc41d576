"""Builds a layer of ours from settings, without drawing its parameters."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import jax

import moduli

__all__ = ["build", "fill", "parameters", "unfilled"]


def parameters(cls: type) -> dict[str, inspect.Parameter]:
    """Returns what a constructor takes; behind ``**kwargs``, what its base class's does."""
    found: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base) or base is object:
            continue
        names = inspect.signature(vars(base)["__init__"]).parameters
        found = {**dict(list(names.items())[1:]), **found}
        if not any(p.kind is p.VAR_KEYWORD for p in names.values()):
            break
    return {n: p for n, p in found.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}


def build(cls: type, /, *args: Any, **settings: Any) -> Any:
    """Makes a layer whose Variables hold shapes and dtypes in the place of arrays.

    Args:
      cls: the class, with ``rngs`` among its arguments or not.
      *args: its arguments.
      **settings: its keyword arguments, without ``rngs``.

    Returns:
      The layer; its values are to be filled, see :func:`fill`.
    """
    if "rngs" in parameters(cls) and "rngs" not in settings:
        return moduli.eval_shape(lambda: cls(*args, **settings, rngs=moduli.Rngs(0)))
    return moduli.eval_shape(lambda: cls(*args, **settings))


def fill(layer: Any, values: Mapping[str, Any]) -> Any:
    """Writes values into a layer's Variables.

    Args:
      layer: from :func:`build`.
      values: arrays, copied as they are, by path with dots; None is left out.

    Returns:
      The layer.
    """
    for path, value in values.items():
        if value is None:
            continue
        variable = layer
        for name in path.split("."):
            variable = variable[int(name)] if name.isdigit() else getattr(variable, name)
        variable.set_value(jax.numpy.array(value))
    return layer


def unfilled(model: Any, library: Any = moduli) -> list[str]:
    """Returns the paths of the Variables that hold no array yet.

    Args:
      model: a module.
      library: moduli, or flax.nnx for a module of its.
    """
    return [
        moduli.errors.format_path(path)
        for path, node in library.iter_graph(model)
        if isinstance(node, library.Variable)
        and any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(node.get_raw_value()))
    ]
