"""``python -m moduli new-plugin``: names, files; nothing is overwritten or half written."""

from __future__ import annotations

import itertools
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import pytest

import moduli
from moduli import errors, hookspecs
from moduli._facade import command_line
from moduli._facade.new_plugin import PARTS, generate
from moduli._facade.new_plugin.generate import files
from moduli._facade.new_plugin.names import names_of
from moduli._plugins.requirements import meets

ALL = frozenset(PARTS)
SUBSETS = [frozenset(s) for n in range(1, 6) for s in itertools.combinations(PARTS, n)]

GOOD = {
    "moduli-shiny": ("moduli_shiny", "shiny", "Shiny"),
    "Moduli_Running.Scale": ("moduli_running_scale", "running_scale", "RunningScale"),
    "shiny": ("shiny", "shiny", "Shiny"),
    "moduli-3d": ("moduli_3d", "moduli_3d", "Moduli3d"),
    "moduli-class": ("moduli_class", "moduli_class", "ModuliClass"),
    "x": ("x", "x", "X"),
    "a-1": ("a_1", "a_1", "A1"),
}
BAD = {
    "": "no name of a distribution",
    "-shiny": "take 'shiny'",
    "shiny layers": "take 'shiny-layers'",
    "../shiny": "take 'shiny'",
    "/tmp/shiny": "take 'tmp-shiny'",
    "shiny/..": "no name of a distribution",
    "glänzend": "no name of a distribution",
    "3d": "take 'moduli-my-3d'",
    "class": "a keyword; take 'moduli-my-class'",
    "none": "'None' in Python, which is a keyword",
    "json": "another package",
    "numpy": "another package",
    "tests": "another package",
    "moduli": "moduli's own",
    "Moduli.Layers": "moduli's own",
    "layers": "moduli's own",
    "moduli-linear": "moduli.Linear is a name of moduli-layers",
    "moduli-module": "moduli.Module is a name of core",
    "moduli-npz": "a format 'npz'",
    "moduli-" + "x" * 25: "too long",
}


@pytest.mark.parametrize(("name", "expected"), GOOD.items(), ids=GOOD)
def test_what_follows_from_a_name(name, expected):
    names = names_of(name, ALL)
    assert (names.package, names.stem, names.class_name) == expected


@pytest.mark.parametrize(("name", "message"), BAD.items(), ids=BAD)
def test_a_name_that_does_not_do_is_refused_and_nothing_written(name, message, tmp_path, capsys):
    parts = [f"--{part}" for part in PARTS]
    given = ["new-plugin", "--into", str(tmp_path), *parts, "--", name]
    assert command_line.main(given) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_name_is_reserved_only_for_what_takes_it(tmp_path):
    assert generate("moduli-linear", ["tool"], tmp_path).is_dir()


@pytest.mark.parametrize("what", ["folder", "empty folder", "file", "dangling link"])
def test_what_is_there_stays_as_it_is(what, tmp_path):
    target = tmp_path / "moduli-shiny"
    if what == "file":
        target.write_text("mine")
    elif what == "dangling link":
        target.symlink_to(tmp_path / "nowhere")
    else:
        target.mkdir()
        if what == "folder":
            (target / "mine").write_text("mine")
    before = [sorted(tmp_path.rglob("*")), os.lstat(target).st_mtime_ns]
    with pytest.raises(errors.PluginError, match="is there already, and nothing is overwritten"):
        generate("moduli-shiny", into=tmp_path)
    assert before == [sorted(tmp_path.rglob("*")), os.lstat(target).st_mtime_ns]


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("number", [0, 1, 5])
def test_nothing_remains_of_what_cannot_be_written(error, number, tmp_path, monkeypatch):
    written = []
    write = pathlib.Path.write_text

    def fails(self, *args, **options):
        if len(written) == number:
            raise error
        written.append(self)
        return write(self, *args, **options)

    monkeypatch.setattr(pathlib.Path, "write_text", fails)
    with pytest.raises(type(error)):
        generate("moduli-shiny", into=tmp_path)
    assert len(written) == number and list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(errors.PluginError, match=r"no folder .*nowhere"):
        generate("moduli-shiny", into=tmp_path / "nowhere")


def test_a_plugin_has_the_parts_that_are_asked_for(tmp_path, capsys):
    assert command_line.main(["new-plugin", "moduli-shiny", "--into", str(tmp_path)]) == 0
    assert "moduli-shiny" in capsys.readouterr().out
    made = {path.name for path in (tmp_path / "moduli-shiny").rglob("*.py")}
    assert {"_layer.py", "_tool.py", "_plugin.py", "test_layer.py", "test_tool.py"} <= made
    assert not {"_format.py", "_bridge.py", "_transform.py"} & made
    assert set(PARTS) == set(command_line._PARTS)


@pytest.mark.parametrize("parts", SUBSETS, ids=["-".join(sorted(s)) for s in SUBSETS])
def test_the_metadata_and_the_code_of_every_set_of_parts(parts):
    made = files(names_of("moduli-shiny", parts), parts)
    project = tomllib.loads(made["pyproject.toml"])["project"]
    for points in project.get("entry-points", {}).values():
        for target in points.values():
            module, _, name = target.partition(":")
            path = f"src/{module.replace('.', '/')}"
            text = made.get(f"{path}.py") or made[f"{path}/__init__.py"]
            assert not name or f"{name} as {name}" in text
    for path, text in made.items():
        assert not re.search(r"@\w+@|^@(if|only|end)\b", text, re.MULTILINE), path
        if path.endswith(".py"):
            compile(text, path, "exec")
    core = tomllib.loads((pathlib.Path(__file__).parents[1] / "pyproject.toml").read_text())
    needs = dict(n.partition(">=")[::2] for n in project["dependencies"])
    assert meets(moduli.__version__, ">=" + needs["moduli"]) and not meets("1.0", needs["moduli"])
    assert f"jax>={needs['jax']}" in core["project"]["dependencies"]
    assert project["requires-python"] == core["project"]["requires-python"]
    if "src/moduli_shiny/_plugin.py" in made:
        assert str(hookspecs.VERSION) in made["src/moduli_shiny/_plugin.py"]


@pytest.mark.skipif(shutil.which("ruff") is None, reason="ruff is not installed")
@pytest.mark.parametrize("name", ["x", "moduli-shiny", "moduli-" + "a2" * 12])
def test_every_set_of_parts_passes_lint(name, tmp_path):
    for number, parts in enumerate(SUBSETS):
        (tmp_path / str(number)).mkdir()
        generate(name, parts, tmp_path / str(number))
    for command in (["check", "-q"], ["format", "--check", "-q"]):
        done = subprocess.run(
            ["ruff", *command, "--no-cache", str(tmp_path)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_two_plugins_of_the_generator_claim_nothing_in_common():
    points = []
    for name in ("moduli-one", "moduli-two"):
        made = files(names_of(name, ALL), ALL)
        groups = tomllib.loads(made["pyproject.toml"])["project"]["entry-points"]
        points.append({key for group in groups.values() for key in group})
    assert points[0] and not points[0] & points[1]


def test_nothing_of_it_comes_with_moduli():
    code = "import sys, moduli; moduli.Dict(); print([m for m in sys.modules if 'new_plugin' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_reader_that_stops_reading_ends_no_report_with_a_traceback():
    command = f"{sys.executable} -m moduli plugins | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.stderr == ""
