"""Names of axes: how a Variable's metadata says the way its value is divided over devices.

``out_sharding`` names the axes of the value, one name (or several, or None) for each. A name is an
axis of a mesh, or a name of the author's own, for which rules give the axis of the mesh: those of
:func:`logical_axis_rules`, and the Variable's own, its metadata ``sharding_rules``.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from moduli import errors
from moduli._base.compat import is_eager
from moduli._variable.metadata import AXIS_NAMES

__all__ = [
    "axes_of_entry",
    "current_mesh",
    "declared",
    "declared_spec",
    "logical_axis_rules",
    "named_sharding",
    "resolved",
    "spec_in",
    "use_eager_sharding",
    "using_eager_sharding",
]


class _Settings(threading.local):
    rules: Mapping[Any, Any] = {}
    eager: bool = True


_settings = _Settings()


def _as_rules(rules: Any) -> dict[Any, Any]:
    """Pairs or a mapping as a dict; of two pairs with one name the later counts."""
    return dict(rules or ())


@contextlib.contextmanager
def logical_axis_rules(
    rules: Mapping[str, Any] | Iterable[tuple[str, Any]] | None,
) -> Iterator[None]:
    """Gives names of axes their axes of the mesh, inside a block.

    A model's author may name axes by what they are ("embed", "heads"), and leave it to the program
    how they are divided. A name without a rule is taken for an axis of the mesh.

    Args:
      rules: pairs of a name and an axis of the mesh, several of them, or None for not divided; or
        a mapping.

    Example:
      >>> import moduli as nnx, jax, jax.numpy as jnp
      >>> mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
      >>> with jax.set_mesh(mesh), nnx.logical_axis_rules([("embed", None), ("heads", "model")]):
      ...     kernel = nnx.Param(jnp.ones((2, 4)), out_sharding=("embed", "heads"))
      >>> kernel.value.sharding.spec == jax.P(None, "model"), kernel.out_sharding
      (True, ('embed', 'heads'))
    """
    before, _settings.rules = _settings.rules, _as_rules(rules)
    try:
        yield
    finally:
        _settings.rules = before


class use_eager_sharding:
    """Chooses whether Variables with names of axes are laid out when they are made.

    They are by default. A call holds from then on in this thread; as a context manager, for its
    block; as a decorator, for a function's calls. A Variable may say it for itself, by the metadata
    ``eager_sharding``.

    Args:
      value: whether they are.

    Example:
      >>> import moduli as nnx
      >>> with nnx.use_eager_sharding(False):
      ...     nnx.using_eager_sharding()
      False
      >>> nnx.using_eager_sharding()
      True
    """

    def __init__(self, value: bool, /):
        self._before, self._value = _settings.eager, bool(value)
        _settings.eager = self._value

    def __enter__(self) -> None:
        _settings.eager = self._value

    def __exit__(self, *error: object) -> None:
        _settings.eager = self._before

    def __call__(self, f: Callable[..., Any]) -> Callable[..., Any]:
        _settings.eager = self._before  # as a decorator it chooses nothing yet

        @functools.wraps(f)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with use_eager_sharding(self._value):
                return f(*args, **kwargs)

        return wrapper

    @staticmethod
    def current_value() -> bool:
        """Returns what :func:`using_eager_sharding` returns."""
        return _settings.eager


def using_eager_sharding() -> bool:
    """Returns whether Variables with names of axes are laid out when they are made.

    Example:
      >>> import moduli as nnx
      >>> nnx.using_eager_sharding()
      True
    """
    return _settings.eager


def current_mesh() -> Any:
    """Returns the mesh in force, or None.

    Inside of a trace that is an abstract mesh, whose axes may be manual ones of ``shard_map``.
    """
    if not is_eager():
        mesh: Any = jax.sharding.get_abstract_mesh()
        return None if mesh.empty else mesh
    mesh = jax.sharding.get_mesh()
    return None if mesh.empty else mesh


def declared(metadata: Mapping[str, Any]) -> Any:
    """Returns what metadata says of the layout: names, a sharding, a Format; None if nothing."""
    names = metadata.get(AXIS_NAMES)
    return None if isinstance(names, (tuple, list)) and not names else names


def resolved(names: Any, own_rules: Any = None) -> Any:
    """Replaces names of axes by what the rules in force give for them.

    Args:
      names: names of axes, a PartitionSpec, a NamedSharding or a Format.
      own_rules: the rules of the Variable.

    Returns:
      A PartitionSpec for names and specs; else something of the same class.

    Raises:
      StructureError: if the Variable's rules contradict those of ``logical_axis_rules``, or what
        is given names no axes.
    """
    rules = dict(_settings.rules)
    for name, axes in _as_rules(own_rules).items():
        if rules.setdefault(name, axes) != axes:
            raise errors.StructureError(
                f"the axis {name!r} is {axes!r} in the metadata sharding_rules, but "
                f"{rules[name]!r} in logical_axis_rules; give both the same"
            )
    return _replaced(names, rules)


def _replaced(names: Any, rules: Mapping[Any, Any]) -> Any:
    if isinstance(names, (PartitionSpec, tuple, list)):
        return PartitionSpec(*[_replaced_entry(entry, rules) for entry in names])
    if isinstance(names, NamedSharding):
        spec = _replaced(names.spec, rules)
        return names if spec == names.spec else NamedSharding(names.mesh, spec)
    if isinstance(names, Sharding):
        return names
    inner = getattr(names, "sharding", None)
    if isinstance(inner, Sharding):  # jax.experimental.layout.Format, which costs an import
        return type(names)(names.layout, _replaced(inner, rules))  # type: ignore[call-arg]
    raise errors.StructureError(
        f"{names!r} of type {type(names).__name__} names no axes: write a tuple with a name or "
        "None for each axis, as out_sharding=(None, 'model'), a jax.sharding.PartitionSpec, a "
        "NamedSharding, or a Format"
    )


def _replaced_entry(entry: Any, rules: Mapping[Any, Any]) -> Any:
    entry = tuple(entry) if isinstance(entry, list) else entry
    if not isinstance(entry, tuple):
        axes = rules.get(entry, entry)
        return tuple(axes) if isinstance(axes, list) else axes
    if entry in rules:
        return rules[entry]
    axes = [axis for name in entry for axis in axes_of_entry(_replaced_entry(name, rules))]
    return tuple(axes) if axes else None


def axes_of_entry(entry: Any) -> tuple[Any, ...]:
    """The axes of the mesh that one entry of a PartitionSpec names."""
    if entry is None or entry is PartitionSpec.UNCONSTRAINED:
        return ()
    return entry if isinstance(entry, tuple) else (entry,)


def declared_spec(metadata: Mapping[str, Any]) -> PartitionSpec | None:
    """Returns the PartitionSpec that metadata declare, by the rules in force; None if none.

    Raises:
      StructureError: see :func:`resolved`.
    """
    names = declared(metadata)
    if names is None:
        return None
    return spec_in(resolved(names, metadata.get("sharding_rules")))


def named_sharding(mesh: Any, spec: PartitionSpec, place: str) -> NamedSharding:
    """Returns the sharding of a spec over a mesh.

    Args:
      mesh: the mesh.
      spec: the spec.
      place: where it stands, for messages.

    Raises:
      StructureError: if the mesh has no axis of such a name, or an axis stands there twice.
    """
    seen: set[Any] = set()
    for entry in spec:
        for axis in axes_of_entry(entry):
            if axis not in mesh.axis_names:
                raise errors.StructureError(
                    f"{place} has the axes {spec!r}, but the mesh has no axis {axis!r}; it has "
                    f"{list(mesh.axis_names)}. Name one of these, or say which one it is: "
                    f"`moduli.logical_axis_rules([({axis!r}, ...)])`, None for not divided"
                )
            if axis in seen:
                raise errors.StructureError(
                    f"{place} has the axes {spec!r}, but an axis of the mesh divides one axis of "
                    f"a value, and {axis!r} stands there twice"
                )
            seen.add(axis)
    return NamedSharding(mesh, spec)


def spec_in(found: Any) -> PartitionSpec:
    """The PartitionSpec of what :func:`resolved` returns; an empty one if it has none."""
    if isinstance(found, PartitionSpec):
        return found
    return getattr(getattr(found, "sharding", found), "spec", None) or PartitionSpec()
