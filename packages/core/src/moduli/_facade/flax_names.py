"""Names of flax.nnx that moduli has not, and what to write instead.

Whoever ports code meets them one by one, as AttributeErrors of the facade: each says what to do. A
test holds this table against flax.nnx 0.12, so that no name of its is without an answer.
"""

from __future__ import annotations

__all__ = ["INSTEAD"]

_ONE_MODE = (
    "moduli has one mode, that of flax.nnx's graph=True and graph_updates=True; leave it out"
)
_ONE_VARIABLE = "Variables are of one kind here, without Refs and hijax; leave it out"
_CONTEXTS = (
    "objects keep their identity through every transform of moduli (`moduli.jit`, ...), changes "
    "of structure included, so no context is needed; for raw JAX use split, merge and update"
)

INSTEAD: dict[str, str] = {
    "set_graph_mode": _ONE_MODE,
    "set_graph_updates": _ONE_MODE,
    "Data": "write `field: T = moduli.data()` in a dataclass, or assign `moduli.data(value)`; "
    "lists, dicts, modules and arrays are data by themselves",
    "Static": "write `field: T = moduli.static()` in a dataclass, or assign "
    "`moduli.static(value)`; numbers, strings and functions are static by themselves",
    "has_data": "`moduli.is_data(value)` looks into lists, dicts and tuples too",
    "check_pytree": "there is nothing to check: lists and dicts of modules are data, and a static "
    "value that holds an array is an error when the model is first used",
    "GraphState": "write `graphdef, state = moduli.split(model)`, and pass both on",
    "unpack": "write `graphdef, state = moduli.split(model)`, and pass both on",
    "PureState": "write `tuple[moduli.GraphDef[M], moduli.State]`",
    "M": "write `M = typing.TypeVar('M', bound=moduli.Module)`",
    "pure": "flax renamed it; write moduli.as_pure",
    "call": "write `model = moduli.merge(graphdef, state)`, call the method, and then "
    "`moduli.split(model)`",
    "split_context": _CONTEXTS,
    "merge_context": _CONTEXTS,
    "update_context": _CONTEXTS,
    "current_update_context": _CONTEXTS,
    "SplitContext": _CONTEXTS,
    "MergeContext": _CONTEXTS,
    "UpdateContext": _CONTEXTS,
    "var_defaults": _ONE_VARIABLE,
    "vars_as": _ONE_VARIABLE,
    "with_vars": _ONE_VARIABLE,
    "view_info": "`moduli.display(model)` shows the attributes that `moduli.view` can set",
    "as_abstract": "write `moduli.abstract_with_sharding(moduli.eval_shape(make_model))`",
    "transform_metadata": "pass `transform_metadata=` to vmap, pmap or scan",
    "EMA": "moduli has none yet; keep a `moduli.clone(model)` and write the averages with "
    "`moduli.update`",
    "TrainState": "pass the model and a `moduli.Optimizer` to `moduli.jit`",
}
