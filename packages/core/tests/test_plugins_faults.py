"""What can be wrong with a plugin, and what its author and its user are told."""

from __future__ import annotations

import warnings

import pytest

import moduli as nnx
from moduli import errors, plugins

ENTRY = "[moduli]\n{name} = {module}\n"


class Double(nnx.Module):
    def __call__(self, x):
        return 2 * x


class ClassOnly:
    @nnx.hookimpl
    def moduli_before_call(self, module):
        pass


class Unmarked:
    def moduli_before_call(self, module):
        pass


class Wrapper:
    @nnx.hookimpl(wrapper=True)
    def moduli_sow(self, name, value):
        return (yield)


class Misspelt:
    @nnx.hookimpl
    def moduli_purturb(self, value):
        return value


class Misnamed:
    @nnx.hookimpl
    def moduli_perturb(self, vlaue):
        return vlaue


class OddPhase:
    moduli_phase = "early"

    @nnx.hookimpl
    def moduli_perturb(self, value):
        return value


FAULTS = [
    (ClassOnly, r"'ClassOnly'.*use an instance, ClassOnly\(\)"),
    (Unmarked(), r"'moduli_before_call' is not marked @moduli\.hookimpl"),
    (Wrapper(), r"'moduli_sow' is a wrapper"),
    (Misspelt(), r"'moduli_purturb'.*did you mean 'moduli_perturb'"),
    (Misnamed(), r"vlaue"),
    (OddPhase(), r"moduli_phase is 'early'; it must be an int"),
    (object(), r"implements no hook"),
]


@pytest.mark.parametrize("strict", ["", "1"])
@pytest.mark.parametrize(("plugin", "message"), FAULTS)
def test_a_block_with_a_faulty_plugin_is_an_error_and_leaves_nothing(
    plugin, message, strict, monkeypatch
):
    monkeypatch.setenv("MODULI_STRICT", strict)
    before = plugins.active()
    with pytest.raises(errors.PluginError, match=message), nnx.using(plugin):
        raise AssertionError("the block was entered")
    assert plugins.active() is before


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def moduli_sow(name):\n    return True\n", r"'moduli_sow' is not marked"),
        (
            "import moduli\n@moduli.hookimpl(wrapper=True)\ndef moduli_sow(name):\n    yield\n",
            r"'moduli_sow' is a wrapper",
        ),
        ("moduli_phase = 1.5\n", r"moduli_phase is 1\.5"),
        ("import no_such_module_anywhere\n", r"no_such_module_anywhere"),
    ],
)
def test_an_installed_faulty_plugin_is_quarantined_and_the_rest_goes_on(
    distribution, source, message
):
    distribution("faulty-plugin", source, ENTRY.format(name="faulty", module="faulty_plugin"))
    with pytest.warns(plugins.PluginWarning, match=rf"'faulty' of faulty-plugin 1\.0.*{message}"):
        assert Double()(2) == 4
    assert Double()(3) == 6  # no second warning: warnings are errors here
    assert {r.name: r.state for r in plugins.records()}["faulty"] == "quarantined"


def test_a_module_of_hooks_may_be_imported_into_a_plugin(distribution):
    distribution(
        "typed-plugin",
        "from moduli.hookspecs import moduli_sow\n",
        ENTRY.format(name="typed", module="typed_plugin"),
    )
    nnx.Dict()
    assert {r.name: r.state for r in plugins.records()}["typed"] == "active"


def test_a_function_of_another_name_can_implement_a_hook():
    class Named:
        @nnx.hookimpl(specname="moduli_after_call")
        def record(self, output):
            return nnx.Replace(output + 1)

    with nnx.using(Named()):
        assert Double()(1) == 3


def test_an_optional_hook_that_nobody_declares_is_no_fault():
    class Optional:
        @nnx.hookimpl(optionalhook=True)
        def moduli_of_some_other_package(self, anything):
            return anything

    with nnx.using(Optional()):
        assert plugins.collect("moduli_of_some_other_package", anything=3) == [("Optional", 3)]


def test_a_plugin_that_fails_in_a_block_is_off_outside_too(distribution):
    distribution(
        "frail-plugin",
        """
        import moduli
        CALLS = []
        @moduli.hookimpl
        def moduli_module_created(module):
            CALLS.append(module)
            raise ValueError("frail")
        """,
        ENTRY.format(name="frail", module="frail_plugin"),
    )
    other = type("Other", (), {"moduli_mode_attributes": nnx.hookimpl(lambda self: None)})()
    with pytest.warns(plugins.PluginWarning, match="frail") as caught, nnx.using(other):
        nnx.Dict()
        nnx.Dict()
    nnx.Dict()
    import frail_plugin  # type: ignore[import-not-found]

    assert len(frail_plugin.CALLS) == 1 and len(caught) == 1


def test_a_result_of_the_wrong_kind_is_the_plugins_fault_and_the_others_count():
    class Wrong:
        @nnx.hookimpl
        def moduli_mode_attributes(self, mode):
            return [mode]

    class Right:
        @nnx.hookimpl
        def moduli_mode_attributes(self, mode):
            return {"flag": mode == "eval"}

    class Layer(nnx.Module):
        def __init__(self):
            self.flag = False

    layer = Layer()
    with nnx.using(Wrong(), Right()), pytest.warns(plugins.PluginWarning, match="Wrong.*a list"):
        layer.eval()
    assert layer.flag is True


def test_an_error_on_purpose_reaches_the_user():
    class Guard:
        @nnx.hookimpl
        def moduli_module_created(self, module):
            raise errors.ShapeError("seven is too many")

    with nnx.using(Guard()):
        with pytest.raises(errors.ShapeError, match="seven") as caught:
            nnx.Dict()
        with pytest.raises(errors.ShapeError):  # it is still on
            nnx.Dict()
    assert "'Guard'" in caught.value.__notes__[0]


def test_strict_raises_in_an_observing_hook_and_names_the_plugin(monkeypatch):
    class Frail:
        @nnx.hookimpl
        def moduli_module_created(self, module):
            raise ValueError("frail")

    monkeypatch.setenv("MODULI_STRICT", "1")
    with warnings.catch_warnings(), nnx.using(Frail()):
        warnings.simplefilter("error")
        with pytest.raises(errors.PluginError, match=r"'Frail'.*moduli_module_created.*frail") as e:
            nnx.Dict()
    assert isinstance(e.value.__cause__, ValueError)


def test_an_error_in_nested_modules_names_the_plugin_once():
    class Outer(nnx.Module):
        def __init__(self):
            self.inner = Double()

        def __call__(self, x):
            return self.inner(x)

    class Inner:
        @nnx.hookimpl
        def moduli_before_call(self, module):
            if isinstance(module, Double):
                raise KeyError("x")

    with nnx.using(Inner()), pytest.raises(KeyError) as caught:
        Outer()(1)
    assert caught.value.__notes__ == [
        "raised in the hook moduli_before_call of plugin 'Inner'",
        "raised in the call of `inner` of Outer, a Double",  # an error says its place, once
    ]


class MisspeltArgument:
    @nnx.hookimpl
    def moduli_after_call(self, outputs):
        pass


class WithoutSelf:
    @nnx.hookimpl
    def moduli_after_call(output):
        pass


@pytest.mark.parametrize(
    ("plugin", "text"),
    [
        (
            MisspeltArgument,
            r"takes 'outputs', .*; did you mean 'output'\? It may take module, args",
        ),
        (WithoutSelf, r"write `def moduli_after_call\(self, output, \.\.\.\)`"),
    ],
)
def test_an_argument_that_the_hook_does_not_give_is_named(plugin, text):
    with pytest.raises(nnx.errors.PluginError, match=text), nnx.using(plugin()):
        raise AssertionError("it is active")


class NamesNoKind:
    @nnx.hookimpl
    def moduli_variable_names(self):
        return {"numbers_of_faults": int}


def test_a_kind_that_is_none_switches_its_plugin_off():
    with nnx.using(NamesNoKind()), pytest.warns(nnx.PluginWarning, match="no subclass of moduli"):
        with pytest.raises(errors.ModuliError):
            nnx.variable_type_from_name("numbers_of_faults")
        assert nnx.variable_type_from_name("params") is nnx.Param
