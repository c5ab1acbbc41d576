"""Layers by way of ONNX: what jax2onnx makes of a model in evaluation computes the same.

It has a session of its own, ``nox -s onnx``: jax2onnx needs an older orbax than the tests.
"""

from __future__ import annotations

from typing import Any

import jax2onnx
import numpy as np
import onnxruntime
import pytest

import moduli as nnx

MODELS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda r: nnx.Linear(3, 4, rngs=r), (2, 3)),
    "mlp": (lambda r: nnx.MLP(3, (5, 6), 4, rngs=r), (2, 3)),
    "layer_norm": (lambda r: nnx.LayerNorm(4, rngs=r), (2, 4)),
    "batch_norm": (lambda r: nnx.BatchNorm(4, rngs=r), (2, 4)),
    "conv": (lambda r: nnx.Conv(2, 3, (3, 3), rngs=r), (1, 6, 6, 2)),
    "network": (
        lambda r: nnx.Sequential(nnx.Linear(3, 4, rngs=r), nnx.relu, nnx.Linear(4, 2, rngs=r)),
        (2, 3),
    ),
}


@pytest.mark.parametrize("build,shape", MODELS.values(), ids=MODELS)
def test_a_model_computes_the_same_in_onnx(build: Any, shape: Any, tmp_path: Any) -> None:
    model = build(nnx.Rngs(0))
    model.eval()
    made = jax2onnx.to_onnx(lambda x: model(x), [shape])
    session = onnxruntime.InferenceSession(made.SerializeToString())
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    (out,) = session.run(None, {session.get_inputs()[0].name: x})
    np.testing.assert_allclose(out, model(x), rtol=1e-4, atol=1e-5)
