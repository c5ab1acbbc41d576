"""Saving and loading: one large model, and very many small arrays, beside safetensors and orbax.

Random numbers, since orbax compresses constants. The peers do what they do by default: moduli
proves every array when it loads and has the file on the disk when it has saved, safetensors
neither. Every load ends with arrays of JAX. Each has its turn in each round. CPU time, that of all
threads, is told beside the time on the clock: it is what remains comparable on a machine that has
other work, and it leaves out the waiting for the disk.
"""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.settings import Settings
from benchmarks.tables import spread_cell, table

SEVERAL = 16  # arrays of the large model

PEAK = """
import sys, tempfile
import jax, jax.numpy as jnp
from benchmarks.checkpoints import PEERS
name, path = sys.argv[1:]
save, load = PEERS[name]
with tempfile.TemporaryDirectory() as folder:  # what importing a library takes is no copy
    save(folder + "/small", {"x": jnp.ones(3)})
    load(folder + "/small")
def most():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:"))
jax.devices(); jnp.ones(3).block_until_ready()
before = most()
arrays = jax.block_until_ready(load(path))
print((most() - before) * 1024 / sum(x.nbytes for x in arrays.values()))
"""


def _save_moduli(path: str, arrays: dict[str, Any]) -> None:
    from moduli_interop import save

    save(path, arrays, format="safetensors", progress=False)


def _load_moduli(path: str) -> dict[str, Any]:
    from moduli_interop import load_state

    return dict(load_state(path, format="safetensors", progress=False))


def _save_safetensors(path: str, arrays: dict[str, Any]) -> None:
    from safetensors.numpy import save_file

    save_file({name: np.asarray(array) for name, array in arrays.items()}, path)


def _load_safetensors(path: str) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return {name: jnp.asarray(array) for name, array in load_file(path).items()}


def _save_orbax(path: str, arrays: dict[str, Any]) -> None:
    import orbax.checkpoint as ocp

    shutil.rmtree(path, ignore_errors=True)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, arrays)


def _load_orbax(path: str) -> dict[str, Any]:
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path)


PEERS: dict[str, tuple[Callable[[str, dict[str, Any]], None], Callable[[str], dict[str, Any]]]] = {
    "moduli": (_save_moduli, _load_moduli),
    "safetensors": (_save_safetensors, _load_safetensors),
    "orbax": (_save_orbax, _load_orbax),
}


def measure(settings: Settings) -> dict[Any, Any]:
    """Returns the times and the memory.

    Returns:
      "times" and "cpu": case -> "save" or "load" -> peer -> seconds; "peak": peer -> model sizes.
    """
    times: dict[str, Any] = {}
    cpu: dict[str, Any] = {}
    peak: dict[str, float] = {}
    peers = {name: peer for name, peer in PEERS.items() if _is_there(name)}
    with tempfile.TemporaryDirectory() as folder:
        for case, arrays in _cases(settings).items():
            for found in (times, cpu):
                found[case] = {what: {name: [] for name in peers} for what in ("save", "load")}
            for number in range(settings.few_rounds + 1):
                for name, (save, load) in peers.items():
                    path = str(pathlib.Path(folder, name))
                    took = {"save": _seconds(save, path, arrays), "load": _seconds(load, path)}
                    if not number:  # the first round makes the files and warms up
                        continue
                    for what, (seconds, of_cpu) in took.items():
                        times[case][what][name].append(seconds)
                        cpu[case][what][name].append(of_cpu)
            if case.startswith("large") and sys.platform == "linux":
                for name in peers:
                    peak[name] = _peak(name, str(pathlib.Path(folder, name)))
    return {"times": times, "cpu": cpu, "peak": peak}


def _cases(settings: Settings) -> dict[str, dict[str, jax.Array]]:
    rng = np.random.default_rng(0)
    size = settings.checkpoint_bytes // SEVERAL // 4
    count = settings.checkpoint_arrays
    many = [jnp.asarray(rng.standard_normal(250, np.float32)) for _ in range(count)]
    weak = jax.jit(lambda x: jnp.full(x.shape, 0.0).at[...].set(x))
    return {
        f"large: {SEVERAL} arrays, {settings.checkpoint_bytes / 2**20:g} MiB": {
            f"layer{i}": jnp.asarray(rng.standard_normal(size, np.float32)) for i in range(SEVERAL)
        },
        f"many: {count} arrays of 1 kB": {f"layer{i}": x for i, x in enumerate(many)},
        f"weak: {count} weakly typed arrays of 1 kB": {
            f"layer{i}": weak(x) for i, x in enumerate(many)
        },
    }


def _is_there(name: str) -> bool:
    import importlib.util

    modules = {"moduli": "moduli_interop", "safetensors": "safetensors", "orbax": "orbax"}
    return importlib.util.find_spec(modules[name]) is not None


def _seconds(call: Callable[..., Any], *args: Any) -> tuple[float, float]:
    """Returns the time on the clock and the CPU time of all threads."""
    start, start_cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(call(*args))
    return time.perf_counter() - start, time.process_time() - start_cpu


def _peak(name: str, path: str) -> float:
    """Returns how many times the model's size a process grows while it loads."""
    command = [sys.executable, "-c", PEAK, name, path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the process that loads with {name} failed: {done.stderr[-2000:]}")
    return float(done.stdout)


def report(found: dict[Any, Any]) -> list[str]:
    """Formats seconds, and how often moduli is faster than the fastest other one."""
    lines = ["Save and load, seconds, and the fastest other's time relative to moduli's:", ""]
    for case, by_kind in found["times"].items():
        lines += _table(case, by_kind, found["cpu"][case])
    peaks = [f"{name} {value:.2f}" for name, value in found["peak"].items()]
    return [
        *lines,
        f"Growth of a process that loads the large one: {', '.join(peaks)} times it.",
        "",
    ]


def _table(case: str, times: dict[str, Any], cpu: dict[str, Any]) -> list[str]:
    names = list(times["save"])
    rows = []
    for what in times:
        for label, by_peer in ((what, times[what]), (f"{what}, CPU", cpu[what])):
            others = [by_peer[name] for name in names if name != "moduli"]
            ratio = [
                min(values) / mine for mine, *values in zip(by_peer["moduli"], *others, strict=True)
            ]
            cells = [spread_cell(by_peer[name], 3) for name in names]
            rows.append([label, *cells, spread_cell(ratio) if others else ""])
    return table([case, *names, "ratio"], rows)
