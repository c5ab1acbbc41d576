"""Wrappers that normalise the weights of the layer they hold, in every call.

In training the normalised weights take the place of the layer's parameters, as in flax.nnx: the
next step of an optimizer starts from them. In evaluation the parameters are lent the normalised
values for the time of the call, and nothing changes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike

import moduli
from moduli.errors import StructureError, format_path
from moduli_layers import initializers
from moduli_layers._arguments import checked
from moduli_layers._checks import check_positive, check_rngs, resolve_mode
from moduli_layers._dtypes import PromoteDtype, promote_dtype, promote_for
from moduli_layers._initial_values import fill
from moduli_layers._norm import Axes, static_axes
from moduli_layers._statistics import at_least_float32
from moduli_layers._traced_once import traced_once
from moduli_layers.counterparts import Tensor, TensorNames, names_of
from moduli_layers.errors import ArgumentError

__all__ = ["SpectralNorm", "WeightNorm"]

_Path = tuple[Any, ...]
_KERNELS = moduli.PathContains("kernel")
_default_u_init = initializers.normal()


def _unit(x: jax.Array, axes: tuple[int, ...] | None, epsilon: float) -> jax.Array:
    """Scales to Euclidean length one over axes."""
    return x * lax.rsqrt(jnp.sum(lax.square(x), axes, keepdims=True) + epsilon)


@traced_once(static_argnames=("axes", "epsilon"))
def _direction(weight: jax.Array, *, axes: tuple[int, ...], epsilon: float) -> jax.Array:
    return _unit(weight, axes, epsilon)


def _by_largest_singular_value(
    weight: jax.Array, u: jax.Array, *, n_steps: int, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Divides a matrix by its largest singular value, found by power iteration.

    Args:
      weight: array of shape (rows, columns).
      u: the vector to start from, of shape (1, columns).
      n_steps: number of steps.
      epsilon: added to squared lengths.

    Returns:
      The divided matrix, the vector after the last step, and the singular value.
    """
    dot = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    fixed, u = lax.stop_gradient((weight, u))
    v = u
    for _ in range(n_steps):
        v = _unit(dot(u, fixed.T), None, epsilon)  # (1, columns) -> (1, rows)
        u = _unit(dot(v, fixed), None, epsilon)  # (1, rows) -> (1, columns)
    sigma = dot(dot(v, weight), u.T)[0, 0]
    return weight / jnp.where(sigma == 0, 1, sigma), u, sigma


class _Wrapper(moduli.Module):
    """Base of both: which parameters, and the call with other values in them."""

    __module__ = "moduli_layers"

    is_norm: ClassVar[bool] = True
    layer_instance: Any

    def _declared(self) -> Iterator[tuple[str, Tensor, moduli.Param[Any] | None, _Path]]:
        """Yields the tensors that the wrapped layer declares, with the Param of those of one."""
        params = {".".join(map(str, path)): (path, p) for path, p in self._parameters()}
        for names in names_of(self.layer_instance)[:1]:
            for name, tensor in names.tensors.items():
                path, param = params.get(tensor.paths[0], ((), None))
                yield name, tensor, param if len(tensor.paths) == 1 else None, path

    def _parameters(self) -> Iterator[tuple[_Path, moduli.Param[Any]]]:
        """Yields the wrapped layer's parameters with their paths, in the order of the paths."""
        state = moduli.state(self.layer_instance, moduli.Param)
        yield from moduli.to_flat_state(state).items()

    def _stored(self, table: Any, key: _Path, path: _Path) -> Any:
        """Returns what a table holds for the parameter at a path."""
        if key not in table:
            name, layer = type(self).__name__, type(self.layer_instance).__name__
            raise StructureError(
                f"{name} has no entry for the parameter `{format_path(path)}` of {layer}, which it "
                f"did not have when it was wrapped; write {name}(layer, ...) after the layer has "
                f"all its parameters"
            )
        return table[key]

    def _call_with(
        self,
        weights: list[tuple[moduli.Param[Any], jax.Array, jax.Array]],
        keep: bool,
        call: Callable[[], Any],
    ) -> Any:
        """Calls the layer with other values in its parameters.

        Args:
          weights: for each parameter the value for the call, and the one to leave there after it.
          keep: whether that one stays; otherwise, and on an error, all is as it was before.
          call: calls the layer.
        """
        before = [param.get_raw_value() for param, _, _ in weights]
        after = before
        try:
            for param, lent, _ in weights:
                param.set_raw_value(lent)
            outputs = call()
            if keep:
                # a layer that writes its own parameters (another wrapper) has the last word
                after = [
                    kept if param.get_raw_value() is lent else param.get_raw_value()
                    for param, lent, kept in weights
                ]
        finally:
            for (param, _, _), value in zip(weights, after, strict=True):
                if param.get_raw_value() is not value:
                    param.set_raw_value(value)
        return outputs


class SpectralNorm(_Wrapper):
    """Divides a layer's weights by their largest singular value, in every call.

    Every Param of the wrapped layer with two or more axes is taken as a matrix of shape
    (..., last axis); the others are left as they are. ``n_steps`` of power iteration, which start
    from the vector that the last call found, estimate its largest singular value ``sigma``. No
    gradient flows through the iteration, only through ``sigma = v @ weight @ u``.

    In training the vectors, ``sigma`` and the divided weights are kept: after a call the layer's
    Params hold the weights that it was called with. In evaluation (``model.eval()``, or
    ``update_stats=False``) nothing is written; flax.nnx writes the weights then too, which gives
    the same outputs. Singular values are computed in float32 or wider.

    Attributes:
      layer_instance: the wrapped layer.
      batch_stats: for the Param at each path, the BatchStat ``u`` of shape (1, last axis) at
        ``(*path, "u")`` and the BatchStat ``sigma`` of shape () at ``(*path, "sigma")``.
      use_running_average: True in evaluation.

    Args:
      layer_instance: the layer to wrap.
      n_steps: steps of power iteration in each call.
      epsilon: added to squared lengths, so that zeros do not divide by zero.
      dtype: dtype of the weights in the call; None takes that of each Param. What is kept has the
        Param's own.
      param_dtype: dtype in which ``u`` and ``sigma`` are stored.
      error_on_non_matrix: refuse Params with more than two axes.
      update_stats: False starts in evaluation.
      rngs: where the first vectors' keys come from (stream ``params``, in the order of the paths).

    Raises:
      ArgumentError: ``n_steps`` is below 1, or a Param has more than two axes and
        ``error_on_non_matrix`` is True.
      RngError: ``rngs`` is not a :class:`moduli.Rngs`.

    Example:
      >>> import jax.numpy as jnp, moduli
      >>> from moduli_layers import Linear, SpectralNorm
      >>> rngs = moduli.Rngs(0)
      >>> layer = SpectralNorm(Linear(3, 4, rngs=rngs), n_steps=20, rngs=rngs)
      >>> layer(jnp.ones((2, 3))).shape
      (2, 4)
      >>> jnp.linalg.norm(layer.layer_instance.kernel.value, 2).round(4)
      Array(1., dtype=float32)

    Reference:
      Miyato et al., Spectral Normalization for Generative Adversarial Networks, 2018,
      https://arxiv.org/abs/1802.05957
    """

    __module__ = "moduli_layers"

    @checked
    def __init__(
        self,
        layer_instance: moduli.Module,
        *,
        n_steps: int = 1,
        epsilon: float = 1e-12,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        error_on_non_matrix: bool = False,
        update_stats: bool = True,
        rngs: moduli.Rngs,
    ) -> None:
        check_positive(self, n_steps=n_steps)
        check_rngs(self, rngs)
        self.layer_instance = layer_instance
        self.n_steps = n_steps
        self.epsilon = epsilon
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.error_on_non_matrix = error_on_non_matrix
        self.use_running_average = not update_stats
        stats: dict[_Path, Any] = {}
        for path, param in self._matrices():
            u = _default_u_init(rngs.params(), (1, param.shape[-1]), param_dtype)
            stats[*path, "u"] = moduli.BatchStat(u)
            sigma = fill(initializers.ones, None, (), param_dtype)
            stats[*path, "sigma"] = moduli.BatchStat(sigma)
        self.batch_stats: Any = stats

    @property
    def torch_names(self) -> tuple[TensorNames, ...]:
        """Those of both of PyTorch's forms of it; ``sigma`` it works out anew."""
        old, new = {}, {}
        there = {path: param for path, param in self._parameters() if param.ndim >= 2}
        for name, tensor, param, path in self._declared():
            below = tensor.below("layer_instance.")
            if param is None or path not in there:
                old[name] = new[name] = below
                continue
            stats = "batch_stats." + ".".join(map(str, path))
            u = Tensor(f"{stats}.u", "one o -> (one o)")
            sigma = Tensor(f"{stats}.sigma", optional=True)
            old |= {f"{name}_orig": below, f"{name}_u": u, f"{name}_sigma": sigma}
            start = f"parametrizations.{name}"
            new |= {f"{start}.original": below, f"{start}.0._u": u, f"{start}.0.sigma": sigma}
        if not old:
            return ()
        ignored = tuple(n.removesuffix("u") + "v" for n in (*old, *new) if n.endswith("_u"))
        return TensorNames(new, ignored=ignored), TensorNames(old, ignored=ignored)

    def _matrices(self) -> Iterator[tuple[_Path, moduli.Param[Any]]]:
        """Yields the parameters that are divided, with their paths."""
        for path, param in self._parameters():
            if param.ndim > 2 and self.error_on_non_matrix:
                raise ArgumentError(
                    f"{type(self).__name__}(error_on_non_matrix=True) expects parameters with at "
                    f"most two axes, got shape {param.shape} at `{format_path(path)}` of "
                    f"{type(self.layer_instance).__name__}; write error_on_non_matrix=False to "
                    f"take it as a matrix of shape (-1, {param.shape[-1]})"
                )
            if param.ndim >= 2:
                yield path, param

    def __call__(self, x: ArrayLike, update_stats: bool | None = None, **kwargs: Any) -> Any:
        """Calls the layer with its weights divided.

        Args:
          x: the layer's inputs.
          update_stats: whether to keep what was found; None takes the layer's mode.
          **kwargs: what the layer's call takes besides.

        Returns:
          What the layer returns.

        Raises:
          ArgumentError: neither the call nor the layer says whether to train or to evaluate.
          StructureError: the layer has a parameter that it did not have when it was wrapped.
        """
        if update_stats is None:
            update_stats = not resolve_mode(self, "use_running_average", None)
        weights, found = [], []
        for path, param in self._matrices():
            u = self._stored(self.batch_stats, (*path, "u"), path)
            sigma = self._stored(self.batch_stats, (*path, "sigma"), path)
            divided, *stats = self._divided(param[...], u[...])
            lent = divided.astype(param.dtype if self.dtype is None else self.dtype)
            weights.append((param, lent, divided.astype(param.dtype)))
            found.extend(zip((u, sigma), stats, strict=True))
        outputs = self._call_with(weights, update_stats, lambda: self.layer_instance(x, **kwargs))
        if update_stats:
            for variable, value in found:
                variable.value = value.astype(variable.dtype)
        return outputs

    def _divided(self, weight: jax.Array, u: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns the divided weight, the new vector and the singular value."""
        matrix = at_least_float32(weight.reshape((-1, weight.shape[-1])))
        divided, u, sigma = _by_largest_singular_value(
            matrix, u.astype(matrix.dtype), n_steps=self.n_steps, epsilon=self.epsilon
        )
        return divided.reshape(weight.shape), u, sigma


class WeightNorm(_Wrapper):
    """Gives a layer's weights a direction and a length of their own: ``scale * w / |w|``.

    The length ``|w|`` is taken over all axes of a weight but ``feature_axes``, so that each feature
    has its own scale. In training the direction ``w / |w|`` is kept: after a call the layer's
    Params hold it, with length one. In evaluation (``model.eval()``) nothing is written. Lengths
    are computed in float32 or wider.

    flax.nnx has the scales as plain arrays, which no optimizer sees, and keeps ``scale * w / |w|``.
    With scales of one, as they are there at first, this is the same.

    Attributes:
      layer_instance: the wrapped layer.
      scales: for the weight at each path a Param with the sizes of its ``feature_axes``; None if
        ``use_scale`` is False.
      use_running_average: True in evaluation.

    Args:
      layer_instance: the layer to wrap.
      feature_axes: the axes along which lengths and scales differ; None gives each weight one
        length.
      use_scale: whether to multiply by a scale.
      scale_init: initializer of the scales; default: ones.
      epsilon: added to squared lengths, so that zeros do not divide by zero.
      dtype: dtype of the weights in the call; None takes the one to which weight and scale promote.
        What is kept has the Param's own.
      param_dtype: dtype in which the scales are stored.
      variable_filter: filter over (path, Param) that selects the weights.
      promote_dtype: function that casts ``(weight, scale)`` to ``dtype``.
      rngs: where the scales' keys come from (stream ``params``, in the order of the paths; ones
        need none).

    Raises:
      ArgumentError: the filter selects no Param of the layer, or one without the ``feature_axes``.
      RngError: ``rngs`` is not a :class:`moduli.Rngs`.

    Example:
      >>> import jax.numpy as jnp, moduli
      >>> from moduli_layers import Linear, WeightNorm
      >>> rngs = moduli.Rngs(0)
      >>> layer = WeightNorm(Linear(3, 2, rngs=rngs), rngs=rngs)
      >>> layer(jnp.ones((5, 3))).shape
      (5, 2)
      >>> jnp.linalg.norm(layer.layer_instance.kernel.value, axis=0).round(4)
      Array([1., 1.], dtype=float32)

    Reference:
      Salimans and Kingma, Weight Normalization, 2016, https://arxiv.org/abs/1602.07868
    """

    __module__ = "moduli_layers"

    @checked
    def __init__(
        self,
        layer_instance: moduli.Module,
        *,
        feature_axes: Axes | None = -1,
        use_scale: bool = True,
        scale_init: initializers.Initializer = initializers.ones,
        epsilon: float = 1e-12,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        variable_filter: Any = _KERNELS,
        promote_dtype: PromoteDtype = promote_dtype,
        rngs: moduli.Rngs,
    ) -> None:
        check_rngs(self, rngs)
        self.layer_instance = layer_instance
        self.feature_axes = () if feature_axes is None else static_axes(feature_axes)
        self.use_scale = use_scale
        self.scale_init = scale_init
        self.epsilon = epsilon
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.variable_filter = moduli.filterlib.to_predicate(variable_filter)
        self.promote_dtype = promote_dtype
        self.use_running_average = False
        self.scales: Any = None
        scales = {}
        for path, param in self._weights():
            shape = tuple(param.shape[axis] for axis in self._kept_axes(path, param))
            if use_scale:
                key = None if scale_init is initializers.ones else rngs.params()
                scales[path] = moduli.Param(fill(scale_init, key, shape, param_dtype))
        if use_scale:
            self.scales = scales

    @property
    def torch_names(self) -> tuple[TensorNames, ...]:
        """Those of both of PyTorch's forms of it."""
        old, new = {}, {}
        weights = dict(self._weights())
        for name, tensor, param, path in self._declared():
            below = tensor.below("layer_instance.")
            if param is None or path not in weights:
                old[name] = new[name] = below
                continue
            start = f"parametrizations.{name}.original"
            old[f"{name}_v"] = new[f"{start}1"] = below
            if self.scales is not None:
                of = "scales." + ".".join(map(str, path))
                g = tensor.along(of, self._kept_axes(path, param), param.ndim)
                if self.feature_axes == ():
                    g = Tensor(of)
                old[f"{name}_g"] = new[f"{start}0"] = g
        return (TensorNames(new), TensorNames(old)) if old else ()

    def _weights(self) -> list[tuple[_Path, moduli.Param[Any]]]:
        """Returns the selected parameters with their paths."""
        there = list(self._parameters())
        selected = [(path, param) for path, param in there if self.variable_filter(path, param)]
        if not selected:
            names = ", ".join(f"`{format_path(path)}`" for path, _ in there) or "none"
            name, layer = type(self).__name__, type(self.layer_instance).__name__
            raise ArgumentError(
                f"{name} found no parameter of {layer} that variable_filter selects; the layer has "
                f'{names}; write a filter such as variable_filter=moduli.PathContains("kernel")'
            )
        return selected

    def _kept_axes(self, path: _Path, param: moduli.Param[Any]) -> tuple[int, ...]:
        """Returns the axes of a parameter along which lengths differ, none negative, in order."""
        axes = self.feature_axes
        given = tuple(axes) if isinstance(axes, Sequence) else (axes,)
        if any(not -param.ndim <= axis < param.ndim for axis in given):
            raise ArgumentError(
                f"{type(self).__name__}(feature_axes={axes}) got a parameter of shape "
                f"{param.shape} at `{format_path(path)}` of {type(self.layer_instance).__name__}; "
                f"write axes that it has, or a variable_filter that leaves it out"
            )
        return tuple(sorted({axis % param.ndim for axis in given}))

    def __call__(self, x: ArrayLike, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer with its weights normalised.

        Args:
          x: the layer's inputs.
          *args: what the layer's call takes besides.
          **kwargs: what the layer's call takes besides.

        Returns:
          What the layer returns.

        Raises:
          ArgumentError: the layer does not say whether to train or to evaluate.
          StructureError: the layer has a parameter that it did not have when it was wrapped.
          DtypeError: a weight and its scale have no common dtype.
        """
        keep = not resolve_mode(self, "use_running_average", None)
        weights = [self._normalised(path, param) for path, param in self._weights()]
        return self._call_with(weights, keep, lambda: self.layer_instance(x, *args, **kwargs))

    def _normalised(
        self, path: _Path, param: moduli.Param[Any]
    ) -> tuple[moduli.Param[Any], jax.Array, jax.Array]:
        """Returns the parameter, the weight for the call, and the direction."""
        kept = self._kept_axes(path, param)
        scale = None if self.scales is None else self._stored(self.scales, path, path)[...]
        weight, scale = promote_for(self, (param[...], scale))
        axes = tuple(axis for axis in range(weight.ndim) if axis not in kept)
        direction = _direction(at_least_float32(weight), axes=axes, epsilon=self.epsilon)
        lent = direction
        if scale is not None:
            shape = tuple(size if i in kept else 1 for i, size in enumerate(weight.shape))
            lent = direction * scale.astype(direction.dtype).reshape(shape)
        return param, lent.astype(weight.dtype), direction.astype(param.dtype)
