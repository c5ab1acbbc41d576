"""In a clean environment core alone is small and says what is missing; extras bring just theirs."""

from __future__ import annotations

import json
import pathlib
import shutil
import zipfile

import pytest
from clean_environments import PACKAGES, Environment, build, run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The five wheels, built from this checkout."""
    target = tmp_path_factory.mktemp("wheels")
    build(target, *PACKAGES, wheels_only=True)
    return target


@pytest.fixture(scope="module")
def core_alone(wheels: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    found = Environment(tmp_path_factory.mktemp("core") / "venv")
    found.install("packaging", *map(str, wheels.glob("moduli-*.whl")))
    return found


def test_core_alone_brings_jax_and_pluggy_and_nothing_else(core_alone: Environment) -> None:
    installed, needed = core_alone.distributions("jax", "jaxlib", "numpy", "pluggy")
    assert installed == needed | {"moduli"}


def test_core_alone_works(core_alone: Environment) -> None:
    code = """
import moduli as nnx
model = nnx.Dict(w=nnx.Param(3.0))
print(float(nnx.jit(nnx.grad(lambda m: m.w.value ** 2))(model).w.value))
"""
    assert core_alone.run(code).strip() == "6.0"


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("Linear", "layers"),
        ("initializers", "layers"),
        ("counterparts", "layers"),
        ("capture", "debug"),
        ("Optimizer", "train"),
        ("save", "interop"),
    ],
)
def test_a_missing_name_says_what_to_install(core_alone: Environment, name, extra) -> None:
    code = f"""
import moduli
try:
    moduli.{name}
except AttributeError as error:
    print(error)
"""
    assert f'pip install "moduli[{extra}]"' in core_alone.run(code)


@pytest.mark.parametrize("call", ["sow(moduli.Intermediate, 'h', 1)", "perturb('h', 1.0)"])
def test_sow_and_perturb_say_what_to_install(core_alone: Environment, call) -> None:
    code = f"""
import moduli
try:
    moduli.Dict().{call}
except moduli.errors.ModuliError as error:
    print(error)
"""
    assert 'pip install "moduli[debug]"' in core_alone.run(code)


def test_the_doctor_finds_core_alone_healthy(core_alone: Environment) -> None:
    done = run([core_alone.python, "-m", "moduli", "doctor", "--json"])
    report = json.loads(done.stdout)
    assert report["problems"] == [] and report["versions"]["moduli-layers"] is None


def test_extras_bring_just_their_packages(core_alone: Environment, wheels: pathlib.Path) -> None:
    core_alone.install("--find-links", str(wheels), "moduli[layers,debug]")
    installed, needed = core_alone.distributions("moduli", "moduli-layers", "moduli-debug")
    assert installed == needed
    assert not installed & {"moduli-train", "moduli-interop", "optax"}
    code = """
import jax.numpy as jnp, moduli as nnx
class Model(nnx.Module):
    def __init__(self):
        self.layer = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    def __call__(self, x):
        self.sow(nnx.Intermediate, "h", self.layer(x))
model = Model()
model(jnp.ones((1, 2)))
print(model.h.value[0].shape)
try:
    nnx.Optimizer
except AttributeError as error:
    print(error)
"""
    shape, message = core_alone.run(code).strip().splitlines()
    assert shape == "(1, 3)" and 'pip install "moduli[train]"' in message


def test_wheels_are_typed_licensed_and_hold_no_tests(wheels: pathlib.Path) -> None:
    found = sorted(wheels.glob("*.whl"))
    assert len(found) == len(PACKAGES)
    for wheel in found:
        names = zipfile.ZipFile(wheel).namelist()
        assert any(name.endswith("py.typed") for name in names), wheel.name
        assert any(name.endswith("LICENSE") for name in names), wheel.name
        assert not [name for name in names if "test_" in name], wheel.name


def test_a_plugin_built_as_a_wheel_passes_its_tests_against_wheels_of_ours(
    wheels: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    found = Environment(tmp_path / "venv")
    found.install("--find-links", str(wheels), "moduli[interop]", "pytest", "hatchling")
    made = tmp_path / "moduli-shiny"
    parts = ["--layer", "--tool", "--format"]
    new = [found.python, "-m", "moduli", "new-plugin", made.name, *parts]
    run([*new, "--into", str(tmp_path)])
    assert made.is_dir()
    code = "import hatchling.build as b, os, sys; os.chdir(sys.argv[1]); print(b.build_wheel('.'))"
    wheel = made / found.run(code, str(made)).strip().splitlines()[-1]
    found.install("--find-links", str(wheels), str(wheel))
    shutil.rmtree(made / "src")  # what is tested is what is installed
    options = ["-c", str(made / "pyproject.toml"), "--rootdir", str(made), "-o", "pythonpath="]
    pytest_ = [found.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    done = run([*pytest_, str(made / "tests")], MODULI_STRICT="1")
    assert "failed" not in done.stdout and "it is not installed" not in done.stdout
    report = json.loads(run([found.python, "-m", "moduli", "doctor", "--json"]).stdout)
    assert report["problems"] == []
    assert "shiny" in [plugin["name"] for plugin in report["plugins"]]
