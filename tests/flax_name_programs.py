"""A small program for each public name of flax.nnx: what it returns is the same in both libraries.

``PROGRAMS[name](nnx)`` runs with ``nnx`` being either; the test compares the two results. A name of
flax without a row fails the test, so a newer flax says what is to be added.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

Program = Callable[[Any], Any]
PROGRAMS: dict[str, Program] = {}

X = jnp.linspace(-3.0, 3.0, 12, dtype=jnp.float32).reshape(3, 4)
IMAGE = jnp.linspace(-1.0, 1.0, 36).reshape(1, 6, 6, 1)
SEQUENCE = jnp.linspace(-1.0, 1.0, 24, dtype=jnp.float32).reshape(2, 3, 4)


def program(*names: str) -> Callable[[Program], Program]:
    def note(function: Program) -> Program:
        for name in names:
            PROGRAMS[name] = function
        return function

    return note


def linear(nnx: Any) -> Any:
    return nnx.Linear(4, 2, rngs=nnx.Rngs(0))


def block(nnx: Any) -> Any:
    class Block(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.linear = nnx.Linear(4, 4, rngs=rngs)
            self.norm = nnx.BatchNorm(4, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)
            self.size = 4

        def __call__(self, x: Any) -> Any:
            return self.dropout(self.norm(self.linear(x)))

    return Block(nnx.Rngs(0))


def loss(model: Any, x: Any) -> Any:
    return (model(x) ** 2).mean()


# -- functions of arrays ---------------------------------------------------------------------------

ACTIVATIONS = """
    celu elu gelu glu hard_sigmoid hard_silu hard_swish hard_tanh identity leaky_relu log_sigmoid
    log_softmax logsumexp relu relu6 selu sigmoid silu soft_sign softmax softplus standardize swish
    tanh
"""
for _name in ACTIVATIONS.split():
    PROGRAMS[_name] = lambda nnx, name=_name: getattr(nnx, name)(X)
for _name in ("avg_pool", "max_pool", "min_pool"):
    PROGRAMS[_name] = lambda nnx, name=_name: getattr(nnx, name)(IMAGE, (2, 2), (2, 2))
PROGRAMS["pool"] = lambda nnx: nnx.pool(IMAGE, 0.0, jax.lax.add, (2, 2), (1, 1), "VALID")
PROGRAMS["one_hot"] = lambda nnx: nnx.one_hot(jnp.arange(3), 5)
PROGRAMS["combine_masks"] = lambda nnx: nnx.combine_masks(
    nnx.make_causal_mask(jnp.ones((1, 3))),
    nnx.make_attention_mask(jnp.ones((1, 3)), jnp.array([[1, 1, 0]])),
)
PROGRAMS["make_causal_mask"] = PROGRAMS["make_attention_mask"] = PROGRAMS["combine_masks"]
PROGRAMS["dot_product_attention"] = lambda nnx: nnx.dot_product_attention(
    *(X.reshape(1, 3, 2, 2) + i for i in range(3))
)


@program("RoPE", "dot_product_attention_with_rope")
def rope(nnx: Any) -> Any:  # of flax 0.12.9 and later
    rotation = nnx.RoPE(embedding_size=4, max_seq_len=8)
    query, key, value = (SEQUENCE.reshape(2, 3, 1, 4) + i for i in range(3))
    return nnx.dot_product_attention_with_rope(query, key, value, rope=rotation)


# -- layers ----------------------------------------------------------------------------------------

LAYERS: dict[str, Callable[[Any], tuple[Any, Any]]] = {
    "Linear": lambda nnx: (linear(nnx), X),
    "LinearGeneral": lambda nnx: (nnx.LinearGeneral(4, (2, 3), rngs=nnx.Rngs(0)), X),
    "Einsum": lambda nnx: (nnx.Einsum("ab,bc->ac", (4, 2), (2,), rngs=nnx.Rngs(0)), X),
    "Embed": lambda nnx: (nnx.Embed(5, 2, rngs=nnx.Rngs(0)), jnp.arange(4)),
    "Conv": lambda nnx: (nnx.Conv(1, 2, (3, 3), rngs=nnx.Rngs(0)), IMAGE),
    "ConvTranspose": lambda nnx: (nnx.ConvTranspose(1, 2, (3, 3), rngs=nnx.Rngs(0)), IMAGE),
    "BatchNorm": lambda nnx: (nnx.BatchNorm(4, rngs=nnx.Rngs(0)), X),
    "LayerNorm": lambda nnx: (nnx.LayerNorm(4, rngs=nnx.Rngs(0)), X),
    "RMSNorm": lambda nnx: (nnx.RMSNorm(4, rngs=nnx.Rngs(0)), X),
    "GroupNorm": lambda nnx: (nnx.GroupNorm(4, num_groups=2, rngs=nnx.Rngs(0)), X),
    "InstanceNorm": lambda nnx: (nnx.InstanceNorm(4, rngs=nnx.Rngs(0)), SEQUENCE),
    "Dropout": lambda nnx: (nnx.Dropout(0.5, rngs=nnx.Rngs(0)), X),
    "PReLU": lambda nnx: (nnx.PReLU(), X),
    "LoRA": lambda nnx: (nnx.LoRA(4, 2, 3, rngs=nnx.Rngs(0)), X),
    "LoRALinear": lambda nnx: (nnx.LoRALinear(4, 3, lora_rank=2, rngs=nnx.Rngs(0)), X),
    "MultiHeadAttention": lambda nnx: (
        nnx.MultiHeadAttention(2, 4, decode=False, rngs=nnx.Rngs(0)),
        SEQUENCE,
    ),
    "Sequential": lambda nnx: (nnx.Sequential(linear(nnx), nnx.relu), X),
    "RNN": lambda nnx: (nnx.RNN(nnx.GRUCell(4, 3, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0)), SEQUENCE),
    "Bidirectional": lambda nnx: (
        nnx.Bidirectional(
            *(nnx.RNN(nnx.GRUCell(4, 3, rngs=nnx.Rngs(i)), rngs=nnx.Rngs(0)) for i in range(2)),
            rngs=nnx.Rngs(0),
        ),
        SEQUENCE,
    ),
}


def layer_program(make: Callable[[Any], tuple[Any, Any]]) -> Program:
    def run(nnx: Any) -> Any:
        layer, x = make(nnx)
        return layer(x), nnx.state(layer, nnx.Not(nnx.RngState))  # RNNs draw less than flax's

    return run


for _name, _make in LAYERS.items():
    PROGRAMS[_name] = layer_program(_make)


@program("GRUCell", "LSTMCell", "OptimizedLSTMCell", "SimpleCell", "RNNCellBase")
def cells(nnx: Any) -> Any:
    found = []
    for name in ("GRUCell", "LSTMCell", "OptimizedLSTMCell", "SimpleCell"):
        cell = getattr(nnx, name)(4, 3, rngs=nnx.Rngs(0))
        assert isinstance(cell, nnx.RNNCellBase)
        found.append(cell(cell.initialize_carry((3, 4), nnx.Rngs(1)), X))
    return found


@program("SpectralNorm", "WeightNorm")
def weight_norms(nnx: Any) -> Any:
    spectral = nnx.SpectralNorm(linear(nnx), rngs=nnx.Rngs(1))
    weight = nnx.WeightNorm(linear(nnx), rngs=nnx.Rngs(1))
    return spectral(X, update_stats=True), weight(X)


@program("initializers", "Initializer")
def initializers(nnx: Any) -> Any:
    key, names = jax.random.key(0), ("lecun_normal", "he_uniform", "orthogonal", "zeros_init")
    assert callable(nnx.Initializer)
    return [getattr(nnx.initializers, name)()(key, (3, 4), jnp.float32) for name in names]


@program("with_metadata", "with_partitioning", "VariableMetadata", "PARTITION_NAME")
def metadata_of_initializers(nnx: Any) -> Any:
    plain = nnx.initializers.ones_init()
    tagged = nnx.with_metadata(plain, tag="a")
    named = nnx.with_partitioning(plain, (None, None))
    layer = nnx.Linear(2, 3, kernel_init=tagged, rngs=nnx.Rngs(0))
    with jax.set_mesh(jax.make_mesh((1,), ("a",), axis_types=(jax.sharding.AxisType.Auto,))):
        other = nnx.Linear(2, 3, kernel_init=named, rngs=nnx.Rngs(0))
    param = nnx.Param(nnx.VariableMetadata(1.0, metadata={"tag": "b"}))
    return layer.kernel.tag, other.kernel.out_sharding, param.tag, nnx.PARTITION_NAME


# -- Variables, filters, States --------------------------------------------------------------------

KINDS = """
    Variable Param BatchStat Cache Intermediate Perturbation RngState RngKey RngCount LoRAParam
    OptState OptArray OptVariable
"""


def kind_program(name: str) -> Program:
    def run(nnx: Any) -> Any:
        variable = getattr(nnx, name)(jnp.arange(3.0), tag="a")
        variable[1] = 5.0
        variable.add_axis(0, "x")
        variable.remove_axis(0, "x")
        copy = variable.to_state()
        copy.update_from_state(variable.replace(jnp.ones(3)))
        made = type(variable).from_metadata(variable.get_value(), variable.get_metadata())
        assert variable.var_type is type(variable) and not variable.ref and not variable.hijax
        return (
            variable,
            variable.tag,
            copy,
            made.tag,
            variable.get_metadata(exclude_required=True),
            variable + 1,
            variable.create_value(2),
        )

    return run


for _name in KINDS.split():
    PROGRAMS[_name] = kind_program(_name)


def filter_program(make: Callable[[Any], Any]) -> Program:
    def run(nnx: Any) -> Any:
        selected, _ = nnx.split_state(nnx.state(block(nnx)), make(nnx), ...)
        return [path for path, _ in nnx.to_flat_state(selected)]

    return run


FILTERS: dict[str, Callable[[Any], Any]] = {
    "All": lambda nnx: nnx.All(nnx.Param, nnx.PathContains("kernel")),
    "Any": lambda nnx: nnx.Any(nnx.BatchStat, nnx.PathContains("bias")),
    "Not": lambda nnx: nnx.Not(nnx.Param),
    "Everything": lambda nnx: nnx.Everything(),
    "Nothing": lambda nnx: nnx.Nothing(),
    "OfType": lambda nnx: nnx.OfType(nnx.RngState),
    "PathContains": lambda nnx: nnx.PathContains("linear"),
    "WithTag": lambda nnx: nnx.WithTag("default"),
    "filterlib": lambda nnx: nnx.filterlib.to_predicate(nnx.filterlib.PathIn(("norm", "mean"))),
}
for _name, _make in FILTERS.items():
    PROGRAMS[_name] = filter_program(_make)


@program("variable_name_from_type", "variable_type_from_name", "register_variable_name")
def names_of_kinds(nnx: Any) -> Any:
    class Mine(nnx.Variable):
        pass

    nnx.register_variable_name("names_of_kinds", Mine, overwrite=True)
    return (
        nnx.variable_type_from_name("names_of_kinds") is Mine,
        nnx.variable_name_from_type(Mine),
        nnx.variable_name_from_type(nnx.BatchStat),
        nnx.variable_type_from_name("params"),
    )


@program("State", "FlatState", "to_flat_state", "from_flat_state", "filter_state", "split_state",
         "merge_state", "map_state", "to_pure_dict", "replace_by_pure_dict", "restore_int_paths",
         "as_pure", "pure")  # fmt: skip
def states(nnx: Any) -> Any:
    state = nnx.State({"a": {"b": nnx.Param(1.0)}, "c": nnx.BatchStat(2.0)})
    flat = nnx.to_flat_state(state)
    params, rest = nnx.split_state(state, nnx.Param, ...)
    first, second = flat.split(nnx.Param, ...)
    joined = nnx.FlatState.merge(second, first)
    made = nnx.FlatState([(("z",), 1), (("a",), 2)], sort=True)
    other = nnx.State({"a": {"b": nnx.Param(0.0)}, "c": nnx.BatchStat(0.0)})
    nnx.replace_by_pure_dict(other, nnx.to_pure_dict(state))
    return (
        [path for path, _ in flat],
        nnx.from_flat_state(flat),
        nnx.filter_state(state, nnx.BatchStat),
        nnx.merge_state(rest, params),
        nnx.map_state(lambda path, v: v.replace(v.get_value() * 2), state),
        other,
        nnx.restore_int_paths({"0": 1, "a": {"1": 2}}),
        nnx.to_pure_dict(nnx.as_pure(state)),
        nnx.to_pure_dict(nnx.pure(state)),
        joined.paths,
        (made[0], len(made), list(made.leaves), made.index((("z",), 1)), made[:1].paths),
        flat.filter(nnx.BatchStat).paths,
    )


# -- graphs ----------------------------------------------------------------------------------------


@program("split", "merge", "update", "state", "variables", "graphdef", "clone", "flatten",
         "unflatten", "GraphDef", "pop", "set_metadata", "map", "iter_graph", "recursive_map",
         "find_duplicates", "iter_modules", "iter_children", "iter_module_children")  # fmt: skip
def graphs(nnx: Any) -> Any:
    model = block(nnx)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    assert graphdef == nnx.graphdef(model) and isinstance(graphdef, nnx.GraphDef)
    new = nnx.merge(graphdef, params, rest, recreate_variables=True)
    nnx.update(new, jax.tree.map(lambda leaf: leaf, params))
    same, flat = nnx.flatten(model)
    again = nnx.unflatten(same, flat)
    doubled = nnx.map(
        lambda path, v: v.replace(v[...] * 2) if isinstance(v, nnx.Param) else v, model
    )
    seen = []
    nnx.recursive_map(lambda path, value: seen.append(path) or value, nnx.clone(model))
    nnx.set_metadata(new, tag="x", only=nnx.Param)
    new.sown = nnx.Intermediate(1.0)
    popped = nnx.pop(new, nnx.Intermediate)
    tied = nnx.Dict(a=(kernel := nnx.Param(1.0)), b=kernel)
    _, (_, moved) = graphdef.apply(params, rest).linear(X)
    return (
        nnx.state(again, nnx.Param),
        nnx.variables(doubled, nnx.Param),
        new.linear.kernel.tag,
        popped,
        nnx.find_duplicates(tied),
        [path for path, _ in nnx.iter_modules(model)],
        [path for path, _ in nnx.iter_modules({"a": [model], "b": (model.linear,)})],
        [name for name, _ in nnx.iter_module_children(model)],
        [(name, type(child)) for name, child in nnx.iter_children(model)],
        [(name, type(child)) for name, child in nnx.iter_children(model.linear)],
        ("linear",) in seen and () in seen,
        [path for path, value in nnx.iter_graph(model) if isinstance(value, nnx.Param)],
        len(nnx.to_flat_state(moved)),
        graphdef.num_leaves,
    )


@program("GraphState", "unpack", "PureState", "M", "A")
def unpacked(nnx: Any) -> Any:
    model = block(nnx)
    params, rest = nnx.unpack(model, nnx.Param, ...)
    assert isinstance(params, nnx.GraphState) and nnx.PureState[Any]
    params = jax.tree.map(lambda x: x + 1, params)
    new = nnx.merge(params, rest)
    whole = nnx.merge(nnx.unpack(model))
    keys = [str(path[0]) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    return (
        nnx.state(new),
        nnx.state(whole),
        sorted(params),
        len(rest),
        sorted(set(keys)),
        params["linear"]["kernel"][...],
        nnx.M.__name__,
        nnx.A.__name__,
    )


@program("call", "proxy_caller")
def called(nnx: Any) -> Any:
    pair = nnx.split({"a": block(nnx), "b": [block(nnx)]})
    y, pair = jax.jit(lambda pair, x: nnx.call(pair)["b"][0].norm(x))(pair, X)
    accessor = nnx.proxy_caller.DelayedAccessor().upper
    return y, nnx.merge(*pair)["b"][0].norm.mean, accessor("a")()


@program("split_context", "merge_context", "update_context", "current_update_context",
         "SplitContext", "MergeContext", "UpdateContext")  # fmt: skip
def contexts(nnx: Any) -> Any:
    class Model(nnx.Module):
        def __init__(self) -> None:
            self.w, self.shared = nnx.Param(jnp.array(1.0)), nnx.Dict(n=nnx.Param(jnp.array(2.0)))

    first, second = Model(), Model()
    second.shared = first.shared

    @jax.jit
    def inner(one: Any, two: Any) -> Any:
        with nnx.merge_context("names", inner=True) as context:
            assert isinstance(context, nnx.MergeContext)
            a, b = context.merge(*one), context.merge(*two)
        assert a.shared is b.shared
        a.w[...] += 1.0
        a.added = nnx.Param(a.w[...] * 10)
        a.itself = a
        b.shared.n[...] += 5.0
        with nnx.split_context("names") as context:
            return context.split(a), context.split(b)

    @nnx.update_context("names")
    def outer(first: Any, second: Any) -> Any:
        assert isinstance(nnx.current_update_context("names"), nnx.UpdateContext)
        with nnx.split_context("names") as context:
            assert isinstance(context, nnx.SplitContext)
            one, two = context.split(first), context.split(second)
        one, two = inner(one, two)
        with nnx.merge_context("names", inner=False) as context:
            return context.merge(*one), context.merge(*two)

    shared, kept = first.shared, first.w
    for _ in range(2):
        a, b = outer(first, second)
        assert a is first and b is second and first.itself is first
        assert first.shared is shared is second.shared and first.w is kept
    return first.w, first.added, first.shared["n"], second.w


@program("to_tree", "from_tree", "NodeStates", "extract")
def trees(nnx: Any) -> Any:
    model = linear(nnx)
    tree = nnx.to_tree({"m": model, "x": X})
    assert isinstance(tree["m"], nnx.NodeStates)
    tree = jax.tree.map(lambda x: x + 1, tree)
    back = nnx.extract.from_tree(tree)
    return nnx.state(back["m"]), back["x"], nnx.state(nnx.from_tree(tree)["m"])


# -- Modules ---------------------------------------------------------------------------------------


@program("Module", "Pytree", "Object", "List", "Dict", "data", "static", "dataclass", "is_data",
         "has_data", "check_pytree", "register_data_type")  # fmt: skip
def modules(nnx: Any) -> Any:
    @nnx.register_data_type
    class Frame:
        pass

    @nnx.dataclass
    class Record(nnx.Pytree):
        value: Any
        count: int = nnx.data(default=1)
        name: str = nnx.static(default="n")

    class Model(nnx.Module):
        def __init__(self) -> None:
            self.parts = nnx.List([nnx.Param(1.0), nnx.Param(2.0)])
            self.named = nnx.Dict(a=nnx.Param(3.0))
            self.counter, self.fixed = nnx.data(4), nnx.static("s")

    model = Model()
    nnx.check_pytree(model)
    assert issubclass(nnx.Object, nnx.Pytree)
    return (
        sorted(jax.tree.leaves(model)),
        sorted(jax.tree.leaves(Record(nnx.Param(5.0)))),
        [nnx.is_data(v) for v in (X, nnx.Param(1.0), model, "s", 1, Frame())],
        len(nnx.has_data({"a": [X, nnx.Param(1.0)], "b": 3})),
        bool(nnx.has_data("text")),
        [type(v) for v in (model.parts, model.named)],
    )


@program("Data", "Static")
def annotations(nnx: Any) -> Any:
    class Model(nnx.Module):
        __annotations__ = {"count": nnx.Data[int], "size": nnx.Static[int]}

        def __init__(self) -> None:
            self.count, self.size, self.other = 1, 2, 3

    return jax.tree.leaves(Model())


@program("view", "with_attributes")
def views(nnx: Any) -> Any:
    model = block(nnx)
    quiet = nnx.view(model, deterministic=True, use_running_average=True)
    again = nnx.with_attributes(model, deterministic=True)
    return (
        quiet.dropout.deterministic,
        quiet.norm.use_running_average,
        again.dropout.deterministic,
        model.dropout.deterministic,
        quiet.linear.kernel is model.linear.kernel,
        quiet(X),
    )


@program("view_info")
def view_info(nnx: Any) -> Any:
    attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=nnx.Rngs(0))
    decoding = nnx.view({"a": [attention]}, decode=True, batch_size=2, max_length=3)["a"][0]
    decoding.init_cache((2, 3, 4))  # flax's view makes none
    steps = [decoding(SEQUENCE[:, i : i + 1]) for i in range(3)]
    text = nnx.view_info(block(nnx), only=nnx.Any(nnx.BatchNorm, nnx.Dropout))
    heads = [line for line in text.splitlines() if not line.startswith(" ")]
    names = [line.split(":")[0].strip() for line in text.splitlines() if line.startswith("  ")]
    found = [name for name in names if name in ("deterministic", "use_running_average")]
    return heads, found, steps, decoding.cached_key.get_value().shape, attention.decode


@program("capture")
def captured(nnx: Any) -> Any:
    class Model(nnx.Module):
        def __call__(self, x: Any) -> Any:
            self.sow(nnx.Intermediate, "seen", x)
            return self.perturb("p", x * 2)

    model = Model()
    y, state = nnx.capture(model, nnx.Intermediate)(X)
    return y, nnx.to_pure_dict(state)["seen"], hasattr(model, "seen")


@program("tabulate", "display", "summary", "visualization")
def shown(nnx: Any) -> Any:
    assert nnx.summary.tabulate is nnx.tabulate and nnx.visualization.display is nnx.display
    text = nnx.tabulate(linear(nnx), X, console_kwargs={"force_terminal": False})
    with contextlib.redirect_stdout(io.StringIO()) as out:
        nnx.display(linear(nnx))
    return "Linear" in text, "Linear" in out.getvalue()


# -- random streams --------------------------------------------------------------------------------


@program("Rngs", "RngStream", "split_rngs", "fork_rngs", "reseed", "restore_rngs", "with_rngs",
         "rnglib")  # fmt: skip
def streams(nnx: Any) -> Any:
    rngs = nnx.Rngs(0, dropout=1)
    stream = nnx.RngStream(0, tag="params")
    drawn = [rngs.params(), rngs.dropout(), rngs.normal((2,)), stream(), rngs.noise()]
    parts = [stream.split(3).key, rngs.split(2).dropout.key, rngs.fork().dropout.key]
    with nnx.split_rngs(rngs, splits=4):
        parts.append(rngs.dropout.key[...])
    backups = nnx.fork_rngs(rngs, split={"dropout": 2})
    parts.append(rngs.dropout.key[...])
    nnx.restore_rngs(backups)
    kept = nnx.rnglib.backup_keys(rngs)
    nnx.reseed(rngs, dropout=7)
    parts.append(rngs.dropout())
    nnx.restore_rngs(kept)
    other = nnx.split_rngs(rngs, splits=3, graph_updates=False)
    parts += [other.dropout.key[...], rngs.dropout.key[...]]
    forked = nnx.fork_rngs(rngs, split=2, graph_updates=False)
    parts += [forked.default.key[...], rngs.default.count[...]]
    mapped = nnx.with_rngs(rngs, split=2, graph=False)
    parts.append(mapped.default.key[...])
    return [jax.random.key_data(k) if _is_key(k) else k for k in map(_value, [*drawn, *parts])]


def _value(item: Any) -> Any:
    return item.get_value() if hasattr(item, "get_value") else item


def _is_key(item: Any) -> bool:
    return jnp.issubdtype(item.dtype, jax.dtypes.prng_key)


# -- transforms ------------------------------------------------------------------------------------


@program("jit", "jit_partial", "cached_partial", "set_graph_mode", "set_graph_updates")
def jitted(nnx: Any) -> Any:
    def step(model: Any, x: Any) -> Any:
        return model(x).sum()

    model = block(nnx)
    found = [
        nnx.jit(step)(model, X),
        nnx.jit(step, graph=True, graph_updates=True)(model, X),
        nnx.jit(step, graph=True, graph_updates=False)(model, X),
        nnx.jit_partial(step, model, graph=False)(X),
        nnx.cached_partial(nnx.jit(step), model)(X),
    ]
    with nnx.set_graph_mode(True), nnx.set_graph_updates(False):
        found.append(nnx.jit(step)(model, X))
        assert not nnx.set_graph_updates.current_value() and nnx.set_graph_mode.current_value()
    assert nnx.set_graph_updates.current_value()
    traces: list[int] = []

    def counted(model: Any, x: Any) -> Any:
        traces.append(1)
        return step(model, x)

    again = nnx.jit(counted, graph=False)
    again(linear(nnx), X), again(linear(nnx), X)
    return found, model.norm.mean, len(traces), callable(again.jitted_fn)


@program("grad", "value_and_grad", "DiffState")
def gradients(nnx: Any) -> Any:
    model = linear(nnx)
    only = nnx.DiffState(0, nnx.PathContains("bias"))
    return (
        nnx.state(nnx.grad(loss)(model, X)),
        nnx.value_and_grad(loss)(model, X)[0],
        nnx.state(nnx.grad(loss, argnums=only)(model, X)),
        nnx.grad(loss, argnums=1, graph=False)(model, X),
        nnx.as_pure(nnx.state(nnx.grad(loss, graph=True, graph_updates=False)(model, X))),
        only.map_prefix(("bias",), model.bias),
    )


@program("vjp", "jvp")
def products(nnx: Any) -> Any:
    model = linear(nnx)
    y, back = nnx.vjp(lambda model, x: model(x), model, X, graph=False)
    _, x_g = back(jnp.ones_like(y))
    return y, x_g, nnx.jvp(lambda x: model(x), (X,), (jnp.ones_like(X),), graph=False)


@program("custom_vjp")
def own_gradient(nnx: Any) -> Any:
    @nnx.custom_vjp(graph_updates=False)
    def scaled(weight: Any, x: Any) -> Any:
        return weight[...] * x

    def backward(residuals: Any, g: Any) -> Any:
        weight, x = residuals
        weight_g = nnx.clone(weight)
        weight_g[...] = jnp.clip(g * x, -1.0, 1.0)
        return weight_g, g * weight[...]

    scaled.defvjp(lambda weight, x: (scaled(weight, x), (weight, x)), backward)
    weight = nnx.Param(jnp.array(3.0))
    gradient = nnx.grad(lambda w, x: scaled(w, x), graph=False)(weight, 50.0)

    @nnx.custom_vjp
    def tripled(x: Any) -> Any:
        return 3 * x

    tripled.defvjp(lambda x: (tripled(x), None), lambda _, g: (g[1] * 4,))
    return _value(gradient), nnx.grad(tripled)(5.0)


@program("remat", "checkify", "eval_shape", "make_jaxpr")
def others(nnx: Any) -> Any:
    model = linear(nnx)
    error, y = nnx.checkify(lambda model, x: model(x))(model, X)
    shapes = nnx.eval_shape(lambda: linear(nnx))
    again = nnx.remat(lambda model, x: model(x))(model, X)
    made = nnx.make_jaxpr(lambda x: x + 1, graph_updates=False)(1.0)
    return error.get(), y, shapes.kernel.shape, again, str(made).count("add")


@program("vmap", "scan", "Carry", "StateAxes", "pmap")
def mapped(nnx: Any) -> Any:
    axes = nnx.StateAxes({nnx.Param: 0, ...: None})

    @nnx.vmap(in_axes=0, out_axes=0)
    def make(rngs: Any) -> Any:
        return nnx.Linear(4, 4, rngs=rngs)

    models = make(nnx.Rngs(0).split(3))
    outputs = nnx.vmap(lambda model, x: model(x), in_axes=(axes, None))(models, X)

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry, _split_transpose=False)
    def forward(x: Any, model: Any) -> Any:
        return model(x)

    one = nnx.pmap(lambda x: x * 2, graph=False)(X[:1])
    return outputs, forward(X, models), axes.map_prefix(("a",), nnx.Param(1)), axes.axes, one


@program("transform_metadata")
def named_axis(nnx: Any) -> Any:
    seen = []

    @nnx.vmap(in_axes=0, out_axes=0, graph=True, graph_updates=False)
    @nnx.transform_metadata(in_axes=0, out_axes=0, partition="layers")
    def look(weight: Any) -> Any:
        seen.append(weight.get_metadata("out_sharding"))
        return weight[...].sum()

    with unlaid(nnx):
        weight = nnx.Param(jnp.ones((2, 3)), out_sharding=("layers", "in"))
        return look(weight), seen[0], weight.get_metadata("out_sharding")


@contextlib.contextmanager
def unlaid(nnx: Any) -> Any:
    """Names of axes without a mesh: flax lays values out when they are made, if not told."""
    with nnx.use_eager_sharding(False):
        yield


@program("while_loop", "fori_loop", "cond", "switch")
def control(nnx: Any) -> Any:
    counter = nnx.Dict(n=nnx.Variable(jnp.array(0)))

    def body(counter: Any) -> Any:
        counter["n"][...] += 2
        return counter

    counter = nnx.while_loop(lambda c: c["n"][...] < 5, body, counter)
    counter = nnx.fori_loop(0, 3, lambda i, c: body(c), counter)
    total = nnx.cond(True, lambda c: c["n"] * 1, lambda c: c["n"] * 2, counter)
    return total, nnx.switch(1, [lambda c: c["n"] * 1, lambda c: c["n"] * 3], counter)


@program("shard_map", "StateSharding", "prefix")
def sharded(nnx: Any) -> Any:
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    model = linear(nnx)
    specs = nnx.StateSharding({nnx.Param: jax.P(), ...: jax.P()})

    @nnx.shard_map(mesh=mesh, in_specs=(specs, jax.P("data")), out_specs=jax.P("data"))
    def forward(model: Any, x: Any) -> Any:
        return model(x)

    axes = nnx.prefix(model, {nnx.Param: 0, ...: None}, graph=False)
    return forward(model, X), specs.map_prefix(("kernel",), model.kernel), axes.kernel


COMPAT = """
    backup_keys cached_partial checkify clone cond custom_vjp eval_shape flatten fori_loop
    fork_rngs grad graphdef iter_children iter_graph iter_modules jit jvp pmap recursive_map remat
    reseed scan shard_map split split_rngs state switch value_and_grad view view_info vjp vmap
    while_loop get_abstract_model
"""


@program("compat")
def compat(nnx: Any) -> Any:
    model = linear(nnx)
    graphdef, state = nnx.compat.split(model)
    loss, grads = nnx.compat.value_and_grad(lambda m, x: (m(x) ** 2).mean())(model, X)
    out = nnx.compat.jit(lambda model, x: model(x))(nnx.merge(graphdef, state), X)
    return loss, grads, out, all(callable(getattr(nnx.compat, n)) for n in COMPAT.split())


# -- training --------------------------------------------------------------------------------------


@program("Optimizer", "ModelAndOptimizer", "optimizer")
def optimized(nnx: Any) -> Any:
    model, other = linear(nnx), linear(nnx)
    first = nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param, graph=True)
    first.update(model, nnx.grad(loss)(model, X))
    second = nnx.ModelAndOptimizer(other, optax.sgd(0.1), wrt=nnx.Param)
    second.update(nnx.grad(loss)(other, X))
    assert nnx.optimizer.Optimizer is nnx.Optimizer is nnx.training.optimizer.Optimizer
    return nnx.state(model), nnx.state(other), first.step


@program("metrics", "Metric", "MultiMetric")
def measured(nnx: Any) -> Any:
    both = nnx.MultiMetric(accuracy=nnx.metrics.Accuracy(), loss=nnx.metrics.Average("loss"))
    both.update(logits=X, labels=jnp.array([3, 3, 0]), loss=jnp.array([1.0, 3.0]))
    welford = nnx.metrics.Welford()
    welford.update(values=X)
    assert isinstance(both, nnx.Metric)
    statistics = welford.compute()
    return both.compute(), statistics.mean, statistics.standard_deviation


@program("EMA")
def averaged(nnx: Any) -> Any:
    model = linear(nnx)
    ema = nnx.EMA(model, decay=0.9, only=nnx.Param, graph=None)
    shown = ema.apply_to(model)
    model.kernel[...] += 1.0
    nnx.jit(lambda ema, model: ema.update(model))(ema, model)
    return nnx.state(shown), shown.kernel is ema.params["kernel"], ema.decay, model.kernel


@program("TrainState", "helpers", "training")
def train_state(nnx: Any) -> Any:
    class State(nnx.TrainState):
        batch_stats: nnx.State

    assert nnx.helpers.TrainState is nnx.TrainState and nnx.training.metrics is nnx.metrics
    norm = nnx.BatchNorm(4, use_running_average=True, rngs=nnx.Rngs(0))
    graphdef, params, stats = nnx.split(norm, nnx.Param, nnx.BatchStat)
    state = State.create(graphdef, params=params, tx=optax.adam(0.1), batch_stats=stats)

    @jax.jit
    def step(state: Any) -> Any:
        def of(params: Any) -> Any:
            y, (_, new) = state.apply(params, "batch_stats")(X)
            return ((y - 1) ** 2).sum(), nnx.split_state(new, nnx.Param, nnx.BatchStat)[1]

        grads, stats = jax.grad(of, has_aux=True)(state.params)
        return state.apply_gradients(grads, batch_stats=stats)

    for _ in range(2):
        state = step(state)
    return state.params, state.batch_stats, state.step


# -- what is accepted ------------------------------------------------------------------------------


@program("var_defaults", "with_vars", "vars_as")
def kinds_of_variables(nnx: Any) -> Any:
    before = dict(nnx.var_defaults())
    with nnx.var_defaults(hijax=False):
        inside = nnx.var_defaults().hijax
    model = linear(nnx)
    same = nnx.with_vars(model, ref=False)
    old = nnx.vars_as(model, hijax=False)
    return before, inside, nnx.state(same), same.kernel is model.kernel, old is model


# -- submodules ------------------------------------------------------------------------------------


@program("traversals")
def traversed(nnx: Any) -> Any:
    nested = {"a": {"b": 1, "c": {}}, "d": 2}
    flat = nnx.traversals.flatten_mapping(nested, keep_empty_nodes=True)
    return (
        sorted(flat),
        nnx.traversals.unflatten_mapping(flat),
        nnx.traversals.flatten_mapping(nested, sep="/"),
        nnx.traversals.unflatten_mapping([("a/b", 1)], sep="/"),
        nnx.traversals.flatten_to_sequence(nested, is_leaf=lambda path, _: path == ("a",)),
    )


@program("nn", "module")
def helpers_of_layers(nnx: Any) -> Any:
    key, dtypes = jax.random.key(0), nnx.nn.dtypes
    with jax.enable_x64(False):  # else flax draws in 64 bits
        orthogonal = nnx.nn.recurrent.modified_orthogonal(key, (3, 3))
    return (
        nnx.nn.linear.default_kernel_init(key, (3, 4), jnp.float32),
        nnx.nn.linear.default_bias_init(key, (3,), jnp.float32),
        nnx.nn.linear.default_embed_init(key, (3, 4), jnp.float32),
        orthogonal,
        nnx.nn.linear.canonicalize_padding([1, (0, 2)], 2),
        nnx.nn.linear.canonicalize_padding("SAME", 2),
        nnx.module.first_from(None, 3, error_msg="none"),
        dtypes.promote_dtype((jnp.ones(2, jnp.bfloat16), jnp.arange(2), None), dtype=None),
        str(jnp.dtype(dtypes.canonicalize_dtype(jnp.arange(2)))),
        nnx.nn.activations.relu(X),
        nnx.nn.lora.default_a_initializer(key, (3, 4), jnp.float32),
    )


@program("reprlib", "tracers")
def represented(nnx: Any) -> Any:
    class Point(nnx.reprlib.Representable):
        def __nnx_repr__(self) -> Any:
            yield nnx.reprlib.Object(type=type(self))
            yield nnx.reprlib.Attr("x", (1, "a"))
            yield nnx.reprlib.Attr("kind", int)

    outside = nnx.tracers.TraceState()
    seen = []
    jax.make_jaxpr(lambda x: seen.append(outside.is_valid()) or x)(1.0)
    shown = repr(Point()), repr(nnx.reprlib.PrettySequence([1, 2]))
    return shown, outside.is_valid(), seen, outside.jax_trace == nnx.tracers.current_jax_trace()


@program("spmd")
def renamed(nnx: Any) -> Any:
    names = {nnx.PARTITION_NAME: "layers"}
    param = nnx.Param(jnp.ones((2, 3)), tag=("x", "y"))
    param.set_metadata(out_sharding=("in", "out"))
    nnx.spmd.add_axis([param], 1, names)
    added = param.get_metadata("out_sharding")
    nnx.spmd.remove_axis([param], 1, names)
    return added, param.get_metadata("out_sharding")


SUBMODULES = {
    "bridge": "__name__ wrappers",
    "deprecations": "deprecated",
    "graph": "split merge GraphDef",
    "graphlib": "split merge iter_graph GraphState",
    "object": "Pytree Object data",
    "pytreelib": "Pytree Data check_pytree",
    "statelib": "State FlatState split_state",
    "transforms": "autodiff compilation iteration transforms",
    "variablelib": "Variable Param BatchStat variable_type_from_name",
    "wrappers": "__name__",
}


def submodule_program(name: str, names: str) -> Program:
    return lambda nnx: [hasattr(getattr(nnx, name), n) for n in names.split()]


for _name, _names in SUBMODULES.items():
    PROGRAMS[_name] = submodule_program(_name, _names)


# -- layouts ---------------------------------------------------------------------------------------


@program("get_partition_spec", "get_named_sharding", "logical_axis_rules", "use_eager_sharding",
         "using_eager_sharding", "get_abstract_model", "as_abstract",
         "abstract_with_sharding")  # fmt: skip
def laid_out(nnx: Any) -> Any:
    mesh = jax.make_mesh((1, 1), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def make() -> Any:
        init = nnx.with_partitioning(nnx.initializers.ones_init(), ("in", "b"))
        return nnx.Linear(4, 2, kernel_init=init, use_bias=False, rngs=nnx.Rngs(0))

    with jax.set_mesh(mesh), nnx.logical_axis_rules((("in", "a"),)):
        state = nnx.state(make())
        specs = nnx.get_partition_spec(state)
        shardings = nnx.get_named_sharding(state, mesh)
        _, abstract = nnx.get_abstract_model(make, mesh)
        shapes = nnx.as_abstract(nnx.eval_shape(make))
        others = nnx.abstract_with_sharding(nnx.eval_shape(make))
        with nnx.use_eager_sharding(False):
            off = nnx.using_eager_sharding()
    found = [specs["kernel"], shardings["kernel"], abstract["kernel"], shapes.kernel, others.kernel]
    return off, nnx.using_eager_sharding(), [_spec(_value(item)) for item in found]


def _spec(item: Any) -> tuple[Any, ...]:
    sharding = getattr(item, "sharding", item)
    return tuple(getattr(sharding, "spec", sharding))


# -- comparing -------------------------------------------------------------------------------------


def plain(item: Any) -> Any:
    """Brings a result to what both libraries share: dicts, lists, arrays, names of classes."""
    if isinstance(item, type):
        return item.__name__
    if hasattr(item, "get_value") and hasattr(item, "get_metadata"):
        return [type(item).__name__, plain(item.get_value())]
    if hasattr(item, "items"):
        return {key: plain(value) for key, value in item.items()}
    if isinstance(item, (list, tuple)):
        return [plain(part) for part in item]
    if isinstance(item, (jax.Array, np.ndarray)):
        if _is_key(item):
            item = jax.random.key_data(item)
        return np.asarray(item, np.float64 if jnp.issubdtype(item.dtype, jnp.floating) else None)
    return item
