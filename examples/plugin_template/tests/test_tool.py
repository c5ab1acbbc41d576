"""The tool: moduli's checks of plugins, and what it finds under jit and scan."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import moduli as nnx
from moduli.testing import Case, Check, PluginCase, parametrize_with_checks

from moduli_running_scale import running_scale_ranges
from moduli_running_scale._tool import RANGES


class Double(nnx.Module):
    def __call__(self, x: jax.Array) -> jax.Array:
        return 2 * x


def open_tool() -> Any:
    return running_scale_ranges(nnx.Dict())


@parametrize_with_checks([PluginCase(RANGES, tool=open_tool, name="ranges")])
def test_it_passes_the_checks(case: Case, check: Check) -> None:
    check(case)


def run(model: Any, xs: jax.Array) -> jax.Array:
    def step(model: Any, x: jax.Array) -> jax.Array:
        return model["double"](x)

    return nnx.scan(step, in_axes=(None, 0), out_axes=0)(model, xs)


def test_the_ranges_are_those_of_all_steps() -> None:
    model, xs = nnx.Dict(double=Double()), jnp.array([1.0, -2.0, 0.5])
    for function in (run, nnx.jit(run), nnx.jit(run)):
        with running_scale_ranges(model) as ranges:
            function(model, xs)
        assert ranges == {"double": (-4.0, 2.0)}


def test_two_uses_know_nothing_of_each_other() -> None:
    model = nnx.Dict(double=Double())
    with running_scale_ranges(model) as outer:
        model["double"](jnp.array([1.0]))
        with running_scale_ranges(model) as inner:
            model["double"](jnp.array([5.0]))
    model["double"](jnp.array([100.0]))
    assert inner == {"double": (10.0, 10.0)}
    assert outer == {"double": (2.0, 10.0)}
