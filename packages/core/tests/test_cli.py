"""``python -m moduli plugins`` and ``doctor``."""

from __future__ import annotations

import json

import pytest

from moduli import _plugins
from moduli._cli import main

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
        assert main(["-p", "wach", "plugins"]) == 2
        assert "did you mean 'watch'" in capsys.readouterr().out
    finally:
        _plugins.select(None)


def test_doctor_knows_versions_and_devices(capsys, fresh_plugins):
    import jax

    status, found = report(capsys, "doctor")
    assert found["versions"]["jax"] == jax.__version__
    assert found["devices"][0]["platform"] == "cpu"
    assert status == (1 if found["problems"] else 0)


def test_doctor_reports_a_broken_plugin_and_a_name_clash_and_fails(distribution, capsys):
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


def test_doctor_reports_packages_of_different_versions(capsys, monkeypatch, fresh_plugins):
    from moduli import _cli

    real = _cli._version
    monkeypatch.setattr(_cli, "_version", lambda n: "0.0.9" if n == "moduli-train" else real(n))
    status, found = report(capsys, "doctor")
    assert status == 1 and any("different versions" in p for p in found["problems"])
