"""Values of haiku's modules, which stand beside them under their names, and where ours go.

A module of haiku can be made inside of a transformed function alone, and holds no values: those are
in ``params[module.module_name]``. A conversion keeps, in ``kept``, the values that it reads from or
writes to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import moduli
from moduli_interop._bridges.bridge import Conversion
from moduli_interop._bridges.conventions import check_once

__all__ = [
    "Reading",
    "Values",
    "Writing",
    "read",
    "read_state",
    "reading",
    "write",
    "write_state",
    "writing",
]

Values = Mapping[str, Mapping[str, Any]]


@dataclasses.dataclass
class Reading:
    """What a conversion from haiku reads.

    Attributes:
      params: haiku's parameters.
      state: its state.
      prefix: what stands before the names of the modules that are converted.
      used: the names that were read.
    """

    params: Values
    state: Values
    prefix: str
    used: set[str] = dataclasses.field(default_factory=set)


@dataclasses.dataclass
class Writing:
    """What a conversion to haiku writes.

    Attributes:
      params: haiku's parameters; None where the modules alone are wanted.
      state: its state, likewise.
      initializes: whether layers with statistics are made for a training step, in which alone they
        make their state.
      depend: the layers whose arrays have a shape that depends on the rank of the inputs.
    """

    params: dict[str, dict[str, Any]] | None = None
    state: dict[str, dict[str, Any]] | None = None
    initializes: bool = False
    depend: list[tuple[tuple[str | int, ...], str]] = dataclasses.field(default_factory=list)


def reading(convert: Conversion) -> Reading:
    """Returns what a conversion from haiku reads."""
    return convert.kept["haiku"]


def writing(convert: Conversion) -> Writing:
    """Returns what a conversion to haiku writes."""
    return convert.kept["haiku"]


def read(module: Any, convert: Conversion, below: str = "") -> Mapping[str, Any]:
    """Returns the parameters of a module of haiku.

    Args:
      module: the module.
      convert: the conversion, which raises if there are none.
      below: what the name of a module inside of it adds: ``"/linear"``.
    """
    held = reading(convert)
    name = f"{held.prefix}{module.module_name}{below}"
    if name not in held.params:
        convert.refuse(
            module,
            f"whose parameters are not there, so that its sizes are not known (params has no "
            f"{name!r}; it has {', '.join(map(repr, held.params)) or 'none'})",
        )
    held.used.add(name)
    return held.params[name]


def read_state(module: Any, convert: Conversion) -> Mapping[str, Any]:
    """Returns the state of a module of haiku."""
    held = reading(convert)
    name = f"{held.prefix}{module.module_name}"
    if name not in held.state:
        convert.refuse(module, f"whose state is not there (state has no {name!r})")
    held.used.add(name)
    return held.state[name]


def write(
    module: Any,
    convert: Conversion,
    arrays: Mapping[str, Any],
    below: str = "",
    make: Callable[..., Any] | None = None,
) -> None:
    """Notes what the parameters of a module of haiku are.

    Args:
      module: the module.
      convert: the conversion.
      arrays: the Variables, None or functions of no arguments that make an array, by haiku's names.
      below: as of :func:`read`.
      make: makes haiku's array of a Variable's.
    """
    held = writing(convert)
    for item in arrays.values():
        if isinstance(item, moduli.Variable):
            check_once(item, convert)
    if held.params is None:
        return
    made = held.params.setdefault(f"{module.module_name}{below}", {})
    for name, item in arrays.items():
        if isinstance(item, moduli.Variable):
            value = item.get_value()
            made[name] = value if make is None else make(value)
        elif item is not None:
            made[name] = item()


def write_state(module: Any, convert: Conversion, arrays: Mapping[str, Any]) -> None:
    """Notes what the state of a module of haiku is: arrays by their names."""
    held = writing(convert)
    if held.state is not None:
        held.state[module.module_name] = dict(arrays)
