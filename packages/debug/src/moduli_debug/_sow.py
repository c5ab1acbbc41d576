"""sow: store a value from inside a module in one of its attributes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import moduli
from moduli import errors
from moduli_debug._boxes import boxes_of
from moduli_debug._values import MISSING, check_name, unboxed

__all__ = ["sow"]


def sow(
    module: moduli.Module,
    variable_type: type[moduli.Variable[Any]],
    name: str,
    value: Any,
    reduce_fn: Callable[[Any, Any], Any],
    init_fn: Callable[[], Any],
) -> bool:
    """Stores a value in the module's attribute ``name``, a Variable of the given kind.

    The first run makes the Variable with the value ``reduce_fn(init_fn(), value)``; later runs
    write ``reduce_fn(previous, value)``. While a capture runs, the value goes there instead if the
    kind is captured, and nowhere if it is not.

    Args:
      module: the module that sows.
      variable_type: the kind of Variable.
      name: the attribute's name.
      value: an array or a pytree of arrays; Variables in it are stored as their values.
      reduce_fn: combines what is stored with the value.
      init_fn: makes what is stored before the first value.

    Returns:
      Whether the value was stored.

    Raises:
      StructureError: if the attribute exists and is not a Variable of this kind.
      VariableError: if the value holds a module, or the name is no name.
    """
    check_name(name, "sow")
    boxes = boxes_of(module)
    place: moduli.Pytree = module
    if boxes is None:
        existing = getattr(module, name, MISSING)
    else:
        box = boxes.box_for(variable_type)
        if box is None:
            return False
        place, existing = box, box.find(name, MISSING)
    if existing is not MISSING:
        _check_existing(module, variable_type, name, existing)
    value = unboxed(value, f"sow: the value {name!r} of {type(module).__name__}")
    if existing is not MISSING:
        existing.value = reduce_fn(existing.value, value)
        return True
    setattr(place, name, variable_type(reduce_fn(init_fn(), value)))
    return True


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
