"""What is measured: peers agree first, then they are timed."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks import graph_operations
from benchmarks.peers import PEERS, Job, load
from benchmarks.problem import BATCH, LEARNING_RATE, WIDTH
from benchmarks.timing import round_robin

JOBS = ("forward", "train_step")
RAW = next(iter(PEERS))
CHAOTIC_DEPTH = 50


def peers(job: str, depth: int, only: Sequence[str] = ()) -> dict[str, Callable[[], Any]]:
    """Returns the calls of every installed peer, after checking that all do the same.

    Args:
      job: "forward" or "train_step".
      depth: number of blocks.
      only: names of peers; all by default. Raw JAX always takes part.

    Raises:
      AssertionError: if a peer returns, or leaves behind, something else than raw JAX.
    """
    jobs: dict[str, Job] = {}
    for name in PEERS:
        if only and name not in only and name != RAW:
            continue
        module = load(name)
        if module is not None:
            jobs[name] = getattr(module, job)(depth)
    # a hundred normalised layers blow rounding up: Adam's second step of a deep model differs
    # between any two compilations of the same text, so only the first one is compared there
    steps = 1 if job == "train_step" and depth > CHAOTIC_DEPTH else 3
    expected, weights = _run(jobs[RAW], steps)
    for name, made in jobs.items():
        if name != RAW:
            _check_agreement(name, *_run(made, steps), expected, weights)
    return {name: made.call for name, made in jobs.items()}


def _run(job: Job, steps: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Returns the result of each call, and all kernels, means and variances afterwards."""
    outputs = [np.asarray(job.call()) for _ in range(steps)]
    return outputs, [np.stack(group) for group in zip(*job.weights(), strict=True)]


def _check_agreement(
    name: str,
    outputs: list[np.ndarray],
    weights: list[np.ndarray],
    expected_outputs: list[np.ndarray],
    expected_weights: list[np.ndarray],
) -> None:
    for step, (value, expected) in enumerate(zip(outputs, expected_outputs, strict=True)):
        np.testing.assert_allclose(
            value, expected, rtol=1e-4, atol=1e-5, err_msg=f"{name}, call {step}"
        )
    # Adam moves a kernel by the learning rate, or not at all where it sees only rounding: so few
    # entries may differ, but by as much. A bias before a normalisation has no gradient but rounding
    # and so wanders by the learning rate, which shows in the running means.
    off = np.abs(weights[0] - expected_weights[0]).mean()
    assert off < 0.02 * LEARNING_RATE, f"{name}: kernels differ by {off} on average"
    for kind, value, expected in zip(
        ("mean", "var"), weights[1:], expected_weights[1:], strict=True
    ):
        np.testing.assert_allclose(
            value, expected, atol=2 * LEARNING_RATE, rtol=1e-4, err_msg=f"{name}, running {kind}"
        )


def environment() -> dict[str, str]:
    """Returns what the numbers depend on."""
    found = {"python": platform.python_version(), "cores": str(os.cpu_count())}
    for name in ("jax", "flax", "equinox", "optax", "moduli"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "-"
    found["device"] = jax.devices()[0].device_kind
    found["width"], found["batch"] = str(WIDTH), str(BATCH)
    return found


def measure(
    *,
    depths: Sequence[int],
    rounds: int,
    budget_s: float,
    repeats: int | None = None,
    only: Sequence[str] = (),
    operations: bool = True,
) -> dict[str, Any]:
    """Measures everything.

    Args:
      depths: numbers of blocks.
      rounds: how often every peer has its turn; the graph operations have a third of it.
      budget_s: about how long a turn takes, in seconds.
      repeats: calls in a turn, in place of what the budget allows.
      only: names of peers; all by default. Raw JAX always takes part.
      operations: whether to measure split, merge and so on as well.

    Returns:
      ``environment``; ``rounds``; ``jobs``: job -> depth -> peer -> microseconds of a call in each
      round; ``operations``: operation -> depth -> library -> the same.
    """
    jobs: dict[str, Any] = {}
    for job in JOBS:
        for depth in depths:
            calls = peers(job, depth, only)
            jobs.setdefault(job, {})[depth] = round_robin(
                calls, rounds=rounds, budget_s=budget_s, repeats=repeats
            )
    found: dict[str, Any] = {}
    if operations:
        libraries = _libraries()
        for depth in depths:
            made = {name: graph_operations.calls(nnx, depth) for name, nnx in libraries.items()}
            for operation in graph_operations.OPERATIONS:
                calls = {name: made[name][operation] for name in made}
                times = round_robin(
                    calls, rounds=max(3, rounds // 3), budget_s=budget_s, repeats=repeats
                )
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
