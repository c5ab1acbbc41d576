"""Values of flax.linen as Variables, and the other way.

Values stand under the same names on both sides: a collection of linen is a kind of Variable here
(``params``: Param, ``batch_stats``: BatchStat), and a path of linen a path of attributes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

import moduli
from moduli.errors import StructureError
from moduli_interop._bridges.frameworks import import_framework

__all__ = [
    "collection_of",
    "flat_items",
    "kind_of",
    "nested",
    "nnx_attrs_to_linen_vars",
    "nnx_meta_class",
    "to_attributes",
    "to_linen_var",
    "to_nnx_var",
    "with_partitioning",
]

Path = tuple[Any, ...]


# Kinds that have a name in moduli and none in flax, where the class's stands for it.
_UNNAMED = ("LoRAParam", "OptArray", "OptState", "OptVariable", "Variable")


def kind_of(collection: str) -> type[moduli.Variable[Any]]:
    """Returns the kind of Variable of a collection; makes one, if no kind has the name."""
    if collection in _UNNAMED:
        return getattr(moduli, collection)
    return moduli.variable_type_from_name(collection, allow_register=True)


def collection_of(kind: type[moduli.Variable[Any]]) -> str:
    """Returns the collection of a kind of Variable, as in flax: a class without a name has its own.

    Args:
      kind: the class.
    """
    name = kind.__name__
    if name in _UNNAMED and getattr(moduli, name) is kind:
        return name
    try:
        return moduli.variable_name_from_type(kind)
    except moduli.errors.PathError:
        moduli.register_variable_name(name, kind)
        return name


def to_nnx_var(col: str, x: Any) -> moduli.Variable[Any]:
    """Makes a Variable of a value of linen.

    Args:
      col: its collection, ``"params"``.
      x: the value, or one in a box of linen's (``nn.Partitioned``), whose other fields become
        metadata.
    """
    from flax.core import meta

    kind = kind_of(col)
    if isinstance(x, nnx_meta_class()):
        if x.var_type is not kind:
            raise StructureError(
                f"a value in the collection {col!r} was a {x.var_type.__name__}, where the "
                f"collection holds {kind.__name__}"
            )
        return x.to_nnx_variable()
    if not isinstance(x, meta.AxisMetadata):
        return kind(x)
    boxed: Any = x
    held = boxed.to_nnx_metadata() if hasattr(boxed, "to_nnx_metadata") else dict(vars(boxed))
    value = held.pop("value")
    return kind(value, **held, linen_meta_type=type(x))


def to_linen_var(vs: moduli.Variable[Any]) -> Any:
    """Makes the value of linen of a Variable.

    Returns:
      Its value; with metadata in the box it was taken out of, else in an ``NNXMeta``.
    """
    metadata = vs.get_metadata()
    kind = metadata.pop("linen_meta_type", None)
    if kind is None:
        said = any(metadata.values())
        return nnx_meta_class()(type(vs), vs.get_raw_value(), metadata) if said else vs.get_value()
    if hasattr(kind, "from_nnx_metadata"):
        return kind.from_nnx_metadata({"value": vs.get_raw_value(), **metadata})
    return kind(vs.get_raw_value(), **metadata)


@functools.cache
def nnx_meta_class() -> Any:
    """Makes ``NNXMeta``, whose base classes are only there once flax is imported."""
    import_framework("flax", "flax")
    from flax import struct
    from flax.core import meta

    class NNXMeta(struct.PyTreeNode, meta.AxisMetadata):  # type: ignore[misc, type-arg]
        """A value of linen that was a Variable with metadata.

        Attributes:
          var_type: the kind of Variable.
          value: its value.
          metadata: its metadata.
        """

        var_type: Any = struct.field(pytree_node=False)
        value: Any = struct.field(pytree_node=True)
        metadata: Any = struct.field(pytree_node=False)

        def unbox(self) -> Any:
            """Returns the value alone."""
            return self.value

        def replace_boxed(self, val: Any) -> Any:
            """Returns a box with another value."""
            return self.replace(value=val)

        def add_axis(self, index: int, params: Mapping[Any, Any]) -> Any:
            """Returns the box as it is."""
            return self

        def remove_axis(self, index: int, params: Mapping[Any, Any]) -> Any:
            """Returns the box as it is."""
            return self

        def get_partition_spec(self) -> Any:
            """Returns how the value is laid out, as a PartitionSpec."""
            return moduli.get_partition_spec(self.to_nnx_variable()).get_raw_value()

        def to_nnx_variable(self) -> moduli.Variable[Any]:
            """Returns the Variable that it was."""
            return self.var_type(self.value, **self.metadata)

    NNXMeta.__module__, NNXMeta.__qualname__ = "moduli_interop.bridge", "NNXMeta"
    return NNXMeta


def with_partitioning(
    fn: Callable[..., Any], names: Any, mesh: jax.sharding.Mesh | None = None
) -> Callable[..., Any]:
    """Like ``nnx.with_partitioning``, for values that linen is to see as ``nn.Partitioned``.

    Args:
      fn: the initializer.
      names: the names of the value's axes.
      mesh: the mesh that they are laid out on; the current one by default.

    Returns:
      The initializer, whose values have the names as metadata.
    """
    from flax.core import meta

    return moduli.with_partitioning(fn, names, mesh, linen_meta_type=meta.Partitioned)


def flat_items(tree: Mapping[Any, Any], path: Path = ()) -> Iterable[tuple[Path, Any]]:
    """Yields what is in nested mappings, with its path."""
    for key, item in tree.items():
        if isinstance(item, Mapping):
            yield from flat_items(item, (*path, key))
        else:
            yield (*path, key), item


def nested(flat: Iterable[tuple[Path, Any]]) -> dict[Any, Any]:
    """Makes nested dicts of paths with what is there."""
    found: dict[Any, Any] = {}
    for path, item in flat:
        place = found
        for key in path[:-1]:
            place = place.setdefault(key, {})
        place[path[-1]] = item
    return found


def to_attributes(variables: Mapping[str, Any]) -> dict[Path, moduli.Variable[Any]]:
    """Returns Variables by their paths; two collections may not have one path."""
    found: dict[Path, moduli.Variable[Any]] = {}
    for collection, tree in variables.items():
        for path, value in flat_items(tree):
            if path in found:
                kind = collection_of(type(found[path]))
                raise StructureError(
                    f"the collections {kind!r} and {collection!r} both have "
                    f"`{moduli.errors.format_path(path)}`, where an attribute of ToNNX has one "
                    "place; rename one of them in the linen module"
                )
            found[path] = to_nnx_var(collection, value)
    return found


def nnx_attrs_to_linen_vars(nnx_attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Makes variables of linen, by collection, of Variables in nested mappings."""
    flat: list[tuple[Path, Any]] = []
    for path, item in flat_items(nnx_attrs):
        if not isinstance(item, moduli.Variable):
            raise StructureError(
                f"`{moduli.errors.format_path(path)}` is a {type(item).__name__} and no Variable, "
                "so that no collection of linen is known for it"
            )
        flat.append(((collection_of(type(item)), *path), to_linen_var(item)))
    return nested(flat)
