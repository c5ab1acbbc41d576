"""flax.linen: WeightNorm and SpectralNorm, whose values have the path of the weight as a name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp

import moduli
from moduli_interop._bridges.arguments import parameters
from moduli_interop._bridges.bridge import Conversion
from moduli_interop._bridges.conventions import check_once
from moduli_interop._bridges.frameworks import import_framework
from moduli_interop._bridges.linen_places import below, read, write

__all__ = ["from_weight_norms", "to_weight_norms"]

_LAYER = "layer_instance"


def from_weight_norms() -> dict[type, Any]:
    """Returns what makes our wrappers of linen's, by linen's class."""
    linen = import_framework("flax.linen", "flax")
    return {linen.WeightNorm: _from_weight_norm, linen.SpectralNorm: _from_spectral_norm}


def to_weight_norms(variables: dict[str, Any]) -> dict[type, Any]:
    """Returns what makes linen's wrappers of ours, by our class.

    Args:
      variables: where the values go.
    """
    linen = import_framework("flax.linen", "flax")

    def to_weight_norm(part: Any, convert: Conversion) -> Any:
        if part.promote_dtype is not parameters(moduli.WeightNorm)["promote_dtype"].default:
            convert.refuse(part, "with a `promote_dtype` of its own")
        layer = _layer(part, convert)
        params = list(_params(part.layer_instance))
        chosen = {path for path, param in params if part.variable_filter(path, param)}
        names = {"kernel"}
        if chosen != {path for path, _ in params if _selects(names, path)}:
            names = {_name(path) for path in chosen}
        if chosen != {path for path, _ in params if _selects(names, path)}:
            convert.refuse(part, "with a variable_filter that no pieces of names say")
        for path, scale in (part.scales or {}).items():
            _put(variables, "params", (*path, "scale"), scale, convert)
        return linen.WeightNorm(
            layer,
            epsilon=part.epsilon,
            dtype=part.dtype,
            param_dtype=part.param_dtype,
            use_scale=part.use_scale,
            feature_axes=part.feature_axes,
            variable_filter=names,
        )

    def to_spectral_norm(part: Any, convert: Conversion) -> Any:
        layer = _layer(part, convert)
        for path, stat in part.batch_stats.items():
            _put(variables, "batch_stats", path, stat, convert)
        narrow = [p.dtype for _, p in _params(part.layer_instance) if p.ndim > 1]
        return linen.SpectralNorm(
            layer,
            n_steps=part.n_steps,
            epsilon=part.epsilon,
            dtype=narrow[0] if part.dtype is None and narrow else part.dtype,
            param_dtype=part.param_dtype,
            error_on_non_matrix=part.error_on_non_matrix,
        )

    return {moduli.WeightNorm: to_weight_norm, moduli.SpectralNorm: to_spectral_norm}


def _from_weight_norm(part: Any, convert: Conversion) -> Any:
    names = part.variable_filter
    made = moduli.WeightNorm(
        _layer(part, convert),
        feature_axes=part.feature_axes,
        use_scale=part.use_scale,
        epsilon=part.epsilon,
        dtype=part.dtype,
        param_dtype=part.param_dtype,
        variable_filter=lambda path, _: not names or _selects(names, path),
        rngs=moduli.Rngs(0),
    )
    made.use_running_average = True  # a call writes nothing, as there, in training neither
    for path, scale in (made.scales or {}).items():
        _take(part, scale, "params", (*path, "scale"), convert)
    return made


def _from_spectral_norm(part: Any, convert: Conversion) -> Any:
    if part.n_steps < 1:
        convert.refuse(part, f"with n_steps={part.n_steps}, which leaves the layer as it is")
    layer = _layer(part, convert)
    held = [param.dtype for _, param in _params(layer) if param.ndim > 1]
    made = moduli.SpectralNorm(
        layer,
        n_steps=part.n_steps,
        epsilon=part.epsilon,
        # linen's weights have the dtype to which they and the vectors promote
        dtype=jnp.result_type(*held, part.param_dtype) if part.dtype is None else part.dtype,
        param_dtype=part.param_dtype,
        error_on_non_matrix=part.error_on_non_matrix,
        rngs=moduli.Rngs(0),
    )
    for path, stat in made.batch_stats.items():
        _take(part, stat, part.collection_name, path, convert)
    return made


def _layer(part: Any, convert: Conversion) -> Any:
    """Converts the wrapped layer."""
    made = below(part.layer_instance, convert, _LAYER)
    if not any(isinstance(layer, _wrapped()) for layer in (part.layer_instance, made)):
        name = type(part.layer_instance).__name__
        convert.refuse(part, f"around a {name}, whose weights have other names there")
    return made


def _params(layer: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    yield from moduli.to_flat_state(moduli.state(layer, moduli.Param)).items()


def _name(path: tuple[Any, ...]) -> str:
    """Returns the name that linen gives to what belongs to a weight."""
    return "/".join((_LAYER, *(str(name).rstrip("_") for name in path)))


def _selects(names: Any, path: tuple[Any, ...]) -> bool:
    return any(name in _name(path) for name in names)


def _take(
    part: Any, variable: Any, collection: str, path: tuple[Any, ...], convert: Conversion
) -> None:
    value = read(convert, (collection, _name(path)))
    if value is None:
        convert.refuse(part, f"whose variables have no {collection}: {_name(path)}")
    variable.set_value(jnp.array(value))


def _put(
    variables: dict[str, Any],
    collection: str,
    path: tuple[Any, ...],
    variable: Any,
    convert: Conversion,
) -> None:
    check_once(variable, convert)
    place = (collection, *convert.kept["place"], _name(path))
    write(variables, place, variable.get_raw_value())


def _wrapped() -> tuple[type, ...]:
    """Returns those whose parameters have the same paths and shapes in linen.

    They are asked for late, as moduli-layers may be missing.
    """
    return (
        moduli.Linear,
        moduli.LinearGeneral,
        moduli.Conv,
        moduli.ConvTranspose,
        moduli.Einsum,
        moduli.Embed,
        moduli.MultiHeadAttention,
        moduli.LSTMCell,
        moduli.SimpleCell,
    )
