"""Low-rank adaptation: a small trained product next to a layer that stays as it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike

import moduli
from moduli.errors import ShapeError
from moduli_layers import initializers
from moduli_layers._arguments import checked
from moduli_layers._checks import check_features, check_positive, check_rngs, shape_of, shape_text
from moduli_layers._dtypes import PromoteDtype, Summing, promote_dtype, promote_for
from moduli_layers._initial_values import fill
from moduli_layers._linear import Linear
from moduli_layers._linear_general import LinearGeneral
from moduli_layers.counterparts import Tensor, TensorNames
from moduli_layers.errors import ArgumentError

__all__ = ["LoRA", "LoRALinear", "LoRAParam"]

_NO_METADATA: Mapping[str, Any] = MappingProxyType({})


def _names(prefix: str, base: str, adapter: str) -> TensorNames:
    """Names as peft's: of what is adapted, and of the adapter."""
    pair = {f"lora_A{adapter}.weight": "lora_a", f"lora_B{adapter}.weight": "lora_b"}
    tensors = {name: Tensor(prefix + of, "i o -> o i") for name, of in pair.items()}
    if not prefix:
        return TensorNames(tensors, {"base_module": base})
    start = f"{base}." if base else ""
    tensors[f"{start}weight"] = Tensor("kernel", "i o -> o i")
    return TensorNames({**tensors, f"{start}bias": Tensor("bias")})


_STYLES = (("", ""), ("base_layer", ""), ("base_layer", ".default"))
_default_a_init = initializers.he_uniform()


class LoRAParam(moduli.Param[Any]):
    """A parameter of an adaptation, so that it can be trained and saved without the others.

    Its name is ``"lora_params"``.

    Example:
      >>> import jax.numpy as jnp, moduli
      >>> from moduli_layers import LoRALinear, LoRAParam
      >>> layer = LoRALinear(3, 4, lora_rank=2, rngs=moduli.Rngs(0))
      >>> def loss(layer):
      ...     return layer(jnp.ones((5, 3))).sum()
      >>> grads = moduli.grad(loss, argnums=moduli.DiffState(0, LoRAParam))(layer)
      >>> list(moduli.to_pure_dict(grads))
      ['lora']
    """

    __module__ = "moduli_layers"
    __slots__ = ()


class LoRA(Summing):
    """A map of low rank, alone or added to what another module returns: ``base(x) + x @ a @ b``.

    ``b`` starts at zero, so that a wrapped module at first computes what it did. A wrapped
    :class:`LinearGeneral`, such as ``attention.query``, is adapted as the matrix that it is: write
    the products of its sizes as ``in_features`` and ``out_features``.

    Attributes:
      lora_a: LoRAParam of shape (in_features, lora_rank).
      lora_b: LoRAParam of shape (lora_rank, out_features).
      base_module: the module that is wrapped, or None.

    Args:
      in_features: size of the inputs' last axis.
      lora_rank: size between the two matrices.
      out_features: size of the outputs' last axis.
      base_module: the module to wrap.
      dtype: dtype of the low-rank product; None takes the one to which inputs and parameters
        promote. The sum has the dtype of what ``base_module`` returns.
      param_dtype: dtype in which the parameters are stored.
      a_initializer: initializer of ``lora_a``; default: He's uniform.
      b_initializer: initializer of ``lora_b``; default: zeros.
      lora_param_type: the kind of Variable of both.
      precision: numerical precision of the products, see :class:`jax.lax.Precision`.
      promote_dtype: function that casts ``(inputs, lora_a, lora_b)`` to ``dtype``.
      rngs: where the parameters' keys come from (stream ``params``: ``lora_a``'s, then
        ``lora_b``'s).
      a_metadata: metadata of ``lora_a``.
      b_metadata: metadata of ``lora_b``.

    Raises:
      ArgumentError: a size is below 1, or ``base_module`` cannot be called.
      RngError: ``rngs`` is not a :class:`moduli.Rngs`.

    Example:
      >>> import jax.numpy as jnp, moduli
      >>> from moduli_layers import Linear, LoRA
      >>> linear = Linear(3, 4, rngs=moduli.Rngs(0))
      >>> layer = LoRA(3, 2, 4, base_module=linear, rngs=moduli.Rngs(1))
      >>> layer.lora_a.shape, layer.lora_b.shape
      ((3, 2), (2, 4))
      >>> x = jnp.ones((5, 3))
      >>> bool((layer(x) == linear(x)).all())
      True

    Reference:
      Hu et al., LoRA: low-rank adaptation of large language models, 2021,
      https://arxiv.org/abs/2106.09685
    """

    __module__ = "moduli_layers"

    __value_shapes__: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "lora_a": ("in_features", "lora_rank"),
        "lora_b": ("lora_rank", "out_features"),
    }

    torch_names: ClassVar[tuple[TensorNames, ...]] = tuple(
        _names("", base, adapter) for base, adapter in _STYLES
    )

    @checked
    def __init__(
        self,
        in_features: int,
        lora_rank: int,
        out_features: int,
        *,
        base_module: Callable[..., Any] | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        a_initializer: initializers.Initializer = _default_a_init,
        b_initializer: initializers.Initializer = initializers.zeros,
        lora_param_type: type[moduli.Variable[Any]] = LoRAParam,
        precision: lax.PrecisionLike = None,
        promote_dtype: PromoteDtype = promote_dtype,
        rngs: moduli.Rngs,
        a_metadata: Mapping[str, Any] = _NO_METADATA,
        b_metadata: Mapping[str, Any] = _NO_METADATA,
    ) -> None:
        check_positive(
            self, in_features=in_features, lora_rank=lora_rank, out_features=out_features
        )
        check_rngs(self, rngs)
        if base_module is not None and not callable(base_module):
            raise ArgumentError(
                f"{type(self).__name__} got base_module of type {type(base_module).__name__}, "
                f"which cannot be called; write a module with a __call__, or None"
            )
        a = fill(a_initializer, rngs.params(), (in_features, lora_rank), param_dtype)
        b = fill(b_initializer, rngs.params(), (lora_rank, out_features), param_dtype)
        self.lora_a = lora_param_type(a, **a_metadata)
        self.lora_b = lora_param_type(b, **b_metadata)
        self.base_module = base_module
        self.in_features = in_features
        self.lora_rank = lora_rank
        self.out_features = out_features
        self.lora_param_type = lora_param_type
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.precision = precision
        self.promote_dtype = promote_dtype

    def __call__(self, x: ArrayLike, **kwargs: Any) -> jax.Array:
        """Applies the map, and the wrapped module.

        Args:
          x: array of shape (..., in_features).
          **kwargs: passed on to the wrapped module.

        Returns:
          Array of shape (..., out_features).

        Raises:
          ArgumentError: keyword arguments, but no wrapped module.
          ShapeError: the last axis of ``x`` does not have ``in_features`` entries, or the wrapped
            module returns another shape than (..., out_features).
          DtypeError: ``x`` and parameters have no common dtype.
        """
        if kwargs and self.base_module is None:
            raise ArgumentError(
                f"{type(self).__name__} has no base_module to pass {', '.join(kwargs)} on to; "
                f"leave it out, or write {type(self).__name__}(..., base_module=module)"
            )
        base = self.base_module
        general = base if isinstance(base, LinearGeneral) and self._flattens(base) else None
        flat = x if general is None else _flattened(general, x)
        check_features(self, flat, -1, self.in_features, "in_features")
        array, a, b = promote_for(self, (flat, self.lora_a[...], self.lora_b[...]))
        product = self._product(self._product(array, a), b)
        if base is None:
            return product
        if general is not None:
            product = product.reshape((*product.shape[:-1], *general.out_features))
        outputs = base(x, **kwargs)
        if shape_of(outputs) != product.shape:
            name, kind = type(self).__name__, type(base).__name__
            raise ShapeError(
                f"{name}(in_features={self.in_features}, out_features={self.out_features}) adds "
                f"an array of shape {shape_text(product)} to what {kind} returned, of shape "
                f"{shape_text(outputs)}, for inputs of shape {shape_text(x)}; wrap a module that "
                f"maps the last axis from in_features to out_features, or a LinearGeneral of "
                f"in_features and out_features entries in all"
            )
        return _add_to(outputs, product)

    def _flattens(self, base: LinearGeneral) -> bool:
        """Returns whether a map of several axes is a matrix of this layer's sizes."""
        sizes = (math.prod(base.in_features), math.prod(base.out_features))
        return not base.batch_axis and sizes == (self.in_features, self.out_features)

    def _product(self, x: jax.Array, matrix: jax.Array) -> jax.Array:
        outputs = lax.dot_general(
            x,
            matrix,
            (((x.ndim - 1,), (0,)), ((), ())),
            precision=self.precision,
            preferred_element_type=self._sum_dtype(),
        )
        return self._summed(outputs, x.dtype)


class LoRALinear(Linear):
    """A :class:`Linear` and the map of low rank that adapts it, its ``lora``.

    The kernel and the bias have the places, and with equal seeds the values, that they have in a
    :class:`Linear`, so that its state can be loaded. Both are Params and not LoRAParams:
    differentiate with respect to :class:`LoRAParam` to leave them as they are.

    Attributes:
      kernel: Param of shape (in_features, out_features).
      bias: Param of shape (out_features,), or None if ``use_bias`` is False.
      lora: the :class:`LoRA`, without a base module.

    Args:
      in_features: size of the inputs' last axis.
      out_features: size of the outputs' last axis.
      lora_rank: size between the two matrices of ``lora``.
      lora_dtype: dtype of the low-rank product; None takes the one to which inputs and its
        parameters promote. The outputs have the dtype that the :class:`Linear`'s have.
      lora_param_dtype: dtype in which ``lora``'s parameters are stored.
      a_initializer: initializer of ``lora.lora_a``; default: He's uniform.
      b_initializer: initializer of ``lora.lora_b``; default: zeros.
      lora_param_type: the kind of Variable of both.
      lora_promote_dtype: function that casts ``(inputs, lora_a, lora_b)`` to ``lora_dtype``.
      rngs: where the parameters' keys come from (stream ``params``: the kernel's, the bias's,
        ``lora_a``'s, ``lora_b``'s).
      a_metadata: metadata of ``lora_a``.
      b_metadata: metadata of ``lora_b``.
      **kwargs: the other arguments of :class:`Linear`; its ``precision`` is ``lora``'s too.

    Raises:
      ArgumentError: a size is below 1.
      RngError: ``rngs`` is not a :class:`moduli.Rngs`.

    Example:
      >>> import jax.numpy as jnp, moduli
      >>> from moduli_layers import LoRALinear
      >>> layer = LoRALinear(3, 4, lora_rank=2, rngs=moduli.Rngs(0))
      >>> layer.kernel.shape, layer.lora.lora_a.shape
      ((3, 4), (3, 2))
      >>> layer(jnp.ones((5, 3))).shape
      (5, 4)
    """

    __module__ = "moduli_layers"

    torch_counterpart = None  # PyTorch has none, and Linear's lacks lora

    torch_names: ClassVar[tuple[TensorNames, ...]] = tuple(
        _names("lora.", base, adapter) for base, adapter in _STYLES
    )

    @checked
    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        lora_rank: int,
        lora_dtype: DTypeLike | None = None,
        lora_param_dtype: DTypeLike = jnp.float32,
        a_initializer: initializers.Initializer = _default_a_init,
        b_initializer: initializers.Initializer = initializers.zeros,
        lora_param_type: type[moduli.Variable[Any]] = LoRAParam,
        lora_promote_dtype: PromoteDtype = promote_dtype,
        rngs: moduli.Rngs,
        a_metadata: Mapping[str, Any] = _NO_METADATA,
        b_metadata: Mapping[str, Any] = _NO_METADATA,
        **kwargs: Any,
    ) -> None:
        check_positive(self, lora_rank=lora_rank)
        super().__init__(in_features, out_features, rngs=rngs, **kwargs)
        self.lora = LoRA(
            in_features,
            lora_rank,
            out_features,
            dtype=lora_dtype,
            param_dtype=lora_param_dtype,
            a_initializer=a_initializer,
            b_initializer=b_initializer,
            lora_param_type=lora_param_type,
            precision=self.precision,
            promote_dtype=lora_promote_dtype,
            rngs=rngs,
            a_metadata=a_metadata,
            b_metadata=b_metadata,
        )

    def __call__(self, inputs: ArrayLike, out_sharding: Any = None) -> jax.Array:
        """Applies the map and its adaptation.

        Args:
          inputs: array of shape (..., in_features).
          out_sharding: how the output is laid out over devices, for JAX's explicit sharding
            mode; None leaves it to the compiler.

        Returns:
          Array of shape (..., out_features).

        Raises:
          ShapeError: the inputs' last axis does not have ``in_features`` entries.
          DtypeError: inputs and parameters have no common dtype.
        """
        outputs = super().__call__(inputs, out_sharding)
        return _add_to(outputs, self.lora(inputs))


def _flattened(base: LinearGeneral, x: ArrayLike) -> jax.Array:
    """Makes one axis, the last, of those that a map contracts."""
    axes = base.contracted_axes(x)
    array = jnp.moveaxis(jnp.asarray(x), axes, range(-len(axes), 0))
    return array.reshape((*array.shape[: -len(axes)], -1))


def _add_to(outputs: jax.Array, product: jax.Array) -> jax.Array:
    """Adds an adaptation to what it adapts, whose dtype the sum keeps."""
    return outputs + product.astype(outputs.dtype)
