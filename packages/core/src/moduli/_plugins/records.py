"""What is known of each plugin: where it came from, what it cost to load, whether it still runs."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import os
import warnings
from collections.abc import Iterable, Iterator

from moduli import errors

__all__ = [
    "PluginRecord",
    "PluginWarning",
    "is_reporting_only",
    "notice",
    "noticed",
    "quarantine",
    "report",
    "reporting_only",
]

_reporting_only: contextvars.ContextVar[bool] = contextvars.ContextVar(
    "moduli_reporting_only", default=False
)


noticed: set[str] = set()  # what notice() has warned of


class PluginWarning(UserWarning):
    """A plugin did not load, or failed and was switched off."""


@dataclasses.dataclass(eq=False)
class PluginRecord:
    """One plugin that an installed distribution declares, or that a program passed to ``using``.

    Attributes:
      name: the name of its entry point; empty for a distribution whose entry points are damaged.
      distribution: the distribution that declares it.
      version: the distribution's version.
      target: what the entry point names.
      state: "active", "blocked" (by MODULI_PLUGINS) or "quarantined" (it failed).
      hooks: the hooks it implements.
      phase: its ``moduli_phase``.
      load_ms: milliseconds that its import took.
      cause: why it is quarantined.
      reported: whether a warning has said so.
      warned_of: what it implements that is deprecated, after a warning of it.
    """

    name: str
    distribution: str = ""
    version: str = ""
    target: str = ""
    state: str = "active"
    hooks: tuple[str, ...] = ()
    phase: int = 0
    load_ms: float = 0.0
    cause: str = ""
    reported: bool = False
    warned_of: set[str] = dataclasses.field(default_factory=set)

    @property
    def title(self) -> str:
        """The plugin and where it comes from, for messages."""
        where = f"{self.distribution} {self.version}".strip()
        if not self.name:
            return f"distribution {where}"
        return f"plugin {self.name!r} of {where}" if where else f"plugin {self.name!r}"


def quarantine(record: PluginRecord, doing: str, cause: BaseException) -> None:
    """Switches a plugin off; raises instead under ``MODULI_STRICT=1``.

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
    kind = "" if isinstance(cause, errors.PluginError) else f"{type(cause).__name__}: "
    record.cause = " ".join(f"{doing}: {kind}{_text(cause)}".split())
    if _is_strict():
        record.reported = True
        raise errors.PluginError(f"{record.title} failed {record.cause}") from cause


def report(records: Iterable[PluginRecord]) -> None:
    """Warns of each plugin that was switched off, once."""
    for record in records:
        if record.state != "quarantined" or record.reported or _reporting_only.get():
            continue
        record.reported = True
        message = (
            f"{record.title} failed {record.cause}. It is "
            f"{'switched off' if record.name else 'left out'}; the rest goes on. "
            "MODULI_STRICT=1 makes this an error"
        )
        if record.distribution and record.name:
            message += f", MODULI_PLUGINS=-{record.name} leaves the plugin out"
        warnings.warn(message, PluginWarning, stacklevel=3)


def notice(text: str) -> None:
    """Warns of what a plugin does that harms nobody yet; each text once in a program."""
    if _reporting_only.get() or text in noticed:
        return
    noticed.add(text)
    warnings.warn(text, PluginWarning, stacklevel=3)


@contextlib.contextmanager
def reporting_only() -> Iterator[None]:
    """Neither warns nor raises of failing plugins in a block, for a tool that lists them itself."""
    token = _reporting_only.set(True)
    try:
        yield
    finally:
        _reporting_only.reset(token)


def is_reporting_only() -> bool:
    """Returns whether a tool lists what is wrong itself."""
    return _reporting_only.get()


def _text(cause: BaseException) -> str:
    try:
        return str(cause)
    except Exception:  # of its own __str__
        return "(its text cannot be read)"


def _is_strict() -> bool:
    if _reporting_only.get():
        return False
    return os.environ.get("MODULI_STRICT", "").lower() not in ("", "0", "false", "no")
