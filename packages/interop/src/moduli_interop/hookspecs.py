"""The hooks that moduli-interop adds to moduli's: what a plugin for a file format implements.

Core finds this file by the entry point group ``moduli.hookspecs``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from moduli import hookspec

if TYPE_CHECKING:
    from moduli_interop._format import Format


@hookspec
def moduli_checkpoint_formats() -> Iterable[Format]:  # type: ignore[empty-body]
    """Returns the checkpoint formats that a plugin adds.

    Called when a checkpoint is saved or loaded. A format is chosen by its name, by the content of
    the file or by its suffix; the formats of ours come through this hook too, of which
    ``"safetensors"`` takes every new file that no other format claims. Two formats of one name are
    an error that names both plugins.

    Returns:
      The formats; keep it cheap, and import what they need only in their ``save`` and ``load``.
    """
