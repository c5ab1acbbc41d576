"""Normalisation of each example by the statistics of groups of features, or of single ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

import moduli
from moduli.errors import ShapeError
from moduli_layers import initializers
from moduli_layers._arguments import checked
from moduli_layers._checks import check_features, check_positive, shape_of, shape_text
from moduli_layers._dtypes import PromoteDtype, promote_dtype
from moduli_layers._norm import NO_METADATA, Axes, Norm, static_axes
from moduli_layers.counterparts import Counterpart, Tensor, TensorNames
from moduli_layers.errors import ArgumentError

__all__ = ["GroupNorm", "InstanceNorm"]

_GROUP_NORM = Counterpart(
    "torch.nn.GroupNorm",
    {"weight": Tensor("scale"), "bias": Tensor("bias")},
    {
        "num_groups": "num_groups",
        "num_channels": "num_features",
        "eps": "epsilon",
        "affine": "use_scale",
    },
    feature_axis=1,
)

_INSTANCE_NORM = Counterpart(
    "torch.nn.InstanceNorm{rank}d",
    {"weight": Tensor("scale"), "bias": Tensor("bias")},
    {"num_features": "num_features", "eps": "epsilon", "affine": "use_scale"},
    {"track_running_stats": False},
    feature_axis=1,
)


class GroupNorm(Norm):
    """Normalises each example over groups of its features.

    The features, on the last axis, fall into ``num_groups`` groups of neighbours. With the mean
    ``m`` and the biased variance ``v`` of each example's group over all axes but the first,
    ``y = (x - m) / sqrt(v + epsilon) * scale + bias``. One group makes it a :class:`LayerNorm` over
    all of these axes, one group for each feature an :class:`InstanceNorm`. Statistics are computed
    in float32 or wider, whatever the inputs' dtype. Training and evaluation are the same.

    Attributes:
      scale: Param of shape (num_features,), or None if ``use_scale`` is False.
      bias: Param of shape (num_features,), or None if ``use_bias`` is False.

    Args:
      num_features: size of the inputs' last axis.
      num_groups: number of groups; None where ``group_size`` says it.
      group_size: number of features in a group, in the place of ``num_groups``.
      epsilon: added to the variance, so that constant inputs do not divide by zero (PyTorch's
        default: 1e-5).
      dtype: dtype of the result; None takes the one to which inputs and parameters promote.
      param_dtype: dtype in which the parameters are stored.
      use_bias: whether to add a bias.
      use_scale: whether to multiply by a scale.
      bias_init: initializer of the bias; default: zeros.
      scale_init: initializer of the scale; default: ones.
      reduction_axes: the axes over which the statistics are taken, the last among them; None takes
        all but the first.
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
      ArgumentError: ``num_features`` is below 1, both or neither of ``num_groups`` and
        ``group_size`` are given, or the one given does not divide ``num_features``.
      RngError: ``rngs`` is not a :class:`moduli.Rngs`.

    Example:
      >>> import jax.numpy as jnp, moduli
      >>> from moduli_layers import GroupNorm
      >>> layer = GroupNorm(4, num_groups=2, rngs=moduli.Rngs(0))
      >>> print(layer(jnp.array([[1.0, 3.0, 10.0, 30.0]])).round(2))
      [[-1.  1. -1.  1.]]

    Reference:
      Wu and He, Group Normalization, 2018, https://arxiv.org/abs/1803.08494
    """

    __module__ = "moduli_layers"

    torch_names: ClassVar[tuple[TensorNames, ...]] = (TensorNames(_GROUP_NORM.tensors),)

    @checked
    def __init__(
        self,
        num_features: int,
        num_groups: int | None = 32,
        group_size: int | None = None,
        *,
        epsilon: float = 1e-6,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: initializers.Initializer = initializers.zeros,
        scale_init: initializers.Initializer = initializers.ones,
        reduction_axes: Axes | None = None,
        axis_name: str | None = None,
        axis_index_groups: Sequence[Sequence[int]] | None = None,
        use_fast_variance: bool = True,
        promote_dtype: PromoteDtype = promote_dtype,
        rngs: moduli.Rngs,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
        scale_metadata: Mapping[str, Any] = NO_METADATA,
    ) -> None:
        self.num_groups, self.group_size = self._groups(num_features, num_groups, group_size)
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
        self.reduction_axes = None if reduction_axes is None else static_axes(reduction_axes)

    def _groups(self, features: int, number: int | None, size: int | None) -> tuple[int, int]:
        """Returns number and size of the groups."""
        name = type(self).__name__
        if (number is None) == (size is None):
            raise ArgumentError(
                f"{name} got num_groups={number} and group_size={size}; write one of them, as "
                f"{name}({features}, num_groups=...) or {name}({features}, num_groups=None, "
                f"group_size=...)"
            )
        argument, given = ("num_groups", number) if size is None else ("group_size", size)
        assert given is not None
        check_positive(self, num_features=features, **{argument: given})
        if features % given:
            fitting = [n for n in range(1, features + 1) if features % n == 0]
            raise ArgumentError(
                f"{name} got {argument}={given}, which does not divide num_features={features}; "
                f"write one of {', '.join(map(str, fitting))}"
            )
        other = features // given
        return (given, other) if size is None else (other, given)

    @property
    def torch_counterpart(self) -> Counterpart | None:
        """PyTorch's layer that computes the same.

        It has none with only one of scale and bias, and for other axes.
        """
        fits = self.use_scale == self.use_bias and self.reduction_axes is None
        return _GROUP_NORM if fits else None

    def __call__(self, x: ArrayLike, *, mask: ArrayLike | None = None) -> jax.Array:
        """Normalises the inputs.

        Args:
          x: array of shape (batch, ..., num_features).
          mask: boolean array that broadcasts to ``x``; entries where it is False do not count in
            the statistics. They are normalised as the others are.

        Returns:
          Array of the shape of ``x``.

        Raises:
          ShapeError: ``x`` does not have ``num_features`` entries on its last axis or lacks one of
            the ``reduction_axes``, or the mask does not broadcast to ``x``.
          ArgumentError: the last axis is not among the ``reduction_axes``.
          DtypeError: the mask is not boolean, or inputs and parameters have no common dtype.
        """
        check_features(self, x, -1, self.num_groups * self.group_size, "num_features")
        shape = shape_of(x)
        last = len(shape) - 1
        others = tuple(axis for axis in self._reduced(x, last) if axis != last)
        counts = self._mask(mask, x)
        inputs, scale, bias = self._promoted(x)
        if others:  # each feature's statistics first: their loops run along whole rows of features
            size = self.group_size
            return self._apply((inputs, scale, bias), counts, others, (last,), group_size=size)
        grouped = (*shape[:-1], self.num_groups, self.group_size)
        y = self._apply(
            (inputs.reshape(grouped), scale, bias),
            None if counts is None else counts.reshape(grouped),
            (last + 1,),  # within a group
            (last, last + 1),
        )
        return y.reshape(shape)

    def _reduced(self, x: ArrayLike, last: int) -> tuple[int, ...]:
        """Returns the axes of ``x`` over which statistics are taken."""
        if self.reduction_axes is None:
            return (*range(1, last), last)
        axes = self._axes(x, "reduction_axes", self.reduction_axes)
        if last not in axes:
            raise ArgumentError(
                f"{type(self).__name__}(reduction_axes={self.reduction_axes}) leaves out the "
                f"features' axis of inputs of shape {shape_text(x)}; write -1 among the axes"
            )
        return axes


class InstanceNorm(Norm):
    """Normalises each feature of each example: ``y = (x - m) / sqrt(v + epsilon) * scale + bias``.

    ``m`` and the biased variance ``v`` are taken over all axes but the first, which is the batch's,
    and the features'. They are computed in float32 or wider, whatever the inputs' dtype. Training
    and evaluation are the same.

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
      feature_axes: the axes of the features, along which scale and bias differ.
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
      >>> from moduli_layers import InstanceNorm
      >>> layer = InstanceNorm(2, rngs=moduli.Rngs(0))
      >>> print(layer(jnp.array([[[1.0, 10.0], [3.0, 50.0]]])).round(2))
      [[[-1. -1.]
        [ 1.  1.]]]

    Reference:
      Ulyanov et al., Instance Normalization, 2016, https://arxiv.org/abs/1607.08022
    """

    __module__ = "moduli_layers"

    torch_names: ClassVar[tuple[TensorNames, ...]] = (TensorNames(_INSTANCE_NORM.tensors),)

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
        self.feature_axes = static_axes(feature_axes)

    @property
    def torch_counterpart(self) -> Counterpart | None:
        """PyTorch's layer that computes the same.

        It has none with only one of scale and bias, and for other feature axes than the last.
        """
        fits = self.use_scale == self.use_bias and self.feature_axes in (-1, (-1,))
        return _INSTANCE_NORM if fits else None

    def __call__(self, x: ArrayLike, *, mask: ArrayLike | None = None) -> jax.Array:
        """Normalises the inputs.

        Args:
          x: array of shape (batch, ...) with ``num_features`` entries on ``feature_axes``.
          mask: boolean array that broadcasts to ``x``; entries where it is False do not count in
            the statistics. They are normalised as the others are.

        Returns:
          Array of the shape of ``x``.

        Raises:
          ShapeError: ``x`` does not have ``num_features`` entries on ``feature_axes``, the first
            axis is one of these, or the mask does not broadcast to ``x``.
          DtypeError: the mask is not boolean, or inputs and parameters have no common dtype.
        """
        features = self._feature_axes(x, self.feature_axes)
        if 0 in features:
            raise ShapeError(
                f"{type(self).__name__}(feature_axes={self.feature_axes}) expects inputs whose "
                f"first axis is the batch's, got shape {shape_text(x)} with features there; give "
                f"the inputs a batch axis, as x[None], or write other feature_axes"
            )
        reduced = tuple(axis for axis in range(1, len(shape_of(x))) if axis not in features)
        return self._apply(self._promoted(x), self._mask(mask, x), reduced, features)
