"""The page of a training report: one HTML file with everything inside of it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from moduli import errors
from moduli_debug._report.figures import FIGURES, import_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from moduli_debug._report.training_report import TrainingReport

__all__ = ["page"]

_SHOWN = 6  # paths in a note
_DPI = 144  # dots an inch: one and a half for each pixel of a usual screen

# The policy lets a browser load nothing from anywhere.
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
      content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
  body {{ font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
         max-width: 1100px; margin: 0 auto; padding: 1rem 1.5rem 4rem; }}
  h1 {{ margin-bottom: 0; }}
  h2 {{ margin-top: 2.5rem; border-bottom: 1px solid #ccc; }}
  p, li {{ max-width: 75ch; }}
  a {{ color: #00588c; }}
  img {{ max-width: 100%; height: auto; }}
  section {{ overflow-x: auto; }}
  table {{ border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }}
  caption {{ text-align: left; font-weight: bold; padding: 1rem 0 .25rem; }}
  th, td {{ text-align: right; padding: .2rem .9rem .2rem 0; border-bottom: 1px solid #e5e5e5;
           white-space: nowrap; }}
  th:first-child, td:first-child {{ text-align: left; }}
  thead th {{ border-bottom: 1px solid #888; vertical-align: bottom; }}
  tbody th {{ font-weight: normal; }}
  @media (max-width: 40rem) {{
    body {{ padding: 1rem 1rem 3rem; }}
    img.wide {{ max-width: none; width: 44rem; }}  /* its section scrolls */
  }}
  .note {{ border-left: 4px solid #D55E00; padding-left: .75rem; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{summary}</p>
<nav>{links}</nav>
{sections}
</body>
</html>
"""

_COLUMNS = (
    ("size", "size"),
    ("mean", "mean"),
    ("std", "std"),
    ("min", "min"),
    ("max", "max"),
    ("norm", "norm"),
    ("zero_fraction", "zeros"),
    ("nonfinite_fraction", "not finite"),
    ("dead_units", "dead units"),
    ("update_ratio", "|update| / |weight|"),
)
_CAPTIONS = {
    "parameters": "Parameters",
    "gradients": "Gradients",
    "activations": "Activations",
    "updates": "Updates",
}


def page(report: TrainingReport) -> str:
    """Formats the page of a report.

    Args:
      report: the report.

    Raises:
      MissingPluginError: if matplotlib is not installed.
      StructureError: if nothing was recorded.
    """
    import_matplotlib()
    steps = list(report.steps)
    if not steps:
        raise errors.StructureError(
            f"{report!r} has nothing to show; call `report.record(step, model=model, grads=grads)` "
            "in the training loop first"
        )
    name_of_step = html.escape(report.step_name)
    sections = [("notes", "What stands out", _notes(report))]
    for name in report.available():
        figure = FIGURES[name]
        content = f"<p>{html.escape(figure.text)}</p>\n" + _image(report.figure(name), figure.title)
        sections.append((name, figure.title, content))
    if report.rows(step=steps[-1]):
        sections.append(
            ("table", f"All tensors at {name_of_step} {steps[-1]}", _tables(report, steps[-1]))
        )
    last = f" to {steps[-1]:,}" if len(steps) > 1 else ""
    span = f"{name_of_step} {steps[0]:,}{last}"
    count = f"{len(steps):,} record{'s' if len(steps) > 1 else ''}"
    return _PAGE.format(
        title=html.escape(report.title),
        summary=f"{count}, {span}.",
        links=" · ".join(f'<a href="#{name}">{title}</a>' for name, title, _ in sections),
        sections="\n".join(
            f'<section id="{name}"><h2>{title}</h2>\n{content}</section>'
            for name, title, content in sections
        ),
    )


def _image(figure: Figure, text: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    # As wide as it was drawn, at 96 pixels an inch, so that all figures have letters of one size.
    width = round(figure.get_figwidth() * 96)
    form = f'width="{width}" class="{"wide" if width > 700 else "narrow"}"'
    return f'<img {form} alt="{html.escape(text)}" src="data:image/png;base64,{data}">\n'


# -- what stands out -------------------------------------------------------------------------------


def _notes(report: TrainingReport) -> str:
    notes = [f'<li class="note">{html.escape(note)}</li>' for note in _found(report)]
    if not notes:
        return (
            "<p>All recorded values are finite; at the end no gradient is zero "
            "throughout, and no layer has half of its units dead.</p>\n"
        )
    return "<ul>\n" + "\n".join(notes) + "\n</ul>\n"


def _found(report: TrainingReport) -> Iterator[str]:
    """Yields facts that are seldom on purpose."""
    rows = report.rows()
    bad = [row for row in rows if row["nonfinite_fraction"] > 0]
    for kind in dict.fromkeys(row["kind"] for row in bad):
        first = min(row["step"] for row in bad if row["kind"] == kind)
        paths = [row["path"] for row in bad if row["kind"] == kind and row["step"] == first]
        yield f"NaN or infinity in {kind}, first at {report.step_name} {first:,}: {_listed(paths)}"
    last = [row for row in rows if row["step"] == report.steps[-1]]
    silent = [r["path"] for r in last if r["kind"] == "gradients" and r["zero_fraction"] == 1]
    if silent:
        yield f"Gradients zero throughout at the last {report.step_name}: {_listed(silent)}"
    dead = [
        f"{row['path']} ({row['dead_units']} of {row['units']})"
        for row in last
        if row["units"] and row["dead_units"] >= row["units"] / 2
    ]
    if dead:
        yield f"Half or more of the units are dead at the last {report.step_name}: {_listed(dead)}"
    metrics = report._records[-1].metrics
    lost = [name for name, value in metrics.items() if value != value or abs(value) == float("inf")]
    if lost:
        yield f"Metrics that are not finite at the last {report.step_name}: {_listed(lost)}"


def _listed(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return ", ".join(paths[:_SHOWN]) + more


# -- the table -------------------------------------------------------------------------------------


def _tables(report: TrainingReport, step: int) -> str:
    rows = report.rows(step=step)
    return "".join(
        _table(caption, [row for row in rows if row["kind"] == kind])
        for kind, caption in _CAPTIONS.items()
        if any(row["kind"] == kind for row in rows)
    )


def _table(caption: str, rows: list[dict[str, Any]]) -> str:
    columns = [
        (field, heading)
        for field, heading in _COLUMNS
        if any(row[field] is not None for row in rows)
        and (field != "nonfinite_fraction" or any(row[field] for row in rows))
    ]
    head = "".join(f'<th scope="col">{heading}</th>' for _, heading in columns)
    body = "\n".join(
        f'<tr><th scope="row">{html.escape(row["path"])}</th>'
        + "".join(f"<td>{_cell(field, row)}</td>" for field, _ in columns)
        + "</tr>"
        for row in rows
    )
    return (
        f'<table><caption>{caption}</caption>\n<thead><tr><th scope="col">path</th>{head}</tr>'
        f"</thead>\n<tbody>\n{body}\n</tbody></table>\n"
    )


def _cell(field: str, row: dict[str, Any]) -> str:
    value = row[field]
    if value is None:
        return ""
    if field == "size":
        return f"{value:,}"
    if field == "dead_units":
        return f"{value} of {row['units']}"
    if field in ("zero_fraction", "nonfinite_fraction"):
        return "0" if value == 0 else f"{value:.2%}" if value < 0.01 else f"{value:.1%}"
    return f"{value:.3g}"
