"""What a capture collects, and what its recording keeps: the keys of values that tools record."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import moduli
from moduli import plugins
from moduli_debug.reducers import Reducer

__all__ = ["Called", "Perturbed", "Sown", "Wanted", "innermost"]

Kind = type[moduli.Variable[Any]]


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What one capture collects; the owner of its recording, so part of compiled programs.

    Attributes:
      kinds: the kinds of Variable that ``sow`` and ``perturb`` make.
      outputs: selects modules by (path, module), or None.
      inputs: likewise.
      methods: the kind of Variable for what methods return, or None.
      reduce: what is done to each input and output.
      max_bytes: how many bytes the inputs and outputs may have together, or None.
    """

    kinds: tuple[Kind, ...] = ()
    outputs: Callable[..., bool] | None = None
    inputs: Callable[..., bool] | None = None
    methods: Kind | None = None
    reduce: Reducer | None = None
    max_bytes: int | None = None

    @property
    def watches_calls(self) -> bool:
        """Whether it needs hooks around calls."""
        return not (self.outputs is None and self.inputs is None and self.methods is None)

    def number_of(self, kind: Kind) -> int | None:
        """Returns which of the kinds collects Variables of a kind, or None.

        The kind itself comes before its base classes. Perturbations are collected by their own
        kinds alone: collecting everything must not add zeros to what the model computes.
        """
        if kind in self.kinds:
            return self.kinds.index(kind)
        perturbs = issubclass(kind, moduli.Perturbation)
        for number, wanted in enumerate(self.kinds):
            if issubclass(kind, wanted) and issubclass(wanted, moduli.Perturbation) is perturbs:
                return number
        return None


class Sown(NamedTuple):
    """The name of a sown value in a recording."""

    kind: Kind
    name: str
    reduce_fn: Callable[[Any, Any], Any]
    init_fn: Callable[[], Any]


class Perturbed(NamedTuple):
    """The name of a perturbation in a recording."""

    kind: Kind
    name: str


class Called(NamedTuple):
    """The name of a module's input or output in a recording: "inputs", "outputs", or a method."""

    what: str
    method: bool = False


def innermost(module: Any) -> tuple[plugins.Recording, Wanted, tuple[Any, ...]] | None:
    """Returns recording and wishes of the innermost capture that knows a module, and its path."""
    for recording in reversed(plugins.recordings()):
        if isinstance(recording.owner, Wanted):
            path = recording.path_of(module)
            if path is not None and not made_inside(path):
                return recording, recording.owner, path
    return None


def made_inside(path: tuple[Any, ...]) -> bool:
    """Returns whether a path is that of a module which the call itself made."""
    return any(isinstance(part, str) and part.startswith("<") for part in path)
