"""The program of a jitted function, for one structure, static arguments and set of plugins."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from moduli import errors
from moduli._call.bind import Binding, owners
from moduli._call.frame import Frame
from moduli._call.jit_shardings import Layout
from moduli._call.naming import Names, code_of, explain, named
from moduli._call.programs import Program
from moduli._call.signature import Signature
from moduli._call.writeback import Packed
from moduli._graph.deleted import deleted_values, donates, given_twice

__all__ = ["JitProgram", "donated_marks"]


class JitProgram(Program):
    """One jitted pure function: for one structure, set of static arguments and plugins.

    Args:
      fun: the user's function.
      signature: of the call.
      names: of the call's values.
      fixed: the static positional arguments, by position.
      fixed_names: the static keyword arguments.
      donated: see :func:`donated_marks`.
      layout: the shardings, if any were given.
      options: of ``jax.jit``.

    Attributes:
      jitted: what ``jax.jit`` made; its arguments are those of :meth:`arguments`.
      simple: whether these are just (values, plain), its result is the Effects' own, and nothing
        was read through a closure.
    """

    __slots__ = (
        "_donated",
        "_layout",
        "_names",
        "jitted",
        "simple",
    )

    def __init__(
        self,
        fun: Callable[..., Any],
        signature: Signature,
        names: Names,
        fixed: tuple[tuple[int, Any], ...],
        fixed_names: dict[str, Any],
        donated: tuple[bool, ...],
        layout: Layout | None,
        options: dict[str, Any],
    ):
        super().__init__(fun)
        self._layout, self._names, self._donated = layout, names, donated
        keep = (lambda leaf: donated[leaf[0]]) if any(donated) else None
        name = getattr(fun, "__name__", type(fun).__name__)
        closed_over = self.closed_over
        this = weakref.ref(self)  # the program dies with its last reference

        def run(values: Any, plain: Any) -> Packed:
            frame = Frame(signature, values, plain)
            frame.insert(fixed, fixed_names)
            with closed_over.noting():
                out = frame.run("jit", name, fun)
            program = this()
            if closed_over and program is not None:
                program.simple = False
                program.note_seen()
            if layout is not None:
                return layout.pack(frame, out, keep)
            effects, outputs = frame.finish(out, keep=keep)
            return Packed(effects, outputs)

        def pairs(*given: Any) -> Iterator[tuple[str, Any]]:
            every = itertools.chain(*_split(donated, names.groups, names.plain))
            for own, part in zip(every, itertools.chain(*given), strict=True):
                yield from [(own, part)] if isinstance(own, str) else zip(own, part, strict=True)

        run.__name__ = run.__qualname__ = name
        named(run, fun, pairs)
        self.simple = layout is None and not any(donated)
        if layout is not None:
            options = {**options, **layout.options(self.arguments(*layout.inputs))}
        if not any(donated):
            self.jitted = jax.jit(run, **options)
            return

        def split_run(kept: list[Any], gone: list[Any]) -> Packed:
            rest, taken = iter(kept), iter(gone)
            parts = [next(taken if mark else rest) for mark in donated]
            count = len(signature.graphdefs)
            return run(parts[:count], parts[count:])

        split_run.__name__ = split_run.__qualname__ = name
        self.jitted = jax.jit(named(split_run, fun, pairs), donate_argnums=1, **options)
        donates(self)

    def donated(self) -> tuple[str, list[str]]:
        """Returns the function with its place, and the names of the values that it takes."""
        code = code_of(self._function)
        place = "" if code is None else f" at {code.co_filename}:{code.co_firstlineno}"
        pairs = self._named_values(self._names.places, self._names.plain, donated=True)
        return f"{self._called()}{place}", [name for name, _ in pairs]

    def _called(self) -> str:
        return getattr(self._function, "__name__", type(self._function).__name__)

    def _named_values(
        self, values: Sequence[Any], plain: Sequence[Any], *, donated: bool
    ) -> list[tuple[str, Any]]:
        """The values that are donated, or those that are not, each with its name."""
        marks = iter(self._donated)
        pairs: list[tuple[str, Any]] = []
        for names, group in zip(self._names.places, values, strict=True):
            if next(marks) is donated:
                pairs += zip(names, group, strict=True)
        for pair in zip(self._names.plain, plain, strict=True):
            if next(marks) is donated:
                pairs.append(pair)
        return pairs

    def arguments(self, values: list[Any], plain: list[Any]) -> tuple[Any, ...]:
        """The arguments of ``jitted``: (values, plain), or (what stays, what is donated)."""
        if self._layout is not None:
            values = self._layout.placed(values)
        return _split(self._donated, values, plain) if any(self._donated) else (values, plain)

    def run(self, stage: Callable[..., Any], values: list[Any], plain: list[Any]) -> Any:
        """Calls ``jitted``, or a method of it that takes the same.

        Raises:
          StructureError: if a sharding does not fit its value, with the value's place.
          ShapeError: likewise.
        """
        try:
            return stage(*self.arguments(values, plain))
        except Exception as error:
            misfit = isinstance(error, ValueError) and not isinstance(error, errors.ModuliError)
            if self._layout is not None and misfit:
                self._layout.check(values, plain)
            self.explain(error, values, plain)
            raise

    def explain(self, error: Exception, values: list[Any], plain: list[Any]) -> None:
        """Adds to an error of JAX's own the function that it is about.

        Raises:
          DonatedError: if the error is about a buffer that is donated twice, or was before.
        """
        donated, others = (self._named_values(values, plain, donated=d) for d in (True, False))
        name = self._called()
        gone = deleted_values(error, name, [*donated, *others])
        gone = gone or given_twice(error, name, donated, others)
        if gone is not None:
            raise gone from gone.__cause__
        explain(error, "jit", self._function)

    def unpack(self, packed: Packed) -> tuple[Any, Any, Any]:
        """Returns (effects, out, outputs) from what ``jitted`` returned."""
        if self._layout is not None:
            return self._layout.unpack(packed)
        return (packed.effects, *packed.parts)


def _split(
    donated: Sequence[bool], values: Sequence[Any], plain: Sequence[Any]
) -> tuple[list[Any], list[Any]]:
    """Tells what stays from what is donated."""
    parts: tuple[list[Any], list[Any]] = ([], [])
    for mark, part in zip(donated, [*values, *plain], strict=True):
        parts[mark].append(part)
    return parts


def donated_marks(binding: Binding, donated: Sequence[bool]) -> tuple[bool, ...]:
    """Finds what is donated.

    Args:
      binding: the arguments of the call.
      donated: for each argument whether it is.

    Returns:
      For each graph, and then for each plain argument, whether it is.
    """
    roots, plain = owners(binding.template)
    marks: list[bool] = []
    for flat in binding.flats:
        count = len(flat.graphdef.roots)
        marks.append(all(donated[owner] for owner in roots[:count]))
        del roots[:count]
    return (*marks, *[donated[owner] for owner in plain])
