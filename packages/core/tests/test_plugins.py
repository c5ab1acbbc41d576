"""Plugins: found by entry point, chosen, ordered, quarantined, turned on for a block."""

from __future__ import annotations

import threading

import jax.numpy as jnp
import pytest

import moduli as nnx
from moduli import _plugins, errors

ENTRY = "[moduli]\n{name} = {module}\n"


class Double(nnx.Module):
    def __call__(self, x):
        return 2 * x


class Recorder:
    """Sees every call, changes nothing."""

    def __init__(self):
        self.calls = []

    @nnx.hookimpl
    def moduli_before_call(self, module, args, kwargs):
        self.calls.append((type(module).__name__, args))


def plugin(name, phase=0, **functions):
    """Makes a plugin object of functions that take keyword arguments by name."""
    cls = type(name, (), {key: nnx.hookimpl(staticmethod(f)) for key, f in functions.items()})
    made = cls()
    made.__name__ = name
    made.moduli_phase = phase
    return made


# -- finding ---------------------------------------------------------------------------------------


def test_an_installed_plugin_is_found_and_used(distribution):
    distribution(
        "quant-plugin",
        """
        import moduli
        @moduli.hookimpl
        def moduli_mode_attributes(mode):
            return {"quantize": mode == "eval"}
        """,
        ENTRY.format(name="quant", module="quant_plugin"),
    )

    class Layer(nnx.Module):
        def __init__(self):
            self.quantize = False

    layer = Layer()
    layer.eval()
    assert layer.quantize is True
    layer.train()
    assert layer.quantize is False
    record = next(r for r in _plugins.records() if r.name == "quant")
    assert (record.distribution, record.version) == ("quant-plugin", "1.0")
    assert record.hooks == ("moduli_mode_attributes",) and record.state == "active"


def test_a_plugin_names_a_kind_of_variable(distribution):
    distribution(
        "kinds-plugin",
        """
        import moduli
        class Ema(moduli.Variable):
            pass
        @moduli.hookimpl
        def moduli_variable_names():
            return {"ema_params": Ema}
        """,
        ENTRY.format(name="kinds", module="kinds_plugin"),
    )
    import kinds_plugin  # type: ignore[import-not-found]

    assert nnx.variable_type_from_name("ema_params") is kinds_plugin.Ema
    assert nnx.variable_name_from_type(kinds_plugin.Ema) == "ema_params"


# -- choosing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "imported"),
    [("none", False), ("-heavy", False), ("heavy", True), ("", True)],
)
def test_a_blocked_plugin_is_never_imported(distribution, monkeypatch, choice, imported):
    import sys

    distribution(
        "heavy-plugin", "LOADED = True\n", ENTRY.format(name="heavy", module="heavy_plugin")
    )
    monkeypatch.setenv("MODULI_PLUGINS", choice)
    nnx.Dict()
    assert ("heavy_plugin" in sys.modules) is imported
    state = {r.name: r.state for r in _plugins.records()}["heavy"]
    assert state == ("active" if imported else "blocked")


def test_choosing_an_unknown_plugin_says_what_is_near(distribution, monkeypatch):
    distribution("heavy-plugin", "", ENTRY.format(name="heavy", module="heavy_plugin"))
    monkeypatch.setenv("MODULI_PLUGINS", "heavyy")
    with pytest.raises(errors.PluginError, match="did you mean 'heavy'"):
        nnx.Dict()


# -- failing ---------------------------------------------------------------------------------------


def test_a_plugin_that_does_not_import_is_reported_once_and_the_rest_goes_on(distribution):
    distribution(
        "broken-plugin",
        "raise RuntimeError('no such accelerator')\n",
        ENTRY.format(name="broken", module="broken_plugin"),
        version="3.2",
    )
    with pytest.warns(nnx.PluginWarning) as caught:
        nnx.Dict()
    assert len(caught) == 1
    text = str(caught[0].message)
    for part in ("'broken'", "broken-plugin 3.2", "import", "no such accelerator"):
        assert part in text
    nnx.Dict().eval()  # no second report: warnings are errors here


def test_a_plugin_that_fails_in_an_observing_hook_is_switched_off(distribution):
    distribution(
        "faulty-plugin",
        """
        import moduli
        @moduli.hookimpl
        def moduli_module_created(module):
            raise ValueError("cannot watch")
        """,
        ENTRY.format(name="faulty", module="faulty_plugin"),
    )
    with pytest.warns(nnx.PluginWarning, match=r"faulty-plugin 1.0.*moduli_module_created.*cannot"):
        nnx.Dict()
    nnx.Dict()
    assert {r.name: r.state for r in _plugins.records()}["faulty"] == "quarantined"


def test_strict_makes_a_failure_fatal(distribution, monkeypatch):
    distribution(
        "broken-plugin",
        "raise RuntimeError('no such accelerator')\n",
        ENTRY.format(name="broken", module="broken_plugin"),
    )
    monkeypatch.setenv("MODULI_STRICT", "1")
    with pytest.raises(errors.PluginError, match="no such accelerator"):
        nnx.Dict()


def test_a_misspelt_hook_is_reported_with_the_right_name(distribution):
    distribution(
        "typo-plugin",
        """
        import moduli
        @moduli.hookimpl
        def moduli_sew(name, value):
            return True
        """,
        ENTRY.format(name="typo", module="typo_plugin"),
    )
    with pytest.warns(nnx.PluginWarning, match=r"'moduli_sew'.*did you mean 'moduli_sow'"):
        nnx.Dict()


def test_a_wrong_argument_name_is_reported(distribution):
    distribution(
        "args-plugin",
        """
        import moduli
        @moduli.hookimpl
        def moduli_mode_attributes(modus):
            return {}
        """,
        ENTRY.format(name="args", module="args_plugin"),
    )
    with pytest.warns(nnx.PluginWarning, match=r"args-plugin.*modus"):
        nnx.Dict()


def test_an_exception_in_a_value_hook_reaches_the_user_with_the_plugin_named():
    def moduli_before_call(module, args, kwargs):
        raise ZeroDivisionError("inside")

    with (
        nnx.using(plugin("divider", moduli_before_call=moduli_before_call)),
        pytest.raises(ZeroDivisionError) as caught,
    ):
        Double()(1)
    assert "moduli_before_call" in caught.value.__notes__[0]
    assert "'divider'" in caught.value.__notes__[0]


def test_a_hook_that_returns_the_wrong_thing_is_an_error_that_says_what_to_return():
    bare = plugin("bare", moduli_after_call=lambda output: output + 1)
    with nnx.using(bare), pytest.raises(errors.PluginError, match=r"moduli\.Replace"):
        Double()(1)
    single = plugin("single", moduli_before_call=lambda args: 3)
    with nnx.using(single), pytest.raises(errors.PluginError, match=r"\(args, kwargs\)"):
        Double()(1)


# -- order -----------------------------------------------------------------------------------------


def test_plugins_run_by_phase_then_name_whatever_the_order_of_registration():
    def appender(text):
        return lambda args, kwargs: ((args[0] + text,), kwargs)

    a, b, early = (
        plugin(name, phase, moduli_before_call=appender(name))
        for name, phase in (("a", 0), ("b", 0), ("z", -1))
    )

    class Identity(nnx.Module):
        def __call__(self, text):
            return text

    for order in ((a, b, early), (early, b, a), (b, early, a)):
        with nnx.using(*order):
            assert Identity()("") == "zab"


# -- calls -----------------------------------------------------------------------------------------


def test_before_and_after_change_arguments_and_output():
    add = plugin("add", moduli_before_call=lambda args, kwargs: ((args[0] + 1,), kwargs))
    negate = plugin("negate", moduli_after_call=lambda output: nnx.Replace(-output))
    with nnx.using(add, negate):
        assert Double()(3) == -8
    assert Double()(3) == 6


def test_only_modules_are_calls_of_modules():
    recorder = Recorder()
    with nnx.using(recorder):
        nnx.Rngs(0).params()
    assert recorder.calls == []


def test_an_output_can_be_replaced_by_none():
    drop = plugin("drop", moduli_after_call=lambda output: nnx.Replace(None))
    with nnx.using(drop):
        assert Double()(3) is None


def test_a_call_through_super_is_one_call():
    class Child(Double):
        def __call__(self, x):
            return super().__call__(x) + 1

    recorder = Recorder()
    with nnx.using(recorder):
        assert Child()(2) == 5
    assert recorder.calls == [("Child", (2,))]


def test_nothing_is_left_behind():
    before = dict(vars(Double))
    model = Double()
    attributes = dict(vars(model))
    with pytest.raises(RuntimeError), nnx.using(Recorder()):
        model(1)
        raise RuntimeError
    assert dict(vars(Double)) == before and dict(vars(model)) == attributes
    recorder = Recorder()
    model(1)
    assert recorder.calls == []


def test_using_is_for_this_thread_only():
    recorder = Recorder()
    with nnx.using(recorder):
        thread = threading.Thread(target=lambda: Double()(1))
        thread.start()
        thread.join()
        assert recorder.calls == []
        Double()(1)
    assert recorder.calls == [("Double", (1,))]


def test_using_nests():
    add = plugin("add", moduli_before_call=lambda args, kwargs: ((args[0] + 1,), kwargs))
    times = plugin("times", moduli_before_call=lambda args, kwargs: ((args[0] * 10,), kwargs))
    with nnx.using(add):
        with nnx.using(times):
            assert Double()(1) == 2 * 20  # add runs before times: by name
        assert Double()(1) == 4


def test_using_an_unknown_hook_is_an_error():
    with (
        pytest.warns(nnx.PluginWarning),
        pytest.raises(errors.PluginError, match="moduli_before_cal"),
        nnx.using(plugin("typo", moduli_before_cal=lambda: None)),
    ):
        pass


# -- compiled programs -----------------------------------------------------------------------------


def test_switching_a_plugin_on_takes_effect_on_a_compiled_function_and_off_restores_the_old_one():
    traces = []

    @nnx.jit
    def run(model, x):
        traces.append(1)
        return model(x)

    model, x = Double(), jnp.ones(())
    negate = plugin("negate", moduli_after_call=lambda output: nnx.Replace(-output))
    assert float(run(model, x)) == 2
    with nnx.using(negate):
        assert float(run(model, x)) == -2
    assert float(run(model, x)) == 2
    with nnx.using(negate):
        assert float(run(model, x)) == -2
    assert len(traces) == 2


def test_a_plugin_that_takes_over_sow_takes_effect_on_a_compiled_function():
    class Sower(nnx.Module):
        def __call__(self, x):
            self.sow(nnx.Intermediate, "x", x)
            return x

    seen = []

    def moduli_sow(name, value):
        seen.append(name)
        return True

    model, run = Sower(), nnx.jit(lambda m, x: m(x))
    with nnx.using(plugin("quiet", -2, moduli_sow=lambda name: False)):
        run(model, 1.0)
        run(model, 1.0)
    with nnx.using(plugin("watch", -2, moduli_sow=moduli_sow)):
        run(model, 1.0)
    assert seen == ["x"]


def test_a_plugin_that_only_observes_creation_compiles_nothing_again():
    traces = []

    @nnx.jit
    def run(model, x):
        traces.append(1)
        return model(x)

    model, x = Double(), jnp.ones(())
    run(model, x)
    with nnx.using(plugin("watch", moduli_module_created=lambda module: None)):
        run(model, x)
    assert len(traces) == 1


def test_with_no_plugin_active_the_jaxpr_is_that_of_the_bare_function():
    import jax

    def bare(x):
        return 2 * x

    model = Double()
    through_module = str(jax.make_jaxpr(lambda x: model(x))(1.0))
    assert through_module == str(jax.make_jaxpr(bare)(1.0))


# -- sow and perturb without an implementation -----------------------------------------------------


@pytest.mark.parametrize("tool", ["sow", "perturb"])
def test_without_a_plugin_sow_and_perturb_say_what_to_install(monkeypatch, fresh_plugins, tool):
    monkeypatch.setenv("MODULI_PLUGINS", "none")
    model = Double()
    with pytest.raises(errors.MissingPluginError, match=r'pip install "moduli\[debug\]"') as caught:
        if tool == "sow":
            model.sow(nnx.Intermediate, "h", 1)
        else:
            model.perturb("h", 1.0)
    assert f"Module.{tool}" in str(caught.value)


# -- hooks of extension packages -------------------------------------------------------------------


def test_an_extension_declares_hooks_that_other_plugins_implement(distribution):
    distribution(
        "ext-package",
        """
        import moduli
        from moduli import _plugins

        class specs:
            @moduli.hookspec
            def moduli_ext_colours(self):
                "Names colours."

        def colours():
            return [c for _, c in _plugins.collect("moduli_ext_colours")]
        """,
        "[moduli.hookspecs]\next = ext_package:specs\n",
    )
    distribution(
        "user-package",
        """
        import moduli
        @moduli.hookimpl
        def moduli_ext_colours():
            return "teal"
        """,
        ENTRY.format(name="user", module="user_package"),
    )
    import ext_package  # type: ignore[import-not-found]

    assert ext_package.colours() == ["teal"]
