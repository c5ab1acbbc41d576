"""scan: loop over an axis of modules and arrays, compiled once for all steps."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar, Unpack, overload

import jax

from moduli import errors
from moduli._call.again import options_key_or_none, remember
from moduli._call.call import Call, Labels
from moduli._call.eager_programs import Result, run_program
from moduli._call.frame import Frame
from moduli._call.function import Function, Modes, check_callable, folded, options_of, wraps
from moduli._call.loop_body import LoopBody
from moduli._call.mapped_axes import map_over
from moduli._call.naming import named, naming
from moduli._call.partition_names import PartitionNames
from moduli._call.prefixes import Carry, after_bound, is_axis, is_detailed

__all__ = ["scan"]

P = ParamSpec("P")
R = TypeVar("R")


@overload
def scan(
    f: Callable[P, R],
    *,
    length: int | None = None,
    reverse: bool = False,
    unroll: int | bool = 1,
    in_axes: Any = (Carry, 0),
    out_axes: Any = (Carry, 0),
    transform_metadata: Mapping[str, Any] | None = None,
    _split_transpose: bool = False,
    **_modes: Unpack[Modes],
) -> Callable[P, R]: ...
@overload
def scan(
    f: None = None,
    *,
    length: int | None = None,
    reverse: bool = False,
    unroll: int | bool = 1,
    in_axes: Any = (Carry, 0),
    out_axes: Any = (Carry, 0),
    transform_metadata: Mapping[str, Any] | None = None,
    _split_transpose: bool = False,
    **_modes: Unpack[Modes],
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def scan(
    f: Callable[..., Any] | None = None,
    *,
    length: int | None = None,
    reverse: bool = False,
    unroll: int | bool = 1,
    in_axes: Any = (Carry, 0),
    out_axes: Any = (Carry, 0),
    transform_metadata: Mapping[str, Any] | None = None,
    _split_transpose: bool = False,
    **_modes: Unpack[Modes],
) -> Any:
    """``jax.lax.scan`` for functions that take modules, with all their updates.

    ``f`` runs once for each slice. What is marked :class:`Carry` goes from step to step; an int is
    the axis along which a value is sliced, and along which a result is stacked; None is the same
    in each step. Modules under None see their own writes in the next step (BatchNorm statistics,
    counts of random streams), as in a Python loop. A sliced module whose random streams are single
    keys gets them split, one for each step.

    Args:
      f: a function, a method, or a module. Without it a decorator is returned.
      length: number of steps, if no argument is sliced.
      reverse: start from the last slice.
      unroll: how many steps to write out in one round of the compiled loop; True for all.
      in_axes: a prefix of the positional arguments: ints, None, and at most one Carry, which
        stands for a whole argument; for modules also :class:`StateAxes` (there Carry may stand
        for parts) and what :func:`prefix` returns.
      out_axes: a prefix of the result: ints, and Carry in the place of the new carry.
      transform_metadata: see :func:`vmap`.
      _split_transpose: as of :func:`jax.lax.scan`.

    Returns:
      The function that runs the loop: it returns what ``f`` returns, with the last carry, and
      results stacked.

    Raises:
      StructureError: if axes do not fit, or a carry changes its objects or its structure.
      ShapeError: if sliced values differ in length, or a carried value changes shape or dtype.

    Example:
      >>> import moduli as nnx, jax, jax.numpy as jnp
      >>> class Block(nnx.Module):
      ...     def __init__(self, rngs):
      ...         self.w = nnx.Param(jax.random.normal(rngs.params(), (3, 3)))
      ...     def __call__(self, x):
      ...         return jnp.tanh(x @ self.w)
      >>> blocks = nnx.vmap(Block)(nnx.Rngs(0).split(4))
      >>> @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
      ... def forward(x, block):
      ...     return block(x)
      >>> forward(jnp.ones(3), blocks).shape
      (3,)
    """
    options = options_of(locals())
    if f is None:
        return functools.partial(scan, **options)
    check_callable(f, "scan", "in_axes=..., out_axes=...")
    place_in = _carry_place(in_axes, "in_axes")
    place_out = _carry_place(out_axes, "out_axes")
    if (place_in is None) != (place_out is None):
        raise errors.StructureError(
            f"scan: moduli.Carry stands in one of in_axes={in_axes!r} and out_axes={out_axes!r}, "
            "but not in the other; what a step carries in, it has to return"
        )
    function = Function(f)
    names = PartitionNames(transform_metadata, "scan")
    shift = len(function.bound)
    key = options_key_or_none(options, shift)

    def loop(call: Call, fun: Callable[..., Any], steps: int) -> Result:
        """Runs the loop; refers to no user's function, as programs keep it."""
        inside = names.inside(call)

        def run(frame: Frame) -> Any:
            frame.cross("scan", steps)
            inside.enter(frame)
            out = fun(*frame.args, **frame.kwargs)
            if place_out not in (None, _WHOLE):
                _check_result(out, out_axes, call.function)
            inside.leave(frame, out, out_axes)
            return out

        carry_of = None
        if place_in is not None:
            first = shift + (0 if place_in == _WHOLE else place_in)

            def carry_out(out: Any) -> Any:
                return out if place_out == _WHOLE else out[place_out]

            carry_of = (lambda frame: frame.args[first], carry_out)
        body = LoopBody(call, run, carry_of, out_axes, "scan: out_axes", fun)
        parameters = Function(fun).signature

        def pairs(carry: Any, xs: Any) -> Any:
            carried, sliced = body.split_names(call.value_names(parameters))
            return [*zip(carried, carry, strict=True), *zip(sliced, xs, strict=True)]

        # what is sliced says how many steps there are, also where an export leaves that open
        count = None if jax.tree.leaves(body.sliced) else steps
        with naming("scan", fun):
            carry, stacked = jax.lax.scan(
                named(lambda carry, xs: body.step(carry, xs), fun, pairs),
                body.init,
                body.sliced,
                length=count,
                reverse=reverse,
                unroll=unroll,
                _split_transpose=_split_transpose,
            )
        return body.finish(carry, stacked)

    @wraps(f)
    @folded
    def looped(*args: Any, **kwargs: Any) -> Any:
        given, keywords = function.complete(*function.positional(args, kwargs))
        axes: Any = in_axes
        if place_in == _WHOLE:
            if len(given) != 1 + shift:
                raise errors.StructureError(
                    f"scan: in_axes=moduli.Carry stands for one argument, but {function.name} was "
                    f"called with {len(given) - shift}; write in_axes=(moduli.Carry, ...)"
                )
            axes = (Carry,)
        axes = after_bound(axes, shift, len(given))
        expected = "an int, None or moduli.Carry"
        labels = Labels("in_axes", axes, _is_label, expected, agree=_agree)
        call = Call("scan", given, keywords, function=function.name, labels=labels)
        steps, streams = map_over(call, length, broadcast=False, name="length")
        effects, out, new = run_program(
            (function.call,),
            call,
            lambda call, functions: loop(call, functions[0], steps),
            None if key is None else (key, steps),
        )
        result = call.apply((out, new), effects)
        streams.count_up()
        return result

    return remember(looped, f, scan, options)


_WHOLE = -1


def _is_label(label: Any) -> bool:
    return label is Carry or is_axis(label)


def _agree(one: Any, other: Any) -> bool:
    """Modules under None are carried too."""
    return one == other or (one in (None, Carry) and other in (None, Carry))


def _carry_place(axes: Any, name: str) -> int | None:
    """Where Carry stands among the entries of a prefix: its index, _WHOLE, or None."""
    if axes is Carry:
        return _WHOLE
    if not isinstance(axes, (tuple, list)):
        return None
    places = [number for number, entry in enumerate(axes) if entry is Carry]
    if len(places) > 1:
        raise errors.StructureError(
            f"scan: {name}={axes!r} has moduli.Carry in {len(places)} places; put what is carried "
            "into one tuple: in_axes=(moduli.Carry, ...) with f((a, b), ...)"
        )
    for number, entry in enumerate(axes):
        if not isinstance(entry, (tuple, list, dict)):
            continue
        # inside of a StateAxes or a module's prefix it stands for parts of a module, and may
        if Carry in jax.tree.leaves(entry, is_leaf=is_detailed):
            raise errors.StructureError(
                f"scan: {name}[{number}]={entry!r} has moduli.Carry inside; it stands for a whole "
                "argument, so move what is carried into an argument of its own"
            )
    return places[0] if places else None


def _check_result(out: Any, out_axes: Any, name: str) -> None:
    if not isinstance(out, (tuple, list)) or len(out) != len(out_axes):
        got = f"{type(out).__name__}" + (
            f" of {len(out)}" if isinstance(out, (tuple, list)) else ""
        )
        raise errors.StructureError(
            f"scan: out_axes={out_axes!r} has {len(out_axes)} entries, but {name} returned a "
            f"{got}; write out_axes=moduli.Carry if the result is the carry alone"
        )
