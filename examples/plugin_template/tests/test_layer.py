"""The layer: moduli's checks of layers, and what it computes."""

from __future__ import annotations

import jax.numpy as jnp
import moduli as nnx
import numpy as np
from moduli.testing import Case, Check, LayerCase, assert_unchanged, parametrize_with_checks

from moduli_running_scale import RunningScale, _plugin


@parametrize_with_checks([LayerCase(RunningScale, jnp.array([2.0, -4.0]))])
def test_it_passes_the_checks(case: Case, check: Check) -> None:
    check(case)


def test_it_scales_by_the_largest_value_seen() -> None:
    layer, random = RunningScale(), np.random.default_rng(0)
    largest = np.float32(0)
    for _ in range(3):
        batch = random.normal(size=5).astype(np.float32)
        largest = max(largest, np.abs(batch).max())
        found = layer(jnp.asarray(batch))
        np.testing.assert_allclose(found, batch / largest, rtol=1e-6)


def test_evaluation_keeps_the_largest_value() -> None:
    layer = RunningScale()
    nnx.jit(layer)(jnp.array([3.0]))
    with nnx.using(_plugin):
        layer.eval()
    with assert_unchanged(layer):
        assert float(layer(jnp.array([6.0]))[0]) == 2.0
    with nnx.using(_plugin):
        layer.train()
    layer(jnp.array([6.0]))
    assert float(layer.max.value) == 6.0
