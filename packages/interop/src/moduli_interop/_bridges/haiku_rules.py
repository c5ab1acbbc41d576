"""Which layer of ours a layer of haiku is: dense layers, norms, containers."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

import moduli
from moduli_interop._bridges.arguments import build, fill
from moduli_interop._bridges.bridge import Conversion, LayerRule
from moduli_interop._bridges.conventions import ChannelsFirst, check_plain, mlp_parts
from moduli_interop._bridges.haiku_convolutions import (
    conv_rules,
    conv_to_theirs,
    transposed_to_theirs,
)
from moduli_interop._bridges.haiku_sequences import sequence_rules
from moduli_interop._bridges.haiku_values import read, read_state, write, write_state, writing

__all__ = ["rules"]


def rules() -> list[LayerRule]:
    """Returns the rules of haiku's layers."""
    import haiku as hk

    return [
        LayerRule(moduli.Linear, hk.Linear, _from_linear, _to_linear),
        LayerRule(moduli.Embed, hk.Embed, _from_embed, _to_embed),
        LayerRule(moduli.LayerNorm, hk.LayerNorm, _from_norm, _to_layer_norm),
        LayerRule(moduli.RMSNorm, hk.RMSNorm, _from_norm, _to_rms_norm),
        LayerRule(moduli.InstanceNorm, hk.InstanceNorm, _from_instance_norm, _to_instance_norm),
        LayerRule(moduli.GroupNorm, hk.GroupNorm, _from_group_norm, _to_group_norm),
        LayerRule(moduli.BatchNorm, hk.BatchNorm, _from_batch_norm, _to_batch_norm),
        LayerRule(moduli.Module, functools.partial, _from_partial),
        LayerRule(moduli.MLP, hk.nets.MLP, _from_mlp, _to_mlp),
        LayerRule(moduli.Sequential, hk.Sequential, _from_sequential, _to_sequential),
        LayerRule(moduli.Dropout, _Dropped, _from_dropout, _to_dropout),
        LayerRule(moduli.Module, hk.Flatten, _from_flatten),
        LayerRule(ChannelsFirst, _First, _from_first, _to_first),
        *conv_rules(),
        *sequence_rules(),
    ]


def _from_linear(part: Any, convert: Conversion) -> Any:
    held = read(part, convert)
    kernel = held["w"]
    layer = build(moduli.Linear, *kernel.shape, use_bias=part.with_bias, param_dtype=kernel.dtype)
    return fill(layer, {"kernel": kernel, "bias": held.get("b")})


def _to_linear(layer: Any, convert: Conversion) -> Any:
    import haiku as hk

    check_plain(layer, convert)
    made = hk.Linear(layer.out_features, layer.use_bias)
    write(made, convert, {"w": layer.kernel, "b": layer.bias})
    return made


def _from_embed(part: Any, convert: Conversion) -> Any:
    table = read(part, convert)["embeddings"]
    return fill(build(moduli.Embed, *table.shape, param_dtype=table.dtype), {"embedding": table})


def _to_embed(layer: Any, convert: Conversion) -> Any:
    import haiku as hk

    check_plain(layer, convert)
    made = hk.Embed(layer.num_embeddings, layer.features)
    write(made, convert, {"embeddings": layer.embedding})
    return made


# -- norms ---------------------------------------------------------------------------------------


def _affine(part: Any, convert: Conversion) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the settings of our norm, and its values."""
    offset = getattr(part, "create_offset", False)
    if not (part.create_scale or offset):
        convert.refuse(
            part,
            "without scale and offset, so that its size is not known (write our layer, which "
            "takes it: `moduli.LayerNorm(4, use_scale=False, use_bias=False)`)",
        )
    held = read(part, convert)
    some = held["scale" if part.create_scale else "offset"]
    settings = {
        "num_features": some.size,
        "epsilon": part.eps,
        "use_scale": part.create_scale,
        "param_dtype": some.dtype,
    }
    if hasattr(part, "create_offset"):
        settings["use_bias"] = offset
    values = {"scale": held.get("scale"), "bias": held.get("offset")}
    return settings, {k: None if x is None else x.reshape(-1) for k, x in values.items()} | {
        "rank": some.ndim
    }


def _from_norm(part: Any, convert: Conversion) -> Any:
    settings, values = _affine(part, convert)
    rank = values.pop("rank")
    axes: dict[str, Any] = {"reduction_axes": part.axis, "feature_axes": part.param_axis}
    for name, axis in axes.items():
        if isinstance(axis, slice):
            if rank == 1:  # the parameters do not tell how many axes the inputs have
                convert.refuse(
                    part, f"whose axes are the {axis} of the inputs' (write their numbers)"
                )
            axis = tuple(range(rank))[axis]
        axes[name] = axis[0] if len(axis) == 1 else tuple(axis)
    cls = moduli.RMSNorm if type(part).__name__ == "RMSNorm" else moduli.LayerNorm
    fast = getattr(part, "use_fast_variance", False)
    return fill(build(cls, **settings, **axes, use_fast_variance=fast), values)


def _norm_arrays(layer: Any, convert: Conversion) -> dict[str, Any]:
    check_plain(layer, convert)
    return {"scale": layer.scale, "offset": getattr(layer, "bias", None)}


def _axes(layer: Any, convert: Conversion) -> dict[str, Any]:
    for axis in (layer.reduction_axes, layer.feature_axes):
        several = isinstance(axis, (tuple, list))
        if (not several and axis != -1) or (several and tuple(axis) != (-1,)):
            _depends(layer, convert)
    return {"axis": layer.reduction_axes, "param_axis": layer.feature_axes}


def _depends(layer: Any, convert: Conversion) -> None:
    """Notes that haiku's arrays have as many axes as the inputs."""
    writing(convert).depend.append((convert.path, type(layer).__name__))


def _to_layer_norm(layer: Any, convert: Conversion) -> Any:
    import haiku as hk

    arrays = _norm_arrays(layer, convert)
    settings: dict[str, Any] = {"eps": layer.epsilon, **_axes(layer, convert)}
    made = hk.LayerNorm(
        create_scale=layer.use_scale, create_offset=layer.use_bias,
        use_fast_variance=layer.use_fast_variance, **settings,
    )  # fmt: skip
    write(made, convert, arrays)
    return made


def _to_rms_norm(layer: Any, convert: Conversion) -> Any:
    import haiku as hk

    arrays = _norm_arrays(layer, convert)
    settings: dict[str, Any] = {"eps": layer.epsilon, **_axes(layer, convert)}
    made = hk.RMSNorm(create_scale=layer.use_scale, **settings)
    write(made, convert, {"scale": arrays["scale"]})
    return made


def _from_instance_norm(part: Any, convert: Conversion) -> Any:
    settings, values = _affine(part, convert)
    values.pop("rank")
    layer = fill(build(moduli.InstanceNorm, **settings, use_fast_variance=False), values)
    return layer if part.param_axis == (-1,) else ChannelsFirst(layer, axis=1)


def _to_instance_norm(layer: Any, convert: Conversion, first: bool = False) -> Any:
    import haiku as hk

    arrays = _norm_arrays(layer, convert)
    if layer.feature_axes not in (-1, (-1,)):
        convert.refuse(layer, f"with feature_axes={layer.feature_axes}")
    made = hk.InstanceNorm(
        layer.use_scale, layer.use_bias, layer.epsilon, data_format=_format(layer, first, convert)
    )
    write(made, convert, arrays)
    return made


def _format(layer: Any, first: bool, convert: Conversion) -> str:
    if first:
        _depends(layer, convert)
    return "channels_first" if first else "channels_last"


def _from_group_norm(part: Any, convert: Conversion) -> Any:
    if part.axis != slice(1, None):
        convert.refuse(part, f"with axis={part.axis}, where ours takes all but the first")
    settings, values = _affine(part, convert)
    values.pop("rank")
    settings |= {"num_groups": part.groups, "use_fast_variance": False}
    layer = fill(build(moduli.GroupNorm, **settings), values)
    return layer if part.channel_index == -1 else ChannelsFirst(layer, axis=1)


def _to_group_norm(layer: Any, convert: Conversion, first: bool = False) -> Any:
    import haiku as hk

    arrays = _norm_arrays(layer, convert)
    if layer.reduction_axes is not None:
        convert.refuse(layer, f"with reduction_axes={layer.reduction_axes}")
    made = hk.GroupNorm(
        layer.num_groups, create_scale=layer.use_scale, create_offset=layer.use_bias,
        eps=layer.epsilon, data_format=_format(layer, first, convert),
    )  # fmt: skip
    write(made, convert, arrays)
    return made


def _from_batch_norm(part: Any, convert: Conversion) -> Any:
    if part.axis is not None:
        convert.refuse(part, f"with axis={part.axis}, where ours takes all but the channels'")
    stats = {"mean": part.mean_ema, "var": part.var_ema}
    kept = {name: read_state(ema, convert)["average"] for name, ema in stats.items()}
    size, dtype = kept["mean"].size, kept["mean"].dtype
    settings: dict[str, Any] = {"use_scale": part.create_scale, "use_bias": part.create_offset}
    values: dict[str, Any] = {}
    if part.create_scale or part.create_offset:
        settings, values = _affine(part, convert)
        values.pop("rank")
        size, dtype = settings.pop("num_features"), settings.pop("param_dtype")
    layer = build(
        moduli.BatchNorm,
        size,
        **{**settings, "epsilon": part.eps},
        momentum=part.mean_ema.decay,
        axis_name=part.cross_replica_axis,
        axis_index_groups=part.cross_replica_axis_index_groups,
        param_dtype=dtype,
    )
    fill(layer, {**values, **{name: x.reshape(-1) for name, x in kept.items()}})
    return layer if part.channel_index == -1 else ChannelsFirst(layer, axis=1)


def _to_batch_norm(layer: Any, convert: Conversion, first: bool = False) -> Any:
    import haiku as hk

    check_plain(layer, convert, but=("axis_name", "axis_index_groups"))
    if layer.axis != -1 or layer.momentum >= 1:
        convert.refuse(layer, f"with axis={layer.axis} and momentum={layer.momentum}")
    _depends(layer, convert)
    made = hk.BatchNorm(
        layer.use_scale, layer.use_bias, layer.momentum, layer.epsilon,
        cross_replica_axis=layer.axis_name,
        cross_replica_axis_index_groups=layer.axis_index_groups,
        data_format="channels_first" if first else "channels_last",
    )  # fmt: skip
    write(made, convert, {"scale": layer.scale, "offset": layer.bias})
    if writing(convert).state is not None:
        # haiku divides by 1 - decay ** steps, as after so many that this is one
        steps = 1 if layer.momentum <= 0 else math.ceil(-40 / math.log(layer.momentum)) + 1
        for ema, kept in ((made.mean_ema, layer.mean), (made.var_ema, layer.var)):
            value = kept.get_value()
            write_state(
                ema,
                convert,
                {"counter": np.int32(steps), "hidden": value, "average": jnp.array(value)},
            )
    trains = writing(convert).initializes or not layer.use_running_average
    return functools.partial(made, is_training=trains)


def _from_partial(part: Any, convert: Conversion) -> Any:
    import haiku as hk

    if not isinstance(part.func, hk.Module):
        return part
    if type(part.func) is not hk.BatchNorm or part.args or set(part.keywords) != {"is_training"}:
        convert.refuse(part.func, "with arguments of its call")
    made = convert(part.func)
    layer = made.layer if isinstance(made, ChannelsFirst) else made
    layer.use_running_average = not part.keywords["is_training"]
    return made


# -- containers ----------------------------------------------------------------------------------


def _from_sequential(part: Any, convert: Conversion) -> Any:
    return moduli.Sequential(*(convert(item, "layers", n) for n, item in enumerate(part.layers)))


def _to_sequential(part: Any, convert: Conversion) -> Any:
    import haiku as hk

    return hk.Sequential([convert(item, "layers", n) for n, item in enumerate(part.layers)])


def _from_mlp(part: Any, convert: Conversion) -> Any:
    layers = [convert(layer, "layers", n) for n, layer in enumerate(part.layers)]
    if len(layers) < 2:
        return moduli.Sequential(*layers, *[part.activation] * part.activate_final)
    model = build(
        moduli.MLP,
        layers[0].in_features,
        [layer.out_features for layer in layers[:-1]],
        layers[-1].out_features,
        activation=part.activation,
        activate_final=part.activate_final,
        use_bias=part.with_bias,
        param_dtype=layers[0].param_dtype,
    )
    for n, layer in enumerate(layers):
        model.layers[n] = layer
    return model


def _to_mlp(part: Any, convert: Conversion) -> Any:
    import haiku as hk

    if part.norms or part.dropouts or isinstance(part.activation, moduli.Module):
        return hk.Sequential(mlp_parts(part, convert))
    check_plain(part, convert)
    made = hk.nets.MLP(
        [layer.out_features for layer in part.layers],
        with_bias=part.use_bias,
        activation=part.activation,
        activate_final=part.activate_final,
    )
    for theirs, ours in zip(made.layers, part.layers, strict=True):
        write(theirs, convert, {"w": ours.kernel, "b": ours.bias})
    return made


class _Dropped:
    """Dropout in a Sequential of haiku: a function of the inputs, with a key of the transform's.

    Args:
      rate: how much is dropped.
      broadcast_dims: axes that share what is dropped.
      deterministic: whether nothing is.
    """

    def __init__(self, rate: float, broadcast_dims: Any, deterministic: bool) -> None:
        self.rate, self.broadcast_dims, self.deterministic = rate, broadcast_dims, deterministic

    def __call__(self, x: Any) -> Any:
        """Drops, unless it is deterministic."""
        import haiku as hk

        if self.deterministic or self.rate == 0:
            return x
        return hk.dropout(hk.next_rng_key(), self.rate, x, self.broadcast_dims)


def _to_dropout(part: Any, convert: Conversion) -> Any:
    return _Dropped(part.rate, part.broadcast_dims, bool(part.deterministic))


def _from_dropout(part: Any, convert: Conversion) -> Any:
    return moduli.Dropout(
        part.rate,
        broadcast_dims=part.broadcast_dims,
        deterministic=part.deterministic,
        rngs=convert.kept["rngs"],
    )


def _flatten(x: Any, preserve_dims: int) -> Any:
    """Makes one axis of those behind the first, or of the last with a negative number."""
    x = jnp.asarray(x)
    kept = preserve_dims if preserve_dims >= 0 else x.ndim + preserve_dims
    return x if x.ndim <= kept else x.reshape((*x.shape[:kept], math.prod(x.shape[kept:])))


def _from_flatten(part: Any, convert: Conversion) -> Any:
    return functools.partial(_flatten, preserve_dims=part.preserve_dims)


class _First:
    """Calls a layer of haiku that has its channels last with inputs that have them elsewhere.

    Args:
      layer: the layer.
      axis: the channels' axis.
    """

    def __init__(self, layer: Any, axis: int) -> None:
        self.layer, self.axis = layer, axis

    def __call__(self, x: Any) -> Any:
        """Calls the layer."""
        return jnp.moveaxis(self.layer(jnp.moveaxis(x, self.axis, -1)), -1, self.axis)


def _from_first(part: Any, convert: Conversion) -> Any:
    return ChannelsFirst(convert(part.layer, "layer"), axis=part.axis)


def _to_first(part: Any, convert: Conversion) -> Any:
    inner = part.layer
    convs = {moduli.Conv: conv_to_theirs, moduli.ConvTranspose: transposed_to_theirs}
    maker = convs.get(type(inner))
    if maker is not None and part.axis == -1 - len(inner.kernel_size):
        return maker(inner, convert, first=True)
    norms = {
        moduli.GroupNorm: _to_group_norm,
        moduli.InstanceNorm: _to_instance_norm,
        moduli.BatchNorm: _to_batch_norm,
    }
    if part.axis == 1 and type(inner) in norms:
        return norms[type(inner)](inner, convert, first=True)
    return _First(convert(inner, "layer"), part.axis)
