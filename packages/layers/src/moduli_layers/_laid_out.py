"""Arrays that a layer makes itself, laid out over a mesh of devices as its inputs are.

On a mesh with explicit axes (the default of ``jax.make_mesh``) the layout is a part of an array's
type, and JAX refuses what it would have to guess: a mask on every device for inputs that are spread
over them. Without such a mesh, or for inputs that are not spread, nothing is done here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

from moduli.lowlevel import varying_axes

__all__ = [
    "bernoulli_for",
    "in_mesh_of",
    "laid_out_as",
    "laid_out_like",
    "layout_of",
    "lookup_layout",
    "on_each_device",
]


def layout_of(array: jax.Array) -> NamedSharding | None:
    """Returns the sharding in an array's type; None if the array is not spread over a mesh."""
    sharding: Any = jax.typeof(array).sharding
    if all(entry is None for entry in sharding.spec):
        return None
    if _no_mesh() and not isinstance(array, Tracer):
        sharding = array.sharding  # names devices, where no jax.set_mesh does
    return sharding if isinstance(sharding, NamedSharding) else None


def _no_mesh() -> bool:
    return jax.sharding.get_abstract_mesh().empty


def bernoulli_for(data: jax.Array, key: jax.Array, keep: Any, shape: Sequence[int]) -> jax.Array:
    """Draws a mask, laid out as the data.

    Args:
      data: the array to be masked.
      key: a random key.
      keep: the probability of True.
      shape: the data's, with 1 for the axes along which the mask is the same.
    """
    shape = tuple(shape)
    layout = layout_of(data)
    if layout is None:
        return jax.random.bernoulli(key, keep, shape)
    entries = jax.typeof(data).sharding.spec  # one for each axis
    spec = [
        entry if size == whole else None
        for entry, size, whole in zip(entries, shape, data.shape, strict=True)
    ]
    own = layout.update(spec=PartitionSpec(*spec))
    if _no_mesh():
        mask = jax.random.bernoulli(key, keep, shape)
        if jax.typeof(mask).sharding.mesh.empty:  # else the key is on the mesh, and so the mask
            return mask
        mask = jax.sharding.reshard(mask, own)
    else:
        mask = jax.random.bernoulli(key, keep, shape, out_sharding=own)
    if shape == data.shape:
        return mask
    return lax.broadcast_in_dim(mask, data.shape, range(mask.ndim), out_sharding=layout)


def lookup_layout(table: jax.Array, indices: jax.Array) -> NamedSharding | None:
    """Returns how rows of a table are laid out that are looked up: as the indices.

    Args:
      table: array of shape (rows, features).
      indices: integers of any shape.

    Returns:
      The sharding of the array of shape (*indices.shape, features); None if nothing is spread.
    """
    of_indices, of_table = layout_of(indices), layout_of(table)
    layout = of_indices or of_table
    if layout is None:
        return None
    spec = [None] * indices.ndim if of_indices is None else list(of_indices.spec)
    features = None if of_table is None else of_table.spec[-1]
    taken = set().union(*map(_names, spec))
    left = tuple(name for name in _names(features) if name not in taken)
    return layout.update(spec=PartitionSpec(*spec, left or None))


def laid_out_as(tree: Any, data: jax.Array, axes: Sequence[int]) -> Any:
    """Lays arrays with a batch out as the data are that they will be combined with.

    Args:
      tree: arrays whose first axes are the batch; others stay as they are.
      data: the data.
      axes: which axes of the data are the batch.

    Returns:
      The tree; in ``shard_map`` its arrays also count as different on the devices on which the data
      differ.
    """
    layout, varying = layout_of(data), varying_axes(data)
    if layout is None and not varying:
        return tree
    batch = [data.shape[axis] for axis in axes]
    spec = [] if layout is None else [layout.spec[axis] for axis in axes]

    def lay_out(array: jax.Array) -> jax.Array:
        missing = varying - varying_axes(array)
        if missing:
            array = lax.pcast(array, tuple(missing), to="varying")
        if layout is None or list(array.shape[: len(batch)]) != batch:
            return array
        own = jax.typeof(array).sharding.spec
        if not any(spec) or any(own[: len(batch)]):
            return array
        wanted = layout.update(spec=PartitionSpec(*spec, *own[len(batch) :]))
        return jax.sharding.reshard(array, wanted)

    return jax.tree.map(lay_out, tree)


def laid_out_like(array: jax.Array, other: jax.Array) -> jax.Array:
    """Lays an array out as another one with as many axes.

    Args:
      array: the array.
      other: the other one; on a mesh without explicit axes nothing is done.
    """
    layout: Any = jax.typeof(other).sharding
    if jax.typeof(array).sharding == layout or not layout.mesh.explicit_axes or _no_mesh():
        return array
    return jax.sharding.reshard(array, layout)


def in_mesh_of(array: jax.Array, other: jax.Array) -> jax.Array:
    """Puts an array that was made outside of the mesh on all devices of it.

    Args:
      array: the array.
      other: an array that may be spread over a mesh.
    """
    layout = layout_of(other)
    if layout is None or _no_mesh() or not jax.typeof(array).sharding.mesh.empty:
        return array
    return jax.sharding.reshard(array, layout.update(spec=PartitionSpec()))


def on_each_device(function: Callable[..., jax.Array], rows: jax.Array, *same: Any) -> jax.Array:
    """Runs a function of rows that do not see each other on each device's part of them.

    XLA gives the gradient of a grouped convolution's kernel too large, by the number of devices
    with equal rows. Where the layout is known this avoids it.

    Args:
      function: ``(rows, *same) -> rows``.
      rows: an array with the rows along its first axis.
      *same: arrays that are the same for all rows.
    """
    layout = layout_of(rows)
    if layout is None or _no_mesh() or any(layout.spec[1:]) or any(map(layout_of, same)):
        return function(rows, *same)
    by_rows = PartitionSpec(layout.spec[0])
    specs = (by_rows, *[PartitionSpec()] * len(same))
    return jax.shard_map(function, in_specs=specs, out_specs=by_rows)(rows, *same)


def _names(entry: Any) -> tuple[str, ...]:
    """Returns the names of mesh axes in an entry of a spec."""
    return entry if isinstance(entry, tuple) else () if entry is None else (entry,)
