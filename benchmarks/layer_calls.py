"""Jitted forward and backward of one layer: moduli, flax.nnx and the same maths in raw JAX."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

import moduli
from benchmarks.layer_cases import CASES, Case
from benchmarks.settings import Settings
from benchmarks.tables import ratio_cell, table, time_text
from benchmarks.timing import round_robin

RAW, AGAIN, OURS, THEIRS = "raw", "raw again", "moduli.jit", "flax.nnx.jit"


def measure(settings: Settings) -> dict[Any, Any]:
    """Returns "times": layer -> peer -> microseconds; "notes": what is left out, and why."""
    times: dict[str, Any] = {}
    notes: dict[str, str] = {}
    for name in settings.layers or CASES:
        case = CASES[name]
        if not hasattr(moduli, case.needs):
            notes[name] = f"moduli has no {case.needs}"
            continue
        if settings.layer_batch is not None:
            case = dataclasses.replace(case, inputs=(settings.layer_batch, *case.inputs[1:]))
        runs = peers(case)
        times[name] = round_robin(
            {peer: lambda run=run: run()[0] for peer, run in runs.items()},
            rounds=settings.some_rounds,
            budget_s=settings.budget_s,
            repeats=settings.repeats,
        )
    return {"times": times, "notes": notes}


def peers(case: Case) -> dict[str, Callable[[], tuple[jax.Array, Any]]]:
    """Returns for each peer a call that gives a loss and its gradients, and keeps the new state."""
    runs = {RAW: by_hand(case), AGAIN: by_hand(case), OURS: lifted(case, moduli)}
    if importlib.util.find_spec("flax"):
        runs[THEIRS] = lifted(case, importlib.import_module("flax.nnx"))
    return runs


def by_hand(case: Case) -> Callable[[], tuple[jax.Array, Any]]:
    """The same maths in raw JAX, over a dict of values."""
    layer = case.build(moduli, moduli.Rngs(0))
    params = values_of(moduli.state(layer, moduli.Param))
    rest = values_of(moduli.state(layer, moduli.Not(moduli.Param)))
    x = case.data()

    def loss(params: Any, x: jax.Array, rest: Any) -> Any:
        output, written = case.by_hand({**params, **rest}, x)
        return _loss(output), written

    argnums = (0,) if case.vocabulary is not None else (0, 1)
    program = jax.jit(jax.value_and_grad(loss, argnums=argnums, has_aux=True))

    def call() -> tuple[jax.Array, Any]:
        (value, written), grads = program(params, x, rest)
        rest.update(written)
        return value, grads

    return call


def lifted(case: Case, nnx: Any) -> Callable[[], tuple[jax.Array, Any]]:
    """The layer of a library, through its own transforms."""
    layer = case.build(nnx, nnx.Rngs(0))
    x = case.data()
    argnums = (0,) if case.vocabulary is not None else (0, 1)

    def loss(layer: Any, x: jax.Array) -> jax.Array:
        return _loss(case.call(layer, x))

    @nnx.jit
    def program(layer: Any, x: jax.Array) -> Any:
        return nnx.value_and_grad(loss, argnums=argnums)(layer, x)

    return lambda: program(layer, x)


def _loss(output: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(output))


def values_of(state: Any) -> dict[str, jax.Array]:
    """Returns a State's values by path, with dots."""
    return {
        ".".join(map(str, path)): getattr(leaf, "value", leaf)
        for path, leaf in moduli.to_flat_state(state)
    }


def report(found: Mapping[str, Any]) -> list[str]:
    """Writes the table."""
    lines = [
        "Jitted forward and backward of one layer (gradients for parameters and inputs, state",
        "written back), relative to the same maths by hand:",
        "",
    ]
    columns = [AGAIN, OURS, THEIRS]
    rows = []
    for name, times in found["times"].items():
        cells = [ratio_cell(times, peer, RAW) if peer in times else "" for peer in columns]
        rows.append([name, time_text(times[RAW]), *cells])
    lines += table(["layer", RAW, *columns], rows)
    for name, why in found["notes"].items():
        lines += [f"Left out: {name} ({why}).", ""]
    return lines
