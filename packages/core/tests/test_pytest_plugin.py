"""The fixtures that pytest gets from moduli, as the author of a plugin uses them."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from importlib.metadata import entry_points

import jax.numpy as jnp
import pytest

import moduli as nnx
from moduli import plugins

CONFTEST = """
import sys
assert "jax" not in sys.modules and "moduli" not in sys.modules
import jax
jax.config.update("jax_num_cpu_devices", 3)
"""
TESTS = """
import subprocess, sys
import jax, jax.numpy as jnp, pytest
import moduli as nnx

SOURCE = '''
    import moduli

    SHINY = 7

    @moduli.hookimpl
    def moduli_mode_attributes(mode):
        return {"shine": mode == "eval"}
'''
POINTS = {
    "moduli": {"shiny": "shiny_layers"},
    "moduli.names": {"SHINY": "shiny_layers:SHINY"},
}


def names():
    return [record.name for record in nnx.plugins.records()]


def test_it_is_installed_for_one_test(moduli_distribution):
    assert "shiny" not in names()
    folder = moduli_distribution("shiny-layers", SOURCE, POINTS)
    assert "shiny" in names() and nnx.SHINY == 7
    model = nnx.Dict(shine=None)
    model.eval()
    assert model.shine is True
    assert (folder / "shiny_layers.py").exists()


def test_and_not_for_the_next():
    assert "shiny" not in names() and not hasattr(nnx, "SHINY")
    assert "shiny_layers" not in sys.modules


def test_what_it_requires_is_read(moduli_distribution):
    moduli_distribution("shiny-layers", SOURCE, POINTS, requires=["moduli>=99"])
    with pytest.warns(nnx.PluginWarning, match="requires moduli>=99"):
        assert "shiny" in names()


def test_the_choice_of_plugins_is_read_anew(moduli_fresh_plugins, monkeypatch):
    monkeypatch.setenv("MODULI_PLUGINS", "none")
    assert {record.state for record in nnx.plugins.records()} <= {"blocked"}


def test_compilations(moduli_compilations):
    x, double = jnp.ones(3), jax.jit(lambda x: 2 * x)
    assert moduli_compilations(lambda: double(x)) == 1
    assert moduli_compilations(lambda: double(x), times=3) == 0
    assert jax.device_count() == 3
"""


def test_an_authors_tests_have_the_fixtures(tmp_path: pathlib.Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_mine.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error"]
    if not any(point.value == "moduli_pytest" for point in entry_points(group="pytest11")):
        command += ["-p", "moduli_pytest"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout


def test_two_installed_in_one_test_both_count(moduli_distribution) -> None:
    for name in ("one-plugin", "two-plugin"):
        point = {"moduli": {name: name.replace("-", "_")}}
        moduli_distribution(name, "import moduli", point)
        assert name in {record.name for record in plugins.records()}


def test_a_count_is_of_the_call_alone(moduli_compilations) -> None:
    jitted, x = nnx.jit(lambda model, x: model.w * x), jnp.ones(3)
    model = nnx.Dict(w=nnx.Param(x))
    assert moduli_compilations(lambda: jitted(model, x)) == 1
    with pytest.raises(ZeroDivisionError):
        moduli_compilations(lambda: 1 // 0)
    assert moduli_compilations(lambda: jitted(model, x), times=2) == 0
