"""The matrix asks for what it says, sees what really runs, and skips what is not there."""

from __future__ import annotations

import json
import os
import pathlib
import re
import runpy
import shutil
import subprocess
import sys
import tomllib

import pytest

import moduli_matrix
from moduli_matrix import cell as cells
from moduli_matrix import noxfile, probe, supported

ROOT = pathlib.Path(__file__).resolve().parents[3]
SOURCE = ROOT / "packages" / "matrix" / "src"
BACKEND = {backend.name: backend for backend in moduli_matrix.BACKENDS}


def test_it_imports_neither_jax_nor_nox():
    code = "import sys, moduli_matrix; assert not {'jax', 'numpy', 'nox'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(SOURCE)}, check=True)


def test_the_table_of_the_docs_is_the_matrixs():
    page = (ROOT / "docs" / "supported_versions.md").read_text()
    assert f"<!-- table -->\n\n{moduli_matrix.table()}\n<!-- end -->" in page


def test_pythons_and_the_lowest_jax_are_those_of_the_packages():
    for name in ("core", "layers", "debug", "train", "interop", "matrix"):
        text = (ROOT / "packages" / name / "pyproject.toml").read_text()
        project = tomllib.loads(text)["project"]
        listed = re.findall(r":: Python :: (3\.\d+)", "\n".join(project["classifiers"]))
        assert tuple(listed) == moduli_matrix.PYTHONS, name
        assert project["requires-python"] == f">={moduli_matrix.PYTHONS[0]}", name
    core = tomllib.loads((ROOT / "packages" / "core" / "pyproject.toml").read_text())["project"]
    (lowest,) = [need for need in core["dependencies"] if need.startswith("jax>=")]
    assert f"{lowest.removeprefix('jax>=')}.0" == moduli_matrix.JAX["lowest"]


FOUND = {
    **{"python": "3.12.1", "jax": "0.12.0.1", "jaxlib": "0.12.0.1", "platform": "cpu"},
    **{"kind": "cpu", "devices": 8, "x64": False},
}


@pytest.mark.parametrize(
    ("asked", "wrong"),
    [
        ({"python": "3.12", "jax": "newest", "platform": "cpu", "devices": 8, "x64": False}, []),
        ({"devices": None}, []),
        ({"python": "3.1"}, ["python: asked for 3.1, got 3.12.1"]),
        ({"jax": "0.9.0"}, ["jax: asked for 0.9.0, got 0.12.0.1"]),
        ({"jax": "nightly"}, ["jax: asked for nightly, got 0.12.0.1"]),
        ({"platform": "gpu"}, ["platform: asked for gpu, got cpu"]),
        (
            {"devices": 4, "x64": True},
            ["devices: asked for 4, got 8", "x64: asked for True, got False"],
        ),
    ],
)
def test_each_difference_is_found(asked, wrong):
    assert probe.differences(asked, FOUND) == wrong


CONFTEST = """
import jax
jax.config.update("jax_num_cpu_devices", 4)
"""


@pytest.mark.parametrize("workers", [[], ["-n", "1"]])
@pytest.mark.parametrize("asked", [4, 8])
def test_a_conftest_that_changes_devices_is_no_false_green(tmp_path, workers, asked):
    if workers:
        pytest.importorskip("xdist")
    shutil.copyfile(probe.__file__, tmp_path / f"{cells.PROBE}.py")
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_it.py").write_text("def test_it(): pass\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "XLA_"))}
    env = {
        **clean,
        **{"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(asked)},
        **{"PYTHONPATH": str(tmp_path), probe.ASKED: json.dumps({"devices": asked})},
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", cells.PROBE, *workers, str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path)
    assert f"{4} x cpu" in done.stdout, done.stdout + done.stderr
    assert (done.returncode == 0) == (asked == 4), done.stdout
    assert ("asked for 8, got 4" in done.stdout) == (asked == 8)


@pytest.mark.parametrize("name", ["cpu", "cpu8", "x64"])
def test_the_environment_of_a_backend_gives_just_that(name):
    backend = BACKEND[name]
    outer = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=3"}
    env = {k: v for k, v in {**outer, **backend.environment()}.items() if v is not None}
    env |= {"XLA_FLAGS": "", probe.ASKED: json.dumps({"devices": backend.devices})}
    env[probe.ASKED] = json.dumps(
        {"devices": backend.devices, "x64": backend.x64, "platform": "cpu"}
    )
    done = subprocess.run(
        [sys.executable, probe.__file__], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"{backend.devices} x cpu" in done.stdout


def test_the_environment_keeps_other_flags_of_xla(monkeypatch):
    flags = "--xla_force_host_platform_device_count=3 --xla_dump_to=here"
    monkeypatch.setenv("XLA_FLAGS", flags)
    assert BACKEND["cpu8"].environment()["XLA_FLAGS"] == "--xla_dump_to=here"


def test_what_is_absent_says_so(monkeypatch):
    monkeypatch.setattr(supported, "nvidia_gpus", lambda: 0)
    monkeypatch.setattr(supported, "tpu_chips", lambda: 0)
    monkeypatch.delenv(supported.NIGHTLY_INDEX, raising=False)
    for jax, name, reason in [
        ("newest", "gpu", "no NVIDIA GPU"),
        ("newest", "tpu", "no TPU"),
        ("nightly", "cpu", "set JAX_NIGHTLY_INDEX"),
        ("newest", "cpu", None),
    ]:
        found = moduli_matrix.Cell("3.12", jax, BACKEND[name]).absent()
        assert (found is None) if reason is None else reason in str(found), (jax, name)
    monkeypatch.setenv(supported.NIGHTLY_INDEX, "here")
    assert moduli_matrix.Cell("3.12", "nightly", BACKEND["cpu"]).absent() is None
    assert "Python 3.11" in str(moduli_matrix.Cell("3.11", "nightly", BACKEND["cpu"]).absent())


def test_as_many_gpus_as_are_visible(monkeypatch, tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: H100'\necho '  MIG 1g'\necho 'GPU 1: H100'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert BACKEND["gpu"].expected_devices() == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert BACKEND["gpu"].expected_devices() == 1


def test_words_choose_cells_and_the_rest_goes_to_the_tests():
    grid = [
        moduli_matrix.Cell(python, jax, backend)
        for python in supported.PYTHONS
        for jax in supported.JAX
        for backend in supported.BACKENDS
    ]
    assert len(grid) == 60
    chosen, rest = noxfile.choose(grid, ["3.12", "newest", "cpu8", "-x", "cpu"])
    assert [cell.words for cell in chosen] == [("3.12", "newest", "cpu8")]
    assert rest == ["-x", "cpu"]
    assert noxfile.choose(grid, []) == (grid, [])
    assert noxfile.choose(grid, ["cpu", "tpu"])[0] == []


@pytest.mark.parametrize("wrong", [{"jax": ["oldest"]}, {"backends": ["cuda"]}])
def test_a_name_that_is_none_says_which_there_are(wrong):
    with pytest.raises(ValueError, match=r"write (lowest|cpu) or"):
        moduli_matrix.cells(**wrong)


@pytest.mark.parametrize("where", ["plugin", "ours"])
def test_nox_lists_each_session_with_one_line(tmp_path, where):
    pytest.importorskip("nox")
    file = ROOT / "noxfile.py"
    if where == "plugin":
        file = tmp_path / "noxfile.py"
        lines = ["import moduli_matrix", "", 'moduli_matrix.sessions(".[test]", run="pytest")']
        file.write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-m", "nox", "-f", str(file), "-l"]
    env = {**os.environ, "PYTHONPATH": str(SOURCE)}
    out = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    listed = re.findall(r"^[*-] (\S+)(.*)$", out, re.M)
    assert len([name for name, _ in listed if name.startswith("matrix-3.")]) == 60
    for name, about in listed:
        assert re.fullmatch(r" -> [^ ].{10,100}", about), name
    assert " -> The tests on Python 3.12, lowest JAX (0.9.0), CPU with 8 devices." in out
    assert " -> The tests on Python 3.11, newest JAX (0.10.2, its last), CPU." in out
    assert " -> The tests on Python 3.11, nightly JAX (it has none), CPU." in out
    assert " -> The tests on Python 3.13, newest JAX, CPU." in out


def test_the_short_form_of_a_cell_runs_tests_of_every_package():
    pytest.importorskip("nox")
    short = runpy.run_path(str(ROOT / "noxfile.py"))["SHORT"]
    assert [path for path in short if not (ROOT / path).is_file()] == []
    tested = {path.split("/")[1] for path in short if path.startswith("packages/")}
    assert tested == {path.name for path in (ROOT / "packages").iterdir() if path.is_dir()}
