"""What is kept between calls: pure functions without the caller's objects, by what calls share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from moduli import _plugins
from moduli._base.closed_over import ClosedOver
from moduli._base.static_keys import UnhashableStatic, static_key
from moduli._call.again import base_of
from moduli._call.bind import Binding
from moduli._call.call import Call
from moduli._call.frame import Frame
from moduli._call.outputs import Outputs
from moduli._call.seen import Seen, is_outdated

__all__ = ["LabelledProgram", "Program", "Programs", "key_of", "program_key"]


def key_of(binding: Binding, *more: Any) -> tuple[Any, ...]:
    """What calls must have in common to share a program; the plugins in force come first."""
    return (_plugins.active().token, binding.signature, *more)


def program_key(call: Call, *more: Any) -> Any:
    """What calls must have in common to share a program; None if that cannot be told."""
    traced, every = call.traced, call.every()
    try:
        static: list[Any] = []
        if len(traced) < len(every):
            static = [None if n in traced else static_key(v) for n, v in enumerate(every)]
        key = key_of(call.binding, call.kind_key(), tuple(static), more)
        hash(key)
    except (UnhashableStatic, TypeError):
        return None
    return key


class Programs(dict[Any, Any]):
    """The programs of one function, by keys whose first part is the token of the plugins."""

    __slots__ = ("__weakref__",)
    __hash__ = object.__hash__  # type: ignore[assignment]

    def find(self, key: Any) -> Any:
        """Returns the program of a key; None if there is none, or it holds outdated constants."""
        found = self.get(key)
        if found is not None and is_outdated(found):
            return self.pop(key, None) and None
        return found

    def keep(self, key: Any, program: Any) -> None:
        """Keeps a program until one of its plugins is gone; not at all if the key is None."""
        if key is not None:
            key[0].used_by(self)
            self[key] = program

    def forget(self, token: Any) -> None:
        """Forgets the programs of plugins that exist no more."""
        for key in [key for key in list(self) if key[0] is token]:
            self.pop(key, None)


class Program:
    """A pure function that JAX has compiled, and what it saw that it was not given.

    Args:
      function: the user's function.

    Attributes:
      closed_over: the Variables that the function read without being given them.
      seen: what the function saw from outside, if it read something there.
    """

    __slots__ = ("__weakref__", "_function", "closed_over", "seen")

    def __init__(self, function: Callable[..., Any]):
        self.closed_over, self._function = ClosedOver(function), function
        self.seen: Seen | None = None

    def note_seen(self) -> None:
        """Notes what the function sees, once it was traced, if it read something outside."""
        if self.closed_over:
            self.seen = Seen([base_of(self._function)])


class LabelledProgram(Program):
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
      in_labels: the label of each traced value.
      outputs: what the function did, after it was traced.
      compiled: what JAX made of the pure function.
    """

    def __init__(
        self,
        call: Call,
        function: Callable[..., Any],
        run: Callable[[Frame], Any],
        out_labels: Any,
        out_name: str,
        labels: Sequence[Any],
        **finish: Any,
    ):
        super().__init__(function)
        self.call, self._run = call.detached(), run
        self.in_labels = call.pick(call.all_labels())
        self._out_labels, self._out_name = out_labels, out_name
        self.labels, self._finish = list(labels), finish
        self.outputs: Any = None
        self.compiled: Any = None

    def dynamic(self, call: Call) -> list[Any]:
        """The traced values of a call."""
        return self.call.pick(call.every())

    def pure(self, values: Sequence[Any]) -> list[list[Any]]:
        """``values -> lists of outputs``, one list for each of ``labels``."""
        frame = self.call.make_frame(values)
        with self.closed_over.noting():
            out = self._run(frame)
        self.note_seen()
        outputs = Outputs(self.call, frame, out, self._out_labels, self._out_name, **self._finish)
        groups = outputs.grouped(self.labels)
        outputs.values = []  # tracers
        self.outputs = outputs
        return groups

    def pairs(
        self, values: Sequence[Any], parameters: inspect.Signature | None
    ) -> Iterable[tuple[str, Any]]:
        """The names of the traced values in the user's function, each with the value."""
        return zip(self.call.pick(self.call.value_names(parameters)), values, strict=True)

    def apply(self, call: Call, outputs: Outputs, groups: Any) -> Any:
        """Does to the caller's objects what the function did; returns its result."""
        parts = outputs.rebuild(outputs.ungrouped(self.labels, groups))
        return call.apply(parts, outputs.effects)
