"""What moduli-layers declares: the hook for modes, and its public names."""

from __future__ import annotations

import pickle
import subprocess
import sys
import tomllib
from importlib import resources
from pathlib import Path

import pytest

import moduli
import moduli_layers
from moduli_layers import BatchNorm, Dropout, _plugin

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
PLACES = ["Conv", "Linear", "BatchNorm", "Dropout", "Sequential"]


@pytest.mark.parametrize(("mode", "expected"), [("train", False), ("eval", True)])
def test_mode_attributes(mode: str, expected: bool) -> None:
    attributes = _plugin.moduli_mode_attributes(mode)  # pyright: ignore[reportArgumentType]
    assert attributes == {"deterministic": expected, "use_running_average": expected}


def test_train_and_eval_reach_layers_through_the_installed_plugin() -> None:
    class Model(moduli.Module):
        def __init__(self) -> None:
            self.parts = [Dropout(0.5), BatchNorm(2, rngs=moduli.Rngs(0))]

    model = Model()
    model.eval()
    assert model.parts[0].deterministic is True
    assert model.parts[1].use_running_average is True
    model.train()
    assert model.parts[0].deterministic is False
    assert model.parts[1].use_running_average is False


def test_importing_the_plugin_brings_nothing_foreign() -> None:
    code = (
        "import sys, moduli; before = set(sys.modules); import moduli_layers._plugin; "
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(run.stdout.split()) - set(sys.stdlib_module_names) == {"moduli_layers"}


SUBMODULES = ("counterparts", "initializers")  # those with names of their own in the facade


def declared() -> dict[str, str]:
    """Returns the names that pyproject.toml declares for the facade."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    return project["entry-points"]["moduli.names"]


def test_every_public_name_is_declared_and_resolves() -> None:
    public = {name for name in dir(moduli_layers) if not name.startswith("_")} - {"errors"}
    assert set(declared()) == public
    for name, place in declared().items():
        module, _, attribute = place.partition(":")
        assert module in {"moduli_layers", *(f"moduli_layers.{name}" for name in SUBMODULES)}
        expected = getattr(moduli_layers, attribute or name)
        assert getattr(moduli, name) is expected


@pytest.mark.parametrize("name", PLACES)
def test_classes_say_their_public_place(name: str) -> None:
    cls = getattr(moduli_layers, name)
    assert cls.__module__ == "moduli_layers"
    assert pickle.loads(pickle.dumps(cls)) is cls
    assert repr(cls) == f"<class 'moduli_layers.{name}'>"


def test_is_marked_as_typed() -> None:
    assert resources.files("moduli_layers").joinpath("py.typed").is_file()
