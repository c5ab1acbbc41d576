"""``python -m moduli inspect | verify | convert | diff``."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import moduli as nnx
from moduli._facade.command_line import main
from moduli_interop import CheckpointManager, load_state, save


@pytest.fixture
def path(tmp_path: pathlib.Path) -> str:
    weight = nnx.Param(jnp.arange(6.0, dtype=jnp.float32).reshape(2, 3))
    path = str(tmp_path / "a.safetensors")
    save(path, nnx.Dict({"w": weight, "tied": weight, "n": nnx.Param(2.5)}), metadata={"epoch": 3})
    return path


def damage(path: str) -> None:
    content = bytearray(pathlib.Path(path).read_bytes())
    content[-3] ^= 1
    pathlib.Path(path).write_bytes(content)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(arguments)
    out, err = capsys.readouterr()
    return status, out, err


def test_inspect_reads_headers_only(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    damage(path)
    status, out, _ = run(capsys, "inspect", path)
    assert status == 0 and "w = tied  Param  float32[2,3]  24" in out and "'epoch': 3" in out
    found = json.loads(run(capsys, "inspect", path, "--json")[1])
    assert next(leaf for leaf in found["leaves"] if leaf["path"] == "w") == {
        "path": "w", "kind": "Param", "type": "float32[2,3]", "bytes": 24, "aliases": ["tied"]
    }  # fmt: skip


def test_inspect_lists_foreign_tensors_and_steps(
    path: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "foreign.npz", kernel=np.ones((2, 3), np.float32))
    status, out, _ = run(capsys, "inspect", str(tmp_path / "foreign.npz"))
    assert status == 0 and "1 tensors, not written by moduli" in out and "kernel  float32" in out
    with CheckpointManager(tmp_path / "run") as manager:
        manager.save(5, {"x": jnp.ones(3)}, metrics={"loss": 0.25})
    status, out, _ = run(capsys, "inspect", str(tmp_path / "run"))
    assert status == 0 and "1 steps" in out and "loss 0.25" in out
    assert run(capsys, "verify", str(tmp_path / "run"))[0] == 0


def test_verify_names_the_damaged_array(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "verify", path)[:2] == (0, f"{path}: whole\n")
    damage(path)
    status, out, _ = run(capsys, "verify", path)
    assert status == 1 and "damaged: `w`" in out


def test_verify_goes_on_after_a_step_whose_marker_is_damaged(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with CheckpointManager(tmp_path) as manager:
        for step in range(3):
            manager.save(step, {"n": step})
    (tmp_path / "step_0.json").write_text("{")
    status, out, _ = run(capsys, "verify", str(tmp_path))
    assert status == 1
    assert "step_0.json of step 0 is damaged" in out
    assert out.count(": whole") == 2


@pytest.fixture
def partly(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder of steps 0 to 4, of which 0 alone is whole; what is wrong is different in each."""
    folder = tmp_path / "run"
    with CheckpointManager(folder) as manager:
        for step in range(5):
            manager.save(step, {"n": step, "x": np.arange(3.0)}, metrics={"loss": step})
    (folder / "step_1.json").write_text("{")
    os.unlink(manager.info(2).path)
    (folder / "step_3.json").unlink()
    (folder / "step_3.json").mkdir()
    damage(manager.info(4).path)
    return folder


def test_inspect_lists_the_good_steps_and_names_the_damaged(
    partly: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(capsys, "inspect", str(partly))
    assert status == 1 and not err
    lines = {int(line.split()[0]): line for line in out.splitlines()[1:]}
    assert "5 steps, 3 of them damaged" in out
    assert "loss 0" in lines[0] and "loss 4" in lines[4]  # no array is read
    assert "damaged: the marker" in lines[1] and "damaged: the marker" in lines[3]
    assert "is not there" in lines[2]
    found = json.loads(run(capsys, "inspect", str(partly), "--json")[1])
    assert [step["step"] for step in found["steps"]] == [0, 4]
    assert [step["step"] for step in found["damaged"]] == [1, 2, 3]


def test_verify_goes_on_after_whatever_is_wrong(
    partly: pathlib.Path, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(capsys, "verify", str(partly / "nothing"), str(partly), path)
    assert status == 2 and "nothing" in err
    assert out.count(": whole") == 2 and out.count("the step cannot be used") == 3
    assert "damaged: `x`" in out
    assert run(capsys, "verify", str(partly))[0] == 1


def test_convert_and_diff_take_the_newest_step_that_verifies(
    partly: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = str(tmp_path / "a.safetensors")
    status, _, err = run(capsys, "convert", str(partly), target)
    assert status == 0 and "step 0 is taken" in err and err.count("is passed over") == 4
    assert load_state(target).n == 0
    assert run(capsys, "diff", str(partly), target)[0] == 0
    (partly / "step_0.json").write_text("{")
    assert run(capsys, "diff", str(partly), target)[0] == 2


def test_diff_goes_on_after_a_damaged_array(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, number in (("a", 1.0), ("b", 2.0)):
        save(tmp_path / f"{name}.safetensors", {"x": np.full(3, number), "y": np.ones(2)})
    damage(str(tmp_path / "b.safetensors"))
    status, out, _ = run(capsys, "diff", *(str(tmp_path / f"{n}.safetensors") for n in "ab"))
    assert status == 1
    assert "`y` cannot be compared" in out and "`x`: 3 of 3 numbers differ" in out


def test_convert_keeps_everything(
    path: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there, back = str(tmp_path / "b.npz"), str(tmp_path / "c.safetensors")
    assert run(capsys, "convert", path, there)[0] == 0
    assert run(capsys, "convert", there, back)[0] == 0
    assert pathlib.Path(path).read_bytes() == pathlib.Path(back).read_bytes()
    assert load_state(there).n.value == 2.5
    assert run(capsys, "diff", path, there)[:2] == (0, "equal: 2 leaves\n")
    damage(path)
    status, _, err = run(capsys, "convert", path, str(tmp_path / "d.npz"))
    assert status == 2 and "damaged: `w`" in err and not (tmp_path / "d.npz").exists()


def test_diff_says_what_differs_and_by_how_much(
    path: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = str(tmp_path / "b.npz")
    weight = jnp.arange(6.0, dtype=jnp.float32).reshape(2, 3).at[0, 1].add(0.5)
    save(other, nnx.Dict({"w": nnx.Param(weight), "n": nnx.Param(3.5), "z": nnx.Param(1)}))
    status, out, _ = run(capsys, "diff", path, other)
    assert status == 1
    assert "`w`: 1 of 6 numbers differ, by at most 0.5" in out
    assert "`n`: 2.5 and 3.5" in out
    assert "only in the second: `z` (Param int)" in out
    assert "metadata: {'epoch': 3} and {}" in out


def test_errors_are_one_line(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["inspect"], ["verify"], ["diff", "x"], ["convert", "x"]):
        status, out, err = run(capsys, *command, str(tmp_path / "none"))
        assert status == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1


def test_from_a_shell_and_without_the_package(path: str) -> None:
    command = [sys.executable, "-W", "error", "-m", "moduli"]
    done = subprocess.run([*command, "verify", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{path}: whole\n"), done.stderr
    program = (
        "import sys; sys.modules['moduli_interop'] = None\n"
        "from moduli._facade.command_line import main\n"
        "sys.exit(main(['verify', 'x']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "MODULI_PLUGINS": "none"},
    )
    assert done.returncode == 2 and 'pip install "moduli[interop]"' in done.stderr


@pytest.mark.parametrize("command", ["inspect", "verify", "diff"])
def test_a_reader_that_leaves_ends_the_program_without_a_traceback(command: str, path: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    arguments = [command, path, path] if command == "diff" else [command, path]
    with os.fdopen(writing, "wb") as output:
        program = subprocess.run(
            [sys.executable, "-m", "moduli", *arguments], stdout=output, stderr=subprocess.PIPE
        )
    assert b"Error" not in program.stderr, program.stderr
    assert program.returncode == 141


def test_foreign_weights_are_converted_and_compared(
    path: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch")
    state = {"a.weight": torch.arange(6.0).reshape(3, 2).T, "a.bias": torch.ones(3).bfloat16()}
    one, other, made = (str(tmp_path / name) for name in ("1.pt", "2.npz", "3.safetensors"))
    torch.save({"state_dict": state, "epoch": 3}, one)
    status, out, _ = run(capsys, "convert", one, made)
    assert (status, out) == (0, f"{made}: 2 tensors, with their names in {one}\n")
    found = nnx.read_tensors(made)
    np.testing.assert_array_equal(found["state_dict.a.weight"].read(), state["a.weight"])
    assert run(capsys, "diff", one, made)[:2] == (0, "equal: 2 tensors\n")
    np.savez(other, **{"state_dict.a.weight": np.arange(6.0, dtype="f").reshape(3, 2).T + 0.5})
    status, out, _ = run(capsys, "diff", one, other)
    assert status == 1
    assert out.splitlines() == [
        "`state_dict.a.weight`: 6 of 6 numbers differ, by at most 0.5",
        "only in the first: `state_dict.a.bias` (bfloat16[3])",
    ]
    for command in (("convert", one, str(tmp_path / "4.npz")), ("diff", one, path)):
        status, _, err = run(capsys, *command)
        assert status == 2 and err.startswith("error: ") and "Traceback" not in err
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(pathlib.Path(made).read_bytes()[:-1])
    assert run(capsys, "convert", str(damaged), str(tmp_path / "5.safetensors"))[0] == 2
    damage(path)
    assert run(capsys, "convert", path, str(tmp_path / "5.safetensors"))[0] == 2
    assert not (tmp_path / "5.safetensors").exists()
