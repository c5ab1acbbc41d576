"""What the layers that normalise share: their parameters, their attributes, the call."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import jax
from jax.typing import ArrayLike, DTypeLike

import moduli
from moduli.errors import ShapeError
from moduli_layers import initializers
from moduli_layers._checks import check_features, check_positive, check_rngs, shape_of, shape_text
from moduli_layers._dtypes import PromoteDtype, promote_for
from moduli_layers._initial_values import fill
from moduli_layers._statistics import (
    at_least_float32,
    boolean_mask,
    moments,
    normalize,
    static_groups,
)

__all__ = ["NO_METADATA", "Axes", "Norm", "static_axes"]

NO_METADATA: Mapping[str, Any] = MappingProxyType({})

Axes = int | Sequence[int]


def static_axes(axes: Axes) -> int | tuple[int, ...]:
    """Returns axes as an int or a tuple, which are part of a layer's structure."""
    return tuple(axes) if isinstance(axes, Sequence) else axes


class Norm(moduli.Module):
    """Base of layers that shift and scale by statistics, then by learned parameters.

    Attributes:
      scale: Param of shape (num_features,), or None.
      bias: Param of shape (num_features,), or None.
    """

    __module__ = "moduli_layers"

    __value_shapes__: ClassVar[Mapping[str, tuple[str, ...]]] = dict.fromkeys(
        ("scale", "bias", "mean", "var"), ("num_features",)
    )

    is_norm: ClassVar[bool] = True

    def _build(
        self,
        num_features: int,
        *,
        epsilon: float,
        dtype: DTypeLike | None,
        param_dtype: DTypeLike,
        use_scale: bool,
        scale_init: initializers.Initializer,
        axis_name: Any,
        axis_index_groups: Sequence[Sequence[int]] | None,
        use_fast_variance: bool,
        promote_dtype: PromoteDtype,
        rngs: moduli.Rngs,
        scale_metadata: Mapping[str, Any],
        use_bias: bool = False,
        bias_init: initializers.Initializer = initializers.zeros,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
    ) -> None:
        """Makes the parameters and keeps the settings."""
        check_positive(self, num_features=num_features)
        check_rngs(self, rngs)
        self.scale = None
        if use_scale:
            scale = fill(scale_init, rngs.params(), (num_features,), param_dtype)
            self.scale = moduli.Param(scale, **scale_metadata)
        self.bias = None
        if use_bias:
            bias = fill(bias_init, rngs.params(), (num_features,), param_dtype)
            self.bias = moduli.Param(bias, **bias_metadata)
        self.num_features = num_features
        self.epsilon = epsilon
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.use_scale = use_scale
        self.use_bias = use_bias
        self.axis_name = axis_name
        self.axis_index_groups = static_groups(axis_index_groups)
        self.use_fast_variance = use_fast_variance
        self.promote_dtype = promote_dtype

    def _axes(self, x: ArrayLike, name: str, axes: Axes) -> tuple[int, ...]:
        """Returns axes of the inputs, none negative, each once, in order."""
        rank = len(shape_of(x))
        given = tuple(axes) if isinstance(axes, Sequence) else (axes,)
        for axis in given:
            if not -rank <= axis < rank:
                raise ShapeError(
                    f"{type(self).__name__}({name}={axes}) expects inputs with an axis {axis}, got "
                    f"shape {shape_text(x)}; write axes of the inputs"
                )
        return tuple(sorted({axis % rank for axis in given}))

    def _feature_axes(self, x: ArrayLike, axes: Axes) -> tuple[int, ...]:
        """Returns the features' axes, if they have as many entries as there are features."""
        if isinstance(axes, int):
            check_features(self, x, axes, self.num_features, "num_features")
            return (axes % len(shape_of(x)),)
        kept = self._axes(x, "feature_axes", axes)
        sizes = tuple(shape_of(x)[axis] for axis in kept)
        if math.prod(sizes) != self.num_features:
            raise ShapeError(
                f"{type(self).__name__}(num_features={self.num_features}, feature_axes={axes}) "
                f"expects {self.num_features} features on these axes, got sizes {sizes} of shape "
                f"{shape_text(x)}; build the layer with num_features={math.prod(sizes)}, or write "
                f"other feature_axes"
            )
        return kept

    def _promoted(self, x: ArrayLike) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
        """Returns inputs, scale and bias in the dtype of the computation."""
        scale = None if self.scale is None else self.scale[...]
        bias = None if self.bias is None else self.bias[...]
        return promote_for(self, (x, scale, bias))

    def _apply(
        self,
        promoted: tuple[jax.Array, jax.Array | None, jax.Array | None],
        mask: jax.Array | None,
        reduced: tuple[int, ...],
        features: tuple[int, ...],
        *,
        center: bool = True,
        group_size: int = 1,
    ) -> jax.Array:
        """Normalises by the statistics of the inputs over some axes.

        Args:
          promoted: what :meth:`_promoted` returned.
          mask: boolean array of the inputs' shape, or None.
          reduced: the axes over which statistics are taken.
          features: the axes of scale and bias.
          center: whether the mean is subtracted.
          group_size: how many neighbours on the last axis have their statistics in common.
        """
        inputs, scale, bias = promoted
        x = at_least_float32(inputs)
        found = moments(
            x,
            mask,
            axes=reduced,
            group_size=group_size,
            center=center,
            fast=self.use_fast_variance,
            axis_name=self.axis_name,
            axis_index_groups=self.axis_index_groups,
        )
        kept = tuple(axis for axis in range(x.ndim) if axis not in reduced)
        y = normalize(
            x,
            found.mean,
            found.var,
            scale,
            bias,
            stats_axes=kept,
            feature_axes=tuple(sorted(features)),
            epsilon=self.epsilon,
            group_size=group_size,
        )
        return y.astype(inputs.dtype)

    def _mask(self, mask: ArrayLike | None, x: ArrayLike) -> Any:
        """Returns the call's mask broadcast to the inputs, or None."""
        return boolean_mask(self, mask, shape_of(x))
