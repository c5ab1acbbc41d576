"""log.csv, and the values that wait to be read from the device."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
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

    Args:
      path: the file, or None.
      read: is told of each step's numbers once they are read, of several steps at a time.
    """

    def __init__(self, path: str | None, read: Callable[[list[tuple[int, Row]]], None]) -> None:
        self._path, self._read = path, read
        self._waiting: list[Row] = []
        self._columns: list[str] = list(_OWN)
        self._last: Row = {}

    def cut(self, step: int | None) -> None:
        """Drops what an earlier process logged after ``step``; all of it for None.

        Raises:
          RunError: the file is not one of a run.
        """
        if self._path is None or not os.path.exists(self._path):
            return
        rows = self.rows()
        kept = [row for row in rows if step is not None and int(row["step"]) <= step]
        used = {name for row in kept for name, value in row.items() if value != ""}
        self._columns = [name for name in self._columns if name in used or name in _OWN]
        self._rewrite([{name: row[name] for name in self._columns} for row in kept])

    def rows(self) -> list[Row]:
        """Returns the rows of the file, as texts; a last line that is not whole is left out."""
        if self._path is None or not os.path.exists(self._path):
            return []
        with open(self._path, newline="", encoding="utf-8") as file:
            text = file.read()
        lines = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1])))
        if lines and tuple(lines[0][:3]) != _OWN:
            raise RunError(f"{self._path} is not the log of a run; give another folder")
        self._columns = lines[0] if lines else list(_OWN)
        return [dict(zip(self._columns, line)) for line in lines[1:]]

    def put(self, step: int, epoch: int, seconds: float, values: Mapping[str, Any]) -> None:
        """Takes the values of a step, without reading them.

        Raises:
          VariableError: a value is not one number, or its name is a column of our own.
        """
        found = {}
        for name, value in values.items():
            value = value.get_value() if isinstance(value, moduli.Variable) else value
            number = isinstance(value, (bool, int, float, np.generic, np.ndarray, jax.Array))
            if not number or np.shape(value) != () or isinstance(value, Tracer):
                raise VariableError(
                    f"run.log({name}=...) takes one number; got a {type(value).__name__} of shape "
                    f"{np.shape(value) if number else None}. Log outside of jit, and one number "
                    "of several: `losses.mean()`"
                )
            if name in _OWN:
                raise VariableError(f"run.log({name}=...): the log has a column {name!r} already")
            found[name] = value
        if self._waiting and self._waiting[-1]["step"] == step:
            self._waiting[-1].update(found)
        elif found:
            self._waiting.append({"step": step, "epoch": epoch, "seconds": seconds, **found})

    def flush(self, before: int | None = None) -> None:
        """Reads what waits and writes it: of the steps before one, or all of it.

        Args:
          before: leaves this step and later ones waiting: the device may not be done with them.
        """
        ready = [row for row in self._waiting if before is None or row["step"] < before]
        if not ready:
            return
        self._waiting = self._waiting[len(ready) :]
        rows = [{name: _number(value) for name, value in row.items()} for row in _fetched(ready)]
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
        merged = bool(rows and self._last and rows[0]["step"] == int(self._last["step"]))
        if new or merged or not os.path.exists(self._path):
            old = self.rows()
            self._columns += new
            if merged:
                old[-1].update(rows.pop(0))
            self._rewrite([*old, *rows])
            return
        with open(self._path, "a", newline="", encoding="utf-8") as file:
            file.write(self._text(rows))
        self._last = rows[-1] if rows else self._last

    def _rewrite(self, rows: list[Row]) -> None:
        assert self._path is not None
        header = dict(zip(self._columns, self._columns))
        replace_file(self._path, self._text([header, *rows]))
        self._last = rows[-1] if rows else {}

    def _text(self, rows: list[Row]) -> str:
        out = io.StringIO()
        writer = csv.DictWriter(out, self._columns, restval="", lineterminator="\n")
        writer.writerows(rows)
        return out.getvalue()


def _fetched(rows: list[Row]) -> list[Row]:
    """Brings all values of some rows to the host in one go."""
    arrays = [value for row in rows for value in row.values() if isinstance(value, jax.Array)]
    jax.block_until_ready(arrays)  # one wait; device_get would begin a copy that waits for each
    values = iter(jax.device_get(arrays))
    return [
        {
            name: next(values) if isinstance(value, jax.Array) else value
            for name, value in row.items()
        }
        for row in rows
    ]


def _number(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        return value.item() if value.dtype.kind in "biuf" else float(value)
    return value
