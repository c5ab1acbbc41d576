"""What is measured: peers agree first, then they are timed."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from benchmarks import graph_operations
from benchmarks.peers import PEERS, load
from benchmarks.timing import round_robin

JOBS = ("forward", "train_step")
RAW = next(iter(PEERS))
CHAOTIC_DEPTH = 50


def peers(job: str, depth: int, only: Sequence[str] = ()) -> dict[str, Any]:
    """Returns the calls of every installed peer, after checking that their outputs agree.

    Args:
      job: "forward" or "train_step".
      depth: number of blocks.
      only: names of peers; all by default. Raw JAX always takes part.

    Raises:
      AssertionError: if a peer computes something else than raw JAX.
    """
    calls = {}
    for name in PEERS:
        if only and name not in only and name != RAW:
            continue
        module = load(name)
        if module is not None:
            calls[name] = getattr(module, job)(depth)
    # a hundred normalised layers blow rounding up: Adam's second step of a deep model differs
    # between any two compilations of the same text, so only the first one is compared there
    steps = 1 if job == "train_step" and depth > CHAOTIC_DEPTH else 3
    expected = [np.asarray(calls[RAW]()) for _ in range(steps)]
    for name, call in calls.items():
        if name != RAW:
            for step, value in enumerate(expected):
                np.testing.assert_allclose(
                    np.asarray(call()), value, rtol=2e-3, atol=2e-3, err_msg=f"{name}, call {step}"
                )
    return calls


def environment() -> dict[str, str]:
    """Returns what the numbers depend on."""
    found = {"python": platform.python_version(), "cores": str(os.cpu_count())}
    for name in ("jax", "flax", "equinox", "optax", "moduli"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "-"
    found["device"] = jax.devices()[0].device_kind
    return found


def measure(
    *,
    depths: Sequence[int],
    rounds: int,
    budget_s: float,
    only: Sequence[str] = (),
    operations: bool = True,
) -> dict[str, Any]:
    """Measures everything; times are medians in microseconds a call.

    Returns:
      ``environment``; ``jobs``: job -> depth -> peer -> time; ``operations``: operation -> depth ->
      library -> time.
    """
    jobs: dict[str, Any] = {}
    for job in JOBS:
        for depth in depths:
            calls = peers(job, depth, only)
            jobs.setdefault(job, {})[depth] = round_robin(calls, rounds=rounds, budget_s=budget_s)
    found: dict[str, Any] = {}
    if operations:
        libraries = _libraries()
        for depth in depths:
            made = {name: graph_operations.calls(nnx, depth) for name, nnx in libraries.items()}
            for operation in graph_operations.OPERATIONS:
                calls = {name: made[name][operation] for name in made}
                times = round_robin(calls, rounds=max(3, rounds // 3), budget_s=budget_s)
                found.setdefault(operation, {})[depth] = times
    return {"environment": environment(), "rounds": rounds, "jobs": jobs, "operations": found}


def _libraries() -> dict[str, Any]:
    import moduli

    libraries: dict[str, Any] = {"moduli": moduli}
    try:
        from flax import nnx
    except ImportError:
        return libraries
    return {**libraries, "flax.nnx": nnx}
