"""What a Run does when it begins, between two steps, and when it ends."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import types
import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import jax

from moduli.errors import VariableError
from moduli.plugins import PluginWarning, collect
from moduli_train._errors import DataEndedError, RunError
from moduli_train._run.best import Best
from moduli_train._run.checkpoints import Checkpoints
from moduli_train._run.feed import Feed
from moduli_train._run.log import Log
from moduli_train._run.losses import Losses
from moduli_train._run.progress import Progress
from moduli_train._run.record import tensorboard_writer, write_record
from moduli_train._run.signals import Signals
from moduli_train._run.unsaved import Watch

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Session", "Steps"]


class Session:
    """Base of Run, which says what the arguments mean and has what users call."""

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        *,
        data: Any = None,
        save_every: int | None = None,
        keep: int | None = 2,
        best: str | tuple[str, Literal["min", "max"]] | None = None,
        patience: int | None = None,
        log_every: int = 20,
        on_nonfinite: Literal["stop", "warn"] = "stop",
        prefetch: int = 0,
        progress: bool | None = None,
        tensorboard: bool = False,
        format: str | None = None,
        asynchronous: bool = True,
        unsaved: Iterable[str] = (),
        **nodes: Any,
    ) -> None:
        for name, value in {"save_every": save_every, "log_every": log_every}.items():
            if value is not None and (type(value) is not int or value < 1):
                raise VariableError(f"{name}= is a number of steps, at least 1; got {value!r}")
        self.nodes = {name: node for name, node in nodes.items() if node is not None}
        if folder is not None and not self.nodes:
            raise VariableError(
                "a run with a folder needs what to save: `nnx.Run(folder, model=…)`"
            )
        self.step, self.epoch, self.last, self.stopped = 0, 0, {}, False
        self._best = Best.of(best, patience)
        self._folder = folder
        self._keeping = keep, format, asynchronous
        self._save_every, self._log_every = save_every, log_every
        self._losses, self._unsaved = Losses(on_nonfinite, self._best.name), tuple(unsaved)
        self._show, self._tensorboard = progress, tensorboard
        self._feed = Feed(data, prefetch)
        self._signals = Signals()
        self._progress: Progress | None = None
        self._watch: Watch | None = None
        self._writer: Any = None
        self._entered = self._resumed = self._asked = self._began = self._in_step = False

    def __enter__(self) -> Self:
        if self._entered:
            raise RunError("a Run is entered once; make another to go on: it resumes by itself")
        first = jax.process_index() == 0
        self._show = self._show if first else False
        self._checkpoints = Checkpoints(self._folder, self.nodes, self._best, *self._keeping)
        folder = self.folder
        facts = self._checkpoints.restore()
        self._resumed = facts is not None
        before = self._restore(facts) if facts is not None else 0.0
        self._start = time.monotonic() - before
        path = os.path.join(folder, "log.csv") if folder is not None and first else None
        self._log = Log(path, self._read)
        self._log.cut(self.step if self._resumed else None)
        if folder is not None and first:
            write_record(os.path.join(folder, "run.json"), self.nodes, self.step)
        if self._tensorboard and first:
            self._writer = tensorboard_writer(folder, self.step)
        self._entered = True
        collect("moduli_run_started", run=self)
        if facts is not None:
            collect("moduli_run_restored", run=self, states=facts["plugins"])
        self._signals.start()
        return self

    def _restore(self, facts: dict[str, Any]) -> float:
        self.step, self.epoch, self.stopped = facts["step"], facts["epoch"], facts["stopped"]
        for name, value in facts["best"].items():
            setattr(self._best, name, value)
        self._feed.restore(facts["data"], self._show)
        return facts["seconds"]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._finish_step()
                self._save_last()
                self._log.flush()
                self._report_saved()
            elif isinstance(error, Exception):
                with contextlib.suppress(Exception):
                    self._log.flush()
        finally:
            self._close(error)
        if error is None and self._signals.caught is not None:
            raise self._signals.end()

    def _close(self, error: BaseException | None) -> None:
        self._signals.stop()
        self._feed.close()
        if self._progress is not None:
            self._progress.close()
        if self._writer is not None:
            self._writer.close()
        try:
            self._report_saved()
        except Exception as failure:
            if error is None:
                raise
            error.add_note(f"Besides, a save of the run failed: {failure!r}")
        collect("moduli_run_stopped", run=self, error=error)

    @property
    def folder(self) -> str | None:
        """The folder, absolute, or None."""
        return self._checkpoints.folder

    def _next(self, total: int, sharding: Any, frame: types.FrameType | None) -> Any:
        self._finish_step()
        if self._progress is None:
            self._progress = Progress(total, self.step, self._show)
        done = self.step >= total or self.stopped or self._best.exhausted
        if self._signals.stopping(self.step):
            self._save_last(wait=True)
            raise self._signals.end()
        if done:
            self._save_last()
            self._progress.close()
            self._progress = None
            raise StopIteration
        try:
            batch = self._feed.take(self.step + 1, sharding)
        except DataEndedError:
            self._save_last(wait=True)
            raise
        if not self._began and self.folder is not None:
            self._watch = Watch(list(self.nodes.values()), frame, self._unsaved)
        self._began = self._in_step = True
        self.step, self.epoch = self.step + 1, self._feed.epoch
        return batch

    def _finish_step(self) -> None:
        """Does what is to be done after the body of the loop."""
        if not self._in_step:
            return
        self._in_step = False
        if self._watch is not None:
            self._watch.check()
            self._watch = None
        if self._progress is not None:
            self._progress.advance()
        due = self._save_every is not None and self.step % self._save_every == 0
        metrics, better = self._best.after(self.step, due)
        if due or better:
            self._save(metrics)
        elif self.step % self._log_every == 0:
            self._log.flush(before=self.step)

    def _read(self, rows: list[tuple[int, dict[str, float]]]) -> None:
        """Is told of values once they are on the host."""
        for step, values in rows:
            self.last.update(values)
            if self._writer is not None:
                for name, value in values.items():
                    self._writer.add_scalar(name, value, step)
        if self._progress is not None and rows:
            self._progress.values(self.last)
        collect("moduli_run_logged", run=self, rows=rows)
        self._losses.look(rows, self._checkpoints.saved)

    # -- saving

    def _save(self, metrics: dict[str, float], wait: bool = False) -> None:
        """Saves this step, after everything that was logged is read and written."""
        self._log.flush()
        if self._losses.bad or self.folder is None:
            return
        self._report_saved()
        facts = {
            "step": self.step,
            "epoch": self.epoch,
            "seconds": round(time.monotonic() - self._start, 3),
            "stopped": self.stopped,
            "data": self._feed.position(),
            "best": self._best.state(),
            "plugins": self._plugin_states(),
        }
        self._checkpoints.save(self.step, facts, metrics, wait, before=self._log.sync)

    def _plugin_states(self) -> dict[str, Any]:
        states = dict(collect("moduli_run_state", run=self))
        for name, state in list(states.items()):
            try:
                json.dumps(state)
            except (TypeError, ValueError) as error:
                del states[name]
                text = f"the state that the plugin {name!r} keeps with a run is no JSON: {error}"
                warnings.warn(f"{text}. It is not saved", PluginWarning, stacklevel=6)
        return states

    def _save_last(self, wait: bool = False) -> None:
        if self.step and self.step != self._checkpoints.saved:
            self._save({}, wait)

    def _report_saved(self) -> None:
        step = self._checkpoints.written()
        if step is not None:
            collect("moduli_run_saved", run=self, step=step)


class Steps(Iterator[Any]):
    """The iterator of a loop; what was done in its body is known when the next batch is asked."""

    def __init__(self, run: Session, total: int, sharding: Any) -> None:
        self._run, self._total, self._sharding = run, total, sharding

    def __next__(self) -> Any:
        return self._run._next(self._total, self._sharding, sys._getframe(1))
