"""One file a peer. Each has ``forward(depth)`` and ``train_step(depth)``, which return a Job.

A Job's call keeps all state (statistics, parameters, optimizer state) for the next one, as a
training loop would.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

PEERS = {
    "raw jax.jit": "raw",
    "raw again": "raw",
    "moduli.jit": "moduli_jit",
    "equinox.filter_jit": "equinox_jit",
    "flax.nnx split/merge": "flax_split",
    "flax.nnx.jit": "flax_jit",
}
"""Name in the report -> module in this folder; the first is what the others are compared with.

The second is the first once more: how far its ratio is from 1 is how much the machine's noise moves
the others.
"""

RAW = next(iter(PEERS))
LIBRARIES = {"equinox_jit": "equinox", "flax_split": "flax", "flax_jit": "flax"}


@dataclasses.dataclass(frozen=True)
class Job:
    """What is measured, and how to see that it did its work.

    Attributes:
      call: makes one jitted call; returns the outputs, or for a train step the loss.
      weights: returns what the calls so far left behind: for each block its kernel and its running
        mean and variance.
      lower: traces and lowers the same function from the start (a new function object each time,
        which no cache knows), with its state donated or not. Train steps have it.
    """

    call: Callable[[], Any]
    weights: Callable[[], list[tuple[Any, Any, Any]]]
    lower: Callable[[bool], Any] | None = None


def fresh(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns another function that does the same, so that nothing cached for it is found."""

    @functools.wraps(function)
    def again(*args: Any) -> Any:
        return function(*args)

    return again


def load(name: str) -> ModuleType | None:
    """Imports a peer, or returns None if its library is not installed."""
    module = PEERS[name]
    library = LIBRARIES.get(module)
    if library is not None and importlib.util.find_spec(library) is None:
        return None
    return importlib.import_module(f"benchmarks.peers.{module}")


def jobs(job: str, depth: int, only: Sequence[str] = ()) -> dict[str, Job]:
    """Returns the Jobs of every installed peer.

    Args:
      job: "forward" or "train_step".
      depth: number of blocks.
      only: names of peers; all by default. Raw JAX always takes part.
    """
    made: dict[str, Job] = {}
    for name in PEERS:
        if only and name not in only and name != RAW:
            continue
        module = load(name)
        if module is not None:
            made[name] = getattr(module, job)(depth)
    return made
