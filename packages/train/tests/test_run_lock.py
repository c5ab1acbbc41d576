"""Two runs do not write into one folder at a time."""

from __future__ import annotations

import contextlib
import gc
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import jax.numpy as jnp
import pytest

import moduli as nnx
from moduli_train import RunError

PROGRAM = """
import os, sys, time
import jax.numpy as jnp, moduli as nnx
with nnx.Run(sys.argv[1], model=nnx.Dict({"w": nnx.Param(jnp.zeros(()))}), progress=False) as run:
    for step in run.steps(2):
        if "fork" in sys.argv and step == 1 and os.fork() == 0:
            time.sleep(float(sys.argv[3]))  # a worker that outlives its run
            os._exit(0)
        print(os.getpid(), flush=True)
        if step == 1:
            time.sleep(60)
"""


def a_run(folder: pathlib.Path) -> nnx.Run:
    return nnx.Run(folder, model=nnx.Dict({"w": nnx.Param(jnp.zeros(()))}), progress=False)


@contextlib.contextmanager
def another_process(folder: pathlib.Path, *more: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", PROGRAM, str(folder), *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() and process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows locks no folder")
def test_a_folder_that_another_process_writes_into_is_refused_until_it_is_killed(
    tmp_path: pathlib.Path,
) -> None:
    with another_process(tmp_path, "fork", "20") as process:
        log = (tmp_path / "run.json").read_bytes()
        for _ in range(2):  # that it was refused once changes nothing
            with (
                pytest.raises(RunError, match=rf"is under way, in process {process.pid} on .*two"),
                a_run(tmp_path),
            ):
                raise AssertionError
        assert (tmp_path / "run.json").read_bytes() == log
        process.kill()
        process.wait()
        with a_run(tmp_path) as run:  # the worker lives on, and holds nothing
            assert run.step == 0
    assert not (tmp_path / "run.lock").exists()


@pytest.mark.parametrize("name", ["run", "run/../run", "link"])
def test_a_second_run_of_one_program_is_refused_until_the_first_ends(
    tmp_path: pathlib.Path, name: str
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    with a_run(tmp_path / "run") as first:
        for _ in range(2):
            with pytest.raises(RunError, match=r"in this program.*end its `with` block"):
                a_run(tmp_path / name).__enter__()
        with a_run(tmp_path / "other"):
            assert [*first.steps(1)] == [0]
    with a_run(tmp_path / name) as again:
        assert again.step == 1


def test_a_run_that_could_not_begin_or_was_forgotten_holds_no_folder(
    tmp_path: pathlib.Path,
) -> None:
    with a_run(tmp_path) as run:
        assert [*run.steps(1)] == [0]
    other = nnx.Run(tmp_path, model=nnx.Dict({"v": nnx.Param(jnp.zeros(3))}), progress=False)
    with pytest.raises(RunError, match="a run with another model"):
        other.__enter__()
    forgotten = a_run(tmp_path)
    forgotten.__enter__()
    forgotten._signals.stop()
    del forgotten
    gc.collect()  # it stands in a cycle
    with pytest.raises(ZeroDivisionError), a_run(tmp_path):
        1 / 0
    with a_run(tmp_path) as run:
        assert run.step == 1
