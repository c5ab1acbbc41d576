"""The plan of a layout: a sharding for every value of a node."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from moduli import errors
from moduli._call.prefixes import prefix
from moduli._layout.fitted_names import fitted_names
from moduli._layout.rules import Fsdp, Path, Rule, check_all_match, read_rules, trimmed
from moduli._variable.axis_names import (
    axes_of_entry,
    current_mesh,
    declared,
    declared_spec,
    named_sharding,
    spec_in,
)
from moduli._variable.box import Variable
from moduli._variable.kinds import BatchStat, Cache, Intermediate, Param, RngState

__all__ = ["Plan", "leaves_of", "mesh_of", "shape_of", "shardings", "value_of"]

_OF_MODELS = (BatchStat, Cache, Intermediate, RngState)  # these follow no parameter


def shardings(node: Any, mesh: Any = None, rules: Any = None) -> Any:
    """Returns how each value of a node is, or is to be, laid out over a mesh.

    What counts for a value is the first of: a rule; how its array is divided over this mesh now;
    the names of axes in its metadata; for what an optimizer or an average keeps of a parameter, the
    layout of the parameter, on the axes that have its size. A value without any of these is whole
    on every device.

    Args:
      node: a Module or another node, a State, a Variable, or a pytree of these; its values may be
        abstract ones, of :func:`eval_shape`.
      mesh: the mesh; by default that of ``jax.set_mesh``, or the one of the node's own arrays.
        Without any, every value stays on its device.
      rules: as of :func:`create`.

    Returns:
      A sharding for each value, in the form that :func:`prefix` gives: a State in the place of a
      node. It is a prefix for ``in_shardings`` and ``out_shardings``, for ``jax.device_put`` of
      ``moduli.state(node)``, and for what a checkpoint is restored to.

    Raises:
      StructureError: if a rule selects nothing, or an axis is not one of the mesh.
      ShapeError: if a value cannot be divided so.

    Example:
      >>> import moduli as nnx, jax, jax.numpy as jnp
      >>> mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
      >>> model = nnx.Dict(w=nnx.Param(jnp.ones((3, 4)), out_sharding=(None, "model")))
      >>> layout = nnx.shardings(model, mesh)
      >>> layout["w"].spec == jax.P(None, "model")
      True
      >>> nnx.update(model, jax.device_put(nnx.state(model), layout))
    """
    return Plan(node, mesh_of(node, mesh), rules).prefix()


def mesh_of(node: Any, mesh: Any = None) -> Any:
    """Returns the mesh of a layout: the given one, the one in force, or that of the arrays."""
    if mesh is None:
        mesh = current_mesh()
    if mesh is not None:
        return mesh
    for _, leaf in leaves_of(node):
        for array in jax.tree.leaves(value_of(leaf)):
            found = getattr(getattr(array, "sharding", None), "mesh", None)
            if isinstance(found, Mesh):
                return found
    return None


def leaves_of(node: Any) -> list[tuple[Path, Any]]:
    """Lists (path, leaf) of every value of a node, or of a pytree of nodes, each once.

    A leaf is a Variable or a bare array.
    """
    found: list[tuple[Path, Any]] = []
    seen: set[int] = set()

    def note(path: Path, leaf: Any) -> None:
        if id(leaf) not in seen:
            seen.add(id(leaf))
            found.append((path, leaf))

    prefix(node, note)
    return found


def value_of(leaf: Any) -> Any:
    """The value of a Variable, or the array itself; no hook runs."""
    return leaf._value if isinstance(leaf, Variable) else leaf


def shape_of(leaf: Any) -> tuple[int, ...] | None:
    """The shape of a leaf's value; None if it has none."""
    shape = getattr(value_of(leaf), "shape", None)
    return None if shape is None else tuple(shape)


class Plan:
    """A PartitionSpec for every value of a node; see :func:`shardings`.

    Args:
      node: the node.
      mesh: the mesh, or None.
      rules: the rules, or None.

    Raises:
      StructureError: see there.
      ShapeError: see there.
    """

    def __init__(self, node: Any, mesh: Any, rules: Any = None):
        self._node, self._mesh, self._rules = node, mesh, read_rules(rules)
        leaves = leaves_of(node)
        check_all_match(self._rules, leaves)
        self._specs: dict[int, PartitionSpec] = {}
        self._parameters: dict[Any, list[tuple[Path, Any]]] = {}
        for path, leaf in leaves:
            if path and isinstance(leaf, Param):
                self._parameters.setdefault(path[-1], []).append((path, leaf))
        self._shardings = {id(leaf): self._sharding(path, leaf) for path, leaf in leaves}

    def prefix(self) -> Any:
        """Returns the shardings in the form of the node: what :func:`moduli.prefix` makes."""
        return prefix(self._node, lambda path, leaf: self._shardings[id(leaf)])

    def asked_for(self, path: Path, leaf: Any) -> Any:
        """Returns the sharding that a rule, or else a name, asks for; None if none does."""
        if self._rules:
            parameter = self._parameter_of(path, leaf)
            asks = self._rule_of(path, leaf) or (parameter and self._rule_of(*parameter))
            return self._shardings[id(leaf)] if asks else None
        names = declared_spec(leaf._metadata) if isinstance(leaf, Variable) else None
        if names is None or len(names) > len(shape_of(leaf) or ()):
            return None
        return named_sharding(self._mesh, names, f"`{errors.format_path(path)}`")

    def _sharding(self, path: Path, leaf: Any) -> Any:
        mesh = self._mesh
        if mesh is None and isinstance(leaf, Variable):
            mesh = leaf._metadata.get("mesh") or getattr(declared(leaf._metadata), "mesh", None)
        if mesh is None:
            return _where_it_is(value_of(leaf))
        place = f"`{errors.format_path(path)}`"
        spec = self._spec(path, leaf)
        sharding = named_sharding(mesh, spec, place)
        shape = shape_of(leaf) or ()
        if len(spec) > len(shape):
            raise errors.ShapeError(
                f"{place} has shape {shape}, but {spec!r} names {len(spec)} axes; leave out the "
                "last ones, or select it by a rule of its own"
            )
        for axis, (size, entry) in enumerate(zip(shape, spec, strict=False)):
            parts = _parts(entry, mesh)
            if size % parts:
                raise errors.ShapeError(
                    f"{place} has shape {shape}, and its axis {axis} of size {size} does not "
                    f"divide into {parts} parts, as {spec!r} says; choose another size, or another "
                    "layout for it. A raw state of optax is laid out beside the parameters: "
                    "`moduli.shardings((params, opt_state))`"
                )
        return sharding

    def _spec(self, path: Path, leaf: Any) -> PartitionSpec:
        known = self._specs.get(id(leaf))
        if known is None:
            known = self._specs[id(leaf)] = self._find_spec(path, leaf)
        return known

    def _find_spec(self, path: Path, leaf: Any) -> PartitionSpec:
        shape = shape_of(leaf)
        if shape is None:  # a pytree of arrays, or a number
            return PartitionSpec()
        rule, parameter = self._rule_of(path, leaf), self._parameter_of(path, leaf)
        names = declared_spec(leaf._metadata) if isinstance(leaf, Variable) else None
        if parameter is not None:
            of_parameter = self._rule_of(*parameter)
            if of_parameter is not None and rule in (None, of_parameter):
                return self._follow(parameter, shape)
        if rule is not None:
            fits = names is not None and len(names) <= len(shape)
            return self._of_rule(rule, shape, tuple(names) if fits and names else ())
        divided = self._as_it_is(value_of(leaf))
        if divided is not None:
            return divided
        if parameter is not None:
            same = shape == shape_of(parameter[1])
            if names is None or (not same and names == declared_spec(parameter[1]._metadata)):
                return self._follow(parameter, shape)
        if names is None or len(names) > len(shape):  # of a parameter that is not here
            return PartitionSpec()
        kept = [None if size == 1 else entry for size, entry in zip(shape, names, strict=False)]
        return names if kept == [*names] else trimmed(kept)

    def _rule_of(self, path: Path, leaf: Any) -> Rule | None:
        return next((rule for rule in self._rules if rule.selects(path, leaf)), None)

    def _of_rule(self, rule: Rule, shape: Sequence[int], names: Sequence[Any]) -> PartitionSpec:
        if isinstance(rule.spec, Fsdp):
            axes = PartitionSpec(rule.spec.axis)
            named_sharding(self._mesh, axes, f"the rule {rule.spec!r}")
            return rule.spec.spec(shape, names, self._mesh)
        return spec_in(rule.spec)

    def _as_it_is(self, value: Any) -> PartitionSpec | None:
        """The spec of an array that is divided over this mesh, or is said to be."""
        sharding = getattr(value, "sharding", None)
        if not isinstance(sharding, NamedSharding) or not any(sharding.spec):
            return None
        same = sharding.mesh == self._mesh or (
            self._mesh is not None and sharding.mesh == getattr(self._mesh, "abstract_mesh", None)
        )
        return sharding.spec if same else None

    def _follow(self, parameter: tuple[Path, Any], shape: Sequence[int]) -> PartitionSpec:
        """The spec of a value that belongs to a parameter."""
        of_shape, spec = shape_of(parameter[1]), self._spec(*parameter)
        if of_shape is None or of_shape == shape:
            return spec
        names = fitted_names(tuple(spec), of_shape, shape)
        whole = [
            entry if size % _parts(entry, self._mesh) == 0 else None
            for entry, size in zip(names, shape, strict=True)
        ]
        return trimmed(whole)

    def _parameter_of(self, path: Path, leaf: Any) -> tuple[Path, Any] | None:
        """Finds the parameter that a leaf is kept for: the leaf's path ends with its path.

        Only for what an optimizer, an average or the like keeps; None for values of the model.
        """
        if not path or isinstance(leaf, _OF_MODELS) or not isinstance(leaf, Variable):
            return None
        best, length = None, 0
        for place, parameter in self._parameters.get(path[-1], ()):
            common = _common_end(path, place)
            # A raw state of optax holds Variables of the parameters' own kind.
            is_far = len(path) > len(place) and common >= len(place) - 1
            follows = parameter is not leaf and (is_far or not isinstance(leaf, Param))
            if follows and common > length:
                best, length = (place, parameter), common
        return best


def _common_end(one: Path, other: Path) -> int:
    count = 0
    for a, b in zip(reversed(one), reversed(other), strict=False):
        if a != b:
            break
        count += 1
    return count


def _parts(entry: Any, mesh: Any) -> int:
    """Into how many parts an axis with this entry of a spec is divided."""
    return math.prod(mesh.shape.get(axis, 1) for axis in axes_of_entry(entry)) if mesh else 1


def _where_it_is(value: Any) -> Any:
    """The sharding of a value's array, or the first device."""
    for array in jax.tree.leaves(value):
        sharding = getattr(array, "sharding", None)
        if sharding is not None:
            return sharding
    return SingleDeviceSharding(jax.devices()[0])
