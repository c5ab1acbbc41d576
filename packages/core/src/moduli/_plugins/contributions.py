"""Things that plugins contribute by name: modes, kinds of Variable, formats; and who has which.

A name of moduli's own is reserved: an installed plugin's claim to it is refused with one warning.
Two others that claim one name for different things are an error where that name is used, not
before. So no installed plugin changes what the names of others mean.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from moduli import errors
from moduli._plugins.dispatch import collected
from moduli._plugins.entry_points import OURS, canonical
from moduli._plugins.records import PluginRecord, notice

__all__ = ["Contributions", "by_attribute", "contributions"]

_CORE = PluginRecord("core", "moduli")


@dataclasses.dataclass
class Contributions:
    """What plugins contribute by name.

    Attributes:
      what: what the names are of, such as "mode attribute".
      values: what each name stands for.
      owners: who contributes it.
      clashes: who else claims a name; a use of such a name is an error.
      refused: installed plugins that claim a name of moduli's own.
    """

    what: str
    values: dict[str, Any] = dataclasses.field(default_factory=dict)
    owners: dict[str, PluginRecord] = dataclasses.field(default_factory=dict)
    clashes: dict[str, list[PluginRecord]] = dataclasses.field(default_factory=dict)
    refused: dict[str, list[PluginRecord]] = dataclasses.field(default_factory=dict)

    def check(self, name: str) -> None:
        """Raises if several plugins claim this name.

        Raises:
          NameClashError: names all of them.
        """
        if name in self.clashes:
            raise errors.NameClashError(self.problem(name), name=name)

    def problem(self, name: str) -> str:
        """Returns what is wrong with a name that several claim."""
        owner, value = self.owners[name], self.values[name]
        others = [*self.clashes.get(name, ()), *self.refused.get(name, ())]
        text = f"{' and '.join(record.title for record in others)} "
        text += "claims" if len(others) == 1 else "claim"
        shown = value if isinstance(value, (type, str, int, float)) else type(value)
        text += f" the {self.what} {name!r}, which {owner.title} has already, as {shown!r}"
        if any(record.distribution for record in (owner, *others)):
            text += "; MODULI_PLUGINS=-NAME leaves a plugin out"
        return text

    def is_installed(self, name: str) -> bool:
        """Returns whether all who claim a name are installed, none turned on by the program."""
        return all(r.distribution for r in (self.owners[name], *self.clashes.get(name, ())))

    def is_ours(self, name: str) -> bool:
        """Returns whether a name is moduli's own."""
        return _is_ours(self.owners[name])


def contributions(
    what: str,
    hook_name: str,
    named: Callable[[Any], Mapping[str, Any]] = dict,
    *,
    reserved: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Contributions:
    """Calls an observing hook whose results are things by name, and finds who has which name.

    Args:
      what: what the names are of, for messages.
      hook_name: the hook.
      named: makes a mapping from names to things of one plugin's result.
      reserved: names that the host itself has.
      **kwargs: the hook's arguments.

    Returns:
      The things; warns of claims to names of moduli's own.
    """
    found: dict[str, list[tuple[PluginRecord, Any]]] = {}
    for record, result in collected(hook_name, named, kwargs):
        for name, value in result.items():
            found.setdefault(name, []).append((record, value))
    made = Contributions(what)
    for name, value in (reserved or {}).items():
        made.values[name], made.owners[name] = value, _CORE
    for name, claims in found.items():
        _settle(made, name, claims)
    for name in made.refused:
        notice(f"{made.problem(name)}. moduli's own counts")
    return made


def by_attribute(result: Iterable[Any]) -> dict[str, Any]:
    """Reads a plugin's result that is several things, each with a ``name``."""
    return {thing.name: thing for thing in result}


def _settle(made: Contributions, name: str, claims: Iterable[tuple[PluginRecord, Any]]) -> None:
    for record, value in sorted(claims, key=lambda claim: not _is_ours(claim[0])):
        if name not in made.values:
            made.values[name], made.owners[name] = value, record
        elif not _same(made.values[name], value):
            refused = record.distribution and _is_ours(made.owners[name])
            others = made.refused if refused else made.clashes
            others.setdefault(name, []).append(record)


def _is_ours(record: PluginRecord) -> bool:
    return record is _CORE or canonical(record.distribution) in OURS


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    try:
        return type(one) is type(other) and bool(one == other)
    except Exception:  # such as arrays: of several values there is no one truth
        return False
