"""The package is found through entry points and is light until it is used."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

import moduli as nnx
import moduli_interop


@pytest.mark.parametrize(
    "name", ["CheckpointError", "inspect_checkpoint", "load", "load_state", "save"]
)
def test_public_names_are_reached_through_moduli(name: str) -> None:
    assert getattr(nnx, name) is getattr(moduli_interop, name)
    assert name in dir(nnx)


def run(program: str, plugins: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "MODULI_PLUGINS": plugins}
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_switched_off_plugin_is_named(file: pathlib.Path) -> None:
    program = "import sys, moduli; moduli.save(sys.argv[1], moduli.Dict(x=moduli.Param(1.0)))"
    assert run(program, "interop", str(file)).returncode == 0
    result = run(program, "none", str(file))
    assert result.returncode == 1
    assert "plugin `interop` is switched off (see MODULI_PLUGINS" in result.stderr


def test_plugin_imports_no_format_before_it_is_used() -> None:
    program = (
        "import sys, moduli\n"
        "moduli.variable_type_from_name('params')\n"
        "assert 'moduli_interop._plugin' in sys.modules\n"
        "assert 'moduli_interop._npz.write' not in sys.modules\n"
    )
    result = run(program, "interop")
    assert result.returncode == 0, result.stderr
