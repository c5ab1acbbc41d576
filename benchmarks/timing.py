"""Timing side by side: every round runs every peer, so that noise meets all of them alike.

On a shared machine the time of a call changes by a factor of two from one second to the next. So a
ratio is taken within a round, where peers follow each other closely, and the median over the rounds
is reported. What runs before matters too: a slow peer leaves cold caches and garbage behind.
So each round has its own order, drawn at random (rotating is not enough: it keeps neighbours
together), and the first call of a turn is not timed.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax

MOST_CALLS = 1000


def turns(names: Iterable[str], rounds: int) -> Iterator[str]:
    """Yields each name once in every round, each round in an order of its own."""
    order = list(names)
    shuffle = random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        yield from order


def round_robin(
    calls: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    budget_s: float,
    repeats: int | None = None,
) -> dict[str, list[float]]:
    """Returns for each name the time of one call in each round, in microseconds.

    Args:
      calls: what to measure; each is called four times before, to compile and to settle.
      rounds: how often every one of them has its turn.
      budget_s: about how long one turn takes, in seconds.
      repeats: calls in one turn, in place of what the budget allows.
    """
    counts = {}
    for name, call in calls.items():
        jax.block_until_ready(_arrays(call()))
        once = min(_time(call, 1) for _ in range(3))
        counts[name] = repeats or max(1, min(MOST_CALLS, int(budget_s / max(once, 1e-7))))
    times: dict[str, list[float]] = {name: [] for name in calls}
    gc.collect()
    for name in turns(calls, rounds):
        jax.block_until_ready(_arrays(calls[name]()))
        times[name].append(_time(calls[name], counts[name]) / counts[name] * 1e6)
    return times


def from_cold(
    calls: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    stages: Mapping[str, Callable[[Any], Any]],
) -> dict[str, dict[str, list[float]]]:
    """Times work that JAX does once, such as tracing: its caches are cleared before each call.

    Args:
      calls: what to measure; each is called once before, for what Python does once.
      rounds: how often every one of them has its turn.
      stages: names of the stages -> what makes each from the one before; the first gets the call.

    Returns:
      stage -> name -> its time in each round, in microseconds.
    """
    times: dict[str, dict[str, list[float]]] = {s: {n: [] for n in calls} for s in stages}
    for call in calls.values():
        call()
    for name in turns(calls, rounds):
        result: Any = calls[name]
        jax.clear_caches()
        gc.collect()
        for stage, make in stages.items():
            start = time.perf_counter()
            result = make(result)
            times[stage][name].append((time.perf_counter() - start) * 1e6)
    return times


def ratios(times: Mapping[str, Sequence[float]], name: str, reference: str) -> list[float]:
    """Returns one's time divided by the other's, for each round."""
    return [a / b for a, b in zip(times[name], times[reference], strict=True)]


def _time(call: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        result = call()
    jax.block_until_ready(_arrays(result))
    return time.perf_counter() - start


def _arrays(result: Any) -> Any:
    return result if isinstance(result, jax.Array) else ()
