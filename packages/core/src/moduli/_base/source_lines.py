"""Sites: the lines of the user's code at which Variables are made and written.

A site is a pair of a code object and an offset in it (``f_lasti``), taken from the innermost frame
that belongs neither to moduli nor to JAX. Taking one costs a few hundred nanoseconds and keeps no
frame alive; file and line are worked out when a message needs them.
"""

from __future__ import annotations

import os
from sys import _getframe
from types import CodeType, FrameType
from typing import Any

__all__ = ["Site", "describe_place", "describe_site", "find_site", "place_of"]

Site = tuple[CodeType, int]

_PACKAGES = frozenset(
    (
        "moduli",
        "moduli_layers",
        "moduli_debug",
        "moduli_train",
        "moduli_interop",
        "jax",
        "jaxlib",
        "pluggy",
    )
)
# file names whose frames count, and those passed over; dataclasses generate code in "<string>"
_counted: set[str] = set()
_passed_over: set[str] = {"<string>"}


def find_site() -> Site | None:
    """Returns the place in the user's code that is running now, above the caller's caller."""
    frame = _getframe(2)
    while frame is not None:
        code = frame.f_code
        file = code.co_filename
        if file in _counted or (file not in _passed_over and _counts(frame)):
            return code, frame.f_lasti
        frame = frame.f_back
    return None


def _counts(frame: FrameType) -> bool:
    """Returns whether the code in this frame is the user's, and remembers it for the file."""
    package = str(frame.f_globals.get("__name__")).partition(".")[0]
    counts = package not in _PACKAGES
    (_counted if counts else _passed_over).add(frame.f_code.co_filename)
    return counts


def place_of(site: Site) -> tuple[str, int]:
    """Returns file and line of a site; the file relative to the working directory if below it."""
    code, offset = site
    line = code.co_firstlineno
    for start, end, number in code.co_lines():
        if start <= offset < end and number is not None:
            line = number
            break
    return _relative(code.co_filename), line


def _relative(path: str) -> str:
    try:
        below = os.path.join(os.getcwd(), "")
    except OSError:  # the working directory is gone
        return path
    return path[len(below) :] if path.startswith(below) else path


def describe_place(site: Site) -> str:
    """Formats a site as ``model.py:12``."""
    file, line = place_of(site)
    return f"{file}:{line}"


def describe_site(variable: Any) -> str:
    """Describes where a Variable was made.

    Args:
      variable: a Variable.

    Returns:
      Text such as ``made at model.py:12``, or ``""`` when the place is unknown.

    Example:
      >>> import moduli as nnx
      >>> from moduli._base.source_lines import describe_site
      >>> describe_site(nnx.Param(1.0)).partition(" at ")[0]
      'made'
    """
    site = getattr(variable, "_made", None)
    return "" if site is None else f"made at {describe_place(site)}"
