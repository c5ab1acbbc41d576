"""Logged values: what is taken, and the one place where they are read from the device."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

import moduli
from moduli.errors import VariableError

__all__ = ["OWN", "Row", "fetched", "taken"]

OWN = ("step", "epoch", "seconds")  # columns that are there already
Row = dict[str, Any]


def taken(name: Any, value: Any) -> Any:
    """Returns a number, or an array of one that is still on the device.

    A number on the host is read at once, as an array of NumPy may change. What a Variable holds is
    copied, as the next step may be given its buffer.
    """
    if name in OWN or not isinstance(name, str):
        raise VariableError(
            f"run.log({name}=...): the log has a column {name!r} already"
            if name in OWN
            else f"run.log takes numbers by name; {name!r} is no text"
        )
    held = isinstance(value, moduli.Variable)
    value = value.get_value() if held else value
    shape = tuple(getattr(value, "shape", ()))
    if shape == () and not isinstance(value, Tracer):
        if isinstance(value, jax.Array) and _is_real(value.dtype):
            return jnp.copy(value) if held and value.is_fully_addressable else value
        if isinstance(value, (np.ndarray, np.generic)) and _is_real(value.dtype):
            return _number(value)
        if not isinstance(value, (jax.Array, np.ndarray, np.generic)):
            if isinstance(value, (int, float)):
                return value
            if hasattr(value, "__float__"):  # a tensor of torch, a fraction
                return value.__float__()
    kind = "Array" if isinstance(value, jax.Array) else type(value).__name__
    kind += f" of shape {shape} and dtype {value.dtype}" if hasattr(value, "dtype") else ""
    raise VariableError(
        f"run.log({name}=...) takes one number; got a {kind}. "
        + (
            "Log outside of jit: let the step return it"
            if isinstance(value, Tracer)
            else "Numbers by name are logged by `run.log(**values)`"
            if isinstance(value, Mapping)
            else "Of several numbers log one, as `losses.mean()`"
        )
    )


@functools.cache
def _is_real(dtype: Any) -> bool:
    return any(jnp.issubdtype(dtype, kind) for kind in (np.floating, np.integer, np.bool_))


def fetched(rows: list[Row]) -> list[Row]:
    """Brings all values of some rows to the host in one go."""
    held = [(r, name) for r in rows for name, v in r.items() if isinstance(v, jax.Array)]
    for row, name in held:
        if row[name].is_deleted():
            raise VariableError(
                f"run.log({name}=...) of step {row['step']}: the array was donated to a later step "
                "before it was read. Log the Variable itself, or `jnp.copy(value)`"
            )
    arrays = [row[name] for row, name in held]
    jax.block_until_ready(arrays)  # one wait; device_get would begin a copy that waits for each
    for (row, name), value in zip(held, jax.device_get(arrays)):
        row[name] = _number(value)
    return rows


def _number(value: Any) -> Any:
    return value.item() if value.dtype.kind in "biuf" else float(value)
