"""``flax.nnx.jit`` over modules."""

from __future__ import annotations

import functools

from flax import nnx

from benchmarks.peers import _nnx_models

forward = functools.partial(_nnx_models.forward, nnx)
train_step = functools.partial(_nnx_models.train_step, nnx)
