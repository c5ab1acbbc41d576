"""The hooks that moduli-interop adds to moduli's: for plugins of files and of frameworks.

Core finds this file by the entry point group ``moduli.hookspecs``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from moduli import hookspec

if TYPE_CHECKING:
    from moduli_interop._bridges.bridge import Bridge
    from moduli_interop._format import Format
    from moduli_interop._tensors.source import TensorSource

BY_NAME = {
    "moduli_checkpoint_formats": "checkpoint format",
    "moduli_tensor_sources": "source of tensors",
}
"""The hooks whose results go by a name, which one plugin may have."""


@hookspec
def moduli_checkpoint_formats() -> Iterable[Format]:  # type: ignore[empty-body]
    """Returns the checkpoint formats that a plugin adds.

    Called when a checkpoint is saved or loaded. A format is chosen by its name, by the content of
    the file or by its suffix; the formats of ours come through this hook too, of which
    ``"safetensors"`` takes every new file that no other format claims. The names and
    suffixes of ours are reserved; other formats of one name are an error that names both plugins.

    Returns:
      The formats; keep it cheap, and import what they need only in their ``save`` and ``load``.
    """


@hookspec
def moduli_tensor_sources() -> Iterable[TensorSource]:  # type: ignore[empty-body]
    """Returns the kinds of files of tensors that a plugin can read.

    Called when a file of tensors is opened, as by :func:`moduli_interop.load_weights`. A kind is
    chosen by what it recognises in the content of a file; if two do, that is an error that names
    both, and the user says which. The built-in kinds come through this hook too.

    Returns:
      The kinds; keep it cheap, and import what they need only in their ``read``.
    """


@hookspec
def moduli_bridges() -> Iterable[Bridge]:  # type: ignore[empty-body]
    """Returns the bridges to other frameworks that a plugin adds.

    Called when a model is converted. Bridges of one framework are taken together, so that a plugin
    may also add its own layers to a framework that moduli knows. The classes that our own bridges
    convert are reserved; two other plugins that convert one class are an error that names both.

    Returns:
      The bridges; keep it cheap, and import the framework only in their ``rules``.
    """
