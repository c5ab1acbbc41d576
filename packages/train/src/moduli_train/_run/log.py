"""log.csv, and the values that wait to be read from the device."""

from __future__ import annotations

import csv
import functools
import io
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

import moduli
from moduli.errors import VariableError
from moduli_train._errors import RunError

__all__ = ["Log", "replace_file"]

_OWN = ("step", "epoch", "seconds")
Row = dict[str, Any]


def replace_file(path: str, text: str) -> None:
    """Writes a file in one step: whoever reads it sees the old text or the new one."""
    with open(f"{path}.new", "w", newline="", encoding="utf-8") as file:
        file.write(text)
    os.replace(f"{path}.new", path)


class Log:
    """Takes values at any time, and reads them when the device is done with them.

    ``read`` is told of each step's numbers once they are read, of several steps at a time.
    """

    def __init__(self, path: str | None, read: Callable[[list[tuple[int, Row]]], None]) -> None:
        self._path, self._read = path, read
        self._waiting: list[Row] = []
        self._columns: list[str] = list(_OWN)
        self._last: Row = {}

    def cut(self, step: int | None) -> None:
        """Drops what an earlier process logged after ``step``; all of it for None."""
        if self._path is None or not os.path.exists(self._path):
            return
        kept = [row for row in self.rows() if step is not None and int(row["step"]) <= step]
        used = {name for row in kept for name, value in row.items() if value != ""}
        self._columns = [name for name in self._columns if name in used or name in _OWN]
        self._rewrite([{name: row[name] for name in self._columns} for row in kept])

    def rows(self) -> list[Row]:
        """Returns the rows of the file, as texts; a last line that is not whole is left out."""
        if self._path is None or not os.path.exists(self._path):
            return []
        with open(self._path, newline="", encoding="utf-8-sig") as file:
            text = file.read()
        lines = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1])))
        if lines and tuple(lines[0][:3]) != _OWN:
            raise RunError(f"{self._path} is not the log of a run; give another folder")
        self._columns = lines[0] if lines else list(_OWN)
        return [dict(zip(self._columns, line)) for line in lines[1:]]

    def put(self, step: int, epoch: int, seconds: float, values: Mapping[str, Any]) -> Row:
        """Takes the values of a step, and returns them, without reading any from the device."""
        found = {name: _taken(name, value) for name, value in values.items()}
        if self._waiting and self._waiting[-1]["step"] == step:
            self._waiting[-1].update(found)
        elif found:
            self._waiting.append({"step": step, "epoch": epoch, "seconds": seconds, **found})
        return found

    def flush(self, before: int | None = None) -> None:
        """Reads what waits and writes it; steps from ``before`` on may not be done: they wait."""
        ready = [row for row in self._waiting if before is None or row["step"] < before]
        if not ready:
            return
        self._waiting = self._waiting[len(ready) :]
        rows = _fetched(ready)
        self._write(list(rows))
        self._read([(row["step"], {k: v for k, v in row.items() if k not in _OWN}) for row in rows])

    def sync(self) -> None:
        """Returns when what was written is on the disk."""
        if self._path is not None and os.path.exists(self._path):
            with open(self._path, "rb") as file:
                os.fsync(file.fileno())

    def _write(self, rows: list[Row]) -> None:
        if self._path is None:
            return
        new = [name for name in {k: 0 for row in rows for k in row} if name not in self._columns]
        merged = bool(self._last and rows[0]["step"] == int(self._last["step"]))
        if new or merged or not os.path.exists(self._path):
            old = self.rows()
            self._columns += new
            if merged:
                old[-1].update(rows.pop(0))
            self._rewrite([*old, *rows])
            return
        with open(self._path, "a", newline="", encoding="utf-8") as file:
            file.write(self._text(rows))
        self._last = rows[-1]

    def _rewrite(self, rows: list[Row]) -> None:
        assert self._path is not None
        replace_file(self._path, self._text([dict(zip(self._columns, self._columns)), *rows]))
        self._last = rows[-1] if rows else {}

    def _text(self, rows: list[Row]) -> str:
        out = io.StringIO()
        csv.DictWriter(out, self._columns, restval="", lineterminator="\n").writerows(rows)
        return out.getvalue()


def _taken(name: Any, value: Any) -> Any:
    """Returns a number, or an array of one that is still on the device.

    A number on the host is read at once, as an array of NumPy may change. What a Variable holds is
    copied, as the next step may be given its buffer.
    """
    if name in _OWN or not isinstance(name, str):
        raise VariableError(
            f"run.log({name}=...): the log has a column {name!r} already"
            if name in _OWN
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


def _fetched(rows: list[Row]) -> list[Row]:
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
