"""The plot of the README: time relative to raw JAX over depth, and what a loop or a scan costs."""

from __future__ import annotations

import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks import calls, stacking
from benchmarks.peers import PEERS, RAW
from benchmarks.timing import ratios

MARKERS = "os^Dv*"
TICKS = tuple(digit * 10.0**power for power in range(-3, 3) for digit in (1, 2, 5))
LEAST_RATIOS = (0.6, 2.5)  # what the axis of ratios shows at least


def plot(result: dict[str, Any], path: pathlib.Path) -> bool:
    """Draws a row of ratios to raw JAX, and a row of trace and compile times.

    Args:
      result: as for :func:`benchmarks.report.markdown`. What it does not have is left out.
      path: a file whose ending names the format (.png, .svg).

    Returns:
      Whether there was anything to draw; no file is written otherwise.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sections = result["sections"]
    of_ratios = {calls.JOBS[job]: by for job, by in sections.get("calls", {}).items()}
    if "tracing" in sections:
        of_ratios["trace + lower the train step"] = sections["tracing"]
    of_times = {}
    if "stacking" in sections:
        times = sections["stacking"]["times"]
        of_times = {f"deep model: {stacking.STAGES[stage]}": by for stage, by in times.items()}
    rows = [(panels, draw) for panels, draw in ((of_ratios, _ratios), (of_times, _times)) if panels]
    if not rows:
        return False
    with plt.rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}):
        figure = plt.figure(figsize=(10, 3.9 * len(rows)), layout="constrained")
        parts = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
        for part, (panels, draw) in zip(parts, rows, strict=True):
            axes = part.subplots(1, max(2, len(panels)), sharey=True, squeeze=False)[0]
            for axis, (title, by_depth) in zip(axes, panels.items(), strict=False):
                draw(axis, by_depth)
                axis.set_title(title, loc="left", fontweight="bold", fontsize=11)
            for axis in axes[len(panels) :]:
                axis.axis("off")
            _label_times(axes[0])
            lines, labels = axes[0].get_legend_handles_labels()
            part.legend(lines, labels, loc="outside lower center", ncols=5, frameon=False)
        figure.savefig(path, dpi=160)
        plt.close(figure)
    return True


def _ratios(axis: Any, by_depth: dict[Any, dict[str, list[float]]]) -> None:
    """Draws the peers' ratios to raw JAX, with quartiles."""
    depths = [int(depth) for depth in by_depth]
    axis.axhline(1.0, color="black", linewidth=1.5, label="raw JAX = 1")
    shown = [name for name in PEERS if PEERS[name] != PEERS[RAW]]
    for number, name in enumerate(shown):
        if name in next(iter(by_depth.values())):
            found = [ratios(times, name, RAW) for times in by_depth.values()]
            _line(axis, depths, found, number, name)
    axis.set(yscale="log")
    low, high = axis.get_ylim()
    axis.set_ylim(min(LEAST_RATIOS[0], low), max(LEAST_RATIOS[1], high))
    axis.set_ylabel("time / raw JAX's" if axis.get_subplotspec().is_first_col() else "")
    _label_depths(axis, depths)


def _times(axis: Any, by_depth: dict[Any, dict[str, list[float]]]) -> None:
    """Draws seconds, with quartiles."""
    depths = [int(depth) for depth in by_depth]
    for number, name in enumerate(next(iter(by_depth.values()))):
        found = [[t / 1e6 for t in times[name]] for times in by_depth.values()]
        _line(axis, depths, found, number, name)
    axis.set(yscale="log")
    axis.set_ylabel("seconds" if axis.get_subplotspec().is_first_col() else "")
    _label_depths(axis, depths)


def _line(
    axis: Any, depths: Sequence[int], found: Sequence[Sequence[float]], number: int, name: str
) -> None:
    color, middle = f"C{number}", [statistics.median(values) for values in found]
    axis.plot(depths, middle, color=color, marker=MARKERS[number % len(MARKERS)], label=name)
    if all(len(values) >= 4 for values in found):
        low, _, high = zip(*[statistics.quantiles(values, n=4) for values in found], strict=True)
        axis.fill_between(depths, low, high, color=color, alpha=0.15, linewidth=0)


def _label_depths(axis: Any, depths: Sequence[int]) -> None:
    axis.set(xlabel="depth", xscale="log")
    axis.set_xticks(depths, list(map(str, depths)))
    axis.minorticks_off()
    axis.grid(visible=True, alpha=0.3)


def _label_times(axis: Any) -> None:
    """Formats plain numbers on the shared log axis of a row."""
    low, high = axis.get_ylim()
    ticks = [tick for tick in TICKS if low <= tick <= high]
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
