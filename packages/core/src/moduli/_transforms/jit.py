"""jit: compile a function of modules once for each structure, and call it at the price of JAX."""

from __future__ import annotations

import functools
import inspect
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, overload

import jax

from moduli import _plugins, errors
from moduli._base.closed_over import ClosedOver
from moduli._base.node import Node
from moduli._base.static_keys import UnhashableStatic, static_key
from moduli._call.again import options_key_or_none, remember, shared
from moduli._call.function import Function, unbound
from moduli._call.jit_shardings import Layout
from moduli._call.lift import Binding, Frame, Signature, bind, read_value
from moduli._call.naming import Names, explain, explain_deleted, named
from moduli._call.recompiled import Compiled, note_compiled
from moduli._call.running import running
from moduli._call.shortcut import Shortcut
from moduli._call.stages import Lowered, Traced
from moduli._call.writeback import Packed

__all__ = ["JitWrapped", "cached_partial", "jit", "jit_partial"]

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
S = TypeVar("S")


class JitWrapped(Generic[P, R]):
    """A jitted function of modules; made by :func:`jit`.

    Call it like the function. Methods of classes may be decorated: the wrapper binds like a
    function.
    """

    def __init__(
        self,
        fun: Callable[P, R],
        *,
        static_argnums: tuple[int, ...] = (),
        static_argnames: frozenset[str] = frozenset(),
        donate_argnums: frozenset[int] = frozenset(),
        donate_argnames: frozenset[str] = frozenset(),
        shardings: tuple[Any, Any] = (None, None),
        key: Any = None,
        **options: Any,
    ):
        functools.update_wrapper(self, fun)
        self._fun = fun
        self._function = Function(fun)
        self._shardings = shardings if any(s is not None for s in shardings) else None
        self._static_argnums = static_argnums
        self._static_argnames = static_argnames
        self._donate_argnums = donate_argnums
        self._donate_argnames = donate_argnames
        self._plain = not (static_argnums or static_argnames or self._function.has_module_defaults)
        self._options = options
        self._programs, self._source = shared(fun, key, _Programs)
        self._shortcut: Shortcut | None = None
        self._compiled: Compiled | None = None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Calls the compiled function; compiles it first for a new structure."""
        shortcut = self._shortcut
        taken = None if shortcut is None else shortcut.take(args, kwargs)
        program, flats, plain = taken or self._find(args, kwargs)
        if program.simple:
            values = [list(map(read_value, flat.holders)) for flat in flats]
            try:
                packed = program.jitted(values, plain)
            except Exception as error:
                program.explain(error, values, plain)
                raise
            return packed.effects.apply(flats, values, *packed.parts)
        if taken and program.closed_over:  # the shortcut does not look at what was read there
            program, flats, plain = self._find(args, kwargs)
        values = [list(map(read_value, flat.holders)) for flat in flats]
        packed = program.run(program.jitted, values, plain)
        effects, out, outputs = program.unpack(packed)
        return effects.apply(flats, values, out, outputs)

    def _find(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any, list[Any]]:
        """Returns the program, the flattened roots and the other arguments of a call."""
        if not self._plain:
            program, binding = self._prepare(args, kwargs, recorded=True)
            return program, binding.flats, binding.plain
        binding = bind(args, kwargs)
        key = (binding.signature, _plugins.active().token)
        program = self._program(key)
        if program is None:
            program = self._programs[key] = self._compile(binding, args, kwargs, len(args), (), {})
            self._note_compiled(key, binding)
        else:
            self._note_called_again()
        self._keep_shortcut(Shortcut.after(binding, program))
        return program, binding.flats, binding.plain

    def _keep_shortcut(self, shortcut: Shortcut | None) -> None:
        self._shortcut = shortcut
        if shortcut is not None and self._compiled is not None:
            shortcut.tell_second_call(self._compiled.called_again)

    def _note_compiled(self, key: Any, binding: Binding) -> None:
        values = (binding.values(), binding.plain)
        self._compiled = note_compiled(self, self._fun, key, binding.roots, values)

    def _note_called_again(self) -> None:
        if self._compiled is not None:
            self._compiled.called_again()
            self._compiled = None

    def _program(self, key: Any) -> Any:
        """Returns the program of a key; None if there is none, or it holds outdated constants."""
        program = self._programs.get(key)
        if program is not None and program.closed_over and program.closed_over.is_stale():
            self._programs.pop(key, None)
            return None
        return program

    def _prepare(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], *, recorded: bool = False
    ) -> tuple[Any, Binding]:
        """Returns the program for these arguments and how they are bound.

        Nothing is recorded of what is only looked at, or compiled ahead of time.
        """
        args, kwargs = self._function.complete(args, kwargs)
        count = len(args)
        numbers = {n + count if n < 0 else n for n in self._static_argnums}
        fixed = {n: args[n] for n in numbers if n < count}
        fixed_names = {n: kwargs[n] for n in self._static_argnames if n in kwargs}
        for name, value in (*fixed.items(), *fixed_names.items()):
            _check_static(name, value, self._fun)
        args = tuple([arg for n, arg in enumerate(args) if n not in fixed])
        kwargs = {n: v for n, v in kwargs.items() if n not in fixed_names}
        binding = bind(args, kwargs, recorded=recorded)
        static = (
            tuple((n, static_key(v)) for n, v in sorted(fixed.items())),
            tuple((n, static_key(v)) for n, v in sorted(fixed_names.items())),
        )
        key = (
            binding.signature,
            _plugins.active().token,
            *(static if fixed or fixed_names else ()),
        )
        program = self._program(key)
        if program is None:
            pairs = tuple(sorted(fixed.items()))
            program = self._compile(binding, args, kwargs, count, pairs, fixed_names)
            self._programs[key] = program
            if recorded:
                self._note_compiled(key, binding)
        else:
            self._note_called_again()
        if recorded and not self._function.has_module_defaults:
            self._keep_shortcut(Shortcut.after(binding, program, fixed, fixed_names))
        return program, binding

    def trace(self, *args: Any, **kwargs: Any) -> Traced:
        """Traces the function for these arguments, without running it.

        Returns:
          A :class:`Traced`: its ``jaxpr``, ``lower()``, and what else ``jax.stages.Traced`` has.
        """
        program, binding = self._prepare(args, kwargs)
        stage = program.run(program.jitted.trace, binding.values(), binding.plain)
        return Traced(stage, program, binding.signature, self._function)

    def lower(self, *args: Any, **kwargs: Any) -> Lowered:
        """Lowers the function for these arguments, without running it.

        Returns:
          A :class:`Lowered`: ``as_text()``, ``cost_analysis()``, ``compile()``, and what else
          ``jax.stages.Lowered`` has.
        """
        program, binding = self._prepare(args, kwargs)
        stage = program.run(program.jitted.lower, binding.values(), binding.plain)
        return Lowered(stage, program, binding.signature, self._function)

    def eval_shape(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the result with shapes and dtypes in the place of arrays; changes nothing."""
        program, binding = self._prepare(args, kwargs)
        values = binding.values()
        packed = program.run(program.jitted.eval_shape, values, binding.plain)
        shapes = jax.eval_shape(lambda values: values, values)
        effects, out, outputs = program.unpack(packed)
        return effects.result(shapes, out, outputs)

    def clear_cache(self) -> None:
        """Forgets all compiled programs: of this function with these options."""
        self._shortcut = None
        self._programs.clear()

    def forget(self, token: Any) -> None:
        """Forgets the program of plugins that exist no more."""
        self._shortcut = None

    def _compile(
        self,
        binding: Binding,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        count: int,
        fixed: tuple[tuple[int, Any], ...],
        fixed_names: dict[str, Any],
    ) -> Any:
        numbers = {n for n, _ in fixed}
        positions = [n for n in range(count) if n not in numbers]
        _check_plain(self._fun, binding, positions)
        marks = _donated_marks(
            binding,
            [n in self._donate_argnums or n - count in self._donate_argnums for n in positions]
            + [name in self._donate_argnames for name in binding.names],
        )
        layout = None
        if self._shardings is not None:
            layout = Layout(
                self._function, args, kwargs, count, positions, *self._shardings, binding
            )
        signature = Signature(binding)
        for keeper in (self, self._programs):
            _plugins.active().token.used_by(keeper)
        names = Names(self._function.signature, signature, positions)
        return _Program(
            self._source, signature, names, fixed, fixed_names, marks, layout, self._options
        )

    @overload
    def __get__(self, instance: None, owner: type) -> JitWrapped[P, R]: ...
    @overload
    def __get__(
        self: JitWrapped[Concatenate[S, Q], R], instance: S, owner: type | None = None
    ) -> BoundJit[Q, R]: ...
    def __get__(self, instance: object | None, owner: type | None = None) -> Any:
        return self if instance is None else BoundJit(self, instance)

    def __repr__(self) -> str:
        return f"<moduli.jit of {getattr(self._fun, '__qualname__', self._fun)!r}>"


class BoundJit(functools.partial[R], Generic[Q, R]):
    """A jitted function with its first argument: a jitted method, or what `jit` makes of a module.

    It has the methods of :class:`JitWrapped`, without that argument.
    """

    __slots__ = ()

    if TYPE_CHECKING:

        @property
        def func(self) -> JitWrapped[Any, R]: ...

        def __call__(self, *args: Q.args, **kwargs: Q.kwargs) -> R: ...

    def trace(self, *args: Any, **kwargs: Any) -> Traced:
        """See :meth:`JitWrapped.trace`."""
        return self.func.trace(*self.args, *args, **kwargs).bound_to(self.args[0])

    def lower(self, *args: Any, **kwargs: Any) -> Lowered:
        """See :meth:`JitWrapped.lower`."""
        return self.func.lower(*self.args, *args, **kwargs).bound_to(self.args[0])

    def eval_shape(self, *args: Any, **kwargs: Any) -> Any:
        """See :meth:`JitWrapped.eval_shape`."""
        return self.func.eval_shape(*self.args, *args, **kwargs)

    def clear_cache(self) -> None:
        """See :meth:`JitWrapped.clear_cache`."""
        self.func.clear_cache()

    @property
    def __self__(self) -> Any:
        return self.args[0]

    @property
    def __func__(self) -> Any:
        return self.func

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BoundJit):
            return NotImplemented
        return self.func is other.func and self.args[0] is other.args[0]

    def __hash__(self) -> int:
        return hash((self.func, id(self.args[0])))

    def __getattr__(self, name: str) -> Any:
        if name not in ("__name__", "__qualname__", "__wrapped__"):
            raise AttributeError(name)
        return getattr(self.func, name)

    def __repr__(self) -> str:
        name = getattr(self.func, "__qualname__", self.func)
        return f"<moduli.jit of {name!r}, bound to a {type(self.args[0]).__name__}>"


class _Programs(dict[Any, Any]):
    """The programs of one function with one set of options, for all wrappers of these."""

    __slots__ = ("__weakref__",)
    __hash__ = object.__hash__  # type: ignore[assignment]

    def forget(self, token: Any) -> None:
        """Forgets the programs of plugins that exist no more."""
        for key in [key for key in list(self) if key[1] is token]:
            self.pop(key, None)


class _Program:
    """One jitted pure function: for one structure, set of static arguments and plugins.

    Attributes:
      jitted: what ``jax.jit`` made; its arguments are those of :meth:`arguments`.
      closed_over: the Variables that the function read without being given them.
      simple: whether these are just (values, plain), its result is the Effects' own, and nothing
        was read through a closure.
    """

    __slots__ = (
        "__weakref__",
        "_fun",
        "_groups",
        "_layout",
        "_names",
        "_plain",
        "closed_over",
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
        self._layout, self._fun, self._names = layout, fun, names
        kept = self._groups
        keep = (lambda leaf: leaf[0] in kept) if kept else None
        name = getattr(fun, "__name__", type(fun).__name__)
        closed_over = self.closed_over = ClosedOver(fun)
        this = weakref.ref(self)  # the program dies with its last reference

        def run(values: Any, plain: Any) -> Packed:
            frame = Frame(signature, values, plain)
            args = list(frame.args)
            for position, value in fixed:
                args.insert(position, value)
            with closed_over.noting(), running("jit", name, frame.recordings, fun):
                out = fun(*args, **frame.kwargs, **fixed_names)
            program = this()
            if closed_over and program is not None:
                program.simple = False
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
        explain(error, "jit", self._fun)
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


def _donated_marks(binding: Binding, donated: list[bool]) -> tuple[frozenset[int], frozenset[int]]:
    """Finds which graphs and plain arguments are donated, from flags for the arguments."""
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


def _check_plain(fun: Callable[..., Any], binding: Binding, positions: list[int]) -> None:
    """Raises if an argument is text or a function, which JAX cannot trace."""
    plain = iter(binding.plain)
    for place, mark in zip([*positions, *binding.names], binding.template, strict=True):
        marks = mark[1] if isinstance(mark, tuple) else (bool(mark),)
        for value in [next(plain) for is_root in marks if not is_root]:
            if isinstance(value, (str, bytes, types.FunctionType)):
                option = "static_argnames" if isinstance(place, str) else "static_argnums"
                raise errors.StructureError(
                    f"jit: argument {place!r} of {getattr(fun, '__qualname__', fun)} is a "
                    f"{type(value).__name__} ({value!r}), which cannot be traced; mark it static: "
                    f"`moduli.jit(f, {option}={place!r})`"
                )


def _check_static(name: int | str, value: Any, fun: Callable[..., Any]) -> None:
    where = f"argument {name!r} of {getattr(fun, '__qualname__', fun)}"
    if isinstance(value, Node):
        raise errors.StructureError(
            f"jit: {where} is a {type(value).__name__} and marked static; modules carry arrays, so "
            "leave it out of static_argnums / static_argnames"
        )
    try:
        static_key(value)
    except UnhashableStatic:
        raise errors.StructureError(
            f"jit: the static {where} is a {type(value).__name__}, which cannot be hashed; use a "
            "hashable value such as a tuple, or do not mark it static"
        ) from None


def _names(value: str | Iterable[str] | None) -> frozenset[str]:
    if value is None:
        return frozenset()
    return frozenset((value,) if isinstance(value, str) else value)


def _numbers(value: int | Sequence[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)


def _match(
    fun: Callable[..., Any], numbers: tuple[int, ...], names: frozenset[str]
) -> tuple[tuple[int, ...], frozenset[str]]:
    """Completes numbers by names and names by numbers, as JAX does, from the signature."""
    try:
        parameters = list(inspect.signature(fun).parameters.values())
    except (TypeError, ValueError):
        return numbers, names
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    positional = [p.name for p in parameters if p.kind in kinds]
    known = {p.name for p in parameters}
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    unknown = sorted(names - known)
    if unknown and not takes_any:
        raise errors.StructureError(
            f"jit: {getattr(fun, '__qualname__', fun)} has no argument {unknown[0]!r}; it has "
            f"{[p.name for p in parameters]}"
        )
    more_names = {positional[n] for n in numbers if -len(positional) <= n < len(positional)}
    more_numbers = {positional.index(name) for name in names if name in positional}
    return tuple(sorted({*numbers, *more_numbers})), frozenset(names | more_names)


_OF_ARGUMENTS = (
    "in_shardings",
    "static_argnums",
    "static_argnames",
    "donate_argnums",
    "donate_argnames",
)  # the options that count arguments, after the one of a bound method


@overload
def jit(
    fun: Callable[P, R],
    *,
    in_shardings: Any = None,
    out_shardings: Any = None,
    static_argnums: int | Sequence[int] | None = None,
    static_argnames: str | Iterable[str] | None = None,
    donate_argnums: int | Sequence[int] | None = None,
    donate_argnames: str | Iterable[str] | None = None,
    keep_unused: bool = False,
    device: Any = None,
    backend: str | None = None,
    inline: bool = False,
) -> JitWrapped[P, R]: ...
@overload
def jit(
    fun: None = None,
    *,
    in_shardings: Any = None,
    out_shardings: Any = None,
    static_argnums: int | Sequence[int] | None = None,
    static_argnames: str | Iterable[str] | None = None,
    donate_argnums: int | Sequence[int] | None = None,
    donate_argnames: str | Iterable[str] | None = None,
    keep_unused: bool = False,
    device: Any = None,
    backend: str | None = None,
    inline: bool = False,
) -> Callable[[Callable[P, R]], JitWrapped[P, R]]: ...
def jit(
    fun: Callable[..., Any] | None = None,
    *,
    in_shardings: Any = None,
    out_shardings: Any = None,
    static_argnums: int | Sequence[int] | None = None,
    static_argnames: str | Iterable[str] | None = None,
    donate_argnums: int | Sequence[int] | None = None,
    donate_argnames: str | Iterable[str] | None = None,
    keep_unused: bool = False,
    device: Any = None,
    backend: str | None = None,
    inline: bool = False,
) -> Any:
    """``jax.jit`` for functions that take modules, with all their updates.

    What the function does to its modules happens to the caller's own objects: values written to
    Variables, attributes and submodules added, changed or removed, also on later calls that run a
    compiled program. An exception leaves them as they were.

    The function is compiled once for each structure of its modules and shapes of their values. A
    call on a known structure costs what ``jax.jit`` costs. ``jit(f)`` written again, as in a loop,
    finds what was compiled for ``f`` with the same options; a function that is itself made anew in
    the loop does not, and a :class:`moduli.errors.RecompilationWarning` says so.

    Args:
      fun: a function, a method, or a module. Without it a decorator is returned.
      in_shardings: a prefix of the positional arguments: a ``jax.sharding.NamedSharding`` (or a
        ``PartitionSpec``, under ``jax.set_mesh``), or None to take what comes; for modules also
        :class:`StateSharding` and what :func:`prefix` returns. Variables with a sharding come back
        with it, written or not.
      out_shardings: a prefix of the result, likewise.
      static_argnums: positions of hashable arguments for whose values to compile.
      static_argnames: names of such arguments.
      donate_argnums: positions of arguments whose buffers the result may use. The Variables of a
        donated module hold new buffers after the call, never deleted ones.
      donate_argnames: names of such arguments.
      keep_unused: as of ``jax.jit``.
      device: as of ``jax.jit``, which advises against it; use ``in_shardings``.
      backend: as of ``jax.jit``, which advises against it.
      inline: as of ``jax.jit``.

    Returns:
      The jitted function, or a decorator.

    Raises:
      StructureError: if a name is not an argument, or a static argument is a module or unhashable.

    Example:
      >>> import moduli as nnx, jax.numpy as jnp
      >>> class Counter(nnx.Module):
      ...     def __init__(self):
      ...         self.count = nnx.Variable(jnp.zeros((), jnp.int32))
      >>> @nnx.jit
      ... def step(counter, by):
      ...     counter.count += by
      ...     return counter.count * 10
      >>> counter = Counter()
      >>> int(step(counter, 2)), int(counter.count)
      (20, 2)
    """
    options: dict[str, Any] = {
        "in_shardings": in_shardings,
        "out_shardings": out_shardings,
        "static_argnums": static_argnums,
        "static_argnames": static_argnames,
        "donate_argnums": donate_argnums,
        "donate_argnames": donate_argnames,
        "keep_unused": keep_unused,
        "device": device,
        "backend": backend,
        "inline": inline,
    }
    if fun is None:
        return functools.partial(jit, **options)
    if not callable(fun):
        raise errors.StructureError(
            f"jit needs a callable; got a {type(fun).__name__}. As a decorator with options write "
            "`@moduli.jit(static_argnames=...)`"
        )
    bound, call = unbound(fun)
    shift = 0 if bound is None else 1
    static = _match(
        call, tuple(n + shift for n in _numbers(static_argnums)), _names(static_argnames)
    )
    donated = _match(
        call, tuple(n + shift for n in _numbers(donate_argnums)), _names(donate_argnames)
    )
    chosen = {"device": device, "backend": backend}
    wrapped = JitWrapped(
        call,
        shardings=(_after_bound(in_shardings, shift), out_shardings),
        **{name: value for name, value in chosen.items() if value is not None},
        static_argnums=static[0],
        static_argnames=static[1],
        donate_argnums=frozenset(donated[0]),
        donate_argnames=donated[1],
        keep_unused=keep_unused,
        inline=inline,
        key=options_key_or_none("jit", options, shift),
    )
    if not shift or all(options[name] is None for name in _OF_ARGUMENTS):
        remember(wrapped, call, jit, options)
    return wrapped if bound is None else BoundJit(wrapped, bound)


def _after_bound(shardings: Any, shift: int) -> Any:
    """Puts None before the shardings of the arguments for the module of a bound method."""
    return (None, *shardings) if shift and isinstance(shardings, (tuple, list)) else shardings


def jit_partial(fun: Callable[..., Any], *partial_args: Any, **options: Any) -> Any:
    """Jits a function and fixes its first arguments: ``functools.partial(jit(fun), *args)``.

    flax.nnx has it because its ``jit`` takes the model apart on every call; here every call finds
    the model's structure in a cache.

    Args:
      fun: the function.
      *partial_args: its first arguments, such as the model and the optimizer.
      **options: of :func:`jit`.

    Returns:
      A function of the other arguments.

    Example:
      >>> import moduli as nnx, jax.numpy as jnp
      >>> model = nnx.Dict({"w": nnx.Param(jnp.array(2.0))})
      >>> forward = nnx.jit_partial(lambda model, x: model["w"] * x, model)
      >>> float(forward(3.0))
      6.0
    """
    return functools.partial(jit(fun, **options), *partial_args)


def cached_partial(f: Callable[..., Any], *cached_args: Any) -> Any:
    """Fixes the first arguments of a transformed function; the same as ``functools.partial``.

    Args:
      f: a transformed function, such as ``moduli.jit(train_step)``.
      *cached_args: its first arguments.

    Returns:
      A function of the other arguments.
    """
    return functools.partial(f, *cached_args)
