"""run.json: what the run was made with; pictures; the writer for TensorBoard."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jax

import moduli
from moduli_train._errors import RunError
from moduli_train._log.log import replace_file

__all__ = ["tensorboard_writer", "write_record", "write_report"]

_TRUTH = {"True": "1", "False": "0"}


def write_record(path: str, nodes: dict[str, Any], step: int) -> None:
    """Writes versions, devices, layout and command; each start of the run adds an entry."""

    def layout(node: Any) -> dict[str, int]:
        arrays = [leaf for leaf in jax.tree.leaves(node) if isinstance(leaf, jax.Array)]
        return Counter(str(array.sharding) for array in arrays)

    versions = {"jax": jax.__version__, "moduli": moduli.__version__}
    entry = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "step": step,
        "command": sys.orig_argv,
        "versions": {"python": platform.python_version(), **versions},
        "system": platform.platform(),
        "processes": jax.process_count(),
        "devices": Counter(device.device_kind for device in jax.devices()),
        "layout": {name: layout(node) for name, node in nodes.items()},
    }
    starts = []
    unreadable = (OSError, ValueError, LookupError, TypeError)  # after a crash of the machine
    if step:
        with contextlib.suppress(*unreadable), open(path, encoding="utf-8") as file:
            starts = list(json.load(file)["starts"])
    replace_file(path, json.dumps({"starts": [*starts, entry]}, indent=1) + "\n")


def write_report(folder: str | None, rows: list[dict[str, Any]], report: Any) -> Path:
    """Writes the pictures of a TrainingReport, by default of what was logged, into the folder."""
    if folder is None:
        raise RunError("run.report() writes into the folder; this run has none")
    if report is None:
        report = moduli.TrainingReport(os.path.basename(folder))
        for row in rows:
            texts = {k: v for k, v in list(row.items())[3:] if v != ""}
            numbers = {k: float(str(_TRUTH.get(v, v))) for k, v in texts.items()}
            if numbers:
                report.record(int(row["step"]), metrics=numbers)
    return report.save(os.path.join(folder, "report.html"))


def tensorboard_writer(folder: str | None, step: int) -> Any:
    """Returns a writer into ``folder/tensorboard`` that drops what came after ``step``."""
    if folder is None:
        raise RunError("tensorboard=True needs a folder to write to: `nnx.Run(folder, ...)`")
    try:
        from tensorboardX import SummaryWriter  # type: ignore[import-not-found]
    except ImportError as error:
        raise RunError(
            'tensorboard=True needs tensorboardX: `pip install "moduli-train[tensorboard]"`'
        ) from error
    return SummaryWriter(os.path.join(folder, "tensorboard"), purge_step=step + 1)
