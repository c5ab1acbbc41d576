"""The Variables of a model that weights fill, by their paths, and the modules above them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

import moduli
from moduli.errors import format_path
from moduli_interop._errors import UnsupportedValueError

__all__ = ["Place", "places", "shape_dtype"]

_TRANSIENT = (moduli.RngState, moduli.Cache, moduli.Intermediate, moduli.Perturbation)


@dataclasses.dataclass
class Place:
    """A place in a model: a module or container, or a Variable.

    Attributes:
      path: the path from the model, of attribute names and keys.
      value: what stands there.
      children: the places below it, by the text of the last part of their paths.
    """

    path: tuple[Any, ...]
    value: Any
    children: dict[str, Place] = dataclasses.field(default_factory=dict)

    @property
    def is_variable(self) -> bool:
        """Whether it is a Variable."""
        return isinstance(self.value, moduli.Variable)

    def variables(self) -> Iterator[tuple[str, Place]]:
        """Yields the places of Variables at and below this one, by their paths from it."""
        if self.is_variable:
            yield "", self
        for name, child in self.children.items():
            for rest, place in child.variables():
                yield f"{name}.{rest}" if rest else name, place


def places(model: Any) -> Place:
    """Returns the tree of a model's Variables; a shared one stands at each of its paths.

    Streams of random numbers, caches and what calls leave behind are no weights.

    Args:
      model: a Module or another node.

    Raises:
      UnsupportedValueError: if it is none.
    """
    if not isinstance(model, moduli.Pytree):
        raise UnsupportedValueError(
            f"got a {type(model).__name__} as the model; pass a Module or another moduli.Pytree"
        )
    root = Place((), model)
    state = moduli.state(model)
    paths = [
        path
        for path, leaf in moduli.to_flat_state(state).items()
        if isinstance(leaf, moduli.Variable) and not isinstance(leaf, _TRANSIENT)
    ]
    for path in [*paths, *_aliases(model, paths)]:
        _insert(root, path)
    return root


def _aliases(model: Any, paths: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Returns the other paths by which the same Variables are reached."""
    pairs = [(first, other) for first, *rest in moduli.find_duplicates(model) for other in rest]
    known, new = set(paths), list(paths)
    while new:
        path = new.pop()
        for first, other in pairs:
            if path[: len(first)] == first:
                alias = (*other, *path[len(first) :])
                if alias not in known and len(known) < 1_000_000:
                    known.add(alias)
                    new.append(alias)
    return sorted(known - set(paths), key=lambda path: [str(part) for part in path])


def _insert(root: Place, path: tuple[Any, ...]) -> None:
    place = root
    for number, part in enumerate(path, 1):
        names = [str(name) for name in part] if isinstance(part, tuple) else [str(part)]
        value, here = _step(place.value, part), path[:number]
        for name in names[:-1]:  # a key that is a tuple of names
            place = place.children.setdefault(name, Place(here, None))
            if place.value is not None:
                raise _clash(place.path, here)
        place = place.children.setdefault(names[-1], Place(here, value))
        if place.path != here:
            raise _clash(place.path, here)


def _clash(one: tuple[Any, ...], other: tuple[Any, ...]) -> UnsupportedValueError:
    return UnsupportedValueError(
        f"{format_path(one)} and {format_path(other)} would have one name, as names are texts; "
        "give one of them another key"
    )


def _step(value: Any, part: Any) -> Any:
    if isinstance(part, str) and not isinstance(value, (moduli.Dict, dict)):
        return getattr(value, part)
    return value[part]


def shape_dtype(variable: Any) -> tuple[tuple[int, ...], np.dtype]:
    """Returns the shape and dtype of a Variable's value, which may be abstract or a number."""
    value = variable.get_raw_value()
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return tuple(value.shape), np.dtype(value.dtype)
    array = np.asarray(value)
    narrow = {"float64": "float32", "int64": "int32", "complex128": "complex64"}
    return array.shape, np.dtype(narrow.get(array.dtype.name, array.dtype.name))
