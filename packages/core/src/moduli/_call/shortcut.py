"""The shortcut of a call that differs from the last one in nothing but values.

That is what a training loop does: the same modules, step after step. ``bind`` would find the same
structure and the same program again; the shortcut knows them by a few identities, at a third of
the price. It stands aside where plugins are turned on for a block, a recording is running, or
another program is being traced.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from moduli._base.closed_over import ACTIVE
from moduli._base.epoch import EPOCH
from moduli._call.bind import Binding, is_plain, plain_types
from moduli._graph.flat import Flat
from moduli._plugins import active, plugin_block
from moduli._recording.recording import recordings

__all__ = ["Shortcut"]

_NOTHING: Mapping[Any, Any] = {}


class Shortcut:
    """The program of the last call, and what identifies a call that may run it too.

    It keeps no module alive: a Flat dies with its root.
    """

    __slots__ = (
        "_count",
        "_epoch",
        "_first",
        "_fixed",
        "_graphdefs",
        "_looks",
        "_names",
        "_plain",
        "_program",
        "_roots",
        "_token",
    )

    _first: Callable[[], None] | None

    @classmethod
    def after(
        cls,
        binding: Binding,
        program: Any,
        fixed: Mapping[int, Any] = _NOTHING,
        fixed_names: Mapping[str, Any] = _NOTHING,
    ) -> Shortcut | None:
        """Returns the shortcut for calls like this one; None if there is no simple one.

        Args:
          binding: the arguments of the call, but for the static ones.
          program: its program.
          fixed: the static positional arguments, by position.
          fixed_names: the static keyword arguments, by name.
        """
        flats, template = binding.flats, binding.template
        places = [index for index, kind in enumerate(template) if kind]
        if plugin_block() or binding.recordings or len(flats) != len(places):
            return None  # (roots that share objects are one graph)
        if not all(isinstance(flat, Flat) for flat in flats) or any(
            isinstance(kind, tuple) for kind in template
        ):
            return None
        epochs = {flat.unchanged_since() for flat in flats} or {EPOCH[0]}
        if len(epochs) > 1 or None in epochs:
            return None
        self = object.__new__(cls)
        self._first = None
        self._program, self._token, self._epoch = program, active().token, epochs.pop()
        self._looks = any(flat.has_containers for flat in flats)
        if self._looks:
            self._epoch = -1
        self._count = len(template) + len(fixed) + len(fixed_names)
        self._names = (*binding.names, *fixed_names)
        start = self._count - len(fixed_names)  # of the static keyword arguments, the last ones
        self._fixed = [*fixed.items(), *enumerate(fixed_names.values(), start)]
        positions = [n for n in range(start) if n not in fixed]
        self._roots = [
            (positions[index], weakref.ref(flat)) for index, flat in zip(places, flats, strict=True)
        ]
        self._graphdefs = [flat.graphdef for flat in flats]
        others = [positions[index] for index, kind in enumerate(template) if not kind]
        self._plain = [
            (n, arg.__class__ if arg.__class__ in plain_types else None)
            for n, arg in zip(others, binding.plain, strict=True)
        ]
        return self

    def _still_holds(self) -> bool:
        """Returns whether what has changed since is no part of these graphs, nor a plugin."""
        epoch = EPOCH[0]
        if active().token is not self._token:
            return False
        for (_, ref), graphdef in zip(self._roots, self._graphdefs, strict=True):
            flat = ref()  # (another call may have revised it)
            if flat is None or not flat.is_current() or flat.graphdef is not graphdef:
                return False
        if not self._looks:
            self._epoch = epoch
        return True

    def take(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Any, list[Flat], list[Any]] | None:
        """Returns the program, the flattened roots and the other arguments of a call.

        None if the call is another one.
        """
        if (
            ACTIVE
            or recordings()
            or plugin_block()
            or (self._epoch != EPOCH[0] and not self._still_holds())
        ):
            return None
        if kwargs or self._names:
            if len(kwargs) != len(self._names):
                return None
            try:
                args = (*args, *[kwargs[name] for name in self._names])
            except KeyError:
                return None
        if len(args) != self._count:
            return None
        for index, value in self._fixed:
            if args[index] is not value:
                return None
        flats = []
        for index, ref in self._roots:
            flat = ref()
            if flat is None or flat.root() is not args[index]:
                return None
            flats.append(flat)
        plain = []
        for index, cls in self._plain:
            arg = args[index]
            if arg.__class__ is not cls and not is_plain(arg):
                return None
            plain.append(arg)
        return self._program, flats, plain

    def tell_second_call(self, tell: Callable[[], None]) -> None:
        """Has ``tell`` called when the shortcut is first taken; later calls do not pay for it."""
        self._first = tell
        self.__class__ = _First  # type: ignore[assignment]


class _First(Shortcut):
    """A shortcut that was not taken yet."""

    __slots__ = ()

    def take(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Any, list[Flat], list[Any]] | None:
        """See :meth:`Shortcut.take`."""
        found = super().take(args, kwargs)
        if found is not None:
            tell, self._first = self._first, None
            self.__class__ = Shortcut  # type: ignore[assignment]
            if tell is not None:
                tell()
        return found
