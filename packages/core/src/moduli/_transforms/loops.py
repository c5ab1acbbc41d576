"""while_loop and fori_loop over modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from moduli import errors
from moduli._call.carried import is_array_like
from moduli._call.function import Function, check_callable, function_name
from moduli._call.labelled_call import LabelledCall
from moduli._call.lift import Frame
from moduli._call.loop_body import LoopBody
from moduli._call.naming import named, naming, parameter_name
from moduli._call.prefixes import Carry
from moduli._call.running import running
from moduli._call.writeback import ChangedEffects
from moduli._variable.box import Variable

__all__ = ["fori_loop", "while_loop"]

T = TypeVar("T")


def while_loop(cond_fun: Callable[[T], Any], body_fun: Callable[[T], T], init_val: T) -> T:
    """``jax.lax.while_loop`` for functions that take modules, with all their updates.

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
    call = _call("while_loop", function_name(body_fun), init_val)
    body = LoopBody(
        call,
        lambda frame: body_fun(*frame.args),
        (lambda frame: frame.args[0], lambda out: out),
        Carry,
        "while_loop: the result",
        body_fun,
    )

    def goes_on(carry: Any) -> Any:
        frame = body.frame(carry, [])
        frame.mute()
        with running("while_loop", function_name(cond_fun), frame.recordings, cond_fun):
            out = cond_fun(*frame.args)
        out = _value_of(out)
        _check_reads_only(call, frame, out, function_name(cond_fun))
        return out

    def step(carry: Any) -> Any:
        return _only_carry(call, body, carry)

    _named(goes_on, call, body, cond_fun)
    _named(step, call, body, body_fun)
    with naming("while_loop", cond_fun):
        carry = jax.lax.while_loop(goes_on, step, body.init)
    return body.finish(carry, []) if body.has_run else init_val


def fori_loop(
    lower: Any,
    upper: Any,
    body_fun: Callable[[Any, T], T],
    init_val: T,
    *,
    unroll: int | bool | None = None,
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
    call = _call("fori_loop", function_name(body_fun), init_val)
    index: list[Any] = []

    def make_body(enter: Callable[[Frame], None]) -> LoopBody:
        def run(frame: Frame) -> Any:
            enter(frame)
            return body_fun(index.pop(), *frame.args)

        carry_of = (lambda frame: frame.args[0], lambda out: out)
        return LoopBody(call, run, carry_of, Carry, "fori_loop: the result", body_fun)

    def step(i: Any, carry: Any) -> Any:
        index.append(i)
        return _only_carry(call, body, carry)

    lower, upper = _value_of(lower), _value_of(upper)
    if call.binding.keeps_records and isinstance(lower, int) and isinstance(upper, int):
        return _stacked(make_body, call, index, lower, upper, unroll)
    body = make_body(lambda frame: None)
    _named(step, call, body, body_fun, ahead=1)
    with naming("fori_loop", body_fun):
        carry = jax.lax.fori_loop(lower, upper, step, body.init, unroll=unroll)
    return body.finish(carry, []) if body.has_run else init_val


def _stacked(
    make_body: Callable[[Callable[[Frame], None]], LoopBody],
    call: LabelledCall,
    index: list[Any],
    lower: int,
    upper: int,
    unroll: Any,
) -> Any:
    """Runs a loop of known length so that what is recorded is stacked."""
    steps = max(upper - lower, 0)
    call.label_given("fori_loop", steps)
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


def _named(
    pure: Callable[..., Any], call: LabelledCall, body: LoopBody, fun: Any, ahead: int = 0
) -> None:
    """Gives a step, or the condition, of a loop the names of the user's function.

    Args:
      pure: takes the carry, after ``ahead`` other arguments.
      call: the loop's call.
      body: its body.
      fun: the user's function.
      ahead: how many arguments of both come before the carry.
    """
    signature = Function(fun).signature
    shift = len(Function(fun).bound)

    def pairs(*args: Any) -> Any:
        names = [parameter_name(signature, shift + n) for n in range(ahead)]
        carried, _ = body.split_names(call.value_names(signature, [shift + ahead]))
        return [*zip(names, args[:ahead], strict=True), *zip(carried, args[-1], strict=True)]

    named(pure, fun, pairs)


def _call(transform: str, name: str, init_val: Any) -> LabelledCall:
    call = LabelledCall(
        (transform, "the carry"),
        name,
        (init_val,),
        {},
        (Carry,),
        keyword_label=None,
        valid=lambda label: label is Carry,
        expected="moduli.Carry",
        recorded_label=Carry,
    )
    # the first argument of the body's own, and the last of the loop: neither number says which
    call.root_names = [name.replace("argument 0", "carry", 1) for name in call.root_names]
    call.leaf_names = [name.replace("argument 0", "carry", 1) for name in call.leaf_names]
    for position, value in enumerate(call.all_values()):
        if not is_array_like(value):
            raise errors.StructureError(
                f"{transform}: {call.describe_all(position)} is a {type(value).__name__}, which "
                "cannot be carried; a carry holds modules and arrays. Use it from outside of the "
                "function instead"
            )
    return call


def _value_of(item: Any) -> Any:
    return item.value if isinstance(item, Variable) else item


def _only_carry(call: LabelledCall, body: LoopBody, carry: Any) -> list[Any]:
    carry, stacked = body.step(carry, [])
    if any(stacked) and call.binding.keeps_records:
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


def _check_reads_only(call: LabelledCall, frame: Frame, out: Any, name: str) -> None:
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
