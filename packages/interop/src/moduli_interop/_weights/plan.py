"""Compares a source of tensors with a model, and finds every problem before a number is read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from moduli.errors import ModuliError, format_path
from moduli_interop._tensors.errors import TensorFileError
from moduli_interop._tensors.stored import StoredTensor, Tensors
from moduli_interop._weights.dtypes import holds, is_real
from moduli_interop._weights.groups import grouped
from moduli_interop._weights.hints import near, prefix_hint
from moduli_interop._weights.name_map import NameMap
from moduli_interop._weights.report import Loaded
from moduli_interop._weights.selection import (
    HARMLESS,
    Selection,
    by_paths,
    chosen,
    renamed,
    selected,
)
from moduli_interop._weights.targets import Target, targets
from moduli_interop._weights.variables import Place, shape_dtype

__all__ = ["Plan", "make_plan"]


@dataclasses.dataclass
class Plan:
    """What is to be read for which Variable, and what is wrong.

    Attributes:
      groups: the targets to read; several are parts of one array.
      fills: how many groups add to the Variable at a path.
      tensors: the tensors by the names that the model asks for.
      loaded: rows of the report.
      missing: paths of Variables without a tensor.
      kept: how many numbers those have.
      unexpected: names without a Variable.
      ignored: names that are passed over.
      left: names that were not considered.
      problems: what is wrong, grouped.
      hint: what to write instead, if the names differ by what they begin with.
      idle: rules of the map that name nothing in the model.
      idle_ignore: patterns of ``ignore`` that are of no tensor.
    """

    groups: list[list[Target]] = dataclasses.field(default_factory=list)
    fills: dict[tuple[Any, ...], int] = dataclasses.field(default_factory=dict)
    tensors: dict[str, StoredTensor] = dataclasses.field(default_factory=dict)
    loaded: list[Loaded] = dataclasses.field(default_factory=list)
    missing: list[str] = dataclasses.field(default_factory=list)
    kept: int = 0
    unexpected: list[str] = dataclasses.field(default_factory=list)
    ignored: list[str] = dataclasses.field(default_factory=list)
    left: list[str] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)
    hint: str | None = None
    idle: list[str] = dataclasses.field(default_factory=list)
    idle_ignore: list[str] = dataclasses.field(default_factory=list)


def make_plan(
    source: Tensors,
    model: Any,
    names: NameMap | Callable[[str], str | None] | None,
    selection: Selection,
) -> Plan:
    """Compares a source with a model.

    Args:
      source: the tensors.
      model: the model.
      names: what its modules are called in the source; or what a tensor is called here.
      selection: which part of both.

    Returns:
      What to do, and what is wrong.
    """
    plan = Plan()
    taken = chosen(source, selection)
    there, plan.ignored, plan.left = taken.there, taken.ignored, taken.left
    plan.idle_ignore = [f"ignore={p!r}{near(p, source)}" for p in taken.idle]
    if callable(names) and not isinstance(names, NameMap):
        there, passed_over = renamed(there, names)
        plan.ignored += passed_over
        mapping = NameMap()
    else:
        mapping = NameMap(names or {})
    listed, harmless = targets(model, mapping, there.__contains__)
    asked, others = selected(listed, selection.only)
    plan.left += [name for name in others if name in there]
    if callable(names) and not isinstance(names, NameMap):
        there = by_paths(there, asked)
    plan.tensors = there
    problems = _Problems()
    _check_names(asked, problems)
    _fill(asked, plan, problems, selection)
    claimed = {name for target in listed for name in target.names}
    for name in there:
        if name in claimed:
            continue
        known = name in harmless or any(name == end or name.endswith(f".{end}") for end in HARMLESS)
        (plan.ignored if known else plan.unexpected).append(name)
    asked_names = {name for target in asked for name in target.names}
    if selection.strict or not plan.loaded:
        _report_names(asked, plan, problems, selection.prefix)
    if asked and (plan.missing or not plan.loaded):
        plan.hint = prefix_hint(list(there), asked_names, selection.prefix)
        if not there and plan.left:
            plan.hint = (
                f"no name begins with prefix={selection.prefix!r}; the first is {plan.left[0]!r}"
            )
        elif not there and not plan.ignored:
            plan.hint = "the source has no tensors at all"
    paths = {target.called for target in listed if target.called}
    paths |= {tuple(map(str, place.path)) for target in listed for place in target.places}
    plan.idle = [f"{theirs!r}: {ours!r}" for theirs, ours in mapping.idle(paths)]
    for pattern in () if selection.strict else taken.idle:
        problems.add(
            "ignore",
            (repr(pattern), near(pattern, source)),
            "no tensor is called {}{} (with strict=False nothing else would show what that lets "
            "in; for what may be missing, give ignore= a function)",
        )
    plan.problems = problems.lines()
    return plan


class _Problems:
    """Problems by kind, each with names whose numbers may differ and a text."""

    def __init__(self) -> None:
        self._rows: dict[str, list[tuple[tuple[str, ...], tuple[str, ...]]]] = {}

    def add(self, kind: str, names: Sequence[str], text: str, *texts: str) -> None:
        """Notes one; ``text`` has a ``{}`` for each of the names and texts."""
        self._rows.setdefault(kind, []).append((tuple(names), (text, *texts)))

    def lines(self) -> list[str]:
        """Returns one line for each group."""
        found = []
        for kind, rows in self._rows.items():
            for names, (text, *texts), count in grouped(rows):
                line = f"{kind}: {text.format(*names, *texts)}"
                found.append(line + (f" ({count} times)" if count > 1 else ""))
        return found


def _check_names(asked: list[Target], problems: _Problems) -> None:
    """Notes names that two different Variables have."""
    owners: dict[str, Target] = {}
    for target in asked:
        for name in target.names:
            other = owners.setdefault(name, target)
            if [id(p.value) for p in other.places] != [id(p.value) for p in target.places]:
                problems.add(
                    "names",
                    (name, other.ours, target.ours),
                    "{} is the name of both {} and {}; write a rule for one of them",
                )


def _fill(asked: list[Target], plan: Plan, problems: _Problems, selection: Selection) -> None:
    """Finds what each Variable is filled with."""
    by_path: dict[tuple[Any, ...], list[Target]] = {}
    variables: dict[int, list[Place]] = {}
    for target in asked:
        for place in target.places:
            by_path.setdefault(place.path, []).append(target)
            listed = variables.setdefault(id(place.value), [])
            if place.path not in [other.path for other in listed]:
                listed.append(place)
    used: dict[int, Target] = {}
    filled = set[int]()
    for identity, spots in variables.items():
        for place in spots:
            needed = by_path[place.path]
            there = [target for target in needed if _state(target, plan)]
            if there and all(target in there or target.optional for target in needed):
                filled.add(identity)
                used |= {id(target): target for target in there}
            elif any(_some(target, plan) for target in needed):
                filled.add(identity)  # the parts that lack are a problem of their own
                for target in needed:
                    _note_missing(target, plan, problems)
    for identity, spots in variables.items():
        needed = [target for place in spots for target in by_path[place.path]]
        if identity in filled or all(target.optional for target in needed):
            continue
        plan.missing.append(format_path(spots[0].path))
        plan.kept += math.prod(shape_dtype(spots[0].value)[0])
    for group in _grouped_parts(used.values(), problems):
        _check_group(group, plan, problems, selection)


def _state(target: Target, plan: Plan) -> bool:
    return all(name in plan.tensors for name in target.names)


def _some(target: Target, plan: Plan) -> bool:
    return any(name in plan.tensors for name in target.names)


def _note_missing(target: Target, plan: Plan, problems: _Problems) -> None:
    for name in target.names:
        if name not in plan.tensors and not target.optional:
            problems.add(
                "missing", (name, target.ours), "the source has no {}, a part of what fills {}"
            )


def _grouped_parts(used: Iterable[Target], problems: _Problems) -> list[list[Target]]:
    """Puts targets together that are parts of one array."""
    groups: dict[Any, list[Target]] = {}
    for target in used:
        part = target.tensor.part
        key = id(target) if part is None else tuple(place.path for place in target.places)
        groups.setdefault(key, []).append(target)
    found = []
    for group in groups.values():
        part = group[0].tensor.part
        if part is not None:
            group.sort(key=lambda target: target.tensor.part[0])
            numbers = [target.tensor.part for target in group]
            if numbers != [(i, part[1]) for i in range(part[1])]:
                problems.add(
                    "parts",
                    (group[0].ours,),
                    "{} is made of the parts {}; write a Tensor for each part from 0 on",
                    ", ".join(map(str, numbers)),
                )
                continue
        found.append(group)
    return found


def _check_group(
    group: list[Target], plan: Plan, problems: _Problems, selection: Selection
) -> None:
    """Notes shapes and dtypes that do not fit, and what is loaded."""
    good = True
    for target in group:
        try:
            expected = target.tensor.shape(target.shapes())
        except ModuliError as error:
            problems.add("layout", (target.ours,), "{}: {}", str(error))
            good = False
            continue
        wanted = shape_dtype(target.places[0].value)[1]
        for name in target.names:
            tensor = plan.tensors[name]
            if tensor.dtype == _NONE:
                problems.add(
                    "unreadable", (tensor.name, target.ours), "{1} needs {0}, {2}", _why(tensor)
                )
                good = False
                continue
            if tensor.shape != expected:
                problems.add(
                    "shape",
                    (tensor.name, target.ours),
                    "{0} has the shape {2} and {1} needs {3}",
                    str(tensor.shape),
                    str(expected),
                )
                good = False
            dtype = np.dtype(np.float32) if target.tensor.offset else tensor.dtype
            dtype = tensor.dtype if holds(tensor.dtype, dtype) else dtype
            exact = holds(wanted, dtype)
            if is_real(wanted) and not is_real(dtype):
                problems.add(
                    "dtype",
                    (tensor.name, target.ours),
                    "{0} is {2} and {1} is {3}, which would lose the imaginary parts; make the "
                    "Variable complex, or pass a dict with what you need of the tensor",
                    tensor.dtype.name,
                    wanted.name,
                )
                good = False
            elif not exact and not selection.cast:
                problems.add(
                    "dtype",
                    (tensor.name, target.ours),
                    "{0} is {2} and {1} is {3}, which cannot hold each of its numbers; write "
                    "cast=True to round them",
                    tensor.dtype.name,
                    wanted.name,
                )
                good = False
            cast = None if tensor.dtype == wanted else wanted.name
            plan.loaded.append(
                Loaded(tensor.name, target.ours, tensor.shape, tensor.dtype.name, cast, exact)
            )
    if good:
        plan.groups.append(group)
        for place in group[0].places:
            plan.fills[place.path] = plan.fills.get(place.path, 0) + 1


_NONE = np.dtype(np.void)
"""The dtype of what is listed as a tensor and has no array of NumPy's: quantised, sparse."""


def _why(tensor: StoredTensor) -> str:
    """Returns why a tensor cannot be read."""
    try:
        tensor.read()
    except TensorFileError as error:
        return f"which {error.problem}"
    return "which has no numbers"


def _report_names(asked: list[Target], plan: Plan, problems: _Problems, prefix: str) -> None:
    """Notes names that are missing and unexpected, with near ones for the first of them."""
    missing = set(plan.missing)
    lacking = [
        target
        for target in asked
        if any(format_path(place.path) in missing for place in target.places)
    ]
    search = len(lacking) <= 100 and len(plan.unexpected) <= 1000
    for target in lacking:
        for name in target.names:
            if name in plan.tensors:
                continue
            hint = near(name, plan.unexpected) if search else ""
            text = "the source has no {} for {}{}"
            problems.add("missing", (prefix + name, target.ours, hint), text)
    wanted = {name for target in asked for name in target.names} - plan.tensors.keys()
    for name in plan.unexpected:
        hint = near(name, wanted) if search else ""
        problems.add("unexpected", (name, hint), "the model has no place for {}{}")
