"""The two decorators of the plugin system, for hooks and for their implementations."""

from __future__ import annotations

import pluggy

__all__ = ["PROJECT", "hookimpl", "hookspec"]

PROJECT = "moduli"

hookspec = pluggy.HookspecMarker(PROJECT)
"""Marks a function as the declaration of a hook (see ``pluggy.HookspecMarker``)."""

hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a function as a plugin's implementation of a hook (see ``pluggy.HookimplMarker``)."""
