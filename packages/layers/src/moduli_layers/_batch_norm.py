"""Batch normalisation, with running statistics for evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike

import moduli
from moduli.errors import ShapeError, StructureError
from moduli_layers import initializers
from moduli_layers._arguments import checked
from moduli_layers._checks import check_features, resolve_mode, shape_text
from moduli_layers._dtypes import PromoteDtype, promote_dtype, promote_for
from moduli_layers._initial_values import fill
from moduli_layers._norm import NO_METADATA, Norm
from moduli_layers._statistics import Moments, at_least_float32, moments, normalize
from moduli_layers._traced_once import traced_once
from moduli_layers.counterparts import Counterpart, Setting, Tensor, TensorNames

__all__ = ["BatchNorm"]


@traced_once(static_argnames=("momentum",))
def _moved(old: jax.Array, new: jax.Array, *, momentum: float) -> jax.Array:
    """A running statistic after one more batch; no gradient flows through it."""
    return momentum * old + (1 - momentum) * lax.stop_gradient(new).astype(old.dtype)


def _kept(theirs: float | None) -> float:
    """Our momentum for PyTorch's."""
    if theirs is None:
        raise StructureError(
            "torch's momentum=None averages all batches alike, which BatchNorm does not; give "
            "torch's layer a momentum"
        )
    return 1 - theirs


_COUNTERPART = Counterpart(
    "torch.nn.BatchNorm{rank}d",
    {
        "weight": Tensor("scale"),
        "bias": Tensor("bias"),
        "running_mean": Tensor("mean"),
        "running_var": Tensor("var"),
    },
    {
        "num_features": "num_features",
        "eps": "epsilon",
        "momentum": Setting("momentum", lambda ours: 1 - ours, _kept),
        "affine": "use_scale",
    },
    feature_axis=1,
)


class BatchNorm(Norm):
    """Normalises each feature over the batch, and keeps running statistics for evaluation.

    In training, with the mean ``m`` and the biased variance ``v`` of each feature over all other
    axes, ``y = (x - m) / sqrt(v + epsilon) * scale + bias``, and each running statistic ``r``
    becomes ``momentum * r + (1 - momentum) * s`` with the batch's statistic ``s``. In evaluation
    the running statistics take the place of ``m`` and ``v``. ``model.train()`` and
    ``model.eval()`` switch between the two by setting ``use_running_average``.

    Statistics are computed and kept in float32 (or wider), whatever the inputs' dtype. No
    gradient flows through the running statistics.

    PyTorch's layer gives the same outputs with ``momentum`` one minus ours. It normalises by the
    biased variance too, but keeps the unbiased one (``n / (n - 1)`` times as large for ``n``
    entries of a feature), so that running variances which both have trained differ a little.

    Attributes:
      scale: Param of shape (num_features,), or None if ``use_scale`` is False.
      bias: Param of shape (num_features,), or None if ``use_bias`` is False.
      mean: BatchStat of shape (num_features,), zeros at first.
      var: BatchStat of shape (num_features,), ones at first.

    Args:
      num_features: size of the inputs on ``axis``.
      use_running_average: True evaluates, False trains, None asks each call to say.
      axis: the axis of the features.
      momentum: how much of the old running statistics an update keeps. (PyTorch's momentum is
        one minus this.)
      epsilon: added to the variance, so that a constant feature does not divide by zero.
      dtype: dtype of the result; None takes the one to which inputs, statistics and parameters
        promote.
      param_dtype: dtype in which scale and bias are stored.
      use_bias: whether to add a bias.
      use_scale: whether to multiply by a scale.
      bias_init: initializer of the bias; default: zeros.
      scale_init: initializer of the scale; default: ones.
      axis_name: name of a mapped axis (of :func:`jax.vmap`, ``shard_map``) over which the
        statistics are combined too.
      axis_index_groups: groups of indices of that axis that are combined with each other only,
        see :func:`jax.lax.psum`.
      use_fast_variance: compute the variance as ``mean(x²) - mean(x)²``, in one pass over the
        data; False takes a second pass, which is exact for data far from zero.
      promote_dtype: function that casts ``(inputs, mean, var, scale, bias)`` to ``dtype``.
      rngs: where the parameters' keys come from (stream ``params``: the scale's, then the
        bias's).
      bias_metadata: metadata of the bias's Param.
      scale_metadata: metadata of the scale's Param.

    Raises:
      ArgumentError: ``num_features`` is below 1.
      RngError: ``rngs`` is not a :class:`moduli.Rngs`.

    Example:
      >>> import jax.numpy as jnp, moduli
      >>> from moduli_layers import BatchNorm
      >>> layer = BatchNorm(2, momentum=0.9, rngs=moduli.Rngs(0))
      >>> x = jnp.array([[0.0, 10.0], [2.0, 30.0]])
      >>> print(layer(x).round(3))
      [[-1. -1.]
       [ 1.  1.]]
      >>> print(layer.mean.value)
      [0.1 2. ]

    Reference:
      Ioffe and Szegedy, Batch Normalization, 2015, https://arxiv.org/abs/1502.03167
    """

    __module__ = "moduli_layers"

    torch_names: ClassVar[tuple[TensorNames, ...]] = (
        TensorNames(_COUNTERPART.tensors, ignored=("num_batches_tracked",)),
    )

    @checked
    def __init__(
        self,
        num_features: int,
        *,
        use_running_average: bool | None = False,
        axis: int = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-5,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: initializers.Initializer = initializers.zeros,
        scale_init: initializers.Initializer = initializers.ones,
        axis_name: str | None = None,
        axis_index_groups: Sequence[Sequence[int]] | None = None,
        use_fast_variance: bool = True,
        promote_dtype: PromoteDtype = promote_dtype,
        rngs: moduli.Rngs,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
        scale_metadata: Mapping[str, Any] = NO_METADATA,
    ) -> None:
        self._build(
            num_features,
            epsilon=epsilon,
            dtype=dtype,
            param_dtype=param_dtype,
            use_scale=use_scale,
            use_bias=use_bias,
            scale_init=scale_init,
            bias_init=bias_init,
            axis_name=axis_name,
            axis_index_groups=axis_index_groups,
            use_fast_variance=use_fast_variance,
            promote_dtype=promote_dtype,
            rngs=rngs,
            scale_metadata=scale_metadata,
            bias_metadata=bias_metadata,
        )
        shape = (num_features,)
        self.mean = moduli.BatchStat(fill(initializers.zeros, None, shape, jnp.float32))
        self.var = moduli.BatchStat(fill(initializers.ones, None, shape, jnp.float32))
        self.use_running_average = use_running_average
        self.axis = axis
        self.momentum = momentum

    @property
    def torch_counterpart(self) -> Counterpart | None:
        """PyTorch's layer that computes the same.

        It has none with only one of scale and bias, and for features that are not on the last axis.
        """
        return _COUNTERPART if self.use_scale == self.use_bias and self.axis == -1 else None

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Sets the mode, for :func:`moduli.view`.

        Args:
          use_running_average: whether to normalize with the stored statistics; None leaves it.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average

    def __call__(
        self,
        x: ArrayLike,
        use_running_average: bool | None = None,
        *,
        mask: ArrayLike | None = None,
    ) -> jax.Array:
        """Normalises the inputs; in training, updates the running statistics.

        Args:
          x: array with ``num_features`` entries on ``axis``.
          use_running_average: overrides the layer's attribute for this call.
          mask: boolean array that broadcasts to ``x``; entries where it is False do not count
            in the batch's statistics. If none counts, the running statistics stay as they are.

        Returns:
          Array of the shape of ``x``.

        Raises:
          ShapeError: ``x`` does not have ``num_features`` entries on ``axis``, the mask does not
            broadcast to ``x``, or there is nothing to compute statistics from.
          ArgumentError: neither the call nor the layer says whether to train or to evaluate.
          DtypeError: the mask is not boolean, or inputs and parameters have no common dtype.
        """
        evaluate = resolve_mode(self, "use_running_average", use_running_average)
        check_features(self, x, self.axis, self.num_features, "num_features")
        mean, var = self.mean[...], self.var[...]
        scale = None if self.scale is None else self.scale[...]
        bias = None if self.bias is None else self.bias[...]
        inputs, _, _, scale, bias = promote_for(self, (x, mean, var, scale, bias))
        wide = at_least_float32(inputs)
        axis = self.axis % inputs.ndim
        if not evaluate:
            batch = self._batch_statistics(wide, axis, mask)
            self._update(mean, var, batch)
            mean, var = batch.mean, batch.var
        y = normalize(
            wide,
            mean,
            var,
            scale,
            bias,
            stats_axes=(axis,),
            feature_axes=(axis,),
            epsilon=self.epsilon,
        )
        return y.astype(inputs.dtype)

    def _batch_statistics(self, x: jax.Array, axis: int, mask: ArrayLike | None) -> Moments:
        """Returns the batch's statistics."""
        axes = tuple(i for i in range(x.ndim) if i != axis)
        if math.prod(x.shape[i] for i in axes) == 0:
            raise ShapeError(
                f"{type(self).__name__}(num_features={self.num_features}) expects at least one "
                f"entry for each feature to compute its statistics from, got shape "
                f"{shape_text(x)}; skip the empty batch, or write use_running_average=True"
            )
        return moments(
            x,
            self._mask(mask, x),
            axes=axes,
            fast=self.use_fast_variance,
            axis_name=self.axis_name,
            axis_index_groups=self.axis_index_groups,
        )

    def _update(self, mean: jax.Array, var: jax.Array, batch: Moments) -> None:
        """Moves the running statistics towards the batch's."""
        for variable, old, new in ((self.mean, mean, batch.mean), (self.var, var, batch.var)):
            moved = _moved(old, new, momentum=self.momentum)
            if batch.counted is not None:
                moved = jnp.where(batch.counted > 0, moved, old)
            variable.value = moved
