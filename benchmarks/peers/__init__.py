"""One file a peer. Each has ``forward(depth)`` and ``train_step(depth)``.

Both return a function without arguments that makes one jitted call and keeps all state (statistics,
parameters, optimizer state) for the next one, as a training loop would. ``forward`` returns the
outputs, ``train_step`` the loss.
"""

from __future__ import annotations

import importlib
from types import ModuleType

PEERS = {
    "raw jax.jit": "raw",
    "moduli.jit": "moduli_jit",
    "equinox.filter_jit": "equinox_jit",
    "flax.nnx split/merge": "flax_split",
    "flax.nnx.jit": "flax_jit",
}
"""Name in the report -> module in this folder; the first is what the others are compared with."""


def load(name: str) -> ModuleType | None:
    """Imports a peer, or returns None if its library is not installed."""
    try:
        return importlib.import_module(f"benchmarks.peers.{PEERS[name]}")
    except ImportError:
        return None
