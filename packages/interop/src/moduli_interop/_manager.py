"""CheckpointManager: the checkpoints of a run, step by step, in one folder.

In the folder stand for each step::

    step_120.json                                the marker: the step exists when this does
    step_120.9f86d081884c7d65.safetensors        what the marker names

The checkpoint is on the disk before its marker is written, and the marker is written in one step.
So a process that is killed at any moment leaves only steps that are whole. Everything that changes
the folder holds the lock of ``.moduli-lock``; whoever holds it may remove what no marker names,
for nobody else is writing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import secrets
import shutil
import threading
import types
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

import jax

from moduli_interop._atomic import check_home, locked, remove_leftovers
from moduli_interop._checkpoint import described, load, write
from moduli_interop._choose import choose_format
from moduli_interop._errors import (
    CheckpointError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    DamagedCheckpointWarning,
    UnsupportedValueError,
)
from moduli_interop._format import Format
from moduli_interop._inspect import verify_checkpoint
from moduli_interop._leaves import copied_to_host
from moduli_interop._manifest import check_metadata
from moduli_interop._markers import (
    StepInfo,
    checked_metrics,
    checked_step,
    data_files,
    marker_path,
    no_step,
    read_marker,
    steps_in,
    whole_number,
    write_marker,
)
from moduli_interop._pending import Pending
from moduli_interop._progress import Progress
from moduli_interop._quick import no_collection
from moduli_interop._stored import Checkpoint

__all__ = ["CheckpointManager"]

M = TypeVar("M")

_LOCK = ".moduli-lock"


class CheckpointManager:
    """Keeps the checkpoints of a run: saves steps, finds the latest, removes what is not wanted.

    A step exists when it was saved wholly, whatever happens to the process. Saving goes on in a
    thread while the program does; what it saves is copied before ``save`` returns, so the model's
    arrays may be changed or donated at once. If such a save fails, the next call of the manager
    raises its error, or ``close``, or the end of the program says so; the step never counts.

    Args:
      folder: where the checkpoints stand; it is made if there is none.
      keep_last: how many of the newest steps to keep; None keeps all, unless ``keep_best`` is
        given, which then keeps the newest besides the best.
      keep_best: ``(metric, mode)``, such as ``("accuracy", "max")`` or ``("loss", "min")``: the
        step with the best value of that metric is kept too.
      format: name of the format of new steps.
      asynchronous: whether ``save`` returns before the file is written.
      progress: see :func:`save`.

    Example:
      >>> import moduli as nnx, tempfile
      >>> from moduli_interop import CheckpointManager
      >>> model = nnx.Dict({"scale": nnx.Param(0.0)})
      >>> folder = tempfile.mkdtemp()
      >>> with CheckpointManager(folder, keep_last=2, keep_best=("loss", "min")) as manager:
      ...     for step in range(5):
      ...         model["scale"].value = float(step)
      ...         loss = (step - 1) ** 2
      ...         manager.save(step, {"model": model, "step": step}, metrics={"loss": loss})
      ...     manager.steps()
      [1, 3, 4]
      >>> manager.latest(), manager.best()
      (4, 1)
      >>> manager.load({"model": model, "step": 0}, step=1)["step"], model["scale"].value
      (1, 1.0)
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        keep_last: int | None = None,
        keep_best: tuple[str, Literal["min", "max"]] | None = None,
        format: str | None = None,
        asynchronous: bool = True,
        progress: Progress = None,
    ):
        self._folder = os.path.abspath(os.fsdecode(folder))
        if keep_last is not None and (type(keep_last) is not int or keep_last < 1):
            raise ValueError(
                f"keep_last is a number of steps, at least 1, or None; got {keep_last!r}"
            )
        if keep_best is not None and not (
            isinstance(keep_best, (tuple, list))
            and len(keep_best) == 2
            and isinstance(keep_best[0], str)
            and keep_best[1] in ("min", "max")
        ):
            raise ValueError(
                'keep_best is a metric and "min" or "max", such as ("loss", "min"); '
                f"got {keep_best!r}"
            )
        self._keep_last = keep_last
        self._keep_best = keep_best
        self._format = format or "safetensors"
        self._suffix = choose_format("", self._format).suffixes[0]
        self._asynchronous = asynchronous
        self._progress = progress
        self._pending: Pending | None = None
        self._verified: dict[int, tuple[Any, ...]] = {}
        check_home(os.fsdecode(folder))
        os.makedirs(self._folder, exist_ok=True)

    @property
    def folder(self) -> str:
        """The folder in which the checkpoints stand."""
        return self._folder

    def save(
        self,
        step: int,
        model: Any,
        *,
        metrics: Mapping[str, float] | None = None,
        metadata: Mapping[str, Any] | None = None,
        wait: bool = False,
        before: Callable[[], None] | None = None,
    ) -> None:
        """Saves a step, and removes the steps that are no longer to be kept.

        A save that is still going on is waited for first, so there is never more than one copy.
        A step that exists already is replaced.

        Args:
          step: its number, at least 0.
          model: what to save; see :func:`moduli_interop.save`.
          metrics: numbers by which ``keep_best`` chooses.
          metadata: facts to keep with it, as in JSON.
          wait: whether to return only when the step is on the disk.
          before: called before anything is written, in the thread that writes: for what has to be
            on the disk before the step exists. If it raises, the step is not saved.

        Raises:
          UnsupportedValueError: if something in the model, the metrics or the metadata cannot be
            stored, or the metrics lack the one that ``keep_best`` chooses by.
          Exception: what a save before this one failed with; that step does not exist.
        """
        self.wait()
        step = checked_step(step)
        values = checked_metrics(metrics)
        if values and self._keep_best is not None and self._keep_best[0] not in values:
            raise UnsupportedValueError(
                f"keep_best chooses by the metric {self._keep_best[0]!r}, and the metrics of step "
                f"{step} are {sorted(values)}; give it, or no metrics at all for a step that "
                "was not evaluated"
            )
        chosen = choose_format("", self._format)
        with no_collection():
            facts = check_metadata(metadata)
            checkpoint = described(model, {"step": step, **facts}, shards=chosen.writes_shards)
            later = self._asynchronous and not wait and not _is_shared()
            if later:
                leaves = tuple(copied_to_host(checkpoint.leaves))
                checkpoint = dataclasses.replace(checkpoint, leaves=leaves)

        def work() -> None:
            if before is not None:
                before()
            self._write(step, checkpoint, chosen, values, facts)

        if not later:
            work()
            return
        self._pending = Pending(step, self._folder, work)
        self._pending.start()

    def load(self, model: M, step: int | None = None) -> M:
        """Fills a model with a step, as :func:`moduli_interop.load` does.

        Args:
          model: what was given to ``save``, built anew.
          step: its number; by default the newest that verifies. A newer one that does not is passed
            over with a warning that names it.

        Returns:
          The model.

        Raises:
          CheckpointNotFoundError: if there is no such step, or none at all.
          CheckpointMismatchError: if it does not fit the model.
          CheckpointError: if the step that was asked for is damaged.
        """
        self.wait()
        if step is not None:
            info = self.info(step, present=True)
            return load(info.path, model, format=info.format, progress=self._progress)
        for number in reversed(self.steps()):
            try:
                info = self.info(number, present=True)
                return load(info.path, model, format=info.format, progress=self._progress)
            except (CheckpointMismatchError, UnsupportedValueError):
                raise
            except (CheckpointError, OSError) as error:
                self._warn(number, error)
        raise CheckpointNotFoundError(
            f"{self._folder} has no step that can be loaded; `manager.latest()` is None then, so a "
            "run that may be the first asks for it before it loads"
        )

    def latest(self) -> int | None:
        """Returns the newest step that verifies, or None.

        Every byte of it is read, once for this manager. A newer step that does not verify is passed
        over with a :class:`DamagedCheckpointWarning` that names it.
        """
        self.wait()
        return self._newest(self.steps())

    def best(self) -> int | None:
        """Returns the step with the best metric (see ``keep_best``) that verifies, or None."""
        self.wait()
        if self._keep_best is None:
            raise ValueError(
                "which step is best? Say it when the manager is made: "
                'CheckpointManager(folder, keep_best=("loss", "min"))'
            )
        return self._newest(self._from_worst_to_best())

    def steps(self) -> list[int]:
        """Returns the numbers of the steps that exist, in order; they are not verified."""
        self.wait()
        return sorted(steps_in(self._folder))

    def info(self, step: int, *, present: bool = False) -> StepInfo:
        """Returns what is known of a step without reading its checkpoint.

        Args:
          step: its number.
          present: whether the checkpoint that the marker names has to be there.

        Raises:
          CheckpointNotFoundError: if there is no such step.
          CorruptCheckpointError: if its marker cannot be read, or the checkpoint is not there.
        """
        self.wait()
        info = read_marker(self._folder, whole_number(step))
        if present and not os.path.exists(info.path):
            raise CorruptCheckpointError(
                f"the checkpoint {info.path} of step {step} is not there, though the marker of the "
                "step names it; the step cannot be used"
            )
        return info

    def metadata(self, step: int) -> Mapping[str, Any]:
        """Returns the facts that were given to ``save`` with a step."""
        return self.info(step).metadata

    def delete(self, step: int) -> None:
        """Removes a step.

        Args:
          step: its number.

        Raises:
          CheckpointNotFoundError: if there is no such step.
        """
        self.wait()
        step = whole_number(step)
        if step not in steps_in(self._folder):
            raise no_step(self._folder, step)
        with locked(os.path.join(self._folder, _LOCK)) as held:
            self._remove(step)
            if held:
                self._clean()

    def wait(self) -> None:
        """Waits for a save that is going on; raises if it failed.

        Raises:
          Exception: what it failed with.
        """
        pending = self._pending
        if pending is not None and pending.thread is not threading.current_thread():
            pending.thread.join()
            self._pending = None
            pending.raise_failure()

    def close(self) -> None:
        """Waits as :meth:`wait` does. A manager is its own context manager, which does this."""
        self.wait()

    def __enter__(self) -> CheckpointManager:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close()
        except Exception as failure:
            error.add_note(f"Besides, a save of {self._folder} failed: {failure!r}")

    # -- writing, with the lock

    def _write(
        self,
        step: int,
        checkpoint: Checkpoint,
        chosen: Format,
        metrics: dict[str, float],
        metadata: dict[str, Any],
    ) -> None:
        if _is_shared():
            self._write_with_others(step, checkpoint, chosen, metrics, metadata)
            return
        os.makedirs(self._folder, exist_ok=True)
        with locked(os.path.join(self._folder, _LOCK)) as held:
            if held:
                self._clean()
            name = f"step_{step}.{secrets.token_hex(8)}{self._suffix}"
            write(os.path.join(self._folder, name), checkpoint, chosen.save, self._progress)
            self._commit(step, name, chosen, metrics, metadata, held)

    def _write_with_others(
        self,
        step: int,
        checkpoint: Checkpoint,
        chosen: Format,
        metrics: dict[str, float],
        metadata: dict[str, Any],
    ) -> None:
        """Writes a step that all processes save together; the first one does what is done once."""
        from jax.experimental import multihost_utils

        name = f"step_{step}.{step:016x}{self._suffix}"  # the same in all processes
        first = jax.process_index() == 0
        if first:
            os.makedirs(self._folder, exist_ok=True)
            self._clean()
        multihost_utils.sync_global_devices(f"moduli: step {step} begins")
        if first or chosen.writes_shards:
            write(os.path.join(self._folder, name), checkpoint, chosen.save, self._progress)
        if first:
            self._commit(step, name, chosen, metrics, metadata, held=True)
        multihost_utils.sync_global_devices(f"moduli: step {step} exists")

    def _commit(
        self,
        step: int,
        name: str,
        chosen: Format,
        metrics: dict[str, float],
        metadata: dict[str, Any],
        held: bool,
    ) -> None:
        """Writes the marker of a step that is on the disk, and removes what is not to be kept."""
        replaced = data_files(self._folder).get(step, set()) - {name}
        path = os.path.join(self._folder, name)
        write_marker(StepInfo(step, path, chosen.name, metrics, metadata))
        self._verified.pop(step, None)
        try:
            for old_name in replaced if held else ():
                _delete(os.path.join(self._folder, old_name))
            for old in self._unwanted(step):
                self._remove(old)
        except OSError as error:  # the step exists, so its save has not failed
            warnings.warn(
                f"step {step} was saved in {self._folder}, but what is not to be kept cannot be "
                f"removed there: {error}",
                RuntimeWarning,
                stacklevel=2,
            )

    def _unwanted(self, newest: int) -> list[int]:
        """Returns the steps to remove after one was saved, which is never removed itself."""
        if self._keep_last is None and self._keep_best is None:
            return []
        steps = sorted(steps_in(self._folder))
        before = [step for step in steps if step <= newest]  # later ones are of an earlier attempt
        kept = {*before[-(self._keep_last or 1) :], *(step for step in steps if step > newest)}
        if self._keep_best is not None:
            kept.update(self._from_worst_to_best()[-1:])
        return [step for step in steps if step not in kept]

    def _from_worst_to_best(self) -> list[int]:
        assert self._keep_best is not None
        name, mode = self._keep_best
        found = []
        for step in sorted(steps_in(self._folder)):
            with contextlib.suppress(CheckpointError, OSError):
                value = read_marker(self._folder, step).metrics.get(name, math.nan)
                if not math.isnan(value):
                    found.append((value if mode == "max" else -value, step))
        return [step for _, step in sorted(found)]

    def _remove(self, step: int) -> None:
        """Removes a step: the marker first, so that half a step is none."""
        with contextlib.suppress(FileNotFoundError):
            path = None
            with contextlib.suppress(CheckpointError, OSError):
                path = read_marker(self._folder, step).path
            _delete(marker_path(self._folder, step))
            self._verified.pop(step, None)
            if path is not None:
                _delete(path)

    def _clean(self) -> None:
        """Removes what killed processes left behind: temporary files, and what no marker names."""
        remove_leftovers(self._folder)
        steps = steps_in(self._folder)
        for step, names in data_files(self._folder).items():
            named = None
            if step in steps:
                if len(names) == 1:
                    continue
                try:
                    named = os.path.basename(read_marker(self._folder, step).path)
                except (CheckpointError, OSError):
                    continue  # a marker that cannot be read may name any of them
            for name in names - {named}:
                with contextlib.suppress(OSError):
                    _delete(os.path.join(self._folder, name))

    # -- reading

    def _newest(self, steps: list[int]) -> int | None:
        for step in reversed(steps):
            try:
                info = self.info(step, present=True)
                identity = (info.path, *_identity(info.path))
                if self._verified.get(step) != identity:
                    verify_checkpoint(info.path, format=info.format)
                    self._verified[step] = identity
                return step
            except (CheckpointError, OSError) as error:
                self._warn(step, error)
        return None

    def _warn(self, step: int, error: Exception) -> None:
        warnings.warn(
            f"step {step} of {self._folder} is passed over, because it does not verify: {error}",
            DamagedCheckpointWarning,
            stacklevel=4,
        )


def _is_shared() -> bool:
    """Returns whether there are other processes, which all have to write at the same moment."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def _identity(path: str) -> tuple[int, ...]:
    status = os.stat(path)
    return status.st_ino, status.st_size, status.st_mtime_ns


def _delete(path: str) -> None:
    shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
