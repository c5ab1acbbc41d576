"""The kit for bridges: layers go to another framework and come back as they were."""

from __future__ import annotations

import dataclasses
import importlib
import unittest
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import numpy as np

import moduli
from moduli import _plugins
from moduli._base.hook_markers import hookimpl
from moduli._graph.split import clone, state
from moduli._graph.walk import iter_graph
from moduli._module.containers import List
from moduli._module.module import Module
from moduli._variable.box import Variable
from moduli.testing._compare import assert_equal_states, assert_unchanged
from moduli.testing._kit import Case, Check, run_checks

__all__ = ["BridgeCase", "check_bridge"]


@dataclasses.dataclass(frozen=True, eq=False, init=False)
class BridgeCase(Case):
    """A bridge for :func:`check_bridge` and :func:`parametrize_with_checks`.

    It takes the arguments of :func:`check_bridge`.
    """

    bridge: Any
    build: Any
    inputs: tuple[Any, ...]
    call: Callable[..., Any] | None
    over: Callable[[Any], Any] | None
    back: Callable[[Any], Any] | None
    rtol: float
    atol: float

    def __init__(
        self,
        bridge: Any,
        build: Any,
        *inputs: Any,
        call: Callable[..., Any] | None = None,
        over: Callable[[Any], Any] | None = None,
        back: Callable[[Any], Any] | None = None,
        rtol: float = 1e-4,
        atol: float = 1e-5,
        name: str = "",
        skip: Mapping[str, str] | None = None,
    ) -> None:
        values = {"bridge": bridge, "build": build, "inputs": inputs, "call": call}
        values |= {"over": over, "back": back, "rtol": rtol, "atol": atol}
        self._hold(name=name, skip=skip, **values)

    def make(self) -> Any:
        """Returns a new model of ours."""
        return clone(self.build) if isinstance(self.build, Module) else self.build()

    def framework(self) -> str:
        """Returns the framework's name."""
        return self.bridge if isinstance(self.bridge, str) else self.bridge.framework

    def block(self) -> AbstractContextManager[Any]:
        """Opens a block in which the bridge is known."""
        installed = isinstance(self.bridge, str)
        return nullcontext() if installed else moduli.using(_Plugin(self.bridge))

    def to_theirs(self, model: Any) -> Any:
        """Converts a model of ours."""
        with self.block():
            if self.over is not None:
                return self.over(model)
            return moduli.bridge.to_framework(self.framework(), model)

    def to_ours(self, model: Any) -> Any:
        """Converts a model of theirs."""
        with self.block():
            if self.back is not None:
                return self.back(model)
            return moduli.bridge.from_framework(self.framework(), model)

    def title(self) -> str:
        """Returns the framework's name, or the given one."""
        return self.name or self.framework()

    def checks(self) -> list[Check]:
        """Returns the checks."""
        return list(CHECKS)


def check_bridge(
    bridge: Any,
    build: Any,
    *inputs: Any,
    call: Callable[..., Any] | None = None,
    over: Callable[[Any], Any] | None = None,
    back: Callable[[Any], Any] | None = None,
    rtol: float = 1e-4,
    atol: float = 1e-5,
    name: str = "",
    skip: Mapping[str, str] | None = None,
) -> None:
    """Checks a bridge on a model: it goes over and comes back as it was, and computes the same.

    Args:
      bridge: the ``moduli.bridge.Bridge``, or the name of a framework.
      build: makes a model of ours from nothing; or a model, which is copied.
      *inputs: the inputs of a call.
      call: calls a model of the other framework: ``call(theirs, *inputs)``; by default itself.
      over: converts a model of ours, by default ``moduli.bridge.to_framework``.
      back: converts a model of theirs, by default ``moduli.bridge.from_framework``.
      rtol: relative tolerance of outputs.
      atol: absolute tolerance.
      name: how reports call it.
      skip: checks that do not fit it, and why.

    Raises:
      AssertionError: names every check that fails, and what to do.

    Example:
      >>> import dataclasses, jax.numpy as jnp, moduli as nnx
      >>> from moduli.testing import check_bridge
      >>> @dataclasses.dataclass
      ... class Scale:  # the other framework's
      ...     factor: float
      ...     def __call__(self, x):
      ...         return self.factor * x
      >>> class Scaled(nnx.Module):
      ...     def __init__(self, factor):
      ...         self.factor = nnx.Param(factor)
      ...     def __call__(self, x):
      ...         return self.factor.value * x
      >>> rule = nnx.bridge.LayerRule(
      ...     Scaled, Scale,
      ...     lambda theirs, convert: Scaled(theirs.factor),
      ...     lambda ours, convert: Scale(ours.factor.value),
      ... )
      >>> bridge = nnx.bridge.Bridge("scales_of_docs", "dataclasses", "scales", lambda: [rule])
      >>> check_bridge(bridge, lambda: Scaled(2.0), jnp.ones(3))
    """
    options: dict[str, Any] = {"rtol": rtol, "atol": atol, "name": name, "skip": skip}
    options |= {"over": over, "back": back}
    run_checks(BridgeCase(bridge, build, *inputs, call=call, **options))


class _Plugin:
    def __init__(self, bridge: Any) -> None:
        self.bridge = bridge

    @hookimpl
    def moduli_bridges(self) -> list[Any]:
        """Returns the bridge under test."""
        return [self.bridge]


class Stranger(Module):
    """A class that no bridge knows."""


def declares_rules(case: BridgeCase) -> None:
    """It names its framework and package; its rules are of classes, and go some way."""
    if isinstance(case.bridge, str):
        found = _plugins.contributions("bridge", "moduli_bridges", _by_identity).values.values()
        bridges = [bridge for bridge in found if bridge.framework == case.bridge]
    else:
        bridges = [case.bridge]
    for bridge in bridges:
        for attribute in ("framework", "package", "install"):
            value = getattr(bridge, attribute)
            if not isinstance(value, str) or not value:
                raise AssertionError(f"its {attribute} is {value!r}; write a name")
        try:
            importlib.import_module(bridge.package)
        except ImportError as error:
            raise AssertionError(f"its package cannot be imported: {error}") from error
        for rule in bridge.rules():
            if not isinstance(rule.ours, type) or not isinstance(rule.theirs, type):
                raise AssertionError(f"its rule for {rule.ours!r}, {rule.theirs!r} needs classes")
            if rule.from_theirs is None and rule.to_theirs is None:
                raise AssertionError(f"its rule for {rule.ours.__name__} goes neither way")


def goes_and_comes_back(case: BridgeCase) -> None:
    """A model that went over and came back has the Variables of the one before."""
    model = case.make()
    back = case.to_ours(case.to_theirs(model))
    kinds = [
        {path: type(x).__name__ for path, x in iter_graph(m) if isinstance(x, Variable)}
        for m in (back, model)
    ]
    if kinds[0] != kinds[1]:
        raise AssertionError(f"the Variables of a model that comes back are other ones: {kinds}")
    assert_equal_states(state(back), state(model), rtol=case.rtol, atol=case.atol)


def computes_the_same(case: BridgeCase) -> None:
    """Both models give the same outputs, and so does the one that came back."""
    if not case.inputs:
        raise unittest.SkipTest("the case has no inputs")
    model = case.make()
    theirs = case.to_theirs(model)
    out = case.call(theirs, *case.inputs) if case.call else theirs(*case.inputs)
    expected = case.make()(*case.inputs)
    _assert_close(out, expected, "of their model and of ours", case)
    _assert_close(case.to_ours(theirs)(*case.inputs), expected, "of the model that came back", case)


def leaves_the_model(case: BridgeCase) -> None:
    """Converting changes nothing in the model, and what comes back shares no Variable with it."""
    model = case.make()
    with assert_unchanged(model):
        back = case.to_ours(case.to_theirs(model))
    mine = {id(x) for _, x in iter_graph(model) if isinstance(x, Variable)}
    if any(id(x) in mine for _, x in iter_graph(back)):
        raise AssertionError("the model that comes back shares a Variable with the one that went")


def keeps_shared_layers(case: BridgeCase) -> None:
    """A layer in two places is converted once, and stands in two places."""
    layer = case.make()
    theirs = case.to_theirs(List([layer, layer]))
    if theirs[0] is not theirs[1]:
        raise AssertionError("a layer in two places becomes two; convert parts with `conversion`")
    back = case.to_ours(theirs)
    if back[0] is not back[1]:
        raise AssertionError("of their layer in two places two of ours are made")


def names_what_it_does_not_know(case: BridgeCase) -> None:
    """A part without a rule is a BridgeError that says where it stands."""
    for convert, model in (
        (case.to_theirs, List([case.make(), Stranger()])),
        (case.to_ours, [object()]),
    ):
        try:
            convert(model)
        except moduli.BridgeError as error:
            if str(len(model) - 1) not in str(error):
                raise AssertionError(
                    f"the error does not say where the part stands: {error}"
                ) from error
        else:
            raise AssertionError("a class without a rule is converted all the same")


CHECKS = (
    *(declares_rules, goes_and_comes_back, computes_the_same, leaves_the_model),
    *(keeps_shared_layers, names_what_it_does_not_know),
)


def _by_identity(bridges: Any) -> dict[str, Any]:
    return {str(id(bridge)): bridge for bridge in bridges}


def _assert_close(out: Any, expected: Any, what: str, case: BridgeCase) -> None:
    for x, y in zip(jax.tree.leaves(out), jax.tree.leaves(expected), strict=True):
        x = x.detach() if hasattr(x, "detach") else x  # torch
        np.testing.assert_allclose(
            np.asarray(x),
            np.asarray(y),
            rtol=case.rtol,
            atol=case.atol,
            err_msg=f"the outputs {what} differ",
        )
