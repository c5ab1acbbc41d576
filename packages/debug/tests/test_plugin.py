"""What moduli-debug declares: two hooks and its public names."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib import resources
from pathlib import Path

import pytest

import moduli
import moduli_debug

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def run(code: str, **environment: str) -> str:
    """Runs a program in a process of its own and returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    return done.stdout.strip()


def test_importing_the_plugin_brings_nothing_foreign() -> None:
    code = (
        "import sys, moduli; before = set(sys.modules); import moduli_debug._plugin; "
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    assert set(run(code).split()) - set(sys.stdlib_module_names) == {"moduli_debug"}


@pytest.mark.parametrize(
    ("call", "feature"),
    [("sow(nnx.Intermediate, 'a', 1.0)", "sow"), ("perturb('a', 1.0)", "perturb")],
)
def test_without_the_plugin_the_error_is_the_pip_command(call: str, feature: str) -> None:
    code = (
        "import moduli as nnx\n"
        "try:\n"
        f"    nnx.Module().{call}\n"
        "except nnx.errors.MissingPluginError as error:\n"
        "    print(error)"
    )
    printed = run(code, MODULI_PLUGINS="none")
    assert 'pip install "moduli[debug]"' in printed
    assert feature in printed


def test_every_declared_name_resolves() -> None:
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    declared = project["entry-points"]["moduli.names"]
    assert "capture" in declared
    for name, target in declared.items():
        assert target in (f"moduli_debug:{name}", f"moduli_debug.{name}")
        assert getattr(moduli, name) is getattr(moduli_debug, name)


def test_says_its_public_place() -> None:
    assert moduli_debug.capture.__module__ == "moduli_debug"


def test_is_marked_as_typed() -> None:
    assert resources.files("moduli_debug").joinpath("py.typed").is_file()
