"""Format: how a checkpoint becomes a file, as plugins contribute it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moduli_interop._stored import Checkpoint

__all__ = ["Format"]


@dataclasses.dataclass(frozen=True)
class Format:
    """A file format for checkpoints; return it from the hook ``moduli_checkpoint_formats``.

    Args:
      name: what users write in ``save(..., format=name)``.
      suffixes: file name endings that choose this format, with the dot: ``(".npz",)``.
      save: ``save(path, checkpoint)`` writes a :class:`~moduli_interop.Checkpoint`. It should
        write atomically; :func:`moduli_interop.atomic_write` and
        :func:`moduli_interop.atomic_folder` help.
      load: ``load(path)`` reads it back. What it returns may read each array when its ``read`` is
        called; a value that is not bit by bit as it was written raises a
        :class:`~moduli_interop.CheckpointError`, there or here, and so does whatever else is wrong
        with the file.
      recognizes: ``recognizes(path)`` returns whether a file or folder is of this format, by its
        content. Without it the suffix decides.
      open: ``open(path)`` reads what the file says of itself and no array, for ``inspect``; by
        default ``load``.
      verify: ``verify(path)`` reads everything, keeps nothing and raises what is wrong; by default
        every array that ``load`` gives is read once.
      writes_shards: whether ``save`` takes arrays that are spread over several processes, each of
        which calls it; it then reads ``StoredArray.live``.

    Example:
      >>> import moduli as nnx
      >>> from moduli_interop import Format
      >>> kept = {}
      >>> class MemoryPlugin:
      ...     @nnx.hookimpl
      ...     def moduli_checkpoint_formats(self):
      ...         return [Format("memory", (".mem",), kept.__setitem__, kept.__getitem__)]
      >>> with nnx.using(MemoryPlugin()):
      ...     nnx.save("a.mem", nnx.Dict({"scale": nnx.Param(2.5)}))
      ...     nnx.load_state("a.mem").scale
      Param(2.5)
    """

    name: str
    suffixes: tuple[str, ...]
    save: Callable[[str, Checkpoint], None]
    load: Callable[[str], Checkpoint]
    recognizes: Callable[[str], bool] | None = None
    open: Callable[[str], Checkpoint] | None = None
    verify: Callable[[str], None] | None = None
    writes_shards: bool = False
