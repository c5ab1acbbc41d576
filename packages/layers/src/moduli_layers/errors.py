"""Errors that only layers raise; shapes and random streams have theirs in :mod:`moduli.errors`."""

from __future__ import annotations

from moduli.errors import ModuliError

__all__ = ["ArgumentError", "DtypeError"]


class ArgumentError(ModuliError, ValueError):
    """A layer was built or called with an argument that has no meaning for it."""

    says_place = True


class DtypeError(ModuliError, ValueError):
    """An array has a dtype with which a layer cannot compute (``ValueError``, as JAX's own)."""

    says_place = True
