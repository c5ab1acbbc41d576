"""The lazy facade: ``moduli.Linear`` is found in whichever installed package declares it.

Names are entry points of the group ``moduli.names``, so they are plain metadata: nothing is read
before an unknown attribute is asked for, and nothing is imported but what that name needs. What was
found is kept among ``moduli``'s globals (see ``moduli/__init__.py``).
"""

from __future__ import annotations

import difflib
import importlib
from typing import Any

from moduli import errors
from moduli._base.install_hint import install_hint
from moduli._facade import claims
from moduli._facade.claims import SUBMODULES, describe, resolved
from moduli._facade.extension_names import PROVIDED

__all__ = ["clashes", "forget", "names", "resolve"]


def _declared() -> dict[str, list[Any]]:
    """Returns the entry points of each name that count."""
    return claims.claims().points


def forget() -> None:
    """Forgets what was read, so that the next name looks again; for tests and notebooks."""
    import moduli

    claims.forget()
    while resolved:
        name = resolved.pop()
        if name in vars(moduli):
            delattr(moduli, name)


def names() -> list[str]:
    """Returns the names that installed packages add to ``moduli``, and core's lazy submodules."""
    return sorted({*_declared(), *SUBMODULES})


def clashes() -> dict[str, list[str]]:
    """Returns the names that several packages claim, with who claims them.

    A package cannot take a name of core's, or of another package of ours: that is a clash too.
    """
    made = claims.claims()
    found = {name: list(map(describe, points)) for name, points in made.points.items()}
    for name, points in made.refused.items():
        owners = found.get(name) or [claims.owner(name)]
        found[name] = [*owners, *map(describe, points)]
    return {name: owners for name, owners in found.items() if len(owners) > 1}


def resolve(name: str) -> Any:
    """Loads the object behind a name.

    Args:
      name: an attribute of ``moduli`` that core does not define.

    Returns:
      The object.

    Raises:
      NameClashError: if two packages claim the name.
      MissingPluginError: (an AttributeError) if a package of moduli's own provides the name and is
        not installed; the text is the command that installs it. Or if the choice of plugins leaves
        out the package that declares it.
      BrokenNameError: if the package that declares the name fails to import, or lacks it.
      AttributeError: if nobody knows the name. The others are AttributeErrors too, so that
        ``hasattr`` and ``inspect.getmembers`` go on.
    """
    if name in SUBMODULES:
        return importlib.import_module(f"moduli.{name}")
    points = _declared().get(name, [])
    if len(points) > 1:
        raise errors.NameClashError(
            f"moduli.{name} is claimed by {' and by '.join(map(describe, points))}; import the "
            "object from its own package, uninstall one of them, or leave one's names out: "
            f"MODULI_PLUGINS=-{points[-1].distribution}",
            name=name,
        )
    if points:
        value = claims.load(points[0])
        resolved.add(name)
        return value
    for extra, provided in PROVIDED.items():
        if name in provided:
            raise errors.MissingPluginError(
                f"moduli.{name} is in the package moduli-{extra}: {install_hint(extra)}", name=name
            )
    blocked = claims.claims().blocked.get(name)
    if blocked:
        raise errors.MissingPluginError(
            f"moduli.{name} is declared by {describe(blocked[0])}, but MODULI_PLUGINS leaves its "
            "names out",
            name=name,
        )
    raise AttributeError(f"module 'moduli' has no attribute {name!r}{_hint(name)}", name=name)


def _hint(name: str) -> str:
    import moduli

    known = {
        *(key for key in (*vars(moduli), *vars(moduli)["_OWN_NAMES"]) if not key.startswith("_")),
        *_declared(),
        *(item for provided in PROVIDED.values() for item in provided),
    }
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean moduli.{near[0]}?" if near else ""
