"""The columns of a summary: those that it has of its own, and those of plugins."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from moduli import errors, plugins
from moduli_debug._module_filter import path_text
from moduli_debug._summary.rows import Row
from moduli_debug._summary.sizes import Held, Size
from moduli_debug._summary.text import (
    count_text,
    describe,
    describe_arguments,
    inline,
    number_text,
    short_dtypes,
    size_text,
)

__all__ = ["Column", "columns_for", "standard_columns"]


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a summary.

    Attributes:
      name: its heading.
      cell: ``(row, module) -> value``, where the module is the model's own at this row. None
        leaves the cell empty.
      text: writes a value; numbers get separators by default.
      total: ``(rows) -> value`` for the last line, of all rows, shown or not; None for no total.
      numeric: whether the column is aligned to the right.
      short: writes all values of the column for a terminal in which the table is too wide; as
        ``text`` writes them by default.
    """

    name: str
    cell: Callable[[Row, Any], Any]
    text: Callable[[Any], str] | None = None
    total: Callable[[Sequence[Row]], Any] | None = None
    numeric: bool = False
    short: Callable[[Sequence[Any]], Sequence[str]] | None = None

    def write(self, value: Any) -> str:
        """Formats a value of the column."""
        if value is None:
            return ""
        if self.text is not None:
            return self.text(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return count_text(value)
        return f"{value:,.4g}" if isinstance(value, float) else str(value)


def columns_for(rows: Sequence[Row]) -> list[Column]:
    """Asks the plugins for the columns of a summary.

    Raises:
      PluginError: if a plugin returns something else, or two columns have one name.
    """
    found: dict[str, tuple[Column, str]] = {}
    for plugin, contributed in plugins.collect("moduli_summary_columns", rows=rows):
        for column in contributed:
            if not isinstance(column, Column):
                raise errors.PluginError(
                    f"moduli_summary_columns of the plugin {plugin!r} returned a "
                    f"{type(column).__name__}; return moduli_debug.Column objects"
                )
            if column.name in found:
                raise errors.PluginError(
                    f"the plugins {found[column.name][1]!r} and {plugin!r} both have a column "
                    f"named {column.name!r}; switch one off with MODULI_PLUGINS=-{plugin}"
                )
            found[column.name] = column, plugin
    if not found:
        raise errors.PluginError(
            "tabulate: no plugin has columns. Those of moduli-debug come with its plugin `debug`, "
            "which is switched off (see MODULI_PLUGINS and `python -m moduli plugins`)"
        )
    return [column for column, _ in found.values()]


def standard_columns(rows: Sequence[Row]) -> list[Column]:
    """Returns moduli-debug's own columns for these rows, the first of which is the model's."""
    columns = [
        Column("path", lambda row, module: row, text=_path_text, short=_short_paths),
        Column("type", lambda row, module: row.type, text=lambda kind: kind.__name__),
        _shapes_column("inputs", _arguments, _arguments_text),
        _shapes_column("outputs", lambda row: row.outputs, describe),
    ]
    if any(row.calls != 1 for row in rows):
        columns.append(Column("calls", lambda row, module: row.calls, numeric=True))
    if rows[0].flops is not None:
        columns.append(_number_column("flops", lambda row: row.flops))
    if rows[0].vjp_flops is not None:
        columns.append(_number_column("vjp_flops", lambda row: row.vjp_flops))
    kinds = dict.fromkeys(kind for row in rows for kind in row.sizes)
    return columns + [_kind_column(kind) for kind in kinds]


def _number_column(name: str, value: Callable[[Row], float | None]) -> Column:
    return Column(
        name,
        lambda row, module: value(row) if row.calls else None,
        text=number_text,
        total=lambda rows: value(rows[0]),
        numeric=True,
    )


def _path_text(row: Row) -> str:
    return "\n".join([row.name, *(f"(= {path_text(path)})" for path in row.other_paths)])


def _short_paths(rows: Sequence[Row]) -> list[str]:
    """Formats a path below that of a module above it that is shown too."""
    shown = {row.path for row in rows}
    written = []
    for row in rows:
        path = row.full_path
        above = [path[:stop] for stop in range(len(row.path)) if path[:stop] in shown]
        rest = path[len(above[-1]) :] if above else path
        also = "".join(f" (= {path_text(path)})" for path in row.other_paths)
        written.append("  " * (len(above) - (() in shown)) + path_text(rest) + also)
    return written


def _shapes_column(name: str, value: Callable[[Row], Any], text: Callable[[Any], str]) -> Column:
    def short(values: Sequence[Any]) -> list[str]:
        return ["" if value is None else short_dtypes(text(value)) for value in values]

    return Column(name, lambda row, module: value(row), text=text, short=short)


def _arguments(row: Row) -> Any:
    return (row.args, row.kwargs) if row.calls else None


def _arguments_text(arguments: Any) -> str:
    args, kwargs = arguments
    if len(args) == 1 and not kwargs:
        return describe(args[0])
    return describe_arguments(args, kwargs, join="\n")


def _kind_column(kind: str) -> Column:
    def cell(row: Row, module: Any) -> tuple[Iterable[Held], Size] | None:
        size = row.sizes.get(kind)
        if size is None:
            return None
        return [held for held in row.held if held.kind == kind], size

    return Column(
        kind,
        cell,
        text=_kind_text,
        short=lambda values: ["" if v is None else _size_text(v[1]) for v in values],
        total=lambda rows: ([], rows[0].sizes[kind]) if kind in rows[0].sizes else None,
    )


def _kind_text(value: tuple[Iterable[Held], Size]) -> str:
    held, size = value
    lines = [
        f"{item.name}: {inline(item.value)}" + (f" (= {item.same_as})" if item.same_as else "")
        for item in held
    ]
    return "\n".join([*lines, _size_text(size)])


def _size_text(size: Size) -> str:
    return f"{count_text(size.count)} ({size_text(size.bytes)})"
