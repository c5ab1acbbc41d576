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
from moduli_interop._bridges.conventions import ChannelsFirst, check_plain, mlp_parts
from moduli_interop._bridges.equinox_layers import channels_first_to_theirs, more_rules
from moduli_interop._bridges.equinox_values import replaced, value
from moduli_interop._bridges.frameworks import import_framework, makers

__all__ = ["EquinoxModule", "from_equinox", "rules", "to_equinox"]


def from_equinox(module: Any, *, state: Any = None, rngs: moduli.Rngs | None = None) -> Any:
    """Makes a model of ours from a module of equinox.

    A layer of ``equinox.nn`` becomes our layer; it takes one example, as there (write ``jax.vmap``,
    or call a layer that allows it with a batch). A class of the user's becomes an
    :class:`~moduli_interop.bridge.EquinoxModule`, which calls it with our Variables. As in equinox,
    nothing is shared: a layer that stands in two places becomes two layers.

    Args:
      module: a module of equinox, or lists, tuples and dicts of these.
      state: the ``equinox.nn.State`` of its layers that have one (BatchNorm); by default that with
        which they were made.
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
    conversion.kept["state"] = state
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
        if part is moduli.identity:
            return equinox.nn.Identity()
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
        LayerRule(
            ChannelsFirst,
            nn.Conv,
            None,
            lambda part, convert: channels_first_to_theirs(part.layer, convert),
        ),
        LayerRule(
            moduli.List,
            list,
            None,
            lambda part, convert: [convert(item, n) for n, item in enumerate(part)],
        ),
        LayerRule(EquinoxModule, EquinoxModule, None, lambda part, convert: part.to_module()),
    ]
    return [*found, *more_rules()]


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
    if slope.ndim > 1 or slope.shape == (1,):
        convert.refuse(part, f"with slopes of shape {slope.shape}")
    return moduli.PReLU(slope, num_parameters=slope.size, param_dtype=slope.dtype)


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


def _to_linear(part: Any, convert: Conversion) -> Any:
    import equinox.nn as nn

    check_plain(part, convert)
    made = nn.Linear(
        part.in_features, part.out_features, use_bias=part.use_bias, key=jax.random.key(0)
    )
    kernel, bias = value(part.kernel, convert), value(part.bias, convert)
    return replaced(made, weight=kernel.T, bias=bias)


def _to_embedding(part: Any, convert: Conversion) -> Any:
    import equinox.nn as nn

    check_plain(part, convert)
    return nn.Embedding(weight=value(part.embedding, convert))


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
    return replaced(made, weight=value(part.scale, convert), bias=value(bias, convert))


def _to_prelu(part: Any, convert: Conversion) -> Any:
    import equinox.nn as nn

    check_plain(part, convert)
    return replaced(nn.PReLU(), negative_slope=value(part.negative_slope, convert))


def _to_dropout(part: Any, convert: Conversion) -> Any:
    import equinox.nn as nn

    if part.broadcast_dims:
        convert.refuse(part, f"with broadcast_dims={part.broadcast_dims}")
    return nn.Dropout(part.rate, inference=bool(part.deterministic))


def _to_mlp(part: Any, convert: Conversion) -> Any:
    import equinox.nn as nn

    return nn.Sequential(mlp_parts(part, convert))
