"""The program of a jitted function, for one structure, static arguments and set of plugins."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import jax

from moduli import errors
from moduli._call.bind import Binding
from moduli._call.frame import Frame
from moduli._call.jit_shardings import Layout
from moduli._call.naming import Names, explain, explain_deleted, named
from moduli._call.programs import Program
from moduli._call.signature import Signature
from moduli._call.writeback import Packed

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
        "_groups",
        "_layout",
        "_names",
        "_plain",
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
        donated: tuple[frozenset[int], frozenset[int]],
        layout: Layout | None,
        options: dict[str, Any],
    ):
        self._groups, self._plain = donated
        super().__init__(fun)
        self._layout, self._names = layout, names
        kept = self._groups
        keep = (lambda leaf: leaf[0] in kept) if kept else None
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

        def pairs(values: Any, plain: Any) -> Iterator[tuple[str, Any]]:
            for group_names, group in zip(names.groups, values, strict=True):
                yield from zip(group_names, group or (), strict=group is not None)
            for name, value in zip(names.plain, plain, strict=True):
                if value is not None:
                    yield name, value

        run.__name__ = run.__qualname__ = name
        named(run, fun, pairs)
        self.simple = layout is None and not (self._groups or self._plain)
        if not (self._groups or self._plain):
            if layout is not None:
                options = {**options, **layout.options(layout.inputs)}
            self.jitted = jax.jit(run, **options)
            return

        def split_run(values: Any, plain: Any, gone_values: Any, gone_plain: Any) -> Packed:
            values = [v if w is None else w for v, w in zip(values, gone_values, strict=True)]
            plain = [v if w is None else w[0] for v, w in zip(plain, gone_plain, strict=True)]
            return run(values, plain)

        def split_pairs(
            values: Any, plain: Any, gone_values: Any, gone_plain: Any
        ) -> Iterator[tuple[str, Any]]:
            yield from pairs(values, plain)
            yield from pairs(gone_values, [v if v is None else v[0] for v in gone_plain])

        split_run.__name__ = split_run.__qualname__ = name
        named(split_run, fun, split_pairs)
        if layout is not None:
            options = {**options, **layout.options(self._split(*layout.inputs))}
        self.jitted = jax.jit(split_run, donate_argnums=(2, 3), **options)

    def arguments(self, values: list[Any], plain: list[Any]) -> tuple[Any, ...]:
        """The arguments of ``jitted``."""
        if self._groups or self._plain:
            return self._split(values, plain)
        return values, plain

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
        """Adds to an error of JAX's own the function that it is about, and what was deleted."""
        explain(error, "jit", self._function)
        explain_deleted(error, self._names, values, plain)

    def unpack(self, packed: Packed) -> tuple[Any, Any, Any]:
        """Returns (effects, out, outputs) from what ``jitted`` returned."""
        if self._layout is not None:
            return self._layout.unpack(packed)
        return (packed.effects, *packed.parts)

    def _split(self, values: list[Any], plain: list[Any]) -> tuple[Any, Any, Any, Any]:
        return (
            [None if n in self._groups else v for n, v in enumerate(values)],
            [None if n in self._plain else v for n, v in enumerate(plain)],
            [v if n in self._groups else None for n, v in enumerate(values)],
            [(v,) if n in self._plain else None for n, v in enumerate(plain)],
        )


def donated_marks(binding: Binding, donated: list[bool]) -> tuple[frozenset[int], frozenset[int]]:
    """Finds what is donated.

    Args:
      binding: the arguments of the call.
      donated: for each argument whether it is.

    Returns:
      The numbers of the graphs and those of the plain arguments.
    """
    roots: list[bool] = []
    plain: list[bool] = []
    for mark, flag in zip(binding.template, donated, strict=True):
        if isinstance(mark, tuple):
            for is_root in mark[1]:
                (roots if is_root else plain).append(flag)
        else:
            (roots if mark else plain).append(flag)
    groups: set[int] = set()
    start = 0
    for number, flat in enumerate(binding.flats):
        stop = start + len(flat.graphdef.roots)
        if all(roots[start:stop]):
            groups.add(number)
        start = stop
    return frozenset(groups), frozenset(n for n, flag in enumerate(plain) if flag)
