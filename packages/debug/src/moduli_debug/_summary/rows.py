"""The rows of a summary: one for each module, and for each method that is called instead."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import moduli
from moduli_debug._module_filter import other_paths, path_text
from moduli_debug._summary.calls import Call, Trace, abstract
from moduli_debug._summary.costs import Costs, Work, find_work
from moduli_debug._summary.sizes import Held, Size, held_by, kind_of, sizes_of

__all__ = ["Row", "make_rows"]

Path = tuple[Any, ...]
Key = tuple[Path, str]


@dataclasses.dataclass(frozen=True)
class Row:
    """One module of a model, with everything that is below it.

    A method other than ``__call__`` has a row of its own, whoever calls it. A module of which
    nothing but such methods is called has no other row.

    Attributes:
      path: its path from the model, ``()`` for the model itself.
      type: its class.
      args: the positional arguments of its first call, with ``jax.ShapeDtypeStruct`` in the place
        of arrays; empty if it is not called.
      kwargs: the keyword arguments, likewise.
      outputs: what its first call returns, likewise.
      calls: how often it runs in one call of the model, steps of loops counted.
      sizes: count and bytes of what is at or below it, by kind, such as ``row.sizes["Param"]``;
        what is shared counts once.
      held: the Variables of the module itself, not of its submodules.
      other_paths: its other paths, if the module stands in several places; not those that it has
        because a module above it does.
      flops: operations of all its calls, those of its submodules included; None if not counted.
      vjp_flops: operations of all its calls and of their backward pass; None if not counted.
      method: the name of the method that the row is about; ``"__call__"`` for the module itself.
    """

    path: Path
    type: type
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: Any
    calls: int
    sizes: Mapping[str, Size]
    held: tuple[Held, ...]
    other_paths: tuple[Path, ...] = ()
    flops: float | None = None
    vjp_flops: float | None = None
    method: str = "__call__"

    @property
    def full_path(self) -> Path:
        """The path, and the method's name behind it, if the row is about one."""
        return self.path if self.method == "__call__" else (*self.path, self.method)

    @property
    def name(self) -> str:
        """The path as text, such as ``"blocks/0/attention"``, or ``"blocks/0/encode"``."""
        return path_text(self.full_path)

    @property
    def size(self) -> Size:
        """Count and bytes of all kinds together."""
        return sum(self.sizes.values(), start=Size(0, 0))


def make_rows(
    model: Any, forward: Trace, backward: Trace | None, compute_flops: bool
) -> tuple[list[tuple[Row, Any]], list[str]]:
    """Makes a row for each module that is called or holds something, callers before callees.

    Args:
      model: the model.
      forward: its traced call.
      backward: its traced call and backward pass, if FLOPs of that are wanted.
      compute_flops: whether FLOPs of the call are wanted.

    Returns:
      Pairs (row, module), and notes on what could not be counted.
    """
    places = other_paths(model)
    modules = {
        path: module
        for path, module in moduli.iter_modules(model)
        if not isinstance(module, (moduli.List, moduli.Dict)) or callable(module) or not path
    }
    modules.setdefault((), model)  # it may be a Pytree of another kind
    first = {place: path for path, found in places.items() for place in found}
    costs = Costs(compute_flops)
    work = find_work(forward.jaxpr, costs)
    flops = _by_row(forward.calls, work, costs, first) if compute_flops else {}
    notes = dict(work.notes) if compute_flops or backward else {}
    vjp_flops: dict[Key, float] = {}
    if backward is not None:
        costs = Costs()
        both = find_work(backward.jaxpr, costs)
        vjp_flops = _by_row(backward.calls, both, costs, first)
        notes.update(both.notes)
    called = _calls_by_row(forward.calls, first)
    runs = _runs(forward.calls, work.runs)
    held = _held_by_module(model, set(modules))
    rows = []
    for path, method in _in_order(modules, called):
        calls = called.get((path, method), {})
        of_first = next(iter(calls.values()), None)
        row = Row(
            path=path,
            type=type(modules[path]),
            args=of_first.args if of_first else (),
            kwargs=of_first.kwargs if of_first else {},
            outputs=of_first.outputs if of_first else None,
            calls=sum(runs[number] for number in calls),
            sizes=sizes_of(modules[path]),
            held=tuple(held.get(path, ())),
            other_paths=_own_places(path, places),
            flops=flops.get((path, method), 0.0) if compute_flops else None,
            vjp_flops=vjp_flops.get((path, method), 0.0) if backward is not None else None,
            method=method,
        )
        if calls or row.sizes:
            rows.append((row, modules[path]))
    return rows, list(notes)


def _own_places(path: Path, places: Mapping[Path, list[Path]]) -> tuple[Path, ...]:
    above = places.get(path[:-1], ())
    return tuple(
        place
        for place in places.get(path, ())
        if place != path and not (place[-1:] == path[-1:] and place[:-1] in above)
    )


def _key(call: Call, first: Mapping[Path, Path]) -> Key:
    """Returns the path and the method of the row that a call belongs to."""
    root = call.caller is None and not call.path  # whatever method the user asked for
    return first.get(call.path, call.path), "__call__" if root else call.method


def _calls_by_row(
    calls: Mapping[int, Call], first: Mapping[Path, Path]
) -> dict[Key, dict[int, Call]]:
    found: dict[Key, dict[int, Call]] = {}
    for number, call in calls.items():
        found.setdefault(_key(call, first), {})[number] = call
    return found


def _by_row(
    calls: Mapping[int, Call], work: Work, costs: Costs, first: Mapping[Path, Path]
) -> dict[Key, float]:
    """Returns FLOPs by row; an operation belongs to every call that it stands in."""
    found: dict[Key, float] = {}
    for numbers, flops in work.flops(costs):
        keys = {((), "__call__")}  # what stands in no call belongs to the model
        for number in numbers:
            keys.update(_key(call, first) for call in _callers(number, calls))
        for key in keys:
            found[key] = found.get(key, 0.0) + flops
    return found


def _callers(number: int | None, calls: Mapping[int, Call]) -> Iterator[Call]:
    """Yields a call and those around it."""
    while number in calls:
        call = calls[number]  # type: ignore[index]
        yield call
        number = call.caller


def _runs(calls: Mapping[int, Call], known: Mapping[int, int]) -> dict[int, int]:
    """Returns how often each call runs.

    A transform may trace a function twice and throw one trace away; then its calls stand in no
    program, while those of the other trace do. A call without any operation stands in none either.
    """
    in_program = {(calls[n].path, calls[n].method) for n in known if n in calls}
    runs: dict[int, int] = {}
    for number, call in calls.items():  # callers come before callees
        if number in known:
            runs[number] = known[number]
        elif (call.path, call.method) in in_program:
            runs[number] = 0
        else:
            runs[number] = runs.get(call.caller, 1) if call.caller is not None else 1
    return runs


def _held_by_module(model: Any, paths: set[Path]) -> dict[Path, list[Held]]:
    """Returns what each module holds itself, also what an earlier one holds too."""
    again = {places[0]: places for places in moduli.find_duplicates(model, only=moduli.Variable)}
    found: dict[Path, list[Held]] = {}
    for path, value in held_by(model):
        for place in again.get(path, [path]):
            owner = place[:-1]
            while owner not in paths:
                owner = owner[:-1]
            same_as = path_text(path) if place != path else None
            shape = abstract(value)
            held = Held(path_text(place[len(owner) :]), kind_of(value), shape, same_as)
            found.setdefault(owner, []).append(held)
    return found


def _in_order(modules: Mapping[Path, Any], called: Iterable[Key]) -> list[Key]:
    """Sorts rows: a module before its methods and parts, those in the order of their first calls.

    A module of which only methods are called has rows for these alone; one that a call made has
    none.
    """
    called = [key for key in called if key[0] in modules]
    shown = {path for path, _ in called}
    names = {_place(key): key for key in called}
    names |= {path: (path, "__call__") for path in modules if path not in shown}
    rank: dict[Path, int] = {}
    uncalled = sorted(modules, key=_sorted_by)
    for number, place in enumerate([*map(_place, called), *uncalled]):
        for stop in range(len(place) + 1):
            rank.setdefault(place[:stop], number)
    order = sorted(names, key=lambda place: [rank[place[:n]] for n in range(len(place) + 1)])
    return [names[place] for place in order]


def _place(key: Key) -> Path:
    """Returns where a row stands among the others: a method as a part of its module."""
    path, method = key
    return path if method == "__call__" else (*path, (method,))  # no attribute has this name


def _sorted_by(path: Path) -> list[tuple[int, str]]:
    return [(part, "") if isinstance(part, int) else (0, str(part)) for part in path]
