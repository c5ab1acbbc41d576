"""The folder of a CheckpointManager: which steps stand in it, and what their markers say."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping
from typing import Any

from moduli_interop._atomic import atomic_write
from moduli_interop._errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    UnsupportedValueError,
)

__all__ = [
    "StepInfo",
    "checked_metrics",
    "checked_step",
    "data_files",
    "has_steps",
    "marker_path",
    "no_step",
    "read_marker",
    "steps_in",
    "whole_number",
    "write_marker",
]

_MARKER = re.compile(r"step_(\d{1,18})\.json")
_DATA = re.compile(r"step_(\d{1,18})\.[0-9a-f]{16}(\.\w+)?")
_LARGEST_MARKER = 1 << 24
_WRONG = (ValueError, LookupError, TypeError, AttributeError, RecursionError)


@dataclasses.dataclass(frozen=True)
class StepInfo:
    """A step of a :class:`CheckpointManager`, as its marker tells it.

    Attributes:
      step: its number.
      path: the checkpoint; :func:`load`, :func:`inspect_checkpoint` and the like take it.
      format: the name of its format.
      metrics: the numbers that were given to ``save``.
      metadata: the facts that were given to ``save``.
    """

    step: int
    path: str
    format: str
    metrics: Mapping[str, float]
    metadata: Mapping[str, Any]


def has_steps(path: str) -> bool:
    """Returns whether a path is the folder of a manager: one with a marker in it."""
    return os.path.isdir(path) and any(map(_MARKER.fullmatch, os.listdir(path)))


def steps_in(folder: str) -> set[int]:
    """Returns the steps of a folder: those that have a marker."""
    if not os.path.isdir(folder):
        return set()
    matches = map(_MARKER.fullmatch, os.listdir(folder))
    return {int(match[1]) for match in matches if match and str(int(match[1])) == match[1]}


def data_files(folder: str) -> dict[int, set[str]]:
    """Returns the names of the checkpoints in a folder by their steps, with or without a marker."""
    found: dict[int, set[str]] = {}
    for name in os.listdir(folder):
        match = _DATA.fullmatch(name)
        if match:
            found.setdefault(int(match[1]), set()).add(name)
    return found


def marker_path(folder: str, step: int) -> str:
    """Returns where the marker of a step stands."""
    return os.path.join(folder, f"step_{step}.json")


def write_marker(info: StepInfo) -> None:
    """Writes the marker of a step, in one step; the step exists then."""
    folder, name = os.path.split(info.path)
    marker = {
        "step": info.step,
        "checkpoint": name,
        "format": info.format,
        "metrics": dict(info.metrics),
        "metadata": dict(info.metadata),
    }
    with atomic_write(marker_path(folder, info.step)) as file:
        file.write(json.dumps({**marker, "sha256": _digest(marker)}).encode())


def read_marker(folder: str, step: int) -> StepInfo:
    """Returns what the marker of a step says.

    Raises:
      CheckpointNotFoundError: if there is no such step.
      CorruptCheckpointError: if the marker cannot be read.
    """
    path = marker_path(folder, step)
    try:
        with open(path, "rb") as file:
            marker = json.loads(file.read(_LARGEST_MARKER))
        if marker.pop("sha256") != _digest(marker):
            raise ValueError("it does not have its SHA-256")
        name = marker["checkpoint"]
        if not _DATA.fullmatch(name) or marker["step"] != step:
            raise ValueError(f"it names the file {name!r} and the step {marker['step']!r}")
        metrics = {str(key): float(value) for key, value in marker["metrics"].items()}
        metadata = dict(marker["metadata"])
        file_format = str(marker["format"])
    except FileNotFoundError:
        raise no_step(folder, step) from None
    except (IsADirectoryError, *_WRONG) as error:
        raise CorruptCheckpointError(
            f"the marker {path} of step {step} is damaged ({type(error).__name__}: {error}); "
            "the step cannot be used"
        ) from error
    return StepInfo(step, os.path.join(folder, name), file_format, metrics, metadata)


def no_step(folder: str, step: int) -> CheckpointNotFoundError:
    """Returns the error of a step that is not there."""
    steps = sorted(steps_in(folder))
    shown = ", ".join(map(str, steps[-20:])) or "none"
    return CheckpointNotFoundError(f"{folder} has no step {step}; it has {shown}")


def _digest(marker: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(marker, sort_keys=True).encode()).hexdigest()


def whole_number(step: Any) -> int:
    """Returns a step as an int; refuses what is no whole number."""
    if isinstance(step, bool) or not hasattr(step, "__index__"):
        raise UnsupportedValueError(f"a step is a whole number, at least 0; got {step!r}")
    return step.__index__()


def checked_step(step: Any) -> int:
    """Returns the number of a step to save; refuses one below 0."""
    number = whole_number(step)
    if not 0 <= number < 10**18:
        raise UnsupportedValueError(f"a step is a whole number, at least 0; got {number}")
    return number


def checked_metrics(metrics: Mapping[str, Any] | None) -> dict[str, float]:
    """Returns metrics as floats; refuses what is no number."""
    found = {}
    for name, value in (metrics or {}).items():
        try:
            found[str(name)] = float(value)
        except (TypeError, ValueError) as error:
            raise UnsupportedValueError(f"the metric {name!r} is no number: {error}") from None
    return found
