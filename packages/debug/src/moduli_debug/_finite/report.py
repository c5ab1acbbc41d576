"""Says in words and attributes what a search has found."""

from __future__ import annotations

import linecache
import os
from collections.abc import Iterable, Sequence
from typing import Any

import jax

import moduli
from moduli.errors import format_path
from moduli_debug._finite.eager import SeenCall
from moduli_debug._finite.faults import Fault
from moduli_debug._finite.marks import is_backward
from moduli_debug._finite.program import Argument, Program
from moduli_debug._finite.search import Found
from moduli_debug._finite.statistics import ArrayStatistics
from moduli_debug.errors import NonFiniteError

__all__ = ["report_argument", "report_call", "report_fault", "report_unknown"]

_SHOWN = 6
_HIDDEN = tuple(
    os.path.dirname(os.path.abspath(file or "")) + os.sep
    for file in (jax.__file__, moduli.__file__, __file__)
)


def report_unknown(name: str, reached: Sequence[str], reason: str) -> NonFiniteError:
    """Says that outputs are not finite, and why nothing more is known."""
    message = f"check_finite: {name} gave NaN or infinities{_list(reached)}.\n{reason}"
    return _error(message, reached=tuple(reached))


def report_argument(
    name: str, program: Program, found: Found, reached: Sequence[str]
) -> NonFiniteError:
    """Says that an argument was not finite to begin with."""
    number = found.fault.argument
    assert number is not None
    argument: Argument = program.arguments[number]
    measured = found.fault.results[0]
    owner = None if argument.root is None else program.roots[argument.root]
    if argument.root is None:
        subject = f"{argument.place} of {name}"
        hint = "Look at where the data comes from"
        where, path = "input", ()
        owner = program.roots[0] if program.roots else None
    else:
        subject = f"the value at `{format_path(argument.path)}` of {argument.place} of {name}"
        hint = "Look at the update or the checkpoint that wrote it"
        where, path = "parameter", argument.path
    message = (
        f"check_finite: {subject} was not finite to begin with: {_counts(measured)}.\n"
        f"  {measured}\n{_reaches(reached)}{hint}."
    )
    return _error(
        message,
        path=path,
        module_type=owner,
        argument=argument.place,
        direction="forward",
        where=where,
        inputs=(measured._replace(name=argument.place),),
        results=(measured,),
        reached=tuple(reached),
    )


def report_fault(
    name: str, program: Program, found: Found, reached: Sequence[str]
) -> NonFiniteError:
    """Says which module made NaN or infinities, and how.

    Args:
      name: of the function.
      program: what was searched.
      found: what was found.
      reached: the outputs that are not finite.
    """
    fault, backward, call = found.fault, found.backward, found.fault.call
    marks = {side: tuple(known.values()) for side, known in fault.marks.items()}
    inputs, outputs = marks.get(("input", False), ()), marks.get(("output", False), ())
    input_gradients, output_gradients = (
        (marks.get(("input", True), ()), marks.get(("output", True), ())) if backward else ((), ())
    )
    operands, results = tuple(fault.operands), tuple(fault.results)
    where = "output"
    if backward and call is not None:
        bad = any(not item.is_finite for item in input_gradients)
        where = "input" if bad else "parameter"
    source, line = _source(fault.traceback)
    direction = "backward" if backward else "forward"
    first = next((item for item in results if not item.is_finite), None)
    counts = _counts(first) if first is not None else "NaN or infinities"
    step = "".join(f", step {step}" for step in fault.steps)
    text = f"check_finite: {counts} in the {direction} pass of {name}, made by "
    if call is None:
        text += f"{name} itself, outside of every module{step}.\n"
        inputs, outputs = inputs or operands, outputs or results
        argument = None
    else:
        argument = program.places[call.root] if program.places else None
        origin = f" of {argument}" if len(program.places) > 1 else ""
        text += (
            f"`{format_path(call.path)}`{origin}, a {call.module_type.__name__} "
            f"(call {call.number}{step}).\n"
        )
    text += f"  operation: {fault.operation}" + (f" at {source}\n" if source else "\n")
    text += f"    {line}\n" if line else ""
    text += _block("it got", operands) + _block("it gave", results)
    if call is not None:
        text += _block("the module's inputs", inputs) + _block("the module's outputs", outputs)
        text += _block("gradients at its outputs", output_gradients)
        text += _block("gradients at its inputs", input_gradients)
    text += _reaches(reached) + _hint(fault, backward)
    return _error(
        text,
        path=None if call is None else call.path,
        module_type=None if call is None else call.module_type,
        argument=argument,
        number=None if call is None else call.number,
        direction=direction,
        where=where,
        step=fault.steps[-1] if fault.steps else None,
        steps=fault.steps,
        inputs=inputs,
        outputs=outputs,
        output_gradients=output_gradients,
        input_gradients=input_gradients,
        operation=fault.operation,
        source=source,
        operands=operands,
        results=results,
        reached=tuple(reached),
    )


def report_call(
    name: str, seen: SeenCall, reached: Sequence[str], places: Sequence[str], reason: str
) -> NonFiniteError:
    """Says which call of a module made NaN or infinities, where nothing more is known.

    Args:
      name: of the function.
      seen: the call.
      reached: the outputs that are not finite.
      places: where the modules among the arguments stand.
      reason: why nothing more is known.
    """
    call = seen.call
    first = next(item for item in seen.outputs if not item.is_finite)
    argument = places[call.root] if places else None
    origin = f" of {argument}" if len(places) > 1 else ""
    text = (
        f"check_finite: {_counts(first)} in the forward pass of {name}, made by "
        f"`{format_path(call.path)}`{origin}, a {call.module_type.__name__} (call {call.number}).\n"
    )
    text += _block("the module's inputs", seen.inputs)
    text += _block("the module's outputs", seen.outputs)
    return _error(
        text + _reaches(reached) + reason,
        path=call.path,
        module_type=call.module_type,
        argument=argument,
        number=call.number,
        direction="forward",
        where="output",
        inputs=seen.inputs,
        outputs=seen.outputs,
        reached=tuple(reached),
    )


def _error(message: str, **attributes: Any) -> NonFiniteError:
    error = NonFiniteError(message)
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


def _counts(measured: ArrayStatistics) -> str:
    parts = [
        f"{count} {word}"
        for count, word in ((measured.nans, "NaN"), (measured.infinities, "inf"))
        if count
    ]
    return f"{' and '.join(parts)} of {measured.size} values"


def _list(items: Sequence[str]) -> str:
    shown = ", ".join(items[:_SHOWN])
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return f" in {shown}{more}" if items else ""


def _reaches(reached: Sequence[str]) -> str:
    return f"It is{_list(reached)}.\n" if reached else ""


def _block(title: str, items: Iterable[ArrayStatistics]) -> str:
    lines = [f"    {item}\n" for item in items]
    if len(lines) > _SHOWN:
        lines = [*lines[:_SHOWN], f"    and {len(lines) - _SHOWN} more\n"]
    return f"  {title}:\n{''.join(lines)}" if lines else ""


_HINTS = {
    "log": "Keep its argument above 0: `jnp.log(x + eps)`, or `jax.nn.log_softmax`",
    "sqrt": "Keep its argument above 0: `jnp.sqrt(x + eps)`",
    "div": "Keep the denominator away from 0: `x / (y + eps)`",
    "exp": "It overflows: subtract the maximum first, as `jax.nn.softmax` does",
    "pow": "It is NaN for negative numbers, and infinite at 0 with a negative exponent",
    "convert_element_type": "The values do not fit the dtype: scale them, or keep the wider one",
}


def _hint(fault: Fault, backward: bool) -> str:
    if not backward:
        return _HINTS.get(fault.operation or "", "Look at what the operation got") + "."
    if not is_backward(fault.scopes):
        hint = "The derivative of this line is infinite or NaN there, as that of `sqrt` is at 0"
    else:
        hint = "The operation is part of the derivative of this line"
    return (
        f"{hint}. `jnp.where` around it does not help, because its gradient is 0 times that: give "
        "the operation a harmless argument, `jnp.sqrt(jnp.where(x > 0, x, 1.0))`."
    )


def _source(traceback: Any) -> tuple[str | None, str]:
    """Returns the innermost place in a traceback that is neither JAX's nor ours, and its line."""
    for frame in getattr(traceback, "frames", ()):
        file = os.path.abspath(frame.file_name)
        if not file.startswith(_HIDDEN):
            place = f"{os.path.basename(file)}:{frame.line_num} (in {frame.function_name})"
            return place, linecache.getline(frame.file_name, frame.line_num).strip()
    return None, ""
