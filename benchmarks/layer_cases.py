"""One layer at a time, at realistic sizes: how each library builds and calls it.

moduli and flax.nnx have the same constructors, so one builder serves both; a function (pooling) is
called through a ``Sequential``. What flax has not, moduli alone is compared with the maths by hand
(``layer_maths``).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import layer_maths as maths
from benchmarks.layer_maths import ByHand


@dataclasses.dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
      needs: name of the layer, or function, in either library.
      build: makes it, from the library and its Rngs.
      inputs: shape of the inputs.
      by_hand: ``(values, x) -> (output, written values)``.
      call: how the layer is called.
      vocabulary: the inputs are integers below it; None for floats.
    """

    needs: str
    build: Callable[[Any, Any], Any]
    inputs: tuple[int, ...]
    by_hand: ByHand
    call: Callable[[Any, jax.Array], Any] = lambda layer, x: layer(x)
    vocabulary: int | None = None

    def data(self) -> jax.Array:
        """Makes the inputs."""
        rng = np.random.default_rng(0)
        if self.vocabulary is not None:
            return jnp.asarray(rng.integers(0, self.vocabulary, self.inputs), jnp.int32)
        return jnp.asarray(rng.normal(size=self.inputs), jnp.float32)


def _pooling(name: str, by_hand: ByHand, **options: Any) -> Case:
    """A function of a library, called as a layer."""

    def build(nnx: Any, rngs: Any) -> Any:
        return nnx.Sequential(functools.partial(getattr(nnx, name), **options))

    return Case(name, build, (16, 32, 32, 64), by_hand)


CASES: dict[str, Case] = {
    "Linear 512 to 512, 1024 rows": Case(
        "Linear", lambda nnx, r: nnx.Linear(512, 512, rngs=r), (1024, 512), maths.linear
    ),
    "LinearGeneral 256 to (8, 32), 8 x 512": Case(
        "LinearGeneral",
        lambda nnx, r: nnx.LinearGeneral(256, (8, 32), rngs=r),
        (8, 512, 256),
        maths.linear_general,
    ),
    "Einsum 256 to (8, 32), 8 x 512": Case(
        "Einsum",
        lambda nnx, r: nnx.Einsum("bti,hid->bthd", (8, 256, 32), (8, 32), rngs=r),
        (8, 512, 256),
        maths.einsum,
    ),
    "LoRALinear of rank 8, 512 to 512, 1024 rows": Case(
        "LoRALinear",
        lambda nnx, r: nnx.LoRALinear(512, 512, lora_rank=8, rngs=r),
        (1024, 512),
        maths.lora_linear,
    ),
    "PReLU, 16 x 512 x 256": Case("PReLU", lambda nnx, r: nnx.PReLU(), (16, 512, 256), maths.prelu),
    "Conv 3 x 3, 32 to 32, 16 x 32^2": Case(
        "Conv", lambda nnx, r: nnx.Conv(32, 32, (3, 3), rngs=r), (16, 32, 32, 32), maths.conv(1)
    ),
    "Conv 3 x 3, 4 groups": Case(
        "Conv",
        lambda nnx, r: nnx.Conv(32, 32, (3, 3), feature_group_count=4, rngs=r),
        (16, 32, 32, 32),
        maths.conv(4),
    ),
    "ConvTranspose 4 x 4, stride 2": Case(
        "ConvTranspose",
        lambda nnx, r: nnx.ConvTranspose(32, 16, (4, 4), (2, 2), rngs=r),
        (8, 16, 16, 32),
        maths.conv_transpose,
    ),
    "Embed 4096 x 256, 16 x 512": Case(
        "Embed",
        lambda nnx, r: nnx.Embed(4096, 256, rngs=r),
        (16, 512),
        maths.embed,
        vocabulary=4096,
    ),
    "BatchNorm, 32 x 32^2 x 32": Case(
        "BatchNorm", lambda nnx, r: nnx.BatchNorm(32, rngs=r), (32, 32, 32, 32), maths.batch_norm
    ),
    "LayerNorm, 16 x 512 x 256": Case(
        "LayerNorm", lambda nnx, r: nnx.LayerNorm(256, rngs=r), (16, 512, 256), maths.layer_norm
    ),
    "RMSNorm, 16 x 512 x 256": Case(
        "RMSNorm", lambda nnx, r: nnx.RMSNorm(256, rngs=r), (16, 512, 256), maths.rms_norm
    ),
    "GroupNorm of 8, 16 x 32^2 x 64": Case(
        "GroupNorm",
        lambda nnx, r: nnx.GroupNorm(64, num_groups=8, rngs=r),
        (16, 32, 32, 64),
        maths.group_norm,
    ),
    "InstanceNorm, 16 x 32^2 x 64": Case(
        "InstanceNorm",
        lambda nnx, r: nnx.InstanceNorm(64, rngs=r),
        (16, 32, 32, 64),
        maths.instance_norm,
    ),
    "SpectralNorm(Linear 512 to 512), 1024 rows": Case(
        "SpectralNorm",
        lambda nnx, r: nnx.SpectralNorm(nnx.Linear(512, 512, rngs=r), rngs=r),
        (1024, 512),
        maths.spectral_norm,
    ),
    "WeightNorm(Linear 512 to 512), 1024 rows": Case(
        "WeightNorm",
        lambda nnx, r: nnx.WeightNorm(nnx.Linear(512, 512, rngs=r), rngs=r),
        (1024, 512),
        maths.weight_norm,
    ),
    "MLP 256 to 1024 to 256, LayerNorm, 1024 rows": Case(
        "MLP",
        lambda nnx, r: nnx.MLP(256, 1024, 256, norm=nnx.LayerNorm, rngs=r),
        (1024, 256),
        maths.mlp,
    ),
    "avg_pool 2 x 2, 16 x 32^2 x 64": _pooling(
        "avg_pool", maths.avg_pool, window_shape=(2, 2), strides=(2, 2)
    ),
    "max_pool 3 x 3, stride 2": _pooling(
        "max_pool", maths.max_pool, window_shape=(3, 3), strides=(2, 2), padding="SAME"
    ),
    "min_pool 2 x 2": _pooling("min_pool", maths.min_pool, window_shape=(2, 2), strides=(2, 2)),
    "adaptive_avg_pool to 8^2": _pooling(
        "adaptive_avg_pool", maths.adaptive_pool(jnp.mean, 8), output_size=(8, 8)
    ),
    "adaptive_avg_pool to 7^2": _pooling(
        "adaptive_avg_pool", maths.adaptive_pool(jnp.mean, 7), output_size=(7, 7)
    ),
    "adaptive_max_pool to 8^2": _pooling(
        "adaptive_max_pool", maths.adaptive_pool(jnp.max, 8), output_size=(8, 8)
    ),
    "adaptive_min_pool to 1^2": _pooling(
        "adaptive_min_pool", maths.adaptive_pool(jnp.min, 1), output_size=(1, 1)
    ),
    "StochasticDepth, 16 x 512 x 256": Case(
        "StochasticDepth",
        lambda nnx, r: nnx.StochasticDepth(0.1, rngs=r),
        (16, 512, 256),
        maths.stochastic_depth,
    ),
    "Dropout, 16 x 512 x 256": Case(
        "Dropout", lambda nnx, r: nnx.Dropout(0.1, rngs=r), (16, 512, 256), maths.dropout
    ),
    "causal attention, 8 heads, 4 x 512 x 256": Case(
        "MultiHeadAttention",
        lambda nnx, r: nnx.MultiHeadAttention(8, 256, decode=False, rngs=r),
        (4, 512, 256),
        maths.attention,
        lambda layer, x: layer(x, is_causal=True),
    ),
    "the same with 2 heads of keys": Case(
        "MultiHeadAttention",
        lambda nnx, r: nnx.MultiHeadAttention(8, 256, num_kv_heads=2, decode=False, rngs=r),
        (4, 512, 256),
        maths.attention,
        lambda layer, x: layer(x, is_causal=True),
    ),
    "RNN(SimpleCell), 16 x 512 x 128": Case(
        "SimpleCell",
        lambda nnx, r: nnx.RNN(nnx.SimpleCell(128, 128, rngs=r)),
        (16, 512, 128),
        maths.simple,
    ),
    "RNN(LSTMCell), 16 x 512 x 128": Case(
        "LSTMCell",
        lambda nnx, r: nnx.RNN(nnx.LSTMCell(128, 128, rngs=r)),
        (16, 512, 128),
        maths.lstm_by_gates,
    ),
    "RNN(OptimizedLSTMCell), 16 x 512 x 128": Case(
        "OptimizedLSTMCell",
        lambda nnx, r: nnx.RNN(nnx.OptimizedLSTMCell(128, 128, rngs=r)),
        (16, 512, 128),
        maths.lstm,
    ),
    "RNN(GRUCell), 16 x 512 x 128": Case(
        "GRUCell", lambda nnx, r: nnx.RNN(nnx.GRUCell(128, 128, rngs=r)), (16, 512, 128), maths.gru
    ),
    "Bidirectional(RNN(GRUCell)), 8 x 512 x 64": Case(
        "Bidirectional",
        lambda nnx, r: nnx.Bidirectional(
            *(nnx.RNN(nnx.GRUCell(64, 64, rngs=r)) for _ in range(2)), rngs=r
        ),
        (8, 512, 64),
        maths.bidirectional,
    ),
}
"""Name in the report -> the layer."""
