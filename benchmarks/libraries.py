"""The libraries with flax.nnx's interface, for what raw JAX has no counterpart of."""

from __future__ import annotations

from typing import Any


def libraries() -> dict[str, Any]:
    """Returns name -> module: moduli, and flax.nnx if it is installed."""
    import moduli

    found: dict[str, Any] = {"moduli": moduli}
    try:
        from flax import nnx
    except ImportError:
        return found
    return {**found, "flax.nnx": nnx}
