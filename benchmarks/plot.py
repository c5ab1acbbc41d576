"""The plot of the README: time relative to raw JAX over depth, and what a loop or a scan costs."""

from __future__ import annotations

import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks import calls, stacking
from benchmarks.peers import PEERS, RAW
from benchmarks.timing import ratios

COLUMNS = 2
MARKERS = "os^Dv*"
RATIO_TICKS = (0.5, 1, 2, 5, 10, 20, 50)


def plot(result: dict[str, Any], path: pathlib.Path) -> bool:
    """Draws a panel for each measurement that the result has.

    Args:
      result: as for :func:`benchmarks.report.markdown`.
      path: a file whose ending names the format (.png, .svg).

    Returns:
      Whether there was anything to draw; no file is written otherwise.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sections = result["sections"]
    panels = [(calls.JOBS[job], by, _ratios) for job, by in sections.get("calls", {}).items()]
    if "tracing" in sections:
        panels.append(("trace + lower the train step", sections["tracing"], _ratios))
    if "stacking" in sections:
        times = sections["stacking"]["times"]
        panels += [(f"forward + backward: {stacking.STAGES[s]}", times[s], _times) for s in times]
    if not panels:
        return False
    rows = -(-len(panels) // COLUMNS)
    with plt.rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}):
        figure, grid = plt.subplots(
            rows, COLUMNS, figsize=(9.5, 3.7 * rows), squeeze=False, layout="constrained"
        )
        axes = list(grid.flat)
        for axis, (title, by_depth, draw) in zip(axes, panels, strict=False):
            draw(axis, by_depth)
            axis.set_title(title, loc="left", fontweight="bold", fontsize=11)
        for axis in axes[len(panels) :]:
            axis.axis("off")
        figure.savefig(path, dpi=160)
        plt.close(figure)
    return True


def _ratios(axis: Any, by_depth: dict[Any, dict[str, list[float]]]) -> None:
    """Draws the peers' ratios to raw JAX, with quartiles."""
    depths = [int(depth) for depth in by_depth]
    axis.axhline(1.0, color="black", linewidth=1.5)
    axis.annotate("raw JAX = 1", (depths[0], 1.0), xytext=(0, -13), textcoords="offset points")
    shown = [name for name in PEERS if name != RAW and PEERS[name] != PEERS[RAW]]
    for number, name in enumerate(shown):
        if name in next(iter(by_depth.values())):
            found = [ratios(times, name, RAW) for times in by_depth.values()]
            _line(axis, depths, found, number, name)
    axis.set(yscale="log", ylabel="time / raw JAX's")
    low, high = axis.get_ylim()
    low, high = min(0.6, low), max(2.5, high)
    axis.set_ylim(low, high)
    ticks = [tick for tick in RATIO_TICKS if low <= tick <= high]
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    _finish(axis, depths)


def _times(axis: Any, by_depth: dict[Any, dict[str, list[float]]]) -> None:
    """Draws seconds, with quartiles."""
    depths = [int(depth) for depth in by_depth]
    for number, name in enumerate(next(iter(by_depth.values()))):
        found = [[t / 1e6 for t in times[name]] for times in by_depth.values()]
        _line(axis, depths, found, number, name)
    axis.set(yscale="log", ylabel="seconds")
    _finish(axis, depths)


def _line(
    axis: Any, depths: Sequence[int], found: Sequence[Sequence[float]], number: int, name: str
) -> None:
    color, middle = f"C{number}", [statistics.median(values) for values in found]
    axis.plot(depths, middle, color=color, marker=MARKERS[number % len(MARKERS)], label=name)
    if all(len(values) >= 4 for values in found):
        low, _, high = zip(*[statistics.quantiles(values, n=4) for values in found], strict=True)
        axis.fill_between(depths, low, high, color=color, alpha=0.15, linewidth=0)


def _finish(axis: Any, depths: Sequence[int]) -> None:
    axis.set(xlabel="depth", xscale="log")
    axis.set_xticks(depths, list(map(str, depths)))
    axis.minorticks_off()
    axis.grid(visible=True, alpha=0.3)
    axis.legend(fontsize=9, framealpha=0.8)
