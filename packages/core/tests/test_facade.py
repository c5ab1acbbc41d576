"""``moduli.Name``: found in installed packages, or an error that says what to do."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

import moduli as nnx
from moduli import errors

ROOT = pathlib.Path(__file__).resolve().parents[3]


def run(code: str, path: pathlib.Path | None = None) -> str:
    import os

    env = {**os.environ, "PYTHONPATH": str(path)} if path else None
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_name_of_an_installed_distribution_is_found_and_listed(distribution):
    distribution(
        "shiny-layers",
        "class Shiny:\n    pass\n",
        "[moduli.names]\nShinyLayer = shiny_layers:Shiny\n",
    )
    import shiny_layers  # type: ignore[import-not-found]

    try:
        assert nnx.ShinyLayer is shiny_layers.Shiny
        assert "ShinyLayer" in dir(nnx)
    finally:
        vars(nnx).pop("ShinyLayer", None)


def test_two_distributions_that_claim_one_name_are_both_named(distribution):
    for name in ("first-dist", "second-dist"):
        module = name.replace("-", "_")
        distribution(name, "Thing = 1\n", f"[moduli.names]\nThing = {module}:Thing\n")
    with pytest.raises(errors.NameClashError, match=r"first-dist 1.0.*second-dist 1.0"):
        nnx.Thing


def test_an_unknown_name_gives_a_near_miss():
    with pytest.raises(AttributeError, match=r"did you mean moduli\.Variable\?"):
        nnx.Varable
    assert not hasattr(nnx, "__wrapped__")


def test_a_known_name_that_is_not_installed_gives_the_command(monkeypatch, fresh_plugins):
    from moduli._facade import resolve as _facade

    monkeypatch.setattr(_facade, "_declared", dict)
    monkeypatch.delitem(vars(nnx), "Linear", raising=False)
    with pytest.raises(AttributeError, match=r'pip install "moduli\[layers\]"') as caught:
        nnx.Linear
    assert isinstance(caught.value, errors.MissingPluginError)


def test_a_declared_name_that_does_not_load_says_whose_it_is(distribution):
    distribution("half-dist", "", "[moduli.names]\nGone = half_dist:Gone\n")
    with pytest.raises(errors.PluginError, match=r"moduli\.Gone.*half-dist 1\.0"):
        nnx.Gone


def test_a_package_that_fails_to_import_is_named(distribution):
    distribution(
        "sick-dist", "raise OSError('no library')\n", "[moduli.names]\nSick = sick_dist:S\n"
    )
    with pytest.raises(errors.PluginError, match=r"moduli\.Sick.*sick-dist 1\.0.*no library"):
        nnx.Sick


def test_a_name_is_loaded_once_and_then_is_an_attribute(distribution):
    distribution("once-dist", "class Once:\n    pass\n", "[moduli.names]\nOnce = once_dist:Once\n")
    from moduli._facade import resolve as _facade

    assert "Once" not in vars(nnx)
    first = nnx.Once
    assert vars(nnx)["Once"] is first
    _facade.forget()
    assert "Once" not in vars(nnx)


def test_a_namespace_can_be_a_name(distribution):
    distribution("space-dist", "value = 7\n", "[moduli.names]\nspace = space_dist\n")
    assert nnx.space.value == 7


def test_dunder_names_read_no_entry_points():
    code = (
        "import importlib.metadata as m, moduli\n"
        "def refuse(*a, **k): raise SystemExit('entry points were read')\n"
        "m.entry_points = m.distributions = refuse\n"
        "assert not hasattr(moduli, '__wrapped__') and not hasattr(moduli, '_private')\n"
        "assert moduli.testing.graphs and moduli.hookspecs.moduli_sow\n"
        "print('ok')\n"
    )
    assert run(code).strip() == "ok"


def test_import_moduli_imports_no_plugin_and_reads_no_entry_point(tmp_path):
    for number in range(50):
        name = f"heavy_{number}"
        (tmp_path / f"{name}.py").write_text("import time\ntime.sleep(60)\n")
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[moduli]\n{name} = {name}\n")
    code = (
        "import importlib.metadata as m, jax\n"  # which looks at distributions itself
        "def refuse(*a, **k): raise SystemExit('entry points were read')\n"
        "m.entry_points = m.distributions = refuse\n"
        "import sys, moduli\n"
        "assert not [n for n in sys.modules if n.startswith('heavy_')]\n"
        "own = ('moduli_layers', 'moduli_debug', 'moduli_train', 'moduli_interop', 'optax')\n"
        "assert not [n for n in own if n in sys.modules], 'an extension was imported'\n"
        "print('ok')\n"
    )
    assert run(code, tmp_path).strip() == "ok"


def test_import_moduli_brings_itself_and_the_standard_library_beyond_what_it_needs():
    code = (
        "import sys, jax, numpy, pluggy\n"
        "before = set(sys.modules)\n"
        "import moduli\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - sys.stdlib_module_names - {'jax'}))\n"
        "print([n for n in ('moduli.hookspecs', 'moduli.testing', 'moduli._facade.resolve', "
        "'moduli._facade.command_line')"
        " if n in sys.modules])\n"
    )
    assert run(code).splitlines() == ["['moduli']", "[]"]


def test_public_objects_say_their_public_path():
    import pickle

    for value in (nnx.Param, nnx.Module, nnx.List, nnx.State, nnx.Rngs, nnx.split, nnx.jit):
        assert value.__module__ == "moduli"
        assert pickle.loads(pickle.dumps(value)) is value
    assert repr(nnx.Param) == "<class 'moduli.Param'>"


def test_what_core_knows_of_the_extensions_is_what_they_declare():
    script = ROOT / "tools" / "sync_names.py"
    done = subprocess.run([sys.executable, str(script), "--check"], check=False)
    assert done.returncode == 0, "run: python tools/sync_names.py"
