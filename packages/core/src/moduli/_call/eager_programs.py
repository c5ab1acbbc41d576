"""What eager calls of ``scan``, ``cond``, ``while_loop`` and others compile, found again later.

JAX compiles a loop or a branch for a *function object*. A lifted call hands it a new one each time,
around the caller's objects, and so would compile each time. Under ``jit`` that costs nothing, as
the whole is compiled once. Everywhere else (no transform of JAX runs, or ``grad`` and ``vmap`` do,
which run their operations) the pure function of the call is made once for all calls alike, and
jitted: a *program*.

- A program belongs to the user's functions and dies with them. It refers to them weakly, and to no
  model: what it did to its arguments travels with its result, as the static part of a pytree.
- Calls are alike if they have the same structure, labels, options, plugins and static values. JAX
  tells shapes and dtypes apart.
- What a function reads from outside is a constant in its programs. Variables that it reads there
  are noted, and what its code names (globals, closures, those of functions beside it) is compared
  at each call; if one of them is another now, its programs are made anew. So they are never old.
- While somebody has put other functions in the place of JAX's, to quantize or to count, nothing is
  kept and nothing found: every call traces, and so they see each.
- Values of a running trace in a closure go to no program: such a call works as without all this.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax

from moduli._base.closed_over import ClosedOver
from moduli._base.compat import is_staged
from moduli._base.replaced import jax_is_replaced
from moduli._call.again import Recipe, recipe_of
from moduli._call.call import Call
from moduli._call.naming import named
from moduli._call.programs import Programs, program_key
from moduli._call.seen import Seen, python_functions
from moduli._call.writeback import Packed

__all__ = ["Result", "find_program", "run_program"]

Result = tuple[Any, Any, Any]
"""(effects, out, outputs): what ``effects.apply`` takes."""

_NO_EXTRA: dict[str, Any] = {}
_MOST = 256  # programs of one tuple of functions; a loop of another length is another program


def run_program(
    functions: Sequence[Callable[..., Any]],
    call: Call,
    run: Callable[..., Result],
    options: Hashable = (),
    extra: Mapping[str, Any] = _NO_EXTRA,
) -> Result:
    """Runs a transform, by a program that is kept where JAX would compile at each call.

    Args:
      functions: the user's functions.
      call: the call.
      run: ``run(call, functions, **extra)`` runs the transform. It refers to neither of them.
      options: what else ``run`` depends on; None if that cannot be a key.
      extra: further values that are traced, by name.

    Returns:
      What ``run`` returns: the effects, and the values to apply them with.
    """
    program = find_program(functions, call, run, options, jax.jit)
    if program is None:
        return run(call, functions, **extra)
    packed = program(call, extra)
    return (packed.effects, *packed.parts)


def find_program(
    functions: Sequence[Callable[..., Any]],
    call: Call,
    run: Callable[..., Result],
    options: Hashable,
    compile: Callable[..., Any],
    parameters: inspect.Signature | None = None,
) -> _Program | None:
    """Returns the program of a call; makes it if there is none.

    Args:
      functions: see :func:`run_program`.
      call: see :func:`run_program`.
      run: see :func:`run_program`.
      options: see :func:`run_program`.
      compile: makes the program of the pure function, ``(values, extra) -> Packed``.
      parameters: the signature of the one function, for messages of JAX's.

    Returns:
      The program, called with a call and ``extra``: it returns what the compiled function returns;
      None where nothing is kept.
    """
    if options is None or is_staged() or jax.config.jax_disable_jit:  # type: ignore[attr-defined]
        return None
    if jax_is_replaced():
        return None
    table = _table_of(functions)
    if table is None:
        return None
    key = program_key(call, options)
    if key is None:
        return None
    program = table.get(key)
    if program is None:
        program = _Program(table, call, run, compile, parameters)
        table.keep(key, program)
    return program


class _Program:
    """The pure function of calls that are alike, without functions and models.

    Attributes:
      closed_over: the Variables that it has read without being given them.
    """

    __slots__ = ("_call", "_compiled", "_table", "closed_over")

    def __init__(
        self,
        table: _Table,
        call: Call,
        run: Callable[..., Result],
        compile: Callable[..., Any],
        parameters: inspect.Signature | None,
    ):
        first = table.functions()[0]
        closed_over = self.closed_over = ClosedOver(first)
        detached, again, traced = call.detached(), table.functions, table.traced
        self._call, self._table = detached, weakref.ref(table)

        def pure(values: Any, extra: Any) -> Packed:
            traced.append(True)
            with closed_over.noting():
                effects, out, outputs = run(detached.with_dynamic(values), again(), **extra)
            return Packed(effects, (out, outputs))

        def pairs(values: Any, extra: Any) -> Any:
            names = detached.pick(detached.value_names(parameters))
            return [*zip(names, values, strict=True), *sorted(extra.items())]

        name = getattr(first, "__name__", type(first).__name__)
        pure.__name__ = pure.__qualname__ = name
        named(pure, first, pairs)
        self._compiled = compile(pure)

    def __call__(self, call: Call, extra: Mapping[str, Any] = _NO_EXTRA) -> Any:
        """Calls the compiled function with the values of a call."""
        try:
            return self._compiled(self._call.pick(call.every()), extra)
        finally:
            table = self._table()
            if table is not None:
                table.settle()


class _Table:
    """The programs of one tuple of functions, and what these functions saw of the outside.

    Args:
      recipes: how the functions were made.
      gone: what to call when one of the functions at the bottom has died.

    Attributes:
      functions: gives the functions, while those at the bottom live; it does not keep them alive.
      traced: not empty if a program was traced since the last :meth:`settle`.
    """

    __slots__ = (
        "__weakref__",
        "_bases",
        "_programs",
        "_seen",
        "functions",
        "traced",
    )

    def __init__(self, recipes: Sequence[Recipe], gone: Callable[[Any], Any]):
        bases = [weakref.ref(recipe.base, gone) for recipe in recipes]
        self.functions = functools.partial(_make, bases, [recipe.steps for recipe in recipes])
        self.traced: list[bool] = []
        self._programs = Programs()
        self._bases = bases
        self._look()

    def get(self, key: Any) -> _Program | None:
        """Returns the program of a key; None if there is none, or it holds outdated constants."""
        program = self._programs.get(key)
        if program is not None and program.closed_over and program.closed_over.written():
            return self._programs.pop(key, None) and None
        return program

    def keep(self, key: Any, program: _Program) -> None:
        """Keeps a program until its functions or one of its plugins are gone."""
        while len(self._programs) >= _MOST:
            self._programs.pop(next(iter(self._programs)), None)
        self._programs.keep(key, program)

    def settle(self) -> None:
        """Looks again at what the functions see, if one was traced, which may change it."""
        if self.traced:
            self.traced.clear()
            self._look()

    def check(self) -> bool:
        """Forgets programs that saw something else; returns whether programs may be kept."""
        if self._seen.is_another() or self._seen.changed_modules():
            self._programs.clear()
            self._look()
        return not self._seen.is_in_trace()

    def _look(self) -> None:
        """Notes what the functions see now."""
        self._seen = Seen([base() for base in self._bases])


_tables: dict[Any, _Table] = {}


def _table_of(functions: Sequence[Any]) -> _Table | None:
    """Returns the table of these functions; None if programs cannot be kept for them now."""
    recipes = [_recipe_of(function) for function in functions]
    if None in recipes:
        return None
    key = tuple([(id(recipe.base), recipe.key) for recipe in recipes])  # type: ignore[union-attr]
    table = _tables.get(key)
    if table is None:
        try:
            table = _Table(recipes, lambda _: _tables.pop(key, None))  # type: ignore[arg-type]
        except TypeError:  # one cannot be referred to weakly
            return None
        _tables[key] = table
    return table if table.check() else None


def _recipe_of(function: Any) -> Recipe | None:
    """Returns how a function was made, of one without a state.

    A bound method, or an object with ``__call__``, may work otherwise at the next call, and nothing
    tells. What wraps a Python function, such as what ``jax.jit`` makes, is taken for one.
    """
    recipe = recipe_of(function)
    if recipe is None and python_functions(function):
        return Recipe(function, (), ())
    return recipe


def _make(bases: Sequence[Callable[[], Any]], steps: Sequence[Any]) -> list[Any]:
    made = []
    for base, own in zip(bases, steps, strict=True):
        function = base()
        for step in own:
            function = step(function)
        made.append(function)
    return made
