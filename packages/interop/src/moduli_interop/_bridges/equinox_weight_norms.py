"""``equinox.nn.WeightNorm`` and ours."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

import moduli
from moduli_interop._bridges.bridge import Conversion
from moduli_interop._bridges.conventions import ChannelsFirst, check_plain
from moduli_interop._bridges.equinox_values import replaced, value

__all__ = ["from_weight_norm", "to_weight_norm"]

_LARGEST = 1e-9  # what ours adds to squared lengths, where equinox adds nothing


def from_weight_norm(part: Any, convert: Conversion) -> Any:
    """Makes our WeightNorm of equinox's.

    Args:
      part: the module.
      convert: the conversion.
    """
    made = convert(part.layer, "layer")
    layer = made.layer if isinstance(made, ChannelsFirst) else made
    if type(layer) not in _around() or part.weight_name != "weight":
        convert.refuse(part, f"around `{part.weight_name}` of a {type(part.layer).__name__}")
    axis = part.axis
    wrapped = moduli.WeightNorm(
        layer,
        feature_axes=None if axis is None else _axis(axis % part.g.ndim, part.g.ndim, back=False),
        epsilon=0.0,
        param_dtype=part.g.dtype,
        rngs=moduli.Rngs(0),
    )
    wrapped.use_running_average = True  # a call writes nothing, as there, in training neither
    (scale,) = wrapped.scales.values()
    scale.set_value(jnp.array(part.g.reshape(scale.shape)))
    return ChannelsFirst(wrapped, axis=made.axis) if isinstance(made, ChannelsFirst) else wrapped


def to_weight_norm(part: Any, inner: Any, convert: Conversion) -> Any:
    """Makes equinox's WeightNorm of ours.

    Args:
      part: our wrapper.
      inner: equinox's layer, of the wrapped one.
      convert: the conversion.
    """
    import equinox.nn as nn

    if type(part.layer_instance) not in _around():
        convert.refuse(part, f"around a {type(part.layer_instance).__name__}")
    check_plain(part, convert, but=("variable_filter",))
    scales, axes = part.scales or {}, part.feature_axes
    axes = axes if isinstance(axes, (tuple, list)) else (axes,)
    if list(scales) != [("kernel",)] or len(axes) > 1 or part.epsilon > _LARGEST:
        convert.refuse(
            part,
            "which equinox has around one kernel, with a scale, at most one of feature_axes and no "
            f"epsilon (here: scales of {sorted(map(str, scales))}, feature_axes={tuple(axes)}, "
            f"epsilon={part.epsilon})",
        )
    if getattr(part.layer_instance, "transpose_kernel", False):
        convert.refuse(part, "around a layer with transpose_kernel=True")
    rank = inner.weight.ndim
    made = nn.WeightNorm(inner, axis=_axis(axes[0] % rank, rank, back=True) if axes else None)
    return replaced(made, g=value(scales["kernel",], convert).reshape(made.g.shape))


def _around() -> tuple[type, ...]:
    """Returns what both can stand around; asked for late, as moduli-layers may be missing."""
    return moduli.Linear, moduli.Conv, moduli.ConvTranspose


def _axis(axis: int, rank: int, *, back: bool) -> int:
    """Returns the number of an axis of (out, in, *spatial) in (*spatial, in, out), or back."""
    order = [rank - 1, rank - 2, *range(rank - 2)]
    return order.index(axis) if back else order[axis]
