"""The path that a function was given, or an error that says how to call it."""

from __future__ import annotations

import os
from typing import Any

from moduli.errors import VariableError

__all__ = ["path_of"]


def path_of(path: Any, caller: str, arguments: str, model: Any = None) -> str:
    """Returns a path as text.

    Args:
      path: what the caller was given as the path.
      caller: the function, for messages.
      arguments: its arguments as they are written: ``"path, model"``.
      model: what it was given as the model.

    Raises:
      VariableError: (a TypeError) if it is no path.
    """
    try:
        return os.fsdecode(path)
    except TypeError:
        swapped = isinstance(model, (str, os.PathLike))
        raise VariableError(
            f"{caller} got a {type(path).__name__} as the path"
            + (" and a path as the model: swapped" if swapped else "")
            + f"; write `{caller}({arguments})`"
        ) from None
