"""Run: the user keeps the loop, the iterator remembers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import moduli
from moduli.errors import VariableError
from moduli_train._log.record import write_report
from moduli_train._run.arguments import whole
from moduli_train._run.session import Session, Steps

__all__ = ["Run"]


class Run(Session):
    """What stands around a training loop: resuming, logging, progress, signals.

    As a context manager it fills the nodes with the newest checkpoint of the folder, and
    :meth:`steps` goes on from there. A run that was killed and started again ends with the same
    values, bit by bit, as one that was not. See the guide, docs/training.md.

    Args:
      folder: for checkpoints, ``log.csv`` and ``run.json``; without one nothing is written.
      data: an iterable, :class:`Batches`, a callable ``epoch -> iterable``, or what can say where
        it stands (``get_state``/``set_state``, ``state_dict``/``load_state_dict``).
      save_every: steps from one checkpoint to the next; by default only the end is saved.
      keep: how many checkpoints to keep, besides the best; None keeps all.
      best: a logged metric, ``"loss"`` or ``("accuracy", "max")``; its best checkpoint is kept.
      patience: ends the run after so many values of ``best`` that are no better.
      log_every: steps after which logged values are read, written and shown.
      on_nonfinite: whether a loss that is NaN or infinite raises or warns.
      prefetch: how many batches a thread reads ahead.
      progress: False shows nothing.
      tensorboard: whether to write files for TensorBoard, too.
      format: of the checkpoints.
      asynchronous: whether the step after a save begins before the file is written.
      unsaved: names of nodes that the step changes and that need not be saved.
      **nodes: all that the step changes: ``model=``, ``optimizer=``, ``metrics=``, ``rngs=``.

    Attributes:
      step: the step that is under way, or done; the first is 1.
      epoch: the epoch of its batch, from 0.
      last: the values that were read last, by name; a resume brings them back.
      nodes: the nodes, by name.

    Raises:
      RunError: (when it is entered) the folder has a run of another model or other data.

    Example:
      >>> import jax.numpy as jnp, moduli as nnx, tempfile
      >>> def train(folder, steps):
      ...     total = nnx.Dict({"value": nnx.Param(jnp.zeros(()))})
      ...     with nnx.Run(folder, model=total, data=[1.0, 2.0], progress=False) as run:
      ...         first = run.step
      ...         for batch in run.steps(steps):
      ...             total["value"].value += batch
      ...             run.log(total=total["value"])
      ...     return first, float(total["value"].value)
      >>> folder = tempfile.mkdtemp()
      >>> train(folder, 3), train(folder, 4)
      ((0, 4.0), (3, 6.0))
    """

    def __repr__(self) -> str:
        folder = "" if self._folder is None else f"{os.fspath(self._folder)!r}, "
        values = "".join(f", {name}={value:.4g}" for name, value in self.last.items())
        end = ", stopped" if self.stopped else ""
        return f"Run({folder}step={self.step}, epoch={self.epoch}{values}{end})"

    @property
    def best(self) -> tuple[int, float] | None:
        """The step with the best value of the metric ``best``, and the value."""
        return None if self._best.value is None else (self._best.step, self._best.value)

    # -- the loop

    def steps(
        self, total: int, *, batch_sharding: Any = None, prefetch: int | None = None
    ) -> Iterator[Any]:
        """Yields batches until ``total`` steps are done, those before a resume included.

        Without data it yields the numbers of the steps, from 0.

        Args:
          total: the number of the last step.
          batch_sharding: a sharding, or a tree of them, that lays each batch out over the devices
            of all processes. Of :class:`Batches` each process takes its rows; other data gives
            each process its own.
          prefetch: how many batches a thread reads ahead; by default that of the run.

        Raises:
          DataEndedError: there are no more batches.
          NonFiniteLossError: a loss that was logged is not finite.
        """
        self._check_open("steps(...)")
        last = whole("run.steps(total): total", total, 0)
        self._finish_step()
        self._asked = True
        if prefetch is not None:
            self._feed.prefetch = whole("prefetch=", prefetch, 0)
        return Steps(self, last, batch_sharding)

    def every(self, steps: int) -> bool:
        """Returns whether this step is a multiple of ``steps``."""
        return self.step > 0 and self.step % whole("run.every(steps): steps", steps) == 0

    def stop(self) -> None:
        """Ends the run after this step, for good: a run that resumes ends there, too."""
        self.stopped = True

    # -- logging

    def log(self, values: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        """Logs numbers of this step. Arrays are not read before the next log point.

        Args:
          values: numbers by name, whatever the names: ``{"test/loss": loss}``.
          **more: a number, or an array or Variable that holds one, by name.

        Raises:
          VariableError: a value is not one number.
          RunError: the run has not begun, or is over.
        """
        self._check_open("log(...)")
        if self._resumed and not self._asked:
            return  # before the loop of a run that resumes: it stands in the log already
        if values is not None and not isinstance(values, Mapping):
            raise VariableError(
                f"run.log takes numbers by name; got a {type(values).__name__}. Write "
                "`run.log(loss=value)`"
            )
        seconds = round(time.monotonic() - self._start, 3)
        given = more if values is None else {**values, **more}
        found = self._log.put(self.step, self.epoch, seconds, given)
        if self._best.name in found:
            self._best.waiting = found[self._best.name]

    def evaluate(
        self, function: Callable[..., Mapping[str, Any]], *nodes: Any
    ) -> Mapping[str, Any]:
        """Logs what a function of nodes returns; it gets copies, so training does not notice.

        Args:
          function: returns numbers by name.
          *nodes: its arguments, by default the first node of the run.
        """
        self._check_open("evaluate(...)")
        given = nodes or tuple(self.nodes.values())[:1]
        values = function(*[moduli.clone(node) for node in given])
        if not isinstance(values, Mapping):
            raise VariableError(
                "what run.evaluate calls returns numbers by name, such as {'test_loss': loss}; got "
                f"a {type(values).__name__}"
            )
        self.log(values)
        return values

    def report(self, report: Any = None) -> Path:
        """Writes ``report.html`` into the folder: pictures of what was logged.

        Args:
          report: a ``TrainingReport`` that was recorded; by default one is made of ``log.csv``.

        Returns:
          The path of the page.
        """
        self._log.flush()
        return write_report(self.folder, self._log.rows(), report)
