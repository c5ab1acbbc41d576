"""The hooks themselves: declared in order, typed, documented, and fired as they say."""

from __future__ import annotations

import contextlib
import inspect
import pathlib
import re

import jax.numpy as jnp
import pytest

import moduli as nnx
from moduli import _plugins, hookspecs, plugins

HOOKS = [
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
DOCS = pathlib.Path(__file__).resolve().parents[3] / "docs" / "hooks.md"


def test_the_file_declares_the_hooks_in_the_order_in_which_a_model_meets_them():
    assert _plugins.hook_names()[: len(HOOKS)] == HOOKS
    assert hookspecs.__all__ == ["IN_PROGRAMS", *HOOKS]
    assert set(hookspecs.IN_PROGRAMS) < set(HOOKS)


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_is_typed_and_documented(name):
    hook = getattr(hookspecs, name)
    signature = inspect.signature(hook)
    parameters = signature.parameters.values()
    assert all(p.annotation is not p.empty for p in parameters)
    assert signature.return_annotation is not signature.empty
    text = inspect.getdoc(hook)
    assert re.search(r"An observing hook|An observing\nhook|A value hook", text)
    assert "Example:" in text and "hookimpl" in text
    for parameter in parameters:
        assert f"  {parameter.name}: " in text
    assert signature.return_annotation == "None" or "Returns:" in text


def test_the_page_on_hooks_shows_every_hook_as_it_is_declared():
    shown = re.findall(r"^\| `(moduli_\w+)\((.*?)\)`.*\| (\w+) \|$", DOCS.read_text(), re.MULTILINE)
    declared = []
    for name in HOOKS:
        hook = getattr(hookspecs, name)
        kind = "value" if "A value hook" in inspect.getdoc(hook) else "observing"
        declared.append((name, ", ".join(inspect.signature(hook).parameters), kind))
    assert shown == declared


class Everything:
    """Implements every hook, and notes in which order they fire."""

    moduli_phase = -1

    def __init__(self):
        self.fired = []

    @nnx.hookimpl
    def moduli_variable_names(self):
        self.fired.append("names")
        return {}

    @nnx.hookimpl
    def moduli_module_created(self, module):
        self.fired.append(("created", type(module).__name__))

    @nnx.hookimpl
    def moduli_mode_attributes(self, mode):
        self.fired.append(("mode", mode))

    @nnx.hookimpl
    def moduli_before_call(self, module, args, kwargs, path, number):
        self.fired.append(("before", type(module).__name__, args, kwargs, path, number))

    @nnx.hookimpl
    @contextlib.contextmanager
    def moduli_call_context(self, module, path, number):
        self.fired.append(("enter", path, number))
        yield
        self.fired.append(("leave", path, number))

    @nnx.hookimpl
    def moduli_after_call(self, module, args, kwargs, output, path, number):
        self.fired.append(("after", type(module).__name__, args, kwargs, output, path, number))

    @nnx.hookimpl
    def moduli_after_method(self, module, method, args, kwargs, output, path):
        self.fired.append(("method", type(module).__name__, method, args, kwargs, output, path))

    @nnx.hookimpl
    def moduli_value_written(self, variable, old, value):
        assert variable.get_raw_value() is old
        self.fired.append(("written", type(variable).__name__, old, value))

    @nnx.hookimpl
    def moduli_sow(self, module, variable_type, name, value, reduce_fn, init_fn):
        self.fired.append(("sow", variable_type, name, reduce_fn(init_fn(), value)))
        return True

    @nnx.hookimpl
    def moduli_perturb(self, module, name, value, variable_type):
        self.fired.append(("perturb", variable_type, name, value))
        return value + 1


class Inner(nnx.Module):
    def __call__(self, x, *, scale):
        self.sow("intermediates", "x", x)
        return self.scaled(self.perturb("x", x), by=scale)

    def scaled(self, x, *, by):
        return by * x


class Outer(nnx.Module):
    def __init__(self):
        self.inner = Inner()
        self.calls = nnx.BatchStat(0)

    def __call__(self, x):
        self.calls.value += 1
        return self.inner(x, scale=10)


def test_a_models_life_fires_the_hooks_in_order_with_their_arguments():
    everything = Everything()
    with nnx.using(everything):
        model = Outer()
        model.eval()
        assert model(1) == 20
    calls = [
        ("created", "Inner"),
        ("created", "Outer"),
        ("mode", "eval"),
        ("before", "Outer", (1,), {}, (), 0),
        ("enter", (), 0),
        ("written", "BatchStat", 0, 1),
        ("before", "Inner", (1,), {"scale": 10}, ("inner",), 0),
        ("enter", ("inner",), 0),
        "names",
        ("sow", nnx.Intermediate, "x", (1,)),
        ("perturb", nnx.Perturbation, "x", 1),
        ("method", "Inner", "scaled", (2,), {"by": 10}, 20, ("inner",)),
        ("leave", ("inner",), 0),
        ("after", "Inner", (1,), {"scale": 10}, 20, ("inner",), 0),
        ("leave", (), 0),
        ("after", "Outer", (1,), {}, 20, (), 0),
    ]
    assert everything.fired == calls


def test_a_context_that_takes_the_method_is_around_every_public_method():
    found = []

    class Around:
        @nnx.hookimpl
        @contextlib.contextmanager
        def moduli_call_context(self, method, path, number):
            found.append(("enter", method, path, number))
            try:
                yield
            finally:
                found.append(("leave", method))

    class Inner(nnx.Module):
        def __call__(self, x):
            return self.scaled(x, by=10)

        def scaled(self, x, *, by):
            return by * x

    class Outer(nnx.Module):
        def __init__(self):
            self.inner = Inner()

        def __call__(self, x):
            return self.inner(x)

    model = Outer()
    with nnx.using(Around()):
        assert model(1) == 10
        with pytest.raises(TypeError):
            model.inner.scaled(1)
    inner = [("enter", "scaled", ("inner",), None), ("leave", "scaled")]
    assert found == [
        ("enter", "__call__", (), 0),
        ("enter", "__call__", ("inner",), 0),
        *inner,
        ("leave", "__call__"),
        ("leave", "__call__"),
        ("enter", "scaled", (), None),
        ("leave", "scaled"),
    ]


def test_hooks_fire_while_tracing_and_not_inside_the_program():
    everything = Everything()
    model, run = Outer(), nnx.jit(lambda model, x: model(x))
    with nnx.using(everything):
        first = run(model, jnp.asarray(1.0))
        fired = len(everything.fired)
        second = run(model, jnp.asarray(2.0))
    assert (float(first), float(second)) == (20.0, 30.0)
    assert fired > 0 and len(everything.fired) == fired


def test_the_public_module_for_plugin_authors_has_what_they_need():
    for name in ("add_hookspecs", "collect", "call_first", "hookimpl", "hookspec", "using"):
        assert getattr(plugins, name) is getattr(_plugins, name)
