"""The checkpoints of a run: every node given, and as metadata where the run stands."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import jax

import moduli
from moduli.errors import MissingPluginError
from moduli_train._errors import RunError
from moduli_train._run.best import Best

__all__ = ["Checkpoints"]


class Checkpoints:
    """Saves and restores; without a folder it does nothing.

    Args:
      folder: where the checkpoints stand, or None.
      nodes: what they hold, by name.
      best: the metric whose best step is kept.
      keep: how many of the newest steps are kept.
      format: of the files; by default orbax's for arrays that no process has whole.
      asynchronous: whether files are written in a thread.

    Raises:
      RunError: moduli-interop is not installed.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None,
        nodes: dict[str, Any],
        best: Best,
        keep: int | None,
        format: str | None,
        asynchronous: bool,
    ) -> None:
        self.nodes, self.folder, self.saved = nodes, None, -1
        self._manager: Any = None
        self._reported = -1
        if folder is None:
            return
        self.folder = os.path.abspath(os.fspath(folder))
        if format is None and not all(map(_is_whole, jax.tree.leaves(list(nodes.values())))):
            format = "orbax"
        try:
            manager = moduli.CheckpointManager  # of moduli-interop; both packages know core alone
        except MissingPluginError as error:
            raise RunError(
                "a run with a folder writes checkpoints, which are in the package moduli-interop: "
                '`pip install "moduli[interop]"`. Without a folder nothing is written'
            ) from error
        self._manager = manager(
            self.folder,
            keep_last=keep,
            keep_best=None if best.name is None else (best.name, best.mode),
            format=format,
            asynchronous=asynchronous,
        )

    def restore(self) -> dict[str, Any] | None:
        """Fills the nodes with the newest whole step; returns its metadata, None without one.

        Raises:
          RunError: the folder has the run of another model.
        """
        if self._manager is None or (step := self._manager.latest()) is None:
            return None
        facts = dict(self._manager.metadata(step))
        if "moduli_run" not in facts:
            raise RunError(f"{self.folder} has checkpoints that no run wrote; give another folder")
        try:
            self._manager.load(self.nodes, step)
        except Exception as error:
            if not hasattr(error, "problems"):
                raise
            raise RunError(
                f"{self.folder} has step {step} of a run with another model, or with other nodes. "
                f"Give another folder, or what the run began with.\n{error}"
            ) from error
        self.saved = self._reported = step
        return facts["moduli_run"]

    def save(
        self,
        step: int,
        facts: dict[str, Any],
        metrics: dict[str, float],
        wait: bool,
        before: Callable[[], None],
    ) -> None:
        """Saves a step; returns when it is copied, or with ``wait`` when it is on the disk."""
        if self._manager is not None:
            self._manager.save(
                step,
                self.nodes,
                metrics=metrics,
                metadata={"moduli_run": facts},
                wait=wait,
                before=before,
            )
            self.saved = step

    def written(self) -> int | None:
        """Waits for the save that is under way; returns its step if it was not returned before."""
        if self._manager is not None:
            self._manager.wait()
        if self.saved == self._reported:
            return None
        self._reported = self.saved
        return self.saved


def _is_whole(leaf: Any) -> bool:
    return not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated
