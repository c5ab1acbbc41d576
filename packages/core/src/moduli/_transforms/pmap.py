"""pmap: map a function of modules over an axis, one element for each device."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar, Unpack, overload

import jax

from moduli import errors
from moduli._call.again import options_key_or_none, remember, shared
from moduli._call.call import Call, Labels
from moduli._call.frame import Frame
from moduli._call.function import (
    Function,
    Modes,
    as_positions,
    check_callable,
    folded,
    options_of,
    split_static,
    wraps,
)
from moduli._call.mapped_axes import all_axes, find_batched, map_over
from moduli._call.naming import code_of, named, naming, replace_text
from moduli._call.partition_names import PartitionNames
from moduli._call.prefixes import after_bound, is_axis
from moduli._call.programs import LabelledProgram, Programs, program_key
from moduli._call.split_streams import SPLIT

__all__ = ["pmap"]

P = ParamSpec("P")
R = TypeVar("R")


@overload
def pmap(
    f: Callable[P, R],
    *,
    axis_name: Hashable | None = None,
    in_axes: Any = 0,
    out_axes: Any = 0,
    static_broadcasted_argnums: int | Iterable[int] = (),
    devices: Sequence[Any] | None = None,
    backend: str | None = None,
    axis_size: int | None = None,
    donate_argnums: int | Iterable[int] = (),
    transform_metadata: Mapping[str, Any] | None = None,
    **_modes: Unpack[Modes],
) -> Callable[P, R]: ...
@overload
def pmap(
    f: None = None,
    *,
    axis_name: Hashable | None = None,
    in_axes: Any = 0,
    out_axes: Any = 0,
    static_broadcasted_argnums: int | Iterable[int] = (),
    devices: Sequence[Any] | None = None,
    backend: str | None = None,
    axis_size: int | None = None,
    donate_argnums: int | Iterable[int] = (),
    transform_metadata: Mapping[str, Any] | None = None,
    **_modes: Unpack[Modes],
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def pmap(
    f: Callable[..., Any] | None = None,
    *,
    axis_name: Hashable | None = None,
    in_axes: Any = 0,
    out_axes: Any = 0,
    static_broadcasted_argnums: int | Iterable[int] = (),
    devices: Sequence[Any] | None = None,
    backend: str | None = None,
    axis_size: int | None = None,
    donate_argnums: int | Iterable[int] = (),
    transform_metadata: Mapping[str, Any] | None = None,
    **_modes: Unpack[Modes],
) -> Any:
    """``jax.pmap`` for functions that take modules, with all their updates.

    Args:
      f: a function, a method, or a module. Without it a decorator is returned.
      axis_name: name of the axis for collectives such as ``jax.lax.pmean``.
      in_axes: see :func:`vmap`, also for what happens to random streams.
      out_axes: see :func:`vmap`.
      static_broadcasted_argnums: positions of hashable arguments for whose values to compile.
      devices: as of ``jax.pmap``.
      backend: as of ``jax.pmap``.
      axis_size: the size of the axis, if no argument tells.
      donate_argnums: positions of arguments whose buffers the result may use; the Variables of a
        donated module hold new buffers afterwards.
      transform_metadata: see :func:`vmap`.

    Returns:
      The mapped function, compiled once for each structure and shapes.

    Raises:
      StructureError: see :func:`vmap`.
      ShapeError: see :func:`vmap`.

    Example:
      >>> import moduli as nnx, jax, jax.numpy as jnp
      >>> model = nnx.Dict({"w": nnx.Param(jnp.array(3.0))})
      >>> x = jnp.ones((1, 4))  # the first axis counts the devices
      >>> nnx.pmap(lambda m, x: m["w"] * x, in_axes=(None, 0))(model, x).shape
      (1, 4)
    """
    options = options_of(locals())
    if f is None:
        return functools.partial(pmap, **options)
    check_callable(f, "pmap", "axis_name=...")
    function = Function(f)
    names = PartitionNames(transform_metadata, "pmap")
    donated = as_positions(donate_argnums)
    key_of_options = options_key_or_none("pmap", options, len(function.bound))
    programs, function.call = shared(function.call, key_of_options, Programs)
    name, parameters = function.name, function.signature

    def compile(call: Call, inner: Callable[..., Any], gone: list[bool], size: int) -> Any:
        inside = names.inside(call.detached())

        def run(frame: Frame) -> Any:
            frame.cross("pmap", size)
            inside.enter(frame)
            out = frame.run("pmap", name, inner)
            inside.leave(frame, out, out_axes)
            return out

        in_labels = [0 if label is SPLIT else label for label in call.all_labels()]
        axes = all_axes([*in_labels, *call.prefix_labels()], out_axes)
        marks = call.donated_marks(gone)
        call.trace(sorted(call.traced, key=marks.__getitem__))  # what is donated comes last
        kept = call.pick(marks).count(False)
        donated_leaves = call.donated_leaves(gone)
        program = LabelledProgram(
            call,
            inner,
            run,
            out_axes,
            "pmap: out_axes",
            axes,
            intermediate_label=0,
            drop=lambda leaf: program.call.label_of(leaf) is SPLIT,
            keep=donated_leaves.__contains__,
        )
        labels = call.pick(in_labels)
        avals = jax.eval_shape(lambda values: values, program.dynamic(call))

        def pure(first: list[Any], donated: list[Any]) -> Any:
            groups = program.pure([*first, *donated])
            if groups[axes.index(None)]:
                _check_unmapped(program, labels, axes, axis_name, avals)
            return groups

        def pairs(first: list[Any], donated: list[Any]) -> Any:
            return program.pairs([*first, *donated], parameters)

        named(pure, inner, pairs)

        def split(items: list[Any]) -> tuple[list[Any], list[Any]]:
            return items[:kept], items[kept:]

        jitted = jax.pmap(
            pure,
            axis_name=axis_name,
            in_axes=split(labels),  # type: ignore[arg-type]
            out_axes=axes,
            devices=devices,
            backend=backend,
            axis_size=axis_size,
            donate_argnums=(1,) if kept < len(labels) else (),
        )
        program.compiled = lambda values: jitted(*split(values))
        return program

    @wraps(f)
    @folded
    def mapped(*args: Any, **kwargs: Any) -> Any:
        given, keywords = function.positional(args, kwargs)
        count = len(given)
        fixed, given = split_static(given, static_broadcasted_argnums, "pmap", function.name)
        inner = fixed.around(function)
        axes: Any = in_axes
        if isinstance(axes, (tuple, list)):
            axes = tuple(axis for n, axis in enumerate(axes) if n not in fixed.values)
        numbers = {n + count if n < 0 else n for n in donated}
        gone = [False] * len(function.bound)
        gone += [n in numbers for n in range(count) if n not in fixed.values]
        given, keywords = function.complete(given, keywords)
        axes = after_bound(axes, len(function.bound), len(given))
        labels = Labels("in_axes", axes, is_axis, "an int or None", keyword=0)
        call = Call("pmap", given, keywords, function=function.name, labels=labels)
        size, streams = map_over(call, axis_size, broadcast=True)
        available = jax.device_count(backend) if devices is None else len(devices)
        if size > available:
            raise errors.ShapeError(
                f"pmap: the mapped axis of {function.name} has size {size}, but there are "
                f"{available} devices, one for each element; map over at most so many, and over "
                "the rest with `moduli.vmap` inside"
            )
        avals = [
            (jax.typeof(leaf).shape, jax.typeof(leaf).dtype)
            for leaf in jax.tree.leaves(call.every())
            if hasattr(leaf, "dtype") or isinstance(leaf, (int, float, complex))
        ]
        key = program_key(call, tuple(avals), tuple(sorted(fixed.values.items())), tuple(gone))
        if key is None:
            raise errors.StructureError(
                f"pmap: an argument of {function.name} cannot be traced nor hashed; mark it in "
                "static_broadcasted_argnums and use a hashable value"
            )
        program = programs.find(key)
        if program is None:
            program = compile(call, inner.call, gone, size)
            programs.keep(key, program)
        try:
            with naming("pmap", function.call):
                groups = program.compiled(program.dynamic(call))
        except Exception as error:
            pairs = program.pairs(program.dynamic(call), parameters)
            _name_values(error, pairs, function.call)
            raise
        result = program.apply(call, program.outputs, groups)
        streams.count_up()
        return result

    return remember(mapped, f, pmap, options)


def _name_values(error: Exception, pairs: Iterable[tuple[str, Any]], fun: Any) -> None:
    """Writes the user's names into an error in which ``jax.pmap`` numbers the values."""
    code = code_of(fun)
    if code is None or "flat_args" not in str(error):
        return
    names = [
        name + jax.tree_util.keystr(path)
        for name, value in pairs
        for path, _ in jax.tree_util.tree_flatten_with_path(value)[0]
    ]
    source = f"{code.co_name} at {code.co_filename}:{code.co_firstlineno} for pmap"
    replace_text(error, _PURE, lambda _: source)
    replace_text(error, _NUMBERED, lambda found: names[int(found[1])])


_PURE = re.compile(r"_fun at \S+:\d+ for shard_map")
_NUMBERED = re.compile(r"flat_args\[(\d+)\]")


def _check_unmapped(
    program: LabelledProgram, labels: list[Any], axes: list[Any], axis_name: Any, avals: list[Any]
) -> None:
    """Raises if a value under the axis None differs between elements.

    ``jax.pmap`` takes the first device's value; ``jax.vmap`` of the same function can tell.

    Args:
      program: the program, while it is traced.
      labels: the axes of its arguments.
      axes: the axes of its outputs.
      axis_name: the name of the mapped axis.
      avals: shapes and dtypes of the arguments, with the mapped axis.
    """
    outputs = program.outputs
    transformed = functools.partial(jax.vmap, in_axes=(labels,), axis_name=axis_name)
    try:
        jax.eval_shape(transformed(program.pure, out_axes=axes), avals)
    except (ValueError, NotImplementedError):
        try:
            jax.eval_shape(transformed(program.pure, out_axes=0), avals)
        except (ValueError, NotImplementedError):
            return  # something in it cannot be mapped by vmap, so nobody can tell
        culprit = find_batched(
            "pmap", transformed, program.pure, avals, axes, lambda: program.outputs
        )
        if culprit is not None:
            raise errors.StructureError(culprit) from None
    finally:
        program.outputs = outputs
