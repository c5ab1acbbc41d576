"""The example plugin works when it is installed, found by its entry points like any other's."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tomllib

import pytest

TEMPLATE = pathlib.Path(__file__).resolve().parent.parent / "examples" / "plugin_template"


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
    env = {**os.environ, "PYTHONPATH": str(installed), "MODULI_STRICT": "1"}
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


def test_it_is_listed_with_its_hooks(installed):
    report = json.loads(run(installed, "-m", "moduli", "plugins", "--json"))
    entry = next(p for p in report["plugins"] if p["name"] == "running_scale")
    assert entry["hooks"] == ["moduli_mode_attributes", "moduli_variable_names"]
    assert entry["state"] == "active"


def test_its_own_tests_and_docstrings_pass(installed):
    paths = ["tests", "src", "--doctest-modules"]
    options = ["-c", "pyproject.toml", "--rootdir", str(TEMPLATE), "-p", "no:cacheprovider"]
    out = run(installed, "-m", "pytest", "-q", *options, *paths)
    assert "6 passed" in out
