"""Names of axes: how a Variable's metadata says the way its value is divided over devices.

``out_sharding`` names the axes of the value, one name (or several, or None) for each. A name is an
axis of a mesh, or a name of the author's own, for which rules give the axis of the mesh: those of
:func:`logical_axis_rules`, and the Variable's own, its metadata ``sharding_rules``. Under a mesh a
Variable is laid out when it is made; without one, names are only names.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec, Sharding

from moduli import errors
from moduli._base.compat import Tracer, is_eager

__all__ = [
    "NAME_KEYS",
    "axes_of_entry",
    "current_mesh",
    "declared",
    "declared_spec",
    "fitted_metadata",
    "fitted_names",
    "lay_out",
    "logical_axis_rules",
    "named_sharding",
    "resolved",
    "use_eager_sharding",
    "using_eager_sharding",
]

NAME_KEYS = ("out_sharding", "sharding_names", "sharding")
"""The metadata that name the axes, the first one that is there counts."""


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
    for key in NAME_KEYS:
        names = metadata.get(key)
        if names is not None and names != ():
            return names
    return None


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
    found = resolved(names, metadata.get("sharding_rules"))
    while not isinstance(found, PartitionSpec):
        inner = getattr(found, "spec", None) or getattr(found, "sharding", None)
        if inner is None:
            return PartitionSpec()
        found = inner
    return found


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


def lay_out(value: Any, metadata: Mapping[str, Any], kind: str) -> Any:
    """Returns a new Variable's value laid out as its metadata say.

    Args:
      value: the value.
      metadata: the metadata.
      kind: the name of the Variable's class, for messages.

    Returns:
      The value, on the devices of the mesh; the same one without a mesh or names.

    Raises:
      StructureError: see :func:`resolved` and :func:`named_sharding`.
      ShapeError: if there are more names than axes.
    """
    names = declared(metadata)
    shape = () if isinstance(value, (int, float, complex)) else getattr(value, "shape", None)
    if (
        names is None
        or not metadata.get("eager_sharding", _settings.eager)
        or shape is None
        or isinstance(value, jax.ShapeDtypeStruct)
    ):
        return value
    found = resolved(names, metadata.get("sharding_rules"))
    place = f"the {kind} of shape {tuple(shape)}"
    mesh, spec = metadata.get("mesh"), found
    if not isinstance(found, PartitionSpec):
        inner = found if isinstance(found, Sharding) else found.sharding
        given = getattr(inner, "mesh", None)
        if mesh is not None and given is not None and given != mesh:
            raise errors.StructureError(
                f"{place} has the metadata mesh={mesh!r}, but its out_sharding is over {given!r}; "
                "leave out one of them"
            )
        mesh, spec = given, getattr(inner, "spec", None)
    now = current_mesh()
    if mesh is None or _is_alike(mesh, now):
        mesh = now
    manual = _manual_axes(now)
    if mesh is None or (now is not None and len(manual) == len(now.axis_names)):
        return value
    if isinstance(mesh, AbstractMesh) and is_eager():  # it has no devices
        return value
    if spec is not None and len(spec) > len(shape):
        raise errors.ShapeError(
            f"{place} has {len(spec)} names of axes, {spec!r}, for {len(shape)} axes; name each "
            "axis once, None for one that is not divided"
        )
    if manual and isinstance(spec, PartitionSpec):
        spec = _without(spec, manual)
        return _constrained(value, now, spec, place) if any(spec) else value
    if not isinstance(found, (PartitionSpec, NamedSharding)):
        return _moved(value, found)
    return _constrained(value, mesh, spec, place)


def _is_alike(mesh: Any, now: Any) -> bool:
    """Returns whether the mesh in force is what a trace knows of this one."""
    return isinstance(now, AbstractMesh) and dict(mesh.shape) == dict(now.shape)


def _manual_axes(mesh: Any) -> set[Any]:
    """The axes over which values are parts already, inside of ``shard_map``."""
    if mesh is None:
        return set()
    types = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {name for name, kind in types if kind == AxisType.Manual}


def _without(spec: PartitionSpec, axes: set[Any]) -> PartitionSpec:
    entries: list[Any] = []
    for entry in spec:
        left = tuple(axis for axis in axes_of_entry(entry) if axis not in axes)
        entries.append(left[0] if len(left) == 1 else left or None)
    return PartitionSpec(*entries)


def _constrained(value: Any, mesh: Any, spec: Any, place: str) -> Any:
    """Lays a value out by a spec: moves an array, or says so in the program that is traced."""
    sharding = named_sharding(mesh, spec, place)
    if not isinstance(value, Tracer) and is_eager():
        return _moved(value, sharding)
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    explicit = {name for name, kind in kinds.items() if kind == AxisType.Explicit}
    if explicit:
        value = jax.sharding.reshard(
            value, named_sharding(mesh, _without(spec, set(kinds) - explicit), place)
        )
        spec = _without(spec, explicit)
        if not any(spec):
            return value
        sharding = NamedSharding(mesh, spec)
    return jax.lax.with_sharding_constraint(value, sharding)


def _moved(value: Any, sharding: Any) -> Any:
    if isinstance(value, Tracer) or not is_eager():
        return jax.lax.with_sharding_constraint(value, sharding)
    return jax.device_put(value, sharding)


def fitted_names(
    names: Sequence[Any], of_shape: Sequence[int], shape: Sequence[int]
) -> tuple[Any, ...]:
    """Carries the names of a parameter's axes over to a value that belongs to it.

    An optimizer's state has the parameter's shape, one axis more (the steps that L-BFGS remembers)
    or some less (adafactor's rows and columns). An axis gets the name of that axis of the parameter
    which has its size; where several fit, and their names differ, it gets none.

    Args:
      names: the names of the parameter's axes; missing ones at the end are None.
      of_shape: the parameter's shape.
      shape: the value's shape.

    Returns:
      A name or None for each axis of the value.

    Example:
      >>> from moduli._variable.axis_names import fitted_names
      >>> fitted_names((None, "model"), (3, 4), (4,)), fitted_names((None, "model"), (3, 4), (3,))
      (('model',), (None,))
      >>> fitted_names((None, "model"), (3, 4), (10, 3, 4))
      (None, None, 'model')
    """
    of_shape, shape = tuple(of_shape), tuple(shape)
    names = (*names, *[None] * (len(of_shape) - len(names)))[: len(of_shape)]
    more = len(shape) - len(of_shape)
    if more >= 0 and shape[more:] == of_shape:
        return (*[None] * more, *names)
    if more > 0 and shape[: len(of_shape)] == of_shape:
        return (*names, *[None] * more)
    found = set(_matchings(names, of_shape, shape))
    return tuple(
        column[0] if len(set(column)) == 1 else None for column in zip(*found, strict=True)
    )


def fitted_metadata(
    metadata: Mapping[str, Any], of_shape: Sequence[int], shape: Sequence[int]
) -> dict[str, Any]:
    """Returns a parameter's metadata for a value that belongs to it, and may have another shape.

    Args:
      metadata: of the parameter.
      of_shape: its shape.
      shape: the value's shape.

    Returns:
      The metadata, with a name for each axis of the value; see :func:`fitted_names`.

    Example:
      >>> from moduli.lowlevel import fitted_metadata
      >>> fitted_metadata({"out_sharding": (None, "model")}, (3, 4), (4,))
      {'out_sharding': ('model',)}
    """
    found = dict(metadata)
    if tuple(of_shape) == tuple(shape):
        return found
    for key in NAME_KEYS:
        names = found.get(key)
        if names is None:
            continue
        mesh = None
        if not isinstance(names, (tuple, list, PartitionSpec)):  # a NamedSharding or a Format
            names = getattr(names, "sharding", names)
            if not isinstance(names, NamedSharding):
                continue
            mesh, names = names.mesh, names.spec
        fitted = fitted_names(tuple(names), of_shape, shape)
        found[key] = fitted if mesh is None else NamedSharding(mesh, PartitionSpec(*fitted))
    return found


def _matchings(
    names: Sequence[Any], of_shape: tuple[int, ...], shape: tuple[int, ...]
) -> Iterator[tuple[Any, ...]]:
    """Yields the names under each way to find the most sizes again, in order."""
    best: list[list[tuple[Any, ...]]] = [[] for _ in range(len(shape) + 1)]

    def visit(axis: int, start: int, given: tuple[Any, ...], count: int) -> None:
        if axis == len(shape):
            best[count].append(given)
            return
        for place in range(start, len(of_shape)):
            if of_shape[place] == shape[axis]:
                visit(axis + 1, place + 1, (*given, names[place]), count + 1)
        visit(axis + 1, start, (*given, None), count)

    visit(0, 0, (), 0)
    yield from next(found for found in reversed(best) if found)
