"""Which plugins may run: ``MODULI_PLUGINS`` and ``python -m moduli -p``, before any is imported.

``a,b`` takes just these, ``none`` takes none, ``-c`` takes all but ``c``. A plugin goes by
the name of its entry point, and by that of its distribution, which stands for all it declares.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable

from moduli import errors
from moduli._plugins.entry_points import canonical

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

    def allows(self, name: str, distribution: str = "") -> bool:
        """Returns whether a plugin may run.

        Args:
          name: the name of its entry point; empty for a distribution that has no plugins.
          distribution: the distribution that declares it.
        """
        if self._has(self.excluded, name, distribution):
            return False
        if self.none or self.included:
            return self._has(self.included, name, distribution)
        return True

    @staticmethod
    def _has(chosen: set[str], name: str, distribution: str) -> bool:
        if not chosen:
            return False
        return name in chosen or (
            bool(distribution) and canonical(distribution) in map(canonical, chosen)
        )

    def check(self, known: Iterable[str], distributions: Callable[[], Iterable[str]]) -> None:
        """Raises if the choice names a plugin that is not installed.

        Args:
          known: the names of plugins.
          distributions: finds the names of the distributions that declare something.

        Raises:
          PluginError: with near misses.
        """
        known = sorted(set(known))
        unknown = sorted((self.included | self.excluded).difference(known))
        others = list(distributions()) if unknown else []
        for name in unknown:
            if canonical(name) not in map(canonical, others):
                near = difflib.get_close_matches(name, [*known, *others], n=1)
                hint = (
                    f"did you mean {near[0]!r}?"
                    if near
                    else f"installed are {', '.join(known) or 'none'}"
                )
                raise errors.PluginError(
                    f"{self.source} names the plugin {name!r}, which is not installed; {hint}"
                )
