"""First use: from the start of a process to a built model, and to the end of the first train step.

Every peer has its own new process in each round, without JAX's persistent cache, in turns.
"""

from __future__ import annotations

import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from typing import Any

from benchmarks import first_models
from benchmarks.libraries import libraries
from benchmarks.settings import Settings
from benchmarks.tables import spread_cell, table

ROOT = pathlib.Path(__file__).resolve().parent.parent
IMPORTS = {"jax": "jax", "jax again": "jax", "moduli": "moduli", "flax.nnx": "flax.nnx"}
NOT_OF_A_USER = ("JAX_COMPILATION_CACHE_DIR", "PYTHONDONTWRITEBYTECODE")
"""What spares a process the compilation, or keeps Python from keeping its bytecode."""
PARTS = {
    "start to the built model": "built",
    "start to the end of the first train step": "stepped",
}


def measure(settings: Settings) -> dict[Any, Any]:
    """Returns "imports": peer -> seconds; "models": model -> library -> part -> seconds."""
    names = list(libraries())
    imports: dict[str, list[float]] = {
        peer: [] for peer, module in IMPORTS.items() if module in ("jax", *names)
    }
    for module in set(IMPORTS.values()) & {"jax", *names}:
        _seconds(["-c", f"import {module}"])  # Python keeps its bytecode, as after an installation
    for _ in range(settings.some_rounds):
        for peer in imports:
            imports[peer].append(_seconds(["-c", f"import {IMPORTS[peer]}"]))
    models: dict[str, dict[str, dict[str, list[float]]]] = {}
    for model in settings.first_models or first_models.MODELS:
        found = {name: {part: [] for part in PARTS.values()} for name in names}
        for _ in range(settings.few_rounds):
            for name in names:
                times = first_use(name, model)
                for part, seconds in found[name].items():
                    seconds.append(times[part])
        models[model] = found
    return {"imports": imports, "models": models}


def first_use(library: str, model: str) -> dict[str, float]:
    """Returns what one new process took, in seconds since its start, and its loss.

    Args:
      library: module with flax.nnx's interface.
      model: name in ``first_models``.

    Raises:
      RuntimeError: if the process fails, with what it printed.
    """
    words = ["-m", "benchmarks.first_use_program", library, model]
    done = _run(words)
    return json.loads(done.stdout.splitlines()[-1])


def _seconds(words: list[str]) -> float:
    start = time.perf_counter()
    _run(words)
    return time.perf_counter() - start


def _run(words: list[str]) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name not in NOT_OF_A_USER}
    env["FIRST_USE_STARTED"] = repr(time.time())
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}:\n{done.stderr}")
    return done


def report(found: dict[Any, Any]) -> list[str]:
    """Formats the tables of imports and of first train steps."""
    times = found["imports"]
    imports = [
        [f"import {IMPORTS[peer]}" + " again" * (peer == "jax again"), *_row(times, peer, "jax")]
        for peer in times
    ]
    lines = [
        "A new process for each, relative to `import jax`:",
        "",
        *table(["import", "seconds", "relative"], imports),
    ]
    for title, part in PARTS.items():
        rows = []
        for model, libraries_ in found["models"].items():
            by_name = {name: parts[part] for name, parts in libraries_.items()}
            cells = [f"{statistics.median(seconds):.1f} s" for seconds in by_name.values()]
            ratio = ""
            if "flax.nnx" in by_name:
                pairs = zip(by_name["moduli"], by_name["flax.nnx"], strict=True)
                ratio = spread_cell([ours / theirs for ours, theirs in pairs])
            rows.append([model, *cells, ratio])
        head = [title, *next(iter(found["models"].values())), "moduli / flax.nnx"]
        lines += table(head, rows)
    return lines


def _row(times: dict[str, list[float]], peer: str, reference: str) -> list[str]:
    pairs = zip(times[peer], times[reference], strict=True)
    return [
        f"{statistics.median(times[peer]):.2f}",
        spread_cell([ours / theirs for ours, theirs in pairs], 3),
    ]
