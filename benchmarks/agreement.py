"""Peers agree first, then they are timed: whoever computes something else is found here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.peers import RAW, Job, jobs
from benchmarks.problem import LEARNING_RATE

CHAOTIC_DEPTH = 50


def agreeing_jobs(job: str, depth: int, only: Sequence[str] = ()) -> dict[str, Job]:
    """Returns the Jobs of every installed peer, after checking that all do the same.

    Args:
      job: "forward" or "train_step".
      depth: number of blocks.
      only: names of peers; all by default. Raw JAX always takes part.

    Raises:
      AssertionError: if a peer returns, or leaves behind, something else than raw JAX.
    """
    made = jobs(job, depth, only)
    # a hundred normalised layers blow rounding up: Adam's second step of a deep model differs
    # between any two compilations of the same text, so only the first one is compared there
    steps = 1 if job == "train_step" and depth > CHAOTIC_DEPTH else 3
    expected, weights = _run(made[RAW], steps)
    for name in made:
        if name != RAW:
            _check_agreement(name, *_run(made[name], steps), expected, weights)
    return made


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
