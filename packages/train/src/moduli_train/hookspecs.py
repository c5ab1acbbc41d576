"""The hooks of a run: what a tracker of experiments, or a new kind of data, implements.

Core finds this file by the entry point group ``moduli.hookspecs``. All of them are observing hooks:
a plugin that raises is switched off and reported once, and the run goes on. None is called in every
step. With several processes each of them calls the hooks; ``jax.process_index()`` tells them apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from moduli import hookspec

if TYPE_CHECKING:
    from moduli_train import Run

__all__ = [
    "moduli_data_state",
    "moduli_run_logged",
    "moduli_run_restored",
    "moduli_run_saved",
    "moduli_run_started",
    "moduli_run_state",
    "moduli_run_stopped",
]


@hookspec
def moduli_run_started(run: Run) -> None:
    """Is told of a run when its ``with`` block is entered; ``run.step`` is 0 unless it resumes."""


@hookspec
def moduli_run_logged(run: Run, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
    """Is told of logged numbers once they are read: at log points, of several steps at a time.

    Args:
      run: the run.
      rows: steps and their numbers by name.

    Example:
      >>> import moduli as nnx
      >>> class Tracker:
      ...     @nnx.hookimpl
      ...     def moduli_run_logged(self, rows):
      ...         print(rows)
      >>> with nnx.using(Tracker()), nnx.Run(data=[0.5], log_every=2, progress=False) as run:
      ...     for batch in run.steps(2):
      ...         run.log(loss=batch)
      [(1, {'loss': 0.5})]
      [(2, {'loss': 0.5})]
    """


@hookspec
def moduli_run_saved(run: Run, step: int) -> None:
    """Is told of a checkpoint that is on the disk, at the latest before the next save."""


@hookspec
def moduli_run_state(run: Run) -> Any:
    """Returns what to keep for this plugin in the checkpoint that is being written, as JSON."""


@hookspec
def moduli_run_restored(run: Run, states: Mapping[str, Any]) -> None:
    """Is told that the run resumes.

    Args:
      run: the run, with the nodes of the checkpoint.
      states: what the plugins returned from ``moduli_run_state``, by the plugin's name.
    """


@hookspec
def moduli_run_stopped(run: Run, error: BaseException | None) -> None:
    """Is told of the end, and of the exception that ended the run, if one did."""


@hookspec
def moduli_data_state(data: Any) -> Any:
    """Returns an object with ``get_state()`` and ``set_state(state)`` for data of another kind.

    Called once when a run is made. The state is what JSON, bytes, tuples and arrays can express; it
    says where the data stands after the batch that it gave last, and is set before the first.
    """
