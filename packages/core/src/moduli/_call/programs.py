"""Compiled labelled calls: what pmap and shard_map keep between calls."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from moduli import _plugins
from moduli._base.closed_over import ClosedOver
from moduli._base.static_keys import UnhashableStatic, static_key
from moduli._call.again import base_of
from moduli._call.carried import is_array_like
from moduli._call.frame import Frame
from moduli._call.labelled_call import LabelledCall, Outputs
from moduli._call.seen import Seen, is_outdated

__all__ = ["LabelledProgram", "Programs", "program_key"]

_TOKEN = 0  # where the plugins' token stands in a key


def program_key(call: LabelledCall, *more: Any) -> Any:
    """What calls must have in common to share a program; None if that cannot be told."""
    try:
        static = [
            None if is_array_like(value) else static_key(value) for value in call.all_values()
        ]
        token = _plugins.active().token
        key = (token, call.binding.signature, call.kind_key(), tuple(static), more)
        hash(key)
    except (UnhashableStatic, TypeError):
        return None
    return key


class Programs:
    """The compiled programs of one function, by :func:`program_key`."""

    def __init__(self) -> None:
        self._found: dict[Any, Any] = {}

    def get(self, key: Any) -> Any:
        """Returns the program of a key; None if there is none, or it holds outdated constants."""
        found = None if key is None else self._found.get(key)
        if found is not None and is_outdated(found[0]):
            return self._found.pop(key, None) and None
        return found

    def keep(self, key: Any, program: Any) -> None:
        """Keeps a program until one of its plugins is gone; not at all if the key is None."""
        if key is not None:
            key[_TOKEN].used_by(self)
            self._found[key] = program

    def forget(self, token: Any) -> None:
        """Forgets the programs of plugins that exist no more."""
        for key in [key for key in list(self._found) if key[_TOKEN] is token]:
            self._found.pop(key, None)


class LabelledProgram:
    """The pure function of a labelled call, without the caller's objects.

    Args:
      call: the first call; only its structure is kept.
      function: the user's function, for messages.
      run: ``(frame) -> result`` runs the user's function.
      out_labels: the prefix of the result.
      out_name: what that prefix is, for messages.
      labels: all labels that an output may have: the prefix that JAX gets.
      finish: arguments of ``Outputs``.

    Attributes:
      call: the call without the caller's objects.
      outputs: what the function did, after it was traced.
      closed_over: what it read that it was not given.
      in_labels: the label of each traced value.
    """

    def __init__(
        self,
        call: LabelledCall,
        function: Callable[..., Any],
        run: Callable[[Frame], Any],
        out_labels: Any,
        out_name: str,
        labels: Sequence[Any],
        **finish: Any,
    ):
        self._mask = [is_array_like(value) for value in call.all_values()]
        self._static = [
            None if use else value for value, use in zip(call.all_values(), self._mask, strict=True)
        ]
        every = call.all_labels()
        self.in_labels = [label for label, use in zip(every, self._mask, strict=True) if use]
        self.call, self._run = call.detached(), run
        self._out_labels, self._out_name = out_labels, out_name
        self.labels, self._finish = list(labels), finish
        self.outputs: Any = None
        self.closed_over, self._function = ClosedOver(function), function
        self.seen: Seen | None = None

    def dynamic(self, call: LabelledCall) -> list[Any]:
        """The traced values of a call."""
        return self.pick(call.all_values())

    def pick(self, every: Sequence[Any]) -> list[Any]:
        """Picks, of one item for each value, those of the traced values."""
        return [item for item, use in zip(every, self._mask, strict=True) if use]

    def pure(self, values: Sequence[Any]) -> list[list[Any]]:
        """``values -> lists of outputs``, one list for each of ``labels``."""
        new = iter(values)
        every = [
            next(new) if use else old for old, use in zip(self._static, self._mask, strict=True)
        ]
        frame = self.call.frame(every)
        with self.closed_over.noting():
            out = self._run(frame)
        if self.closed_over:
            self.seen = Seen([base_of(self._function)])
        outputs = Outputs(self.call, frame, out, self._out_labels, self._out_name, **self._finish)
        groups = outputs.grouped(self.labels)
        outputs.values = []  # tracers
        self.outputs = outputs
        return groups

    def pairs(
        self, values: Sequence[Any], parameters: inspect.Signature | None
    ) -> list[tuple[str, Any]]:
        """The names of the traced values in the user's function, each with the value."""
        return [*zip(self.pick(self.call.value_names(parameters)), values, strict=True)]

    def apply(self, call: LabelledCall, outputs: Outputs, groups: Any) -> Any:
        """Does to the caller's objects what the function did; returns its result."""
        out, new = outputs.rebuild(outputs.ungrouped(self.labels, groups))
        return outputs.effects.apply(call.binding.flats, call.values, out, new)
