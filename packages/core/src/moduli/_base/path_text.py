"""Paths that users write as text, in either notation: ``blocks/0/kernel``, ``blocks[0].kernel``."""

from __future__ import annotations

import re

__all__ = ["parse_path"]

_PART = re.compile(r"""\[(?:'([^']*)'|"([^"]*)"|([^\]]*))\]|([^.\[\]]+)""")


def parse_path(text: str) -> tuple[str, ...]:
    """Returns the parts of a path as texts; indices are texts too.

    Args:
      text: with slashes between the parts, or as messages write it.

    Example:
      >>> from moduli._base.path_text import parse_path
      >>> parse_path("blocks/0/kernel") == parse_path("blocks[0].kernel")
      True
      >>> parse_path("scales['a.b']")
      ('scales', 'a.b')
    """
    if "/" in text and "[" not in text:
        return tuple(part for part in text.split("/") if part)
    return tuple("".join(groups) for groups in _PART.findall(text))
