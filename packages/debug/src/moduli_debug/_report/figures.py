"""The figures of a training report, drawn with matplotlib, which is imported when one is drawn.

Up to eight tensors are lines in colours and dashes that people with any colour vision tell apart
(Okabe and Ito); more are rows of a map, coloured by ``cividis`` (Nuñez, Anderton, Renslow 2018), so
that thirty layers are as legible as three.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from moduli import errors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from moduli_debug._report.training_report import TrainingReport

__all__ = ["FIGURES", "FigureOf", "import_matplotlib"]

# Okabe and Ito's colours, without the yellow that white paper swallows.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#D55E00", "#767676")
_DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), "-", "--", "-.")
_FIRST, _LAST = "#E69F00", "#0072B2"
_MISSING = "0.85"  # the grey of what has no value
_WIDTH = 11.0  # inches
_LINES = 8  # more tensors than that are drawn as a map
_ROWS = 60  # a map labels at most so many of its rows, and a grid has at most so many panels
_LABEL = 34  # characters


@dataclasses.dataclass(frozen=True)
class FigureOf:
    """A figure of the report.

    Attributes:
      title: what it shows.
      text: how to read it.
      needs: what to give to ``record`` for it.
      has_data: whether a report has what it needs.
      draw: draws it.
    """

    title: str
    text: str
    needs: str
    has_data: Callable[[TrainingReport], bool]
    draw: Callable[[TrainingReport], Figure]


def import_matplotlib() -> None:
    """Raises a MissingPluginError with the pip command unless matplotlib is installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise errors.MissingPluginError(
            "the figures of a TrainingReport need matplotlib: "
            'pip install "moduli-debug[matplotlib]" (rows() and histogram() work without it)'
        ) from error


# -- the data of a figure --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Series:
    """One statistic of several tensors over time; NaN where it was not recorded."""

    labels: list[str]
    steps: np.ndarray  # (times,)
    values: np.ndarray  # (tensors, times)
    step_name: str


def _series(report: TrainingReport, kind: str, field: str, part_of: str | None = None) -> _Series:
    rows = report.rows(kind)
    if part_of is not None:
        rows = [row for row in rows if row[part_of] is not None]
    labels = {
        row["path"]: number for number, row in enumerate({r["path"]: r for r in rows}.values())
    }
    steps = {step: number for number, step in enumerate(sorted({row["step"] for row in rows}))}
    values = np.full((len(labels), len(steps)), np.nan)
    for row in rows:
        value = row[field]
        if value is not None and part_of is not None:
            value = value / row[part_of]
        if value is not None:
            values[labels[row["path"]], steps[row["step"]]] = value
    return _Series(list(labels), np.array(list(steps)), values, report.step_name)


def _short(labels: list[str]) -> list[str]:
    """Shortens long labels in their middle, unless two would be alike."""
    short = [
        label if len(label) <= _LABEL else f"{label[:12]}…{label[13 - _LABEL :]}"
        for label in labels
    ]
    return short if len(set(short)) == len(set(labels)) else labels


# -- drawing over time -----------------------------------------------------------------------------


def _new_figure(height: float, width: float = _WIDTH, layout: Any = "constrained") -> Figure:
    import_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)
    if layout == "constrained":
        engine: Any = figure.get_layout_engine()
        engine.set(w_pad=0.1, wspace=0.06)
    return figure


def _height(count: int) -> float:
    """The height in inches of panels over time."""
    return 3.4 if count <= _LINES else 1.3 + 0.19 * min(max(count, 12), 2 * _ROWS)


def _draw_over_time(
    axes: Axes,
    series: _Series,
    label: str,
    *,
    log: bool = False,
    limits: tuple[float, float] | None = None,
    centre: float | None = None,
    named: bool = True,
) -> None:
    """Draws a statistic of several tensors by step, as lines or as a map.

    Args:
      axes: where.
      series: what.
      label: the statistic and its unit.
      log: whether values span decades.
      limits: the lowest and highest possible value.
      centre: a value to compare with, of a logarithmic statistic.
      named: whether the tensors' names stand here, and not at the panel to the left.
    """
    log = log and (centre is not None or _spans_decades(series.values))
    axes.set_xlabel(series.step_name)
    if len(series.labels) > _LINES:
        _draw_map(axes, series, label, log, limits, centre, named)
    else:
        _draw_lines(axes, series, label, log, limits, centre, named)


def _spans_decades(values: np.ndarray) -> bool:
    """Returns whether positive values are more than a power of ten apart."""
    shown = values[(values > 0) & np.isfinite(values)]
    return bool(len(shown)) and float(shown.max()) > 10 * float(shown.min())


def _draw_lines(
    axes: Axes,
    series: _Series,
    label: str,
    log: bool,
    limits: tuple[float, float] | None,
    centre: float | None,
    named: bool,
) -> None:
    if centre is not None:
        axes.axhline(centre, color="0.45", linewidth=1, zorder=1)
        axes.annotate(
            f"{centre:g}", (1, centre), xycoords=("axes fraction", "data"), xytext=(-2, 2),
            textcoords="offset points", ha="right", fontsize="small", color="0.35",
        )  # fmt: skip
    marker = "o" if len(series.steps) < 12 else None
    for number, (name, values) in enumerate(zip(_short(series.labels), series.values, strict=True)):
        shown = np.where(values > 0, values, np.nan) if log else values
        axes.plot(
            series.steps, shown, label=name, color=_COLOURS[number], linestyle=_DASHES[number],
            linewidth=1.8, marker=marker, markersize=4,
        )  # fmt: skip
    axes.set_ylabel(label + (" (log scale)" if log else ""))
    if log:
        axes.set_yscale("log")
        if centre is not None:
            low, high = axes.get_ylim()
            axes.set_ylim(min(low, centre / 4), max(high, centre * 4))
    elif limits is not None:
        room = 0.03 * (limits[1] - limits[0])
        axes.set_ylim(limits[0] - room, limits[1] + room)
        if limits == (0, 1):
            axes.yaxis.set_major_formatter(_percent_formatter())
    _integer_steps(axes, series.steps)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if named and len(series.labels) > 1:
        axes.legend(
            fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False,
            handlelength=3.2,
        )  # fmt: skip
    elif named:
        axes.set_title(series.labels[0], fontsize="medium", loc="left")


def _percent_formatter() -> Any:
    from matplotlib.ticker import PercentFormatter

    return PercentFormatter(1.0, decimals=0)


def _integer_steps(axes: Axes, steps: np.ndarray) -> None:
    from matplotlib.ticker import MaxNLocator

    if len(steps) == 1:
        axes.set_xticks(steps)
        return

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]))


def _draw_map(
    axes: Axes,
    series: _Series,
    label: str,
    log: bool,
    limits: tuple[float, float] | None,
    centre: float | None,
    named: bool,
) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm, Normalize

    values = np.ma.masked_invalid(series.values)
    extend = "neither"
    if log:
        values = np.ma.masked_less_equal(values, 0)
        low, high = float(values.min()), float(values.max())
        lowest = high / 1e8
        if low < lowest:  # the rest would be one colour
            low, extend = lowest, "min"
        if centre is not None:  # equally far both ways
            far = max(high / centre, centre / low, 10.0)
            low, high = centre / far, centre * far
        elif high <= low:
            low, high = low / 2, high * 2
        norm: Normalize = LogNorm(low, high)
    else:
        low, high = limits or (float(values.min()), float(values.max()))
        norm = Normalize(low, high if high > low else low + 1)
    colours = colormaps["cividis" if centre is None else "PuOr_r"].with_extremes(bad=_MISSING)
    rows = len(series.labels)
    edges = _edges(series.steps)
    axes.set_facecolor(_MISSING)
    mesh = axes.pcolormesh(edges, np.arange(rows + 1) - 0.5, values, norm=norm, cmap=colours)
    axes.set_ylim(rows - 0.5, -0.5)
    _name_rows(axes, series.labels if named else None, rows)
    bar = axes.figure.colorbar(mesh, ax=axes, extend=extend, pad=0.02, fraction=0.06, aspect=30)
    bar.set_label(label + (" (log scale)" if log else ""))
    if limits == (0, 1):
        bar.ax.yaxis.set_major_formatter(_percent_formatter())
    if np.ma.is_masked(values):
        grey = "zero, or no value" if log else "no value"
        axes.set_xlabel(f"{series.step_name} (grey: {grey})")
    if centre is not None:
        bar.ax.axhline(centre, color="black", linewidth=1)
    _integer_steps(axes, series.steps)


def _edges(steps: np.ndarray) -> np.ndarray:
    """Returns the edges of cells around steps."""
    if len(steps) == 1:
        return np.array([steps[0] - 0.5, steps[0] + 0.5])
    middles = (steps[1:] + steps[:-1]) / 2
    return np.concatenate(
        [[steps[0] * 1.5 - steps[1] / 2], middles, [steps[-1] * 1.5 - steps[-2] / 2]]
    )


def _name_rows(axes: Axes, labels: list[str] | None, rows: int) -> None:
    every = -(-rows // (2 * _ROWS))
    places = range(0, rows, every)
    if labels is None:
        axes.set_yticks([])
        return
    short = _short(labels)
    axes.set_yticks(list(places), [short[place] for place in places], fontsize="x-small")
    axes.tick_params(axis="y", length=0)


# -- the figures -----------------------------------------------------------------------------------


def _draw_metrics(report: TrainingReport) -> Figure:
    names = list(dict.fromkeys(name for r in report._fetched() for name in r.metrics))
    columns = min(len(names), 3)
    rows = -(-len(names) // columns)
    figure = _new_figure(3.0 * rows, _WIDTH * (0.5 if columns == 1 else 1.0))
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=False):
        pairs = [(r.step, r.metrics[name]) for r in report._fetched() if name in r.metrics]
        steps, values = np.array(pairs).T
        log = not (values <= 0).any()  # an accuracy that was zero once has no logarithm
        _draw_over_time(
            axes, _Series([name], steps, values[None], report.step_name), name, log=log, named=False
        )
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    return figure


def _side_by_side(count: int, titles: tuple[str, str]) -> tuple[Figure, Any, Any, bool]:
    """Makes a figure of two panels for so many tensors; says too whether these are lines."""
    figure = _new_figure(_height(count))
    left, right = figure.subplots(1, 2)
    left.set_title(titles[0], fontsize="medium")
    right.set_title(titles[1], fontsize="medium")
    return figure, left, right, count <= _LINES


def _draw_activations(report: TrainingReport) -> Figure:
    spread = _series(report, "activations", "std")
    mean = _series(report, "activations", "mean")
    titles = ("Spread of the outputs", "Mean of the outputs")
    figure, left, right, lines = _side_by_side(len(spread.labels), titles)
    _draw_over_time(left, spread, "standard deviation", log=True, named=not lines)
    _draw_over_time(right, mean, "mean", named=lines)
    return figure


def _draw_dead_units(report: TrainingReport) -> Figure:
    dead = _series(report, "activations", "dead_units", part_of="units")
    zeros = _series(report, "activations", "zero_fraction")
    kept = [number for number, name in enumerate(zeros.labels) if name in set(dead.labels)]
    zeros = _Series(dead.labels, zeros.steps, zeros.values[kept], zeros.step_name)
    titles = ("Dead units: zero for the whole batch", "Zeros")
    figure, left, right, lines = _side_by_side(len(dead.labels), titles)
    _draw_over_time(left, dead, "share of the units", limits=(0, 1), named=not lines)
    _draw_over_time(right, zeros, "share of the values", limits=(0, 1), named=lines)
    return figure


def _draw_gradients(report: TrainingReport) -> Figure:
    norms = _series(report, "gradients", "norm")
    if len(norms.labels) <= _LINES:
        figure = _new_figure(_height(len(norms.labels)))
        first, second = figure.subplots(1, 2, width_ratios=[1, 1.3])
    else:
        heights = [2.6, _height(len(norms.labels))]
        figure = _new_figure(sum(heights))
        first, second = figure.subplots(2, 1, height_ratios=heights)
    whole = np.sqrt(np.nansum(norms.values**2, axis=0, keepdims=True))
    first.set_title("All gradients together", fontsize="medium")
    second.set_title("By parameter", fontsize="medium")
    everything = _Series(["all"], norms.steps, whole, norms.step_name)
    _draw_over_time(first, everything, "norm of the gradient", log=True, named=False)
    _draw_over_time(second, norms, "norm of the gradient", log=True)
    return figure


def _draw_updates(report: TrainingReport) -> Figure:
    ratios = _series(report, "updates", "update_ratio")
    figure = _new_figure(_height(len(ratios.labels)))
    axes = figure.subplots()
    _draw_over_time(axes, ratios, "|update| / |weight|", log=True, centre=1e-3)
    return figure


def _draw_parameters(report: TrainingReport) -> Figure:
    norms = _series(report, "parameters", "norm")
    spread = _series(report, "parameters", "std")
    titles = ("Norm of the parameters", "Spread of the parameters")
    figure, left, right, lines = _side_by_side(len(norms.labels), titles)
    _draw_over_time(left, norms, "norm", log=True, named=not lines)
    _draw_over_time(right, spread, "standard deviation", log=True, named=lines)
    return figure


def _draw_histograms(report: TrainingReport, kind: str) -> Figure:
    """A grid of histograms of the first and the last record, one panel for each tensor."""
    logarithmic = kind == "gradients"
    paths = list(dict.fromkeys(row["path"] for row in report.rows(kind)))
    shown = paths[:_ROWS]
    columns = min(len(shown), 4)
    rows = -(-len(shown) // columns)
    height, width = 1.45 * rows + 0.9, _WIDTH * (1 if columns > 2 else 0.5)
    figure = _new_figure(height, width, layout=None)  # its own is slow with so many panels
    figure.subplots_adjust(
        left=0.35 / width, right=1 - 0.15 / width, bottom=0.65 / height, top=1 - 0.5 / height,
        wspace=0.08, hspace=0.55,
    )  # fmt: skip
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    found = {path: _first_and_last(report, kind, path) for path in shown}
    bounds = _common_bounds(found) if logarithmic else None
    for axes, path, name in zip(panels, shown, _short(shown), strict=False):
        steps = found[path]
        styles = [(_FIRST, "--")] * (len(steps) - 1) + [(_LAST, "-")]
        for (step, (counts, edges)), (colour, style) in zip(steps.items(), styles, strict=True):
            counts, edges = _merged(counts, edges, most=2 if logarithmic else 4)
            shares = counts / max(counts.max(), 1)
            axes.stairs(
                shares, edges, color=colour, linestyle=style, linewidth=1.3,
                label=f"{report.step_name} {step}",
                fill=False,
            )  # fmt: skip
            if colour == _LAST:
                axes.stairs(shares, edges, color=colour, alpha=0.18, fill=True)
        if not any(counts.any() for counts, _ in steps.values()):
            nothing = "all zero" if logarithmic else "nothing finite"
            axes.text(0.5, 0.4, nothing, transform=axes.transAxes, ha="center", fontsize=8)
        axes.set_title(name, fontsize=8, loc="left", pad=3)
        if bounds is not None:
            axes.set_xscale("log")
            axes.set_xlim(*bounds)
        axes.set_yticks([])
        axes.set_ylim(bottom=0)
        _few_ticks(axes, logarithmic)
        axes.spines[["top", "right", "left"]].set_visible(False)
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    more = f"; the first {len(shown)} of {len(paths)}" if len(paths) > len(shown) else ""
    what = "magnitude, zeros left out (log scale)" if logarithmic else "value"
    figure.supxlabel(what + more, fontsize="medium", y=0.08 / height, va="bottom")
    figure.supylabel("count / highest count", fontsize="medium", x=0.05 / width)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="upper right", bbox_to_anchor=(1, 1), ncols=2, fontsize="small",
        frameon=False,
    )  # fmt: skip
    return figure


def _merged(counts: np.ndarray, edges: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Merges neighbouring bins of a histogram that has too few counts for so many bins."""
    factor = min(1 if counts.sum() > 20_000 else 2 if counts.sum() > 500 else 4, most)
    return counts.reshape(-1, factor).sum(axis=1), edges[::factor]


def _few_ticks(axes: Axes, logarithmic: bool) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    if logarithmic:
        axes.xaxis.set_major_locator(LogLocator(numticks=4))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=3))
    axes.tick_params(axis="x", labelsize="x-small", pad=2)
    axes.xaxis.get_offset_text().set_fontsize("x-small")


def _first_and_last(report: TrainingReport, kind: str, path: str) -> dict[int, Any]:
    steps = [
        record.step
        for record in report._fetched()
        if record.counts is not None and any(t[:2] == (kind, path) for t in record.tensors)
    ]
    return {
        step: report.histogram(kind, path, step=step)
        for step in dict.fromkeys([steps[0], steps[-1]])
    }


def _common_bounds(found: dict[str, dict[int, Any]]) -> tuple[float, float]:
    """Returns the magnitudes between which all counts of several histograms lie."""
    edges = next(iter(next(iter(found.values())).values()))[1]
    filled = sum(counts for steps in found.values() for counts, _ in steps.values()) > 0
    places = np.flatnonzero(filled)
    if not len(places):
        return float(edges[0]), float(edges[-1])
    return float(edges[places[0]]), float(edges[places[-1] + 1])


# -- what there is ---------------------------------------------------------------------------------


def _has_kind(kind: str) -> Callable[[TrainingReport], bool]:
    return lambda report: any(t.kind == kind for r in report._records for t in r.tensors)


def _has_units(report: TrainingReport) -> bool:
    return any(t.units is not None for r in report._records for t in r.tensors)


def _has_ratios(report: TrainingReport) -> bool:
    return any(row["update_ratio"] is not None for row in report.rows("updates"))


FIGURES = {
    "metrics": FigureOf(
        "Metrics",
        "The numbers that the program recorded.",
        "metrics={'loss': loss}",
        lambda report: any(record.metrics for record in report._records),
        _draw_metrics,
    ),
    "activations": FigureOf(
        "Activations",
        "Standard deviation and mean of what each module returns, over the batch and all units. A "
        "spread that shrinks or grows by the same factor from layer to layer is a signal that "
        "vanishes or explodes.",
        "activations=moduli.capture(model, outputs='**')(x)[1]",
        _has_kind("activations"),
        _draw_activations,
    ),
    "dead_units": FigureOf(
        "Dead units",
        "A unit is dead if it is zero for the whole batch, at all positions: a ReLU lets no "
        "gradient through to it. Next to it, the share of all values that are zero.",
        "activations=moduli.capture(model, outputs='**')(x)[1]",
        _has_units,
        _draw_dead_units,
    ),
    "gradients": FigureOf(
        "Gradients",
        "Euclidean norm of the gradient of each parameter, and of all of them together, which is "
        "what clipping by the global norm sees.",
        "grads=grads",
        _has_kind("gradients"),
        _draw_gradients,
    ),
    "gradient_histograms": FigureOf(
        "Histograms of the gradients",
        "Magnitudes of the gradients at the first and at the last record; the highest bin of each "
        "is as high as the panel. All panels have the same scale.",
        "grads=grads",
        _has_kind("gradients"),
        lambda report: _draw_histograms(report, "gradients"),
    ),
    "updates": FigureOf(
        "Update-to-weight ratio",
        "Norm of a parameter's update over the norm of the parameter. About 0.001 is a common rule "
        "of thumb; far below it a parameter hardly learns, far above it the learning rate may be "
        "too high. Parameters that are zero have no ratio.",
        "model=model, updates=updates",
        _has_ratios,
        _draw_updates,
    ),
    "parameters": FigureOf(
        "Parameters",
        "Euclidean norm and standard deviation of each parameter.",
        "model=model",
        _has_kind("parameters"),
        _draw_parameters,
    ),
    "parameter_histograms": FigureOf(
        "Histograms of the parameters",
        "Values of the parameters at the first and at the last record; the highest bin of each is "
        "as high as the panel. Each panel has its own scale; values more than four standard "
        "deviations from the mean are in the outermost bins.",
        "model=model",
        _has_kind("parameters"),
        lambda report: _draw_histograms(report, "parameters"),
    ),
}
