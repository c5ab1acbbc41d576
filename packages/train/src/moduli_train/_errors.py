"""What goes wrong around a training loop."""

from __future__ import annotations

from moduli.errors import ModuliError

__all__ = [
    "BatchShapeWarning",
    "DataEndedError",
    "DataPositionWarning",
    "NonFiniteLossError",
    "NonFiniteLossWarning",
    "NotSavedError",
    "RunError",
]


class RunError(ModuliError, RuntimeError):
    """A run cannot go on, or not begin."""


class DataEndedError(RunError):
    """There are fewer batches than steps."""


class NonFiniteLossError(RunError, FloatingPointError):
    """A logged loss is NaN or infinite; nothing is saved any more."""


class NotSavedError(RunError):
    """The step changes a node that is in no checkpoint."""


class BatchShapeWarning(UserWarning):
    """A batch has other shapes than the first, so the step is compiled again."""


class DataPositionWarning(UserWarning):
    """The data cannot say where it stands, so a resume reads batches and drops them."""


class NonFiniteLossWarning(UserWarning):
    """A logged loss is NaN or infinite; nothing is saved until it is finite again."""
