"""log.csv, and the values that wait to be written to it."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Mapping
from typing import Any

from moduli_train._errors import RunError
from moduli_train._log.values import OWN, Row, fetched, taken

__all__ = ["Log", "replace_file"]


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
        self._columns: list[str] = list(OWN)
        self._last: Row = {}

    def cut(self, step: int | None) -> None:
        """Drops what an earlier process logged after ``step``; all of it for None."""
        if self._path is None or not os.path.exists(self._path):
            return
        kept = [row for row in self.rows() if step is not None and int(row["step"]) <= step]
        used = {name for row in kept for name, value in row.items() if value != ""}
        self._columns = [name for name in self._columns if name in used or name in OWN]
        self._rewrite([{name: row[name] for name in self._columns} for row in kept])

    def rows(self) -> list[Row]:
        """Returns the rows of the file, as texts; a last line that is not whole is left out."""
        if self._path is None or not os.path.exists(self._path):
            return []
        with open(self._path, newline="", encoding="utf-8-sig") as file:
            text = file.read()
        lines = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1])))
        if lines and tuple(lines[0][:3]) != OWN:
            raise RunError(f"{self._path} is not the log of a run; give another folder")
        self._columns = lines[0] if lines else list(OWN)
        return [dict(zip(self._columns, line)) for line in lines[1:]]

    def put(self, step: int, epoch: int, seconds: float, values: Mapping[str, Any]) -> Row:
        """Takes the values of a step, and returns them, without reading any from the device."""
        found = {name: taken(name, value) for name, value in values.items()}
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
        rows = fetched(ready)
        self._write(list(rows))
        self._read([(row["step"], {k: v for k, v in row.items() if k not in OWN}) for row in rows])

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
