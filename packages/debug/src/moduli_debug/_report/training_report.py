"""TrainingReport: what happens in a model while it learns, in numbers that stay small."""

from __future__ import annotations

import dataclasses
import difflib
import operator
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.core import Tracer

import moduli
from moduli import errors
from moduli_debug._report.measurements import KINDS, Measurements, Tensor, measure
from moduli_debug._report.statistics import FIELDS, edges_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["TrainingReport"]

_HISTOGRAMS = 32  # of so many steps are the histograms kept, evenly spread


@dataclasses.dataclass
class _Record:
    """What was measured at one step; arrays of the device until somebody looks."""

    step: int
    tensors: tuple[Tensor, ...]
    numbers: Any  # (tensors, fields)
    counts: Any  # (tensors, bins), or None where histograms were dropped
    dead: list[Any]  # of each tensor that has units
    metrics: dict[str, Any]
    read: bool = False

    def fetch(self) -> None:
        """Brings the numbers to the host, and lets go of the device's arrays."""
        if not self.read:
            arrays = self.numbers, self.counts, self.dead, self.metrics
            numbers, counts, dead, metrics = jax.device_get(arrays)
            self.numbers = np.asarray(numbers, np.float64).reshape(-1, len(FIELDS))
            self.counts = None if counts is None else np.asarray(counts)
            self.dead = list(map(int, dead))
            self.metrics = {name: float(metrics[name]) for name in self.metrics}
            self.read = True


class TrainingReport:
    """Statistics of parameters, gradients, activations and updates over a training run.

    Each :meth:`record` keeps a few numbers for each tensor, no array and no model, and does not
    wait for the device. ``rows`` has them as data, :meth:`figure` draws them, and :meth:`save`
    writes one HTML page with all figures inside. Figures need matplotlib,
    ``pip install "moduli-debug[matplotlib]"``.

    The statistics are of the finite numbers of a tensor: ``mean``, ``std``, ``min``, ``max``, the
    Euclidean ``norm``; further ``zero_fraction`` and ``nonfinite_fraction`` of all its numbers.
    There are also:

    ``dead_units``
        Of an activation: how many of its ``units``, the places of the last axis (channels), are
        zero at all other places: for the whole batch, each position, each call. A ReLU whose unit
        is dead passes no gradient to it (Lu et al.). Values with one axis have no units.
    ``update_ratio``
        The norm of a parameter's update over the norm of the parameter; about 0.001 is a common
        rule of thumb (Karpathy). None while the parameter is zero.

    Args:
      title: the heading of the page.
      parameters: which Variables of the model are parameters, a filter.
      step_name: what the pictures call a step, such as ``"epoch"``.

    Example:
      >>> import jax.numpy as jnp, moduli as nnx
      >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> report = nnx.TrainingReport()
      >>> for step in range(3):
      ...     loss, grads = nnx.value_and_grad(lambda model: model(jnp.ones((4, 2))).sum())(model)
      ...     report.record(step, model=model, grads=grads, metrics={"loss": loss})
      >>> [(row["kind"], row["path"], row["norm"]) for row in report.rows(step=2, path="bias")]
      [('parameters', 'bias', 0.0), ('gradients', 'bias', 6.928203105926514)]
      >>> report.available()
      ('metrics', 'gradients', 'gradient_histograms', 'parameters', 'parameter_histograms')

    Reference:
      Lu, Shin, Su, Karniadakis, "Dying ReLU and Initialization", 2019,
      https://arxiv.org/abs/1903.06733; Karpathy, "CS231n: Neural Networks Part 3, Learning and
      Evaluation", https://cs231n.github.io/neural-networks-3/#ratio
    """

    def __init__(
        self,
        title: str = "Training report",
        *,
        parameters: Any = moduli.Param,
        step_name: str = "step",
    ):
        self.title, self.step_name = title, step_name
        self._parameters = parameters
        self._records: list[_Record] = []
        self._stride = 1
        self._numbered = 0

    # -- recording ---------------------------------------------------------------------------

    def measure(
        self,
        *,
        model: moduli.Module | Mapping[Any, Any] | None = None,
        grads: Mapping[Any, Any] | None = None,
        activations: Mapping[Any, Any] | None = None,
        updates: Mapping[Any, Any] | None = None,
        before: Mapping[Any, Any] | None = None,
    ) -> Measurements:
        """Computes statistics without recording them; for use inside of a jitted step.

        Args:
          model: the model, or a State of its parameters.
          grads: a State of gradients, as :func:`moduli.grad` returns it.
          activations: a State of captured outputs, ``moduli.capture(model, outputs="**")(x)[1]``,
            or of sown values. The values of several calls count as one tensor.
          updates: a State of what was added to the parameters, as ``Optimizer.update`` returns it.
          before: the values of the parameters before the step, instead of ``updates``:
            ``moduli.to_pure_dict(moduli.state(model, moduli.Param))``. The statistics of the
            parameters are then those before the step, too.

        Returns:
          The statistics, a pytree of small arrays to give to :meth:`record`. Values that are not
          floating point are left out.

        Raises:
          VariableError: if something is not what it should be.
          StructureError: if there is nothing to measure, or ``before`` does not fit ``model`` or
            shares its Variables.

        Example:
          >>> import jax.numpy as jnp, moduli as nnx
          >>> report = nnx.TrainingReport()
          >>> @nnx.jit
          ... def step(model, x):
          ...     grads = nnx.grad(lambda model: model(x).sum())(model)
          ...     return report.measure(model=model, grads=grads)
          >>> report.record(0, step(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), jnp.ones((4, 2))))
          >>> len(report.rows())
          4
        """
        return measure(
            self._parameters,
            model=model,
            grads=grads,
            activations=activations,
            updates=updates,
            before=before,
        )

    def record(
        self,
        step: int,
        measurements: Measurements | None = None,
        /,
        *,
        metrics: Mapping[str, Any] | None = None,
        **tensors: Any,
    ) -> None:
        """Adds the statistics of one step.

        Args:
          step: its number, more than that of the record before.
          measurements: what :meth:`measure` returned, if it was called in the step.
          metrics: numbers by name, such as ``{"loss": loss}``.
          **tensors: without ``measurements``, what to measure: the arguments of :meth:`measure`.

        Raises:
          StructureError: if ``step`` does not come after the last one, or there is nothing to
            record.
          VariableError: if a metric is no number, or ``step`` no int.
          TraceError: inside of a transform, where there are no numbers yet.
          ShapeError: if the measurements were made under ``vmap`` or ``scan``.
        """
        step = self._checked_step(step)
        if measurements is not None and not isinstance(measurements, Measurements):
            raise errors.VariableError(
                f"TrainingReport.record: the second argument is a {type(measurements).__name__}; "
                "it takes what `report.measure(...)` returned, or name the argument: model=, grads="
            )
        if measurements is not None and tensors:
            raise errors.StructureError(
                f"TrainingReport.record: got measurements and {', '.join(tensors)}= too; give "
                "everything to `measure`, or everything to `record`"
            )
        numbers = _checked_metrics(metrics or {})
        if measurements is None and (tensors or not numbers):
            measurements = self.measure(**tensors)
        if measurements is None:
            measurements = Measurements((), [], [], [])
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((measurements, numbers))):
            raise errors.TraceError(
                "TrainingReport.record was called inside of a transform, where values are not "
                "numbers yet. Return `report.measure(...)` from the jitted function, and record "
                "what it returned: `report.record(step, measurements)`"
            )
        if sum(map(np.size, measurements.numbers)) != len(FIELDS) * len(measurements.tensors):
            raise errors.ShapeError(
                "TrainingReport.record: the measurements have more axes than one step's, as they "
                "do if `measure` is called under vmap or scan; call it outside, on the values that "
                "come out"
            )
        for record in self._records[-1:]:
            record.fetch()  # the device is done with it by now
        known = self._records[-1].tensors if self._records else ()
        kept = measurements.tensors if measurements.tensors != known else known
        record = _Record(
            step, kept, measurements.numbers, measurements.counts, measurements.dead, numbers
        )
        self._records.append(record)
        self._thin_histograms()

    def _checked_step(self, step: Any) -> int:
        try:
            step = operator.index(step)
        except TypeError:
            raise errors.VariableError(
                f"TrainingReport.record: step is a {type(step).__name__}; give the number of the "
                "step, an int"
            ) from None
        if self._records and step <= self._records[-1].step:
            raise errors.StructureError(
                f"TrainingReport.record: step {step} does not come after step "
                f"{self._records[-1].step}, which is recorded already; give everything of a step "
                "to one call"
            )
        return step

    def _thin_histograms(self) -> None:
        """Keeps the histograms of the last record, and of evenly spread ones before."""
        numbered = list(enumerate(self._records))
        while len(numbered) > _HISTOGRAMS * self._stride:
            self._stride *= 2
        for number, record in numbered[:-1]:
            if number % self._stride and record.counts is not None:
                record.counts = None

    # -- as data -----------------------------------------------------------------------------

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps that were recorded."""
        return tuple(record.step for record in self._records)

    def rows(
        self, kind: str | None = None, *, step: int | None = None, path: str | None = None
    ) -> list[dict[str, Any]]:
        """Returns the statistics as data, one dict for each tensor and step.

        ``pandas.DataFrame(report.rows())`` makes a table of them.

        Args:
          kind: "parameters", "gradients", "activations" or "updates"; all by default.
          step: one step alone.
          path: one path alone, such as ``"blocks/0/kernel"``.

        Returns:
          Dicts with ``step``, ``kind``, ``path``, ``size``, the statistics (see the class), and
          where they make sense ``units``, ``dead_units``, ``update_ratio``; None elsewhere.

        Raises:
          PathError: if the kind does not exist.
        """
        if kind is not None and kind not in KINDS:
            raise errors.PathError(
                f"TrainingReport.rows: there is no kind {kind!r}; the kinds are {', '.join(KINDS)}"
            )
        return [
            row
            for record in self._fetched()
            if step is None or record.step == step
            for row in _rows(record)
            if kind in (None, row["kind"]) and path in (None, row["path"])
        ]

    def histogram(
        self, kind: str, path: str, *, step: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns counts and edges of a histogram, as ``numpy.histogram`` does.

        Histograms of parameters and activations have 64 equal bins over the values, at most 4
        standard deviations around the mean. Those of gradients and updates are of the magnitudes
        without zeros, with 4 bins a decade from 1e-12 to 1e4. What lies outside is counted in the
        outermost bins. Of a long run, the histograms of 16 to 32 steps and of the last are kept.

        Args:
          kind: "parameters", "gradients", "activations" or "updates".
          path: the path, as in :meth:`rows`.
          step: the step; the last by default.

        Raises:
          PathError: if there is none.
        """
        for record in reversed(list(self._fetched())):
            if record.counts is None or step not in (None, record.step):
                continue
            for number, tensor in enumerate(record.tensors):
                if (tensor.kind, tensor.path) == (kind, path):
                    edges = edges_of(record.numbers[number])
                    if kind in ("gradients", "updates"):
                        edges = 10.0**edges
                    return record.counts[number], edges
        known = [r.step for r in self._records if r.counts is not None]
        paths = sorted({t.path for r in self._records for t in r.tensors if t.kind == kind})
        near = difflib.get_close_matches(path, paths, n=1) or paths[:1]
        raise errors.PathError(
            f"TrainingReport: there is no histogram of {kind} {path!r}"
            + (f" at step {step}" if step is not None else "")
            + (f"; did you mean {near[0]!r}?" if near and near[0] != path else "")
            + f" Histograms are kept of the steps {', '.join(map(str, known)) or '(none)'}"
        )

    def _fetched(self) -> Iterator[_Record]:
        for record in self._records:
            record.fetch()
            yield record

    # -- to look at --------------------------------------------------------------------------

    def available(self) -> tuple[str, ...]:
        """Returns the names of the figures for which something was recorded."""
        from moduli_debug._report.figures import FIGURES

        self._last_fetched()
        return tuple(name for name, figure in FIGURES.items() if figure.has_data(self))

    def figure(self, name: str) -> Figure:
        """Draws a figure, one of :meth:`available`.

        Args:
          name: ``"metrics"``, ``"activations"``, ``"dead_units"``, ``"gradients"``,
            ``"gradient_histograms"``, ``"updates"``, ``"parameters"`` or
            ``"parameter_histograms"``.

        Returns:
          A matplotlib Figure that belongs to no window; ``figure.savefig("name.png")`` writes it.

        Raises:
          MissingPluginError: if matplotlib is not installed; the text is the pip command.
          PathError: if there is no such figure, or nothing was recorded for it.
        """
        from moduli_debug._report.figures import FIGURES

        if name not in FIGURES:
            near = difflib.get_close_matches(name, FIGURES, n=1)
            raise errors.PathError(
                f"TrainingReport: there is no figure {name!r}"
                + (f"; did you mean {near[0]!r}?" if near else "")
                + f" The figures are {', '.join(FIGURES)}"
            )
        if name not in self.available():
            raise errors.PathError(
                f"TrainingReport: nothing was recorded for the figure {name!r}; it needs "
                f"`report.record(step, {FIGURES[name].needs})`"
            )
        return FIGURES[name].draw(self)

    def html(self) -> str:
        """Returns the page: all figures as images inside of it, a table, no external request."""
        from moduli_debug._report.page import page

        return page(self)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the page to a file, such as ``"report.html"``; returns its path.

        Raises:
          MissingPluginError: if matplotlib is not installed; the text is the pip command.
          StructureError: if nothing was recorded.
        """
        text = self.html()
        path = Path(path)
        path.write_text(text, encoding="utf-8")
        return path

    def _last_fetched(self) -> None:
        for record in self._records[-1:]:
            record.fetch()

    def __repr__(self) -> str:
        steps = self.steps
        span = f", steps {steps[0]} to {steps[-1]}" if steps else ""
        return f"TrainingReport({self.title!r}, {len(steps)} records{span})"


def _checked_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in metrics.items():
        number = isinstance(value, (int, float, np.generic, np.ndarray, jax.Array))
        if not number or np.shape(value) != ():
            raise errors.VariableError(
                f"TrainingReport.record: the metric {name!r} is a {type(value).__name__} of shape "
                f"{np.shape(value)}; a metric is one number, such as `losses.mean()`"
            )
    return dict(metrics)


def _rows(record: _Record) -> Iterator[dict[str, Any]]:
    norm = FIELDS.index("norm")
    weights = {
        tensor.path: numbers[norm]
        for tensor, numbers in zip(record.tensors, record.numbers, strict=True)
        if tensor.kind == "parameters"
    }
    dead = iter(record.dead)
    for tensor, numbers in zip(record.tensors, record.numbers, strict=True):
        row = {"step": record.step, "kind": tensor.kind, "path": tensor.path, "size": tensor.size}
        row |= {name: float(n) for name, n in zip(FIELDS[:7], numbers, strict=False)}
        row["units"] = tensor.units
        row["dead_units"] = None if tensor.units is None else next(dead)
        weight = weights.get(tensor.path) if tensor.kind == "updates" else None
        row["update_ratio"] = float(numbers[norm] / weight) if weight else None
        yield row


TrainingReport.__module__ = Measurements.__module__ = "moduli_debug"
