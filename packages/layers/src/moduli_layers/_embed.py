"""Embeddings: a vector for each integer."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

import moduli
from moduli_layers import initializers
from moduli_layers._arguments import checked
from moduli_layers._checks import check_features, check_positive, check_rngs
from moduli_layers._dtypes import PromoteDtype, Summing, promote_dtype, promote_for
from moduli_layers._initial_values import default_embedding_init, fill
from moduli_layers._laid_out import lookup_layout
from moduli_layers.counterparts import Counterpart, Tensor
from moduli_layers.errors import DtypeError

__all__ = ["Embed"]

_NO_METADATA: Mapping[str, Any] = MappingProxyType({})


class Embed(Summing):
    """A table of vectors, looked up by integers from 0 to ``num_embeddings - 1``.

    Negative integers count from the end, as everywhere in NumPy. An integer outside of the table
    cannot be an error in a compiled program: its vector is NaN, which shows.

    Attributes:
      embedding: Param of shape (num_embeddings, features).

    Args:
      num_embeddings: how many vectors there are, the size of the vocabulary.
      features: size of each vector.
      dtype: dtype of the result; None takes the parameter's.
      param_dtype: dtype in which the table is stored.
      embedding_init: initializer of the table; default: normal with variance
        ``1 / features``.
      promote_dtype: function that casts ``(embedding,)`` to ``dtype``; in :meth:`attend`,
        ``(query, embedding)``.
      rngs: where the table's key comes from (stream ``params``).
      embedding_metadata: metadata of the table's Param.

    Raises:
      ArgumentError: a size is below 1.
      RngError: ``rngs`` is not a :class:`moduli.Rngs`.

    Example:
      >>> import jax.numpy as jnp, moduli
      >>> from moduli_layers import Embed
      >>> layer = Embed(5, 3, rngs=moduli.Rngs(0))
      >>> layer(jnp.array([[0, 4], [2, 2]])).shape
      (2, 2, 3)
      >>> layer.attend(jnp.ones((2, 3))).shape  # scores of all five
      (2, 5)
    """

    __module__ = "moduli_layers"

    __value_shapes__: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "embedding": ("num_embeddings", "features"),
    }

    torch_counterpart: ClassVar[Counterpart] = Counterpart(
        "torch.nn.Embedding",
        {"weight": Tensor("embedding")},
        {"num_embeddings": "num_embeddings", "embedding_dim": "features"},
    )

    @checked
    def __init__(
        self,
        num_embeddings: int,
        features: int,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        embedding_init: initializers.Initializer = default_embedding_init,
        promote_dtype: PromoteDtype = promote_dtype,
        rngs: moduli.Rngs,
        embedding_metadata: Mapping[str, Any] = _NO_METADATA,
    ) -> None:
        check_positive(self, num_embeddings=num_embeddings, features=features)
        check_rngs(self, rngs)
        table = fill(embedding_init, rngs.params(), (num_embeddings, features), param_dtype)
        self.embedding = moduli.Param(table, **embedding_metadata)
        self.num_embeddings = num_embeddings
        self.features = features
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.promote_dtype = promote_dtype

    def __call__(self, inputs: ArrayLike, out_sharding: Any = None) -> jax.Array:
        """Looks vectors up.

        Args:
          inputs: integers, an array of any shape.
          out_sharding: how the output is laid out over devices, for JAX's explicit sharding
            mode; None leaves it to the compiler.

        Returns:
          Array of shape (..., features).

        Raises:
          DtypeError: the inputs are no integers.
        """
        inputs = jnp.asarray(inputs)
        if not jnp.issubdtype(inputs.dtype, jnp.integer):
            raise DtypeError(
                f"{type(self).__name__} looks up integers, got {inputs.dtype.name}; write "
                f"inputs.astype(jnp.int32), or attend(...) for scores of vectors"
            )
        (table,) = promote_for(self, (self.embedding[...],))
        if out_sharding is None:
            out_sharding = lookup_layout(table, inputs)
        if out_sharding is not None:
            return table.at[inputs].get(mode="fill", fill_value=jnp.nan, out_sharding=out_sharding)
        return jnp.take(table, inputs, axis=0, mode="fill", fill_value=jnp.nan)

    def attend(self, query: ArrayLike, out_sharding: Any = None) -> jax.Array:
        """Scores every vector of the table by its product with a query.

        This is the layer's transpose, often used as the last layer of a language model, with the
        parameters of the first.

        Args:
          query: array of shape (..., features).
          out_sharding: how the output is laid out over devices, for JAX's explicit sharding
            mode; None leaves it to the compiler.

        Returns:
          Array of shape (..., num_embeddings).

        Raises:
          ShapeError: the query's last axis does not have ``features`` entries.
          DtypeError: query and table have no common dtype.
        """
        check_features(self, query, -1, self.features, "features")
        q, table = promote_for(self, (query, self.embedding[...]))
        # Transposed as in flax: who replaces the weights of products (quantizers) then leaves the
        # table alone, which has to stay an array that can be looked up.
        scores = jax.lax.dot_general(
            q,
            table.T,
            (((q.ndim - 1,), (0,)), ((), ())),
            preferred_element_type=self._sum_dtype(),
            **({} if out_sharding is None else {"out_sharding": out_sharding}),
        )
        return self._summed(scores, q.dtype)
