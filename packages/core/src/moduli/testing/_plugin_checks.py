"""The kit for plugins: hooks spelt and called right, silent until asked, nothing left behind."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import subprocess
import sys
import types
import unittest
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

import moduli
from moduli import _plugins
from moduli._facade.owners import contributed
from moduli._graph.split import clone, graphdef, merge, split, state
from moduli._module.module import Module
from moduli._variable.box import Variable
from moduli._variable.kinds import BatchStat, Intermediate, Param
from moduli.testing._compare import assert_equal_graphs
from moduli.testing._kit import Case, Check, run_checks
from moduli.testing._left_behind import assert_leaves_nothing, modules_of
from moduli.testing._threads import in_threads

__all__ = ["PluginCase", "check_plugin"]

_THREADS = 4
_MOST_MS = 100  # as in `python -m moduli doctor`
_IMPORT = """
import json, sys, time
import jax, jax.numpy, numpy, moduli, moduli.plugins
before, start = set(sys.modules), time.perf_counter()
import {target}
ms = (time.perf_counter() - start) * 1000
new = {{name.partition(".")[0] for name in set(sys.modules) - before}}
known = {{name.partition(".")[0] for name in before}} | sys.stdlib_module_names
known.add("__mp_main__")  # what multiprocessing calls the program
print(json.dumps([ms, sorted(new - known)]))
"""


@dataclasses.dataclass(frozen=True, eq=False, init=False)
class PluginCase(Case):
    """A plugin for :func:`check_plugin` and :func:`parametrize_with_checks`.

    It takes the arguments of :func:`check_plugin`.
    """

    plugin: Any
    tool: Callable[[], Any] | None
    build: Callable[[], Any]
    inputs: tuple[Any, ...]
    silent: bool
    imports: frozenset[str]

    def __init__(
        self,
        plugin: Any,
        *,
        tool: Callable[[], Any] | None = None,
        build: Callable[[], Any] | None = None,
        inputs: tuple[Any, ...] | None = None,
        silent: bool = True,
        imports: Collection[str] = (),
        name: str = "",
        skip: Mapping[str, str] | None = None,
    ) -> None:
        if inputs is None:
            inputs = (jnp.array([0.5, -1.0, 2.0]),)
        values: dict[str, Any] = {"plugin": plugin, "tool": tool, "build": build or Probe}
        values |= {"inputs": inputs, "silent": silent, "imports": frozenset(imports)}
        self._hold(name=name, skip=skip, **values)

    def source(self) -> Any:
        """Returns the plugin."""
        if not isinstance(self.plugin, str):
            return self.plugin
        module, _, attribute = self.plugin.partition(":")
        found = importlib.import_module(module)
        for part in filter(None, attribute.split(".")):
            found = getattr(found, part)
        return found

    def target(self) -> str:
        """Returns the module that its entry point imports; empty for an object."""
        if isinstance(self.plugin, str):
            return self.plugin.partition(":")[0]
        return self.plugin.__name__ if isinstance(self.plugin, types.ModuleType) else ""

    def title(self) -> str:
        """Returns the plugin's name."""
        if self.name or isinstance(self.plugin, str):
            return self.name or self.plugin
        return getattr(self.plugin, "__name__", None) or type(self.plugin).__name__

    def block(self) -> Any:
        """Opens a block in which the plugin works."""
        return moduli.using(self.source()) if self.tool is None else self.tool()

    def checks(self) -> list[Check]:
        """Returns the checks."""
        return list(CHECKS)


def check_plugin(
    plugin: Any,
    *,
    tool: Callable[[], Any] | None = None,
    build: Callable[[], Any] | None = None,
    inputs: tuple[Any, ...] | None = None,
    silent: bool = True,
    imports: Collection[str] = (),
    name: str = "",
    skip: Mapping[str, str] | None = None,
) -> None:
    """Checks that a plugin does what its hooks promise, and harms nobody.

    Its hooks are spelt and take their arguments right, and answer with what they may; it claims no
    name of another's; it works in every transform and in threads; programs are the same to the byte
    while it is only installed; what it does is compiled once; it leaves nothing behind in models,
    globals or on an exception; and it is quick to import.

    Args:
      plugin: the plugin: a module, an object, or what its entry point names, as a string.
      tool: opens the block in which it works, if that is more than ``moduli.using(plugin)``.
      build: makes the model it is tried on, from nothing; by default a small one.
      inputs: the inputs of that model.
      silent: whether programs are the same to the byte while it is installed and nobody asks it;
        False for a plugin that changes every model by being active.
      imports: packages that importing it may import besides moduli's own and JAX's.
      name: how reports call it.
      skip: checks that do not fit it, and why.

    Raises:
      AssertionError: names every check that fails, and what to do.

    Example:
      >>> import moduli as nnx
      >>> from moduli.testing import check_plugin
      >>> class Modes:
      ...     @nnx.hookimpl
      ...     def moduli_mode_attributes(self, mode):
      ...         return {"quantize_of_docs": mode == "eval"}
      >>> check_plugin(Modes())
    """
    options: dict[str, Any] = {"build": build, "inputs": inputs, "silent": silent}
    options |= {"imports": imports, "name": name, "skip": skip}
    run_checks(PluginCase(plugin, tool=tool, **options))


class Probe(Module):
    """A small model with what plugins look at: submodules, a list, kinds, a method, a write."""

    def __init__(self) -> None:
        self.blocks = [ProbeBlock(1.5), ProbeBlock(-0.5)]
        self.calls = BatchStat(jnp.zeros(()))

    def __call__(self, x: jax.Array) -> jax.Array:
        self.calls.value = self.calls.value + 1
        for block in self.blocks:
            x = block(x)
        return self.scaled(x)

    def scaled(self, x: jax.Array) -> jax.Array:
        """A method that is no call."""
        return x * 0.5


class ProbeBlock(Module):
    """A part of the probe."""

    def __init__(self, w: float) -> None:
        self.w = Param(jnp.array(w))

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(x * self.w.value)


def implements_hooks(case: PluginCase) -> None:
    """Every hook exists and is marked, takes arguments that it has, and is not deprecated."""
    with _installed(case) as (plugins, record):
        _assert_active(record)
        if not record.hooks:
            raise AssertionError(
                "it implements no hook; mark its functions with @moduli.hookimpl, and name the "
                "module with them as its entry point"
            )
        for found, _, what, warning in plugins.deprecated():
            if found is record:
                raise AssertionError(f"it implements what is deprecated, {what}: {warning}")


def answers_hooks(case: PluginCase) -> None:
    """What its hooks return is what they may return, at every place where they are called."""
    with _installed(case) as (plugins, record), _plugin_warnings():
        for mode in ("train", "eval"):
            _plugins.collect("moduli_mode_attributes", mode=mode)
        for name, result in _plugins.collect("moduli_variable_names"):
            for key, kind in result.items() if name == record.name else ():
                if not isinstance(kind, type) or not issubclass(kind, Variable):
                    raise AssertionError(
                        f"moduli_variable_names names {key!r} a {kind!r}, which is no subclass of "
                        "moduli.Variable"
                    )
        for group in contributed():
            group.values.keys()
        _assert_active(record)
        model = case.build()
        model.train()
        model.eval()
        _call(model, *case.inputs)
        if isinstance(model, Probe):
            model.calls.value = jnp.ones(())
            if plugins.implementations("moduli_sow"):
                model.sow(Intermediate, "h", jnp.ones(()))
            if plugins.implementations("moduli_perturb"):
                model.perturb("p", jnp.ones(()))
        _assert_active(record)


def claims_own_names(case: PluginCase) -> None:
    """It claims no name of moduli's own for a kind, a mode attribute, a format."""
    with _installed(case) as (_, record), _plugins.reporting_only():
        for group in contributed():
            for name in (*group.refused, *group.clashes):
                owners = (*group.refused.get(name, ()), *group.clashes.get(name, ()))
                if record in (*owners, group.owners[name]):
                    raise AssertionError(f"{group.problem(name)}; take a name of your own")


def runs_under_transforms(case: PluginCase) -> None:
    """It works while modules are called eagerly, under jit, grad, vmap, scan, remat and nested."""
    for name, run in _RUNS.items():
        with case.block(), _plugin_warnings():
            try:
                jax.block_until_ready(jax.tree.leaves(run(case.build(), *case.inputs)))
            except Exception as error:
                error.add_note(f"raised while a model ran under {name}, with the plugin at work")
                raise


def is_silent(case: PluginCase) -> None:
    """While it is installed and nobody asks it, programs are the same to the byte."""
    if not case.silent:
        raise unittest.SkipTest("it changes every model by being active")
    with _without(case):
        before = _programs(case)
    with _installed(case) as (_, record):
        after = _programs(case)
        _assert_active(record)
    for name, program in before.items():
        if program != after[name]:
            raise AssertionError(
                f"programs differ under {name} while the plugin is installed and nobody asks it: "
                "it should do nothing unless a recording of its own runs (`recording.owner is "
                "self`), or be turned on with moduli.using; a plugin that changes every model on "
                f"purpose has silent=False. With it:\n{after[name]}\nwithout it:\n{program}"
            )


def compiles_once(case: PluginCase) -> None:
    """What it does is compiled once, however often it is turned on and off."""
    traces: list[int] = []

    @moduli.jit
    def run(model: Any, inputs: Any) -> Any:
        traces.append(1)
        return _call(model, *inputs)

    model = case.build()
    run(model, case.inputs)
    with case.block():
        run(model, case.inputs)
    count = len(traces)
    for _ in range(2):
        with case.block():
            run(model, case.inputs)
        run(model, case.inputs)
    if len(traces) > count:
        raise AssertionError(
            "each use compiles again: programs are kept for each plugin object. Make the object "
            "once, at the top of the module, and hand what belongs to one use to a recording"
        )


def keeps_models(case: PluginCase) -> None:
    """A model that ran with it has the structure and the kinds of one that ran without it."""
    model = case.build()
    other = clone(model)
    _call(other, *case.inputs)
    with case.block():
        _call(model, *case.inputs)
        moduli.jit(_call)(clone(model), *case.inputs)
    if graphdef(model) is not graphdef(other):
        raise AssertionError(
            "a model that ran with it is another than one that ran without it; hand values out by "
            f"a recording:\n{graphdef(model)!r}\n{graphdef(other)!r}"
        )
    if case.silent and case.tool is None:
        assert_equal_graphs(model, other, rtol=1e-5)


def ends_with_its_block(case: PluginCase) -> None:
    """After its block, and after an exception in it, the plugins are those from before."""
    before = _plugins.active()
    with case.block():
        pass
    with contextlib.suppress(_Stop), case.block():
        raise _Stop
    if _plugins.active() is not before:
        raise AssertionError(
            "it stays on after its block, or after an exception in it; turn it on with "
            "`with moduli.using(...)`"
        )


def leaves_nothing(case: PluginCase) -> None:
    """No traced value outlives a transform, and no global or attribute of it grows at each use."""
    source, model = case.source(), case.build()

    def run() -> None:
        with case.block():
            moduli.grad(lambda m, *x: _loss(m, *x))(model, *case.inputs)
            moduli.jit(lambda m, *x: _call(m, *x))(model, *case.inputs)  # traced each time

    if isinstance(source, types.ModuleType):
        owners = [source]
    else:
        owners = [source, *modules_of([source if isinstance(source, type) else type(source)])]
    assert_leaves_nothing(run, owners, "the plugin")


def runs_in_threads(case: PluginCase) -> None:
    """In several threads at once it gives what it gives alone, and is off where it is not on."""
    inputs = [
        jax.tree.map(lambda x, n=n: x * (1 + n) if _floating(x) else x, case.inputs)
        for n in range(_THREADS)
    ]
    models = [[case.build() for _ in range(4)] for _ in range(_THREADS)]

    def run(number: int, model: Any) -> Any:
        if number % 2:
            return _call(model, *inputs[number])
        with case.block():
            return _call(model, *inputs[number])

    expected = [run(n, case.build()) for n in range(_THREADS)]
    found: list[list[Any]] = [[] for _ in range(_THREADS)]
    in_threads(lambda n: found[n].extend(run(n, model) for model in models[n]), _THREADS)
    for number, outputs in enumerate(found):
        for out in outputs:
            for x, y in zip(jax.tree.leaves(out), jax.tree.leaves(expected[number]), strict=True):
                if not bool(jnp.allclose(x, y, rtol=1e-5)):
                    raise AssertionError(
                        "in several threads it gives other outputs than alone; keep what belongs "
                        "to one use in a recording, or in a contextvars.ContextVar"
                    )


def imports_little(case: PluginCase) -> None:
    """Importing what its entry point names takes under 100 ms, and brings no other package."""
    target = case.target()
    if not target or "moduli" not in sys.modules:
        raise unittest.SkipTest("it is an object; give what its entry point names, as a string")
    environment = {**os.environ, "MODULI_PLUGINS": "none", "PYTHONPATH": os.pathsep.join(sys.path)}
    times = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", _IMPORT.format(target=target)],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        if done.returncode:
            raise AssertionError(f"`import {target}` fails:\n{done.stderr.strip()}")
        *printed, facts = done.stdout.splitlines()
        ms, new = json.loads(facts)
        if printed or done.stderr.strip():
            text = (done.stderr.strip().splitlines() or printed)[-1]
            raise AssertionError(
                f"`import {target}` writes {text!r}, in every program that makes a module; let the "
                "hooks speak, or `logging`"
            )
        heavy = [name for name in new if name not in {*case.imports, target.partition(".")[0]}]
        if heavy:
            raise AssertionError(
                f"`import {target}` imports {', '.join(heavy)}, in every program that makes a "
                "module; import it in the hook that needs it, and keep the package's __init__ lazy "
                "(moduli.plugins.lazy_names)"
            )
        times.append(ms)
        if ms <= _MOST_MS:
            return
        if ms > 3 * _MOST_MS:  # no busy machine explains that
            break
    raise AssertionError(
        f"`import {target}` takes {min(times):.0f} ms, in every program that makes a module; it "
        f"should take less than {_MOST_MS} ms: import and compute what is heavy in the hooks"
    )


CHECKS = (
    *(implements_hooks, answers_hooks, claims_own_names, runs_under_transforms, is_silent),
    *(compiles_once, keeps_models, ends_with_its_block, leaves_nothing, runs_in_threads),
    imports_little,
)


class _Stop(Exception):
    pass


def _call(model: Any, *inputs: Any) -> Any:
    return model(*inputs)


def _loss(model: Any, *inputs: Any) -> Any:
    leaves = jax.tree.leaves(_call(model, *inputs))
    return sum((jnp.sum(x).astype(float) for x in leaves if _floating(x)), jnp.zeros(()))


def _floating(x: Any) -> bool:
    return jnp.issubdtype(jnp.asarray(x).dtype, jnp.floating)


def _scan(model: Any, *inputs: Any) -> Any:
    inputs = jax.tree.map(lambda x: jnp.stack([x, x]), inputs)
    carry = moduli.Carry
    run = moduli.scan(lambda m, x: (m, _call(m, *x)), in_axes=(carry, 0), out_axes=(carry, 0))
    return run(model, inputs)[1]


def _vmap(model: Any, *inputs: Any) -> Any:
    definition, values = split(model)
    stacked = merge(definition, jax.tree.map(lambda x: jnp.stack([x, x]), values))
    return moduli.vmap(_call)(stacked, *jax.tree.map(lambda x: jnp.stack([x, x]), inputs))


def _remat(model: Any, *inputs: Any) -> Any:
    return moduli.grad(lambda m, *x: moduli.remat(_loss)(m, *x))(model, *inputs)


_RUNS: dict[str, Callable[..., Any]] = {
    "no transform": _call,
    "jit": lambda model, *inputs: moduli.jit(_call)(model, *inputs),
    "grad": lambda model, *inputs: moduli.grad(_loss)(model, *inputs),
    "vmap": _vmap,
    "scan": _scan,
    "remat": _remat,
    "jit of grad": lambda model, *inputs: moduli.jit(moduli.grad(_loss))(model, *inputs),
    "jit of scan": lambda model, *inputs: moduli.jit(_scan)(model, *inputs),
}


@contextlib.contextmanager
def _installed(case: PluginCase) -> Iterator[tuple[Any, Any]]:
    """Puts the plugin beside the others, as its installation would."""
    record = _plugins.PluginRecord(case.title(), distribution="the plugin under test")
    with _plugins.reporting_only():
        plugin = _plugins.Plugin(case.source(), record)
    with _plugins.only([*_others(case), plugin]) as plugins:
        yield plugins, record


def _without(case: PluginCase) -> contextlib.AbstractContextManager[Any]:
    return _plugins.only(_others(case))


def _others(case: PluginCase) -> list[Any]:
    source = case.source()
    return [plugin for plugin in _plugins.discover().plugins if plugin.source is not source]


def _assert_active(record: Any) -> None:
    if record.state == "quarantined":
        raise AssertionError(f"it fails {record.cause}")


@contextlib.contextmanager
def _plugin_warnings() -> Iterator[None]:
    """Makes an error of a warning that a plugin was switched off."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        if issubclass(warning.category, _plugins.PluginWarning):
            raise AssertionError(str(warning.message))


def _programs(case: PluginCase) -> dict[str, str]:
    """Returns the jaxprs of a model's call, alone and under transforms."""
    model = case.build()
    definition, values = split(model)
    found = {}
    for name in ("no transform", "grad", "vmap", "scan"):

        def pure(values: Any, *inputs: Any, run: Any = _RUNS[name]) -> Any:
            model = merge(definition, values)
            return run(model, *inputs), state(model)

        found[name] = str(jax.make_jaxpr(pure)(values, *case.inputs))
    return found
