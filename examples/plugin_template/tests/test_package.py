"""The package as its users meet it: its hooks, its entry points, its names under moduli."""

from __future__ import annotations

import ast
import importlib.metadata
import pathlib
import tomllib
from typing import Any

import moduli as nnx
import pytest
from moduli.testing import Case, Check, PluginCase, parametrize_with_checks

import moduli_running_scale

ROOT = pathlib.Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
POINTS: dict[str, dict[str, str]] = PROJECT.get("entry-points", {})
NAMES = sorted(POINTS.get("moduli.names", {}))


@parametrize_with_checks([PluginCase("moduli_running_scale._plugin")])
def test_its_hooks_pass_the_checks(case: Case, check: Check) -> None:
    check(case)


@pytest.mark.parametrize("group", sorted(POINTS))
def test_the_entry_points_load(group: str) -> None:
    for name, target in POINTS[group].items():
        importlib.metadata.EntryPoint(name, target, group).load()


def test_type_checkers_read_the_names_that_there_are() -> None:
    text = pathlib.Path(moduli_running_scale.__file__).read_text()
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    read = {alias.name for node in imports for alias in node.names}
    names = set(vars(moduli_running_scale)["__all__"])
    assert read - {"TYPE_CHECKING", "lazy_names"} == names
    assert names <= set(dir(moduli_running_scale))
    for name in names:
        getattr(moduli_running_scale, name)


@pytest.mark.parametrize("name", NAMES)
def test_the_names_are_under_moduli(name: str) -> None:
    try:
        importlib.metadata.distribution(PROJECT["name"])
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("it is not installed: pip install -e .")
    assert getattr(nnx, name) is getattr(moduli_running_scale, name)
