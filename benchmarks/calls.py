"""A call: the jitted forward pass and the train step, relative to raw JAX, by depth."""

from __future__ import annotations

from typing import Any

from benchmarks.agreement import agreeing_jobs
from benchmarks.peers import RAW
from benchmarks.settings import Settings
from benchmarks.tables import ratio_cell, spread_cell, table, time_text
from benchmarks.timing import round_robin

JOBS = {"forward": "jitted forward pass", "train_step": "train step (Adam)"}


def measure(settings: Settings) -> dict[Any, Any]:
    """Returns job -> depth -> peer -> microseconds of a call in each round."""
    found: dict[str, Any] = {}
    for job in JOBS:
        for depth in settings.depths:
            jobs = agreeing_jobs(job, depth, settings.only)
            found.setdefault(job, {})[depth] = round_robin(
                {name: made.call for name, made in jobs.items()},
                rounds=settings.rounds,
                budget_s=settings.budget_s,
                repeats=settings.repeats,
            )
    return found


def report(found: dict[Any, Any]) -> list[str]:
    """Formats a table for each job."""
    lines = [
        "Time of a call relative to the same computation written by hand in raw JAX (1.00), for a",
        "batch-normalised MLP of width 32 on batches of 32, statistics written back: the median of",
        "the ratios of all rounds, everyone in one process in turns; in brackets, their quartiles.",
        '"raw again" is raw JAX a second time: differences from 1 as small as its own are noise.',
        "",
    ]
    for job, by_depth in found.items():
        lines += by_depth_table(f"{JOBS[job]}, depth", by_depth)
    lines += [
        "The same rounds, as what each adds to the time of raw JAX, in microseconds a call: what a",
        "library takes for itself, whatever the model computes.",
        "",
    ]
    names = [name for name in next(iter(next(iter(found.values())).values())) if name != RAW]
    rows = [
        [f"{JOBS[job]}, depth {depth}", *[_added(times, name) for name in names]]
        for job, by_depth in found.items()
        for depth, times in by_depth.items()
    ]
    return lines + table(["added to raw JAX, µs", *names], rows)


def _added(times: dict[str, list[float]], name: str) -> str:
    """Formats the median of what one takes longer than raw JAX in a round, and its quartiles."""
    differences = [a - b for a, b in zip(times[name], times[RAW], strict=True)]
    return spread_cell(differences, digits=0)


def by_depth_table(title: str, by_depth: dict[int, dict[str, list[float]]]) -> list[str]:
    """Formats a table of ratios to raw JAX: a line for each depth, a column for each peer."""
    names = [name for name in next(iter(by_depth.values())) if name != RAW]
    return table(
        [title, "raw", *names],
        [
            [depth, time_text(times[RAW]), *[ratio_cell(times, name, RAW) for name in names]]
            for depth, times in by_depth.items()
        ],
    )
