"""Calls that are hard on the structure cache, relative to raw ``jax.jit`` over the same leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.libraries import libraries
from benchmarks.peers import RAW
from benchmarks.settings import Settings
from benchmarks.stress_cases import CASES, Case
from benchmarks.tables import ratio_cell, table, time_text
from benchmarks.timing import round_robin


def calls(case: Case, settings: Settings) -> dict[str, Callable[[], Any]]:
    """Returns the calls of raw JAX (twice) and the libraries, after checking that they agree."""
    made = {RAW: case.by_hand(settings), "raw again": case.by_hand(settings)}
    made |= {f"{name}.jit": case.library(nnx, settings) for name, nnx in libraries().items()}
    for _ in range(2):
        results = {name: np.asarray(call()) for name, call in made.items()}
        for name, value in results.items():
            np.testing.assert_allclose(value, results[RAW], rtol=1e-4, atol=1e-4, err_msg=name)
    return made


def measure(settings: Settings) -> dict[Any, Any]:
    """Returns case -> peer -> microseconds of a call in each round; and the sizes."""
    found = {
        name: round_robin(
            calls(case, settings),
            rounds=settings.some_rounds,
            budget_s=settings.budget_s,
            repeats=settings.repeats,
        )
        for name, case in CASES.items()
    }
    sizes = {
        "depth": settings.detail_depth,
        "modules": settings.many_modules,
        "variables": settings.many_variables,
    }
    return {"sizes": sizes, "cases": found}


def report(found: dict[Any, Any]) -> list[str]:
    """Formats the table."""
    sizes, cases = found["sizes"], found["cases"]
    names = [name for name in next(iter(cases.values())) if name != RAW]
    return [
        "Calls that are hard on a cache of structures, relative to raw `jax.jit` over the same",
        f"leaves. The first three have models of depth {sizes['depth']}; many modules are",
        f"{sizes['modules']}, many Variables {sizes['variables']}.",
        "",
        *table(
            ["per call", "raw", *names],
            [
                [case, time_text(times[RAW]), *[ratio_cell(times, name, RAW) for name in names]]
                for case, times in cases.items()
            ],
        ),
    ]
