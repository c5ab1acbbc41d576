"""What can be wrong with a conversion from or to another framework."""

from __future__ import annotations

from moduli.errors import ModuliError

__all__ = ["BridgeError", "MissingFrameworkError"]


class BridgeError(ModuliError, TypeError):
    """A part of a model has no counterpart in the other framework."""


class MissingFrameworkError(ModuliError, ImportError):
    """The other framework is not installed."""
