"""The transform: moduli's checks of transforms, and its linear map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import moduli as nnx
from moduli.testing import Case, Check, TransformCase, parametrize_with_checks

from moduli_running_scale import running_scale_linearize


def result(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: running_scale_linearize(f, *args)[0]


@parametrize_with_checks([TransformCase(result)])
def test_it_passes_the_checks(case: Case, check: Check) -> None:
    check(case)


def sine(model: Any, x: jax.Array) -> jax.Array:
    return jnp.sin(model.w.value * x)


def test_the_linear_map_is_the_derivative() -> None:
    model, x = nnx.Dict(w=nnx.Param(jnp.array(2.0))), jnp.array(0.5)
    y, linear = running_scale_linearize(sine, model, x)
    pure, expected = jax.linearize(lambda w, x: jnp.sin(w * x), jnp.array(2.0), x)
    assert jnp.allclose(y, pure)
    assert jnp.allclose(linear(None, jnp.array(1.0)), expected(0.0, 1.0))
    towards_w = linear(nnx.State({"w": jnp.array(1.0)}), jnp.array(0.0))
    assert jnp.allclose(towards_w, expected(1.0, 0.0))
