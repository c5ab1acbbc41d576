"""Names of Variable kinds: ``"params"`` for :class:`Param`, ``"batch_stats"`` for BatchStat, ...

Names are how string filters, ``sow("intermediates", ...)`` and checkpoints speak of kinds. Plugins
add theirs through the ``moduli_variable_names`` hook, programs through
:func:`register_variable_name`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from moduli import _plugins, errors
from moduli._variable.box import Variable
from moduli._variable.kinds import (
    BatchStat,
    Cache,
    Intermediate,
    Param,
    Perturbation,
    RngCount,
    RngKey,
    RngState,
)

__all__ = ["register_variable_name", "variable_name_from_type", "variable_type_from_name"]

_types: dict[str, type[Variable[Any]]] = {
    "params": Param,
    "batch_stats": BatchStat,
    "cache": Cache,
    "intermediates": Intermediate,
    "perturbations": Perturbation,
    "rngs": RngState,
    "rng_keys": RngKey,
    "rng_counts": RngCount,
}
_of_plugins: tuple[Any, int, Any] = (None, 0, None)  # the plugin set, our names, what they say


def contributed() -> _plugins.Contributions:
    """Returns the registered names and those of the plugins in force here, and whose they are."""
    global _of_plugins
    active = _plugins.active()
    if _of_plugins[:2] != (active, len(_types)):
        made = _plugins.contributions(
            "kind of Variable", "moduli_variable_names", _kinds, reserved=dict(_types)
        )
        _of_plugins = (active, len(_types), made)
    return _of_plugins[2]


def _kinds(named: Mapping[str, Any]) -> Mapping[str, Any]:
    for name, kind in named.items():
        if not (isinstance(kind, type) and issubclass(kind, Variable)):
            raise TypeError(f"it names {name!r} {kind!r}, which is no subclass of moduli.Variable")
    return dict(named)


def _known_types(name: str = "") -> dict[str, type[Variable[Any]]]:
    """Returns all names; raises if several plugins claim the one that is looked up."""
    known = contributed()
    if name:
        known.check(name)
    return {**known.values, **_types}


def register_variable_name(
    name: str, typ: type[Variable[Any]] | None = None, *, overwrite: bool = False
) -> Any:
    """Gives a kind of Variable a name; usable as a function or as a class decorator.

    Args:
      name: the name, such as ``"lora_params"``.
      typ: the class; without it a decorator is returned.
      overwrite: allow that the name already belongs to another class.

    Returns:
      The class, or a decorator.

    Raises:
      NameClashError: if the name belongs to another class and ``overwrite`` is false.

    Example:
      >>> import moduli as nnx
      >>> @nnx.register_variable_name("averages")
      ... class Average(nnx.Variable):
      ...     pass
      >>> nnx.variable_type_from_name("averages").__name__
      'Average'
    """
    if typ is None:
        return lambda cls: register_variable_name(name, cls, overwrite=overwrite)
    known = _known_types("" if overwrite else name).get(name)
    if known is not None and known is not typ and not overwrite:
        raise errors.NameClashError(
            f"the variable name {name!r} already belongs to {known.__module__}."
            f"{known.__qualname__}; choose another name, or pass overwrite=True"
        )
    _types[name] = typ
    return typ


def variable_type_from_name(
    name: str, /, *, base: type[Variable[Any]] = Variable, allow_register: bool = False
) -> type[Variable[Any]]:
    """Returns the kind of Variable with this name.

    Args:
      name: a registered name, such as ``"params"``.
      base: base class of the kind that is made when the name is unknown.
      allow_register: make and register a new subclass of ``base``, a class of this name, if the
        name is unknown.

    Raises:
      PathError: if the name is unknown and ``allow_register`` is false.
    """
    known = _known_types(name)
    cls = known.get(name)
    if cls is not None:
        return cls
    if allow_register:
        return register_variable_name(name, type(name, (base,), {"__slots__": ()}))
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known names: {sorted(known)}."
    raise errors.PathError(
        f"no kind of Variable is named {name!r}; {hint} Register one with "
        f"`moduli.register_variable_name({name!r}, MyVariable)`."
    )


def variable_name_from_type(typ: type[Variable[Any]], /, *, allow_register: bool = False) -> str:
    """Returns the name of a kind of Variable.

    Args:
      typ: the class.
      allow_register: register the class under its own name if it has none.

    Raises:
      PathError: if the class has no name and ``allow_register`` is false.

    Example:
      >>> import moduli as nnx
      >>> nnx.variable_name_from_type(nnx.BatchStat)
      'batch_stats'
    """
    for name, cls in _known_types().items():
        if cls is typ:
            return name
    if not allow_register:
        raise errors.PathError(
            f"{typ.__module__}.{typ.__qualname__} has no registered name; decorate it with "
            f"`@moduli.register_variable_name({_snake_case(typ.__name__)!r})`"
        )
    register_variable_name(typ.__name__, typ)
    return typ.__name__


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
