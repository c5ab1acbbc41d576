"""Says in an error where in the model the module stands whose call raised it."""

from __future__ import annotations

from typing import Any

from moduli import errors
from moduli._base.locate import locate

__all__ = ["place", "unplace"]


def place(error: Exception, module: Any) -> None:
    """Says in an error where in the model the module stands whose call raised it.

    The innermost call is the place. Errors about a layer's arguments say it in their message,
    every other exception in a note, which tracebacks show. A module that belongs to no other has no
    place.

    Args:
      error: the exception.
      module: the module from whose call it comes.
    """
    if getattr(error, "_moduli_placed", False):
        return
    try:
        error._moduli_placed = True  # type: ignore[attr-defined]
    except AttributeError:  # an exception with slots can take neither this nor a note
        return
    root, path = locate(module)
    if not path:
        return
    where = f"`{errors.format_path(path)}` of {type(root).__name__}"
    if isinstance(error, errors.ModuliError) and error.says_place and len(error.args) == 1:
        error.args = (f"{error.args[0]} (in {where})",)
    else:
        error.add_note(f"raised in the call of {where}, a {type(module).__name__}")


def unplace(error: Exception) -> None:
    """Lets the next module whose call the exception leaves say its place too.

    A transform calls its function with a copy of what it was given, which knows no owner. So when
    an error leaves a transform inside a module's call, that module's place is news.

    Args:
      error: the exception.
    """
    if getattr(error, "_moduli_placed", False):
        error._moduli_placed = False  # type: ignore[attr-defined]
