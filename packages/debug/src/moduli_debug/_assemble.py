"""From the entries of a recording to the States that a capture returns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax

import moduli
from moduli import errors
from moduli.plugins import Entry, Place
from moduli_debug._wanted import Called, Perturbed, Sown, Wanted

__all__ = ["Source", "assemble", "given_entries"]

Path = tuple[Any, ...]
Collected = dict[Path, moduli.Variable[Any]]


class Source(NamedTuple):
    """Where a captured value comes from; the metadata ``source`` of its Variable.

    Attributes:
      plugin: what made it: "sow", "perturb" or "capture".
      path: the path of the module.
      name: the sown name, "inputs", "outputs", or the method.
      calls: for each value in the Variable's tuple, in which call of the module it was made; None
        where that is not counted.
      axes: for each value, (transform, size) of the axes that transforms have put in front.
    """

    plugin: str
    path: Path
    name: str
    calls: tuple[int | None, ...]
    axes: tuple[Any, ...]


def assemble(
    wanted: Wanted, entries: Iterable[Entry], init: Mapping[Path, moduli.Variable[Any]]
) -> list[moduli.State]:
    """Sorts what was recorded: a State for each kind, and one for inputs and outputs if wanted.

    Args:
      wanted: what the capture collects.
      entries: what was recorded.
      init: what the capture was given to start from, by module path and name.
    """
    collected: list[Collected] = [{} for _ in wanted.kinds]
    calls: dict[Path, list[Entry]] = {}
    for path, variable in init.items():
        number = wanted.number_of(type(variable))
        if number is not None:
            collected[number][path] = variable.copy()
    for entry in entries:
        name = entry.place.name
        if isinstance(name, Sown):
            number = wanted.number_of(name.kind)
            if number is not None:
                _take_sown(collected[number], entry, name)
        elif isinstance(name, Perturbed):
            number = wanted.number_of(name.kind)
            if number is not None:
                _take_perturbed(collected[number], entry, name)
        elif isinstance(name, Called):
            calls.setdefault((*entry.place.path, name), []).append(entry)
    outside: Collected = {}
    for (*path, name), found in calls.items():
        into, kind = outside, moduli.Intermediate
        if name.method:
            kind = wanted.methods
            number = None if kind is None else wanted.number_of(kind)
            if number is None:
                continue
            into = collected[number]
        _take_calls(into, wanted, tuple(path), name, kind, found)
    if wanted.outputs is not None or wanted.inputs is not None:
        collected.append(outside)
    return [_state(group) for group in collected]


def _take_sown(into: Collected, entry: Entry, name: Sown) -> None:
    path = (*entry.place.path, name.name)
    existing = into.get(path)
    if existing is not None and type(existing) is not name.kind:
        raise errors.StructureError(
            f"sow: `{errors.format_path(path)}` is sown as kind {name.kind.__name__} and as kind "
            f"{type(existing).__name__}; use one kind, or another name"
        )
    old = name.init_fn() if existing is None else existing.get_raw_value()
    source = Source("sow", entry.place.path, name.name, (None,), (entry.crossings,))
    if existing is not None and existing.has_metadata("source"):
        before = existing.get_metadata("source")
        source = source._replace(calls=before.calls + source.calls, axes=before.axes + source.axes)
    into[path] = name.kind(name.reduce_fn(old, entry.value), source=source)


def _take_perturbed(into: Collected, entry: Entry, name: Perturbed) -> None:
    path = (*entry.place.path, name.name)
    existing = into.get(path)
    if existing is None:
        source = Source("perturb", entry.place.path, name.name, (None,), (entry.crossings,))
        into[path] = name.kind(entry.value, source=source)
        return
    was, now = _types(existing.get_raw_value()), _types(entry.value)
    if was != now:
        raise errors.ShapeError(
            f"perturb: `{errors.format_path(path)}` is perturbed twice, as {was} and as {now}; "
            "give each value a name of its own"
        )


def _types(value: Any) -> Any:
    return jax.tree.map(lambda leaf: str(jax.typeof(leaf)), value)


def _take_calls(
    into: Collected, wanted: Wanted, path: Path, name: Called, kind: Any, found: list[Entry]
) -> None:
    reduce = wanted.reduce
    if reduce is not None and not name.method:
        found = [_kept_steps(entry, reduce) for entry in found[slice(*reduce.kept)]]
    source = Source(
        "capture",
        path,
        name.what,
        tuple(entry.place.number for entry in found),
        tuple(entry.crossings for entry in found),
    )
    values = tuple(entry.value for entry in found)
    place = (*path, name.what)
    existing = into.get(place)
    if existing is not None:  # sown under the name of the method
        values = (*existing.get_raw_value(), *values)
    into[place] = kind(values, source=source)


def _kept_steps(entry: Entry, reduce: Any) -> Entry:
    """Leaves out the steps of the outermost loop that are not kept."""
    steps = slice(*reduce.kept)
    if steps == slice(None):
        return entry
    for axis, (transform, size) in enumerate(entry.crossings):
        if transform in ("scan", "fori_loop"):
            index = (slice(None),) * axis + (steps,)
            kept = len(range(size)[steps])
            crossings = list(entry.crossings)
            crossings[axis] = (transform, kept)
            value = jax.tree.map(lambda leaf: leaf[index], entry.value)  # noqa: B023
            return entry._replace(value=value, crossings=tuple(crossings))
    return entry


def _state(flat: Collected) -> moduli.State:
    for path in flat:
        for stop in range(1, len(path)):
            if path[:stop] in flat:
                raise errors.StructureError(
                    f"capture: `{errors.format_path(path[:stop])}` is the name of a captured "
                    "value and of a module which has one too, at "
                    f"`{errors.format_path(path)}`; sow under a name that no submodule has"
                )
    return moduli.from_flat_state(sorted(flat.items(), key=_in_order))


def _in_order(item: tuple[Path, Any]) -> Any:
    return [(isinstance(part, str), part) for part in item[0]]


def given_entries(init: Mapping[Path, moduli.Variable[Any]]) -> list[Entry]:
    """The perturbations among Variables, for the recording to give to the model."""
    given = []
    for (*path, name), variable in init.items():
        if isinstance(variable, moduli.Perturbation):
            source = variable.get_metadata("source", None)
            axes = source.axes[0] if isinstance(source, Source) else ()
            place = Place(tuple(path), None, Perturbed(type(variable), name))
            given.append(Entry(place, variable.get_raw_value(), axes))
    return given
