"""The example plugin is what the generator writes, and works when it is installed."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tomllib

import pytest

from moduli._facade.new_plugin import PARTS
from moduli._facade.new_plugin.generate import files
from moduli._facade.new_plugin.names import names_of

ROOT = pathlib.Path(__file__).resolve().parent.parent
TEMPLATE = ROOT / "examples" / "plugin_template"
IGNORED = ("__pycache__", ".pytest_cache", ".ruff_cache", ".mypy_cache", ".nox")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with the metadata that an installation would write, next to the plugin's source."""
    project = tomllib.loads((TEMPLATE / "pyproject.toml").read_text())["project"]
    target = tmp_path_factory.mktemp("site")
    info = target / f"moduli_running_scale-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    groups = project["entry-points"].items()
    (info / "entry_points.txt").write_text(
        "".join(
            f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
            for group, points in groups
        )
    )
    (target / "moduli_running_scale").symlink_to(TEMPLATE / "src" / "moduli_running_scale")
    return target


def run(installed: pathlib.Path, *command: str) -> str:
    path = os.pathsep.join([str(installed), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "MODULI_STRICT": "1"}
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        env=env,
        cwd=TEMPLATE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_what_the_generator_writes():
    parts = frozenset(PARTS)
    made = files(names_of("moduli-running-scale", parts), parts)
    found = {
        path.relative_to(TEMPLATE).as_posix(): path.read_text()
        for path in TEMPLATE.rglob("*")
        if path.is_file() and not set(IGNORED) & set(path.parts)
    }
    assert found == made, (
        "write it anew: python -m moduli new-plugin moduli-running-scale --layer --tool --format "
        "--bridge --transform"
    )


def test_it_is_listed_with_its_hooks_and_doctor_finds_no_fault(installed):
    report = json.loads(run(installed, "-m", "moduli", "doctor", "--json"))
    entry = next(p for p in report["plugins"] if p["name"] == "running_scale")
    hooks = ["bridges", "checkpoint_formats", "mode_attributes", "variable_names"]
    assert entry["hooks"] == [f"moduli_{hook}" for hook in hooks]
    assert entry["state"] == "active" and report["problems"] == []
    owners = report["owners"]
    mine = "moduli-running-scale 0.1.0"
    assert owners["name of moduli"]["RunningScale"] == mine
    assert mine in owners["checkpoint format"]["running_scale"]


def test_its_own_tests_and_docstrings_pass(installed):
    options = ["-c", "pyproject.toml", "--rootdir", str(TEMPLATE), "-p", "no:cacheprovider"]
    out = run(installed, "-m", "pytest", "-q", *options)
    assert "failed" not in out and int(out.split(" passed")[0].split()[-1]) > 70
    assert "1 skipped" not in out  # that it is not installed
