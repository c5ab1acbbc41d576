"""Initializers that also say something of the parameter that they fill."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import jax

import moduli
from moduli_layers.errors import ArgumentError
from moduli_layers.initializers import Initializer

__all__ = ["with_metadata", "with_partitioning"]

_AXIS_HOOKS = ("on_add_axis", "on_remove_axis")


def with_metadata(initializer: Callable[..., Any], **metadata: Any) -> Initializer:
    """Makes an initializer whose parameters have metadata.

    Args:
      initializer: the initializer, ``(key, shape, dtype) -> array``; it may itself have metadata,
        which is kept unless a name is given again.
      **metadata: what the Variable gets, as if its constructor were given it. Where a layer's
        ``kernel_metadata`` says another thing of the same name, this one holds.

    Returns:
      A function like ``initializer`` that returns a :class:`moduli.VariableMetadata`.

    Raises:
      ArgumentError: ``on_add_axis`` or ``on_remove_axis``, which Variables do not have.

    Example:
      >>> import moduli
      >>> from moduli_layers import Linear, initializers, with_metadata
      >>> init = with_metadata(initializers.lecun_normal(), tag="frozen")
      >>> layer = Linear(3, 4, kernel_init=init, rngs=moduli.Rngs(0))
      >>> layer.kernel.tag
      'frozen'
    """
    for name in _AXIS_HOOKS:
        if name in metadata:
            raise ArgumentError(
                f"with_metadata got {name}, which no Variable has; name the mapped axis in the "
                f"transform: transform_metadata={{moduli.PARTITION_NAME: 'layers'}}"
            )

    @functools.wraps(initializer)
    def make(*args: Any, **kwargs: Any) -> moduli.VariableMetadata[Any]:
        made = initializer(*args, **kwargs)
        if isinstance(made, moduli.VariableMetadata):
            return moduli.VariableMetadata(made.raw_value, {**made.metadata, **metadata})
        return moduli.VariableMetadata(made, metadata)

    return cast(Initializer, make)


def with_partitioning(
    initializer: Callable[..., Any],
    sharding: Any,
    mesh: jax.sharding.Mesh | None = None,
    **metadata: Any,
) -> Initializer:
    """Makes an initializer whose parameters name their axes for sharding.

    The names are metadata, ``out_sharding``. Under a mesh the parameter is laid out by them when it
    is made; without one they are only names. :func:`moduli.vmap` and :func:`moduli.scan` keep them
    right where an axis comes or goes (``transform_metadata``).

    Args:
      initializer: the initializer, ``(key, shape, dtype) -> array``.
      sharding: for each axis its name, several names, or None, kept as a tuple; or a
        ``jax.sharding.NamedSharding`` or a ``Format``.
      mesh: the mesh that has these names, kept as the metadata ``mesh`` if given; by default that
        of ``jax.set_mesh``.
      **metadata: more metadata, as in :func:`with_metadata`.

    Returns:
      A function like ``initializer`` that returns a :class:`moduli.VariableMetadata`.

    Example:
      >>> import moduli
      >>> from moduli_layers import Linear, initializers, with_partitioning
      >>> init = with_partitioning(initializers.lecun_normal(), (None, "model"))
      >>> layer = Linear(3, 4, kernel_init=init, rngs=moduli.Rngs(0))
      >>> layer.kernel.out_sharding
      (None, 'model')
    """
    if mesh is not None:
        metadata["mesh"] = mesh
    names = sharding
    if isinstance(sharding, (tuple, list, jax.sharding.PartitionSpec)):
        names = tuple(tuple(name) if isinstance(name, list) else name for name in sharding)
    return with_metadata(initializer, out_sharding=names, **metadata)
