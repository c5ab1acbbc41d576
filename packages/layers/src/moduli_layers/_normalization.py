"""Layers that normalise their inputs."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike

import moduli
from moduli.errors import ShapeError
from moduli_layers import initializers
from moduli_layers._checks import (
    check_features,
    check_positive,
    check_rngs,
    resolve_mode,
    shape_text,
)
from moduli_layers._dtypes import PromoteDtype, promote_dtype, promote_for
from moduli_layers._remembered import fill, remembered, square
from moduli_layers.errors import DtypeError

__all__ = ["BatchNorm"]

_NO_METADATA: Mapping[str, Any] = MappingProxyType({})


@functools.partial(remembered, static_argnames=("axis", "epsilon"))
def _normalize(
    inputs: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    *,
    axis: int,
    epsilon: float,
) -> jax.Array:
    """Shifts and scales each feature, with statistics and parameters of shape (num_features,)."""

    def over_features(values: jax.Array) -> jax.Array:
        shape = [1] * inputs.ndim
        shape[axis] = inputs.shape[axis]
        return values.astype(inputs.dtype).reshape(shape)

    factor = lax.rsqrt(over_features(var) + epsilon)
    if scale is not None:
        factor = factor * over_features(scale)
    y = (inputs - over_features(mean)) * factor
    return y if bias is None else y + over_features(bias)


@functools.partial(remembered, static_argnames=("momentum",))
def _moved(old: jax.Array, new: jax.Array, *, momentum: float) -> jax.Array:
    """A running statistic after one more batch; no gradient flows through it."""
    return momentum * old + (1 - momentum) * lax.stop_gradient(new).astype(old.dtype)


class BatchNorm(moduli.Module):
    """Normalises each feature over the batch, and keeps running statistics for evaluation.

    In training, with the mean ``m`` and the biased variance ``v`` of each feature over all other
    axes, ``y = (x - m) / sqrt(v + epsilon) * scale + bias``, and each running statistic ``r``
    becomes ``momentum * r + (1 - momentum) * s`` with the batch's statistic ``s``. In evaluation
    the running statistics take the place of ``m`` and ``v``. ``model.train()`` and
    ``model.eval()`` switch between the two by setting ``use_running_average``.

    Statistics are computed and kept in float32 (or wider), whatever the inputs' dtype. No
    gradient flows through the running statistics.

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
      bias_init: initializer of the bias; zeros unless told otherwise.
      scale_init: initializer of the scale; ones unless told otherwise.
      axis_name: name of a mapped axis (of :func:`jax.vmap`, ``shard_map``) over which the
        statistics are combined too.
      axis_index_groups: groups of indices of that axis that are combined with each other only,
        see :func:`jax.lax.psum`.
      use_fast_variance: compute the variance as ``mean(x²) - mean(x)²``, in one pass over the
        data; False takes a second pass, which is exact for data far from zero.
      promote_dtype: what brings ``(inputs, mean, var, scale, bias)`` to ``dtype``.
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
      >>> layer(x).round(3)
      Array([[-1., -1.],
             [ 1.,  1.]], dtype=float32)
      >>> layer.mean.value
      Array([0.1, 2. ], dtype=float32)

    Reference:
      Ioffe and Szegedy, Batch Normalization, 2015, https://arxiv.org/abs/1502.03167
    """

    __module__ = "moduli_layers"

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
        bias_metadata: Mapping[str, Any] = _NO_METADATA,
        scale_metadata: Mapping[str, Any] = _NO_METADATA,
    ) -> None:
        check_positive(self, num_features=num_features)
        check_rngs(self, rngs)
        shape = (num_features,)
        self.mean = moduli.BatchStat(fill(initializers.zeros, None, shape, jnp.float32))
        self.var = moduli.BatchStat(fill(initializers.ones, None, shape, jnp.float32))
        self.scale = None
        if use_scale:
            scale = fill(scale_init, rngs.params(), shape, param_dtype)
            self.scale = moduli.Param(scale, **scale_metadata)
        self.bias = None
        if use_bias:
            bias = fill(bias_init, rngs.params(), shape, param_dtype)
            self.bias = moduli.Param(bias, **bias_metadata)
        self.num_features = num_features
        self.use_running_average = use_running_average
        self.axis = axis
        self.momentum = momentum
        self.epsilon = epsilon
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.use_bias = use_bias
        self.use_scale = use_scale
        self.axis_name = axis_name
        if axis_index_groups is not None:
            axis_index_groups = tuple(tuple(group) for group in axis_index_groups)
        self.axis_index_groups = axis_index_groups
        self.use_fast_variance = use_fast_variance
        self.promote_dtype = promote_dtype

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
        result_dtype = inputs.dtype
        if jnp.finfo(result_dtype).bits < 32:
            inputs = inputs.astype(jnp.float32)

        axis = self.axis % inputs.ndim
        if not evaluate:
            batch_mean, batch_var, counted = self._batch_statistics(inputs, axis, mask)
            self._update(mean, var, batch_mean, batch_var, counted)
            mean, var = batch_mean, batch_var

        y = _normalize(inputs, mean, var, scale, bias, axis=axis, epsilon=self.epsilon)
        return y.astype(result_dtype)

    def _batch_statistics(
        self, x: jax.Array, axis: int, mask: ArrayLike | None
    ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """Returns mean, variance and, if there is a mask, how many entries each feature had."""
        axes = tuple(i for i in range(x.ndim) if i != axis)
        name = type(self).__name__
        if math.prod(x.shape[i] for i in axes) == 0:
            raise ShapeError(
                f"{name}(num_features={self.num_features}) expects at least one entry for each "
                f"feature to compute its statistics from, got shape {shape_text(x)}; skip the "
                f"empty batch, or write use_running_average=True"
            )

        def summed(values: Any, reduce: Any) -> Any:
            if self.axis_name is None:
                return values
            return reduce(values, self.axis_name, axis_index_groups=self.axis_index_groups)

        if mask is None:
            count = None

            def averages(*terms: jax.Array) -> tuple[jax.Array, ...]:
                return summed(tuple(jnp.mean(term, axes) for term in terms), lax.pmean)
        else:
            real = self._mask_like(x, mask)
            count = summed(jnp.sum(real, axes, dtype=x.dtype), lax.psum)
            at_least_one = jnp.maximum(count, 1)

            def averages(*terms: jax.Array) -> tuple[jax.Array, ...]:
                sums = tuple(jnp.sum(jnp.where(real, term, 0), axes) for term in terms)
                return tuple(total / at_least_one for total in summed(sums, lax.psum))

        if self.use_fast_variance:
            mean, mean_of_squares = averages(x, square(x))
            # rounding can bring the difference below zero
            return mean, jnp.maximum(mean_of_squares - square(mean), 0), count
        (mean,) = averages(x)
        (var,) = averages(square(x - jnp.expand_dims(mean, axes)))
        return mean, var, count

    def _mask_like(self, x: jax.Array, mask: ArrayLike) -> jax.Array:
        """Returns the mask broadcast to the inputs."""
        name = type(self).__name__
        mask = jnp.asarray(mask)
        if mask.dtype != jnp.bool_:
            raise DtypeError(
                f"{name} expects a boolean mask, got {mask.dtype.name}; write mask=mask != 0"
            )
        try:
            return jnp.broadcast_to(mask, x.shape)
        except ValueError:
            raise ShapeError(
                f"{name} expects a mask that broadcasts to the inputs' shape {shape_text(x)}, "
                f"got shape {shape_text(mask)}; give it an axis of size 1 for each axis along "
                f"which it is the same, as mask[:, None]"
            ) from None

    def _update(
        self,
        mean: jax.Array,
        var: jax.Array,
        batch_mean: jax.Array,
        batch_var: jax.Array,
        counted: jax.Array | None,
    ) -> None:
        """Moves the running statistics towards the batch's."""
        for variable, old, new in ((self.mean, mean, batch_mean), (self.var, var, batch_var)):
            moved = _moved(old, new, momentum=self.momentum)
            if counted is not None:
                moved = jnp.where(counted > 0, moved, old)
            variable.value = moved
