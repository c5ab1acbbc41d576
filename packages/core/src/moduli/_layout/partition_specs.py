"""The functions of flax.nnx that read layouts from metadata."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, Unpack

import jax
from jax.sharding import NamedSharding, PartitionSpec

from moduli._base.modes import Modes
from moduli._base.node import Node
from moduli._graph.data import is_graph_leaf
from moduli._graph.split import map_graph, split
from moduli._layout.plan import Plan, mesh_of
from moduli._transforms.abstract import eval_shape
from moduli._variable.axis_names import declared, declared_spec, named_sharding
from moduli._variable.box import Variable

__all__ = [
    "abstract_with_sharding",
    "get_abstract_model",
    "get_named_sharding",
    "get_partition_spec",
]

A = TypeVar("A")


def get_partition_spec(tree: A) -> A:
    """Returns the PartitionSpecs that the metadata of Variables declare.

    Args:
      tree: a State, or a pytree of Variables, nodes and arrays.

    Returns:
      A tree like the one given, with a PartitionSpec in each Variable and in the place of each
      array: ``PartitionSpec()`` where none is declared, None for what has no shape.

    Example:
      >>> import moduli as nnx, jax, jax.numpy as jnp
      >>> state = nnx.State({"w": nnx.Param(jnp.ones((2, 4)), out_sharding=(None, "model"))})
      >>> nnx.get_partition_spec(state)["w"].value == jax.P(None, "model")
      True
    """
    return _mapped(tree, _spec)


def get_named_sharding(tree: A, mesh: jax.sharding.Mesh) -> A:
    """Returns the shardings over a mesh that the metadata of Variables declare.

    :func:`shardings` also looks at rules, at how arrays are laid out, and at which parameter a
    value belongs to.

    Args:
      tree: a State, or a pytree of Variables, nodes and arrays.
      mesh: the mesh.

    Returns:
      A tree like the one given, with a ``jax.sharding.NamedSharding`` in each Variable and in the
      place of each array.

    Raises:
      StructureError: if the mesh has no axis of a declared name.

    Example:
      >>> import moduli as nnx, jax, jax.numpy as jnp
      >>> mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
      >>> state = nnx.State({"w": nnx.Param(jnp.ones((2, 4)), out_sharding=(None, "model"))})
      >>> state = jax.device_put(state, nnx.get_named_sharding(state, mesh))
      >>> state["w"].value.sharding.spec == jax.P(None, "model")
      True
    """

    def sharding(leaf: Any) -> Any:
        spec = _spec(leaf)
        name = f"a {type(leaf).__name__}"
        return None if spec is None else named_sharding(mesh, spec, name)

    return _mapped(tree, sharding)


def _spec(leaf: Any) -> PartitionSpec | None:
    value = leaf._value if isinstance(leaf, Variable) else leaf
    spec = declared_spec(leaf._metadata) if isinstance(leaf, Variable) else None
    if spec is None and hasattr(value, "shape"):
        return PartitionSpec()
    return spec


def _mapped(tree: Any, function: Callable[[Any], Any]) -> Any:
    """A copy of a tree with a function of each leaf in its place, or in its Variable."""

    def inside(path: Any, leaf: Any) -> Any:
        return leaf.copy(function(leaf)) if isinstance(leaf, Variable) else function(leaf)

    def outside(leaf: Any) -> Any:
        return map_graph(inside, leaf) if isinstance(leaf, Node) else inside((), leaf)

    return jax.tree.map(outside, tree, is_leaf=is_graph_leaf)


def abstract_with_sharding(tree: A, **_modes: Unpack[Modes]) -> A:
    """Says in abstract values how their Variables' names lay them out.

    Args:
      tree: a Module or another node, or a State; what :func:`eval_shape` returns.

    Returns:
      A copy with a sharding in each ``jax.ShapeDtypeStruct`` of a Variable that declares one, over
      the mesh in its metadata or that of ``jax.set_mesh``; unchanged without a mesh.

    Example:
      >>> import moduli as nnx, jax, jax.numpy as jnp
      >>> mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
      >>> def make():
      ...     return nnx.Dict(w=nnx.Param(jnp.ones((2, 4)), out_sharding=(None, "model")))
      >>> with jax.set_mesh(mesh):
      ...     abstract = nnx.abstract_with_sharding(nnx.eval_shape(make))
      >>> abstract["w"].sharding.spec == jax.P(None, "model")
      True
    """

    def with_sharding(path: Any, leaf: Any) -> Any:
        if not isinstance(leaf, Variable) or declared(leaf._metadata) is None:
            return leaf
        value, spec = leaf._value, declared_spec(leaf._metadata)
        mesh = leaf._metadata.get("mesh") or mesh_of(leaf)
        if mesh is None or getattr(value, "sharding", None) is not None:
            return leaf
        if not (hasattr(value, "shape") and hasattr(value, "dtype")):
            return leaf
        sharding = NamedSharding(mesh, spec or PartitionSpec())
        return leaf.copy(jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding))

    return map_graph(with_sharding, tree)


def get_abstract_model(
    init_fn: Callable[[], Any], mesh: jax.sharding.Mesh, **_modes: Unpack[Modes]
) -> tuple[Any, Any]:
    """Returns the structure of a model and its abstract values, laid out; nothing is computed.

    Args:
      init_fn: makes the model; takes no arguments.
      mesh: the mesh.

    Returns:
      A pair (graphdef, state) as of :func:`split`; the state has a ``jax.ShapeDtypeStruct`` with a
      sharding in each Variable.

    Example:
      >>> import moduli as nnx, jax, jax.numpy as jnp
      >>> mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
      >>> def make():
      ...     return nnx.Dict(w=nnx.Param(jnp.ones((2, 4)), out_sharding=(None, "model")))
      >>> graphdef, state = nnx.get_abstract_model(make, mesh)
      >>> state["w"].value.sharding.spec == jax.P(None, "model")
      True
    """
    with jax.set_mesh(mesh):
        graphdef, state = split(eval_shape(init_fn))
        layout = Plan(state, mesh).prefix()

    def with_sharding(value: Any, sharding: Any) -> Any:
        return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding)

    leaves, treedef = jax.tree.flatten(state)
    places = jax.tree.broadcast(layout, state)
    return graphdef, treedef.unflatten(map(with_sharding, leaves, jax.tree.leaves(places)))
