"""The checkpoints of a run: every node given, and as metadata where the run stands."""

from __future__ import annotations

import os
from typing import Any

import jax

import moduli
from moduli.errors import MissingPluginError
from moduli_train._errors import RunError
from moduli_train._run.best import Best

__all__ = ["Checkpoints"]


class Checkpoints:
    """Saves nodes and restores them; without a folder it does nothing."""

    def __init__(
        self, folder: Any, nodes: dict[str, Any], best: Best, keep: Any, format: Any, later: bool
    ) -> None:
        self.nodes, self.folder, self.saved = nodes, None, -1  # the step that was saved last
        self._manager: Any = None
        self._reported = -1
        if folder is None:
            return
        self.folder = os.path.abspath(os.fspath(folder))
        if os.path.exists(self.folder) and not os.path.isdir(self.folder):
            raise RunError(f"a run writes into a folder, and {self.folder} is a file")
        if format is None and not all(map(_is_whole, jax.tree.leaves(list(nodes.values())))):
            format = "orbax"
        try:
            manager = moduli.CheckpointManager  # of moduli-interop; both packages know core alone
        except MissingPluginError as error:
            raise RunError(
                "a run with a folder writes checkpoints, which are in the package moduli-interop: "
                '`pip install "moduli[interop]"`. Without a folder nothing is written'
            ) from error
        named: Any = None if best.name is None else (best.name, best.mode)
        self._manager = manager(
            self.folder, keep_last=keep, keep_best=named, format=format, asynchronous=later
        )

    def restore(self) -> dict[str, Any] | None:
        """Fills the nodes with the newest whole step; returns its metadata, None without one."""
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

    def save(self, step: int, facts: dict[str, Any], metrics: Any, **more: Any) -> None:
        """Saves a step; returns when it is copied, or with ``wait`` when it is on the disk."""
        metadata = {"moduli_run": facts}
        self._manager.save(step, self.nodes, metrics=metrics, metadata=metadata, **more)
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
