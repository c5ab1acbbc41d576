"""Timing side by side: every round runs every peer, so that noise meets all of them alike."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax


def round_robin(
    calls: Mapping[str, Callable[[], Any]], *, rounds: int, budget_s: float
) -> dict[str, float]:
    """Returns the median time of one call, in microseconds, for each name.

    Args:
      calls: what to measure; each is called once before, to compile.
      rounds: how often every one of them has its turn.
      budget_s: about how long one turn takes, in seconds.
    """
    repeats = {}
    for name, call in calls.items():
        jax.block_until_ready(_arrays(call()))
        once = min(_time(call, 1) for _ in range(3))
        repeats[name] = max(1, min(200, int(budget_s / max(once, 1e-7))))
    times: dict[str, list[float]] = {name: [] for name in calls}
    gc.collect()
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(_time(call, repeats[name]) / repeats[name] * 1e6)
    return {name: statistics.median(values) for name, values in times.items()}


def _time(call: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        result = call()
    jax.block_until_ready(_arrays(result))
    return time.perf_counter() - start


def _arrays(result: Any) -> Any:
    return result if isinstance(result, jax.Array) else ()
