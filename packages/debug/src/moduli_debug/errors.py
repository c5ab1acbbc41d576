"""Errors that only moduli-debug raises."""

from __future__ import annotations

__all__ = ["SownGrowthWarning", "UncapturedWarning"]


class SownGrowthWarning(UserWarning):
    """A sown tuple grows with every call, because nothing captures or pops it."""


class UncapturedWarning(UserWarning):
    """A value is sown while a capture runs that does not capture its kind (in strict mode)."""
