"""What tabulate returns: text that also is data, a rich table and HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from moduli import errors
from moduli_debug._summary.columns import Column
from moduli_debug._summary.rows import Row
from moduli_debug._summary.sizes import Size
from moduli_debug._summary.table import RichTable, Table, to_html, to_text
from moduli_debug._summary.text import count_text, size_text

__all__ = ["Summary", "make_summary"]


class Summary(str):
    """A summary of a model: a str, which is the table, and the numbers that it shows.

    In a notebook it shows itself as HTML, and ``rich.print`` draws it for its own console.

    Attributes:
      rows: the modules that the table shows.
      sizes: count and bytes in the whole model by kind, each shared object once.
      flops: operations of one call of the model; None if not counted.
      vjp_flops: operations of one call and its backward pass; None if not counted.
      notes: what could not be counted, and why.

    Example:
      >>> import jax, jax.numpy as jnp, moduli as nnx
      >>> from moduli_debug import tabulate
      >>> model = nnx.eval_shape(lambda: nnx.Linear(3, 4, rngs=nnx.Rngs(0)))
      >>> summary = tabulate(model, jax.ShapeDtypeStruct((2, 3), jnp.float32), compute_flops=True)
      >>> summary.rows[0].sizes["Param"]
      Size(count=16, bytes=64)
      >>> isinstance(summary, str), summary.column("flops")
      (True, [56.0])
    """

    rows: list[Row]
    sizes: Mapping[str, Size]
    flops: float | None
    vjp_flops: float | None
    notes: list[str]
    _values: Mapping[str, Sequence[Any]]
    _table: Table
    _drawing: tuple[Mapping[str, Any], Mapping[str, Any]]

    def column(self, name: str) -> list[Any]:
        """Returns the values of a column, one for each row.

        Args:
          name: its heading.

        Raises:
          PathError: if there is no such column.
        """
        if name not in self._values:
            raise errors.PathError(
                f"this summary has no column {name!r}; its columns are {', '.join(self._values)}"
            )
        return list(self._values[name])

    def __repr__(self) -> str:
        return str(self)

    def __rich__(self) -> Any:
        return RichTable(self._table, *self._drawing)

    def _repr_html_(self) -> str:
        return to_html(self._table)


def make_summary(
    rows: Sequence[tuple[Row, Any]],
    shown: Sequence[tuple[Row, Any]],
    columns: Sequence[Column],
    notes: Sequence[str],
    *,
    table_kwargs: Mapping[str, Any],
    column_kwargs: Mapping[str, Any],
    console_kwargs: Mapping[str, Any],
) -> Summary:
    """Makes a summary of rows.

    Args:
      rows: pairs (row, module) of the whole model, itself first.
      shown: those that the table shows.
      columns: what it shows of them.
      notes: what could not be counted, and why.
      table_kwargs: see ``tabulate``.
      column_kwargs: see ``tabulate``.
      console_kwargs: see ``tabulate``.
    """
    values = {column.name: [_cell(column, *pair) for pair in shown] for column in columns}
    cells = [[column.write(value) for value in values[column.name]] for column in columns]
    short_cells = [
        text if column.short is None else column.short(values[column.name])
        for column, text in zip(columns, cells, strict=True)
    ]
    every = [row for row, _ in rows]
    totals = ["" if c.total is None else c.write(c.total(every)) for c in columns]
    model = every[0]
    table = Table(
        title=f"{model.type.__name__} Summary",
        headings=[column.name for column in columns],
        numeric=[column.numeric for column in columns],
        cells=list(zip(*cells, strict=True)),
        short_cells=list(zip(*short_cells, strict=True)),
        totals=[totals[0] or "total", *totals[1:]],
        notes=[_total_text(model.sizes), *notes],
    )
    drawing = dict(table_kwargs), dict(column_kwargs)
    summary = Summary(to_text(table, *drawing, console_kwargs))
    summary.rows, summary.notes = [row for row, _ in shown], list(notes)
    summary.sizes, summary.flops, summary.vjp_flops = model.sizes, model.flops, model.vjp_flops
    summary._values, summary._table, summary._drawing = values, table, drawing
    return summary


def _cell(column: Column, row: Row, module: Any) -> Any:
    try:
        return column.cell(row, module)
    except Exception as error:
        error.add_note(f"tabulate: raised by the column {column.name!r} for {row.name!r}")
        raise


def _total_text(sizes: Mapping[str, Size]) -> str:
    def write(size: Size) -> str:
        return f"{count_text(size.count)} ({size_text(size.bytes)})"

    parameters = sizes.get("Param", Size(0, 0))
    everything = sum(sizes.values(), start=Size(0, 0))
    text = f"Total Parameters: {write(parameters)}"
    return (
        text if everything == parameters else f"{text}; with all other state: {write(everything)}"
    )
