"""Match: does a checkpoint fit a model? Finds every problem before anything is written."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax

from moduli.errors import format_path
from moduli_interop._dtypes import dtype_from_name
from moduli_interop._errors import CheckpointMismatchError
from moduli_interop._stored import Leaf, Path, StoredArray, StoredNamedTuple, describe

__all__ = ["MOST_ROWS", "check_match", "cut", "paired"]

MOST_ROWS = 40
"""Most rows of a table in an error."""

_MOST_SEARCHES = 40  # leaves for which a near name is looked for, among at most so many:
_MOST_CANDIDATES = 2_000
_SCALAR_KINDS = {bool: "b", int: "iu", float: "f", complex: "c"}
_BARE = frozenset(("array", "value"))


@dataclasses.dataclass(frozen=True)
class _Problem:
    """A row of the table.

    Attributes:
      kind: "missing", "unexpected", "kind", "shape", "dtype" or "value".
      text: what is wrong, with the place.
    """

    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


def paired(stored: Sequence[Leaf], model: Sequence[Leaf]) -> dict[Path, Leaf]:
    """Finds for each leaf of a model the stored one: by its path, or by another path of both.

    Args:
      stored: the leaves of the checkpoint.
      model: the leaves of the model.

    Returns:
      The stored leaves by the model's paths, where there are any.
    """
    by_path = {leaf.path: leaf for leaf in stored}
    found = {}
    others: dict[Path, Leaf] | None = None
    for leaf in model:
        match = by_path.get(leaf.path)
        if match is None and leaf.aliases:  # a Variable is named by another of its paths
            if others is None:
                others = {alias: leaf for leaf in stored for alias in leaf.aliases}
            candidate = others.get(leaf.path)
            if candidate is not None and candidate.path in leaf.aliases:
                match = candidate
        if match is not None:
            found[leaf.path] = match
    return found


def check_match(stored: Sequence[Leaf], model: Sequence[Leaf], source: str) -> dict[Path, Leaf]:
    """Raises if the leaves of a checkpoint are not those of a model.

    Args:
      stored: the leaves of the checkpoint.
      model: the leaves of the model.
      source: the name of the file, for the message.

    Returns:
      The stored leaves by the model's paths.

    Raises:
      CheckpointMismatchError: with a table of every leaf that is missing, unexpected, tied
        otherwise, or of another kind, shape or dtype.
    """
    pairs = paired(stored, model)
    problems = list(_problems(stored, model, pairs))
    if not problems:
        return pairs
    count = f"{len(problems)} problems" if len(problems) > 1 else "1 problem"
    raise CheckpointMismatchError(
        f"the checkpoint {source} does not fit the model ({count}); nothing was loaded:\n"
        f"{_table(problems)}\n"
        "Build the model as it was when it was saved, or take what you need from "
        "`moduli.load_state(path)` and write it with `moduli.update(model, state)`.",
        tuple(map(str, problems)),
    )


def cut(texts: Sequence[str]) -> str:
    """Joins texts with commas, at most :data:`MOST_ROWS` of them."""
    more = len(texts) - MOST_ROWS
    return ", ".join(texts[:MOST_ROWS]) + (f" and {more} more" if more > 0 else "")


def _table(problems: list[_Problem]) -> str:
    """Formats one row for each problem, cut so that every kind of problem is seen."""
    kinds: dict[str, list[_Problem]] = {}
    for problem in problems:
        kinds.setdefault(problem.kind, []).append(problem)
    shown = dict.fromkeys(kinds, 0)
    left = MOST_ROWS
    while left and any(shown[kind] < len(rows) for kind, rows in kinds.items()):
        for kind, rows in kinds.items():  # one of each in turn
            if left and shown[kind] < len(rows):
                shown[kind] += 1
                left -= 1
    lines = []
    for kind, rows in kinds.items():
        lines += [f"  {_shortened(str(row))}" for row in rows[: shown[kind]]]
        if shown[kind] < len(rows):
            lines.append(f"  {kind}: ... and {len(rows) - shown[kind]} more")
    return "\n".join(lines)


def _shortened(text: str, most: int = 400) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _problems(
    stored: Sequence[Leaf], model: Sequence[Leaf], pairs: Mapping[Path, Leaf]
) -> Iterator[_Problem]:
    used = {leaf.path for leaf in pairs.values()}
    missing = [leaf for leaf in model if leaf.path not in pairs]
    unexpected = [leaf for leaf in stored if leaf.path not in used]
    shared = {alias: leaf for leaf in stored for alias in leaf.aliases}
    twins = {alias: leaf.path for leaf in model for alias in leaf.aliases}
    near = _Near(unexpected)
    for leaf in missing:
        text = f"the checkpoint has no `{leaf.name}` ({_what(leaf)})"
        if leaf.path in shared:
            first = shared[leaf.path].name
            text += f": when it was saved, it was the same Variable as `{first}`"
            yield _Problem("missing", text)
        else:
            yield _Problem("missing", text + near(leaf))
    near = _Near(missing)
    for leaf in unexpected:
        text = f"the model has no `{leaf.name}` ({_what(leaf)})"
        twin = twins.get(leaf.path)
        if twin is not None:
            text += f": in the model it is the same Variable as `{format_path(twin)}`"
            yield _Problem("unexpected", text)
        elif leaf.kind in ("Intermediate", "Perturbation"):
            text += f"; take it out before saving: `moduli.pop(model, moduli.{leaf.kind})`"
            yield _Problem("unexpected", text)
        else:
            yield _Problem("unexpected", text + near(leaf))
    for leaf in model:
        if leaf.path in pairs:
            yield from _differences(pairs[leaf.path], leaf)


def _what(leaf: Leaf) -> str:
    return f"{leaf.kind} {_shortened(describe(leaf.value), 100)}"


class _Near:
    """Suggests another leaf: the nearest name, of those with the same value type if any are."""

    def __init__(self, others: Iterable[Leaf]):
        self._others = list(others)
        self._by_type: dict[str, list[str]] = {}
        for other in self._others:
            self._by_type.setdefault(_what(other), []).append(other.name)
        self._names = [other.name for other in self._others]
        self._searches = _MOST_SEARCHES

    def __call__(self, leaf: Leaf) -> str:
        names = self._by_type.get(_what(leaf)) or self._names
        if not self._searches:
            return ""
        self._searches -= 1
        near = difflib.get_close_matches(leaf.name, names[:_MOST_CANDIDATES], n=1)
        return f"; did you mean `{near[0]}`?" if near else ""


def _differences(stored: Leaf, model: Leaf) -> Iterator[_Problem]:
    if stored.kind != model.kind and not _BARE.issuperset((stored.kind, model.kind)):
        yield _Problem(
            "kind",
            f"`{model.name}` is of kind {model.kind} in the model and of kind {stored.kind} "
            "in the checkpoint",
        )
    one, two = stored.value, model.value
    if not (
        type(one) is type(two) is StoredArray
        and one.shape == two.shape
        and one.dtype == two.dtype
        and one.key_impl == two.key_impl
    ):  # nearly all are the same
        yield from _value_differences(one, two, model.path)


def _value_differences(stored: Any, model: Any, path: tuple[Any, ...]) -> Iterator[_Problem]:
    name = format_path(path)
    if isinstance(stored, StoredArray) and isinstance(model, StoredArray):
        if stored.key_impl != model.key_impl:
            yield _Problem(
                "dtype",
                f"`{name}` is {describe(model)} in the model and {describe(stored)} in the "
                "checkpoint",
            )
            return
        if stored.shape != model.shape:
            yield _Problem(
                "shape",
                f"`{name}` is {_shape(model)} in the model and {_shape(stored)} in the checkpoint",
            )
        if stored.dtype != model.dtype and not _is_narrowed(stored, model):
            yield _Problem(
                "dtype",
                f"`{name}` is {model.dtype} in the model and {stored.dtype} in the checkpoint",
            )
    elif isinstance(stored, StoredArray) and type(model) in _SCALAR_KINDS:
        if not _is_number(stored, type(model)):
            yield _other_type(name, stored, model)
    elif isinstance(model, StoredArray) and type(stored) in _SCALAR_KINDS:
        if not _is_number(model, type(stored)):
            yield _other_type(name, stored, model)
    elif not _same_structure(stored, model):
        yield _other_type(name, stored, model)
    else:
        children, others = _children(stored), _children(model)
        for key in children:
            yield from _value_differences(children[key], others[key], (*path, key))


def _is_narrowed(stored: StoredArray, model: StoredArray) -> bool:
    """Returns whether an abstract model only says what JAX makes of a numpy array of 64 bits."""
    if model.container != "abstract" or stored.container == "jax":
        return False
    narrow = jax.dtypes.canonicalize_dtype(dtype_from_name(stored.dtype))
    return narrow == dtype_from_name(model.dtype)


def _same_structure(stored: Any, model: Any) -> bool:
    if isinstance(stored, StoredNamedTuple) and isinstance(model, StoredNamedTuple):
        return (stored.name, stored.fields) == (model.name, model.fields)
    same_keys = _children(stored).keys() == _children(model).keys()
    return type(stored) is type(model) and same_keys


def _is_number(array: StoredArray, scalar: type) -> bool:
    """Returns whether an array is one number of the kind of a Python scalar.

    A count that starts as ``0`` becomes an array in the first jitted step.
    """
    kinds = _SCALAR_KINDS[scalar]
    kind = {"bool": "b", "uint": "u", "int": "i", "float": "f", "bfloat": "f", "complex": "c"}
    family = array.dtype.split("_")[0].rstrip("0123456789")
    return array.shape == () and array.key_impl is None and kind.get(family, "?") in kinds


def _children(value: Any) -> dict[Any, Any]:
    if isinstance(value, StoredNamedTuple):
        return dict(zip(value.fields, value.items, strict=True))
    if isinstance(value, (tuple, list)):
        return dict(enumerate(value))
    return value if isinstance(value, dict) else {}


def _shape(array: StoredArray) -> str:
    return "(" + ", ".join(map(str, array.shape)) + ("," if len(array.shape) == 1 else "") + ")"


def _other_type(name: str, stored: Any, model: Any) -> _Problem:
    here, there = describe(model), describe(stored)
    return _Problem("value", f"`{name}` is {here} in the model and {there} in the checkpoint")
