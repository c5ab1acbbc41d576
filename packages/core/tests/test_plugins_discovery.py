"""Finding installed plugins: when, by whom, which, and what their packages declare."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import warnings

import pytest

import moduli as nnx
from moduli import _plugins, errors, plugins

ENTRY = "[moduli]\n{name} = {module}\n"
SPECS = """
import moduli

@moduli.hookspec
def {hook}(size: int):
    "Answers with a colour."
"""


def states():
    return {record.name: record.state for record in plugins.records()}


def run(code, path, **env):
    """Runs a program of its own where the distributions under ``path`` are installed."""
    known = {k: v for k, v in os.environ.items() if not k.startswith("MODULI_")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env={**known, "PYTHONPATH": os.pathsep.join([str(path), *sys.path]), **env},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


# -- when ------------------------------------------------------------------------------------------


def test_plugins_are_imported_at_the_first_module_and_not_before(distribution):
    path = distribution("late-plugin", "", ENTRY.format(name="late", module="late_plugin"))
    run(
        """
        import sys, moduli
        assert "late_plugin" not in sys.modules
        moduli.Dict()
        assert "late_plugin" in sys.modules
        """,
        path,
    )


def test_a_plugin_may_make_and_call_modules_while_it_is_imported(distribution):
    distribution(
        "eager-plugin",
        """
        import moduli

        class Double(moduli.Module):
            def __call__(self, x):
                return 2 * x

        FOUR = Double()(2)
        SEEN = []

        @moduli.hookimpl
        def moduli_module_created(module):
            SEEN.append(module)
        """,
        ENTRY.format(name="eager", module="eager_plugin"),
    )
    model = nnx.Dict()
    import eager_plugin  # type: ignore[import-not-found]

    assert eager_plugin.FOUR == 4
    assert eager_plugin.SEEN == [model]
    assert states()["eager"] == "active"


def test_threads_that_need_plugins_at_once_share_one_set(distribution):
    distribution(
        "slow-plugin",
        """
        import time
        time.sleep(0.2)
        """,
        ENTRY.format(name="slow", module="slow_plugin"),
    )
    distribution(
        "failing-plugin",
        "raise ValueError('no')",
        ENTRY.format(name="failing", module="failing_plugin"),
    )
    start, found = threading.Barrier(4), []

    def look():
        start.wait()
        found.append(_plugins.active())

    threads = [threading.Thread(target=look) for _ in range(4)]
    with pytest.warns(plugins.PluginWarning, match="failing-plugin") as caught:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 4 and len(set(map(id, found))) == 1
    assert len(caught) == 1
    assert states()["slow"] == "active"


def test_two_threads_do_not_wait_for_each_other_when_a_plugin_is_being_imported(distribution):
    # One thread looks for plugins and has to import ``knot_plugin``; the other imports that module
    # already, and makes a module in the middle, which needs the plugins. Must end.
    path = distribution(
        "knot-plugin",
        """
        import threading, time
        import moduli
        if threading.current_thread().name == "importer":
            READY.set()
            time.sleep(0.3)
        moduli.Dict()
        """.replace("READY", "moduli.knot_ready"),
        ENTRY.format(name="knot", module="knot_plugin"),
    )
    run(
        """
        import faulthandler, threading
        faulthandler.dump_traceback_later(30, exit=True)
        import moduli
        moduli.knot_ready = threading.Event()
        def work():
            import knot_plugin
        thread = threading.Thread(target=work, name="importer")
        thread.start()
        moduli.knot_ready.wait()
        moduli.Dict()
        thread.join()
        assert [r.state for r in moduli.plugins.records() if r.name == "knot"] == ["active"]
        """,
        path,
    )


# -- which -----------------------------------------------------------------------------------------


def test_fifty_heavy_plugins_cost_nothing_when_none_is_chosen(tmp_path):
    for number in range(50):
        name = f"heavy_{number}"
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a blocked plugin was imported')\n")
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(
            f"[moduli]\n{name} = {name}\n[moduli.hookspecs]\n{name} = {name}\n"
        )
    run(
        """
        import sys, moduli
        model = moduli.Dict()
        model.train()
        assert not [name for name in sys.modules if name.startswith("heavy_")]
        blocked = [r for r in moduli.plugins.records() if r.state == "blocked"]
        assert len([r for r in blocked if r.name.startswith("heavy_")]) == 50
        """,
        tmp_path,
        MODULI_PLUGINS="none",
    )


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("red", {"red": "active", "blue": "blocked"}),
        ("red, blue", {"red": "active", "blue": "active"}),
        ("-red", {"red": "blocked", "blue": "active"}),
        ("red,blue,-blue", {"red": "active", "blue": "blocked"}),
        ("none", {"red": "blocked", "blue": "blocked"}),
    ],
)
def test_a_choice_of_plugins(distribution, monkeypatch, choice, expected):
    for name in ("red", "blue"):
        distribution(f"{name}-plugin", "", ENTRY.format(name=name, module=f"{name}_plugin"))
    monkeypatch.setenv("MODULI_PLUGINS", choice)
    assert {name: states()[name] for name in expected} == expected


def test_an_impossible_choice_lists_what_is_installed(distribution, monkeypatch):
    distribution("red-plugin", "", ENTRY.format(name="red", module="red_plugin"))
    monkeypatch.setenv("MODULI_PLUGINS", "zzz")
    with pytest.raises(errors.PluginError, match=r"MODULI_PLUGINS='zzz'.*'zzz'.*installed.*red"):
        plugins.records()


# -- order -----------------------------------------------------------------------------------------


def test_order_does_not_depend_on_the_order_of_installation(tmp_path):
    """Every order of two folders on sys.path gives the same order of plugins."""
    source = """
    import moduli
    moduli_phase = {phase}
    @moduli.hookimpl
    def moduli_mode_attributes(mode):
        return {{"by": "{name}"}}
    """
    for name, phase in (("xx", 0), ("aa", 0), ("mm", -1)):
        folder = tmp_path / name
        info = folder / f"{name}_plugin-1.0.dist-info"
        info.mkdir(parents=True)
        text = textwrap.dedent(source.format(name=name, phase=phase))
        (folder / f"{name}_plugin.py").write_text(text)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-plugin\nVersion: 1\n")
        (info / "entry_points.txt").write_text(ENTRY.format(name=name, module=f"{name}_plugin"))
    code = """
    import moduli
    from moduli import plugins
    found = plugins.collect("moduli_mode_attributes", mode="eval")
    print([name for name, result in found if "by" in result])
    """
    for order in (("xx", "aa", "mm"), ("mm", "aa", "xx"), ("aa", "xx", "mm")):
        path = os.pathsep.join(str(tmp_path / name) for name in order)
        assert run(code, path).stdout.strip() == "['mm', 'aa', 'xx']"


# -- hooks of extension packages -------------------------------------------------------------------


def test_an_extension_declares_hooks_that_other_plugins_implement(distribution):
    distribution(
        "ext-package",
        SPECS.format(hook="moduli_ext_colours"),
        "[moduli.hookspecs]\next = ext_package\n",
    )
    distribution(
        "user-package",
        """
        import moduli
        @moduli.hookimpl
        def moduli_ext_colours(size):
            return "teal" * size
        """,
        ENTRY.format(name="user", module="user_package"),
    )
    assert plugins.collect("moduli_ext_colours", size=2) == [("user", "tealteal")]
    assert states()["user"] == "active"


def test_files_of_hooks_are_imported_only_if_a_plugin_implements_one(distribution):
    distribution(
        "unused-specs",
        SPECS.format(hook="moduli_unused_hook"),
        "[moduli.hookspecs]\nunused = unused_specs\n",
    )
    distribution(
        "sow-plugin",
        """
        import moduli
        @moduli.hookimpl
        def moduli_sow(name):
            return None
        """,
        ENTRY.format(name="sower", module="sow_plugin"),
    )
    os.environ["MODULI_PLUGINS"] = "sower"
    try:
        nnx.Dict()
        assert states()["sower"] == "active"
        assert "unused_specs" not in sys.modules
    finally:
        del os.environ["MODULI_PLUGINS"]


def test_a_plugin_in_a_block_may_implement_an_extensions_hook(distribution):
    distribution(
        "block-specs",
        SPECS.format(hook="moduli_block_hook"),
        "[moduli.hookspecs]\nblock = block_specs\n",
    )

    class Blue:
        @nnx.hookimpl
        def moduli_block_hook(self):
            return "blue"

    with nnx.using(Blue()):
        assert plugins.collect("moduli_block_hook", size=1) == [("Blue", "blue")]
    assert plugins.collect("moduli_block_hook", size=1) == []


def test_a_file_of_hooks_that_does_not_import_is_reported(distribution):
    distribution(
        "bad-specs", "raise RuntimeError('broken')\n", "[moduli.hookspecs]\nbad = bad_specs\n"
    )
    distribution(
        "needs-plugin",
        """
        import moduli
        @moduli.hookimpl
        def moduli_bad_hook():
            pass
        """,
        ENTRY.format(name="needs", module="needs_plugin"),
    )
    with pytest.warns(plugins.PluginWarning) as caught:
        nnx.Dict()
    texts = sorted(str(warning.message) for warning in caught)
    assert "'bad' of bad-specs 1.0" in texts[0] and "broken" in texts[0]
    assert "'needs' of needs-plugin 1.0" in texts[1] and "moduli_bad_hook" in texts[1]


class declared_late:
    @staticmethod
    @nnx.hookspec
    def moduli_late_hook(size: int):
        "Answers with a size."


def test_hooks_may_be_declared_while_a_plugin_that_waits_for_them_is_active():
    class Waiting:
        @nnx.hookimpl(optionalhook=True)
        def moduli_late_hook(self, size):
            return size + 1

    with nnx.using(Waiting()):
        plugins.add_hookspecs(declared_late)
        assert plugins.collect("moduli_late_hook", size=1) == [("Waiting", 2)]
        assert _plugins.active().hook.moduli_late_hook(size=4) == [5]
    plugins.add_hookspecs(declared_late)  # again: nothing happens


def test_declaring_hooks_reports_no_plugin_that_had_failed_before():
    class Misspelt:
        @nnx.hookimpl
        def moduli_aftercall(self):
            return None

    class declared_beside_a_failure:
        @staticmethod
        @nnx.hookspec
        def moduli_hook_beside_a_failure():
            "Answers nothing."

    with _plugins.reporting_only():  # as doctor and check_plugin do, who say it themselves
        failed = _plugins.PluginSet([_plugins.Plugin(Misspelt(), _plugins.PluginRecord("M"))])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plugins.add_hookspecs(declared_beside_a_failure)
    assert [plugin.record.state for plugin in failed.plugins] == ["quarantined"]


class declared_with_another_argument:
    @staticmethod
    @nnx.hookspec
    def moduli_strange_hook(size: int):
        "Answers with a size."


def test_a_plugin_that_does_not_fit_hooks_declared_later_is_switched_off():
    class Waiting:
        @nnx.hookimpl(optionalhook=True)
        def moduli_strange_hook(self, colour):
            return colour

    with nnx.using(Waiting()):
        with pytest.warns(plugins.PluginWarning, match="'Waiting'.*colour"):
            plugins.add_hookspecs(declared_with_another_argument)
        assert plugins.collect("moduli_strange_hook", size=1) == []


def test_what_declares_no_hook_or_a_known_one_is_an_error():
    class Nothing:
        pass

    class Again:
        @staticmethod
        @nnx.hookspec
        def moduli_sow(name):
            "Another sow."

    with pytest.raises(errors.PluginError, match=r"Nothing declares no hook.*@moduli\.hookspec"):
        plugins.add_hookspecs(Nothing)
    with pytest.raises(errors.PluginError, match=r"'moduli_sow', which moduli\.hookspecs declares"):
        plugins.add_hookspecs(Again)


class instrumenting:
    IN_PROGRAMS = ("moduli_tint",)

    @staticmethod
    @nnx.hookspec(firstresult=True)
    def moduli_tint(value):
        "Changes a value inside of models."


def test_an_extensions_hook_can_be_part_of_compiled_programs():
    plugins.add_hookspecs(instrumenting)

    class Plain(nnx.Module):
        def __call__(self, x):
            if _plugins.active().implementations("moduli_tint"):
                return plugins.call_first("moduli_tint", value=x)
            return x

    class Tint:
        @nnx.hookimpl
        def moduli_tint(self, value):
            return value + 1

    model, run = Plain(), nnx.jit(lambda m, x: m(x))
    assert float(run(model, 1.0)) == 1.0
    with nnx.using(Tint()):
        assert float(run(model, 1.0)) == 2.0
    assert float(run(model, 1.0)) == 1.0
