"""Match: does a checkpoint fit a model? Finds every problem before anything is written."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from moduli.errors import format_path
from moduli_interop._errors import CheckpointMismatchError
from moduli_interop._stored import Leaf, Path, StoredArray, StoredNamedTuple, describe

__all__ = ["check_match"]

_MOST_COMPARISONS = 100_000
_SCALAR_KINDS = {bool: "b", int: "iu", float: "f", complex: "c"}


def check_match(stored: Sequence[Leaf], model: Sequence[Leaf], source: str) -> None:
    """Raises if the leaves of a checkpoint are not those of a model.

    Args:
      stored: the leaves of the checkpoint.
      model: the leaves of the model.
      source: the name of the file, for the message.

    Raises:
      CheckpointMismatchError: naming every leaf that is missing, unexpected, or of another kind,
        shape or dtype.
    """
    problems = tuple(_problems(stored, model))
    if not problems:
        return
    count = f"{len(problems)} problems" if len(problems) > 1 else "1 problem"
    lines = "\n".join(f"  {problem}" for problem in problems)
    raise CheckpointMismatchError(
        f"the checkpoint {source} does not fit the model ({count}); nothing was loaded:\n{lines}\n"
        "Build the model as it was when it was saved, or take what you need from "
        "`moduli.load_state(path)` and write it with `moduli.update(model, state)`.",
        problems,
    )


def _problems(stored: Sequence[Leaf], model: Sequence[Leaf]) -> Iterator[str]:
    in_file = {leaf.path: leaf for leaf in stored}
    in_model = {leaf.path: leaf for leaf in model}
    missing = [leaf for leaf in model if leaf.path not in in_file]
    unexpected = [leaf for leaf in stored if leaf.path not in in_model]
    shared = {alias: leaf for leaf in stored for alias in leaf.aliases}
    search = len(missing) * len(unexpected) <= _MOST_COMPARISONS
    for leaf in missing:
        text = f"missing: the checkpoint has no `{leaf.name}` ({_what(leaf)})"
        if leaf.path in shared:
            first = shared[leaf.path].name
            yield f"{text}: when it was saved, it was the same Variable as `{first}`"
        else:
            yield text + (_near(leaf, unexpected) if search else "")
    for leaf in unexpected:
        text = f"unexpected: the model has no `{leaf.name}` ({_what(leaf)})"
        twin = _twin(leaf, in_model)
        if twin is not None:
            yield f"{text}: in the model it is the same Variable as `{format_path(twin)}`"
        elif leaf.kind in ("Intermediate", "Perturbation"):
            yield f"{text}; take it out before saving: `moduli.pop(model, moduli.{leaf.kind})`"
        else:
            yield text + (_near(leaf, missing) if search else "")
    for leaf in model:
        if leaf.path in in_file:
            yield from _differences(in_file[leaf.path], leaf)


def _what(leaf: Leaf) -> str:
    return f"{leaf.kind} {describe(leaf.value)}"


def _near(leaf: Leaf, others: Iterable[Leaf]) -> str:
    """Suggests another leaf: the nearest name, of those with the same value type if any are."""
    candidates = [other for other in others if _what(other) == _what(leaf)] or list(others)
    near = difflib.get_close_matches(leaf.name, [other.name for other in candidates], n=1)
    return f"; did you mean `{near[0]}`?" if near else ""


def _twin(leaf: Leaf, in_model: Mapping[Path, Leaf]) -> Path | None:
    for other in in_model.values():
        if leaf.path in other.aliases:
            return other.path
    return None


def _differences(stored: Leaf, model: Leaf) -> Iterator[str]:
    if stored.kind != model.kind:
        yield (
            f"kind: `{model.name}` is of kind {model.kind} in the model and of kind {stored.kind} "
            "in the checkpoint"
        )
    yield from _value_differences(stored.value, model.value, model.path)


def _value_differences(stored: Any, model: Any, path: tuple[Any, ...]) -> Iterator[str]:
    name = format_path(path)
    if isinstance(stored, StoredArray) and isinstance(model, StoredArray):
        if stored.key_impl != model.key_impl:
            yield (
                f"dtype: `{name}` is {describe(model)} in the model and {describe(stored)} in the "
                "checkpoint"
            )
            return
        if stored.shape != model.shape:
            yield (
                f"shape: `{name}` is {_shape(model)} in the model and {_shape(stored)} in the "
                "checkpoint"
            )
        if stored.dtype != model.dtype:
            yield (
                f"dtype: `{name}` is {model.dtype} in the model and {stored.dtype} in the "
                "checkpoint"
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


def _other_type(name: str, stored: Any, model: Any) -> str:
    here, there = describe(model), describe(stored)
    return f"value: `{name}` is {here} in the model and {there} in the checkpoint"
