"""display: objects as an interactive tree in a notebook, as text elsewhere."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

import moduli

__all__ = ["display", "tree_text"]

_INDENT = "  "


def display(*objects: Any) -> None:
    """Shows modules, States and other pytrees.

    In a notebook where treescope is installed (``pip install "moduli-debug[treescope]"``), each is
    a tree whose parts fold and unfold, with pictures of the arrays. Anywhere else each is printed
    as a tree of text, large arrays by their shape and dtype.

    Args:
      *objects: what to show.

    Example:
      >>> import jax.numpy as jnp, moduli as nnx
      >>> from moduli_debug import display
      >>> display(nnx.Linear(2, 3, use_bias=False, rngs=nnx.Rngs(0)).kernel)
      Param(float32[2, 3] ...)
      >>> seen = [jnp.ones((4, 4), jnp.float32), "a"]
      >>> display({"loss": jnp.float32(0.5), "seen": seen})
      {
        'loss': float32[] 0.5,
        'seen': [
          float32[4, 4],
          'a',
        ],
      }
    """
    notebook = _notebook()
    for item in objects:
        if notebook is None:
            print(tree_text(item))  # noqa: T201 - what it is for
        else:
            from moduli_debug._treescope import Drawn

            notebook.display(Drawn(item, tree_text(item)))


display.__module__ = "moduli_debug"


def _notebook() -> Any:
    """Returns ``IPython.display`` in a notebook where treescope is installed, otherwise None."""
    ipython = sys.modules.get("IPython")  # a notebook has imported it
    shell = None if ipython is None else ipython.get_ipython()
    if not hasattr(shell, "kernel") or importlib.util.find_spec("treescope") is None:
        return None
    return importlib.import_module("IPython.display")


def tree_text(value: Any) -> str:
    """Formats a value as a tree of text.

    Args:
      value: a module, a Variable, a State, an array, or any nesting of these in dicts, lists,
        tuples and dataclasses.
    """
    return _tree(value, 0, set())


def _tree(value: Any, depth: int, above: set[int]) -> str:
    if isinstance(value, (moduli.Pytree, moduli.Variable, moduli.State)):
        return _indented(repr(value), depth)
    if isinstance(value, (jax.Array, np.ndarray, jax.ShapeDtypeStruct)):
        return _array(value)
    if id(value) in above:
        return "..."
    inner = above | {id(value)}
    if isinstance(value, Mapping):
        opening, closing = (
            ("{", "}") if type(value) is dict else (f"{type(value).__name__}({{", "})")
        )
        entries = [(f"{key!r}: ", item) for key, item in value.items()]
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        opening, closing = f"{type(value).__name__}(", ")"
        names = value._fields  # type: ignore[attr-defined]
        entries = [(f"{name}=", item) for name, item in zip(names, value, strict=True)]
    elif isinstance(value, (list, tuple)):
        opening, closing = ("[", "]") if isinstance(value, list) else ("(", ")")
        entries = [("", item) for item in value]
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        opening, closing = f"{type(value).__name__}(", ")"
        fields = dataclasses.fields(value)
        entries = [(f"{field.name}=", getattr(value, field.name)) for field in fields]
    else:
        return _indented(repr(value), depth)
    return _lines(opening, entries, closing, depth, inner)


def _lines(
    opening: str, entries: Iterable[tuple[str, Any]], closing: str, depth: int, above: set[int]
) -> str:
    pad = _INDENT * (depth + 1)
    lines = [f"{pad}{head}{_tree(item, depth + 1, above)}," for head, item in entries]
    if not lines:
        return opening + closing
    return "\n".join([opening, *lines, _INDENT * depth + closing])


def _array(value: Any) -> str:
    shown = repr(moduli.Variable(value))  # which writes small arrays in full
    return shown.removeprefix("Variable(").removesuffix(")")


def _indented(text: str, depth: int) -> str:
    return text.replace("\n", "\n" + _INDENT * depth)
