"""Measurements: the statistics of a model's tensors at one time, by path; a JAX pytree."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import moduli
from moduli import errors
from moduli_debug._module_filter import path_text
from moduli_debug._report.statistics import dead_units, describe_all, units_of

__all__ = ["KINDS", "Measurements", "Tensor", "measure"]

KINDS = ("parameters", "gradients", "activations", "updates")
_LOGARITHMIC = ("gradients", "updates")  # their magnitudes differ by decades


class Tensor(NamedTuple):
    """What is known of a measured tensor before it is measured.

    Attributes:
      kind: one of :data:`KINDS`.
      path: where it stands, as text.
      size: how many numbers it has.
      units: how many places its last axis has, for activations.
    """

    kind: str
    path: str
    size: int
    units: int | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Measurements:
    """The statistics of a model's tensors at one time; what ``TrainingReport.measure`` returns.

    A pytree of small arrays, so a jitted training step may return it.

    Attributes:
      tensors: what was measured.
      numbers: a vector of statistics for each tensor, in a list or stacked.
      counts: the counts of a histogram for each tensor.
      dead: the number of dead units for each tensor that has units.
    """

    tensors: tuple[Tensor, ...] = dataclasses.field(metadata={"static": True})
    numbers: Any
    counts: Any
    dead: list[Any]

    def __repr__(self) -> str:
        kinds = [tensor.kind for tensor in self.tensors]
        counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in KINDS if kind in kinds)
        return f"Measurements({counts})"


def measure(
    parameters: Any,
    *,
    model: moduli.Module | Mapping[Any, Any] | None,
    grads: Mapping[Any, Any] | None,
    activations: Mapping[Any, Any] | None,
    updates: Mapping[Any, Any] | None,
    before: Mapping[Any, Any] | None,
) -> Measurements:
    """Measures what is given; see ``TrainingReport.measure``."""
    given = {"parameters": {}, "gradients": {}, "activations": {}, "updates": {}}
    if model is not None:
        given["parameters"] = _parameters(model, parameters)
    if before is not None:
        if model is None or updates is not None:
            other = "without model=" if model is None else "together with updates="
            raise errors.StructureError(
                f"TrainingReport: before= was given {other}; the updates are the parameters of "
                "model= less those before, so give just these two"
            )
        old = _tensors(before, "before")
        given["updates"] = _differences(model, before, given["parameters"], old)
        given["parameters"] = old  # |update| / |weight| is that of the weights before
    for kind, name, mapping in (
        ("gradients", "grads", grads),
        ("activations", "activations", activations),
        ("updates", "updates", updates),
    ):
        if mapping is not None:
            given[kind] = _tensors(mapping, name)
    tensors, arrays, dead = [], [], []
    for kind, found in given.items():
        for path, values in found.items():
            units = units_of(values) if kind == "activations" else None
            if units is not None:
                dead.append(dead_units(values))
            size = sum(value.size for value in values)
            tensors.append(Tensor(kind, path, size, units))
            arrays.append((values, kind in _LOGARITHMIC))
    if tensors:
        numbers, counts = describe_all(arrays)
        return Measurements(tuple(tensors), numbers, counts, dead)
    raise errors.StructureError(
        "TrainingReport: there is nothing to measure; give a model=, grads=, activations= or "
        "updates= that hold floating arrays"
    )


def _parameters(model: Any, filter: Any) -> dict[str, tuple[jax.Array, ...]]:
    if isinstance(model, Mapping):
        return _tensors(model, "model")
    if not isinstance(model, moduli.Pytree):
        raise errors.VariableError(
            f"TrainingReport: model is a {type(model).__name__}; give a Module, or a State of its "
            "parameters"
        )
    return _tensors(moduli.state(model, filter), "model")


def _tensors(mapping: Any, name: str) -> dict[str, tuple[jax.Array, ...]]:
    """Returns the floating arrays in a State or nested dict, as tuples of the calls, by path."""
    if not isinstance(mapping, Mapping):
        raise errors.VariableError(
            f"TrainingReport: {name} is a {type(mapping).__name__}; give a State, such as "
            "`moduli.grad` and `moduli.capture` return, or a nested dict of arrays"
        )
    found: dict[str, tuple[jax.Array, ...]] = {}
    for path, leaf in moduli.to_flat_state(mapping).items():
        value = leaf.value if isinstance(leaf, moduli.Variable) else leaf
        # A captured or sown value is a tuple with one entry for each call.
        calls = value if isinstance(value, tuple) else (value,)
        captured = isinstance(value, tuple) and path[-1] == "outputs"
        parts = path[:-1] if captured else path
        for inner, arrays in _by_place(calls):
            label = (path_text(parts) or "(root)") + inner
            found[label] = found.get(label, ()) + arrays
    return found


def _by_place(calls: tuple[Any, ...]) -> Iterator[tuple[str, tuple[jax.Array, ...]]]:
    """Yields the floating arrays of several calls' values, by their place in the value."""
    places: dict[str, tuple[jax.Array, ...]] = {}
    for value in calls:
        for place, leaf in jax.tree_util.tree_leaves_with_path(value):
            if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.size:
                text = jax.tree_util.keystr(place)
                places[text] = (*places.get(text, ()), jnp.asarray(leaf))
    yield from places.items()


def _differences(
    model: Any,
    before: Mapping[Any, Any],
    new: dict[str, tuple[jax.Array, ...]],
    old: dict[str, tuple[jax.Array, ...]],
) -> dict[str, tuple[jax.Array, ...]]:
    mine = {id(variable) for _, variable in moduli.iter_graph(model)}
    if any(id(variable) in mine for variable in moduli.to_flat_state(before).values()):
        raise errors.StructureError(
            "TrainingReport: before= holds the Variables of the model itself, so it has their new "
            "values too; keep the values, "
            "`before = moduli.to_pure_dict(moduli.state(model, moduli.Param))`"
        )
    shapes = {path: [value.shape for value in values] for path, values in new.items()}
    if shapes != {path: [value.shape for value in values] for path, values in old.items()}:
        differ = {*new} ^ {*old} or {
            path for path in new if new[path][0].shape != old[path][0].shape
        }
        shown = ", ".join(f"`{path}`" for path in sorted(differ)[:4])
        raise errors.StructureError(
            f"TrainingReport: before= and model= do not hold the same parameters; {shown} differ"
        )
    return {path: (new[path][0] - old[path][0],) for path in new}
