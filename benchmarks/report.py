"""The report: tables of ratios in Markdown, and a plot."""

from __future__ import annotations

import pathlib
from typing import Any

from benchmarks.measure import RAW

TITLES = {"forward": "jitted forward pass", "train_step": "train step (Adam)"}


def markdown(result: dict[str, Any]) -> str:
    """Writes the tables."""
    environment = ", ".join(f"{name} {value}" for name, value in result["environment"].items())
    lines = [
        "Time of a call relative to the same computation written by hand in raw JAX (1.00), for a",
        "batch-normalised MLP of width 32 on batches of 32; medians, all in one process in turns.",
        "",
    ]
    for job, by_depth in result["jobs"].items():
        names = [name for name in next(iter(by_depth.values())) if name != RAW]
        lines.append(f"| {TITLES[job]}, depth | raw, µs | {' | '.join(names)} |")
        lines.append("|---" * (2 + len(names)) + "|")
        for depth, times in by_depth.items():
            ratios = [f"{times[name] / times[RAW]:.2f}" for name in names]
            lines.append(f"| {depth} | {times[RAW]:.0f} | {' | '.join(ratios)} |")
        lines.append("")
    if any("flax.nnx" in t for by in result["operations"].values() for t in by.values()):
        depths = list(next(iter(result["operations"].values())))
        lines.append("How many times faster than flax.nnx, by depth:")
        lines.append("")
        lines.append(f"| operation | {' | '.join(map(str, depths))} |")
        lines.append("|---" * (1 + len(depths)) + "|")
        for operation, by_depth in result["operations"].items():
            ratios = [f"{t['flax.nnx'] / t['moduli']:.1f}" for t in by_depth.values()]
            lines.append(f"| {operation} | {' | '.join(ratios)} |")
        lines.append("")
    lines.append(f"Measured with {environment}; {result['rounds']} rounds: `python -m benchmarks`.")
    return "\n".join(lines)


def plot(result: dict[str, Any], path: pathlib.Path) -> None:
    """Draws the ratios over depth, one panel a job."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    jobs = result["jobs"]
    figure, axes = plt.subplots(1, len(jobs), figsize=(5 * len(jobs), 3.6), sharey=True)
    markers = "osD^v"
    for axis, (job, by_depth) in zip(axes, jobs.items(), strict=True):
        names = list(next(iter(by_depth.values())))
        for marker, name in zip(markers, names, strict=False):
            ratios = [times[name] / times[RAW] for times in by_depth.values()]
            axis.plot(list(by_depth), ratios, marker=marker, label=name)
        axis.set(title=TITLES[job], xlabel="depth", xscale="log", yscale="log")
        axis.set_xticks(list(by_depth), list(map(str, by_depth)))
        axis.minorticks_off()
        axis.grid(visible=True, alpha=0.3)
    axes[0].set_ylabel("time relative to raw JAX")
    axes[0].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)
