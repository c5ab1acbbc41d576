"""The plugin that records inputs and outputs of modules for a capture."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import numpy as np

import moduli
from moduli import errors, plugins
from moduli_debug._module_filter import path_text
from moduli_debug._wanted import Called, Wanted, made_inside

__all__ = ["arrays_of", "nbytes", "watcher"]


class Watcher:
    """Records what a :class:`Wanted` wants.

    Args:
      wanted: the owner of the recording.
    """

    def __init__(self, wanted: Wanted):
        self._wanted = wanted

    @moduli.hookimpl
    def moduli_before_call(self, module: Any, args: Any, kwargs: Any) -> None:
        """Records the input."""
        if self._wanted.inputs is not None:
            value = args[0] if len(args) == 1 and not kwargs else (args, kwargs)
            self._record(module, self._wanted.inputs, Called("inputs"), value)

    @moduli.hookimpl
    def moduli_after_call(self, module: Any, output: Any) -> None:
        """Records the output."""
        if self._wanted.outputs is not None:
            self._record(module, self._wanted.outputs, Called("outputs"), output)
        if self._wanted.methods is not None:
            self._record(module, None, Called("__call__", True), output)

    @moduli.hookimpl
    def moduli_after_method(self, module: Any, method: str, output: Any) -> None:
        """Records what another method returns."""
        if self._wanted.methods is not None:
            self._record(module, None, Called(method, True), output)

    def _record(self, module: Any, predicate: Any, name: Called, value: Any) -> None:
        for recording in reversed(plugins.recordings()):
            if recording.owner != self._wanted:
                continue
            path = recording.path_of(module)
            if path is None or made_inside(path):
                return
            if predicate is not None and not predicate(path, module):
                return
            value = arrays_of(value)
            if self._wanted.reduce is not None:
                value = self._wanted.reduce.of(value)
            if self._wanted.max_bytes is not None:
                self._check_size(recording, path, value)
            number = None if name.method else recording.call()[1]
            recording.record_at(plugins.Place(path, number, name), value)
            return

    def _check_size(self, recording: plugins.Recording, path: Any, value: Any) -> None:
        sizes = [(entry.place.path, entry.value, entry.crossings) for entry in recording.entries()]
        sizes.append((path, value, recording.crossings))
        check_size(self._wanted, sizes)


@functools.lru_cache(maxsize=256)
def watcher(wanted: Wanted) -> Watcher:
    """Returns the plugin of a capture: one for equal captures, as it is part of programs' keys."""
    return Watcher(wanted)


def arrays_of(value: Any) -> Any:
    """Returns a pytree of arrays and numbers alone: Variables as their values, the rest as None."""

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, moduli.Variable):
            leaf = leaf.value
        is_array = isinstance(leaf, (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct))
        return leaf if is_array or isinstance(leaf, (int, float, complex)) else None

    return jax.tree.map(
        convert,
        value,
        is_leaf=lambda leaf: isinstance(leaf, (moduli.Variable, moduli.Pytree)),
    )


def nbytes(value: Any, crossings: Any = ()) -> int:
    """Returns how many bytes a value has, with the axes that transforms will add."""
    total = 0
    for leaf in jax.tree.leaves(value):
        kind = leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.typeof(leaf)
        total += math.prod(kind.shape) * kind.dtype.itemsize
    return total * math.prod(size for _, size in crossings)


def check_size(wanted: Wanted, sizes: list[tuple[Any, Any, Any]]) -> None:
    """Raises if values have more bytes than a capture may keep.

    Args:
      wanted: the capture.
      sizes: (path, value, crossings) of each value.
    """
    assert wanted.max_bytes is not None
    counted = [(nbytes(value, crossings), path) for path, value, crossings in sizes]
    total = sum(size for size, _ in counted)
    if total <= wanted.max_bytes:
        return
    largest = sorted(counted, key=lambda item: -item[0])[:3]
    shown = ", ".join(f"{path_text(path)!r} ({size:,} bytes)" for size, path in largest)
    raise errors.StructureError(
        f"capture: more than max_bytes={wanted.max_bytes:,} bytes, {total:,} so far; the largest "
        f"values are of {shown}. Select fewer modules, keep less of each value "
        "(`reduce=moduli.reducers.mean`), or raise max_bytes; `.estimate(...)` of the wrapped "
        "function says what it takes without running"
    )
