"""Boxes: where sown values go while a capture runs.

A capture hangs one :class:`Boxes` on every module and takes it off afterwards. As data of the
module, the boxes pass through every transform inside the captured call like any other part of the
model: a function that was compiled without them is compiled once more with them, and a value sown
under jit or grad comes back as an output. Nothing here depends on what runs at trace time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import moduli
from moduli import errors
from moduli_debug._values import MISSING

__all__ = ["Box", "Boxes", "attached", "boxes_of"]

_ATTRIBUTE = "_moduli_debug_boxes"
Path = tuple[Any, ...]
Kind = type[moduli.Variable[Any]]


class Box(moduli.Pytree):
    """Variables by name, as attributes.

    Not a Dict, because a Dict is a Module, and would turn up among the model's modules.
    """

    def find(self, name: str, default: Any) -> Any:
        """Returns the Variable of this name."""
        return vars(self).get(name, default)


class Boxes(moduli.Pytree):
    """One module's captured Variables, by kind and name.

    Args:
      kinds: the kinds that the capture collects.
      given: Variables by name that the capture was given to start from.
    """

    def __init__(self, kinds: tuple[Kind, ...], given: Mapping[str, moduli.Variable[Any]]):
        self.kinds = kinds
        self.collected = tuple([Box() for _ in kinds])
        self.given = Box()
        for name, variable in given.items():
            setattr(self.box_for(type(variable)) or self.given, name, variable)

    def box_for(self, kind: Kind) -> Box | None:
        """Returns the box that collects Variables of a kind, or None.

        The kind itself comes before its base classes. Perturbations are collected by their own
        kinds alone: collecting everything must not add zeros to what the model computes.
        """
        if kind in self.kinds:
            return self.collected[self.kinds.index(kind)]
        perturbs = issubclass(kind, moduli.Perturbation)
        for wanted, box in zip(self.kinds, self.collected, strict=True):
            if issubclass(kind, wanted) and issubclass(wanted, moduli.Perturbation) is perturbs:
                return box
        return None


def boxes_of(module: moduli.Module) -> Boxes | None:
    """Returns the boxes of a module while a capture runs, otherwise None."""
    return vars(module).get(_ATTRIBUTE)


class Attached:
    """The boxes of one capture, by the paths of their modules."""

    def __init__(self, kinds: tuple[Kind, ...]) -> None:
        self.kinds = kinds
        self.boxes: list[tuple[Path, Boxes]] = []

    def states(self) -> list[moduli.State]:
        """Returns what was collected: one State for each kind, keyed by module path and name."""
        return [self._state(number) for number in range(len(self.kinds))]

    def _state(self, number: int) -> moduli.State:
        flat = {
            (*path, name): variable
            for path, boxes in self.boxes
            for name, variable in vars(boxes.collected[number]).items()
            if isinstance(variable, moduli.Variable)
        }
        for path in flat:
            for stop in range(1, len(path)):
                if path[:stop] in flat:
                    raise errors.StructureError(
                        f"capture: `{errors.format_path(path[:stop])}` is the name of a sown "
                        "value and of a module which sowed something too, at "
                        f"`{errors.format_path(path)}`; sow under a name that no submodule has"
                    )
        return moduli.from_flat_state(flat)


@contextlib.contextmanager
def attached(
    root: moduli.Module, kinds: tuple[Kind, ...], init: Mapping[Any, Any] | None
) -> Iterator[Attached]:
    """Hangs boxes on every module of a graph for the length of a ``with`` block.

    Args:
      root: the top module.
      kinds: the kinds to collect.
      init: a State of Variables to start from, keyed by module path and name.

    Yields:
      The boxes. Inside another capture of the same modules they replace its boxes.
    """
    modules = [
        (path, module)
        for path, module in moduli.iter_modules(root)
        if not isinstance(module, (moduli.List, moduli.Dict))  # these have no attributes
    ]
    given = _by_module(root, [path for path, _ in modules], init)
    result = Attached(kinds)
    outer: list[tuple[moduli.Module, Any]] = []
    try:
        for path, module in modules:
            boxes = Boxes(kinds, given.get(path, {}))
            previous = vars(module).get(_ATTRIBUTE, MISSING)
            _attach(root, module, boxes)
            outer.append((module, previous))
            result.boxes.append((path, boxes))
        yield result
    finally:
        for module, previous in outer:
            if previous is not MISSING:
                setattr(module, _ATTRIBUTE, previous)
            elif _ATTRIBUTE in vars(module):
                delattr(module, _ATTRIBUTE)


def _attach(root: moduli.Module, module: moduli.Module, boxes: Boxes) -> None:
    try:
        setattr(module, _ATTRIBUTE, boxes)
    except errors.TraceError:
        raise errors.TraceError(
            f"capture: this {type(root).__name__} was made outside of the JAX transform that is "
            "running, so what it sows would leak a tracer. Pass it as an argument of the "
            "transformed function, and use moduli's transform (`moduli.jit`, `moduli.grad`)"
        ) from None


def _by_module(
    root: moduli.Module, paths: list[Path], init: Mapping[Any, Any] | None
) -> dict[Path, dict[str, moduli.Variable[Any]]]:
    """Sorts the Variables of a State by the module to which they belong, as fresh copies."""
    given: dict[Path, dict[str, moduli.Variable[Any]]] = {path: {} for path in paths}
    if init is None:
        return given
    flat: Iterable[tuple[Path, Any]] = moduli.to_flat_state(init).items()
    for path, variable in flat:
        if not isinstance(variable, moduli.Variable):
            raise errors.VariableError(
                f"capture: init holds a {type(variable).__name__} at "
                f"`{errors.format_path(path)}`; it takes a State of Variables, as an earlier "
                "capture of moduli.Perturbation returned it"
            )
        if path[:-1] not in given:
            known = ", ".join(f"`{errors.format_path(known)}`" for known in paths[:8])
            raise errors.PathError(
                f"capture: init has a {type(variable).__name__} at "
                f"`{errors.format_path(path)}`, but {type(root).__name__} has no module at "
                f"`{errors.format_path(path[:-1])}`; its modules are {known}"
                + (f" and {len(paths) - 8} more" if len(paths) > 8 else "")
            )
        given[path[:-1]][path[-1]] = variable.copy()
    return given
