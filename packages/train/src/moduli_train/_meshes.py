"""On a mesh with explicit axes, where JAX refuses what it would have to guess.

Most gradient transformations work on each parameter as it is laid out. Some do more: muon
multiplies matrices with themselves, prodigy and L-BFGS take products of all parameters. Where JAX
asks how the result is to be laid out, the update runs in ``jax.sharding.auto_axes``: the compiler
chooses inside, and parameters and state come back as they were laid out. Rows of a batch are
gathered before they are cut into parts, and each part is laid out as the batch was.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

__all__ = ["gathered", "rows_like", "update_on_mesh"]


def gathered(array: Any, axes: int = 1) -> Any:
    """Returns an array whose first axes are not divided over an explicit mesh."""
    names = tuple(_spec(array))
    if not _explicit_axes() or not any(names[:axes]):
        return array
    return jax.sharding.reshard(array, PartitionSpec(*[None] * axes, *names[axes:]))


def rows_like(array: Any, batch: Any, axis: int) -> Any:
    """Returns an array with its rows, along an axis, divided over the mesh as those of a batch."""
    names = next(iter(_spec(batch)), None)
    if not _explicit_axes() or names is None:
        return array
    sizes = jax.sharding.get_abstract_mesh().shape
    devices = math.prod(sizes[name] for name in (names if isinstance(names, tuple) else (names,)))
    if array.shape[axis] % devices:
        return array
    spec = [*_spec(array), *[None] * array.ndim][: array.ndim]
    spec[axis] = names
    return jax.sharding.reshard(array, PartitionSpec(*spec))


def update_on_mesh(
    update: Callable[..., Any], grads: Any, state: Any, params: Any, more: Any
) -> Any:
    """Calls ``update(grads, state, params, **more)`` of a gradient transformation.

    Args:
      update: the function.
      grads: the gradients.
      state: the state of the transformation.
      params: the parameters.
      more: further arguments by name. Functions among them are taken for ones of the parameters,
        such as L-BFGS's ``value_fn``, and are called with these laid out as they are outside.

    Returns:
      (updates, state), laid out as the parameters and the old state.
    """
    try:
        return update(grads, state, params, **more)
    except Exception as error:
        if type(error).__name__ != "ShardingTypeError" or not _explicit_axes():
            raise
    return _in_auto_axes(update, grads, state, params, more)


def _explicit_axes() -> tuple[Any, ...]:
    return tuple(jax.sharding.get_abstract_mesh().explicit_axes)


def _in_auto_axes(
    update: Callable[..., Any], grads: Any, state: Any, params: Any, more: Any
) -> Any:
    given, treedef = jax.tree.flatten((grads, state, params, more))
    is_array = [isinstance(leaf, jax.Array) for leaf in given]
    arrays = [leaf for leaf, use in zip(given, is_array, strict=True) if use]
    axes = _explicit_axes()
    structure: Any = None

    def run(*arrays: jax.Array) -> list[jax.Array]:
        nonlocal structure
        left = iter(arrays)
        leaves = [
            next(left) if use else _function(leaf, params, axes)
            for leaf, use in zip(given, is_array, strict=True)
        ]
        grads, state, now, more = treedef.unflatten(leaves)
        results, structure = jax.tree.flatten(update(grads, state, now, **more))
        return [jnp.asarray(result) for result in results]

    expected = [*jax.tree.leaves(params), *jax.tree.leaves(state)]
    specs = [_spec(leaf) for leaf in expected]
    results = jax.sharding.auto_axes(run, axes=axes, out_sharding=specs)(*arrays)
    return structure.unflatten(results)


def _spec(leaf: Any) -> PartitionSpec:
    return jax.typeof(leaf).sharding.spec if isinstance(leaf, jax.Array) else PartitionSpec()


def _function(leaf: Any, params: Any, axes: tuple[Any, ...]) -> Any:
    """Returns a function of the parameters that sees them laid out as outside; else the leaf."""
    if not callable(leaf):
        return leaf
    structure = jax.tree.structure(params)
    specs = jax.tree.map(_spec, params)

    def call(*args: Any, **kwargs: Any) -> Any:
        given = tuple(
            specs
            if jax.tree.structure(arg) == structure
            else jax.tree.map(lambda _: PartitionSpec(), arg)
            for arg in args
        )
        inside = jax.sharding.explicit_axes(
            lambda *args: leaf(*args, **kwargs), axes=axes, in_sharding=given
        )
        return inside(*args)

    return call
