"""A tool: the range of each module's outputs, under every transform."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import moduli
from moduli import plugins

__all__ = ["RANGES", "running_scale_ranges"]


class _Ranges:
    """The plugin: does nothing unless a recording of its own runs."""

    @moduli.hookimpl
    def moduli_after_call(self, output: Any) -> None:
        if not isinstance(output, jax.Array):
            return
        for recording in plugins.recordings():
            if recording.owner is self:  # `absent` counts in branches that were not taken
                recording.record("low", output.min(), absent=math.inf)
                recording.record("high", output.max(), absent=-math.inf)


RANGES = _Ranges()  # made once: programs are kept for each plugin object


@contextlib.contextmanager
def running_scale_ranges(model: Any) -> Iterator[dict[str, tuple[float, float]]]:
    """Finds the smallest and largest output of each module that is called in a block.

    Args:
      model: the model; paths begin there.

    Yields:
      A dict that is filled when the block ends: path -> (smallest, largest).

    Example:
      >>> import jax.numpy as jnp
      >>> import moduli as nnx
      >>> from moduli_running_scale import running_scale_ranges
      >>> class Double(nnx.Module):
      ...     def __call__(self, x):
      ...         return 2 * x
      >>> model = nnx.Dict(double=Double())
      >>> run = nnx.jit(lambda model, x: model.double(x))
      >>> with running_scale_ranges(model) as ranges:
      ...     _ = run(model, jnp.array([2.0, -4.0]))
      >>> ranges
      {'double': (-8.0, 4.0)}
    """
    ranges: dict[str, tuple[float, float]] = {}
    with moduli.using(RANGES), plugins.recording(RANGES, model) as recording:
        yield ranges
    for entry in recording.entries():
        path = moduli.errors.format_path(entry.place.path)
        low, high = ranges.get(path, (math.inf, -math.inf))
        if entry.place.name == "low":
            low = min(low, float(jnp.min(entry.value)))
        else:
            high = max(high, float(jnp.max(entry.value)))
        ranges[path] = low, high
