"""The report: tables of ratios in Markdown, and a plot."""

from __future__ import annotations

import pathlib
import statistics
from typing import Any

from benchmarks.measure import RAW
from benchmarks.timing import ratio, ratios

TITLES = {"forward": "jitted forward pass", "train_step": "train step (Adam)"}


def markdown(result: dict[str, Any]) -> str:
    """Writes the tables."""
    environment = ", ".join(f"{name} {value}" for name, value in result["environment"].items())
    lines = [
        "Time of a call relative to the same computation written by hand in raw JAX (1.00), for a",
        "batch-normalised MLP of width 32 on batches of 32, statistics written back: the median of",
        "the ratios of all rounds, everyone in one process in turns; in brackets, their quartiles.",
        '"raw again" is raw JAX a second time: what is no further from 1 than it, is noise.',
        "",
    ]
    for job, by_depth in result["jobs"].items():
        names = [name for name in next(iter(by_depth.values())) if name != RAW]
        lines.append(f"| {TITLES[job]}, depth | raw, µs | {' | '.join(names)} |")
        lines.append("|---" * (2 + len(names)) + "|")
        for depth, times in by_depth.items():
            cells = [_cell(times, name) for name in names]
            lines.append(f"| {depth} | {statistics.median(times[RAW]):.0f} | {' | '.join(cells)} |")
        lines.append("")
    if any("flax.nnx" in t for by in result["operations"].values() for t in by.values()):
        depths = list(next(iter(result["operations"].values())))
        lines.append("How many times faster than flax.nnx, by depth:")
        lines.append("")
        lines.append(f"| operation | {' | '.join(map(str, depths))} |")
        lines.append("|---" * (1 + len(depths)) + "|")
        for operation, by_depth in result["operations"].items():
            cells = [f"{ratio(times, 'flax.nnx', 'moduli'):.1f}" for times in by_depth.values()]
            lines.append(f"| {operation} | {' | '.join(cells)} |")
        lines.append("")
    lines.append(f"Measured with {environment}; {result['rounds']} rounds: `python -m benchmarks`.")
    return "\n".join(lines)


def _cell(times: dict[str, list[float]], name: str) -> str:
    """Writes the median ratio to raw JAX, and its quartiles if there are enough rounds."""
    found = ratios(times, name, RAW)
    text = f"{statistics.median(found):.2f}"
    if len(found) < 4:
        return text
    low, _, high = statistics.quantiles(found, n=4)
    return f"{text} ({low:.2f}-{high:.2f})"


def plot(result: dict[str, Any], path: pathlib.Path) -> None:
    """Draws the ratios over depth, one panel a job."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    jobs = result["jobs"]
    figure, axes = plt.subplots(1, len(jobs), figsize=(5 * len(jobs), 3.6), sharey=True)
    markers = "os*D^v"
    for axis, (job, by_depth) in zip(axes, jobs.items(), strict=True):
        names = list(next(iter(by_depth.values())))
        for marker, name in zip(markers, names, strict=False):
            found = [ratio(times, name, RAW) for times in by_depth.values()]
            axis.plot(list(by_depth), found, marker=marker, label=name)
        axis.set(title=TITLES[job], xlabel="depth", xscale="log", yscale="log")
        axis.set_xticks(list(by_depth), list(map(str, by_depth)))
        axis.minorticks_off()
        axis.grid(visible=True, alpha=0.3)
    axes[0].set_ylabel("time relative to raw JAX")
    axes[0].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)
