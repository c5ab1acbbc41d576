"""What ``doctor`` and ``plugins`` find out about installed plugins."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import moduli as nnx
from moduli import errors, plugins
from moduli._facade.command_line import main
from moduli._plugins.requirements import meets

HOOK = """
import moduli

@moduli.hookimpl
def moduli_module_created(module):
    module.seen = True
"""


@pytest.fixture
def install(distribution):
    def install(name, source=HOOK, requires=(), names=()):
        module = name.replace("-", "_")
        lines = [] if names else ["[moduli]", f"{name} = {module}"]
        lines += ["[moduli.names]", *(f"{item} = {module}:{item}" for item in names)]
        path = distribution(name, source, "\n".join(lines))
        info = path / f"{module}-1.0.dist-info" / "METADATA"
        info.write_text(info.read_text() + "".join(f"Requires-Dist: {r}\n" for r in requires))
        return path

    return install


def doctor(capsys):
    status = main(["doctor", "--json"])
    return status, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("requirement", ["moduli>=2", "moduli <0.1", "jax (==0.1.*)", "moduli-x"])
def test_a_plugin_whose_requirements_are_not_met_is_not_imported(install, requirement, capsys):
    install("early", "raise AssertionError('imported')", [requirement])
    with pytest.warns(plugins.PluginWarning, match=r"'early'.*activated: it requires .*installed"):
        nnx.Dict()
    status, found = doctor(capsys)
    assert status == 1 and any("it requires" in problem for problem in found["problems"])


def test_a_name_of_a_package_whose_requirements_are_not_met_is_not_loaded(install):
    install("early", "raise AssertionError('imported')", ["moduli>=2"], names=["Thing"])
    with pytest.raises(errors.BrokenNameError, match=r"early 1\.0.*requires moduli>=2, and moduli"):
        nnx.Thing


def test_requirements_that_are_met_or_of_others_are_no_matter(install):
    requires = ["moduli>=0.1,<0.2", "jax", "unknown-thing>=3", 'moduli>=2; extra == "new"']
    install("fitting", HOOK, requires)
    assert nnx.Dict().seen


@pytest.mark.parametrize("clause", ["==1.*", "!=2.0.*", "~=1.2", "~=2.0", "<2", ">=2", ">2.0"])
def test_versions_compare_as_those_of_packaging(clause):
    specifiers = pytest.importorskip("packaging.specifiers")
    for version in ("1", "1.4", "1.10", "2.0", "2.0rc1", "2.0.dev3", "2.0.post1", "2.1", "1!1"):
        expected = specifiers.SpecifierSet(clause).contains(version, prereleases=True)
        assert meets(version, clause) is expected, (version, clause)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import time\ntime.sleep(0.15)\n" + HOOK, r"'odd' of odd 1\.0 took \d+ ms to import"),
        ("", r"'odd' of odd 1\.0 implements no hook"),
        ("def moduli_sow(): pass", "'moduli_sow' is not marked"),
        ("import moduli\nmoduli_sew = moduli.hookimpl(lambda: 1)", "did you mean 'moduli_sow'"),
        ("import sys\nsys.exit(0)", "SystemExit"),
    ],
)
def test_doctor_finds_what_is_odd_and_fails(install, source, message, capsys):
    import re

    install("odd", source)
    status, found = doctor(capsys)
    assert status == 1
    assert any(re.search(message, problem) for problem in found["problems"]), found["problems"]


def test_packages_of_names_alone_are_listed_and_dead_names_found(install, capsys):
    install("only-names", "class Alive: pass", names=["Alive", "Dead"])
    status, found = doctor(capsys)
    assert status == 1
    assert any("moduli.Dead is declared by only-names 1.0" in p for p in found["problems"])
    package = next(p for p in found["packages"] if p["distribution"] == "only-names")
    assert package["names"] == ["Alive", "Dead"] and package["load_ms"] > 0
    owners = found["owners"]
    assert owners["name of moduli"]["Alive"] == "only-names 1.0"
    assert owners["name of moduli"]["Linear"].startswith("moduli-layers")
    assert "layers" in owners["attribute of eval()"]["deterministic"]
    assert "train" in owners["kind of Variable"]["opt_state"]
    assert "interop" in owners["checkpoint format"]["npz"]
    main(["plugins"])
    assert "names: Alive, Dead" in capsys.readouterr().out


def test_the_order_of_a_hook(install, capsys):
    install("late", "moduli_phase = 4\n" + HOOK)
    install("early", "moduli_phase = -4\n" + HOOK)
    install("last", HOOK.replace("hookimpl", "hookimpl(trylast=True)"))
    assert main(["plugins", "order", "module_created", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["hook"] == "moduli_module_created"
    assert [p["name"] for p in found["order"]] == ["early", "late", "last"]
    main(["plugins", "order", "moduli_module_created"])
    assert "1. early        phase -4" in capsys.readouterr().out
    assert main(["plugins", "order", "module_creatd"]) == 2
    assert "did you mean 'module_created'" in capsys.readouterr().err


def test_trace_says_who_changed_what_and_keeps_the_exit_status(install):
    path = install("marker")
    (path / "script.py").write_text(
        "import sys, moduli\n"
        "class Box(moduli.Module): pass\n"
        "assert Box().seen\n"
        "sys.exit(int(sys.argv[1]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "moduli", "plugins", "trace", "--", str(path / "script.py"), "3"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(path), *sys.path])},
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert "plugin 'marker' of marker 1.0: moduli_module_created: 1 calls, 1 changed" in done.stderr
    assert "set seen (Box)" in done.stderr


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out.strip() == f"moduli {nnx.__version__}"
