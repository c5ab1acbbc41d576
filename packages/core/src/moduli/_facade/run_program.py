"""Runs a script or a module as Python itself would, in this process."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Sequence

__all__ = ["run"]


def run(target: str, arguments: Sequence[str], *, as_module: bool = False) -> None:
    """Runs a program, whose ``__name__`` is ``"__main__"``, with its own ``sys.argv``.

    Args:
      target: the path of a script (or of a folder or zip file with a ``__main__.py``), else the
        name of a module.
      arguments: what comes after it on the command line.
      as_module: take the target for a module's name whatever files there are.
    """
    if not as_module and os.path.exists(target):
        sys.argv = [target, *arguments]
        if os.path.isfile(target):  # of folders and zip files, runpy does it
            sys.path.insert(0, os.path.dirname(os.path.abspath(target)))
        runpy.run_path(target, run_name="__main__")
        return
    sys.argv = [target, *arguments]
    sys.path.insert(0, os.getcwd())
    runpy.run_module(target, run_name="__main__", alter_sys=True)
