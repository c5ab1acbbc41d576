"""Trace time and compile time of forward and backward over depth: a loop, and a scanned stack."""

from __future__ import annotations

from typing import Any

from benchmarks import stack_models
from benchmarks.settings import Settings
from benchmarks.tables import table, time_text
from benchmarks.timing import from_cold

STAGES = {"trace": "trace + lower", "compile": "compile"}


def measure(settings: Settings) -> dict[Any, Any]:
    """Returns "times": stage -> depth -> model -> microseconds; "notes": model -> why it is not."""
    times: dict[str, Any] = {stage: {} for stage in STAGES}
    notes: dict[str, str] = {}
    for depth in settings.stack_depths:
        calls = {}
        for name, model in stack_models.MODELS.items():
            try:
                calls[name] = model(depth)
            except stack_models.StackMissing as missing:
                notes[name] = str(missing)
        found = from_cold(
            calls,
            rounds=settings.few_rounds,
            stages={"trace": lambda lower: lower(), "compile": lambda lowered: lowered.compile()},
        )
        for stage in STAGES:
            times[stage][depth] = found[stage]
    return {"times": times, "notes": notes}


def report(found: dict[Any, Any]) -> list[str]:
    """Formats a table for each stage, and what is left out."""
    lines = ["Forward and backward through a deep model, before the first call:", ""]
    for stage, by_depth in found["times"].items():
        names = list(next(iter(by_depth.values())))
        rows = [[d, *[time_text(times[name]) for name in names]] for d, times in by_depth.items()]
        lines += table([f"{STAGES[stage]}, depth", *names], rows)
    for name, why in found["notes"].items():
        lines += [f"Left out: {name} ({why}).", ""]
    return lines
