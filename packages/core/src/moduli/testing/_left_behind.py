"""What a call leaves behind: traced values, and globals that grow with each call."""

from __future__ import annotations

import gc
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from moduli import errors
from moduli._base.compat import Tracer

__all__ = ["assert_leaves_nothing"]

_SIZED = (list, dict, set)


def assert_leaves_nothing(run: Callable[[], Any], owners: Iterable[Any], who: str) -> None:
    """Asserts that a call leaves no traced value alive, and lets no global grow or change.

    Args:
      run: the call. It runs twice before it is looked at, so that what is kept once is no matter.
      owners: classes, modules and objects whose attributes it could change.
      who: what runs, for messages.

    Raises:
      AssertionError: names what was left, and where.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", errors.RecompilationWarning)  # it is traced each time
        _look(run, owners, who)


def _look(run: Callable[[], Any], owners: Iterable[Any], who: str) -> None:
    run()
    run()
    owners = list(owners)
    before, known = _contents(owners), _alive()
    run()
    after = _contents(owners)
    for place, content in after.items():
        if place not in before or content != before[place]:
            raise AssertionError(
                f"{who} changes {place} at each call; a call may write Variables of its module, "
                "and hand other values out by a recording (moduli.plugins.recording)"
            )
    left = [x for number, x in _alive().items() if number not in known]
    if left:
        raise AssertionError(
            f"{who} leaves {len(left)} traced values behind after the transform has ended"
            f"{_holder(left[0])}; keep values in Variables of the module, or hand them out by a "
            "recording (moduli.plugins.recording)"
        )


def _alive() -> dict[int, Any]:
    gc.collect()
    return {id(x): x for x in gc.get_objects() if issubclass(type(x), Tracer)}


def _contents(owners: list[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for owner in owners:
        held = getattr(owner, "__dict__", None)
        for name, value in dict(held or {}).items():
            if name.startswith("__") or name == "_abc_impl":
                continue
            place = f"`{getattr(owner, '__name__', type(owner).__name__)}.{name}`"
            size = len(value) if isinstance(value, _SIZED) else None
            found[place] = (id(value), size)
    return found


def modules_of(classes: Iterable[type]) -> list[Any]:
    """Returns classes with the Python modules in which they stand."""
    found: list[Any] = []
    for cls in classes:
        module = sys.modules.get(cls.__module__)
        found += [cls, module] if module is not None else [cls]
    return list({id(x): x for x in found}.values())


def _holder(tracer: Any) -> str:
    """Returns who holds a tracer, as far as that can be told."""
    for holder in gc.get_referrers(tracer):
        if isinstance(holder, list | tuple | set) and not _is_local(holder, tracer):
            for outer in gc.get_referrers(holder):
                if isinstance(outer, dict) and (name := _key(outer, holder)):
                    return f", in `{name}`"
        if isinstance(holder, dict) and (name := _key(holder, tracer)):
            return f", in `{name}`"
    return ""


def _is_local(holder: Any, tracer: Any) -> bool:
    return isinstance(holder, list) and len(holder) > 100 and tracer is not holder[0]


def _key(holder: dict[Any, Any], value: Any) -> str:
    return next((k for k, v in holder.items() if v is value and isinstance(k, str)), "")
