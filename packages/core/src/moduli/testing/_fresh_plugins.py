"""Plugins and names looked for anew."""

from __future__ import annotations

from moduli import _plugins
from moduli._facade import resolve

__all__ = ["forget_plugins"]


def forget_plugins() -> None:
    """Forgets which plugins and names are installed, so that the next need looks again.

    Example:
      >>> from moduli.testing import forget_plugins
      >>> forget_plugins()  # after sys.path, MODULI_PLUGINS or what is installed has changed
    """
    _plugins.rediscover()
    resolve.forget()
