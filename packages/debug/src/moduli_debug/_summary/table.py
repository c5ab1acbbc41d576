"""A table of text, and what it looks like through rich and as HTML."""

from __future__ import annotations

import dataclasses
import html
import io
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["RichTable", "Table", "to_html", "to_text"]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
      title: what stands above.
      headings: of the columns.
      numeric: which columns are aligned to the right.
      cells: the rows; lines in a cell are separated by newlines.
      short_cells: the rows for a terminal in which the table is too wide.
      totals: the last row.
      notes: what stands below.
    """

    title: str
    headings: Sequence[str]
    numeric: Sequence[bool]
    cells: Sequence[Sequence[str]]
    short_cells: Sequence[Sequence[str]]
    totals: Sequence[str]
    notes: Sequence[str]


class RichTable:
    """A table for rich: in full where there is room, otherwise with shorter cells.

    Args:
      table: the table.
      table_kwargs: arguments of ``rich.table.Table``.
      column_kwargs: arguments of its ``add_column``.
    """

    def __init__(
        self, table: Table, table_kwargs: Mapping[str, Any], column_kwargs: Mapping[str, Any]
    ):
        self._table = table
        self._table_kwargs, self._column_kwargs = table_kwargs, column_kwargs

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        full, short = self.drawn(self._table.cells), self.drawn(self._table.short_cells)
        if _width(full) <= options.max_width:
            yield full
        elif _width(short) <= options.max_width:
            yield short
        else:
            yield self.drawn(self._table.short_cells, dense=True)

    def drawn(self, rows: Sequence[Sequence[str]], *, dense: bool = False) -> Any:
        """Returns a ``rich.table.Table``.

        Args:
          rows: its cells.
          dense: without lines between columns, and the first column in full.
        """
        import rich.box
        import rich.table
        from rich.text import Text

        table = self._table
        settings: dict[str, Any] = {"title": Text(table.title, style="bold")}
        settings |= {"caption": Text("\n".join(table.notes)), "show_footer": True}
        settings |= {"title_justify": "left", "caption_justify": "left"}
        settings["show_lines"] = any("\n" in cell for cells in rows for cell in cells)
        if dense:
            settings |= {"box": rich.box.SIMPLE, "padding": (0, 1, 0, 0), "pad_edge": False}
        drawn = rich.table.Table(**{**settings, **self._table_kwargs})
        for heading, right, total in zip(table.headings, table.numeric, table.totals, strict=True):
            column: dict[str, Any] = {"header": Text(heading), "footer": Text(total)}
            column |= {"justify": "right" if right else "left", "overflow": "fold"}
            column["no_wrap"] = right or (dense and not drawn.columns)
            drawn.add_column(**{**column, **self._column_kwargs})
        for cells in rows:
            drawn.add_row(*map(Text, cells))
        return drawn


def _width(drawn: Any) -> int:
    from rich.console import Console
    from rich.measure import Measurement

    wide = Console(file=io.StringIO(), width=100_000)
    return max(Measurement.get(wide, wide.options, drawn).maximum, 20)


def to_text(
    table: Table,
    table_kwargs: Mapping[str, Any],
    column_kwargs: Mapping[str, Any],
    console_kwargs: Mapping[str, Any],
) -> str:
    """Formats a table for the terminal if there is one, otherwise as wide as it has to be.

    Args:
      table: the table.
      table_kwargs: arguments of ``rich.table.Table``.
      column_kwargs: arguments of its ``add_column``.
      console_kwargs: arguments of ``rich.console.Console``.
    """
    from rich.console import Console

    drawn = RichTable(table, table_kwargs, column_kwargs)
    file = io.StringIO()
    terminal = sys.stdout is not None and sys.stdout.isatty()
    settings: dict[str, Any] = {"force_terminal": terminal, "force_jupyter": False}
    settings |= {**console_kwargs, "file": file}
    if not terminal and "COLUMNS" not in os.environ:
        settings.setdefault("width", _width(drawn.drawn(table.cells)))
    Console(**settings).print(drawn)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


_FONT = "color:inherit;font-family:ui-monospace,monospace;font-size:12px;line-height:1.35"
_CELL = "padding:3px 10px;vertical-align:top;white-space:pre;border-top:1px solid #8886"


def to_html(table: Table) -> str:
    """Formats a table as a piece of HTML that stands alone."""

    def cell(text: str, right: bool, tag: str, more: str = "") -> str:
        align = "right" if right else "left"
        return f'<{tag} style="{_CELL};text-align:{align}{more}">{html.escape(text)}</{tag}>'

    def row(cells: Sequence[str], tag: str, more: str = "") -> str:
        inner = "".join(cell(t, r, tag, more) for t, r in zip(cells, table.numeric, strict=True))
        return f"<tr>{inner}</tr>"

    bold = ";font-weight:bold;border-top:2px solid #888"
    parts = [f'<table style="border-collapse:collapse;{_FONT}">']
    parts.append(
        '<caption style="caption-side:top;text-align:left;font-weight:bold;padding:4px 10px">'
        f"{html.escape(table.title)}</caption>"
    )
    parts.append(f"<thead>{row(table.headings, 'th')}</thead><tbody>")
    parts.extend(row(cells, "td") for cells in table.cells)
    parts.append(f"</tbody><tfoot>{row(table.totals, 'td', bold)}</tfoot></table>")
    for note in table.notes:
        parts.append(f'<div style="{_FONT};padding:2px 10px">{html.escape(note)}</div>')
    return '<div style="overflow-x:auto">' + "".join(parts) + "</div>"
