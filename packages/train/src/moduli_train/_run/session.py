"""What a Run does when it begins, between two steps, and when it ends."""

from __future__ import annotations

import contextlib
import inspect
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
from moduli_train._data.feed import Feed
from moduli_train._errors import DataEndedError, RunError
from moduli_train._log.lock import FolderLock
from moduli_train._log.log import Log
from moduli_train._log.record import tensorboard_writer, write_record
from moduli_train._loop.signals import Signals
from moduli_train._loop.unsaved import Watch
from moduli_train._run.arguments import nodes_of, whole
from moduli_train._run.best import Best
from moduli_train._run.checkpoints import Checkpoints
from moduli_train._run.losses import Losses
from moduli_train._run.progress import Progress, counting

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
        unsaved: str | Iterable[str] = (),
        **nodes: Any,
    ) -> None:
        self.nodes = nodes_of(nodes, inspect.signature(Session.__init__).parameters)
        if folder is not None and not self.nodes:
            raise VariableError(
                "a run with a folder needs what to save: `nnx.Run(folder, model=…)`"
            )
        self._save_every = None if save_every is None else whole("save_every=", save_every)
        self._log_every = whole("log_every=", log_every)
        self._keeping = None if keep is None else whole("keep=", keep), format, asynchronous
        self.step, self.epoch, self.last, self.stopped = 0, 0, {}, False
        self._best, self._folder = Best.of(best, patience), folder
        self._losses = Losses(on_nonfinite, self._best.name)
        self._unsaved = (unsaved,) if isinstance(unsaved, str) else tuple(unsaved)
        self._show, self._tensorboard = progress, tensorboard
        self._data = data
        self._feed = Feed(data, whole("prefetch=", prefetch, 0))
        self._signals = Signals()
        self._progress: Progress | None = None
        self._watch: Watch | None = None
        self._writer: Any = None
        self._lock: FolderLock | None = None
        self._entered = self._over = False
        self._resumed = self._asked = self._began = self._in_step = False

    def __enter__(self) -> Self:
        if self._entered:
            raise RunError("a Run is entered once; make another to go on: it resumes by itself")
        self._checkpoints = Checkpoints(self._folder, self.nodes, self._best, *self._keeping)
        first = jax.process_index() == 0
        self._show = self._show if first else False
        if self.folder is not None and first:
            self._lock = FolderLock(self.folder)
        try:
            self._begin(self.folder if first else None, first)
        except BaseException:
            self._unlock()
            raise
        return self

    def _begin(self, folder: str | None, first: bool) -> None:
        facts = self._checkpoints.restore()
        self._start = time.monotonic()
        if facts is not None:
            self._restore(facts)
        self._log = Log(None if folder is None else os.path.join(folder, "log.csv"), self._read)
        self._log.cut(self.step if self._resumed else None)
        if folder is not None:
            write_record(os.path.join(folder, "run.json"), self.nodes, self.step)
        if self._tensorboard and first:
            self._writer = tensorboard_writer(folder, self.step)
        self._entered = True
        collect("moduli_run_started", run=self)
        if facts is not None:
            collect("moduli_run_restored", run=self, states=facts["plugins"])
        self._signals.start()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def _restore(self, facts: dict[str, Any]) -> None:
        self._resumed, self._start = True, self._start - facts["seconds"]
        self.step, self.epoch, self.stopped = facts["step"], facts["epoch"], facts["stopped"]
        self.last.update(facts.get("last", {}))
        for name, value in facts["best"].items():
            setattr(self._best, name, value)
        show = self._show
        self._feed.restore(facts["data"], lambda items: counting(items, "skipping batches", show))

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
                self._warn_of_best()
            elif isinstance(error, (Exception, SystemExit)):
                with contextlib.suppress(Exception):
                    self._log.flush()
        finally:
            try:
                self._close(error)
            finally:
                self._unlock()
        if error is None and self._signals.caught is not None:
            raise self._signals.end()

    def _close(self, error: BaseException | None) -> None:
        self._over = True
        self._signals.stop()
        self._feed.close()
        for thing in (self._progress, self._writer):
            if thing is not None:
                thing.close()
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

    def _check_open(self, what: str) -> None:
        if not self._entered or self._over:
            raise RunError(
                f"run.{what}: the run is over; make another to go on: it resumes by itself"
                if self._over
                else "write `with nnx.Run(...) as run:` around `for batch in run.steps(...)`, and "
                f"run.{what} within"
            )

    def _next(self, total: int, sharding: Any, frame: types.FrameType) -> Any:
        self._check_open("steps(...)")
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
            saved = list(self.nodes.values())
            self._watch = Watch(saved, frame, self._unsaved, (self, self._data))
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
        saves = self._save_every is not None and self.step % self._save_every == 0
        logs = self.step % self._log_every == 0
        metrics, better = self._best.after(self.step, logs if self._save_every is None else saves)
        if saves or better:
            self._save(metrics)
        elif logs:
            self._log.flush(before=self.step)

    def _read(self, rows: list[tuple[int, dict[str, float]]]) -> None:
        """Is told of values once they are on the host."""
        for step, values in rows:
            self.last.update(values)
            if self._writer is not None:
                for name, value in values.items():
                    self._writer.add_scalar(name, value, step)
        if self._progress is not None:
            self._progress.values(self.last)
        collect("moduli_run_logged", run=self, rows=rows)
        self._losses.look(rows, self._checkpoints.saved)

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
            "last": dict(self.last),
            "data": self._feed.position(),
            "best": self._best.state(),
            "plugins": self._plugin_states(),
        }
        self._checkpoints.save(self.step, facts, metrics, wait=wait, before=self._log.sync)

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

    def _warn_of_best(self) -> None:
        if self._best.name is not None and self._began and not self._best.seen:
            warnings.warn(
                f"best={self._best.name!r}: no such metric was logged, so no step is the best, and "
                f"patience ends nothing; logged were {', '.join(self.last) or 'none'}",
                stacklevel=3,
            )


class Steps(Iterator[Any]):
    """The iterator of a loop; what was done in its body is known when the next batch is asked."""

    def __init__(self, run: Session, total: int, sharding: Any) -> None:
        self._run, self._total, self._sharding = run, total, sharding

    def __next__(self) -> Any:
        return self._run._next(self._total, self._sharding, sys._getframe(1))
