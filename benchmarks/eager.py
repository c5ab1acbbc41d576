"""Transforms that compile, called without ``jit``: their time, and how often XLA compiles."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.monitoring

from benchmarks.eager_cases import CASES, EagerCase
from benchmarks.libraries import libraries
from benchmarks.settings import Settings
from benchmarks.tables import ratio_cell, table, time_text
from benchmarks.timing import round_robin

RAW, AGAIN = "raw", "raw again"
_COMPILED = "/jax/core/compile/backend_compile_duration"


def measure(settings: Settings) -> dict[Any, Any]:
    """Returns "times": case -> peer -> microseconds; "compilations": case -> peer -> of a call."""
    times: dict[str, Any] = {}
    compilations: dict[str, Any] = {}
    for name, case in CASES.items():
        calls = peers(case)
        times[name] = round_robin(
            calls,
            rounds=settings.some_rounds,
            budget_s=settings.budget_s,
            repeats=settings.repeats,
        )
        compilations[name] = {peer: _compilations(call) for peer, call in calls.items()}
    return {"times": times, "compilations": compilations}


def peers(case: EagerCase) -> dict[str, Callable[[], jax.Array]]:
    """Returns for each peer a call of the computation."""
    runs = {RAW: case.raw(), AGAIN: case.raw()}
    return runs | {name: case.lifted(nnx) for name, nnx in libraries().items()}


def _compilations(call: Callable[[], Any]) -> int:
    """How often XLA compiles in a call that is not the first."""
    before = _counter()[_COMPILED]
    jax.block_until_ready(call())
    return _counter()[_COMPILED] - before


@functools.cache
def _counter() -> collections.Counter[str]:
    """Counts JAX's events from the first use on."""
    counted: collections.Counter[str] = collections.Counter()
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration_secs, **_: counted.update([event])
    )
    return counted


def report(found: dict[Any, Any]) -> list[str]:
    """Writes both tables."""
    names = list(next(iter(found["times"].values())))
    others = [name for name in names if name != RAW]
    lines = [
        "A warm call of one transform without `jit`, of functions that are defined once, relative",
        "to raw JAX:",
        "",
    ]
    rows = [
        [case, time_text(times[RAW]), *[ratio_cell(times, name, RAW) for name in others]]
        for case, times in found["times"].items()
    ]
    lines += table(["without jit", *names], rows)
    lines += ["How often XLA compiles in such a call:", ""]
    rows = [
        [case, *[counts[name] for name in names]] for case, counts in found["compilations"].items()
    ]
    return lines + table(["compilations of a warm call", *names], rows)
