"""Errors that only moduli-debug raises."""

from __future__ import annotations

from moduli.errors import ModuliError

__all__ = ["UnsupportedError"]


class UnsupportedError(ModuliError, NotImplementedError):
    """An option that flax.nnx has and moduli-debug does not have yet."""
