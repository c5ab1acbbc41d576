"""The names that moduli's own extension packages add to ``moduli``.

Written by tools/sync_names.py from the packages' entry points; do not edit. Type checkers read the
imports; the table tells which package to install for a name that is missing.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import types as _types

    from moduli_layers import BatchNorm as BatchNorm
    from moduli_layers import Bidirectional as Bidirectional
    from moduli_layers import Conv as Conv
    from moduli_layers import ConvTranspose as ConvTranspose
    from moduli_layers import Dropout as Dropout
    from moduli_layers import DtypePolicy as DtypePolicy
    from moduli_layers import Einsum as Einsum
    from moduli_layers import Embed as Embed
    from moduli_layers import GRUCell as GRUCell
    from moduli_layers import GroupNorm as GroupNorm
    from moduli_layers import Initializer as Initializer
    from moduli_layers import InstanceNorm as InstanceNorm
    from moduli_layers import LSTMCell as LSTMCell
    from moduli_layers import LayerNorm as LayerNorm
    from moduli_layers import Linear as Linear
    from moduli_layers import LinearGeneral as LinearGeneral
    from moduli_layers import LoRA as LoRA
    from moduli_layers import LoRALinear as LoRALinear
    from moduli_layers import LoRAParam as LoRAParam
    from moduli_layers import MLP as MLP
    from moduli_layers import MultiHeadAttention as MultiHeadAttention
    from moduli_layers import OptimizedLSTMCell as OptimizedLSTMCell
    from moduli_layers import PReLU as PReLU
    from moduli_layers import RMSNorm as RMSNorm
    from moduli_layers import RNN as RNN
    from moduli_layers import RNNCellBase as RNNCellBase
    from moduli_layers import RoPE as RoPE
    from moduli_layers import Sequential as Sequential
    from moduli_layers import SimpleCell as SimpleCell
    from moduli_layers import SpectralNorm as SpectralNorm
    from moduli_layers import Stack as Stack
    from moduli_layers import StochasticDepth as StochasticDepth
    from moduli_layers import Tensor as Tensor
    from moduli_layers import TensorNames as TensorNames
    from moduli_layers import WeightNorm as WeightNorm
    from moduli_layers import adaptive_avg_pool as adaptive_avg_pool
    from moduli_layers import adaptive_max_pool as adaptive_max_pool
    from moduli_layers import adaptive_min_pool as adaptive_min_pool
    from moduli_layers import avg_pool as avg_pool
    from moduli_layers import celu as celu
    from moduli_layers import combine_masks as combine_masks
    from moduli_layers import counterparts as counterparts
    from moduli_layers import dot_product_attention as dot_product_attention
    from moduli_layers import dot_product_attention_weights as dot_product_attention_weights
    from moduli_layers import dot_product_attention_with_rope as dot_product_attention_with_rope
    from moduli_layers import elu as elu
    from moduli_layers import flip_sequences as flip_sequences
    from moduli_layers import gelu as gelu
    from moduli_layers import glu as glu
    from moduli_layers import hard_sigmoid as hard_sigmoid
    from moduli_layers import hard_silu as hard_silu
    from moduli_layers import hard_swish as hard_swish
    from moduli_layers import hard_tanh as hard_tanh
    from moduli_layers import identity as identity
    from moduli_layers import initializers as initializers
    from moduli_layers import leaky_relu as leaky_relu
    from moduli_layers import log_sigmoid as log_sigmoid
    from moduli_layers import log_softmax as log_softmax
    from moduli_layers import logsumexp as logsumexp
    from moduli_layers import make_attention_mask as make_attention_mask
    from moduli_layers import make_causal_mask as make_causal_mask
    from moduli_layers import make_sliding_window_mask as make_sliding_window_mask
    from moduli_layers import max_pool as max_pool
    from moduli_layers import min_pool as min_pool
    from moduli_layers import mish as mish
    from moduli_layers import one_hot as one_hot
    from moduli_layers import pool as pool
    from moduli_layers import promote_dtype as promote_dtype
    from moduli_layers import relu as relu
    from moduli_layers import relu6 as relu6
    from moduli_layers import rotary_embedding as rotary_embedding
    from moduli_layers import selu as selu
    from moduli_layers import set_dtypes as set_dtypes
    from moduli_layers import sigmoid as sigmoid
    from moduli_layers import silu as silu
    from moduli_layers import soft_sign as soft_sign
    from moduli_layers import softmax as softmax
    from moduli_layers import softplus as softplus
    from moduli_layers import squareplus as squareplus
    from moduli_layers import standardize as standardize
    from moduli_layers import swish as swish
    from moduli_layers import tanh as tanh
    from moduli_layers import with_metadata as with_metadata
    from moduli_layers import with_partitioning as with_partitioning
    from moduli_debug import ModuleProfile as ModuleProfile
    from moduli_debug import Profile as Profile
    from moduli_debug import TrainingReport as TrainingReport
    from moduli_debug import capture as capture
    from moduli_debug import capture_grads as capture_grads
    from moduli_debug import check_finite as check_finite
    from moduli_debug import display as display
    from moduli_debug import intervene as intervene
    from moduli_debug import intervening as intervening
    from moduli_debug import named_scopes as named_scopes
    from moduli_debug import profile as profile
    from moduli_debug import reducers as reducers
    from moduli_debug import tabulate as tabulate
    from moduli_train import Batches as Batches
    from moduli_train import EMA as EMA
    from moduli_train import LossScale as LossScale
    from moduli_train import Metric as Metric
    from moduli_train import MetricState as MetricState
    from moduli_train import ModelAndOptimizer as ModelAndOptimizer
    from moduli_train import MultiMetric as MultiMetric
    from moduli_train import OptArray as OptArray
    from moduli_train import OptState as OptState
    from moduli_train import OptVariable as OptVariable
    from moduli_train import Optimizer as Optimizer
    from moduli_train import Run as Run
    from moduli_train import TrainState as TrainState
    from moduli_train import accumulate as accumulate
    from moduli_train import fit as fit
    from moduli_train import metrics as metrics
    from moduli_train import of_model as of_model
    from moduli_interop import BridgeError as BridgeError
    from moduli_interop import CheckpointError as CheckpointError
    from moduli_interop import CheckpointManager as CheckpointManager
    from moduli_interop._flax.graph_state import GraphState as GraphState
    from moduli_interop import LoadReport as LoadReport
    from moduli_interop._flax.deprecations import M as M
    from moduli_interop._flax.contexts import MergeContext as MergeContext
    from moduli_interop import NameMap as NameMap
    from moduli_interop import NameMapError as NameMapError
    from moduli_interop._flax.graph_state import PureState as PureState
    from moduli_interop._flax.contexts import SplitContext as SplitContext
    from moduli_interop._flax.contexts import UpdateContext as UpdateContext
    from moduli_interop._flax.deprecations import VariableState as VariableState
    from moduli_interop import WeightsMismatchError as WeightsMismatchError
    from moduli_interop._flax.deprecations import as_abstract as as_abstract
    from moduli_interop import as_flax as as_flax
    bridge: _types.ModuleType
    from moduli_interop._flax.proxies import call as call
    from moduli_interop._flax.checks import check_pytree as check_pytree
    compat: _types.ModuleType
    from moduli_interop._flax.contexts import current_update_context as current_update_context
    deprecations: _types.ModuleType
    from moduli_interop import export as export
    extract: _types.ModuleType
    from moduli_interop import from_equinox as from_equinox
    from moduli_interop import from_flax as from_flax
    from moduli_interop import from_haiku as from_haiku
    from moduli_interop import from_torch as from_torch
    graph: _types.ModuleType
    graphlib: _types.ModuleType
    from moduli_interop._flax.checks import has_data as has_data
    helpers: _types.ModuleType
    from moduli_interop import inspect_checkpoint as inspect_checkpoint
    from moduli_interop import load as load
    from moduli_interop import load_state as load_state
    from moduli_interop import load_weights as load_weights
    from moduli_interop._flax.contexts import merge_context as merge_context
    module: _types.ModuleType
    nn: _types.ModuleType
    object: _types.ModuleType
    optimizer: _types.ModuleType
    proxy_caller: _types.ModuleType
    from moduli_interop._flax.deprecations import pure as pure
    pytreelib: _types.ModuleType
    from moduli_interop import read_tensors as read_tensors
    reprlib: _types.ModuleType
    rnglib: _types.ModuleType
    from moduli_interop import save as save
    from moduli_interop import save_weights as save_weights
    from moduli_interop._flax.contexts import split_context as split_context
    spmd: _types.ModuleType
    statelib: _types.ModuleType
    from moduli_interop import suggest_names as suggest_names
    summary: _types.ModuleType
    from moduli_interop import to_equinox as to_equinox
    from moduli_interop import to_flax as to_flax
    from moduli_interop import to_haiku as to_haiku
    from moduli_interop import to_torch as to_torch
    tracers: _types.ModuleType
    training: _types.ModuleType
    from moduli_interop._flax.metadata import transform_metadata as transform_metadata
    transforms: _types.ModuleType
    traversals: _types.ModuleType
    from moduli_interop._flax.graph_state import unpack as unpack
    from moduli_interop._flax.contexts import update_context as update_context
    from moduli_interop._flax.refs import var_defaults as var_defaults
    variablelib: _types.ModuleType
    from moduli_interop._flax.refs import vars_as as vars_as
    from moduli_interop import verify_checkpoint as verify_checkpoint
    from moduli_interop._flax.views import view_info as view_info
    visualization: _types.ModuleType
    from moduli_interop._flax.refs import with_vars as with_vars
    wrappers: _types.ModuleType

PROVIDED: dict[str, tuple[str, ...]] = {
    "layers": (
        "BatchNorm",
        "Bidirectional",
        "Conv",
        "ConvTranspose",
        "Dropout",
        "DtypePolicy",
        "Einsum",
        "Embed",
        "GRUCell",
        "GroupNorm",
        "Initializer",
        "InstanceNorm",
        "LSTMCell",
        "LayerNorm",
        "Linear",
        "LinearGeneral",
        "LoRA",
        "LoRALinear",
        "LoRAParam",
        "MLP",
        "MultiHeadAttention",
        "OptimizedLSTMCell",
        "PReLU",
        "RMSNorm",
        "RNN",
        "RNNCellBase",
        "RoPE",
        "Sequential",
        "SimpleCell",
        "SpectralNorm",
        "Stack",
        "StochasticDepth",
        "Tensor",
        "TensorNames",
        "WeightNorm",
        "adaptive_avg_pool",
        "adaptive_max_pool",
        "adaptive_min_pool",
        "avg_pool",
        "celu",
        "combine_masks",
        "counterparts",
        "dot_product_attention",
        "dot_product_attention_weights",
        "dot_product_attention_with_rope",
        "elu",
        "flip_sequences",
        "gelu",
        "glu",
        "hard_sigmoid",
        "hard_silu",
        "hard_swish",
        "hard_tanh",
        "identity",
        "initializers",
        "leaky_relu",
        "log_sigmoid",
        "log_softmax",
        "logsumexp",
        "make_attention_mask",
        "make_causal_mask",
        "make_sliding_window_mask",
        "max_pool",
        "min_pool",
        "mish",
        "one_hot",
        "pool",
        "promote_dtype",
        "relu",
        "relu6",
        "rotary_embedding",
        "selu",
        "set_dtypes",
        "sigmoid",
        "silu",
        "soft_sign",
        "softmax",
        "softplus",
        "squareplus",
        "standardize",
        "swish",
        "tanh",
        "with_metadata",
        "with_partitioning",
    ),
    "debug": (
        "ModuleProfile",
        "Profile",
        "TrainingReport",
        "capture",
        "capture_grads",
        "check_finite",
        "display",
        "intervene",
        "intervening",
        "named_scopes",
        "profile",
        "reducers",
        "tabulate",
    ),
    "train": (
        "Batches",
        "EMA",
        "LossScale",
        "Metric",
        "MetricState",
        "ModelAndOptimizer",
        "MultiMetric",
        "OptArray",
        "OptState",
        "OptVariable",
        "Optimizer",
        "Run",
        "TrainState",
        "accumulate",
        "fit",
        "metrics",
        "of_model",
    ),
    "interop": (
        "BridgeError",
        "CheckpointError",
        "CheckpointManager",
        "GraphState",
        "LoadReport",
        "M",
        "MergeContext",
        "NameMap",
        "NameMapError",
        "PureState",
        "SplitContext",
        "UpdateContext",
        "VariableState",
        "WeightsMismatchError",
        "as_abstract",
        "as_flax",
        "bridge",
        "call",
        "check_pytree",
        "compat",
        "current_update_context",
        "deprecations",
        "export",
        "extract",
        "from_equinox",
        "from_flax",
        "from_haiku",
        "from_torch",
        "graph",
        "graphlib",
        "has_data",
        "helpers",
        "inspect_checkpoint",
        "load",
        "load_state",
        "load_weights",
        "merge_context",
        "module",
        "nn",
        "object",
        "optimizer",
        "proxy_caller",
        "pure",
        "pytreelib",
        "read_tensors",
        "reprlib",
        "rnglib",
        "save",
        "save_weights",
        "split_context",
        "spmd",
        "statelib",
        "suggest_names",
        "summary",
        "to_equinox",
        "to_flax",
        "to_haiku",
        "to_torch",
        "tracers",
        "training",
        "transform_metadata",
        "transforms",
        "traversals",
        "unpack",
        "update_context",
        "var_defaults",
        "variablelib",
        "vars_as",
        "verify_checkpoint",
        "view_info",
        "visualization",
        "with_vars",
        "wrappers",
    ),
}
