"""What can be wrong: one class for each thing a caller may want to tell apart."""

from __future__ import annotations

from moduli.errors import ModuliError

__all__ = [
    "AsFlaxError",
    "CheckpointError",
    "CheckpointFormatError",
    "CheckpointMismatchError",
    "CheckpointNotFoundError",
    "CheckpointVersionError",
    "CorruptCheckpointError",
    "DamagedCheckpointWarning",
    "MissingExtraError",
    "NotACheckpointError",
    "TruncatedCheckpointError",
    "UnsupportedValueError",
]


class AsFlaxError(ModuliError, ImportError):
    """``flax.nnx`` cannot be moduli any more, because it is imported already."""


class CheckpointError(ModuliError):
    """Base of all errors about checkpoints."""


class NotACheckpointError(CheckpointError, ValueError):
    """The file was not written by :func:`moduli.save`."""


class TruncatedCheckpointError(CheckpointError, ValueError):
    """The file ends early, as after an interrupted copy or download."""


class CorruptCheckpointError(CheckpointError, ValueError):
    """The bytes of the file are not those that were written."""


class CheckpointVersionError(CheckpointError, ValueError):
    """The file is of a format version that this release cannot read."""


class CheckpointFormatError(CheckpointError, ValueError):
    """No format, or more than one, has the name or suffix that was asked for."""


class MissingExtraError(CheckpointError, ImportError):
    """A format needs a package that is not installed; the text is the pip command."""


class UnsupportedValueError(CheckpointError, TypeError):
    """The model holds a value that a checkpoint cannot store."""


class CheckpointNotFoundError(CheckpointError, LookupError):
    """A :class:`CheckpointManager` has no such step."""


class DamagedCheckpointWarning(UserWarning):
    """A step of a :class:`CheckpointManager` is passed over, because its file is damaged."""


class CheckpointMismatchError(CheckpointError, ValueError):
    """The checkpoint does not fit the model.

    Args:
      message: the text, with a table of the first problems.
      problems: one line for each problem, all of them.

    Attributes:
      problems: one line for each problem, all of them, in order of the table.
    """

    def __init__(self, message: str, problems: tuple[str, ...] = ()):
        super().__init__(message)
        self.problems = problems
