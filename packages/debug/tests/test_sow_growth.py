"""The warning about sown tuples that grow with every call."""

from __future__ import annotations

import warnings
from typing import Any

import jax.numpy as jnp
import pytest

import moduli as nnx
from moduli_debug.errors import SownGrowthWarning


class Model(nnx.Module):
    """Sows its input."""

    def __call__(self, x: Any) -> Any:
        self.sow(nnx.Intermediate, "seen", x)
        return x


def test_a_tuple_that_grows_is_reported_with_the_remedy_and_the_line() -> None:
    model = Model()
    for _ in range(31):
        model(1.0)
    with pytest.warns(
        SownGrowthWarning, match=r"`seen` of Model now holds 32 values.*capture"
    ) as w:
        model(1.0)
    assert w[0].filename == __file__  # where the model sows
    model(1.0)  # said once, and again when it has doubled
    for _ in range(30):
        model(1.0)
    with pytest.warns(SownGrowthWarning, match="64 values"):
        model(1.0)


def test_no_warning_for_what_is_captured_popped_or_reduced() -> None:
    model = Model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(40):
            nnx.capture(model, nnx.Intermediate)(step)
        for step in range(40):
            model(step)
            nnx.pop(model, nnx.Intermediate)

        def many(model: Model) -> None:
            for step in range(40):
                model(step)

        assert len(nnx.capture(many, nnx.Intermediate)(model)[1].seen.value) == 40
        for step in range(40):
            model.sow(nnx.Cache, "last", step, reduce_fn=lambda old, new: new, init_fn=lambda: 0)
    assert model.last.value == 39


def test_it_is_said_under_jit_too() -> None:
    model = Model()
    run = nnx.jit(lambda model, x: [model(x) for _ in range(32)][-1])
    with pytest.warns(SownGrowthWarning):
        run(model, jnp.ones(()))
