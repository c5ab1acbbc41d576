"""while_loop and fori_loop over modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, Unpack

import jax
import jax.numpy as jnp

from moduli import errors
from moduli._call.call import Call, Labels
from moduli._call.carried import is_array_like
from moduli._call.eager_programs import Result, run_program
from moduli._call.frame import Frame
from moduli._call.function import Function, Modes, check_callable, folded, function_name
from moduli._call.given_values import unboxed
from moduli._call.loop_body import LoopBody
from moduli._call.naming import named, naming, parameter_name
from moduli._call.prefixes import Carry
from moduli._call.writeback import ChangedEffects

__all__ = ["fori_loop", "while_loop"]

T = TypeVar("T")


@folded
def while_loop(
    cond_fun: Callable[[T], Any], body_fun: Callable[[T], T], init_val: T, **_modes: Unpack[Modes]
) -> T:
    """``jax.lax.while_loop`` for functions that take modules, with all their updates.

    If a function is a method of a module, what it writes there is carried from step to step too.

    Args:
      cond_fun: takes the carry and says whether to go on; it may read modules, not write them.
      body_fun: takes the carry and returns the next: the same modules, which it may write, and
        arrays of the same shapes and dtypes.
      init_val: the first carry: a pytree of modules and arrays.

    Returns:
      The last carry, with the modules of ``init_val``.

    Raises:
      StructureError: if the carry changes its objects or structure, or ``cond_fun`` writes.
      ShapeError: if a carried value changes its shape or dtype.

    Example:
      >>> import moduli as nnx, jax.numpy as jnp
      >>> counter = nnx.Dict({"count": nnx.Variable(jnp.array(0))})
      >>> def body(carry):
      ...     counter, x = carry
      ...     counter["count"].value += 1
      ...     return counter, 2 * x
      >>> _, x = nnx.while_loop(lambda carry: carry[1] < 100, body, (counter, jnp.array(1)))
      >>> int(x), int(counter["count"].value)
      (128, 7)
    """
    check_callable(cond_fun, "while_loop", "cond_fun, body_fun, init_val")
    check_callable(body_fun, "while_loop", "cond_fun, body_fun, init_val")
    functions = (Function(cond_fun), Function(body_fun))
    call = _call("while_loop", functions[1].name, init_val, *functions)
    counts = tuple([len(function.bound) for function in functions])
    result = run_program(
        [function.call for function in functions],
        call,
        lambda call, functions: _while_loop(call, functions, counts),
        counts,
    )
    return _apply(call, result, init_val)


def _while_loop(
    call: Call, functions: Sequence[Callable[..., Any]], counts: Sequence[int]
) -> Result:
    """Runs the loop.

    Args:
      call: the carry, then the modules of which the functions are methods.
      functions: the condition and the body.
      counts: how many of the modules are the first arguments of each.
    """
    cond_fun, body_fun = functions
    last = 1 + counts[0]
    body = LoopBody(
        call,
        lambda frame: body_fun(*frame.args[last:], frame.args[0]),
        (lambda frame: frame.args[0], lambda out: out),
        Carry,
        "while_loop: the result",
        body_fun,
    )

    def condition(frame: Frame) -> Any:
        return cond_fun(*frame.args[1:last], frame.args[0])

    def goes_on(carry: Any) -> Any:
        frame = body.frame(carry, [])
        frame.mute()
        out = unboxed(frame.run("while_loop", function_name(cond_fun), cond_fun, condition))
        _check_reads_only(call, frame, out, function_name(cond_fun))
        return out

    def step(carry: Any) -> Any:
        return _only_carry(call, body, carry)

    _named(goes_on, call, body, cond_fun, counts[0])
    _named(step, call, body, body_fun, counts[1])
    with naming("while_loop", cond_fun):
        carry = jax.lax.while_loop(goes_on, step, body.init)
    return body.finish(carry, []) if body.has_run else _NOTHING


@folded
def fori_loop(
    lower: Any,
    upper: Any,
    body_fun: Callable[[Any, T], T],
    init_val: T,
    *,
    unroll: int | bool | None = None,
    **_modes: Unpack[Modes],
) -> T:
    """``jax.lax.fori_loop`` for functions that take modules, with all their updates.

    Args:
      lower: the first index; an int, an array, or a Variable that holds one.
      upper: the index after the last, likewise.
      body_fun: takes the index and the carry, and returns the next carry; see :func:`while_loop`.
      init_val: the first carry.
      unroll: as of ``jax.lax.fori_loop``.

    Returns:
      The last carry, with the modules of ``init_val``.

    Example:
      >>> import moduli as nnx, jax.numpy as jnp
      >>> model = nnx.Dict({"w": nnx.Param(jnp.array(3.0))})
      >>> _, x = nnx.fori_loop(0, 4, lambda i, c: (c[0], c[1] * c[0]["w"]), (model, 1.0))
      >>> float(x)
      81.0
    """
    check_callable(body_fun, "fori_loop", "lower, upper, body_fun, init_val")
    function = Function(body_fun)
    call = _call("fori_loop", function.name, init_val, function)
    lower, upper = unboxed(lower), unboxed(upper)
    bounds = {"lower": lower, "upper": upper}
    known = {name: _known_bound(bound) for name, bound in bounds.items()}
    if call.keeps_records and isinstance(lower, int) and isinstance(upper, int):
        call.label_given("fori_loop", max(upper - lower, 0))
    traced = {name: bound for name, bound in bounds.items() if known[name] is None}
    fixed = {name: bound for name, bound in bounds.items() if known[name] is not None}

    def run(call: Call, functions: Sequence[Callable[..., Any]], **traced: Any) -> Result:
        return _fori_loop(call, functions[0], **fixed, **traced, unroll=unroll)

    options = (
        (*known.values(), type(unroll), unroll)
        if all(map(is_array_like, bounds.values()))
        else None
    )
    return _apply(call, run_program((function.call,), call, run, options, traced), init_val)


def _known_bound(bound: Any) -> Any:
    """Returns a key of a bound whose value is known, for which JAX compiles; None if it is not."""
    try:
        return int(bound), str(jax.typeof(bound))
    except (TypeError, ValueError):
        return None


def _fori_loop(
    call: Call, body_fun: Callable[..., Any], lower: Any, upper: Any, unroll: Any
) -> Result:
    index: list[Any] = []

    def make_body(enter: Callable[[Frame], None]) -> LoopBody:
        def run(frame: Frame) -> Any:
            enter(frame)
            return body_fun(*frame.args[1:], index.pop(), frame.args[0])

        carry_of = (lambda frame: frame.args[0], lambda out: out)
        return LoopBody(call, run, carry_of, Carry, "fori_loop: the result", body_fun)

    def step(i: Any, carry: Any) -> Any:
        index.append(i)
        return _only_carry(call, body, carry)

    if call.keeps_records and isinstance(lower, int) and isinstance(upper, int):
        return _stacked(make_body, index, lower, upper, unroll)
    body = make_body(lambda frame: None)
    _named(step, call, body, body_fun, _modules(call), ahead=1)
    with naming("fori_loop", body_fun):
        carry = jax.lax.fori_loop(lower, upper, step, body.init, unroll=unroll)
    return body.finish(carry, []) if body.has_run else _NOTHING


def _stacked(
    make_body: Callable[[Callable[[Frame], None]], LoopBody],
    index: list[Any],
    lower: int,
    upper: int,
    unroll: Any,
) -> Result:
    """Runs a loop of known length so that what is recorded is stacked."""
    steps = max(upper - lower, 0)
    body = make_body(lambda frame: frame.cross("fori_loop", steps))

    def step(carry: Any, xs: Any) -> Any:
        index.append(xs[0])
        return body.step(carry, xs[1])

    carry, stacked = jax.lax.scan(
        step,
        body.init,
        (jnp.arange(lower, lower + steps), body.sliced),
        length=steps,
        unroll=1 if unroll is None else unroll,
    )
    return body.finish(carry, stacked)


def _modules(call: Call) -> int:
    """How many modules there are of which the functions are methods."""
    return len(call.signature.template) - len(call.signature.names) - 1


def _named(
    pure: Callable[..., Any],
    call: Call,
    body: LoopBody,
    fun: Any,
    shift: int,
    ahead: int = 0,
) -> None:
    """Gives a step, or the condition, of a loop the names of the user's function.

    Args:
      pure: takes the carry, after ``ahead`` other arguments.
      call: the loop's call.
      body: its body.
      fun: the user's function.
      shift: how many modules it takes before all.
      ahead: how many arguments of both come before the carry.
    """
    signature = Function(fun).signature
    places = [shift + ahead, *[0] * _modules(call)]

    def pairs(*args: Any) -> Any:
        names = [parameter_name(signature, shift + n) for n in range(ahead)]
        carried, _ = body.split_names(call.value_names(signature, places))
        return [*zip(names, args[:ahead], strict=True), *zip(carried, args[-1], strict=True)]

    named(pure, fun, pairs)


_NOTHING: Result = (None, None, None)
"""The result of a loop that has run no step: under jax.disable_jit, which traces none."""


def _apply(call: Call, result: Result, init_val: Any) -> Any:
    """Does to the caller's objects what the loop did; returns its result."""
    effects, out, new = result
    if effects is None:
        return init_val
    return call.apply((out, new), effects)


def _call(transform: str, name: str, init_val: Any, *functions: Function) -> Call:
    """Binds the carry, then the modules of which the functions are methods."""
    modules = [module for function in functions for module in function.bound]
    labels = Labels(
        "the carry",
        (Carry, *[None] * len(modules)),
        lambda label: label is Carry or label is None,
        "moduli.Carry",
        agree=lambda one, other: True,  # what a method finds in its module is carried too
        recorded=Carry,
    )
    # the first argument of the body is another than the first of the loop: neither has a number
    names = ["carry", *["the module of the method"] * len(modules)]
    call = Call(transform, (init_val, *modules), {}, names, function=name, labels=labels)
    found = call.all_labels()
    for position, value in enumerate(call.every()):
        if found[position] is Carry and not is_array_like(value):
            raise errors.StructureError(
                f"{transform}: {call.describe_all(position)} is a {type(value).__name__}, which "
                "cannot be carried; a carry holds modules and arrays. Use it from outside of the "
                "function instead"
            )
    return call


def _only_carry(call: Call, body: LoopBody, carry: Any) -> list[Any]:
    carry, stacked = body.step(carry, [])
    if any(stacked) and call.keeps_records:
        raise errors.StructureError(
            f"{call.transform}: {body.stacked_names[0]} (by moduli.capture, for example) in "
            f"{call.function} cannot be stacked, as the number of steps is not known; use "
            "moduli.scan, or moduli.fori_loop with ints for bounds, or select no module that the "
            "loop calls"
        )
    if any(stacked):
        raise errors.StructureError(
            f"{call.transform}: {call.function} makes new Variables of kind Intermediate (it sows, "
            "for example), but a loop of unknown length cannot stack them; use moduli.scan, or "
            "carry a Variable and write it"
        )
    return carry


def _check_reads_only(call: Call, frame: Frame, out: Any, name: str) -> None:
    effects, _ = frame.finish(out)
    if isinstance(effects, ChangedEffects):
        raise errors.StructureError(
            f"{call.transform}: {name} changes the structure of the carry, or returns a module; it "
            "may only read modules and return a bool"
        )
    if frame.homes and frame.homes[0] is not None:
        raise errors.StructureError(
            f"{call.transform}: {name} writes {call.describe(frame.homes[0])}; what the condition "
            "writes would be lost, so write it in the body"
        )
