"""What the numbers depend on: versions, the machine, the sizes of the problem."""

from __future__ import annotations

import importlib.metadata
import os
import platform

import jax

from benchmarks.problem import BATCH, WIDTH


def environment() -> dict[str, str]:
    """Returns name -> value, in the order of the report."""
    found = {"python": platform.python_version(), "cores": str(os.cpu_count())}
    for name in ("jax", "flax", "equinox", "optax", "moduli"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "-"
    found["device"] = jax.devices()[0].device_kind
    found["width"], found["batch"] = str(WIDTH), str(BATCH)
    return found
