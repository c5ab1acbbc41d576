"""create: a model, its optimizer and averages made sharded, in one program."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.sharding import AxisType, Mesh, NamedSharding

from moduli import errors
from moduli._base.compat import is_eager
from moduli._base.current_transform import describe_running
from moduli._call.function import check_callable
from moduli._graph.cache import flat_of
from moduli._graph.data import is_graph_leaf
from moduli._layout.plan import Plan
from moduli._transforms.abstract import eval_shape
from moduli._transforms.jit import jit
from moduli._variable.axis_names import current_mesh

__all__ = ["create"]

R = TypeVar("R")


def create(make: Callable[[], R], mesh: Any = None, rules: Any = None) -> R:
    """Makes a model laid out over a mesh, in one program; no device ever holds all of it.

    ``make`` may return whatever belongs together: the model, its optimizer, averages. The names in
    the metadata of Variables say how they are laid out, and rules do for a model that has none, or
    others. An optimizer's state follows its parameter.

    Args:
      make: a function without arguments that returns a module, or a pytree of modules.
      mesh: the mesh; by default that of ``jax.set_mesh``. Without any, and without rules, the model
        is made by one program on one device, and names are only names.
      rules: pairs of a filter or a path, and a spec; the first that selects a value counts. A path
        is one part, or several that follow each other, anywhere in a value's path: ``"kernel"``,
        ``"attention/query"``, ``"blocks/*/mlp"``, ``"query|key|value"``. A spec is a PartitionSpec,
        a tuple of names, None for not divided, or :func:`fsdp`, which may also stand alone.

    Returns:
      What ``make`` returns. Values that nothing lays out are whole on every device.

    Raises:
      StructureError: if a rule selects nothing, an axis is not one of the mesh, or there are rules
        and no mesh.
      ShapeError: if a value cannot be divided so, with its path.
      TraceError: if it is called inside of a transform.

    Example:
      >>> import moduli as nnx, jax, jax.numpy as jnp
      >>> mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
      >>> class Scale(nnx.Module):
      ...     def __init__(self, rngs):
      ...         self.kernel = nnx.Param(jax.random.normal(rngs.params(), (4, 8)))
      >>> model = nnx.create(
      ...     lambda: Scale(nnx.Rngs(0)), mesh, [("kernel", jax.P(None, "model"))]
      ... )
      >>> model.kernel.value.sharding.spec == jax.P(None, "model")
      True
    """
    check_callable(make, "create", "lambda: Model(...)")
    if not is_eager():
        raise errors.TraceError(
            "create runs a program of its own, and was called inside of that of "
            f"{describe_running()}; call it outside, or make the model there and pass "
            "`out_shardings=moduli.shardings(moduli.eval_shape(make), mesh, rules)`"
        )
    mesh = current_mesh() if mesh is None else mesh
    if mesh is None:
        if rules is not None:
            raise errors.StructureError(
                "create got rules and no mesh to lay the model out over; pass `mesh=`, or call it "
                "under `with jax.set_mesh(mesh):`"
            )
        return _compiled(make, None)
    if not isinstance(mesh, Mesh):
        raise errors.StructureError(
            f"create got a {type(mesh).__name__} as the mesh; pass a jax.sharding.Mesh, which has "
            "devices, as that of `jax.make_mesh((8,), ('data',))`"
        )
    automatic = _automatic(mesh)
    if automatic != mesh:
        # Under explicit axes whatever names no layout is whole, random numbers too: XLA has to be
        # free to divide it. A `make` that itself speaks of explicit axes takes the other way.
        with contextlib.suppress(Exception):
            return _on(mesh, _made(make, automatic, rules))
    return _made(make, mesh, rules)


def _made(make: Callable[[], R], mesh: Any, rules: Any) -> R:
    with jax.set_mesh(mesh) if mesh != current_mesh() else contextlib.nullcontext():
        return _compiled(make, Plan(eval_shape(make), mesh, rules).prefix())


def _compiled(make: Callable[[], R], layout: Any) -> R:
    """Runs a program that nobody calls a second time."""
    return jit(make, out_shardings=layout).lower().compile()()


def _automatic(mesh: Mesh) -> Mesh:
    """Returns the mesh with axes that XLA decides about."""
    kinds = (AxisType.Auto,) * len(mesh.axis_names)
    return mesh if mesh.axis_types == kinds else Mesh(mesh.devices, mesh.axis_names, kinds)


def _on(mesh: Mesh, made: Any) -> Any:
    """Says of the arrays that they are on this mesh, which has the same devices."""

    def moved(value: Any) -> Any:
        sharding = getattr(value, "sharding", None)
        if not isinstance(sharding, NamedSharding):
            return value
        return jax.device_put(value, NamedSharding(mesh, sharding.spec))

    def moved_below(item: Any) -> Any:
        if not is_graph_leaf(item):
            return moved(item)
        for holder in flat_of(item).holders:
            holder._value = jax.tree.map(moved, holder._value)
        return item

    return jax.tree.map(moved_below, made, is_leaf=is_graph_leaf)
