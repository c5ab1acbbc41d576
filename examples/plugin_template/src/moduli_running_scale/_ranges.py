"""A tool on the call hooks: the range of every module's outputs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
from jax.core import Tracer

import moduli

__all__ = ["output_ranges"]


class _Ranges:
    """The plugin: it only looks, so its hook returns None."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[float, float]] = {}

    @moduli.hookimpl
    def moduli_after_call(self, module: moduli.Module, output: Any) -> None:
        if not isinstance(output, jax.Array) or isinstance(output, Tracer):
            return  # inside a trace there are no numbers to look at
        low, high = float(output.min()), float(output.max())
        name = type(module).__name__
        known = self.found.get(name, (low, high))
        self.found[name] = (min(low, known[0]), max(high, known[1]))


@contextlib.contextmanager
def output_ranges() -> Iterator[dict[str, tuple[float, float]]]:
    """Collects the smallest and largest output of each class of modules, for eager calls.

    Yields:
      A dict that fills up: class name -> (smallest, largest).

    Example:
      >>> import jax.numpy as jnp
      >>> from moduli_running_scale import RunningScale, output_ranges
      >>> layer = RunningScale()
      >>> with output_ranges() as ranges:
      ...     _ = layer(jnp.array([2.0, -4.0]))
      >>> ranges
      {'RunningScale': (-1.0, 0.5)}
    """
    plugin = _Ranges()
    with moduli.using(plugin):
        yield plugin.found
