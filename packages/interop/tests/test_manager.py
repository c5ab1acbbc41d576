"""CheckpointManager: steps that exist wholly or not at all, whatever happens in between."""

from __future__ import annotations

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli as nnx
from moduli_interop import (
    CheckpointError,
    CheckpointManager,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    DamagedCheckpointWarning,
    StepInfo,
    UnsupportedValueError,
    load_state,
)


def model(value: float) -> nnx.Dict:
    return nnx.Dict({"x": nnx.Param(jnp.full((64,), value, jnp.float32))})


def saved(manager: CheckpointManager, steps: Any, **more: Any) -> None:
    for step in steps:
        manager.save(step, model(float(step)), **more)


def damage(manager: CheckpointManager, step: int) -> None:
    path = pathlib.Path(manager.info(step).path)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("format", ["safetensors", "npz"])
def test_steps_come_back(asynchronous: bool, format: str, tmp_path: pathlib.Path) -> None:
    manager = CheckpointManager(tmp_path / "run", format=format, asynchronous=asynchronous)
    assert manager.latest() is None and manager.steps() == []
    saved(manager, [3, 10, 2], metadata={"lr": 0.1}, metrics={"loss": jnp.float32(0.5)})
    assert manager.steps() == [2, 3, 10] and manager.latest() == 10
    assert manager.load(model(0.0))["x"].value[0] == 10.0
    assert manager.load(model(0.0), step=3)["x"].value[0] == 3.0
    again = CheckpointManager(str(tmp_path / "run"))
    info = again.info(3)
    assert info == StepInfo(3, info.path, format, {"loss": 0.5}, {"lr": 0.1})
    assert again.metadata(3) == {"lr": 0.1} and load_state(info.path).x.value[0] == 3.0


@pytest.mark.parametrize(
    ("keep", "left"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"keep_last": 2}, [4, 5]),
        ({"keep_last": 1, "keep_best": ("loss", "min")}, [1, 5]),
        ({"keep_last": 3, "keep_best": ("loss", "max")}, [0, 3, 4, 5]),
        ({"keep_best": ("loss", "min")}, [1, 5]),
    ],
)
def test_what_is_kept(keep: Any, left: list[int], tmp_path: pathlib.Path) -> None:
    manager = CheckpointManager(tmp_path, **keep)
    for step, loss in enumerate([9.0, 1.0, 3.0, float("nan"), 4.0, 5.0]):
        manager.save(step, model(step), metrics={"loss": loss})
    assert manager.steps() == left
    files = [name for name in os.listdir(tmp_path) if name.startswith("step_")]
    assert len(files) == 2 * len(left)  # what is not kept leaves nothing behind
    if "keep_best" in keep:
        assert manager.best() == (1 if keep["keep_best"][1] == "min" else 0)


def test_what_does_not_verify_is_passed_over_and_named(tmp_path: pathlib.Path) -> None:
    manager = CheckpointManager(tmp_path)
    saved(manager, range(5))
    assert manager.latest() == 4
    damage(manager, 4)
    marker = tmp_path / "step_3.json"
    marker.write_bytes(marker.read_bytes().replace(b'"step": 3', b'"step": 2'))
    os.unlink(manager.info(2).path)
    with pytest.warns(DamagedCheckpointWarning) as caught:
        assert manager.latest() == 1
    texts = [str(warning.message) for warning in caught]
    assert [re.match(r"step (\d)", text)[1] for text in texts] == ["4", "3", "2"]  # type: ignore[index]
    assert "damaged: `x`" in texts[0]
    with pytest.warns(DamagedCheckpointWarning):
        assert manager.load(model(9.0))["x"].value[0] == 1.0
    with pytest.raises(CheckpointError, match="damaged: `x`"):
        manager.load(model(9.0), step=4)
    saved(manager, [4])  # a run that goes on saves the step anew
    assert manager.latest() == 4


def test_steps_of_an_earlier_attempt_do_not_push_out_new_ones(tmp_path: pathlib.Path) -> None:
    manager = CheckpointManager(tmp_path, keep_last=2)
    saved(manager, [8, 9])
    damage(manager, 9)
    saved(manager, [1, 2, 3])  # the run went back
    assert manager.steps() == [2, 3, 8, 9]
    saved(manager, [9, 10])
    assert manager.steps() == [9, 10]


def test_a_mismatch_is_not_passed_over(tmp_path: pathlib.Path) -> None:
    manager = CheckpointManager(tmp_path)
    saved(manager, range(2))
    with pytest.raises(CheckpointMismatchError):
        manager.load(nnx.Dict(y=nnx.Param(1.0)))


def test_steps_that_are_not_there(tmp_path: pathlib.Path) -> None:
    manager = CheckpointManager(tmp_path)
    with pytest.raises(CheckpointNotFoundError, match="no step that can be loaded"):
        manager.load(model(0.0))
    saved(manager, [1, 2])
    for use in (manager.info, manager.delete, lambda step: manager.load(model(0.0), step)):
        with pytest.raises(CheckpointNotFoundError, match="no step 5; it has 1, 2"):
            use(5)
    manager.delete(1)
    assert manager.steps() == [2]


@pytest.mark.parametrize(
    "arguments",
    [{"keep_last": 0}, {"keep_last": 1.5}, {"keep_best": "loss"}, {"keep_best": ("loss", "up")}],
)
def test_wrong_arguments(arguments: Any, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="keep_"):
        CheckpointManager(tmp_path, **arguments)


@pytest.mark.parametrize(
    "wrong",
    [
        {"step": -1},
        {"step": 1.5},
        {"step": True},
        {"metrics": {"loss": "high"}},
        {"metadata": {"a": object()}},
        {"model": {"x": object()}},
    ],
)
def test_what_cannot_be_saved_is_an_error_at_once(wrong: Any, tmp_path: pathlib.Path) -> None:
    manager = CheckpointManager(tmp_path)
    with pytest.raises(UnsupportedValueError):
        manager.save(**{"step": 1, "model": model(0.0), **wrong})
    assert manager.steps() == []


@pytest.mark.parametrize("asynchronous", [True, False])
def test_what_is_to_come_before_a_save_does(asynchronous: bool, tmp_path: pathlib.Path) -> None:
    manager, seen = CheckpointManager(tmp_path, asynchronous=asynchronous), []
    manager.save(1, model(1.0), before=lambda: seen.append(os.listdir(tmp_path)))
    assert manager.steps() == [1] and seen == [[]]
    with pytest.raises(OSError, match="no space"):
        manager.save(2, model(2.0), before=lambda: _raise(OSError("no space")))
        manager.wait()
    assert manager.steps() == [1]


def _raise(error: Exception) -> None:
    raise error


def test_a_save_copies_before_a_donated_buffer_is_used_again(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, go = threading.Event(), threading.Event()
    real = CheckpointManager._write

    def slow(self: Any, *args: Any) -> None:
        started.set()
        assert go.wait(30)
        real(self, *args)

    monkeypatch.setattr(CheckpointManager, "_write", slow)
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    array, mutable = jnp.zeros(1 << 16), np.zeros(100)
    key = jax.random.key(3)
    manager = CheckpointManager(tmp_path)
    manager.save(0, {"x": array, "n": mutable, "k": key})
    assert started.wait(30) and not go.is_set()
    for _ in range(5):
        array = add(array)
    array.block_until_ready()
    mutable += 5
    key.delete()
    go.set()
    manager.wait()
    state = load_state(manager.info(0).path)
    assert not np.asarray(state.x).any() and not state.n.any() and state.k == jax.random.key(3)


def failing(manager: CheckpointManager, step: int, patch: pytest.MonkeyPatch) -> None:
    with patch.context() as context:
        context.setattr(os, "fsync", full)
        manager.save(step, model(float(step)))
        assert manager._pending is not None
        manager._pending.thread.join()


def full(descriptor: int) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("call", ["save", "latest", "steps", "load", "wait", "close", "info"])
def test_a_failed_save_is_raised_once_by_the_next_call_and_never_counts(
    call: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = CheckpointManager(tmp_path)
    saved(manager, [0, 1])
    manager.wait()
    failing(manager, 2, monkeypatch)
    arguments = {"save": (3, model(3.0)), "load": (model(0.0),), "info": (1,)}.get(call, ())
    with pytest.raises(OSError, match="No space") as error:
        getattr(manager, call)(*arguments)
    assert "step 2" in error.value.__notes__[0]
    assert manager.steps() == [0, 1] and manager.latest() == 1
    assert manager.load(model(9.0))["x"].value[0] == 1.0
    saved(manager, [2])
    assert manager.steps() == [0, 1, 2]
    assert len([name for name in os.listdir(tmp_path) if "step_" in name]) == 6


def test_a_failed_save_does_not_hide_another_error(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ZeroDivisionError) as error, CheckpointManager(tmp_path) as manager:
        failing(manager, 2, monkeypatch)
        raise ZeroDivisionError
    assert "No space" in error.value.__notes__[0]


PROGRAM = """
import os, sys, jax.numpy as jnp, moduli as nnx
from moduli_interop import CheckpointManager
manager = CheckpointManager(sys.argv[1], keep_last=3, format=sys.argv[2])
"""

AT_EXIT = """
manager.save(1, nnx.Dict(x=nnx.Param(jnp.ones(100))))
manager.wait()
def full(descriptor):
    raise OSError(28, "No space left on device")
os.fsync = full
manager.save(2, nnx.Dict(x=nnx.Param(jnp.ones(100))))
"""

ENDLESS = """
step = manager.latest()
step = -1 if step is None else step
print("from", step, flush=True)
while True:
    step += 1
    value = jnp.full((100_000,), float(step), jnp.float32)
    manager.save(step, {"x": value, "step": step}, metrics={"loss": -step})
    manager.wait()
    print(step, flush=True)
"""


def test_a_failed_save_is_told_at_the_end_of_the_program(tmp_path: pathlib.Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + AT_EXIT, str(tmp_path), "safetensors"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "save of step 2" in done.stderr and "No space left on device" in done.stderr
    assert CheckpointManager(tmp_path).steps() == [1]


def test_a_save_that_is_going_on_at_the_end_of_the_program_is_finished(
    tmp_path: pathlib.Path,
) -> None:
    program = PROGRAM + "manager.save(7, nnx.Dict(x=nnx.Param(jnp.ones(5_000_000))))"
    subprocess.run([sys.executable, "-c", program, str(tmp_path), "safetensors"], check=True)
    assert CheckpointManager(tmp_path).latest() == 7


def test_a_step_without_metrics_is_never_best_and_a_wrong_metric_is_an_error(
    tmp_path: pathlib.Path,
) -> None:
    manager = CheckpointManager(tmp_path, keep_best=("loss", "min"))
    manager.save(0, model(0.0), metrics={"loss": 3})
    manager.save(1, model(1.0))
    with pytest.raises(UnsupportedValueError, match=r"metric .loss., and the metrics of step 2"):
        manager.save(2, model(2.0), metrics={"los": 3})
    assert manager.steps() == [0, 1] and manager.best() == 0


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
@pytest.mark.parametrize("format", ["safetensors", "npz"])
def test_a_killed_run_goes_on_where_it_was(format: str, tmp_path: pathlib.Path) -> None:
    """The short form of ``nox -s faults``."""
    last = -1
    for wait in (0.03, 0.11):
        with subprocess.Popen(
            [sys.executable, "-c", PROGRAM + ENDLESS, str(tmp_path), format],
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == f"from {last}\n"
            process.stdout.readline()
            time.sleep(wait)
            process.send_signal(signal.SIGKILL)
            lines = process.stdout.read().split()
        manager = CheckpointManager(tmp_path)
        latest = manager.latest()
        assert latest is not None and latest >= max(map(int, lines), default=0)
        tree = manager.load({"x": jnp.zeros(100_000, jnp.float32), "step": 0})
        assert tree["step"] == latest and bool((tree["x"] == latest).all())
        last = latest
    manager.save(last + 1, {"x": jnp.zeros(3), "step": 0})
    manager.wait()
    steps = manager.steps()
    names = {name for name in os.listdir(tmp_path) if not name.startswith(".moduli-lock")}
    expected = {f"step_{step}.json" for step in steps}
    assert names == expected | {os.path.basename(manager.info(step).path) for step in steps}


def test_leftovers_of_dead_processes_go_and_those_of_living_ones_stay(
    tmp_path: pathlib.Path,
) -> None:
    program = (
        "import sys; from moduli_interop import atomic_folder, atomic_write\n"
        "with atomic_write(sys.argv[1]) as a, atomic_folder(sys.argv[2]) as b:\n"
        "    a.write(b'new'); a.flush(); open(b + '/part', 'w').close()\n"
        "    print('ready', flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "a"), str(tmp_path / "b")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (tmp_path / ".mine.0123456789abcdef.tmp").write_text("of another program")
        nnx.save(tmp_path / "first", model(1.0))
        assert len(os.listdir(tmp_path)) == 4  # the living process keeps its two
        process.kill()
    nnx.save(tmp_path / "second", model(1.0))
    assert sorted(os.listdir(tmp_path)) == [".mine.0123456789abcdef.tmp", "first", "second"]


def test_what_no_marker_names_goes_with_the_next_save(tmp_path: pathlib.Path) -> None:
    manager = CheckpointManager(tmp_path)
    saved(manager, [1])
    manager.wait()
    for name in ("step_1.0123456789abcdef.safetensors", "step_9.0123456789abcdef.safetensors"):
        (tmp_path / name).write_text("half")
    (tmp_path / "step_notes.txt").write_text("mine")
    assert manager.steps() == [1]
    saved(manager, [2])
    manager.wait()
    assert len(os.listdir(tmp_path)) == 2 * 2 + 2
    assert json.loads((tmp_path / "step_2.json").read_text())["step"] == 2


def test_old_step_that_cannot_be_removed_does_not_make_the_new_one_fail(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = CheckpointManager(tmp_path, keep_last=1, asynchronous=False)
    manager.save(0, {"n": 0})
    with monkeypatch.context() as patched:

        def fail(path: str) -> None:
            raise PermissionError(13, "Permission denied", path)

        patched.setattr(os, "unlink", fail)
        with pytest.warns(RuntimeWarning, match=r"step 1 was saved .* cannot be removed"):
            manager.save(1, {"n": 1})
    assert manager.load({"n": 0}) == {"n": 1}
    manager.save(2, {"n": 2})
    assert manager.steps() == [2]


@pytest.mark.parametrize("step", ["1", 1.0, True])
def test_step_that_is_no_whole_number_is_not_looked_for(step: Any, tmp_path: pathlib.Path) -> None:
    manager = CheckpointManager(tmp_path, asynchronous=False)
    manager.save(1, {"n": 1})
    for call in (lambda: manager.load({"n": 0}, step), lambda: manager.delete(step)):
        with pytest.raises(UnsupportedValueError, match="a step is a whole number"):
            call()
    assert manager.load({"n": 0}, np.int64(1)) == {"n": 1}
