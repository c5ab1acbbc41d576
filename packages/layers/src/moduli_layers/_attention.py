"""Multi-head attention, with a cache for writing one position after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike

import moduli
from moduli.errors import RngError, ShapeError, StructureError
from moduli.lowlevel import draw_for
from moduli_layers import initializers
from moduli_layers._arguments import checked
from moduli_layers._checks import check_positive, check_rngs, resolve_mode, shape_of, shape_text
from moduli_layers._dot_product_attention import (
    dot_product_attention,
    dot_product_attention_with_rope,
)
from moduli_layers._dtypes import PromoteDtype, promote_dtype
from moduli_layers._initial_values import default_kernel_init
from moduli_layers._laid_out import laid_out_like
from moduli_layers._layer_norm import LayerNorm
from moduli_layers._linear_general import LinearGeneral
from moduli_layers._masks import check_window, combine_masks, in_window
from moduli_layers.counterparts import Counterpart, Tensor, TensorNames
from moduli_layers.errors import ArgumentError

__all__ = ["MultiHeadAttention"]

_NO_METADATA: Mapping[str, Any] = MappingProxyType({})

_TORCH = Counterpart(
    "torch.nn.MultiheadAttention",
    {
        "in_proj_weight": Tensor(
            ("query.kernel", "key.kernel", "value.kernel"), "i h d -> (h d) i"
        ),
        "in_proj_bias": Tensor(("query.bias", "key.bias", "value.bias"), "h d -> (h d)"),
        "out_proj.weight": Tensor("out.kernel", "h d o -> o (h d)"),
        "out_proj.bias": Tensor("out.bias"),
    },
    {
        "embed_dim": "in_features",
        "num_heads": "num_heads",
        "dropout": "dropout_rate",
        "bias": "use_bias",
    },
    {"batch_first": True},
    output=lambda outputs: outputs[0],
)


class MultiHeadAttention(moduli.Module):
    """Attention of several heads, each with its own projections of queries, keys and values.

    Attributes:
      query: LinearGeneral to ``(num_heads, head_dim)``, with ``head_dim = qkv_features //
        num_heads``.
      key: LinearGeneral to ``(num_kv_heads, head_dim)``.
      value: LinearGeneral to ``(num_kv_heads, head_dim)``.
      query_ln: LayerNorm of each head's queries, or None; see ``normalize_qk``.
      key_ln: LayerNorm of each head's keys, or None.
      out: LinearGeneral from the heads to ``out_features``.
      cached_key: Cache of shape ``(*batch, length, num_kv_heads, head_dim)``, after
        :meth:`init_cache`; None before.
      cached_value: as ``cached_key``.
      cache_index: Cache, how many positions are in it.

    Args:
      num_heads: number of heads; it divides ``qkv_features``.
      in_features: size of the last axis of the inputs for queries.
      qkv_features: total size of the heads' queries; ``in_features`` by default.
      out_features: size of the last axis of the outputs, or sizes of as many axes;
        ``in_features`` by default.
      num_kv_heads: number of heads of keys and values; it divides ``num_heads``, and each is shared
        by ``num_heads // num_kv_heads`` queries (grouped-query attention; 1 is multi-query).
        ``num_heads`` by default.
      in_kv_features: size of the last axis of the inputs for keys and values; ``in_features`` by
        default.
      dtype: dtype of the computation; None takes the one to which inputs and parameters promote.
      param_dtype: dtype in which the parameters are stored.
      broadcast_dropout: drop the same attention weights for all of the batch and all heads.
      dropout_rate: the probability to drop an attention weight.
      deterministic: True drops nothing, False drops, None asks each call to say; ``train()`` and
        ``eval()`` set it.
      precision: numerical precision, see :class:`jax.lax.Precision`.
      kernel_init: initializer of the kernels; default: Lecun's normal.
      out_kernel_init: initializer of the last kernel; ``kernel_init`` by default.
      bias_init: initializer of the biases; default: zeros.
      out_bias_init: initializer of the last bias; ``bias_init`` by default.
      use_bias: whether the four maps have biases.
      attention_fn: what computes attention from queries, keys and values, with the signature of
        :func:`dot_product_attention`.
      decode: whether calls go on where the cache ends, see :meth:`init_cache`; None asks each call
        to say.
      normalize_qk: normalise each head's queries and keys by a LayerNorm without bias.
      qkv_promote_dtype: function that casts the three maps' inputs and parameters to ``dtype``.
      out_promote_dtype: the same of the last map.
      ln_promote_dtype: the same of the LayerNorms.
      qkv_dot_general: what multiplies in the three maps.
      out_dot_general: what multiplies in the last.
      qkv_dot_general_cls: what makes ``qkv_dot_general``.
      out_dot_general_cls: what makes ``out_dot_general``.
      rotary: function of (array, positions) that is applied to queries and keys of shape
        ``(*batch, length, heads, head_dim)``, such as :func:`rotary_embedding`.
      window: each position sees only so many positions, itself included: backwards where the call
        is causal or decodes, otherwise to both sides.
      rngs: where the parameters' keys come from (stream ``params``), and those of dropout.
      keep_rngs: keep a fork of the stream ``dropout``, if anything is to be dropped; otherwise each
        call brings its own.
      kernel_metadata: metadata of the three kernels.
      out_kernel_metadata: metadata of the last kernel.
      bias_metadata: metadata of the three biases.
      out_bias_metadata: metadata of the last bias.
      query_ln_scale_metadata: metadata of the scale of ``query_ln``.
      key_ln_scale_metadata: metadata of the scale of ``key_ln``.

    Raises:
      ArgumentError: a size is below 1, or the heads do not divide the features.
      RngError: ``rngs`` is not a :class:`moduli.Rngs`.

    Example:
      >>> import jax.numpy as jnp, moduli
      >>> from moduli_layers import MultiHeadAttention
      >>> layer = MultiHeadAttention(4, 16, decode=False, rngs=moduli.Rngs(0))
      >>> layer(jnp.ones((2, 7, 16)), is_causal=True).shape  # self-attention
      (2, 7, 16)
      >>> layer(jnp.ones((2, 7, 16)), jnp.ones((2, 9, 16))).shape  # cross-attention
      (2, 7, 16)

    Reference:
      Vaswani et al., Attention Is All You Need, 2017, https://arxiv.org/abs/1706.03762
    """

    __module__ = "moduli_layers"

    @checked
    def __init__(
        self,
        num_heads: int,
        in_features: int,
        qkv_features: int | None = None,
        out_features: int | Sequence[int] | None = None,
        num_kv_heads: int | None = None,
        in_kv_features: int | None = None,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        broadcast_dropout: bool = True,
        dropout_rate: float = 0.0,
        deterministic: bool | None = None,
        precision: lax.PrecisionLike = None,
        kernel_init: initializers.Initializer = default_kernel_init,
        out_kernel_init: initializers.Initializer | None = None,
        bias_init: initializers.Initializer = initializers.zeros,
        out_bias_init: initializers.Initializer | None = None,
        use_bias: bool = True,
        attention_fn: Callable[..., jax.Array] = dot_product_attention,
        decode: bool | None = None,
        normalize_qk: bool = False,
        qkv_promote_dtype: PromoteDtype = promote_dtype,
        out_promote_dtype: PromoteDtype = promote_dtype,
        ln_promote_dtype: PromoteDtype = promote_dtype,
        qkv_dot_general: Callable[..., jax.Array] | None = None,
        out_dot_general: Callable[..., jax.Array] | None = None,
        qkv_dot_general_cls: Callable[[], Callable[..., jax.Array]] | None = None,
        out_dot_general_cls: Callable[[], Callable[..., jax.Array]] | None = None,
        rotary: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
        window: int | None = None,
        rngs: moduli.Rngs,
        keep_rngs: bool = True,
        kernel_metadata: Mapping[str, Any] = _NO_METADATA,
        out_kernel_metadata: Mapping[str, Any] = _NO_METADATA,
        bias_metadata: Mapping[str, Any] = _NO_METADATA,
        out_bias_metadata: Mapping[str, Any] = _NO_METADATA,
        query_ln_scale_metadata: Mapping[str, Any] = _NO_METADATA,
        key_ln_scale_metadata: Mapping[str, Any] = _NO_METADATA,
    ) -> None:
        self.num_heads = num_heads
        self.in_features = in_features
        self.qkv_features = in_features if qkv_features is None else qkv_features
        self.out_features = in_features if out_features is None else out_features
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.in_kv_features = in_features if in_kv_features is None else in_kv_features
        for name in (
            "num_heads",
            "in_features",
            "qkv_features",
            "num_kv_heads",
            "in_kv_features",
        ):
            check_positive(self, **{name: getattr(self, name)})
        out = self.out_features
        for size in out if isinstance(out, Sequence) else (out,):
            check_positive(self, out_features=size)
        check_rngs(self, rngs)
        kind = type(self).__name__
        if self.qkv_features % num_heads:
            raise ArgumentError(
                f"{kind} got num_heads={num_heads} and qkv_features={self.qkv_features}, which "
                f"it does not divide; write a multiple of num_heads as qkv_features"
            )
        if num_heads % self.num_kv_heads:
            raise ArgumentError(
                f"{kind} got num_heads={num_heads} and num_kv_heads={self.num_kv_heads}, which "
                f"does not divide it; write a divisor of num_heads"
            )
        if window is not None:
            check_window(kind, window)
        self.head_dim = self.qkv_features // num_heads
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.broadcast_dropout = broadcast_dropout
        self.dropout_rate = float(dropout_rate)
        self.deterministic = deterministic
        self.precision = precision
        self.use_bias = use_bias
        self.attention_fn = attention_fn
        self.decode = decode
        self.normalize_qk = normalize_qk
        self.rotary = rotary
        self.window = window

        def linear(inputs: int, heads: int) -> LinearGeneral:
            return LinearGeneral(
                inputs,
                (heads, self.head_dim),
                use_bias=use_bias,
                dtype=dtype,
                param_dtype=param_dtype,
                kernel_init=kernel_init,
                bias_init=bias_init,
                precision=precision,
                promote_dtype=qkv_promote_dtype,
                dot_general=qkv_dot_general,
                dot_general_cls=qkv_dot_general_cls,
                rngs=rngs,
                kernel_metadata=kernel_metadata,
                bias_metadata=bias_metadata,
            )

        self.query = linear(in_features, num_heads)
        self.key = linear(self.in_kv_features, self.num_kv_heads)
        self.value = linear(self.in_kv_features, self.num_kv_heads)
        self.query_ln, self.key_ln = None, None
        if normalize_qk:

            def norm(metadata: Mapping[str, Any]) -> LayerNorm:
                return LayerNorm(
                    self.head_dim,
                    use_bias=False,
                    dtype=dtype,
                    param_dtype=param_dtype,
                    promote_dtype=ln_promote_dtype,
                    rngs=rngs,
                    scale_metadata=metadata,
                )

            self.query_ln = norm(query_ln_scale_metadata)
            self.key_ln = norm(key_ln_scale_metadata)
        self.out = LinearGeneral(
            (num_heads, self.head_dim),
            self.out_features,
            axis=(-2, -1),
            use_bias=use_bias,
            dtype=dtype,
            param_dtype=param_dtype,
            kernel_init=kernel_init if out_kernel_init is None else out_kernel_init,
            bias_init=bias_init if out_bias_init is None else out_bias_init,
            precision=precision,
            promote_dtype=out_promote_dtype,
            dot_general=out_dot_general,
            dot_general_cls=out_dot_general_cls,
            rngs=rngs,
            kernel_metadata=out_kernel_metadata,
            bias_metadata=out_bias_metadata,
        )
        self.rngs = rngs.dropout.fork() if keep_rngs and self.dropout_rate > 0 else None
        self.cached_key: moduli.Cache[Any] | None = None
        self.cached_value: moduli.Cache[Any] | None = None
        self.cache_index: moduli.Cache[Any] | None = None

    @property
    def torch_names(self) -> tuple[TensorNames, ...]:
        """Those of PyTorch's layer where it has one like this, and those of each part."""
        parts = TensorNames()
        return (parts,) if self.torch_counterpart is None else (TensorNames(_TORCH.tensors), parts)

    @property
    def torch_counterpart(self) -> Counterpart | None:
        """PyTorch's layer that computes the same; None if it has none."""
        same = self.qkv_features == self.out_features == self.in_kv_features == self.in_features
        beyond = self.num_kv_heads != self.num_heads or self.rotary or self.window
        return _TORCH if same and not beyond and not self.normalize_qk else None

    def __call__(
        self,
        inputs_q: ArrayLike,
        inputs_k: ArrayLike | None = None,
        inputs_v: ArrayLike | None = None,
        *,
        mask: ArrayLike | None = None,
        deterministic: bool | None = None,
        rngs: moduli.Rngs | moduli.RngStream | None = None,
        sow_weights: bool = False,
        decode: bool | None = None,
        is_causal: bool = False,
        out_sharding: Any = None,
        qkv_sharding: Any = None,
        input_positions: ArrayLike | None = None,
    ) -> jax.Array:
        """Attends.

        Args:
          inputs_q: array of shape ``(*batch, queries, in_features)``.
          inputs_k: array of shape ``(*batch, keys, in_kv_features)``; ``inputs_q`` by default.
          inputs_v: as ``inputs_k``, which is the default.
          mask: where it is zero (False) a key is not seen; broadcasts to
            ``(*batch, heads, queries, keys)``.
          deterministic: overrides the layer's attribute for this call.
          rngs: overrides the layer's stream for this call.
          sow_weights: sow the attention weights as an ``Intermediate`` named
            ``attention_weights``.
          decode: overrides the layer's attribute for this call. A call that decodes appends its
            keys and values to the cache, and its queries see all of the cache up to themselves.
          is_causal: each query sees only keys up to its own place.
          out_sharding: how the output is laid out over devices, for JAX's explicit sharding
            mode; None leaves it to the compiler.
          qkv_sharding: the same for queries, keys and values.
          input_positions: where queries and keys stand, of shape (length,) or ``(*batch, length)``,
            for ``rotary`` or for an ``attention_fn`` such as
            :func:`dot_product_attention_with_rope`; None counts from 0.

        Returns:
          Array of shape ``(*batch, queries, out_features)``.

        Raises:
          ShapeError: an input does not have the features or the shape that is expected.
          StructureError: decoding without a cache, or with a full one (known only outside of jit).
          ArgumentError: neither the call nor the layer says whether to decode, or to drop; or
            positions are given that nothing uses, or that the cache knows.
          RngError: weights are to be dropped, and there is no stream to draw from.
        """
        kind = type(self).__name__
        if inputs_k is None:
            if inputs_v is not None:
                raise ArgumentError(f"{kind} got inputs_v without inputs_k; write both")
            inputs_k = inputs_q
        inputs_v = inputs_k if inputs_v is None else inputs_v
        self._check_inputs(inputs_q=inputs_q, inputs_k=inputs_k, inputs_v=inputs_v)
        decode = self._decodes(decode)

        query = self.query(inputs_q, out_sharding=qkv_sharding)
        key = self.key(inputs_k, out_sharding=qkv_sharding)
        value = self.value(inputs_v, out_sharding=qkv_sharding)
        if self.query_ln is not None and self.key_ln is not None:
            query, key = self.query_ln(query), self.key_ln(key)
        start = self._room_in_cache(key) if decode else 0
        query_places = start + jnp.arange(query.shape[-3], dtype=jnp.int32)
        key_places = start + jnp.arange(key.shape[-3], dtype=jnp.int32)
        positions = self._positions(input_positions, query, key, decode)
        if self.rotary is not None:
            places = (query_places, key_places) if positions is None else (positions, positions)
            query, key = self.rotary(query, places[0]), self.rotary(key, places[1])
            positions = None
        if decode:
            key, value = self._remember(key, value, start)
            key_places = jnp.arange(key.shape[-3], dtype=jnp.int32)
            mask = self._limited(mask, query, query_places, key_places, causal=True)
            is_causal = False
        elif self.window is not None:
            mask = self._limited(mask, query, query_places, key_places, causal=is_causal)

        drops = self.dropout_rate > 0 and not resolve_mode(self, "deterministic", deterministic)
        x = self.attention_fn(
            query,
            key,
            value,
            mask=mask,
            dropout_rng=self._dropout_key(rngs, query) if drops else None,
            dropout_rate=self.dropout_rate,
            broadcast_dropout=self.broadcast_dropout,
            deterministic=not drops,
            dtype=self.dtype,
            precision=self.precision,
            module=self if sow_weights else None,
            is_causal=is_causal,
            **({} if positions is None else {"input_positions": positions}),
        )
        return self.out(x, out_sharding=out_sharding)

    def set_view(
        self,
        deterministic: bool | None = None,
        decode: bool | None = None,
        batch_size: int | Sequence[int] | None = None,
        max_length: int | None = None,
    ) -> None:
        """Sets modes, for :func:`moduli.view`; None leaves one.

        Args:
          deterministic: whether nothing is dropped.
          decode: whether calls get one position after the other; see :meth:`init_cache`.
          batch_size: with ``decode``, the batch axes of the cache, if there is none yet.
          max_length: the length of that cache.

        Raises:
          ArgumentError: one of the last two is given without the other.
        """
        if deterministic is not None:
            self.deterministic = deterministic
        if decode is None:
            return
        if self.cached_key is None and (batch_size is not None or max_length is not None):
            if batch_size is None or max_length is None:
                missing = "batch_size" if batch_size is None else "max_length"
                raise ArgumentError(f"a cache needs {missing}= too: set_view got the other alone")
            batch = (batch_size,) if isinstance(batch_size, int) else tuple(batch_size)
            self.init_cache((*batch, max_length, self.in_features), self.dtype or jnp.float32)
        self.decode = decode

    def init_cache(self, input_shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> None:
        """Makes an empty cache, or empties it.

        With it and ``decode=True``, calls with one position after the other (or with a piece of any
        length first) give what one causal call with all of them gives.

        Args:
          input_shape: shape of the inputs of that one call, ``(*batch, length, in_features)``.
          dtype: dtype of the cached keys and values.

        Example:
          >>> import jax.numpy as jnp, moduli
          >>> from moduli_layers import MultiHeadAttention
          >>> layer = MultiHeadAttention(2, 4, rngs=moduli.Rngs(0))
          >>> x = jnp.arange(12.0).reshape(1, 3, 4)
          >>> layer.init_cache(x.shape)
          >>> steps = [layer(x[:, i : i + 1], decode=True) for i in range(3)]
          >>> whole = layer(x, decode=False, is_causal=True)
          >>> bool(jnp.allclose(jnp.concatenate(steps, axis=1), whole, atol=1e-5))
          True
        """
        shape = (*input_shape[:-1], self.num_kv_heads, self.head_dim)
        self.cached_key = moduli.Cache(jnp.zeros(shape, dtype))
        self.cached_value = moduli.Cache(jnp.zeros(shape, dtype))
        self.cache_index = moduli.Cache(jnp.array(0, jnp.int32))

    # -- what the call is made of ----------------------------------------------------------------

    def _check_inputs(self, **inputs: ArrayLike) -> None:
        expected = {"inputs_q": ("in_features", self.in_features)}
        for name, array in inputs.items():
            argument, size = expected.get(name, ("in_kv_features", self.in_kv_features))
            shape = shape_of(array)
            if len(shape) < 2 or shape[-1] != size:
                raise ShapeError(
                    f"{type(self).__name__}({argument}={size}) expects {name} of shape (*batch, "
                    f"length, {size}), got shape {shape_text(array)}; build the layer with "
                    f"{argument}={shape[-1] if shape else 1}, or give inputs of that size"
                )

    def _positions(
        self, given: ArrayLike | None, query: jax.Array, key: jax.Array, decode: bool
    ) -> jax.Array | None:
        """Returns the positions that the call was given, if they can be used."""
        kind = type(self).__name__
        turns = getattr(self.attention_fn, "func", self.attention_fn)
        if decode and turns is dot_product_attention_with_rope:
            raise ArgumentError(
                f"{kind} cannot decode with attention_fn=dot_product_attention_with_rope, which "
                f"does not know where the cache ends; write {kind}(..., rotary=rotary_embedding)"
            )
        if given is None:
            return None
        if decode:
            raise ArgumentError(
                f"{kind} got input_positions in a call that decodes, where positions go on from "
                "the cache; leave them out"
            )
        if self.rotary is None and turns is dot_product_attention:
            raise ArgumentError(
                f"{kind} got input_positions, and nothing in it uses positions; build it with "
                "rotary=rotary_embedding, or leave them out"
            )
        positions = jnp.asarray(given)
        lengths = (query.shape[-3], key.shape[-3])
        if positions.shape[-1:] != (lengths[0],) or lengths[0] != lengths[1]:
            raise ShapeError(
                f"{kind} expects input_positions of one length for queries and keys, got shape "
                f"{shape_text(positions)} for {lengths[0]} queries and {lengths[1]} keys"
            )
        return positions

    def _decodes(self, given: bool | None) -> bool:
        if given is None:
            given = self.decode
        if given is None:
            kind = type(self).__name__
            raise ArgumentError(
                f"{kind} does not know whether to decode, because decode is None in the layer and "
                f"in the call; write {kind}(..., decode=False), or pass decode=... to the call"
            )
        return given

    def _room_in_cache(self, key: jax.Array) -> Any:
        """Returns where the cache ends, and raises if the new keys do not fit in."""
        kind = type(self).__name__
        if self.cached_key is None or self.cache_index is None:
            raise StructureError(
                f"{kind} has to decode and has no cache; write layer.init_cache(input_shape) "
                f"before, with the shape (*batch, longest text, {self.in_features})"
            )
        cached, new = self.cached_key.shape, key.shape
        if cached[:-3] != new[:-3] or cached[-2:] != new[-2:]:
            raise ShapeError(
                f"{kind} got keys of shape {new}, but its cache is for (*batch, positions, heads, "
                f"features) = {cached}; write layer.init_cache(...) for this batch"
            )
        start = self.cache_index[...]
        known = start if not isinstance(start, jax.core.Tracer) else 0
        if int(known) + new[-3] > cached[-3]:
            raise StructureError(
                f"{kind} has {int(known)} positions in its cache of {cached[-3]} and got "
                f"{new[-3]} more; write layer.init_cache(...) with a longer text, or to begin anew"
            )
        return start

    def _remember(self, key: jax.Array, value: jax.Array, start: Any) -> tuple[Any, Any]:
        """Appends to the cache; returns all of its keys and values."""
        for cache, new in ((self.cached_key, key), (self.cached_value, value)):
            assert cache is not None
            old = cache[...]
            zero = jnp.zeros((), start.dtype)  # one dtype for all, with 64 bits enabled too
            place = (*[zero] * (old.ndim - 3), start, zero, zero)
            old = laid_out_like(old, new)
            cache.value = lax.dynamic_update_slice(old, new.astype(old.dtype), place)
        assert self.cached_key is not None
        assert self.cached_value is not None
        assert self.cache_index is not None
        self.cache_index.value = start + jnp.asarray(key.shape[-3], start.dtype)
        return self.cached_key[...].astype(key.dtype), self.cached_value[...].astype(value.dtype)

    def _limited(
        self, mask: Any, query: jax.Array, queries: jax.Array, keys: jax.Array, *, causal: bool
    ) -> jax.Array | None:
        """Combines the caller's mask with the layer's: the past alone, and the window."""
        own = None
        if causal:
            own = queries[:, None] >= keys[None]
        if self.window is not None:
            near = in_window(queries[:, None], keys[None], window=self.window, causal=causal)
            own = near if own is None else own & near
        if own is None or mask is None:
            return own if mask is None else mask
        rank = max(len(shape_of(mask)), 2)
        mask = jnp.reshape(mask, (*[1] * (rank - len(shape_of(mask))), *shape_of(mask)))
        return combine_masks(mask, own.reshape((*[1] * (rank - 2), *own.shape)), dtype=jnp.bool_)

    def _dropout_key(self, rngs: Any, query: jax.Array) -> jax.Array:
        source = self.rngs if rngs is None else rngs
        if isinstance(source, moduli.Rngs):
            return draw_for(source.dropout, query)
        if isinstance(source, moduli.RngStream):
            return draw_for(source, query)
        kind = type(self).__name__
        got = "no rngs" if source is None else f"rngs of type {type(source).__name__}"
        raise RngError(
            f"{kind}(dropout_rate={self.dropout_rate}) has to drop weights and got {got}; write "
            f"{kind}(..., rngs=moduli.Rngs(0)) with keep_rngs=True, or pass rngs=... to the call, "
            f"or model.eval() to drop nothing"
        )
