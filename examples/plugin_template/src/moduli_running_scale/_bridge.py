"""A bridge: layers from and to another framework."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import moduli
import numpy as np
from moduli_interop.bridge import Bridge, LayerRule

__all__ = ["BRIDGE", "NumpyScale", "RunningScaleScale"]


@dataclasses.dataclass
class NumpyScale:
    """Stands for a layer of the other framework: put that one in its place."""

    factor: np.ndarray[Any, Any]

    def __call__(self, x: Any) -> Any:
        """Scales an array."""
        return np.asarray(x) * self.factor


class RunningScaleScale(moduli.Module):
    """The same as a layer of moduli."""

    def __init__(self, factor: Any) -> None:
        self.factor = moduli.Param(jnp.asarray(factor))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scales an array."""
        return x * self.factor.value


def _rules() -> list[LayerRule]:
    """Makes the rules; called when the framework is first used, so it may be imported here."""
    return [
        LayerRule(
            ours=RunningScaleScale,
            theirs=NumpyScale,
            from_theirs=lambda layer, convert: RunningScaleScale(layer.factor),
            to_theirs=lambda layer, convert: NumpyScale(np.array(layer.factor.value)),
        )
    ]


BRIDGE = Bridge("running_scale", package="numpy", install="numpy", rules=_rules)
