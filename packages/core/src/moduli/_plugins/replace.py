"""How a hook says that it replaces a value, so that None can be a value too."""

from __future__ import annotations

from typing import Any

__all__ = ["Replace"]


class Replace:
    """The result of a hook that replaces a value.

    Args:
      value: the new value.
    """

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value = value

    def __repr__(self) -> str:
        return f"Replace({self.value!r})"
