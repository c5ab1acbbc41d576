"""flax.linen: its own layers with their variables as our layers, and the other way.

A module of linen holds no values: they stand in a dict of collections beside it. Its layers have
the settings and the order of axes of ours, under nearly the same names; the sizes of inputs are
those of the arrays. Other modules of linen are called by :class:`~moduli_interop.bridge.ToNNX`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import moduli
from moduli_interop._bridges.arguments import build, fill, parameters
from moduli_interop._bridges.bridge import Conversion
from moduli_interop._bridges.conventions import check_once
from moduli_interop._bridges.frameworks import import_framework
from moduli_interop._bridges.linen_networks import from_theirs, to_theirs
from moduli_interop._bridges.linen_places import at, below, fold, gather, read, write
from moduli_interop._bridges.linen_weight_norms import from_weight_norms, to_weight_norms

__all__ = ["as_linen", "from_linen"]

_ADVICE = (
    "call it with `moduli.bridge.ToNNX(module)`, or a class of ours with `moduli.bridge.to_linen`"
)
# settings that speak of how values begin or are computed, not of what is computed
_FREE = ("name", "parent", "precision", "use_fast_variance", "rng_collection", "rngs", "keep_rngs")
_JOINED = "with several feature_axes, whose parameters have one axis here and several in linen"
_SPELLED = {"batch_dims": "batch_axis", "shape": "kernel_shape"}


@dataclasses.dataclass(frozen=True)
class _Layer:
    """One layer of both.

    Attributes:
      ours: our class.
      theirs: the name of linen's.
      sizes: makes our arguments that linen takes from its inputs, of the module and its arrays.
      arrays: the collection and name of each Variable, by our path, where not ``params`` and equal.
      kept: our arguments that linen's has not, because its inputs tell them.
      joined: of a Variable that is several arrays in linen, those along the last axis; None for one
        that linen has not, because it adds to the one at the same place of another.
      told: linen's settings that ours has not, because its arrays tell them.
    """

    ours: Any
    theirs: str
    sizes: Callable[[Any, Mapping[str, Any]], dict[str, Any]]
    arrays: Mapping[str, tuple[str, ...]]
    kept: tuple[str, ...] = ()
    joined: Mapping[str, tuple[tuple[str, ...] | None, ...]] = dataclasses.field(
        default_factory=dict
    )
    told: tuple[str, ...] = ()


def _params(*names: str) -> dict[str, tuple[str, ...]]:
    return {name: ("params", *name.split(".")) for name in names}


def _dense(module: Any, held: Mapping[str, Any]) -> dict[str, Any]:
    return {"in_features": held["kernel"].shape[0], "out_features": module.features}


def _general(module: Any, held: Mapping[str, Any]) -> dict[str, Any]:
    axes = module.axis if isinstance(module.axis, (tuple, list)) else (module.axis,)
    return {"in_features": held["kernel"].shape[: len(axes)], "out_features": module.features}


def _conv(module: Any, held: Mapping[str, Any]) -> dict[str, Any]:
    turned = getattr(module, "transpose_kernel", False)
    per_group = held["kernel"].shape[-1 if turned else -2]
    groups = getattr(module, "feature_group_count", 1)
    return {"in_features": per_group * groups, "out_features": module.features}


def _norm(module: Any, held: Mapping[str, Any]) -> dict[str, Any]:
    return {"num_features": math.prod(next(iter(held.values())).shape)}


def _attention(module: Any, held: Mapping[str, Any]) -> dict[str, Any]:
    kernel = held["query.kernel"]
    return {
        "in_features": kernel.shape[0],
        "in_kv_features": held["key.kernel"].shape[0],
        "qkv_features": kernel.shape[1] * kernel.shape[2],
        "out_features": held["out.kernel"].shape[-1],
    }


def _cell(module: Any, held: Mapping[str, Any]) -> dict[str, Any]:
    kernel = next(iter(held.values()))  # of the inputs
    return {"in_features": kernel.shape[0], "hidden_features": module.features}


def _gru(module: Any, held: Mapping[str, Any]) -> dict[str, Any]:
    return {**_cell(module, held), "use_hidden_bias": True}  # linen has it at one of three gates


def _einsum(module: Any, held: Mapping[str, Any]) -> dict[str, Any]:
    bias = held.get("bias") if module.use_bias else None
    return {"kernel_shape": module.shape, "bias_shape": None if bias is None else bias.shape}


def _no_sizes(module: Any, held: Mapping[str, Any]) -> dict[str, Any]:
    return {}


_FEATURES = ("in_features", "out_features")
_AFFINE = _params("scale", "bias")


def _layers() -> list[_Layer]:
    stats = {"mean": ("batch_stats", "mean"), "var": ("batch_stats", "var")}
    maps = [f"{m}.{p}" for m in ("query", "key", "value", "out") for p in ("kernel", "bias")]
    norms = ("query_ln.scale", "key_ln.scale")
    weights, features = _params("kernel", "bias"), ("num_features",)
    sizes = ("in_features", "in_kv_features")
    cell = ("in_features", "hidden_features")
    gates = {f"i{gate}.kernel": f"i{gate}.kernel" for gate in "ifgo"}
    gates |= {
        f"h{gate}.{name}": f"h{gate}.{name}" for gate in "ifgo" for name in ("kernel", "bias")
    }
    lstm = {
        ours.replace("if.", "if_."): ("params", *theirs.split("."))
        for ours, theirs in gates.items()
    }
    simple = {
        f"dense_{name}": ("params", *name.split(".")) for name in ("i.kernel", "i.bias", "h.kernel")
    }
    fused = {
        "dense_i.kernel": tuple(("params", f"i{gate}", "kernel") for gate in "ifgo"),
        "dense_h.kernel": tuple(("params", f"h{gate}", "kernel") for gate in "ifgo"),
        "dense_h.bias": tuple(("params", f"h{gate}", "bias") for gate in "ifgo"),
    }
    gru: dict[str, tuple[tuple[str, ...] | None, ...]] = {
        "dense_i.kernel": tuple(("params", f"i{gate}", "kernel") for gate in "rzn"),
        "dense_i.bias": tuple(("params", f"i{gate}", "bias") for gate in "rzn"),
        "dense_h.kernel": tuple(("params", f"h{gate}", "kernel") for gate in "rzn"),
        "dense_h.bias": (None, None, ("params", "hn", "bias")),
    }
    shapes = ("kernel_shape", "bias_shape")
    return [
        _Layer(moduli.Linear, "Dense", _dense, weights, _FEATURES),
        _Layer(moduli.LinearGeneral, "DenseGeneral", _general, weights, _FEATURES),
        _Layer(moduli.Conv, "Conv", _conv, weights, _FEATURES),
        _Layer(moduli.ConvTranspose, "ConvTranspose", _conv, weights, _FEATURES),
        _Layer(moduli.Embed, "Embed", _no_sizes, _params("embedding")),
        _Layer(moduli.LayerNorm, "LayerNorm", _norm, _AFFINE, features),
        _Layer(moduli.RMSNorm, "RMSNorm", _norm, _params("scale"), features),
        _Layer(moduli.GroupNorm, "GroupNorm", _norm, _AFFINE, features),
        _Layer(moduli.InstanceNorm, "InstanceNorm", _norm, _AFFINE, features),
        _Layer(moduli.BatchNorm, "BatchNorm", _norm, {**_AFFINE, **stats}, features),
        _Layer(
            moduli.MultiHeadAttention,
            "MultiHeadDotProductAttention",
            _attention,
            _params(*maps, *norms),
            sizes,
        ),
        _Layer(moduli.PReLU, "PReLU", _no_sizes, _params("negative_slope")),
        _Layer(moduli.LSTMCell, "LSTMCell", _cell, lstm, cell),
        _Layer(moduli.OptimizedLSTMCell, "OptimizedLSTMCell", _cell, {}, cell, fused),
        _Layer(moduli.GRUCell, "GRUCell", _gru, {}, cell, gru),
        _Layer(moduli.SimpleCell, "SimpleCell", _cell, simple, cell),
        _Layer(moduli.Einsum, "Einsum", _einsum, weights, shapes, told=("use_bias",)),
        _Layer(moduli.Dropout, "Dropout", _no_sizes, {}),
    ]


def from_linen(module: Any, variables: Any = None, *, rngs: moduli.Rngs | None = None) -> Any:
    """Makes a model of ours from a layer of flax.linen, or a Sequential of them, and its variables.

    Args:
      module: the module, as ``flax.linen.Dense(4)``.
      variables: what its ``init`` returned.
      rngs: where the random numbers of dropout come from; it is needed for training.

    Returns:
      Our layer, or a Sequential.

    Raises:
      BridgeError: a layer, or one of its settings, has no counterpart, or variables
        are missing.
      MissingFrameworkError: flax is not installed.

    Example:
      >>> import flax.linen, jax, jax.numpy as jnp, moduli as nnx
      >>> dense = flax.linen.Dense(4)
      >>> variables = dense.init(jax.random.key(0), jnp.ones((1, 3)))
      >>> layer = nnx.bridge.from_linen(dense, variables)
      >>> type(layer).__name__, layer.kernel.shape
      ('Linear', (3, 4))
    """
    linen = import_framework("flax.linen", "flax")
    makers: dict[type, Any] = {getattr(linen, row.theirs): _maker(row) for row in _layers()}

    convert = _conversion(
        {
            **makers,
            **from_theirs(),
            **from_weight_norms(),
            linen.Sequential: lambda *layers: moduli.Sequential(*layers),
        },
        linen.Sequential,
        linen.Module,
        "layer of moduli",
    )
    convert.kept |= {"variables": {} if variables is None else variables, "rngs": rngs}
    return convert(module)


def _maker(row: _Layer) -> Any:
    def make(part: Any, convert: Conversion) -> Any:
        held = {path: read(convert, where) for path, where in row.arrays.items()}
        held |= {path: gather(convert, wheres) for path, wheres in row.joined.items()}
        held = {path: array for path, array in held.items() if array is not None}
        fields = {f.name: f for f in dataclasses.fields(part) if f.name not in _FREE}
        paths = (*row.arrays, *row.joined)
        if paths and not held:
            convert.refuse(part, "whose variables are not there, so that its sizes are not known")
        if _several(getattr(part, "feature_axes", -1)):
            convert.refuse(part, _JOINED)
        settings = row.sizes(part, held)
        takes = parameters(row.ours)
        for name, field in fields.items():
            value = getattr(part, name)
            ours = _SPELLED.get(name, name)
            if name == "carry_init" and value is not field.default:
                settings[name] = value
            if (name == "features" and row.ours is not moduli.Embed) or "_init" in name:
                continue
            if name in row.told:
                continue
            if name == "batch_dims":
                if value:
                    convert.refuse(part, f"with batch_dims={value}")
            elif ours in takes and ours not in settings and name != "promote_dtype":
                if "general" in name or name == "attention_fn":  # what either takes by default
                    if value is not field.default:
                        convert.refuse(part, f"with a `{name}` of its own")
                    continue
                settings[ours] = value
            elif ours not in takes and value != field.default:
                convert.refuse(part, f"with {name}={value!r}, which our layer has not")
        if row.ours is moduli.GroupNorm and settings.get("group_size") is not None:
            settings["num_groups"] = None
        if row.ours is moduli.Dropout:
            return moduli.Dropout(**settings, rngs=convert.kept["rngs"])
        layer = build(row.ours, **settings)
        # linen leaves a variable alone that its settings do not name
        fill(layer, {path: array for path, array in held.items() if at(layer, path) is not None})
        for name, value in settings.items():
            if isinstance(value, (jax.Array, np.ndarray)):  # a mask, of which there is a shape yet
                setattr(layer, name, value)
        missing = [p for p in paths if at(layer, p) is not None and p not in held]
        if missing:
            convert.refuse(part, f"whose variables have no {', '.join(missing)}")
        return layer

    return make


def _several(axes: Any) -> bool:
    return isinstance(axes, (tuple, list)) and len(axes) > 1


def as_linen(model: Any) -> tuple[Any, dict[str, Any]]:
    """Makes a layer of flax.linen, or a Sequential of them, and its variables of a model of ours.

    Args:
      model: a layer of ours, or a Sequential of layers and functions.

    Returns:
      ``(module, variables)``, for ``module.apply(variables, ...)``.

    Raises:
      BridgeError: a layer, or one of its settings, has no counterpart.
      MissingFrameworkError: flax is not installed.

    Example:
      >>> import jax.numpy as jnp, moduli as nnx
      >>> module, variables = nnx.bridge.as_linen(nnx.Linear(3, 4, rngs=nnx.Rngs(0)))
      >>> type(module).__name__, module.apply(variables, jnp.ones((2, 3))).shape
      ('Dense', (2, 4))
    """
    linen = import_framework("flax.linen", "flax")
    variables: dict[str, Any] = {}

    def maker(row: _Layer) -> Any:
        cls = getattr(linen, row.theirs)
        fields = {f.name: f for f in dataclasses.fields(cls)}

        def make(part: Any, convert: Conversion) -> Any:
            if _several(getattr(part, "feature_axes", -1)):
                convert.refuse(part, _JOINED)
            settings: dict[str, Any] = {}
            for name, parameter in parameters(row.ours).items():
                if name in _FREE or name in row.kept or not hasattr(part, name):
                    continue
                value = getattr(part, name)
                if name in fields:
                    if "general" in name or name in ("attention_fn", "promote_dtype"):
                        if value is not None and value is not parameter.default:
                            convert.refuse(part, f"with a `{name}` of its own")
                    elif name == "carry_init":
                        settings |= {} if value is None else {name: value}
                    elif "_init" not in name:
                        settings[name] = value
                elif _differs(part, name, value, parameter.default):
                    convert.refuse(part, f"with {name}={value!r}, which linen's has not")
            for name in ("out_features", "hidden_features"):
                if name in row.kept:
                    settings["features"] = getattr(part, name)
            if row.ours is moduli.GroupNorm:
                settings["group_size"] = None
            if row.ours is moduli.Einsum:
                _check_bias(part, convert)
                settings |= {"shape": part.kernel_shape, "use_bias": part.bias is not None}
            for path in row.joined:
                if (variable := at(part, path)) is not None:
                    check_once(variable, convert)
            for where, array in fold(part, row.joined).items():
                write(variables, (where[0], *convert.kept["place"], *where[1:]), array)
            for path, where in row.arrays.items():
                variable = at(part, path)
                if variable is not None:
                    write(
                        variables,
                        (where[0], *convert.kept["place"], *where[1:]),
                        variable.get_raw_value(),
                    )
                    check_once(variable, convert)
            return cls(**settings)

        return make

    makers: dict[type, Any] = {row.ours: maker(row) for row in _layers()}
    convert = _conversion(
        {
            **makers,
            **to_theirs(),
            **to_weight_norms(variables),
            moduli.Sequential: lambda *layers: linen.Sequential(layers),
        },
        moduli.Sequential,
        moduli.Module,
        "layer of flax.linen",
    )
    return convert(model), variables


def _conversion(makers: dict[type, Any], sequence: type, module: type, wanted: str) -> Conversion:
    """Returns what converts layers one way, with the place of each among linen's variables.

    Args:
      makers: makes a layer, by the class of the other library's; that of ``sequence`` takes layers.
      sequence: the Sequential of the library that layers come from.
      module: the base class of that library's layers; another callable stays as it is.
      wanted: what is made, for messages.
    """

    def sequential(part: Any, convert: Conversion) -> Any:
        made = [
            below(layer, convert, "layers", number, at_place=f"layers_{number}")
            for number, layer in enumerate(part.layers)
        ]
        return makers[sequence](*made)

    def fallback(part: Any, convert: Conversion) -> Any:
        return NotImplemented if isinstance(part, module) or not callable(part) else part

    rules = {**makers, sequence: sequential}
    settings: dict[str, Any] = {"advice": _ADVICE, "fallback": fallback, "shares": False}
    convert = Conversion("flax.linen", rules, wanted=wanted, **settings)
    convert.kept["place"] = ()
    return convert


def _check_bias(part: Any, convert: Conversion) -> None:
    """Refuses an Einsum whose bias is of another shape than linen works out."""
    operands, _, output = (part.einsum_str or "").partition("->")
    letters = operands.partition(",")[2]
    if part.bias is None or part.einsum_str is None or "..." in letters:  # known in the call only
        return
    sizes = dict(zip(letters, part.kernel_shape, strict=True))
    wanted = tuple(sizes[name] for name in output if name in sizes)
    if wanted != part.bias_shape:
        convert.refuse(part, f"with bias_shape={part.bias_shape}, where linen's is {wanted}")


def _differs(part: Any, name: str, value: Any, default: Any) -> bool:
    """Returns whether a setting that linen has not is in use."""
    if name == "num_kv_heads":
        return value != part.num_heads
    if name == "dtype":
        return value is not None and jnp.dtype(value) != jnp.dtype(part.param_dtype)
    if name == "batch_axis":
        return bool(dict(value))
    return value is not default and value != default
