"""examples/multihost.py: the same bits in one process and in several, after kills and signals too.

``nox -s multihost`` runs every row; otherwise the shortest.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "examples" / "multihost.py"
LONG = bool(os.environ.get("MULTIHOST"))
COUNTS = [1, 2, 4] if LONG else [1, 2]


def command(folder, processes, devices=4, steps=12, **options):
    sizes = {"processes": processes, "devices": devices, "steps": steps, "save-every": 4, **options}
    words = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    return [sys.executable, str(PROGRAM), "--folder", str(folder), *words]


def run(*args, expected=0, **options):
    done = subprocess.run(
        command(*args, **options), capture_output=True, text=True, timeout=200, check=False
    )
    assert (done.returncode == 0) == (expected == 0), done.stderr
    return done.stdout


def digest(printed):
    (found,) = re.findall(r"digest (\w+)", printed)  # one process prints
    return found


def log(folder):
    """Rows of the log without the times."""
    rows = [line.split(",") for line in (folder / "log.csv").read_text().splitlines()]
    assert rows[0][:3] == ["step", "epoch", "seconds"]
    return [row[:2] + row[3:] for row in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run in one process that nobody disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    printed = run(folder, 1)
    assert [row[0] for row in log(folder)[1:]] == [str(step) for step in range(1, 13)]
    return folder, digest(printed)


@pytest.mark.slow
@pytest.mark.parametrize("processes", COUNTS[1:])
def test_several_processes_compute_the_same_bits(whole, tmp_path, processes):
    assert digest(run(tmp_path, processes)) == whole[1]
    assert log(tmp_path) == log(whole[0])


@pytest.mark.parametrize("processes", COUNTS if LONG else [1])
def test_after_a_process_was_killed_the_run_goes_on(whole, tmp_path, processes):
    start = time.monotonic()
    run(tmp_path, 2, kill="1@7", expected=1)
    assert time.monotonic() - start < 60 + 10 + 30  # starting, the heartbeat, and the grace
    assert [path.name for path in tmp_path.glob("step_*.json")] == ["step_4.json"]
    assert digest(run(tmp_path, processes)) == whole[1]
    assert log(tmp_path) == log(whole[0])


@pytest.mark.skipif(not LONG, reason="nox -s multihost")
@pytest.mark.parametrize("devices", [8, 2, 1])
def test_the_run_goes_on_with_other_devices(whole, tmp_path, devices):
    run(tmp_path, 2, steps=8)
    run(tmp_path, 1, devices)
    ours, theirs = log(tmp_path)[1:], log(whole[0])[1:]
    assert [float(row[-1]) for row in ours] == pytest.approx(
        [float(row[-1]) for row in theirs], rel=1e-5
    )


@pytest.mark.skipif(not LONG, reason="nox -s multihost")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_processes_after_a_saved_step(tmp_path, number):
    stopped, never = tmp_path / "stopped", tmp_path / "never"
    with subprocess.Popen(command(stopped, 2, steps=100_000)) as process:
        while not (stopped / "step_4.json").exists():
            time.sleep(0.1)
            assert process.poll() is None
        process.send_signal(number)
        assert process.wait(60) == 143
    last = max(int(path.stem.removeprefix("step_")) for path in stopped.glob("step_*.json"))
    assert digest(run(stopped, 2, steps=last + 3)) == digest(run(never, 1, steps=last + 3))
    assert log(stopped) == log(never)
