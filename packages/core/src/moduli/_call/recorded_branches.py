"""Branches that record different values: what the others record is filled in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from moduli._call.call import Call
from moduli._call.frame import Frame
from moduli._call.function import Function
from moduli._recording.recording import Entry

__all__ = ["record_alike"]

_Key = tuple[Any, int]  # the place, and how many of the same place came before


def record_alike(call: Call, functions: Sequence[Function]) -> Callable[[Frame], None]:
    """Traces all branches once, and makes each record what any of them records.

    A branch of ``jax.lax.cond`` has to return what the others return. So a value that it does not
    record is filled in: NaN, or what the entry's ``absent`` says.

    Args:
      call: the call.
      functions: the branches.

    Returns:
      What to do with the frame of a branch that has run.
    """
    count = len(call.signature.recordings)
    wanted: list[dict[_Key, Entry]] = [{} for _ in range(count)]
    calls: list[Counter[Any]] = [Counter() for _ in range(count)]

    def trace(function: Function) -> Callable[[Any], Any]:
        def run(values: Any) -> Any:
            frame = call.make_frame(values)
            frame.run(call.transform, function.name, function.call)
            for recording, entries, counts in zip(frame.recordings, wanted, calls, strict=True):
                for key, entry in _keyed(recording.entries()):
                    types = jax.tree.map(jax.typeof, entry.value)
                    entries.setdefault(key, entry._replace(value=types))
                for path, number in recording.counts().items():
                    counts[path] = max(counts[path], number)

        return run

    for function in functions:
        jax.eval_shape(trace(function), call.dynamic)

    def fill(frame: Frame) -> None:
        for recording, entries, counts in zip(frame.recordings, wanted, calls, strict=True):
            if not recording.keeps:
                continue
            own = dict(_keyed(recording.entries()))
            recording.replace(
                [own[key] if key in own else _absent(entry) for key, entry in entries.items()],
                counts,
            )

    return fill


def _keyed(entries: Sequence[Entry]) -> list[tuple[_Key, Entry]]:
    seen: Counter[Any] = Counter()
    keyed = []
    for entry in entries:
        keyed.append(((entry.place, seen[entry.place]), entry))
        seen[entry.place] += 1
    return keyed


def _absent(entry: Entry) -> Entry:
    def fill(kind: Any) -> jax.Array:
        inexact = jnp.issubdtype(kind.dtype, jnp.inexact)
        return jnp.full(kind.shape, entry.absent if inexact else 0, kind.dtype)

    return entry._replace(value=jax.tree.map(fill, entry.value))
