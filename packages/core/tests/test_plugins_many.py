"""Many plugins, in any order of their lines, some heavy, some broken: as their users see them."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys

import pytest

import moduli as nnx
from moduli import errors, plugins
from moduli._facade import doctor

PLUGIN = """
import moduli

class Kind{n}(moduli.Variable):
    pass

class P{n}:
    SHINY_{n} = {n}

    @staticmethod
    @moduli.hookimpl
    def moduli_variable_names():
        return {{"kind_{n}": Kind{n}}}

    @staticmethod
    @moduli.hookimpl
    def moduli_mode_attributes(mode):
        return {{"attribute_{n}": mode == "eval"}}
"""


def install(distribution, seed):
    """Three distributions with ten plugins, their lines and the folders in an order by chance."""
    chance = random.Random(seed)
    numbers = list(range(10))
    chance.shuffle(numbers)
    shares = [sorted(numbers)[0:3], sorted(numbers)[3:7], sorted(numbers)[7:]]
    owners = [(f"owner-{index}", share) for index, share in enumerate(shares)]
    chance.shuffle(owners)
    for name, share in owners:
        chance.shuffle(share)
        source = "".join(PLUGIN.format(n=n) for n in share)
        module = name.replace("-", "_")
        groups = [
            ("moduli", {f"plugin_{n}": f"{module}:P{n}" for n in share}),
            ("moduli.names", {f"SHINY_{n}": f"{module}:P{n}.SHINY_{n}" for n in share}),
        ]
        chance.shuffle(groups)
        distribution(name, source, dict(groups))


def seen():
    """What users see of plugins, names, modes and kinds, without times."""
    report = doctor.plugins()
    for plugin in report["plugins"]:
        del plugin["load_ms"]
    for package in report["packages"]:
        del package["load_ms"]
    model = nnx.Dict({f"attribute_{n}": None for n in range(10)})
    model.eval()
    values = [model[f"attribute_{n}"] for n in range(10)]
    kinds = [nnx.variable_type_from_name(f"kind_{n}").__name__ for n in range(10)]
    names = [getattr(nnx, f"SHINY_{n}") for n in range(10)]
    return json.dumps(report), values, kinds, names


@pytest.fixture(scope="module")
def first_seen():
    return {}


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_lines_and_folders_changes_nothing(moduli_distribution, first_seen, seed):
    install(moduli_distribution, seed)
    found = seen()
    assert found[1:] == ([True] * 10, [f"Kind{n}" for n in range(10)], list(range(10)))
    assert first_seen.setdefault("it", found) == found


HEAVY = """
import moduli
MEMORY = bytearray(10**7)  # what a heavy plugin holds
if {n} % 10 == 3:
    raise ImportError("no library {n}")
if {n} % 10 == 7:
    raise SystemExit({n})

@moduli.hookimpl
def moduli_mode_attributes(mode):
    if {n} % 10 == 5:
        raise ValueError("hook {n}")
    return {{"attribute_{n}": mode}}
"""
PROGRAM = """
import sys, time, warnings
import jax
start = time.perf_counter()
import moduli
assert not [name for name in sys.modules if name.startswith("heavy_")]
assert time.perf_counter() - start < 20
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    model = moduli.Dict({f"attribute_{n}": None for n in range(50)})
    model.eval()
    model.eval()
print([n for n in range(50) if model[f"attribute_{n}"] != "eval"])
print(len(caught), {w.category.__name__ for w in caught})
"""


def test_fifty_heavy_plugins_of_which_fifteen_fail(moduli_distribution):
    for n in range(50):
        folder = moduli_distribution(
            f"heavy-{n}", HEAVY.format(n=n), {"moduli": {f"heavy_{n}": f"heavy_{n}"}}
        )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    environment.pop("MODULI_STRICT", None)

    def run(*command):
        return subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, env=environment, check=False
        )

    done = run("-c", PROGRAM)
    assert done.returncode == 0, done.stderr
    failed, warned = done.stdout.splitlines()
    assert failed == str([n for n in range(50) if n % 10 in (3, 5, 7)])
    assert warned == "15 {'PluginWarning'}"  # each once
    report = run("-m", "moduli", "doctor", "--json")
    assert report.returncode == 1
    problems = json.loads(report.stdout)["problems"]
    for n in range(50):
        mentioned = [problem for problem in problems if f"plugin 'heavy_{n}' of" in problem]
        assert bool(mentioned) is (n % 10 in (3, 5, 7)), (n, mentioned)
    environment["MODULI_PLUGINS"] = "-heavy-3"
    left_out = json.loads(run("-m", "moduli", "plugins", "--json").stdout)["plugins"]
    assert {p["name"]: p["state"] for p in left_out}["heavy_3"] == "blocked"


def test_strict_names_the_first_that_fails(moduli_distribution, monkeypatch):
    monkeypatch.setenv("MODULI_STRICT", "1")
    moduli_distribution("heavy-3", HEAVY.format(n=3), {"moduli": {"heavy_3": "heavy_3"}})
    with pytest.raises(
        errors.PluginError, match=r"plugin 'heavy_3' of heavy-3 1\.0 .*no library 3"
    ):
        plugins.records()
    monkeypatch.delenv("MODULI_STRICT")
