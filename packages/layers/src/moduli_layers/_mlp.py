"""A chain of dense layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike

import moduli
from moduli_layers import initializers
from moduli_layers._activations import relu
from moduli_layers._arguments import checked
from moduli_layers._checks import check_positive, check_rngs
from moduli_layers._dropout import Dropout
from moduli_layers._dtypes import PromoteDtype, promote_dtype
from moduli_layers._initial_values import default_kernel_init
from moduli_layers._linear import Linear
from moduli_layers.errors import ArgumentError

__all__ = ["MLP"]


class MLP(moduli.Module):
    """A multilayer perceptron: Linear, norm, activation, dropout for each hidden size, then Linear.

    Attributes:
      layers: the Linears, one more than there are hidden sizes.
      norms: the norm after each of them but the last, or None.
      dropouts: the Dropout after each of them but the last, or None if ``dropout_rate`` is 0.

    Args:
      in_features: size of the inputs' last axis.
      hidden_features: sizes of the hidden layers; a number is one layer, ``()`` none.
      out_features: size of the outputs' last axis.
      activation: the function, or Module such as :class:`PReLU`, that is applied to every hidden
        layer.
      norm: makes the norm of a hidden layer, called as
        ``norm(features, dtype=dtype, param_dtype=param_dtype, rngs=rngs)``: a class such as
        :class:`LayerNorm` or :class:`BatchNorm`, or a ``functools.partial`` of one. None for none.
      dropout_rate: the probability to drop an entry of a hidden layer.
      activate_final: treat the last Linear as the others: norm, activation and dropout follow it.
      use_bias: whether the Linears have a bias.
      dtype: dtype of the computation; None takes the one to which inputs and parameters promote.
      param_dtype: dtype in which the parameters are stored.
      precision: numerical precision of the products, see :class:`jax.lax.Precision`.
      kernel_init: initializer of the kernels; default: Lecun's normal.
      bias_init: initializer of the biases; default: zeros.
      promote_dtype: function that casts ``(inputs, kernel, bias)`` to ``dtype``.
      rngs: where the parameters' keys come from (stream ``params``), and the dropout's (stream
        ``dropout``).

    Raises:
      ArgumentError: a size is below 1, ``activation`` or ``norm`` cannot be called, or
        ``dropout_rate`` is not in [0, 1].
      RngError: ``rngs`` is not a :class:`moduli.Rngs`.

    Example:
      >>> import jax.numpy as jnp, moduli
      >>> from moduli_layers import MLP, LayerNorm, gelu
      >>> rngs = moduli.Rngs(0)
      >>> model = MLP(8, (32, 16), 4, activation=gelu, norm=LayerNorm, rngs=rngs)
      >>> model(jnp.ones((5, 8))).shape
      (5, 4)
      >>> [layer.kernel.shape for layer in model.layers]
      [(8, 32), (32, 16), (16, 4)]
    """

    __module__ = "moduli_layers"

    @checked
    def __init__(
        self,
        in_features: int,
        hidden_features: int | Sequence[int],
        out_features: int,
        *,
        activation: Callable[..., Any] = relu,
        norm: Callable[..., moduli.Module] | None = None,
        dropout_rate: float = 0.0,
        activate_final: bool = False,
        use_bias: bool = True,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        kernel_init: initializers.Initializer = default_kernel_init,
        bias_init: initializers.Initializer = initializers.zeros,
        promote_dtype: PromoteDtype = promote_dtype,
        rngs: moduli.Rngs,
    ) -> None:
        single = not isinstance(hidden_features, Sequence)
        hidden = (hidden_features,) if single else tuple(hidden_features)
        sizes = (in_features, *hidden, out_features)
        check_positive(self, in_features=in_features, out_features=out_features)
        for size in hidden:
            check_positive(self, hidden_features=size)
        self._check_callable("activation", activation, "a function such as moduli.relu")
        if norm is not None:
            self._check_callable("norm", norm, "a class such as moduli.LayerNorm")
        if not 0 <= dropout_rate <= 1:
            raise ArgumentError(
                f"{type(self).__name__} got dropout_rate={dropout_rate}; write the probability to "
                f"drop an entry, in [0, 1]"
            )
        check_rngs(self, rngs)
        after = sizes[1:] if activate_final else sizes[1:-1]  # what a norm and dropout follow
        self.layers = []
        self.norms: list[Any] | None = None if norm is None else []
        for index, features in enumerate(sizes[1:]):
            self.layers.append(
                Linear(
                    sizes[index],
                    features,
                    use_bias=use_bias,
                    dtype=dtype,
                    param_dtype=param_dtype,
                    precision=precision,
                    kernel_init=kernel_init,
                    bias_init=bias_init,
                    promote_dtype=promote_dtype,
                    rngs=rngs,
                )
            )
            if norm is not None and self.norms is not None and index < len(after):
                self.norms.append(norm(features, dtype=dtype, param_dtype=param_dtype, rngs=rngs))
        self.dropouts: list[Dropout] | None = None
        if dropout_rate:
            self.dropouts = [Dropout(dropout_rate, rngs=rngs) for _ in after]
        self.activation = activation
        self.in_features = in_features
        self.hidden_features = hidden
        self.out_features = out_features
        self.dropout_rate = dropout_rate
        self.activate_final = activate_final
        self.use_bias = use_bias

    def __call__(
        self,
        inputs: ArrayLike,
        *,
        deterministic: bool | None = None,
        rngs: moduli.Rngs | moduli.RngStream | jax.Array | None = None,
    ) -> jax.Array:
        """Applies the chain.

        Args:
          inputs: array of shape (..., in_features).
          deterministic: overrides the attribute of the Dropouts for this call.
          rngs: overrides the streams of the Dropouts for this call: streams, or a stream. (A key
            would give all of them one mask: it is only taken where there is one.)

        Returns:
          Array of shape (..., out_features).

        Raises:
          ShapeError: the inputs' last axis does not have ``in_features`` entries.
          DtypeError: inputs and parameters have no common dtype.
          RngError: a key for more than one Dropout.
        """
        dropouts = self.dropouts or []
        if isinstance(rngs, jax.Array) and len(dropouts) > 1:
            raise moduli.errors.RngError(
                f"{type(self).__name__} got one key for {len(dropouts)} Dropouts, which would drop "
                f"by the same random numbers; write rngs=moduli.Rngs(key)"
            )
        x: Any = inputs
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index == last and not self.activate_final:
                return x
            if self.norms is not None:
                x = self.norms[index](x)
            x = self.activation(x)
            if dropouts:
                x = dropouts[index](x, deterministic=deterministic, rngs=rngs)
        return x

    def _check_callable(self, name: str, given: Any, remedy: str) -> None:
        if not callable(given):
            raise ArgumentError(
                f"{type(self).__name__} got {name}={given!r}, which cannot be called; write "
                f"{remedy}"
            )
