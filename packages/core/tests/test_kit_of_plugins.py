"""``check_plugin``: each check passes on good plugins and fails on one broken in its way."""

from __future__ import annotations

import contextlib
import time

import jax
import jax.numpy as jnp
import pytest

import moduli as nnx
from moduli import plugins
from moduli.testing import PluginCase, check_plugin, parametrize_with_checks

SEEN: list = []


class Average(nnx.Variable):
    pass


class Contributes:
    @nnx.hookimpl
    def moduli_variable_names(self):
        return {"averages_of_kit": Average}

    @nnx.hookimpl
    def moduli_mode_attributes(self, mode):
        return {"quantize_of_kit": mode == "eval"}


class Largest:
    """Records the largest output of each module; does nothing unless it is asked."""

    @nnx.hookimpl
    def moduli_after_call(self, output):
        for recording in plugins.recordings():
            if recording.owner is self and isinstance(output, jax.Array):
                recording.record("largest", output.max())


LARGEST = Largest()


class Root(nnx.Module):
    pass


@contextlib.contextmanager
def largest():
    with nnx.using(LARGEST), plugins.recording(LARGEST, Root()) as recording:
        yield recording


class Negate:
    @nnx.hookimpl
    def moduli_after_call(self, output):
        return nnx.Replace(-output)


# -- broken ----------------------------------------------------------------------------------------


class Misspelt:
    @nnx.hookimpl
    def moduli_aftercall(self, output): ...


class Unmarked:
    def moduli_after_call(self, output): ...


class WrongArgument:
    @nnx.hookimpl
    def moduli_after_call(self, out): ...


class Nothing: ...


class OldVersion:
    moduli_hook_version = 99

    @nnx.hookimpl
    def moduli_after_call(self, output): ...


class BareOutput:
    @nnx.hookimpl
    def moduli_after_call(self, output):
        return -output


class NamesNoKind:
    @nnx.hookimpl
    def moduli_variable_names(self):
        return {"numbers_of_kit": int}


class ReturnsAList:
    @nnx.hookimpl
    def moduli_mode_attributes(self, mode):
        return ["quantize"]


class RaisesWhenWritten:
    @nnx.hookimpl
    def moduli_value_written(self, value):
        raise ValueError("no")


class TakesParams:
    @nnx.hookimpl
    def moduli_variable_names(self):
        return {"params": Average}


class TakesDeterministic:
    @nnx.hookimpl
    def moduli_mode_attributes(self, mode):
        return {"deterministic": mode == "train"}


class LooksAtValues:
    @nnx.hookimpl
    def moduli_after_call(self, output):
        float(jnp.max(output))


class AlwaysCasts:
    @nnx.hookimpl
    def moduli_before_call(self, args, kwargs):
        return tuple(x * 1.0 for x in args), kwargs


class AddsAnOperation:
    """Changes no result, and the program all the same."""

    @nnx.hookimpl
    def moduli_after_call(self, output):
        return nnx.Replace(jax.lax.optimization_barrier(output))


@contextlib.contextmanager
def made_anew():
    with nnx.using(Largest()):
        yield


class SetsAttributes:
    @nnx.hookimpl
    def moduli_after_call(self, module, output):
        module.last = nnx.Intermediate(output)


ON: list = []


@contextlib.contextmanager
def stays_on():
    ON.append(nnx.using(LARGEST))
    ON[-1].__enter__()
    yield
    ON.pop().__exit__(None, None, None)  # not after an exception


class KeepsOutputs:
    @nnx.hookimpl
    def moduli_after_call(self, output):
        SEEN.append(output)


class KeepsTheLast:
    @nnx.hookimpl
    def moduli_after_call(self, output):
        self.last = output


class Races:
    @nnx.hookimpl
    def moduli_before_call(self, args, kwargs):
        self.scale = args[0]
        if not isinstance(args[0], jax.core.Tracer):
            time.sleep(0.002)
        return (self.scale,), kwargs


BROKEN = [
    ("implements_hooks", PluginCase(Misspelt()), "did you mean 'moduli_after_call'"),
    ("implements_hooks", PluginCase(Unmarked()), "not marked @moduli.hookimpl"),
    ("implements_hooks", PluginCase(WrongArgument()), "'out'"),
    ("implements_hooks", PluginCase(Nothing()), "implements no hook"),
    ("implements_hooks", PluginCase(OldVersion()), "version 99"),
    ("implements_hooks", PluginCase(Negate), "is a class"),
    ("answers_hooks", PluginCase(BareOutput()), "Replace"),
    ("answers_hooks", PluginCase(NamesNoKind()), "numbers_of_kit"),
    ("answers_hooks", PluginCase(ReturnsAList()), "returned a list"),
    ("answers_hooks", PluginCase(RaisesWhenWritten()), "moduli_value_written: ValueError: no"),
    ("claims_own_names", PluginCase(TakesParams()), "'params'"),
    ("claims_own_names", PluginCase(TakesDeterministic()), "'deterministic'"),
    ("runs_under_transforms", PluginCase(LooksAtValues()), ""),
    ("is_silent", PluginCase(Negate()), "silent=False"),
    ("is_silent", PluginCase(AlwaysCasts()), "programs differ"),
    ("is_silent", PluginCase(AddsAnOperation()), "programs differ"),
    ("compiles_once", PluginCase(LARGEST, tool=made_anew), "each use compiles again"),
    ("keeps_models", PluginCase(SetsAttributes()), "another than one that ran without"),
    ("ends_with_its_block", PluginCase(LARGEST, tool=stays_on), "stays on"),
    ("leaves_nothing", PluginCase(KeepsOutputs()), "SEEN"),
    ("leaves_nothing", PluginCase(KeepsTheLast()), "KeepsTheLast.last"),
    ("runs_in_threads", PluginCase(Races()), "in several threads"),
    ("imports_little", PluginCase("heavy_of_kit"), "imports sybil"),
    ("imports_little", PluginCase("slow_of_kit"), "takes \\d+ ms"),
    ("imports_little", PluginCase("fails_of_kit"), "no such thing"),
    ("imports_little", PluginCase("speaks_of_kit"), "writes 'hello', in every program"),
]


@parametrize_with_checks(
    [
        PluginCase(Contributes()),
        PluginCase(LARGEST, tool=largest),
        PluginCase(Negate(), silent=False),
        PluginCase("light_of_kit"),
        PluginCase("light_of_kit:PLUGIN", name="an object in a module"),
    ]
)
def test_a_good_plugin_passes(case, check, of_modules):
    check(case)


@pytest.fixture
def of_modules(tmp_path, monkeypatch):
    hook = "import moduli\n@moduli.hookimpl\ndef moduli_mode_attributes(mode): return {}\n"
    sources = {
        "light": hook + "class P:\n    moduli_mode_attributes = staticmethod("
        "moduli.hookimpl(lambda mode: {}))\nPLUGIN = P()\n",
        "heavy": "import sybil\n" + hook,
        "slow": "import time\ntime.sleep(0.4)\n" + hook,
        "fails": "raise ImportError('no such thing')",
        "speaks": "print('hello')\n" + hook,
    }
    for name, source in sources.items():
        (tmp_path / f"{name}_of_kit.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("name", "case", "text"),
    BROKEN,
    ids=[f"{case.title()}-{name}" for name, case, _ in BROKEN],
)
def test_each_check_fails_on_what_it_is_for(name, case, text, of_modules):
    (check,) = (check for check in case.checks() if check.__name__ == name)
    before = plugins.active()
    with pytest.raises(Exception, match=text) as caught:
        check(case)
    assert not isinstance(caught.value, pytest.skip.Exception)
    while ON:
        ON.pop().__exit__(None, None, None)
    assert plugins.active() is before
    del SEEN[:]


def test_every_check_has_a_broken_plugin():
    names = {check.__name__ for check in PluginCase(Contributes()).checks()}
    assert names == {name for name, _, _ in BROKEN}


def test_all_that_fails_is_listed():
    with pytest.raises(AssertionError, match=r"Misspelt fails \d+ of 11 checks:\n- implements_ho"):
        check_plugin(Misspelt())
