"""The report of ``digits.py``: what a run found out, drawn and put on one HTML page.

``Results`` is all that the report needs to know; the functions below turn it into figures, and
``write_report`` puts these into ``report.html`` (one file with everything inside, so it can be
mailed or kept as a CI artifact) and ``overview.png``. Nothing here knows about networks.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import MaxNLocator

# Colours which people with any kind of colour vision can tell apart (Okabe and Ito).
BLUE, ORANGE, GREY, RED = "#0072B2", "#E69F00", "#767676", "#D55E00"
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#000000", "#56B4E9")

Panel = Callable[[FigureBase, "Results"], None]


# -- what a run found out --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Epoch:
    """What one epoch of training brought.

    ``batch_*`` were measured while training, with dropout and shifted images; ``train_*`` and
    ``test_*`` after the epoch on whole, unchanged sets of images in evaluation mode.
    """

    batch_loss: float
    batch_accuracy: float
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    moved: Mapping[str, float]
    """How far each kernel moved during the epoch: norm of the change over the norm before."""


@dataclasses.dataclass(frozen=True)
class LayerView:
    """What one layer computed for some images, and the gradients of the losses for that."""

    name: str
    activations: np.ndarray
    gradients: np.ndarray


@dataclasses.dataclass(frozen=True)
class ParameterRow:
    """One parameter: its shape, its root mean square before and after training, its change."""

    name: str
    shape: tuple[int, ...]
    rms_before: float
    rms_after: float
    moved: float
    """Norm of the change over the norm before; infinite for one that started at zero."""


@dataclasses.dataclass(frozen=True)
class RoundTrip:
    """What became of the predictions when the model was saved and loaded."""

    path: Path
    equal_before: int
    """For how many test images the fresh model gave the same digit before loading,"""
    equal_after: int
    """and after it."""
    largest_difference: float
    """Between any two logits after loading."""


@dataclasses.dataclass(frozen=True)
class Results:
    """Everything that the report shows."""

    settings: Mapping[str, str]
    environment: Mapping[str, str]
    seconds: Mapping[str, float]
    history: Sequence[Epoch]
    images: np.ndarray  # (count, 8, 8), the test images
    labels: np.ndarray  # (count,)
    probabilities: np.ndarray  # (count, 10)
    before: Sequence[LayerView]
    after: Sequence[LayerView]
    parameters: Sequence[ParameterRow]
    round_trip: RoundTrip
    left_over: Sequence[str]
    """Paths of what sow and perturb put into the model and is still there; should be empty."""

    @property
    def predictions(self) -> np.ndarray:
        return self.probabilities.argmax(axis=-1)

    @property
    def mistakes(self) -> int:
        return int(np.sum(self.predictions != self.labels))

    @property
    def accuracy(self) -> float:
        return 1.0 - self.mistakes / len(self.labels)


# -- the figures -----------------------------------------------------------------------------------


def draw_curves(figure: FigureBase, results: Results) -> None:
    """Loss and accuracy by epoch."""
    history = results.history
    epochs = np.arange(1, len(history) + 1)
    lines = (
        ("training batches (dropout, shifted images)", "batch", GREY, ":"),
        ("training images, evaluation mode", "train", ORANGE, "--"),
        ("test images", "test", BLUE, "-"),
    )
    loss, accuracy = figure.subplots(1, 2)
    for label, name, colour, style in lines:
        options = {"color": colour, "linestyle": style, "linewidth": 2, "label": label}
        if len(history) < 4:
            options["marker"] = "o"  # one point makes no line
        loss.plot(epochs, [getattr(epoch, f"{name}_loss") for epoch in history], **options)
        accuracy.plot(epochs, [getattr(epoch, f"{name}_accuracy") for epoch in history], **options)
    loss.set(title="Loss", ylabel="cross-entropy in nats (log scale)", yscale="log")
    accuracy.set(title="Accuracy", ylabel="share of images that are right")
    accuracy.yaxis.set_major_formatter(_percent)
    # The first epochs would squeeze everything that is worth seeing into the top of the panel.
    lowest = min(epoch.test_accuracy for epoch in history[len(history) // 6 :])
    accuracy.set_ylim(max(0.0, lowest - 0.05), 1.005)
    for axes in (loss, accuracy):
        axes.set_xlabel("epoch")
        axes.set_xlim(0, len(history) + 1)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.grid(alpha=0.3)
    loss.legend(fontsize="small")


def _percent(share: float, _: object) -> str:
    # A panel may be higher than its bars, for the legend; more than all does not exist.
    return f"{100 * share:g}%" if share <= 1.0 else ""


def draw_confusion(figure: FigureBase, results: Results) -> None:
    """How often each digit was taken for each other one."""
    counts = np.zeros((10, 10), dtype=int)
    np.add.at(counts, (results.labels, results.predictions), 1)
    right = np.eye(10, dtype=bool)
    # Mistakes are few: in one colour scale with the right ones they could not be seen.
    colours = np.ones((10, 10, 3))
    colours[right] = (0.80, 0.89, 0.96)
    colours[~right & (counts > 0)] = (0.98, 0.80, 0.66)
    axes = figure.subplots()
    axes.imshow(colours)
    for (truth, predicted), count in np.ndenumerate(counts):
        if count:
            axes.text(
                predicted,
                truth,
                str(count),
                ha="center",
                va="center",
                fontweight="normal" if truth == predicted else "bold",
            )
    axes.set(
        title=f"{results.mistakes} of {len(results.labels)} test images are wrong",
        xlabel="predicted digit",
        ylabel="true digit",
        xticks=range(10),
        yticks=range(10),
    )
    axes.set_xticks(np.arange(0.5, 9.5), minor=True)
    axes.set_yticks(np.arange(0.5, 9.5), minor=True)
    axes.grid(which="minor", color="0.9")
    axes.tick_params(which="minor", length=0)


def draw_activations(figure: FigureBase, results: Results) -> None:
    """The distribution of every layer's output, before and after training."""
    panels = figure.subplots(1, len(results.after))
    for axes, before, after in zip(panels, results.before, results.after, strict=True):
        # The rare largest values would leave nearly all of the panel empty.
        low, high = np.quantile(
            np.concatenate([before.activations, after.activations]), [0.001, 0.999]
        )
        views = [(before.activations, ORANGE, "before"), (after.activations, BLUE, "after")]
        _histograms(axes, views, np.linspace(low, max(high, low + 1e-6), 41))
        axes.set(title=after.name, xlabel="value")
    panels[0].set_ylabel("share of all values")


def draw_gradients(figure: FigureBase, results: Results) -> None:
    """The distribution of the gradients of the losses for every layer's output."""
    panels = figure.subplots(1, len(results.after))
    # The same bins in all panels, so that layers can be compared. As gradients differ by orders of
    # magnitude, the scale is that of their logarithm.
    every = (*results.before, *results.after)
    sizes = [np.abs(view.gradients[view.gradients != 0]) for view in every if view.gradients.any()]
    bins = np.geomspace(
        min(np.quantile(size, 0.001) for size in sizes), max(size.max() for size in sizes), 51
    )
    for axes, before, after in zip(panels, results.before, results.after, strict=True):
        views = [
            (np.abs(before.gradients), ORANGE, "before"),
            (np.abs(after.gradients), BLUE, "after"),
        ]
        axes.set_xscale("log")
        _histograms(axes, views, bins)
        axes.set(title=after.name, xlabel="|gradient|, log scale")
    panels[0].set_ylabel("share of all values")


def _histograms(axes: Axes, views: Sequence[tuple[np.ndarray, str, str]], bins: np.ndarray) -> None:
    """Draws the values other than zero; the share of zeros, which has no bin, is in the legend."""
    for values, colour, label in views:
        shown = values[values != 0]
        zero = 1.0 - shown.size / values.size
        axes.hist(
            shown,
            bins=bins.tolist(),
            weights=np.full(shown.shape, 1.0 / values.size),
            histtype="stepfilled",
            facecolor=to_rgba(colour, 0.25),
            edgecolor=colour,
            linewidth=1.5,
            label=f"{label} ({zero:.0%} zero)" if zero >= 0.005 else label,
        )
    axes.set_xlim(bins[0], bins[-1])
    axes.margins(y=0.4)  # room for the legend above the highest bar
    axes.legend(loc="upper right", fontsize="small", framealpha=0.9)
    axes.yaxis.set_major_formatter(_percent)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.grid(alpha=0.3)


def draw_movement(figure: FigureBase, results: Results) -> None:
    """How far the kernels moved in each epoch, relative to their size."""
    axes = figure.subplots()
    epochs = np.arange(1, len(results.history) + 1)
    kernels = list(results.history[0].moved)
    styles = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
    for number, name in enumerate(kernels):
        axes.plot(
            epochs,
            [epoch.moved[name] for epoch in results.history],
            color=PALETTE[number % len(PALETTE)],
            linestyle=styles[number % len(styles)],
            linewidth=2,
            marker="o" if len(epochs) < 4 else None,
            label=name,
        )
    axes.set(
        title="Change of the kernels in each epoch",
        xlabel="epoch",
        ylabel="norm of change / norm (log scale)",
        yscale="log",
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def draw_mistakes(figure: FigureBase, results: Results) -> None:
    """Misclassified digits, then the least certain of the right ones."""
    sure = results.probabilities.max(axis=-1)
    wrong = results.predictions != results.labels
    # Wrong ones first, those with the greatest certainty in front; then right ones, least first.
    order = np.lexsort((np.where(wrong, -sure, sure), ~wrong))
    panels = figure.subplots(1, 8)
    for axes, index in zip(panels, order, strict=False):
        truth, predicted = results.labels[index], results.predictions[index]
        axes.imshow(results.images[index], cmap="gray_r", vmin=0.0, vmax=1.0)
        axes.set(xticks=[], yticks=[])
        colour = RED if wrong[index] else BLUE
        for spine in axes.spines.values():
            spine.set(color=colour, linewidth=2.5)
        axes.set_title("wrong" if wrong[index] else "right", color=colour, fontsize="medium")
        axes.set_xlabel(f"truth: {truth}\nprediction: {predicted}\n{sure[index]:.0%} sure")


# -- the files -------------------------------------------------------------------------------------


def write_report(
    results: Results, folder: Path, more: Mapping[str, str] | None = None
) -> tuple[Path, Path]:
    """Writes ``report.html`` and ``overview.png`` into a folder and gives their paths.

    ``more`` are pages beside it to which it has a link, by file name, and their titles.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page, overview = folder / "report.html", folder / "overview.png"
    page.write_text(_page(results, more or {}), encoding="utf-8")
    overview.write_bytes(_overview(results))
    return page, overview


def _png(figure: Figure, dpi: int) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", pad_inches=0.15)
    return buffer.getvalue()


def _headline(results: Results) -> str:
    epochs = len(results.history)
    return (
        f"{results.accuracy:.1%} of {len(results.labels)} test images are right "
        f"after {epochs} epoch{'s' if epochs > 1 else ''}"
    )


def _overview(results: Results) -> bytes:
    figure = Figure(figsize=(16, 17), layout="constrained")
    figure.suptitle(f"moduli on handwritten digits: {_headline(results)}", fontsize="xx-large")
    rows: Any = figure.subfigures(4, 1, height_ratios=[1.35, 1, 1, 0.9], hspace=0.03)
    top: Any = rows[0].subfigures(1, 2, width_ratios=[2.2, 1])
    draw_curves(top[0], results)
    draw_confusion(top[1], results)
    titled: tuple[tuple[str, Panel], ...] = (
        ("Output of each layer on the test images (sow)", draw_activations),
        ("Gradient of each image's loss for that output (perturb)", draw_gradients),
        ("Mistakes, and the least certain of the right predictions", draw_mistakes),
    )
    for row, (title, draw) in zip(rows[1:], titled, strict=True):
        row.suptitle(title, fontsize="x-large")
        draw(row, results)
    return _png(figure, dpi=100)


def _figure(draw: Panel, results: Results, size: tuple[float, float], text: str) -> str:
    figure = Figure(figsize=size, layout="constrained")
    draw(figure, results)
    data = base64.b64encode(_png(figure, dpi=150)).decode("ascii")
    # As wide as drawn (96 pixels an inch), so that the text has the same size in all figures.
    width = round(size[0] * 96)
    return f'<img width="{width}" alt="{html.escape(text)}" src="data:image/png;base64,{data}">'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def cells(tag: str, row: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"

    body = "".join(cells("td", row) for row in rows)
    return f"<table><thead>{cells('th', head)}</thead><tbody>{body}</tbody></table>"


def _summary(results: Results) -> str:
    trip = results.round_trip
    count = len(results.labels)
    rows = [
        ("Test accuracy", f"{results.accuracy:.2%} ({results.mistakes} of {count} wrong)"),
        ("Test loss", f"{results.history[-1].test_loss:.4f}"),
        (
            "Checkpoint",
            f"{trip.path.name}: after loading, {trip.equal_after} of {count} predictions of a "
            f"fresh model are equal (before: {trip.equal_before}); the largest difference between "
            f"two logits is {trip.largest_difference:g}",
        ),
        (
            "Left in the model by sow and perturb",
            ", ".join(results.left_over) if results.left_over else "nothing",
        ),
        *((f"Time, {name}", f"{value:.1f} s") for name, value in results.seconds.items()),
        *results.settings.items(),
        *results.environment.items(),
    ]
    return _table(("What", "Value"), rows)


def _parameters(results: Results) -> str:
    rows = [
        (
            row.name,
            " x ".join(map(str, row.shape)),
            f"{int(np.prod(row.shape)):,}",
            f"{row.rms_before:.4f}",
            f"{row.rms_after:.4f}",
            f"{row.moved:.3f}" if np.isfinite(row.moved) else "started at zero",
        )
        for row in results.parameters
    ]
    total = sum(int(np.prod(row.shape)) for row in results.parameters)
    rows.append(("all", "", f"{total:,}", "", "", ""))
    head = ("Parameter", "Shape", "Count", "RMS before", "RMS after", "Relative change")
    return _table(head, rows)


def _page(results: Results, more: Mapping[str, str]) -> str:
    wide = (11.4, 3.2)
    sections = (
        (
            "summary",
            "Summary",
            "A convolutional network with BatchNorm and Dropout, trained by examples/digits.py on "
            "scikit-learn's 8x8 scans.",
            _summary(results),
        ),
        (
            "curves",
            "Loss and accuracy",
            "While training, dropout and shifted images make the task harder than it is in the "
            "evaluation, so the dotted line may well be the worst of the three.",
            _figure(draw_curves, results, (11.4, 4.3), "Loss and accuracy by epoch"),
        ),
        (
            "confusion",
            "Confusion matrix",
            "Rows are the digits as they are, columns what the network took them for.",
            _figure(draw_confusion, results, (5.6, 5.6), "Confusion matrix of the test images"),
        ),
        (
            "mistakes",
            "Mistakes",
            "Wrong predictions first, the most certain in front; if there are fewer than eight, "
            "the least certain right ones follow.",
            _figure(draw_mistakes, results, (11.4, 2.5), "Digits with truth and prediction"),
        ),
        (
            "activations",
            "Activations",
            "What each layer puts out for the test images, collected with sow. The blocks end in a "
            "ReLU: the share of zeros is in the legend, the histogram shows the rest, "
            "without the outermost thousandth.",
            _figure(draw_activations, results, wide, "Histograms of each layer's output"),
        ),
        (
            "gradients",
            "Gradients",
            "The gradient of each test image's loss for the output of each layer, collected with "
            "perturb: how much a small change there would change the loss. It is zero where max "
            "pooling chose a neighbour. A trained network is sure of most images, so gradients "
            "shrink by orders of magnitude.",
            _figure(draw_gradients, results, wide, "Histograms of the gradients by layer"),
        ),
        (
            "parameters",
            "Parameters and updates",
            "How far the kernels moved in each epoch, relative to their norm: the learning rate "
            "rises during the first epoch and then falls to zero along a cosine. In the table, RMS "
            "is the root mean square of a parameter's values, and the relative change is that "
            "from the first value to the last.",
            _figure(draw_movement, results, (8.5, 4.2), "Change of each kernel by epoch")
            + _parameters(results),
        ),
    )
    body = "".join(
        f'<section id="{name}"><h2>{title}</h2><p>{text}</p>{content}</section>\n'
        for name, title, text, content in sections
    )
    targets = {f"#{name}": title for name, title, _, _ in sections} | dict(more)
    links = " · ".join(f'<a href="{target}">{title}</a>' for target, title in targets.items())
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>moduli on handwritten digits</title>
<style>
  body {{ font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
         max-width: 1100px; margin: 0 auto; padding: 1rem 1.5rem 4rem; }}
  h1 {{ margin-bottom: 0; }}
  h2 {{ margin-top: 2.5rem; border-bottom: 1px solid #ccc; }}
  p {{ max-width: 70ch; }}
  a {{ color: #00588c; }}
  img {{ max-width: 100%; height: auto; }}
  td:first-child {{ white-space: nowrap; }}
  section {{ overflow-x: auto; }}
  table {{ border-collapse: collapse; }}
  th, td {{ text-align: left; vertical-align: top; padding: .25rem 1.25rem .25rem 0;
           border-bottom: 1px solid #e5e5e5; font-variant-numeric: tabular-nums; }}
  @media (max-width: 40rem) {{
    body {{ padding: 1rem 1rem 3rem; }}
    td:first-child {{ white-space: normal; }}
    th, td {{ padding-right: .75rem; }}
    section:not(#confusion) img {{ max-width: none; width: 40rem; }}  /* these scroll */
  }}
</style>
</head>
<body>
<h1>moduli on handwritten digits</h1>
<p><strong>{html.escape(_headline(results))}.</strong></p>
<nav>{links}</nav>
{body}
</body>
</html>
"""
