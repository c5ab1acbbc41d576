"""Which plugins may run: ``MODULI_PLUGINS`` and ``python -m moduli -p``, before any is imported.

``a,b`` takes just these, ``none`` takes none, ``-c`` takes all but ``c``.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable

from moduli import errors

__all__ = ["Selection"]


class Selection:
    """A parsed choice of plugins.

    Args:
      text: the choice; by default that of the environment variable ``MODULI_PLUGINS``.

    Example:
      >>> from moduli._plugins.selection import Selection
      >>> [Selection("-debug").allows(name) for name in ("debug", "layers")]
      [False, True]
    """

    def __init__(self, text: str | None = None):
        if text is None:
            text = os.environ.get("MODULI_PLUGINS", "")
            self.source = f"MODULI_PLUGINS={text!r}"
        else:
            self.source = f"the choice of plugins {text!r}"
        names = [part.strip() for part in text.split(",") if part.strip()]
        self.excluded = {name[1:] for name in names if name.startswith("-")}
        self.included = {name for name in names if not name.startswith("-")}
        self.none = "none" in self.included
        self.included.discard("none")

    def allows(self, name: str) -> bool:
        """Returns whether the plugin of this name may run."""
        if name in self.excluded or (self.none and name not in self.included):
            return False
        return not self.included or name in self.included

    def check(self, known: Iterable[str]) -> None:
        """Raises if the choice names a plugin that is not installed.

        Raises:
          PluginError: with near misses.
        """
        known = sorted(set(known))
        for name in sorted(self.included | self.excluded):
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = (
                    f"did you mean {near[0]!r}?"
                    if near
                    else f"installed are {', '.join(known) or 'none'}"
                )
                raise errors.PluginError(
                    f"{self.source} names the plugin {name!r}, which is not installed; {hint}"
                )
