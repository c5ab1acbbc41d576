"""Plugins: found by entry point, chosen, ordered, quarantined, turned on for a block."""

from __future__ import annotations

import threading

import jax
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


def test_names_of_a_plugin_hold_while_it_is_on():
    class Ours(nnx.Variable):
        pass

    class Theirs(nnx.Variable):
        pass

    for kind in (Ours, Theirs):
        with nnx.using(plugin("names", moduli_variable_names=lambda kind=kind: {"mine": kind})):
            assert nnx.variable_type_from_name("mine") is kind
    with pytest.raises(errors.PathError, match="mine"):
        nnx.variable_type_from_name("mine")
    clash = plugin("clash", moduli_variable_names=lambda: {"params": Ours})
    with nnx.using(clash):
        for _ in range(2):  # every time, not only at the first look
            with pytest.raises(errors.NameClashError, match=r"'clash'.*'params'.*Param"):
                nnx.variable_type_from_name("params")


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


def test_a_module_that_calls_itself_makes_several_calls():
    class Factorial(nnx.Module):
        def __call__(self, n):
            return 1 if n == 0 else n * self(n - 1)

    recorder = Recorder()
    with nnx.using(recorder):
        assert Factorial()(3) == 6
    assert [args for _, args in recorder.calls] == [(3,), (2,), (1,), (0,)]


def test_a_hook_may_call_modules_without_running_into_itself():
    class Compare:
        def __init__(self):
            self.seen = []

        @nnx.hookimpl
        def moduli_after_call(self, module, args, output):
            self.seen.append((output, module(args[0] + 1)))

    compare = Compare()
    with nnx.using(compare):
        Double()(1)
        Double()(2)
    assert compare.seen == [(2, 4), (4, 6)]


def test_a_plugin_may_give_new_modules_attributes_that_are_modules():
    class Attach:
        @nnx.hookimpl
        def moduli_module_created(self, module):
            module.notes = {"author": "Ada"}  # becomes a Dict, which is a new module too

    with nnx.using(Attach()):
        model = Double()
    assert model.notes["author"] == "Ada" and isinstance(model.notes, nnx.Dict)


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
        pytest.raises(errors.PluginError, match=r"'moduli_before_cal'.*'moduli_before_call'"),
        nnx.using(plugin("typo", moduli_before_cal=lambda: None)),
    ):
        pass


def test_using_the_same_plugin_twice_is_using_it_once():
    recorder = Recorder()
    with nnx.using(recorder, recorder), nnx.using(recorder):
        Double()(1)
    assert len(recorder.calls) == 1


def test_plugins_that_are_equal_are_still_two_plugins():
    import dataclasses

    @dataclasses.dataclass
    class Seen:
        calls: list

        @nnx.hookimpl
        def moduli_before_call(self, module):
            self.calls.append(module)

    first, second = Seen([]), Seen([])
    assert first == second
    model = Double()
    with nnx.using(first), nnx.using(second):
        model(1)
    assert first.calls == [model] and second.calls == [model]


def test_tryfirst_and_trylast_go_around_all_phases():
    ran = []

    class Marked:
        def __init__(self, name, phase):
            self.__name__, self.moduli_phase = name, phase

    class First(Marked):
        @nnx.hookimpl(tryfirst=True)
        def moduli_before_call(self):
            ran.append(self.__name__)

    class Last(Marked):
        @nnx.hookimpl(trylast=True)
        def moduli_before_call(self):
            ran.append(self.__name__)

    usual = [
        plugin("early", -5, moduli_before_call=lambda: ran.append("early")),
        plugin("late", 5, moduli_before_call=lambda: ran.append("late")),
    ]
    with nnx.using(Last("last", -9), First("first", 9), *reversed(usual)):
        Double()(1)
    assert ran == ["first", "early", "late", "last"]


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


def test_a_plugin_for_modes_takes_effect_on_a_compiled_function():
    class Layer(nnx.Module):
        def __init__(self):
            self.quantize = False

        def __call__(self, x):
            self.eval()
            return x + 1 if self.quantize else x

    model, run = Layer(), nnx.jit(lambda m, x: nnx.clone(m)(x))
    modes = plugin("modes", moduli_mode_attributes=lambda mode: {"quantize": mode == "eval"})
    assert float(run(model, 1.0)) == 1.0
    with nnx.using(modes):
        assert float(run(model, 1.0)) == 2.0
    assert float(run(model, 1.0)) == 1.0


def test_the_same_instrumentation_is_one_token_and_none_is_a_constant(monkeypatch, fresh_plugins):
    monkeypatch.setenv("MODULI_PLUGINS", "none")
    a, b = Recorder(), Recorder()
    watch = plugin("watch", moduli_module_created=lambda module: None)
    bare = _plugins.active().token
    with nnx.using(a):
        with_a = _plugins.active().token
    with nnx.using(watch, a):
        assert _plugins.active().token is with_a
    with nnx.using(b):
        assert _plugins.active().token is not with_a
    with nnx.using(watch):
        assert _plugins.active().token is bare
    _plugins.rediscover()
    assert _plugins.active().token is bare


def test_a_plugin_is_freed_when_no_program_needs_it():
    import gc
    import weakref

    recorder = Recorder()
    reference = weakref.ref(recorder)
    with nnx.using(recorder):
        Double()(1)
    del recorder
    gc.collect()
    assert reference() is None


class Adds:
    """Adds a value to each output."""

    def __init__(self, value):
        self.value = value

    @nnx.hookimpl
    def moduli_after_call(self, output):
        return nnx.Replace(output + self.value)


def test_programs_of_a_plugin_that_is_gone_are_freed():
    import gc
    import weakref

    run, model = nnx.jit(lambda model, x: model(x)), Double()
    run(model, jnp.ones(3))
    values = []
    for number in range(5):
        value = jnp.full(3, float(number))
        values.append(weakref.ref(value))
        with nnx.using(Adds(value)):
            assert float(run(model, jnp.ones(3))[0]) == 2.0 + number
        del value
    gc.collect()
    jax.clear_caches()  # JAX keeps what it traced for a function that is gone for a while
    assert [reference() for reference in values] == [None] * 5
    assert len(run._programs) == 1


@pytest.mark.parametrize("transform", ["pmap", "shard_map"])
def test_mapped_programs_of_a_plugin_that_is_gone_are_freed_and_no_others(transform):
    import gc
    import weakref

    from moduli._call.programs import LabelledProgram

    def alive():
        gc.collect()  # plugins
        jax.clear_caches()  # JAX keeps what it traced for a function that is gone for a while
        gc.collect()  # their programs
        return sum(type(item) is LabelledProgram for item in gc.get_objects())

    def forward(model, x):
        return model(x)

    values, lasting = [], Adds(10.0)
    mesh = jax.sharding.Mesh(jax.devices()[:1], ("i",))
    run = {
        "pmap": nnx.pmap(forward, in_axes=(None, 0)),
        "shard_map": nnx.shard_map(
            forward, mesh=mesh, in_specs=(jax.P(), jax.P("i")), out_specs=jax.P("i")
        ),
    }[transform]
    model, x = Double(), jnp.ones((1, 3))
    before = alive()
    run(model, x)
    with nnx.using(lasting):
        run(model, x)
    for number in range(3):
        value = jnp.full(3, float(number))
        values.append(weakref.ref(value))
        with nnx.using(Adds(value)):
            assert float(run(model, x)[0, 0]) == 2.0 + number
        del value
    assert alive() - before == 2
    assert [reference() for reference in values] == [None] * 3
    assert float(run(model, x)[0, 0]) == 2.0
    with nnx.using(lasting):
        assert float(run(model, x)[0, 0]) == 12.0
    assert alive() - before == 2


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


def test_sow_says_which_choice_leaves_an_installed_plugin_out(tmp_path, monkeypatch, fresh_plugins):
    info = tmp_path / "moduli_debug-7.7.dist-info"  # found before the real one, if that is here
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: moduli-debug\nVersion: 7.7\n")
    (info / "entry_points.txt").write_text(ENTRY.format(name="debug", module="moduli_debug"))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("MODULI_PLUGINS", "-debug")
    with pytest.raises(errors.MissingPluginError, match=r"moduli-debug 7\.7.*MODULI_PLUGINS='-deb"):
        Double().sow(nnx.Intermediate, "h", 1)


def test_when_all_plugins_leave_a_value_to_others_they_are_named(monkeypatch, fresh_plugins):
    monkeypatch.setenv("MODULI_PLUGINS", "none")
    with (
        nnx.using(plugin("shy", moduli_sow=lambda name: None)),
        pytest.raises(errors.MissingPluginError, match="asked were shy"),
    ):
        Double().sow(nnx.Intermediate, "h", 1)


def test_an_implementation_may_hand_a_value_on_to_the_next():
    class Outer:
        moduli_phase = -1

        @nnx.hookimpl
        def moduli_perturb(self, module, name, value):
            return 10 * module.perturb(name, value)  # asks the others: it is not entered again

    inner = plugin("inner", moduli_perturb=lambda value: value + 1)
    inner.moduli_phase = -1
    with nnx.using(Outer(), inner):
        assert Double().perturb("h", 2.0) == 30.0
