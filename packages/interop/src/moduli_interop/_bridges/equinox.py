"""equinox: modules with the layers of ``equinox.nn``, both ways.

Layers of equinox take one example, without a batch, and convolutions have their features first.
What comes from there keeps that (a convolution stands in a :class:`ChannelsFirst`), so that
functions in between mean the same.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

import moduli
from moduli_interop._bridges.arguments import build, fill
from moduli_interop._bridges.bridge import Conversion, LayerRule
from moduli_interop._bridges.conventions import ChannelsFirst, check_plain
from moduli_interop._bridges.frameworks import import_framework, makers

__all__ = ["EquinoxModule", "from_equinox", "rules", "to_equinox"]


def from_equinox(module: Any, *, rngs: moduli.Rngs | None = None) -> Any:
    """Makes a model of ours from a module of equinox.

    A layer of ``equinox.nn`` becomes our layer; it takes one example, as there (write ``jax.vmap``,
    or call a layer that allows it with a batch). A class of the user's becomes an
    :class:`~moduli_interop.bridge.EquinoxModule`, which calls it with our Variables. As in equinox,
    nothing is shared: a layer that stands in two places becomes two layers.

    Args:
      module: a module of equinox, or lists, tuples and dicts of these.
      rngs: where the random numbers of dropout come from; it is needed for training.

    Returns:
      The model.

    Raises:
      BridgeError: a layer of ``equinox.nn``, or one of its settings, has no counterpart.
      MissingFrameworkError: equinox is not installed.

    Example:
      >>> import equinox, jax, jax.numpy as jnp, moduli as nnx
      >>> theirs = equinox.nn.MLP(3, 2, 8, 1, key=jax.random.key(0))
      >>> ours = nnx.from_equinox(theirs)
      >>> bool(jnp.allclose(ours(jnp.ones(3)), theirs(jnp.ones(3))))
      True
    """
    equinox = import_framework("equinox", "equinox")

    def fallback(part: Any, convert: Conversion) -> Any:
        if isinstance(part, equinox.Module):
            if type(part).__module__.startswith("equinox."):
                return NotImplemented
            return EquinoxModule(part)
        return part if callable(part) else NotImplemented

    conversion = Conversion(
        "equinox",
        makers("equinox", "from"),
        wanted="layer of moduli",
        advice=(
            "put `moduli.bridge.EquinoxModule(layer)` in its place, which calls it, or add a rule "
            "for the class with the hook moduli_bridges"
        ),
        fallback=fallback,
        shares=False,
    )
    conversion.kept["rngs"] = rngs
    return conversion(module)


def to_equinox(model: Any) -> Any:
    """Makes a module of equinox from a model of ours.

    Args:
      model: a module of ours, a function, or lists, tuples and dicts of these.

    Returns:
      The module of equinox.

    Raises:
      BridgeError: a layer, or one of its settings, has no counterpart in equinox, or a Variable
        stands in two places, which equinox would train as two.
      MissingFrameworkError: equinox is not installed.

    Example:
      >>> import jax.numpy as jnp, moduli as nnx
      >>> nnx.to_equinox(nnx.Linear(3, 4, rngs=nnx.Rngs(0))).weight.shape
      (4, 3)
    """
    equinox = import_framework("equinox", "equinox")

    def fallback(part: Any, convert: Conversion) -> Any:
        if isinstance(part, moduli.Module) or not callable(part):
            return NotImplemented
        return equinox.nn.Lambda(part)

    return Conversion(
        "equinox",
        makers("equinox", "to"),
        wanted="layer of equinox",
        advice=(
            "modules of moduli are pytrees, so a module of equinox may hold this one as it is; or "
            "add a rule for the class with the hook moduli_bridges"
        ),
        fallback=fallback,
        shares=False,
    )(model)


class EquinoxModule(moduli.Module):
    """A module of equinox as one of ours: its floating-point arrays are Params, others Variables.

    Args:
      module: the module.

    Example:
      >>> import equinox, jax, moduli as nnx
      >>> class Scale(equinox.Module):
      ...     factor: jax.Array
      ...     def __call__(self, x):
      ...         return x * self.factor
      >>> model = nnx.bridge.EquinoxModule(Scale(jax.numpy.array(2.0)))
      >>> float(nnx.grad(lambda model: model(3.0))(model).arrays[".factor"].value)
      3.0
    """

    __module__ = "moduli_interop.bridge"

    def __init__(self, module: Any) -> None:
        equinox = import_framework("equinox", "equinox")
        arrays, rest = equinox.partition(module, equinox.is_array)
        pairs, treedef = jax.tree_util.tree_flatten_with_path(arrays)
        self.arrays = {}
        for path, array in pairs:
            kind = moduli.Param if jnp.issubdtype(array.dtype, jnp.inexact) else moduli.Variable
            self.arrays[jax.tree_util.keystr(path)] = kind(jnp.asarray(array))
        self.names = tuple(jax.tree_util.keystr(path) for path, _ in pairs)
        self.treedef = moduli.static(treedef)
        self.rest = moduli.static(_Held(rest))

    def to_module(self) -> Any:
        """Returns the module of equinox, with the values of the Variables."""
        equinox = import_framework("equinox", "equinox")
        values = [self.arrays[name].value for name in self.names]
        held: Any = self.rest
        return equinox.combine(jax.tree.unflatten(self.treedef, values), held.value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the module."""
        return self.to_module()(*args, **kwargs)


class _Held:
    """A value that is compared by identity."""

    def __init__(self, value: Any) -> None:
        self.value = value


def rules() -> list[LayerRule]:
    """Returns the rules of ``equinox.nn``."""
    import equinox.nn as nn

    found = [
        LayerRule(moduli.Linear, nn.Linear, _from_linear, _to_linear),
        LayerRule(moduli.Embed, nn.Embedding, _from_embedding, _to_embedding),
        LayerRule(moduli.LayerNorm, nn.LayerNorm, _from_layer_norm, _to_norm),
        LayerRule(moduli.RMSNorm, nn.RMSNorm, _from_rms_norm, _to_norm),
        LayerRule(moduli.PReLU, nn.PReLU, _from_prelu, _to_prelu),
        LayerRule(moduli.Dropout, nn.Dropout, _from_dropout, _to_dropout),
        LayerRule(
            moduli.Sequential,
            nn.Sequential,
            lambda part, convert: moduli.Sequential(
                *(convert(item, "layers", n) for n, item in enumerate(part.layers))
            ),
            lambda part, convert: nn.Sequential(
                [convert(item, "layers", n) for n, item in enumerate(part.layers)]
            ),
        ),
        LayerRule(moduli.MLP, nn.MLP, _from_mlp, _to_mlp),
        LayerRule(moduli.Module, nn.Lambda, lambda part, convert: part.fn),
        LayerRule(moduli.Module, nn.Identity, lambda part, convert: moduli.identity),
        LayerRule(ChannelsFirst, nn.Conv, None, _to_conv),
        LayerRule(
            moduli.List,
            list,
            None,
            lambda part, convert: [convert(item, n) for n, item in enumerate(part)],
        ),
        LayerRule(EquinoxModule, EquinoxModule, None, lambda part, convert: part.to_module()),
    ]
    kinds: tuple[Any, ...] = (nn.Conv, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return found + [LayerRule(moduli.Module, kind, _from_conv) for kind in kinds]


# -- from equinox --------------------------------------------------------------------------------


def _from_linear(part: Any, convert: Conversion) -> Any:
    if "scalar" in (part.in_features, part.out_features):
        convert.refuse(part, 'with the size "scalar"')
    layer = build(
        moduli.Linear,
        part.in_features,
        part.out_features,
        use_bias=part.use_bias,
        param_dtype=part.weight.dtype,
    )
    return fill(layer, {"kernel": part.weight.T, "bias": part.bias})


def _from_embedding(part: Any, convert: Conversion) -> Any:
    layer = build(
        moduli.Embed, part.num_embeddings, part.embedding_size, param_dtype=part.weight.dtype
    )
    return fill(layer, {"embedding": part.weight})


def _from_conv(part: Any, convert: Conversion) -> Any:
    rank = part.num_spatial_dims
    padding = part.padding
    if part.padding_mode != "ZEROS":
        spans = [(k - 1) * d for k, d in zip(part.kernel_size, part.dilation, strict=True)]
        if isinstance(padding, str):
            same = padding == "SAME" and all(step == 1 for step in part.stride)
        else:
            same = list(padding) == [(span // 2, span - span // 2) for span in spans]
        if part.padding_mode not in ("REFLECT", "CIRCULAR") or not same:
            convert.refuse(part, f"with padding_mode={part.padding_mode!r} and this padding")
        padding = part.padding_mode
    layer = build(
        moduli.Conv,
        part.in_channels,
        part.out_channels,
        part.kernel_size,
        part.stride,
        padding=padding,
        kernel_dilation=part.dilation,
        feature_group_count=part.groups,
        use_bias=part.use_bias,
        param_dtype=part.weight.dtype,
    )
    bias = None if part.bias is None else part.bias.reshape(-1)
    fill(layer, {"kernel": jnp.moveaxis(part.weight, (0, 1), (-1, -2)), "bias": bias})
    return ChannelsFirst(layer, axis=-1 - rank)


def _norm(cls: Any, part: Any, convert: Conversion, **settings: Any) -> Any:
    if len(part.shape) != 1:
        convert.refuse(part, f"with shape={part.shape}")
    held = part.weight if part.weight is not None else part.bias
    layer = build(
        cls,
        part.shape[0],
        epsilon=part.eps,
        use_scale=part.use_weight,
        param_dtype=jnp.float32 if held is None else held.dtype,
        **settings,
    )
    return fill(layer, {"scale": part.weight, "bias": part.bias})


def _from_layer_norm(part: Any, convert: Conversion) -> Any:
    return _norm(moduli.LayerNorm, part, convert, use_bias=part.use_bias)


def _from_rms_norm(part: Any, convert: Conversion) -> Any:
    if part.use_bias:
        convert.refuse(part, "with use_bias=True, which our RMSNorm lacks")
    return _norm(moduli.RMSNorm, part, convert)


def _from_prelu(part: Any, convert: Conversion) -> Any:
    slope = part.negative_slope
    if slope.ndim:
        convert.refuse(part, f"with {slope.size} slopes")
    return moduli.PReLU(slope, param_dtype=slope.dtype)


def _from_dropout(part: Any, convert: Conversion) -> Any:
    rngs = convert.kept.get("rngs")
    return moduli.Dropout(part.p, deterministic=part.inference, rngs=rngs)


def _from_mlp(part: Any, convert: Conversion) -> Any:
    for name in ("activation", "final_activation"):
        if jax.tree.leaves(getattr(part, name)) not in ([], [getattr(part, name)]):
            convert.refuse(part, f"whose `{name}` has parameters of its own")
    if part.scan:
        convert.refuse(part, "with scan=True")
    layers: list[Any] = []
    for n, layer in enumerate(part.layers):
        last = n == len(part.layers) - 1
        layers += [convert(layer, "layers", n), part.final_activation if last else part.activation]
    return moduli.Sequential(*layers)


# -- to equinox ----------------------------------------------------------------------------------


def _value(variable: Any, convert: Conversion) -> Any:
    """Returns a Variable's value; raises if it was met before."""
    if variable is None:
        return None
    met = convert.kept.setdefault("met", {})
    if id(variable) in met:
        convert.refuse(
            variable,
            f"which also stands at `{moduli.errors.format_path(met[id(variable)][1])}`, and which "
            "equinox would train as two arrays (see equinox.nn.Shared)",
        )
    met[id(variable)] = (variable, convert.path)
    return variable.value


def _replaced(module: Any, **arrays: Any) -> Any:
    """Returns a module with other arrays."""
    import equinox

    names = [name for name, array in arrays.items() if array is not None]
    return equinox.tree_at(
        lambda module: [getattr(module, name) for name in names],
        module,
        [arrays[name] for name in names],
    )


def _to_linear(part: Any, convert: Conversion) -> Any:
    import equinox.nn as nn

    check_plain(part, convert)
    made = nn.Linear(
        part.in_features, part.out_features, use_bias=part.use_bias, key=jax.random.key(0)
    )
    kernel, bias = _value(part.kernel, convert), _value(part.bias, convert)
    return _replaced(made, weight=kernel.T, bias=bias)


def _to_embedding(part: Any, convert: Conversion) -> Any:
    import equinox.nn as nn

    check_plain(part, convert)
    return nn.Embedding(weight=_value(part.embedding, convert))


def _to_norm(part: Any, convert: Conversion) -> Any:
    import equinox.nn as nn

    check_plain(part, convert)
    if part.reduction_axes != -1 or part.feature_axes != -1:
        convert.refuse(part, "with other axes than the last")
    bias = getattr(part, "bias", None)
    made = getattr(nn, type(part).__name__)(
        part.num_features, eps=part.epsilon, use_weight=part.scale is not None,
        use_bias=bias is not None,
    )  # fmt: skip
    return _replaced(made, weight=_value(part.scale, convert), bias=_value(bias, convert))


def _to_prelu(part: Any, convert: Conversion) -> Any:
    import equinox.nn as nn

    check_plain(part, convert)
    return _replaced(nn.PReLU(), negative_slope=_value(part.negative_slope, convert))


def _to_dropout(part: Any, convert: Conversion) -> Any:
    import equinox.nn as nn

    if part.broadcast_dims:
        convert.refuse(part, f"with broadcast_dims={part.broadcast_dims}")
    return nn.Dropout(part.rate, inference=bool(part.deterministic))


def _to_mlp(part: Any, convert: Conversion) -> Any:
    import equinox.nn as nn

    layers: list[Any] = []
    norms, dropouts = list(part.norms or ()), list(part.dropouts or ())
    for n, layer in enumerate(part.layers):
        layers.append(convert(layer, "layers", n))
        if n < len(part.layers) - 1 or part.activate_final:
            layers += [convert(norms[n], "norms", n)] if n < len(norms) else []
            layers.append(convert(part.activation, "activation"))
            layers += [convert(dropouts[n], "dropouts", n)] if n < len(dropouts) else []
    return nn.Sequential(layers)


def _to_conv(part: Any, convert: Conversion) -> Any:
    import equinox.nn as nn

    layer = part.layer
    check_plain(layer, convert)
    if type(layer) is not moduli.Conv:
        convert.refuse(part, "around a layer of which equinox has none with its features first")
    rank = len(layer.kernel_size)
    strides, spread, dilation, padding = layer._window()
    if any(d != 1 for d in spread) or layer.mask is not None or padding == "CAUSAL":
        convert.refuse(part, "with input_dilation, mask or CAUSAL padding")
    mode = "ZEROS"
    if padding in ("CIRCULAR", "REFLECT"):
        spans = [(k - 1) * d for k, d in zip(layer.kernel_size, dilation, strict=True)]
        mode, padding = padding, tuple((span // 2, span - span // 2) for span in spans)
    made = nn.Conv(
        rank,
        layer.in_features,
        layer.out_features,
        layer.kernel_size,
        strides,
        padding,
        dilation,
        layer.feature_group_count,
        layer.use_bias,
        mode,
        key=jax.random.key(0),
    )
    bias = _value(layer.bias, convert)
    return _replaced(
        made,
        weight=jnp.moveaxis(_value(layer.kernel, convert), (-1, -2), (0, 1)),
        bias=None if bias is None else bias.reshape((-1, *[1] * rank)),
    )
