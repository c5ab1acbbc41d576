"""vmap: map a function over an axis of modules and arrays."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Any, ParamSpec, TypeVar, Unpack, overload

import jax

from moduli import errors
from moduli._call.again import remember
from moduli._call.call import Call, Labels
from moduli._call.function import Function, Modes, check_callable, folded, options_of, wraps
from moduli._call.mapped_axes import all_axes, find_batched, map_over
from moduli._call.naming import naming
from moduli._call.outputs import Outputs
from moduli._call.partition_names import PartitionNames
from moduli._call.prefixes import after_bound, is_axis
from moduli._call.split_streams import SPLIT

__all__ = ["vmap"]

P = ParamSpec("P")
R = TypeVar("R")


@overload
def vmap(
    f: Callable[P, R],
    *,
    in_axes: Any = 0,
    out_axes: Any = 0,
    axis_name: Hashable | None = None,
    axis_size: int | None = None,
    spmd_axis_name: Any = None,
    transform_metadata: Mapping[str, Any] | None = None,
    **_modes: Unpack[Modes],
) -> Callable[P, R]: ...
@overload
def vmap(
    f: None = None,
    *,
    in_axes: Any = 0,
    out_axes: Any = 0,
    axis_name: Hashable | None = None,
    axis_size: int | None = None,
    spmd_axis_name: Any = None,
    transform_metadata: Mapping[str, Any] | None = None,
    **_modes: Unpack[Modes],
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def vmap(
    f: Callable[..., Any] | None = None,
    *,
    in_axes: Any = 0,
    out_axes: Any = 0,
    axis_name: Hashable | None = None,
    axis_size: int | None = None,
    spmd_axis_name: Any = None,
    transform_metadata: Mapping[str, Any] | None = None,
    **_modes: Unpack[Modes],
) -> Any:
    """``jax.vmap`` for functions that take modules, with all their updates.

    What the function writes to a mapped Variable is stacked along its axis; a Variable under the
    axis None is one for all elements, and writing it a value that differs between them is an error.
    Random streams of a module are split, so that each element draws its own keys, and the caller's
    stream counts one draw; to share one stream, pass the Rngs themselves under None, or name them:
    ``StateAxes({moduli.RngState: None, ...: 0})``.

    Args:
      f: a function, a method, or a module. Without it a decorator is returned.
      in_axes: a prefix of the positional arguments: ints and None; for modules also
        :class:`StateAxes` and what :func:`prefix` returns. Keyword arguments are mapped over axis
        0 if they cannot be passed by position.
      out_axes: a prefix of the result, likewise. New objects in the result get it too.
      axis_name: name of the axis for collectives such as ``jax.lax.psum``.
      axis_size: its size, if no argument tells.
      spmd_axis_name: as of ``jax.vmap``.
      transform_metadata: ``{moduli.PARTITION_NAME: name}`` inserts the name of the axis into the
        partition names (``out_sharding``) of Variables that are mapped; without it the axis is
        None there, so that there are as many names as axes.

    Returns:
      The mapped function.

    Raises:
      StructureError: if axes do not fit the arguments, or one Variable gets two axes.
      ShapeError: if mapped values differ in the size of their axis.

    Example:
      >>> import moduli as nnx, jax, jax.numpy as jnp
      >>> class Ensemble(nnx.Module):
      ...     def __init__(self, rngs):
      ...         self.w = nnx.Param(jax.random.normal(rngs.params(), (2, 3)))
      >>> models = nnx.vmap(Ensemble)(nnx.Rngs(0).split(5))
      >>> models.w.shape
      (5, 2, 3)
      >>> nnx.vmap(lambda m, x: x @ m.w, in_axes=(0, None))(models, jnp.ones((4, 2))).shape
      (5, 4, 3)
    """
    options = options_of(locals())
    if f is None:
        return functools.partial(vmap, **options)
    check_callable(f, "vmap", "in_axes=...")
    function = Function(f)
    names = PartitionNames(transform_metadata, "vmap")

    @wraps(f)
    @folded
    def mapped(*args: Any, **kwargs: Any) -> Any:
        given, keywords = function.complete(*function.positional(args, kwargs))
        axes_in = after_bound(in_axes, len(function.bound), len(given))
        labels = Labels("in_axes", axes_in, is_axis, "an int or None", keyword=0)
        call = Call("vmap", given, keywords, function=function.name, labels=labels)
        size, streams = map_over(call, axis_size, broadcast=True)
        in_labels = [0 if label is SPLIT else label for label in call.all_labels()]
        call.trace(n for n, axis in enumerate(in_labels) if axis is not None)
        axes = all_axes([*in_labels, *call.prefix_labels()], out_axes)
        names_in = names.inside(call)
        outputs: Any = None

        def pure(values: list[Any]) -> list[list[Any]]:
            nonlocal outputs
            frame = call.make_frame(values)
            frame.cross("vmap", size)
            names_in.enter(frame)
            out = frame.run("vmap", function.name, function.call)
            names_in.leave(frame, out, out_axes)
            outputs = Outputs(
                call,
                frame,
                out,
                out_axes,
                "vmap: out_axes",
                intermediate_label=0,
                drop=streams.__contains__ if streams else None,
            )
            groups = outputs.grouped(axes)
            outputs.values = []  # tracers
            return groups

        call.named(pure, function)
        values = call.dynamic
        arguments: Any = (call.pick(in_labels),)
        transformed = functools.partial(
            jax.vmap,
            in_axes=arguments,
            axis_name=axis_name,
            axis_size=size,
            spmd_axis_name=spmd_axis_name,
        )
        try:
            with naming("vmap", function.call):
                groups = transformed(pure, out_axes=list(axes))(values)
        except ValueError as error:
            culprit = find_batched("vmap", transformed, pure, values, axes, lambda: outputs)
            if culprit is None or isinstance(error, errors.ModuliError):
                raise
            raise errors.StructureError(culprit) from None
        out, new = outputs.rebuild(outputs.ungrouped(axes, groups))
        result = call.apply((out, new), outputs.effects)
        streams.count_up()
        return result

    return remember(mapped, f, vmap, options)
