"""What is raised for a file of tensors that cannot be read."""

from __future__ import annotations

from moduli_interop._errors import CheckpointError

__all__ = ["TensorFileError"]


class TensorFileError(CheckpointError, ValueError):
    """A file of tensors is damaged, forged, or of no kind that is known.

    Args:
      file: the file, or what else was given as the source.
      message: what is wrong with it.
      tensor: the name of the tensor in which it is, if it is in one.

    Attributes:
      file: as given.
      problem: the message, as given.
      tensor: as given.
    """

    def __init__(self, file: object, message: str, tensor: str | None = None):
        where = f"{file}: " if tensor is None else f"{file}: the tensor {_short(tensor)}: "
        super().__init__(where + message)
        self.file, self.problem, self.tensor = str(file), message, tensor


def _short(name: str) -> str:
    return repr(name if len(name) <= 200 else f"{name[:197]}...")
