"""Types for annotations: paths, and type variables that need no argument.

For type checkers ``Param`` alone means ``Param[Any]``. Python has defaults of type
variables since 3.13; checkers know them from ``typing_extensions``, which is not imported when a
program runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    A = TypeVar("A", default=Any)
    T = TypeVar("T", default=Any)
else:
    from typing import TypeVar

    A = TypeVar("A")
    T = TypeVar("T")

__all__ = ["A", "Path", "T"]

Path = tuple[Any, ...]
"""Where something stands in a model: attributes, keys and indices, from the top."""
