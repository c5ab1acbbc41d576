"""sow: store a value from inside a module in one of its attributes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import moduli
from moduli import errors, plugins
from moduli_debug._values import MISSING, check_name, unboxed
from moduli_debug._wanted import Sown, Wanted, innermost
from moduli_debug.errors import SownGrowthWarning, UncapturedWarning

__all__ = ["sow"]

_MANY = 32


@moduli.hookimpl(specname="moduli_sow")
def sow(
    module: moduli.Module,
    variable_type: type[moduli.Variable[Any]],
    name: str,
    value: Any,
    reduce_fn: Callable[[Any, Any], Any],
    init_fn: Callable[[], Any],
    capture_noop: bool,
) -> bool:
    """Stores a value in the module's attribute ``name``, a Variable of the given kind.

    The first run makes the Variable with the value ``reduce_fn(init_fn(), value)``; later runs
    write ``reduce_fn(previous, value)``. While a capture runs, the value goes there instead if the
    kind is captured, and nowhere if it is not; it is then reduced when the capture ends, so that
    what transforms stack is reduced as a whole.

    Args:
      module: the module that sows.
      variable_type: the kind of Variable.
      name: the attribute's name.
      value: an array or a pytree of arrays; Variables in it are stored as their values.
      reduce_fn: combines what is stored with the value.
      init_fn: makes what is stored before the first value.
      capture_noop: store nothing while no capture runs.

    Returns:
      Whether the value was stored.

    Raises:
      StructureError: if the attribute exists and is not a Variable of this kind.
      VariableError: if the value holds a module, or the name is no name.
    """
    check_name(name, "sow")
    found = innermost(module)
    if found is not None:
        recording, wanted, path = found
        if wanted.number_of(variable_type) is None:
            if os.environ.get("MODULI_STRICT") == "1":
                _warn_uncaptured(wanted, variable_type, (*path, name))
            return False
        value = unboxed(value, f"sow: the value {name!r} of {type(module).__name__}")
        key = Sown(variable_type, name, reduce_fn, init_fn)
        return recording.record_at(plugins.Place(path, None, key), value)
    if capture_noop:
        return False
    existing = getattr(module, name, MISSING)
    if existing is not MISSING:
        _check_existing(module, variable_type, name, existing)
    value = unboxed(value, f"sow: the value {name!r} of {type(module).__name__}")
    if existing is MISSING:
        setattr(module, name, variable_type(reduce_fn(init_fn(), value)))
        return True
    new = reduce_fn(existing.value, value)
    existing.value = new
    if isinstance(new, tuple) and len(new) >= _MANY and (len(new) & (len(new) - 1)) == 0:
        _warn_of_growth(module, variable_type, name, len(new))
    return True


def _warn_of_growth(
    module: moduli.Module, kind: type[moduli.Variable[Any]], name: str, count: int
) -> None:
    warnings.warn(
        f"sow: `{name}` of {type(module).__name__} now holds {count} values of earlier calls, and "
        "each call adds one: it takes more and more memory, and a jitted function compiles again "
        f"each time. Write `result, seen = moduli.capture(model, moduli.{kind.__name__})(x)`, "
        f"which leaves nothing in the model, or `moduli.pop(model, moduli.{kind.__name__})` after "
        "each call",
        SownGrowthWarning,
        stacklevel=6,
    )


def _warn_uncaptured(
    wanted: Wanted, kind: type[moduli.Variable[Any]], path: tuple[Any, ...]
) -> None:
    kinds = ", ".join(wanted_kind.__name__ for wanted_kind in wanted.kinds) or "no kind"
    warnings.warn(
        f"sow: `{errors.format_path(path)}` is of kind {kind.__name__}, and the capture that is "
        f"running captures {kinds}, so the value is dropped; capture moduli.{kind.__name__} too",
        UncapturedWarning,
        stacklevel=6,
    )


def _check_existing(
    module: moduli.Module, variable_type: type[moduli.Variable[Any]], name: str, existing: Any
) -> None:
    if type(existing) is variable_type:
        return
    kind, owner = variable_type.__name__, type(module).__name__
    if isinstance(existing, moduli.Variable):
        found = type(existing).__name__
        raise errors.StructureError(
            f"sow: `{name}` of {owner} is a Variable of kind {found}; expected kind {kind}. Use "
            f"another name, or sow the kind {found} here too"
        )
    raise errors.StructureError(
        f"sow: `{name}` of {owner} is a {type(existing).__name__}; expected a Variable of kind "
        f"{kind}, or nothing yet. Use another name, such as "
        f"`self.sow(moduli.{kind}, 'sown_{name}', value)`"
    )
