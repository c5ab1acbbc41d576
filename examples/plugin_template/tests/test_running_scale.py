"""The plugin as its users meet it: installed, through ``moduli``."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from moduli_running_scale import RunningMax

import moduli as nnx
from moduli.testing import assert_equal_graphs, assert_unchanged


def test_the_names_are_under_moduli():
    assert {"RunningScale", "output_ranges"} <= set(dir(nnx))
    assert nnx.variable_type_from_name("running_maxima") is RunningMax


def test_it_scales_by_the_largest_value_seen():
    layer, random = nnx.RunningScale(), np.random.default_rng(0)
    batches = [random.normal(size=5).astype(np.float32) for _ in range(3)]
    largest = 0.0
    for batch in batches:
        largest = max(largest, np.abs(batch).max())
        np.testing.assert_allclose(layer(jnp.asarray(batch)), batch / largest, rtol=1e-6)


def test_eval_keeps_the_maximum_and_jit_updates_it():
    layer = nnx.RunningScale()
    nnx.jit(layer)(jnp.array([3.0]))
    layer.eval()
    with assert_unchanged(layer):
        assert float(layer(jnp.array([6.0]))[0]) == 2.0
    layer.train()
    layer(jnp.array([6.0]))
    assert float(layer.max) == 6.0


def test_the_ranges_are_those_of_the_outputs_and_nothing_is_left_behind():
    layer = nnx.RunningScale()
    twin = nnx.clone(layer)
    with nnx.output_ranges() as ranges:
        layer(jnp.array([1.0, -2.0]))
        nnx.jit(layer)(jnp.array([9.0]))  # compiled: not seen
    assert ranges == {"RunningScale": (-1.0, 0.5)}
    layer(jnp.array([100.0]))
    assert ranges == {"RunningScale": (-1.0, 0.5)}
    layer.max.value = twin.max.value
    assert_equal_graphs(layer, twin)
