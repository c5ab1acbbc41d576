"""``python -m moduli plugins`` and ``doctor``."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from moduli import _plugins
from moduli._facade.command_line import main

ENTRY = "[moduli]\n{name} = {module}\n"


def report(capsys, *args):
    status = main([*args, "--json"])
    return status, json.loads(capsys.readouterr().out)


@pytest.fixture
def watcher(distribution):
    distribution(
        "watch-plugin",
        """
        import moduli
        moduli_phase = 3
        @moduli.hookimpl
        def moduli_module_created(module):
            pass
        """,
        ENTRY.format(name="watch", module="watch_plugin"),
        version="2.5",
    )


def test_plugins_lists_hooks_order_and_cost(watcher, capsys):
    status, found = report(capsys, "plugins")
    assert status == 0
    entry = next(p for p in found["plugins"] if p["name"] == "watch")
    assert entry["load_ms"] > 0
    del entry["load_ms"]
    assert entry == {
        "name": "watch",
        "distribution": "watch-plugin",
        "version": "2.5",
        "target": "watch_plugin",
        "state": "active",
        "phase": 3,
        "hooks": ["moduli_module_created"],
        "cause": "",
    }
    assert found["hooks"]["moduli_module_created"] == ["watch"]
    main(["plugins"])
    text = capsys.readouterr().out
    assert "watch-plugin 2.5" in text and "moduli_module_created" in text


def test_plugins_can_be_chosen_on_the_command_line(watcher, capsys):
    try:
        _, found = report(capsys, "-p", "none", "plugins")
        assert {p["state"] for p in found["plugins"]} == {"blocked"}
        assert main(["-p", "wach", "plugins", "--json"]) == 2
        out, err = capsys.readouterr()
        assert out == "" and "did you mean 'watch'" in err
    finally:
        _plugins.select(None)


def test_doctor_knows_versions_and_devices(capsys, fresh_plugins):
    import jax

    status, found = report(capsys, "doctor")
    assert found["versions"]["jax"] == jax.__version__
    assert found["devices"][0]["platform"] == "cpu"
    assert status == (1 if found["problems"] else 0)


def test_doctordoctors_a_broken_plugin_and_a_name_clash_and_fails(distribution, capsys):
    distribution(
        "broken-plugin",
        "raise RuntimeError('no such accelerator')\n",
        ENTRY.format(name="broken", module="broken_plugin") + "[moduli.names]\nThing = x:y\n",
    )
    distribution("other-plugin", "", "[moduli.names]\nThing = z:y\n")
    status, found = report(capsys, "doctor")
    assert status == 1
    problems = " ".join(found["problems"])
    assert "no such accelerator" in problems
    assert "moduli.Thing is claimed by" in problems


def test_doctordoctors_packages_of_different_versions(capsys, monkeypatch, fresh_plugins):
    from moduli._facade import doctor

    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda n: "0.0.9" if n == "moduli-train" else real(n))
    status, found = report(capsys, "doctor")
    assert status == 1 and any("different versions" in p for p in found["problems"])


def test_doctor_lists_failures_instead_of_failing_when_failures_are_fatal(
    distribution, capsys, monkeypatch
):
    distribution(
        "typo-plugin",
        "import moduli\nmoduli_sow = moduli.hookimpl(lambda nam: 1)\n",
        ENTRY.format(name="typo", module="typo_plugin"),
    )
    monkeypatch.setenv("MODULI_STRICT", "1")
    status, found = report(capsys, "doctor")
    assert status == 1
    assert any("typo-plugin 1.0" in p and "nam" in p for p in found["problems"])
    main(["doctor"])
    text = capsys.readouterr().out
    assert "problem(s) found:" in text and "quarantined" in text


def test_doctordoctors_two_plugins_of_one_name_and_a_name_of_cores(distribution, capsys):
    for name in ("first-dist", "second-dist"):
        module = name.replace("-", "_")
        distribution(name, "", ENTRY.format(name="twin", module=module))
    distribution("greedy-dist", "", "[moduli.names]\nModule = greedy_dist:Module\n")
    _, found = report(capsys, "doctor")
    problems = " ".join(found["problems"])
    assert "'twin' is used by first-dist" in problems and "second-dist" in problems
    assert "moduli.Module is claimed by core itself and by greedy-dist 1.0" in problems


def test_hooks_are_listed_in_the_order_in_which_a_model_meets_them(capsys, fresh_plugins):
    _, found = report(capsys, "plugins")
    assert list(found["hooks"])[:10] == [
        "moduli_variable_names",
        "moduli_module_created",
        "moduli_mode_attributes",
        "moduli_before_call",
        "moduli_call_context",
        "moduli_after_call",
        "moduli_after_method",
        "moduli_value_written",
        "moduli_sow",
        "moduli_perturb",
    ]


@pytest.mark.parametrize("command", ["plugins", "doctor"])
def test_the_command_runs_from_a_shell(distribution, command):
    path = distribution(
        "broken-plugin", "1 / 0\n", ENTRY.format(name="broken", module="broken_plugin")
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "moduli", "-p=-broken", command],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(path), *sys.path])},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "broken-plugin 1.0" in done.stdout and "blocked" in done.stdout
    assert done.stderr == ""
