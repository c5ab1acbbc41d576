"""Who changed what: notes every call of a hook for the length of a block."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import Any

from moduli._plugins.records import PluginRecord
from moduli._plugins.replace import Replace

__all__ = ["TraceLine", "tracing"]

_MOST = 5  # examples that a line keeps


@dataclasses.dataclass
class TraceLine:
    """What one plugin did in one hook.

    Attributes:
      plugin: the plugin, with where it comes from.
      hook: the hook.
      calls: how often it ran.
      changes: how often it gave something back, or set attributes of a new module.
      ms: milliseconds it took.
      failures: how often it raised.
      examples: the first things that it changed.
    """

    plugin: str
    hook: str
    calls: int = 0
    changes: int = 0
    ms: float = 0.0
    failures: int = 0
    examples: list[str] = dataclasses.field(default_factory=list)


lines: dict[tuple[str, str], TraceLine] | None = None  # None: nobody traces


@contextlib.contextmanager
def tracing() -> Iterator[dict[tuple[str, str], TraceLine]]:
    """Notes what plugins do in a block, in all threads; yields the lines by plugin and hook."""
    global lines
    before, lines = lines, {}
    try:
        yield lines
    finally:
        lines = before


def traced(record: PluginRecord, hook: str, kwargs: Mapping[str, Any], call: Any) -> Any:
    """Makes a hook's call and notes what came of it."""
    assert lines is not None
    line = lines.setdefault((record.title, hook), TraceLine(record.title, hook))
    line.calls += 1
    module = kwargs.get("module")
    before = dict(vars(module)) if hook == "moduli_module_created" else None
    start = time.perf_counter()
    try:
        result = call()
    except BaseException:
        line.failures += 1
        raise
    finally:
        line.ms += (time.perf_counter() - start) * 1000
    what = _given_back(result)
    if before is not None:
        now = vars(module)
        changed = [key for key in now if key not in before or now[key] is not before[key]]
        what = f"set {', '.join(changed)}" if changed else ""
    if what:
        line.changes += 1
        if len(line.examples) < _MOST:
            example = f"{what}{_place(kwargs)}"
            if example not in line.examples:
                line.examples.append(example)
    return result


def _given_back(result: Any) -> str:
    if result is None:
        return ""
    if isinstance(result, Replace):
        return f"replaced the output by {_short(result.value)}"
    if isinstance(result, Mapping):
        return ", ".join(f"{key} = {_short(value)}" for key, value in result.items())
    return f"gave {_short(result)}"


def _place(kwargs: Mapping[str, Any]) -> str:
    from moduli.errors import format_path

    module = kwargs.get("module")
    if module is None:
        return ""
    path = kwargs.get("path")
    where = f" at {format_path(path)}" if path else ""
    return f" ({type(module).__name__}{where})"


def _short(value: Any) -> str:
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None:
        return f"{dtype}{list(shape)}"
    if isinstance(value, (bool, int, float, str)) or value is None:
        return repr(value)
    return value.__name__ if isinstance(value, type) else f"a {type(value).__name__}"
