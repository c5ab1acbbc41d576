"""The names of axes in metadata: ``add_axis`` and ``remove_axis`` of ``moduli.spmd``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax

import moduli
from moduli.errors import StructureError

__all__ = ["add_axis", "get_var_pspec", "remove_axis"]

T = TypeVar("T")
Names = tuple[Any, ...]


def add_axis(tree: T, index: int, transform_metadata: Mapping[Any, Any]) -> T:
    """Names an axis that the values of Variables have got, in their metadata.

    Args:
      tree: a pytree of Variables; they are changed.
      index: where the axis is.
      transform_metadata: its name by ``moduli.PARTITION_NAME``, and other entries to insert.

    Returns:
      The tree.
    """

    def edit(names: Names, name: Any) -> Names:
        names = (*names, *[None] * (index - len(names)))
        return (*names[:index], name, *names[index:]) if index >= 0 else _inserted(names, name)

    def _inserted(names: Names, name: Any) -> Names:
        place = len(names) + 1 + index
        return (*names[:place], name, *names[place:])

    return _edited(tree, transform_metadata, edit, lambda v, name: v.add_axis(index, name))


def remove_axis(tree: T, index: int, transform_metadata: Mapping[Any, Any]) -> T:
    """Takes the name of an axis out of the metadata of Variables; the inverse of :func:`add_axis`.

    Raises:
      StructureError: another name stands there.
    """

    def edit(names: Names, name: Any) -> Names:
        kept = list(names)
        found = kept.pop(index)
        if found != name:
            raise StructureError(
                f"the axis {index} of {names!r} is named {found!r}, but {name!r} was to be removed"
            )
        return tuple(kept)

    return _edited(tree, transform_metadata, edit, lambda v, name: v.remove_axis(index, name))


def _edited(
    tree: T,
    metadata: Mapping[Any, Any],
    edit: Callable[[Names, Any], Names],
    tell: Callable[[moduli.Variable[Any], Any], None],
) -> T:
    inserts = dict(metadata)
    if moduli.PARTITION_NAME not in inserts:
        raise StructureError(
            f"transform_metadata has the keys {sorted(inserts)}, but not moduli.PARTITION_NAME, "
            "whose value is the name of the axis (or None)"
        )
    name = inserts.pop(moduli.PARTITION_NAME)
    for leaf in jax.tree.leaves(tree, is_leaf=_is_variable):
        if not _is_variable(leaf):
            continue
        for key, value in {"out_sharding": name, **inserts}.items():
            names = leaf.get_metadata(key, None)
            if isinstance(names, tuple) and names:
                leaf.set_metadata(key, edit(names, value))
        tell(leaf, name)
    return tree


def _is_variable(leaf: Any) -> bool:
    return isinstance(leaf, moduli.Variable)


def get_var_pspec(v: moduli.Variable[Any]) -> Any:
    """Returns the PartitionSpec of a Variable.

    Args:
      v: the Variable.
    """
    spec = moduli.get_partition_spec(v)  # pyright: ignore[reportAttributeAccessIssue]
    return spec.get_raw_value() if isinstance(spec, moduli.Variable) else spec
