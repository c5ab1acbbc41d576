"""Chooses the format of a checkpoint among those that plugins contribute."""

from __future__ import annotations

import difflib

from moduli import plugins
from moduli_interop._errors import CheckpointFormatError
from moduli_interop._format import Format

__all__ = ["choose_format", "formats"]

BUILT_IN = "npz"


def formats() -> dict[str, Format]:
    """Returns every format by its name.

    Raises:
      CheckpointFormatError: if two plugins contribute formats of one name.
    """
    found: dict[str, Format] = {}
    owners: dict[str, str] = {}
    for plugin, contributed in plugins.collect("moduli_checkpoint_formats"):
        for format in contributed:
            if format.name in found:
                raise CheckpointFormatError(
                    f"the plugins {owners[format.name]!r} and {plugin!r} both have a checkpoint "
                    f"format named {format.name!r}; switch one of them off with MODULI_PLUGINS=-"
                    f"{plugin}"
                )
            found[format.name], owners[format.name] = format, plugin
    return found


def choose_format(path: str, name: str | None) -> Format:
    """Returns the format for a file.

    Args:
      path: the file; its suffix chooses the format unless a name is given.
      name: the name of a format.

    Raises:
      CheckpointFormatError: if there is no such format, or several claim the suffix.
    """
    known = formats()
    if name is None:
        claims = [
            format for format in known.values() if path.lower().endswith(tuple(format.suffixes))
        ]
        if len(claims) > 1:
            names = sorted(format.name for format in claims)
            raise CheckpointFormatError(
                f"the formats {names} all claim files like {path}; say which one you mean: "
                f"format={names[0]!r}"
            )
        name = claims[0].name if claims else BUILT_IN
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {sorted(known)}."
    if name == BUILT_IN:
        hint += (
            " It comes with moduli-interop, whose plugin `interop` is switched off (see "
            "MODULI_PLUGINS and `python -m moduli plugins`)"
        )
    raise CheckpointFormatError(f"there is no checkpoint format {name!r}; {hint}")
