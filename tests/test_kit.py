"""Our own packages pass the kit that plugin authors get: layers, plugins, formats, bridges.

A small part runs each time; with EVERY_ROW=1 all rows of the table of layers, and all of the rest.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from layer_table import EVERY, TABLE, Row

import moduli as nnx
from moduli.testing import (
    BridgeCase,
    FormatCase,
    LayerCase,
    PluginCase,
    TransformCase,
    parametrize_with_checks,
)

SOME = "linear batch_norm-vector-features dropout-half stack".split()
LAYERS = [row for row in TABLE if EVERY or row.name in SOME]

X = jnp.array([0.5, -1.0, 2.0])


def layer_case(row: Row) -> LayerCase:
    return LayerCase(row.build, *row.arrays(), name=row.name)


def linear() -> nnx.Module:
    return nnx.Linear(3, 2, rngs=nnx.Rngs(0))


def chain() -> nnx.Module:
    rngs = nnx.Rngs(0)
    return nnx.Sequential(nnx.Linear(3, 4, rngs=rngs), nnx.relu, nnx.Linear(4, 2, rngs=rngs))


PLUGINS = [
    PluginCase("moduli_layers._plugin"),
    PluginCase("moduli_debug._plugin"),
    PluginCase("moduli_train._plugin"),
    PluginCase("moduli_interop._plugin"),
]
FORMATS = [FormatCase(name) for name in ("safetensors", *(["npz", "orbax"] if EVERY else []))]
TRANSFORMS = [
    TransformCase(nnx.jit, jax.jit, keeps_programs=True),
    TransformCase(nnx.grad, jax.grad),
    TransformCase(nnx.remat, jax.remat),
]


@parametrize_with_checks(
    [
        *map(layer_case, LAYERS),
        *PLUGINS,
        *FORMATS,
        BridgeCase("equinox", linear, X),
        *(TRANSFORMS if EVERY else TRANSFORMS[:1]),
    ]
)
def test_ours_pass_the_kit(case, check) -> None:
    check(case)


def _torch_call(model, x):
    import torch

    return model(torch.tensor(x.tolist()))


@parametrize_with_checks(
    [
        BridgeCase(
            "torch", chain, X[None], call=_torch_call, over=nnx.to_torch, back=nnx.from_torch
        ),
    ]
)
def test_the_bridge_to_torch_passes_the_kit(case, check) -> None:
    pytest.importorskip("torch")
    check(case)
