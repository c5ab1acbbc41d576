"""jit: compile a function of modules once for each structure, and call it at the price of JAX."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, Unpack, overload

import jax

from moduli import errors
from moduli._call.again import options_key_or_none, remember, shared
from moduli._call.bind import Binding, bind, read_value
from moduli._call.function import Function, Modes, as_positions, fold, options_of, unbound
from moduli._call.jit_program import JitProgram, donated_marks
from moduli._call.jit_shardings import Layout
from moduli._call.kept_shardings import Kept, kept_shardings
from moduli._call.naming import Names
from moduli._call.programs import Programs, key_of
from moduli._call.recompiled import Compiled, note_compiled
from moduli._call.shortcut import Shortcut
from moduli._call.signature import Signature
from moduli._call.stages import Lowered, Traced
from moduli._call.static_arguments import (
    StaticArguments,
    as_names,
    check_plain,
    match_names,
)

__all__ = ["JitWrapped", "cached_partial", "jit", "jit_partial"]

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
S = TypeVar("S")
S2 = TypeVar("S2")
S3 = TypeVar("S3")


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
        keep_shardings: bool = False,
        key: Any = None,
        **options: Any,
    ):
        functools.update_wrapper(self, fun)
        self._fun = fun
        self._function = Function(fun)
        has_layout = keep_shardings or any(s is not None for s in shardings)
        self._shardings = shardings if has_layout else None
        self._keep_shardings = keep_shardings
        self._static_argnums = static_argnums
        self._static_argnames = static_argnames
        self._donate_argnums = donate_argnums
        self._donate_argnames = donate_argnames
        self._plain = not (
            static_argnums
            or static_argnames
            or self._function.has_module_defaults
            or keep_shardings
        )
        self._options = options
        self._programs, self._source = shared(fun, key, Programs)
        self._shortcut: Shortcut | None = None
        self._compiled: Compiled | None = None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Calls the compiled function; compiles it first for a new structure."""
        try:
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
        except Exception as error:
            fold(error)
            raise

    def _find(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any, list[Any]]:
        """Returns the program, the flattened roots and the other arguments of a call."""
        program, binding = self._prepare(args, kwargs, recorded=True)
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

    def _prepare(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], *, recorded: bool = False
    ) -> tuple[Any, Binding]:
        """Returns the program for these arguments and how they are bound.

        Nothing is recorded of what is only looked at, or compiled ahead of time.
        """
        fixed: dict[int, Any] = {}
        fixed_names: dict[str, Any] = {}
        more: tuple[Any, ...] = ()
        if not self._plain:
            args, kwargs = self._function.complete(args, kwargs)
            static = StaticArguments(
                self._fun, args, kwargs, self._static_argnums, self._static_argnames
            )
            args, kwargs, more = static.args, static.kwargs, static.key
            fixed, fixed_names = static.fixed, static.fixed_names
        binding = bind(args, kwargs, recorded=recorded)
        kept = kept_shardings(binding) if self._keep_shardings else None
        key = key_of(binding, *more, *(() if kept is None else (kept,)))
        program = self._programs.find(key)
        if program is None:
            program = self._compile(key, binding, args, kwargs, fixed, fixed_names, kept)
            if recorded:
                self._note_compiled(key, binding)
        else:
            self._note_called_again()
        if recorded and kept is None and not self._function.has_module_defaults:
            self._keep_shortcut(Shortcut.after(binding, program, fixed, fixed_names))
        return program, binding

    def trace(self, *args: Any, **kwargs: Any) -> Traced:
        """Traces the function for these arguments, without running it.

        Returns:
          A :class:`Traced`: its ``jaxpr``, ``lower()``, and what else ``jax.stages.Traced`` has.
        """
        program, binding = self._prepare(args, kwargs)
        stage = program.run(program.jitted.trace, binding.values(), binding.plain)
        traced = Traced(stage, program, binding.signature, self._function)
        traced.over_pytrees = functools.partial(self._trace_over_pytrees, (), args, kwargs)
        return traced

    def _trace_over_pytrees(
        self, bound: tuple[Any, ...], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Traces the function as one of JAX's own, whose arguments are pytrees.

        Args:
          bound: first arguments whose values become constants.
          args: the other positional arguments.
          kwargs: the keyword arguments.

        Raises:
          StructureError: if it changes its arguments, which such a function cannot.
        """

        def run(*args: Any, **kwargs: Any) -> Any:
            program, binding = self._prepare((*bound, *args), kwargs)
            values = binding.values()
            packed = program.run(program.jitted, values, binding.plain)
            effects, out, outputs = program.unpack(packed)
            return effects.apply(binding.flats, values, out, outputs)

        run.__name__ = run.__qualname__ = getattr(self._fun, "__name__", self._function.name)
        static: dict[str, Any] = {}
        if self._static_argnums:
            first = len(bound)
            static["static_argnums"] = [n - first if n > 0 else n for n in self._static_argnums]
        if self._static_argnames:
            static["static_argnames"] = tuple(self._static_argnames)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            traced = jax.jit(run, **static).trace(*args, **kwargs)
        lost: list[str] = []
        for warning in caught:
            if issubclass(warning.category, errors.DroppedWriteWarning):
                lost += [line for line in str(warning.message).splitlines() if line[:2] == "  "]
            else:
                warnings.warn_explicit(
                    warning.message, warning.category, warning.filename, warning.lineno
                )
        if lost:
            raise errors.StructureError(
                f"{self._function.name} cannot be exported by jax.export: an exported program "
                "returns results and changes no objects, and this one writes\n"
                + "\n".join(lost)
                + "\nCall `model.eval()` first, or export a function that returns the module or "
                "`moduli.state(module)`."
            )
        return traced

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

    @property
    def jitted_fn(self) -> JitWrapped[P, R]:
        """The function itself, under flax's name for the one of JAX inside."""
        return self

    def _cache_size(self) -> int:
        """Returns how many compiled programs there are, as a function of ``jax.jit`` does."""
        return sum(program.jitted._cache_size() for program in self._programs.values())

    def clear_cache(self) -> None:
        """Forgets all compiled programs: of this function with these options."""
        self._shortcut = None
        self._programs.clear()

    def forget(self, token: Any) -> None:
        """Forgets the program of plugins that exist no more."""
        self._shortcut = None

    def _compile(
        self,
        key: Any,
        binding: Binding,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        fixed: dict[int, Any],
        fixed_names: dict[str, Any],
        kept: Kept | None = None,
    ) -> JitProgram:
        count = len(args) + len(fixed)
        positions = [n for n in range(count) if n not in fixed]
        check_plain(self._fun, binding, positions)
        marks = donated_marks(
            binding,
            [n in self._donate_argnums or n - count in self._donate_argnums for n in positions]
            + [name in self._donate_argnames for name in binding.names],
        )
        layout = None
        if self._shardings is not None:
            layout = Layout(
                self._function, args, kwargs, count, positions, *self._shardings, binding, kept
            )
        signature = Signature(binding)
        names = Names(self._function.signature, signature, positions)
        pairs = tuple(sorted(fixed.items()))
        program = JitProgram(
            self._source, signature, names, pairs, fixed_names, marks, layout, self._options
        )
        key[0].used_by(self)
        self._programs.keep(key, program)
        return program

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
        traced = self.func.trace(*self.args, *args, **kwargs).bound_to(self.args[0])
        raw = self.func._trace_over_pytrees
        traced.over_pytrees = functools.partial(raw, self.args, args, kwargs)
        return traced

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
    def jitted_fn(self) -> BoundJit[Q, R]:
        """See :attr:`JitWrapped.jitted_fn`."""
        return self

    def _cache_size(self) -> int:
        return self.func._cache_size()

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
    keep_shardings: bool = False,
    static_argnums: int | Sequence[int] | None = None,
    static_argnames: str | Iterable[str] | None = None,
    donate_argnums: int | Sequence[int] | None = None,
    donate_argnames: str | Iterable[str] | None = None,
    keep_unused: bool = False,
    device: Any = None,
    backend: str | None = None,
    inline: bool = False,
    **_modes: Unpack[Modes],
) -> JitWrapped[P, R]: ...
@overload
def jit(
    fun: None = None,
    *,
    in_shardings: Any = None,
    out_shardings: Any = None,
    keep_shardings: bool = False,
    static_argnums: int | Sequence[int] | None = None,
    static_argnames: str | Iterable[str] | None = None,
    donate_argnums: int | Sequence[int] | None = None,
    donate_argnames: str | Iterable[str] | None = None,
    keep_unused: bool = False,
    device: Any = None,
    backend: str | None = None,
    inline: bool = False,
    **_modes: Unpack[Modes],
) -> Callable[[Callable[P, R]], JitWrapped[P, R]]: ...
def jit(
    fun: Callable[..., Any] | None = None,
    *,
    in_shardings: Any = None,
    out_shardings: Any = None,
    keep_shardings: bool = False,
    static_argnums: int | Sequence[int] | None = None,
    static_argnames: str | Iterable[str] | None = None,
    donate_argnums: int | Sequence[int] | None = None,
    donate_argnames: str | Iterable[str] | None = None,
    keep_unused: bool = False,
    device: Any = None,
    backend: str | None = None,
    inline: bool = False,
    **_modes: Unpack[Modes],
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
      keep_shardings: have the Variables come back laid out as they came, and compile once. By
        default JAX chooses, so that what was whole on every device may come back divided, and the
        second call compiles again. A Variable that was put nowhere on purpose is put on every
        device of the mesh. Costs a look at each Variable in each call.
      static_argnums: positions of hashable arguments for whose values to compile.
      static_argnames: names of such arguments.
      donate_argnums: positions of arguments whose buffers the result may use. The Variables of a
        donated module hold new buffers after the call, never deleted ones. What shared the old
        ones, such as a clone, is lost: using it is a DonatedError.
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
    options = options_of(locals())
    if fun is None:
        return functools.partial(jit, **options)
    if not callable(fun):
        raise errors.StructureError(
            f"jit needs a callable; got a {type(fun).__name__}. As a decorator with options write "
            "`@moduli.jit(static_argnames=...)`"
        )
    bound, call = unbound(fun)
    shift = 0 if bound is None else 1
    static = match_names(
        call, tuple(n + shift for n in as_positions(static_argnums)), as_names(static_argnames)
    )
    donated = match_names(
        call, tuple(n + shift for n in as_positions(donate_argnums)), as_names(donate_argnames)
    )
    chosen = {"device": device, "backend": backend}
    wrapped = JitWrapped(
        call,
        shardings=(_after_bound(in_shardings, shift), out_shardings),
        keep_shardings=keep_shardings,
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


@overload
def jit_partial(
    fun: Callable[Concatenate[S, P], R], first: S, /, **options: Any
) -> Callable[P, R]: ...
@overload
def jit_partial(
    fun: Callable[Concatenate[S, S2, P], R], first: S, second: S2, /, **options: Any
) -> Callable[P, R]: ...
@overload
def jit_partial(
    fun: Callable[Concatenate[S, S2, S3, P], R], first: S, second: S2, third: S3, /, **options: Any
) -> Callable[P, R]: ...
@overload
def jit_partial(fun: Callable[..., R], *partial_args: Any, **options: Any) -> Callable[..., R]: ...
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


@overload
def cached_partial(
    f: Callable[Concatenate[S, P], R], first: S, /, **_modes: Unpack[Modes]
) -> Callable[P, R]: ...
@overload
def cached_partial(
    f: Callable[Concatenate[S, S2, P], R], first: S, second: S2, /, **_modes: Unpack[Modes]
) -> Callable[P, R]: ...
@overload
def cached_partial(
    f: Callable[Concatenate[S, S2, S3, P], R],
    first: S,
    second: S2,
    third: S3,
    /,
    **_modes: Unpack[Modes],
) -> Callable[P, R]: ...
@overload
def cached_partial(
    f: Callable[..., R], *cached_args: Any, **_modes: Unpack[Modes]
) -> Callable[..., R]: ...
def cached_partial(f: Callable[..., Any], *cached_args: Any, **_modes: Unpack[Modes]) -> Any:
    """Fixes the first arguments of a transformed function; the same as ``functools.partial``.

    Args:
      f: a transformed function, such as ``moduli.jit(train_step)``.
      *cached_args: its first arguments.

    Returns:
      A function of the other arguments.
    """
    return functools.partial(f, *cached_args)
