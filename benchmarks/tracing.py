"""Before the first call: tracing and lowering the train step, relative to raw JAX, by depth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.calls import by_depth_table
from benchmarks.peers import Job, jobs
from benchmarks.settings import Settings
from benchmarks.timing import from_cold


def measure(settings: Settings) -> dict[Any, Any]:
    """Returns depth -> peer -> microseconds of tracing and lowering in each round."""
    return {
        depth: from_cold(
            {name: _lower(job) for name, job in jobs("train_step", depth, settings.only).items()},
            rounds=settings.few_rounds,
            stages={"lower": lambda lower: lower()},
        )["lower"]
        for depth in settings.depths
    }


def _lower(job: Job) -> Callable[[], Any]:
    lower = job.lower
    assert lower is not None
    return lambda: lower(False)


def report(found: dict[Any, Any]) -> list[str]:
    """Formats the table."""
    return [
        "Time to trace and lower the train step (`jitted.lower(...)`) relative to raw JAX: a new",
        "function each time, with JAX's caches cleared before it.",
        "",
        *by_depth_table("trace + lower the train step, depth", found),
    ]
