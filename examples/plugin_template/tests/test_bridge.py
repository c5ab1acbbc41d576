"""The bridge: moduli's checks of bridges, and a layer as users convert it."""

from __future__ import annotations

import jax.numpy as jnp
import moduli as nnx
from moduli.testing import BridgeCase, Case, Check, parametrize_with_checks
from moduli_interop.bridge import from_framework, to_framework

from moduli_running_scale import RunningScaleScale, _plugin
from moduli_running_scale._bridge import BRIDGE, NumpyScale


def build() -> RunningScaleScale:
    return RunningScaleScale(jnp.array([2.0, 3.0]))


@parametrize_with_checks([BridgeCase(BRIDGE, build, jnp.array([1.0, -1.0]))])
def test_it_passes_the_checks(case: Case, check: Check) -> None:
    check(case)


def test_lists_of_layers_go_over_and_back() -> None:
    with nnx.using(_plugin):
        theirs = to_framework("running_scale", nnx.List([build(), build()]))
        ours = from_framework("running_scale", theirs)
    assert [type(layer) for layer in theirs] == [NumpyScale, NumpyScale]
    assert theirs[1](1.0).tolist() == ours[1](jnp.array(1.0)).tolist() == [2.0, 3.0]
