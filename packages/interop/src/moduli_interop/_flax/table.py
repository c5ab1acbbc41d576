"""Where the names of flax.nnx stand: the one table of its submodules.

A test holds it against the installed flax, so that what is newer there is listed by its failure.
"""

from __future__ import annotations

__all__ = ["ALIASES", "HOMES", "MODULES", "NAMES", "SAME"]

_TRANSFORMS = {
    "autodiff": "DiffState custom_vjp grad jvp remat value_and_grad vjp",
    "compilation": "StateSharding jit jit_partial shard_map",
    "iteration": "Carry StateAxes fori_loop pmap scan transform_metadata vmap while_loop",
    "general": "",
    "transforms": "checkify cond eval_shape make_jaxpr switch",
}

_METRICS = "Accuracy Average Metric MetricState MultiMetric Statistics Welford"
_OPTIMIZER = "ModelAndOptimizer OptArray OptState OptVariable Optimizer"

_DENSE = (
    "Conv ConvTranspose Einsum Embed Linear LinearGeneral canonicalize_padding default_bias_init "
    "default_embed_init default_kernel_init"
)
_PARTS = "Module dtypes first_from initializers rnglib"  # which authors import from a layer's file

_GRAPH = """
    GraphDef GraphState MergeContext PureState SplitContext State UpdateContext Variable as_pure
    cached_partial call clone current_update_context find_duplicates flatten graphdef
    iter_children iter_graph iter_module_children map merge merge_context pop pure recursive_map
    set_graph_mode set_graph_updates set_metadata split split_context state unflatten unpack update
    update_context variables vars_as with_vars
"""

# The submodules and what one may import from each, besides the submodules below it. A name is
# moduli's own of that name, unless HOMES says where it stands.
MODULES: dict[str, str] = {
    "bridge": "Functional Module ToLinen ToNNX compact functional lazy_init linen_in_bridge_mdl "
    "nnx_attrs_to_linen_vars nnx_in_bridge_mdl to_linen to_linen_class to_nnx_var to_linen_var "
    "with_partitioning AttrPriority NNXMeta Scope current_context current_module initializers "
    "Bridge ChannelsFirst Conversion EquinoxModule JaxModule JoinedAxes LayerRule "
    "OneExample PaddingEmbed TorchCell TorchModule as_linen from_linen "  # our own
    "HaikuCore HaikuModule as_haiku_layers from_framework from_haiku_layers to_framework",
    "bridge.interop": "linen_in_bridge_mdl nnx_in_bridge_mdl",
    "bridge.module": "AttrPriority MODULE_CONTEXT Module ModuleStackEntry Scope compact "
    "current_context current_module",
    "bridge.variables": "NNXMeta nnx_attrs_to_linen_vars to_linen_var to_nnx_var with_partitioning",
    "bridge.wrappers": "Functional ToLinen ToNNX functional lazy_init to_linen to_linen_class",
    "compat": """
        backup_keys cached_partial checkify clone cond custom_vjp eval_shape flatten fori_loop
        fork_rngs get_abstract_model grad graphdef iter_children iter_graph iter_modules jit jvp
        pmap recursive_map remat reseed scan shard_map split split_rngs state switch
        value_and_grad view view_info vjp vmap while_loop
    """,
    "deprecations": "deprecated",
    "extract": "NodeStates from_tree prefix to_tree",
    "graphlib": _GRAPH,
    "helpers": "Dict List Sequential TrainState",
    "module": "M Module Pytree State capture first_from iter_children iter_module_children "
    "iter_modules split_state view view_info with_attributes",
    "nn": "",
    "nn.activations": """
        PReLU celu elu gelu glu hard_sigmoid hard_silu hard_swish hard_tanh identity leaky_relu
        log_sigmoid log_softmax logsumexp one_hot relu relu6 selu sigmoid silu soft_sign softmax
        softplus standardize swish tanh
    """,
    "nn.attention": "LayerNorm LinearGeneral MultiHeadAttention combine_masks "
    "default_kernel_init dot_product_attention dot_product_attention_weights "
    f"make_attention_mask make_causal_mask {_PARTS}",
    "nn.dtypes": "canonicalize_dtype promote_dtype",
    "nn.linear": f"{_DENSE} {_PARTS}",
    "nn.lora": f"Linear LoRA LoRALinear LoRAParam default_a_initializer default_b_initializer "
    f"{_PARTS}",
    "nn.normalization": "BatchNorm GroupNorm InstanceNorm LayerNorm RMSNorm SpectralNorm "
    f"WeightNorm {_PARTS}",
    "nn.recurrent": "Bidirectional Carry GRUCell LSTMCell OptimizedLSTMCell Output RNN RNNBase "
    "RNNCellBase SimpleCell default_bias_init default_kernel_init flip_sequences "
    f"modified_orthogonal Linear sigmoid tanh {_PARTS}",
    "nn.stochastic": f"Dropout {_PARTS}",
    "proxy_caller": "ApplyCaller CallableProxy DelayedAccessor GetAttr GetItem",
    "pytreelib": "Data Object Pytree Static check_pytree data dataclass has_data is_data "
    "register_data_type static",
    "reprlib": "Attr MappingReprMixin Object PrettyMapping PrettySequence Representable "
    "SequenceReprMixin get_repr",
    "rnglib": "RngCount RngKey RngState RngStream Rngs SplitBackups Variable backup_keys "
    "fork_rngs reseed restore_rngs split_rngs with_rngs",
    "spmd": "PARTITION_NAME abstract_with_sharding add_axis as_abstract get_abstract_model "
    "get_named_sharding get_partition_spec get_var_pspec remove_axis with_partitioning",
    "statelib": "FlatState State filter_state from_flat_state map_state merge_state "
    "replace_by_pure_dict restore_int_paths split_state to_flat_state to_pure_dict",
    "summary": "tabulate",
    "tracers": "TraceState current_jax_trace",
    "training": "",
    "training.ema": "EMA",
    "training.optimizer": f"{_OPTIMIZER} to_opt_state",
    "transforms": "",
    **{f"transforms.{name}": names for name, names in _TRANSFORMS.items()},
    "traversals": "empty_node flatten_mapping flatten_to_sequence unflatten_mapping",
    "variablelib": "A BatchStat Cache Intermediate Param Perturbation Variable VariableMetadata "
    "VariableState register_variable_name use_eager_sharding using_eager_sharding var_defaults "
    "variable_name_from_type variable_type_from_name with_metadata",
    "visualization": "display",
}

# Submodules that are a module which moduli or a package has.
SAME: dict[str, str] = {
    "nn.initializers": "moduli:initializers",
    "training.metrics": "moduli:metrics",
}

# Other paths of a submodule above.
ALIASES: dict[str, str] = {
    "graph": "graphlib",
    "object": "pytreelib",
    "optimizer": "training.optimizer",
    "wrappers": "bridge.wrappers",
}

# Names that are none of moduli's own: where they stand; with the submodule where the name means
# another thing there.
_AUTHORS = (
    "Output RNNBase canonicalize_dtype canonicalize_padding default_a_initializer "
    "default_b_initializer default_bias_init default_embed_init default_kernel_init first_from "
    "modified_orthogonal"
)
_BRIDGE = (
    "Bridge ChannelsFirst Conversion EquinoxModule JaxModule JoinedAxes LayerRule "
    "OneExample PaddingEmbed TorchCell TorchModule as_linen from_framework from_linen "
    "to_framework HaikuCore HaikuModule as_haiku_layers from_haiku_layers "
    "Functional ToLinen ToNNX functional lazy_init nnx_attrs_to_linen_vars to_linen to_linen_class "
    "to_linen_var to_nnx_var compact linen_in_bridge_mdl nnx_in_bridge_mdl AttrPriority NNXMeta "
    "Scope current_context current_module MODULE_CONTEXT ModuleStackEntry"
)
_HERE = {
    "axes": "add_axis get_var_pspec remove_axis",
    "checks": "check_pytree has_data",
    "contexts": "MergeContext SplitContext UpdateContext current_update_context merge_context "
    "split_context update_context",
    "deprecations": "M VariableState as_abstract backup_keys deprecated pure",
    "graph_state": "GraphState PureState unpack",
    "metadata": "transform_metadata",
    "proxies": "ApplyCaller CallableProxy DelayedAccessor GetAttr GetItem call",
    "representable": "Attr MappingReprMixin PrettyMapping PrettySequence Representable "
    "SequenceReprMixin get_repr",
    "refs": "VarDefaults var_defaults vars_as with_vars",
    "traces": "TraceState current_jax_trace",
    "traversals": "empty_node flatten_mapping flatten_to_sequence unflatten_mapping",
    "views": "view_info",
}  # the files of this folder
HOMES: dict[str, str] = {
    "dtypes": "moduli:nn.dtypes",
    **{name: f"moduli_interop.bridge:{name}" for name in _BRIDGE.split()},
    **{name: f"moduli_layers._for_authors:{name}" for name in _AUTHORS.split()},
    **{
        name: f"moduli_interop._flax.{file}:{name}"
        for file, names in _HERE.items()
        for name in names.split()
    },
    "bridge.Module": "moduli_interop.bridge:Module",
    "bridge.module.Module": "moduli_interop.bridge:Module",
    "bridge.with_partitioning": "moduli_interop.bridge:with_partitioning",
    "bridge.variables.with_partitioning": "moduli_interop.bridge:with_partitioning",
    "reprlib.Object": "moduli_interop._flax.representable:Object",
    "to_opt_state": "moduli_train._opt_state:to_opt_state",
}

# The names of flax.nnx itself that moduli's packages have not: entry points of moduli-interop.
NAMES = (
    "GraphState M MergeContext PureState SplitContext UpdateContext VariableState as_abstract call "
    "check_pytree current_update_context has_data merge_context pure split_context "
    "transform_metadata unpack update_context var_defaults vars_as view_info with_vars"
)
