"""Layers for moduli: what each name is, and the file that holds it."""

from typing import TYPE_CHECKING

from moduli.plugins import lazy_names as _lazy_names

__version__ = "0.1.0"

if TYPE_CHECKING:
    from moduli_layers import counterparts as counterparts
    from moduli_layers import errors as errors
    from moduli_layers import initializers as initializers
    from moduli_layers._activations import celu as celu
    from moduli_layers._activations import elu as elu
    from moduli_layers._activations import gelu as gelu
    from moduli_layers._activations import glu as glu
    from moduli_layers._activations import hard_sigmoid as hard_sigmoid
    from moduli_layers._activations import hard_silu as hard_silu
    from moduli_layers._activations import hard_swish as hard_swish
    from moduli_layers._activations import hard_tanh as hard_tanh
    from moduli_layers._activations import identity as identity
    from moduli_layers._activations import leaky_relu as leaky_relu
    from moduli_layers._activations import log_sigmoid as log_sigmoid
    from moduli_layers._activations import log_softmax as log_softmax
    from moduli_layers._activations import logsumexp as logsumexp
    from moduli_layers._activations import mish as mish
    from moduli_layers._activations import one_hot as one_hot
    from moduli_layers._activations import relu as relu
    from moduli_layers._activations import relu6 as relu6
    from moduli_layers._activations import selu as selu
    from moduli_layers._activations import sigmoid as sigmoid
    from moduli_layers._activations import silu as silu
    from moduli_layers._activations import soft_sign as soft_sign
    from moduli_layers._activations import softmax as softmax
    from moduli_layers._activations import softplus as softplus
    from moduli_layers._activations import squareplus as squareplus
    from moduli_layers._activations import standardize as standardize
    from moduli_layers._activations import swish as swish
    from moduli_layers._activations import tanh as tanh
    from moduli_layers._adaptive_pooling import adaptive_avg_pool as adaptive_avg_pool
    from moduli_layers._adaptive_pooling import adaptive_max_pool as adaptive_max_pool
    from moduli_layers._adaptive_pooling import adaptive_min_pool as adaptive_min_pool
    from moduli_layers._attention import MultiHeadAttention as MultiHeadAttention
    from moduli_layers._batch_norm import BatchNorm as BatchNorm
    from moduli_layers._cells.base import RNNCellBase as RNNCellBase
    from moduli_layers._cells.gru import GRUCell as GRUCell
    from moduli_layers._cells.lstm import LSTMCell as LSTMCell
    from moduli_layers._cells.lstm import OptimizedLSTMCell as OptimizedLSTMCell
    from moduli_layers._cells.simple import SimpleCell as SimpleCell
    from moduli_layers._conv import Conv as Conv
    from moduli_layers._conv_transpose import ConvTranspose as ConvTranspose
    from moduli_layers._dot_product_attention import dot_product_attention as dot_product_attention
    from moduli_layers._dot_product_attention import (
        dot_product_attention_weights as dot_product_attention_weights,
    )
    from moduli_layers._dot_product_attention import (
        dot_product_attention_with_rope as dot_product_attention_with_rope,
    )
    from moduli_layers._dropout import Dropout as Dropout
    from moduli_layers._dtype_policy import DtypePolicy as DtypePolicy
    from moduli_layers._dtype_policy import set_dtypes as set_dtypes
    from moduli_layers._dtypes import promote_dtype as promote_dtype
    from moduli_layers._einsum import Einsum as Einsum
    from moduli_layers._embed import Embed as Embed
    from moduli_layers._group_norm import GroupNorm as GroupNorm
    from moduli_layers._group_norm import InstanceNorm as InstanceNorm
    from moduli_layers._layer_norm import LayerNorm as LayerNorm
    from moduli_layers._layer_norm import RMSNorm as RMSNorm
    from moduli_layers._linear import Linear as Linear
    from moduli_layers._linear_general import LinearGeneral as LinearGeneral
    from moduli_layers._lora import LoRA as LoRA
    from moduli_layers._lora import LoRALinear as LoRALinear
    from moduli_layers._lora import LoRAParam as LoRAParam
    from moduli_layers._masks import combine_masks as combine_masks
    from moduli_layers._masks import make_attention_mask as make_attention_mask
    from moduli_layers._masks import make_causal_mask as make_causal_mask
    from moduli_layers._masks import make_sliding_window_mask as make_sliding_window_mask
    from moduli_layers._metadata import with_metadata as with_metadata
    from moduli_layers._metadata import with_partitioning as with_partitioning
    from moduli_layers._mlp import MLP as MLP
    from moduli_layers._pooling import avg_pool as avg_pool
    from moduli_layers._pooling import max_pool as max_pool
    from moduli_layers._pooling import min_pool as min_pool
    from moduli_layers._pooling import pool as pool
    from moduli_layers._prelu import PReLU as PReLU
    from moduli_layers._recurrent import RNN as RNN
    from moduli_layers._recurrent import Bidirectional as Bidirectional
    from moduli_layers._recurrent import flip_sequences as flip_sequences
    from moduli_layers._rotary import RoPE as RoPE
    from moduli_layers._rotary import rotary_embedding as rotary_embedding
    from moduli_layers._sequential import Sequential as Sequential
    from moduli_layers._stack import Stack as Stack
    from moduli_layers._stochastic_depth import StochasticDepth as StochasticDepth
    from moduli_layers._weight_norms import SpectralNorm as SpectralNorm
    from moduli_layers._weight_norms import WeightNorm as WeightNorm
    from moduli_layers.counterparts import Tensor as Tensor
    from moduli_layers.counterparts import TensorNames as TensorNames
    from moduli_layers.initializers import Initializer as Initializer
else:  # the same names; tests/test_package_maps.py compares the two
    __getattr__, __dir__, __all__ = _lazy_names(
        __name__,
        {
            "_activations": [
                "celu",
                "elu",
                "gelu",
                "glu",
                "hard_sigmoid",
                "hard_silu",
                "hard_swish",
                "hard_tanh",
                "identity",
                "leaky_relu",
                "log_sigmoid",
                "log_softmax",
                "logsumexp",
                "mish",
                "one_hot",
                "relu",
                "relu6",
                "selu",
                "sigmoid",
                "silu",
                "soft_sign",
                "softmax",
                "softplus",
                "squareplus",
                "standardize",
                "swish",
                "tanh",
            ],
            "_adaptive_pooling": ["adaptive_avg_pool", "adaptive_max_pool", "adaptive_min_pool"],
            "_attention": ["MultiHeadAttention"],
            "_batch_norm": ["BatchNorm"],
            "_cells.base": ["RNNCellBase"],
            "_cells.gru": ["GRUCell"],
            "_cells.lstm": ["LSTMCell", "OptimizedLSTMCell"],
            "_cells.simple": ["SimpleCell"],
            "_conv": ["Conv"],
            "_conv_transpose": ["ConvTranspose"],
            "_dot_product_attention": [
                "dot_product_attention",
                "dot_product_attention_weights",
                "dot_product_attention_with_rope",
            ],
            "_dropout": ["Dropout"],
            "_dtype_policy": ["DtypePolicy", "set_dtypes"],
            "_dtypes": ["promote_dtype"],
            "_einsum": ["Einsum"],
            "_embed": ["Embed"],
            "_group_norm": ["GroupNorm", "InstanceNorm"],
            "_layer_norm": ["LayerNorm", "RMSNorm"],
            "_linear": ["Linear"],
            "_linear_general": ["LinearGeneral"],
            "_lora": ["LoRA", "LoRALinear", "LoRAParam"],
            "_masks": [
                "combine_masks",
                "make_attention_mask",
                "make_causal_mask",
                "make_sliding_window_mask",
            ],
            "_metadata": ["with_metadata", "with_partitioning"],
            "_mlp": ["MLP"],
            "_pooling": ["avg_pool", "max_pool", "min_pool", "pool"],
            "_prelu": ["PReLU"],
            "_recurrent": ["RNN", "Bidirectional", "flip_sequences"],
            "_rotary": ["RoPE", "rotary_embedding"],
            "_sequential": ["Sequential"],
            "_stack": ["Stack"],
            "_stochastic_depth": ["StochasticDepth"],
            "_weight_norms": ["SpectralNorm", "WeightNorm"],
            "counterparts": ["Tensor", "TensorNames"],
            "initializers": ["Initializer"],
        },
        submodules=["counterparts", "errors", "initializers"],
    )
