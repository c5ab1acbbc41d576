"""Runs that are killed, or told to stop, end as one that was not; ``nox -s kills`` does more."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

HERE = pathlib.Path(__file__).parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
]

PROGRAM = """
import os, signal, sys, time
signal.signal(signal.SIGINT, getattr(signal, sys.argv[4]))
import jax.numpy as jnp, moduli as nnx
model = nnx.Dict({"w": nnx.Param(jnp.zeros(()))})
with nnx.Run(sys.argv[1], model=model, data=[1.0], progress=False) as run:
    for batch in run.steps(int(sys.argv[2])):
        model["w"].value += batch
        run.log(w=model["w"].value)
        if run.step == 3:
            print("here", flush=True)
        deadline = time.monotonic() + float(sys.argv[3])
        while run.step >= 3 and time.monotonic() < deadline:
            time.sleep(0.01)
print("end", float(model["w"].value))
"""


def test_killed_runs_end_as_one_that_was_never_killed() -> None:
    options = ["--kills", "3", "--terms", "0", "--calls", "1", "--cases", "1", "--seed", "3"]
    done = subprocess.run(
        [sys.executable, str(HERE / "kills.py"), *options], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all equal" in done.stdout


@pytest.mark.parametrize(
    ("signals", "code", "saved", "before"),
    [
        ([signal.SIGTERM], 143, 3, "default_int_handler"),
        ([signal.SIGINT], -signal.SIGINT, 3, "default_int_handler"),
        ([signal.SIGINT, signal.SIGINT], -signal.SIGINT, 0, "default_int_handler"),
        ([signal.SIGTERM, signal.SIGTERM], -signal.SIGTERM, 0, "default_int_handler"),
        ([signal.SIGINT, signal.SIGINT], -signal.SIGINT, 0, "SIG_IGN"),  # as after `command &`
    ],
)
def test_the_first_signal_ends_after_the_step_and_the_second_at_once(
    tmp_path: pathlib.Path, signals: list[int], code: int, saved: int, before: str
) -> None:
    last = "0.5" if len(signals) == 1 else "60"
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), "5", last, before]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    try:
        assert process.stdout.readline() == "here\n"
        err = ""
        for number in signals:
            if err:  # the first one's handler has returned: what it interrupted, as a callback of
                time.sleep(0.3)  # the garbage collector, may swallow what the second one raises
            process.send_signal(number)
            while "the step is finished and saved" not in err:  # two signals at once would be one
                line = process.stderr.readline()
                assert line, err
                err += line
        out, rest = process.communicate(timeout=50)
        err += rest
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, out) == (code, ""), err
    assert "the step is finished and saved" in err
    steps = [int(path.stem[5:]) for path in tmp_path.glob("step_*.json")]
    assert max(steps, default=0) == saved
    if saved:
        again = subprocess.run(
            [*command[:-2], "0", before], capture_output=True, text=True, check=True
        )
        assert again.stdout == "end 5.0\n"
