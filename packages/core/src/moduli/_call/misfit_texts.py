"""Which value a sharding does not fit, and why.

JAX names a value by its number in the pure function when it refuses its sharding. These functions
look for the value that it means and say where it stands in the model. For arguments they run after
JAX has refused a call, so one that succeeds pays nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from moduli import errors
from moduli._call.call import Call
from moduli._call.outputs import Outputs

__all__ = ["check_inputs", "check_layouts", "check_names", "check_outputs", "shared_axes"]


def check_inputs(
    call: Call, values: Sequence[Any], mesh: Any = None, manual: Collection[Any] = ()
) -> None:
    """Raises if an argument cannot be divided as its label says.

    Args:
      call: the labelled call; its labels are PartitionSpecs, shardings or None.
      values: the values of this call, in the order of ``call.every()``.
      mesh: the mesh for labels that are PartitionSpecs; None for the one of ``jax.set_mesh``.
      manual: the axes that such labels may name; all of the mesh if it is empty.

    Raises:
      StructureError: a label names an axis which the mesh does not have.
      ShapeError: a value has too few dimensions, or one that the mesh does not divide.
    """
    prefix = f"{call.transform}: {call.option}"
    for position, (value, label) in enumerate(zip(values, call.all_labels(), strict=True)):
        spot = call.describe_all(position)
        check_names(f"{prefix} gives", label, mesh, manual, f" to {spot}")
        for leaf in jax.tree.leaves(value):
            _check_shape(prefix, spot, label, mesh, getattr(leaf, "shape", ()))


def check_layouts(call: Call, values: Sequence[Any]) -> None:
    """Raises if an array is already laid out in another way than its label says.

    Args:
      call: see :func:`check_inputs`.
      values: see there.

    Raises:
      StructureError: the array has another sharding, and was put there on purpose.
    """
    for position, (value, label) in enumerate(zip(values, call.all_labels(), strict=True)):
        spec, mesh = _parts(label, None)
        for array in jax.tree.leaves(value):
            if mesh is None or not getattr(array, "committed", False):
                continue
            got = getattr(array.sharding, "spec", array.sharding)
            expected = label
            if isinstance(label, PartitionSpec):
                if not isinstance(got, PartitionSpec):
                    continue
                expected = NamedSharding(array.sharding.mesh, spec)
            if not array.sharding.is_equivalent_to(expected, array.ndim):
                raise errors.StructureError(
                    f"{call.transform}: {call.option} gives {spec!r} to "
                    f"{call.describe_all(position)}, but its array is laid out as {got!r}; bring "
                    "it there first, with `jax.device_put(array, sharding)`, or write None to take "
                    "what comes"
                )


def check_outputs(outputs: Outputs, prefix: str, mesh: Any = None) -> None:
    """Raises if what the function returned or wrote cannot be divided as its label says.

    Args:
      outputs: what the function did, with its values.
      prefix: what labels the result, for messages: "jit: out_shardings".
      mesh: see :func:`check_inputs`, also for what is raised.
    """
    for value, label, spot in zip(outputs.values, outputs.labels, outputs.names, strict=True):
        check_names(f"{prefix} gives", label, mesh, (), f" to {spot}")
        for leaf in jax.tree.leaves(value):
            _check_shape(prefix, spot, label, mesh, getattr(leaf, "shape", ()))


def check_names(
    start: str, label: Any, mesh: Any = None, manual: Collection[Any] = (), end: str = ""
) -> None:
    """Raises if a label names an axis that the mesh does not have.

    Args:
      start: what stands before the label in the message: "jit: in_shardings has".
      label: the label.
      mesh: see :func:`check_inputs`.
      manual: see :func:`check_inputs`.
      end: what stands after it.
    """
    spec, mesh = _parts(label, mesh)
    if mesh is None:
        return
    known = [name for name in mesh.axis_names if not manual or name in manual]
    for names in map(_names, spec):
        for name in names:
            if name not in known:
                owner = "axis_names" if name in mesh.axis_names else "the mesh"
                raise errors.StructureError(
                    f"{start} {spec!r}{end}, but {owner} has no axis {name!r}; it has {known}"
                )


def shared_axes(spec: PartitionSpec, mesh: Any, manual: Collection[Any] = ()) -> list[Any]:
    """Lists the axes of a mesh along which a value under this spec is the same."""
    mesh = _parts(spec, mesh)[1]
    named = {name for entry in spec for name in _names(entry)}
    return [n for n in mesh.axis_names if n not in named and (not manual or n in manual)]


def _check_shape(prefix: str, spot: str, label: Any, mesh: Any, shape: tuple[int, ...]) -> None:
    spec, mesh = _parts(label, mesh)
    if mesh is None:
        return
    if len(spec) > len(shape):
        raise errors.ShapeError(
            f"{prefix} gives {spec!r} to {spot}, but it has shape {shape}, {len(shape)} dimensions "
            f"for {len(spec)} entries; leave out the last ones, or give it another label (a part "
            "of a module by `moduli.StateSharding`)"
        )
    for axis, (size, names) in enumerate(zip(shape, map(_names, spec), strict=False)):
        parts = 1
        for name in names:
            parts *= mesh.shape[name]
        if size % parts:
            over = " and ".join(map(repr, names))
            raise errors.ShapeError(
                f"{prefix} gives {spec!r} to {spot}, but it has shape {shape}, and its dimension "
                f"{axis} of size {size} does not divide into {parts} parts, one for each device "
                f"along {over}; pad it, or write None there"
            )


def _parts(label: Any, mesh: Any) -> tuple[Any, Any]:
    """The PartitionSpec of a label and its mesh, which is None if nothing can be said."""
    if isinstance(label, NamedSharding):
        return label.spec, label.mesh
    if isinstance(label, PartitionSpec):
        mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
        return label, None if mesh.empty else mesh
    return None, None


def _names(entry: Any) -> tuple[Any, ...]:
    """The axes of the mesh that one entry of a PartitionSpec names."""
    if entry is None or entry is PartitionSpec.UNCONSTRAINED:
        return ()
    return entry if isinstance(entry, tuple) else (entry,)
