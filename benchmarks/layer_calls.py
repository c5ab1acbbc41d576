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
    """Returns "times": layer -> peer -> microseconds; "work" (see there); "notes", left out why."""
    times: dict[str, Any] = {}
    works: dict[str, Any] = {}
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
        works[name] = work(case)
    return {"times": times, "work": works, "notes": notes}


def peers(case: Case) -> dict[str, Callable[[], tuple[jax.Array, Any]]]:
    """Returns for each peer a call that gives a loss and its gradients, and keeps the new state."""
    runs = {RAW: by_hand(case), AGAIN: by_hand(case), OURS: lifted(case, moduli)}
    theirs = importlib.import_module("flax.nnx") if importlib.util.find_spec("flax") else None
    if hasattr(theirs, case.needs):
        runs[THEIRS] = lifted(case, theirs)
    return runs


def by_hand(case: Case) -> Callable[[], tuple[jax.Array, Any]]:
    """The same maths in raw JAX, over a dict of values."""
    program, (params, x, rest) = raw_program(case)

    def call() -> tuple[jax.Array, Any]:
        (value, written), grads = program(params, x, rest)
        for path, new in written.items():  # some layers write their parameters
            (params if path in params else rest)[path] = new
        return value, grads

    return call


def lifted(case: Case, nnx: Any) -> Callable[[], tuple[jax.Array, Any]]:
    """The layer of a library, through its own transforms."""
    program, arguments = lifted_program(case, nnx)
    return lambda: program(*arguments)


def raw_program(case: Case) -> tuple[Any, tuple[Any, jax.Array, dict[str, jax.Array]]]:
    """The maths by hand under ``jax.jit``, and its arguments: parameters, inputs, other state."""
    layer = case.build(moduli, moduli.Rngs(0))
    params = values_of(moduli.state(layer, moduli.Param))
    rest = values_of(moduli.state(layer, moduli.Not(moduli.Param)))

    def loss(params: Any, x: jax.Array, rest: Any) -> Any:
        output, written = case.by_hand({**params, **rest}, x)
        return _loss(output), written

    gradient = jax.value_and_grad(loss, argnums=_argnums(case), has_aux=True)
    return jax.jit(gradient), (params, case.data(), rest)


def lifted_program(case: Case, nnx: Any) -> tuple[Any, tuple[Any, jax.Array]]:
    """The layer of a library under the library's ``jit``, and its arguments: layer, inputs."""
    layer = case.build(nnx, nnx.Rngs(0))

    def loss(layer: Any, x: jax.Array) -> jax.Array:
        return _loss(case.call(layer, x))

    @nnx.jit
    def program(layer: Any, x: jax.Array) -> Any:
        return nnx.value_and_grad(loss, argnums=_argnums(case))(layer, x)

    return program, (layer, case.data())


def work(case: Case) -> dict[str, dict[str, float]]:
    """Returns what XLA says of the compiled programs, the same on a busy machine: FLOPs and bytes.

    The keys are the peers ``raw`` and ``moduli.jit``, and "flops", "bytes" (read and written) and
    "scratch" (memory besides arguments and results).
    """
    found = {}
    for peer, (program, arguments) in (
        (RAW, raw_program(case)),
        (OURS, lifted_program(case, moduli)),
    ):
        compiled = program.lower(*arguments).compile()
        costs = compiled.cost_analysis()
        found[peer] = {
            "flops": costs["flops"],
            "bytes": costs["bytes accessed"],
            "scratch": compiled.memory_analysis().temp_size_in_bytes,
        }
    return found


def _argnums(case: Case) -> tuple[int, ...]:
    return (0,) if case.vocabulary is not None else (0, 1)  # no gradient of integers


def _loss(output: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(output))


def values_of(state: Any) -> dict[str, jax.Array]:
    """Returns a State's values by path, with dots."""
    return {
        ".".join(map(str, path)): getattr(leaf, "value", leaf)
        for path, leaf in moduli.to_flat_state(state)
    }


def report(found: Mapping[str, Any]) -> list[str]:
    """Formats the table."""
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
    lines += [
        "What XLA counts in the compiled program of moduli.jit, relative to that by hand. These do",
        "not depend on how busy the machine is:",
        "",
    ]
    kinds = {"flops": "FLOPs", "bytes": "bytes read and written", "scratch": "scratch memory"}
    lines += table(
        ["layer", *kinds.values()],
        [
            [name, *(f"{counts[OURS][kind] / max(counts[RAW][kind], 1):.3f}" for kind in kinds)]
            for name, counts in found["work"].items()
        ],
    )
    for name, why in found["notes"].items():
        lines += [f"Left out: {name} ({why}).", ""]
    return lines
