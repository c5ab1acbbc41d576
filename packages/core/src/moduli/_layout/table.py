"""show_layout and assert_sharded: how the values of a model are laid out, and whether they are."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding

from moduli import errors
from moduli._base.compat import is_key_array
from moduli._layout.plan import Plan, leaves_of, mesh_of, value_of
from moduli._variable.axis_names import axes_of_entry

__all__ = ["LayoutRow", "LayoutTable", "assert_sharded", "show_layout"]


class LayoutRow(NamedTuple):
    """How one array is laid out.

    Attributes:
      path: where it stands, as text.
      shape: its shape.
      dtype: its dtype, as text.
      spec: its PartitionSpec; None if it is not over a mesh.
      bytes_per_device: how much of it one device holds.
      devices: how many devices hold it, or a part.
      copies: how many of them hold the same part.
      replicated: over which axes of the mesh the parts are the same.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    spec: Any
    bytes_per_device: int
    devices: int
    copies: int
    replicated: tuple[str, ...]


class LayoutTable(str):
    """The table of :func:`show_layout`: a text that also has its rows.

    Attributes:
      rows: a :class:`LayoutRow` for each array, the largest on a device first.
    """

    rows: list[LayoutRow]

    def __repr__(self) -> str:
        return str(self)


def show_layout(node: Any, /) -> LayoutTable:
    """Shows how each array of a model is laid out over devices.

    Args:
      node: a Module or another node, a State, or a pytree of these; abstract values are shown by
        the sharding that they are to have.

    Returns:
      A table, to be printed: the path, shape and dtype of each array, its PartitionSpec, the bytes
      of it that a device holds, and over which axes of the mesh it is replicated. What takes most
      of a device stands first. ``table.rows`` has the same as numbers.

    Example:
      >>> import moduli as nnx, jax, jax.numpy as jnp
      >>> mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
      >>> with jax.set_mesh(mesh):
      ...     model = nnx.Dict(w=nnx.Param(jnp.ones((2, 4), "f4"), out_sharding=(None, "model")))
      >>> print(nnx.show_layout(model))
      path  shape   dtype    spec            bytes a device  replicated
      w     (2, 4)  float32  (None, 'model')             32
      total                                              32  0 bytes whole on every device
    """
    rows = sorted(_rows(node), key=lambda row: (-row.bytes_per_device, row.path))
    cells = [("path", "shape", "dtype", "spec", "bytes a device", "replicated")]
    for row in rows:
        cells.append(
            (
                row.path,
                str(row.shape),
                row.dtype,
                _spec_text(row),
                f"{row.bytes_per_device:,}",
                _copies_text(row),
            )
        )
    total = sum(row.bytes_per_device for row in rows)
    whole = sum(row.bytes_per_device for row in rows if row.copies == row.devices > 1)
    cells.append(("total", "", "", "", f"{total:,}", f"{whole:,} bytes whole on every device"))
    widths = [max(len(line[column]) for line in cells) for column in range(6)]
    lines = [
        "  ".join(
            cell.rjust(width) if column == 4 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    table = LayoutTable("\n".join(lines))
    table.rows = rows
    return table


def _spec_text(row: LayoutRow) -> str:
    if row.spec is None:
        return "one device" if row.devices == 1 else f"{row.devices} devices"
    return str(tuple(row.spec))


def _copies_text(row: LayoutRow) -> str:
    if row.copies == 1:
        return ""
    over = f" over {', '.join(row.replicated)}" if row.replicated else ""
    whole = "whole, " if row.copies == row.devices else ""
    return f"{whole}{row.copies} copies{over}"


def _rows(node: Any) -> list[LayoutRow]:
    rows = []
    for path, leaf in leaves_of(node):
        pairs, _ = jax.tree_util.tree_flatten_with_path(value_of(leaf))
        for inner, array in pairs:
            if hasattr(array, "shape") and hasattr(array, "dtype"):
                place = errors.format_path((*path, *inner))
                rows.append(_row(place, array))
    return rows


def _row(path: str, array: Any) -> LayoutRow:
    shape, sharding = tuple(array.shape), getattr(array, "sharding", None)
    part = shape if sharding is None else sharding.shard_shape(shape)
    spec, replicated = None, ()
    devices = 1 if sharding is None else sharding.num_devices
    if isinstance(sharding, NamedSharding):
        spec = sharding.spec
        named = {axis for entry in spec for axis in axes_of_entry(entry)}
        sizes = sharding.mesh.shape
        replicated = tuple(str(a) for a in sizes if a not in named and sizes[a] > 1)
    parts = math.prod(-(-size // piece) for size, piece in zip(shape, part, strict=True) if piece)
    width = _bytes_of_element(array)
    return LayoutRow(
        path,
        shape,
        str(array.dtype),
        spec,
        math.prod(part) * width,
        devices,
        max(devices // parts, 1),
        replicated,
    )


def _bytes_of_element(array: Any) -> int:
    if is_key_array(array):
        return jax.random.key_data(array).nbytes // max(array.size, 1)
    return getattr(array.dtype, "itemsize", 0)


def assert_sharded(node: Any, rules: Any = None, /, *, min_size: int | None = None) -> None:
    """Raises if a model is not laid out as it should be.

    Args:
      node: a Module or another node, a State, or a pytree of these.
      rules: as of :func:`create`: each value that they select has to be laid out so. Without rules,
        every value with names of axes has to be laid out as they say, and every other large one
        has to be divided over devices.
      min_size: how many elements a large value has; by default, everything that has two axes or
        more is large.

    Raises:
      LayoutError: (an AssertionError) with the path of each value that is not, how it is laid out,
        and how many bytes of each device that takes.

    Example:
      >>> import moduli as nnx, jax.numpy as jnp
      >>> nnx.assert_sharded(nnx.Dict(w=nnx.Param(jnp.ones((2, 4), jnp.float32))))
      Traceback (most recent call last):
      moduli.errors.LayoutError: these values are not laid out as they should be:
      w of shape (2, 4) is on one device, 32 bytes of it; it should be divided over devices...
    """
    mesh = mesh_of(node)
    wrong = []
    plan = Plan(node, mesh, rules) if mesh is not None else None
    for path, leaf in leaves_of(node):
        value = value_of(leaf)
        if not hasattr(value, "shape") or not hasattr(value, "dtype"):
            continue
        row = _row(errors.format_path(path), value)
        expected = plan.asked_for(path, leaf) if plan is not None else None
        if expected is not None:
            sharding = getattr(value, "sharding", None)
            if sharding is None or not sharding.is_equivalent_to(expected, len(row.shape)):
                wrong.append((row, f"{tuple(expected.spec)}"))
        elif rules is None and row.copies == row.devices and _is_large(row, min_size):
            wrong.append((row, "divided over devices"))
    if not wrong:
        return
    lines = [
        f"{row.path} of shape {row.shape} is {_state_text(row)}, {row.bytes_per_device:,} bytes of "
        f"{'it' if row.devices == 1 else 'each device'}; it should be {expected}"
        for row, expected in sorted(wrong, key=lambda pair: -pair[0].bytes_per_device)[:10]
    ]
    more = f"\nand {len(wrong) - 10} more" if len(wrong) > 10 else ""
    raise errors.LayoutError(
        "these values are not laid out as they should be:\n" + "\n".join(lines) + more + "\nMake "
        "the model by `moduli.create(make, mesh, rules)`, or bring it there with "
        "`moduli.update(model, jax.device_put(moduli.state(model), moduli.shardings(model, mesh, "
        "rules)))`; `moduli.jit(step, keep_shardings=True)` keeps it so"
    )


def _is_large(row: LayoutRow, min_size: int | None) -> bool:
    return len(row.shape) >= 2 if min_size is None else math.prod(row.shape) >= min_size


def _state_text(row: LayoutRow) -> str:
    if row.spec is None:
        return f"on {_spec_text(row)}"
    return f"{tuple(row.spec)}" + (f" ({_copies_text(row)})" if row.copies > 1 else "")
