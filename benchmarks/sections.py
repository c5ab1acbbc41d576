"""The sections of a run: one concern each, in the order of the report."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from benchmarks import (
    building,
    cache_stress,
    calls,
    checkpoints,
    eager,
    first_use,
    graph_operations,
    layer_calls,
    memory,
    runs,
    stacking,
    tracing,
    training,
)
from benchmarks.settings import Settings


@dataclasses.dataclass(frozen=True)
class Section:
    """One part of the report.

    Attributes:
      title: what it measures, in a few words.
      measure: returns the numbers, as JSON can hold them.
      report: writes them as lines of Markdown.
    """

    title: str
    measure: Callable[[Settings], dict[Any, Any]]
    report: Callable[[dict[Any, Any]], list[str]]


SECTIONS = {
    "calls": Section("forward pass and train step", calls.measure, calls.report),
    "tracing": Section("trace and lower", tracing.measure, tracing.report),
    "memory": Section("memory of the train step", memory.measure, memory.report),
    "operations": Section(
        "split, merge, clone, ...", graph_operations.measure, graph_operations.report
    ),
    "building": Section("where building goes", building.measure, building.report),
    "stress": Section("stress of the structure cache", cache_stress.measure, cache_stress.report),
    "eager": Section("transforms without jit", eager.measure, eager.report),
    "first_use": Section(
        "imports, and process start to first train step", first_use.measure, first_use.report
    ),
    "layers": Section("each layer", layer_calls.measure, layer_calls.report),
    "checkpoints": Section("save and load", checkpoints.measure, checkpoints.report),
    "runs": Section("what Run adds to a loop", runs.measure, runs.report),
    "training": Section("training an MLP, a CNN and a GPT", training.measure, training.report),
    "stacking": Section("loop and scanned stack", stacking.measure, stacking.report),
}
"""Name on the command line and in the JSON -> the section."""
