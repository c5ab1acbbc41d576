"""Normalisation of each example by its own statistics: by mean and variance, or by size alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

import moduli
from moduli_layers import initializers
from moduli_layers._arguments import checked
from moduli_layers._dtypes import PromoteDtype, promote_dtype, promote_for
from moduli_layers._norm import NO_METADATA, Axes, Norm, static_axes
from moduli_layers.counterparts import Counterpart, Setting, Tensor, TensorNames

__all__ = ["LayerNorm", "RMSNorm"]

_LAYER_NORM = Counterpart(
    "torch.nn.LayerNorm",
    {"weight": Tensor("scale"), "bias": Tensor("bias")},
    {
        "normalized_shape": "num_features",
        "eps": "epsilon",
        "elementwise_affine": "use_scale",
        "bias": "use_bias",
    },
)


def _epsilon(theirs: float | None) -> float:
    """Our epsilon for that of PyTorch's RMSNorm, which is the inputs' precision if it is None."""
    return float(jnp.finfo(jnp.float32).eps) if theirs is None else theirs


_RMS_NORM = Counterpart(
    "torch.nn.RMSNorm",
    {"weight": Tensor("scale")},
    {
        "normalized_shape": "num_features",
        "eps": Setting("epsilon", float, _epsilon),
        "elementwise_affine": "use_scale",
    },
)


def _is_last(axes: int | tuple[int, ...]) -> bool:
    return axes in (-1, (-1,))


class LayerNorm(Norm):
    """Normalises each example over its features.

    ``y = (x - m) / sqrt(v + epsilon) * scale + bias``, where the mean ``m`` and the biased
    variance ``v`` are taken over ``reduction_axes`` (default: the last axis) and
    computed in float32 or wider, whatever the inputs' dtype. Training and evaluation are the same.

    Attributes:
      scale: Param of shape (num_features,), or None if ``use_scale`` is False.
      bias: Param of shape (num_features,), or None if ``use_bias`` is False.

    Args:
      num_features: number of entries on the ``feature_axes``, their product if these are several.
      epsilon: added to the variance, so that constant inputs do not divide by zero (PyTorch's
        default: 1e-5).
      dtype: dtype of the result; None takes the one to which inputs and parameters promote.
      param_dtype: dtype in which the parameters are stored.
      use_bias: whether to add a bias.
      use_scale: whether to multiply by a scale.
      bias_init: initializer of the bias; default: zeros.
      scale_init: initializer of the scale; default: ones.
      reduction_axes: the axes over which the statistics are taken.
      feature_axes: the axes along which scale and bias differ.
      axis_name: name of a mapped axis (of :func:`jax.vmap`, ``shard_map``) over which the
        statistics are combined too, for inputs that are split over it.
      axis_index_groups: groups of indices of that axis that are combined with each other only,
        see :func:`jax.lax.psum`.
      use_fast_variance: compute the variance as ``mean(x²) - mean(x)²``, in one pass over the
        data; False takes a second pass, which is exact for data far from zero.
      promote_dtype: function that casts ``(inputs, scale, bias)`` to ``dtype``.
      rngs: where the parameters' keys come from (stream ``params``: the scale's, then the
        bias's).
      bias_metadata: metadata of the bias's Param.
      scale_metadata: metadata of the scale's Param.

    Raises:
      ArgumentError: ``num_features`` is below 1.
      RngError: ``rngs`` is not a :class:`moduli.Rngs`.

    Example:
      >>> import jax.numpy as jnp, moduli
      >>> from moduli_layers import LayerNorm
      >>> layer = LayerNorm(4, rngs=moduli.Rngs(0))
      >>> print(layer(jnp.array([[1.0, 1.0, 3.0, 3.0], [0.0, 0.0, 0.0, 8.0]])).round(2))
      [[-1.   -1.    1.    1.  ]
       [-0.58 -0.58 -0.58  1.73]]

    Reference:
      Ba et al., Layer Normalization, 2016, https://arxiv.org/abs/1607.06450
    """

    __module__ = "moduli_layers"

    torch_names: ClassVar[tuple[TensorNames, ...]] = (TensorNames(_LAYER_NORM.tensors),)

    @checked
    def __init__(
        self,
        num_features: int,
        *,
        epsilon: float = 1e-6,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: initializers.Initializer = initializers.zeros,
        scale_init: initializers.Initializer = initializers.ones,
        reduction_axes: Axes = -1,
        feature_axes: Axes = -1,
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
        self.reduction_axes = static_axes(reduction_axes)
        self.feature_axes = static_axes(feature_axes)

    @property
    def torch_counterpart(self) -> Counterpart | None:
        """PyTorch's layer that computes the same; None for a bias alone and for other axes."""
        last = _is_last(self.reduction_axes) and _is_last(self.feature_axes)
        return _LAYER_NORM if last and (self.use_scale or not self.use_bias) else None

    def __call__(self, x: ArrayLike, *, mask: ArrayLike | None = None) -> jax.Array:
        """Normalises the inputs.

        Args:
          x: array with ``num_features`` entries on ``feature_axes``.
          mask: boolean array that broadcasts to ``x``; entries where it is False do not count in
            the statistics. They are normalised as the others are.

        Returns:
          Array of the shape of ``x``.

        Raises:
          ShapeError: ``x`` does not have ``num_features`` entries on ``feature_axes`` or lacks one
            of the ``reduction_axes``, or the mask does not broadcast to ``x``.
          DtypeError: the mask is not boolean, or inputs and parameters have no common dtype.
        """
        features = self._feature_axes(x, self.feature_axes)
        reduced = self._axes(x, "reduction_axes", self.reduction_axes)
        return self._apply(self._promoted(x), self._mask(mask, x), reduced, features)


class RMSNorm(Norm):
    """Divides each example by its root mean square: ``y = x / sqrt(mean(x²) + epsilon) * scale``.

    The mean is taken over ``reduction_axes`` (default: the last axis) and computed in
    float32 or wider, whatever the inputs' dtype. Training and evaluation are the same.

    Attributes:
      scale: Param of shape (num_features,), or None if ``use_scale`` is False.

    Args:
      num_features: number of entries on the ``feature_axes``, their product if these are several.
      epsilon: added to the mean square, so that zeros do not divide by zero (PyTorch's default:
        the precision of the inputs' dtype).
      dtype: dtype of the result; None takes the one to which inputs and parameters promote.
      param_dtype: dtype in which the parameters are stored.
      use_scale: whether to multiply by a scale.
      scale_init: initializer of the scale; default: ones.
      reduction_axes: the axes over which the mean square is taken.
      feature_axes: the axes along which the scale differs.
      axis_name: name of a mapped axis (of :func:`jax.vmap`, ``shard_map``) over which the
        statistics are combined too, for inputs that are split over it.
      axis_index_groups: groups of indices of that axis that are combined with each other only,
        see :func:`jax.lax.psum`.
      use_fast_variance: taken for the sake of the other norms' signature; the mean square has one
        way to be computed.
      promote_dtype: function that casts ``(inputs, scale)`` to ``dtype``.
      rngs: where the scale's key comes from (stream ``params``).
      scale_metadata: metadata of the scale's Param.

    Raises:
      ArgumentError: ``num_features`` is below 1.
      RngError: ``rngs`` is not a :class:`moduli.Rngs`.

    Example:
      >>> import jax.numpy as jnp, moduli
      >>> from moduli_layers import RMSNorm
      >>> layer = RMSNorm(4, rngs=moduli.Rngs(0))
      >>> print(layer(jnp.array([[3.0, 0.0, 0.0, 0.0], [-2.0, 2.0, 2.0, -2.0]])).round(2))
      [[ 2.  0.  0.  0.]
       [-1.  1.  1. -1.]]

    Reference:
      Zhang and Sennrich, Root Mean Square Layer Normalization, 2019,
      https://arxiv.org/abs/1910.07467
    """

    __module__ = "moduli_layers"

    torch_names: ClassVar[tuple[TensorNames, ...]] = (TensorNames(_RMS_NORM.tensors),)

    @checked
    def __init__(
        self,
        num_features: int,
        *,
        epsilon: float = 1e-6,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        use_scale: bool = True,
        scale_init: initializers.Initializer = initializers.ones,
        reduction_axes: Axes = -1,
        feature_axes: Axes = -1,
        axis_name: str | None = None,
        axis_index_groups: Sequence[Sequence[int]] | None = None,
        use_fast_variance: bool = True,
        promote_dtype: PromoteDtype = promote_dtype,
        rngs: moduli.Rngs,
        scale_metadata: Mapping[str, Any] = NO_METADATA,
    ) -> None:
        self._build(
            num_features,
            epsilon=epsilon,
            dtype=dtype,
            param_dtype=param_dtype,
            use_scale=use_scale,
            scale_init=scale_init,
            axis_name=axis_name,
            axis_index_groups=axis_index_groups,
            use_fast_variance=use_fast_variance,
            promote_dtype=promote_dtype,
            rngs=rngs,
            scale_metadata=scale_metadata,
        )
        self.reduction_axes = static_axes(reduction_axes)
        self.feature_axes = static_axes(feature_axes)

    @property
    def torch_counterpart(self) -> Counterpart | None:
        """PyTorch's layer that computes the same; None for other axes than the last."""
        last = _is_last(self.reduction_axes) and _is_last(self.feature_axes)
        return _RMS_NORM if last else None

    def __call__(self, x: ArrayLike, mask: ArrayLike | None = None) -> jax.Array:
        """Normalises the inputs.

        Args:
          x: array with ``num_features`` entries on ``feature_axes``.
          mask: boolean array that broadcasts to ``x``; entries where it is False do not count in
            the mean square. They are divided as the others are.

        Returns:
          Array of the shape of ``x``.

        Raises:
          ShapeError: ``x`` does not have ``num_features`` entries on ``feature_axes`` or lacks one
            of the ``reduction_axes``, or the mask does not broadcast to ``x``.
          DtypeError: the mask is not boolean, or inputs and parameters have no common dtype.
        """
        features = self._feature_axes(x, self.feature_axes)
        reduced = self._axes(x, "reduction_axes", self.reduction_axes)
        scale = None if self.scale is None else self.scale[...]
        inputs, scale = promote_for(self, (x, scale))
        promoted = (inputs, scale, None)
        return self._apply(promoted, self._mask(mask, x), reduced, features, center=False)
