"""What is known of each plugin: where it came from, what it cost to load, whether it still runs."""

from __future__ import annotations

import dataclasses
import os
import warnings

from moduli import errors

__all__ = ["PluginRecord", "PluginWarning", "is_strict", "quarantine"]


class PluginWarning(UserWarning):
    """A plugin did not load, or failed and was switched off."""


@dataclasses.dataclass
class PluginRecord:
    """One plugin that an installed distribution declares, or that a program passed to ``using``.

    Attributes:
      name: the name of its entry point.
      distribution: the distribution that declares it.
      version: the distribution's version.
      target: what the entry point names.
      state: "active", "blocked" (by MODULI_PLUGINS) or "quarantined" (it failed).
      hooks: the hooks it implements.
      phase: its ``moduli_phase``.
      load_ms: milliseconds that its import took.
      cause: why it is quarantined.
    """

    name: str
    distribution: str
    version: str
    target: str = ""
    state: str = "active"
    hooks: tuple[str, ...] = ()
    phase: int = 0
    load_ms: float = 0.0
    cause: str = ""

    @property
    def title(self) -> str:
        """The plugin and where it comes from, for messages."""
        where = f"{self.distribution} {self.version}".strip()
        return f"plugin {self.name!r} of {where}" if where else f"plugin {self.name!r}"


def is_strict() -> bool:
    """Says whether ``MODULI_STRICT`` makes failures of plugins fatal."""
    return os.environ.get("MODULI_STRICT", "").lower() not in ("", "0", "false", "no")


def quarantine(record: PluginRecord, doing: str, cause: BaseException) -> None:
    """Switches a plugin off and reports it once; raises instead under ``MODULI_STRICT=1``.

    Args:
      record: the plugin.
      doing: what it was doing, such as "in the hook moduli_module_created".
      cause: what it raised.

    Raises:
      PluginError: under ``MODULI_STRICT=1``.
    """
    if record.state == "quarantined":
        return
    record.state = "quarantined"
    record.cause = " ".join(f"{doing}: {type(cause).__name__}: {cause}".split())
    message = (
        f"{record.title} failed {record.cause}. It is switched off; the rest goes on. "
        f"MODULI_STRICT=1 makes this an error, MODULI_PLUGINS=-{record.name} leaves the plugin out"
    )
    if is_strict():
        raise errors.PluginError(message) from cause
    warnings.warn(message, PluginWarning, stacklevel=4)
