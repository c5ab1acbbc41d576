"""A damaged distribution costs no other its plugins; what would end the program is contained."""

from __future__ import annotations

import importlib
import importlib.metadata
import pathlib
import sys
from collections.abc import Callable

import pytest

import moduli as nnx
from moduli import errors, plugins
from moduli._facade import doctor
from moduli._plugins.entry_points import installed

METADATA = b"Metadata-Version: 2.1\nName: damaged\nVersion: 1.0\n"
GOOD = "import moduli\n@moduli.hookimpl\ndef moduli_after_call(output):\n    return None\n"
DAMAGED = {
    "line without =": b"[moduli]\nthis is no entry point\n",
    "target without a module": b"[moduli]\nx = :thing\n",
    "no target": b"[moduli]\nx =\n",
    "no utf-8": b"[moduli]\nx = \xff\xfe\n",
    "no utf-8, no group of ours": b"[console_scripts]\nx = \xff\n",
}
ENDINGS = {
    "exit": "import sys; sys.exit('usage')",
    "generator": "raise GeneratorExit",
    "own": "raise type('Own', (BaseException,), {})('usage')",
    "recursion": "def f(): f()\nf()",
    "memory": "raise MemoryError",
}
Install = Callable[..., pathlib.Path]


class Double(nnx.Module):
    def __call__(self, x):
        return 2 * x


def damage(root: pathlib.Path, points: bytes, metadata: bytes | None = METADATA) -> None:
    info = root / "damaged-1.0.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_bytes(points)
    if metadata is not None:
        (info / "METADATA").write_bytes(metadata)
    importlib.invalidate_caches()


def states() -> dict[str, str]:
    return {record.name: record.state for record in plugins.records()}


@pytest.mark.parametrize("points", DAMAGED.values(), ids=DAMAGED)
def test_the_rest_goes_on_and_one_warning_names_it(distribution: Install, points: bytes) -> None:
    damage(distribution("good", GOOD, "[moduli]\ngood = good\n"), points)
    with pytest.warns(plugins.PluginWarning, match=r"distribution damaged 1\.0 failed") as caught:
        assert Double()(2) == 4
    assert Double()(3) == 6  # no second warning: warnings are errors here
    assert len(caught) == 1 and states()["good"] == "active"
    report = doctor.doctor()
    assert any("distribution damaged 1.0 failed" in problem for problem in report["problems"])
    assert "damaged 1.0" in doctor.text_of_doctor(report)


@pytest.mark.parametrize("points", DAMAGED.values(), ids=DAMAGED)
def test_strict_makes_it_an_error(
    distribution: Install, monkeypatch: pytest.MonkeyPatch, points: bytes
) -> None:
    damage(distribution("good", GOOD, "[moduli]\ngood = good\n"), points)
    monkeypatch.setenv("MODULI_STRICT", "1")
    with pytest.raises(errors.PluginError, match=r"distribution damaged 1\.0"):
        Double()(2)


def test_good_lines_beside_a_bad_one_count(distribution: Install) -> None:
    damage(distribution("good", GOOD, ""), b"[moduli]\nbad\n# c\n[other]\nx\n[moduli]\ngood=good\n")
    with pytest.warns(plugins.PluginWarning, match="'bad'"):
        Double()(2)
    assert states()["good"] == "active"


def test_what_is_not_about_moduli_is_nobodys_concern(distribution: Install) -> None:
    root = distribution("good", GOOD, "[moduli]\ngood = good\n")
    damage(root, b"[console_scripts]\nno entry point\n[console_scripts]\n", None)
    assert Double()(2) == 4


@pytest.mark.parametrize("metadata", [None, b"", b"Name\xff"], ids=["none", "empty", "no utf-8"])
def test_a_distribution_without_a_name_has_plugins(
    distribution: Install, metadata: bytes | None
) -> None:
    damage(distribution("good", GOOD, ""), b"[moduli]\ngood = good\n", metadata)
    assert Double()(2) == 4
    assert states()["good"] == "active"


def test_the_first_of_two_distributions_of_a_name_counts(
    distribution: Install, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distribution("The_Plugin", GOOD, "[moduli]\nfirst = The_Plugin\n", "2.0")
    for name, points in (("the.plugin", "[moduli]\nold = old\n"), ("none", "[moduli]\nx = x\n")):
        info = tmp_path / "later" / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Name: {name.replace('none', 'the-plugin')}\nVersion: 1\n")
        (info / "entry_points.txt").write_text(points)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "later")])
    importlib.invalidate_caches()
    Double()(2)
    assert "first" in states() and not {"old", "x"} & set(states())


@pytest.mark.parametrize("group", ["moduli", "moduli.names", "moduli.hookspecs"])
def test_what_is_whole_is_read_as_importlib_reads_it(group: str) -> None:
    expected = {(p.name, p.value) for p in importlib.metadata.entry_points(group=group)}
    assert {(point.name, point.value) for point in installed(group).points} == expected


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
@pytest.mark.parametrize("where", ["import", "hook"])
def test_a_plugin_does_not_end_the_program(
    distribution: Install, monkeypatch: pytest.MonkeyPatch, ending: str, where: str
) -> None:
    source = ending
    if where == "hook":
        body = ending.replace("\n", "\n    ").replace("def f(): f()", "f = lambda: f()")
        source = (
            f"import moduli\n@moduli.hookimpl\ndef moduli_module_created(module):\n    {body}\n"
        )
    distribution("ending", source, "[moduli]\nending = ending\n")
    with pytest.warns(plugins.PluginWarning, match=r"'ending' of ending 1\.0 failed") as caught:
        assert Double()(2) == 4
    assert Double()(3) == 6 and len(caught) == 1
    assert states()["ending"] == "quarantined"
    monkeypatch.setenv("MODULI_STRICT", "1")
    plugins.rediscover()
    sys.modules.pop("ending", None)
    with pytest.raises(errors.PluginError, match=r"'ending' of ending 1\.0"):
        Double()(2)


@pytest.mark.parametrize("where", ["import", "moduli_module_created", "moduli_before_call"])
def test_an_interrupt_passes(distribution: Install, where: str) -> None:
    source = "raise KeyboardInterrupt\n"
    if where != "import":
        source = f"import moduli\n@moduli.hookimpl\ndef {where}(module):\n    {source}"
    distribution("interrupted", source, "[moduli]\ninterrupted = interrupted\n")
    with pytest.raises(KeyboardInterrupt):
        Double()(2)


def test_exit_in_a_hook_around_a_call_is_an_error_that_names_the_plugin() -> None:
    class Leaving:
        @nnx.hookimpl
        def moduli_before_call(self, module):
            sys.exit("bye")

    with nnx.using(Leaving()), pytest.raises(errors.PluginError, match=r"'Leaving'.*SystemExit: b"):
        Double()(2)


def test_exit_of_a_name_is_an_error_that_names_the_distribution(distribution: Install) -> None:
    distribution("leaving", "import sys\nsys.exit()\n", "[moduli.names]\nleave = leaving:leave\n")
    with pytest.raises(errors.PluginError, match=r"leaving 1\.0.*SystemExit"):
        _ = nnx.leave
