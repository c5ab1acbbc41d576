"""Nodes that a step changes and no checkpoint holds: a run that resumes would not be the same."""

from __future__ import annotations

import contextlib
import inspect
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import moduli
from moduli.errors import ModuliError, format_path
from moduli_train._errors import NotSavedError

__all__ = ["Watch"]


def _nodes(value: Any, depth: int) -> Iterator[moduli.Pytree]:
    if isinstance(value, moduli.Pytree):
        yield value
    elif depth and type(value) in (list, tuple, dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _nodes(item, depth - 1)


def _variables(node: Any) -> Iterator[tuple[str, moduli.Variable[Any]]]:
    with contextlib.suppress(ModuliError):  # of a node that is not whole yet
        for path, leaf in moduli.to_flat_state(moduli.state(node)).items():
            if isinstance(leaf, moduli.Variable):
                yield format_path(path), leaf


def _named(code: types.CodeType, values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: values[name] for name in code.co_names if name in values}


class Watch:
    """Compares the nodes that a loop names, or a function in it, before the first step and after.

    Args:
      saved: what the checkpoints hold.
      frame: the frame of the loop.
      ignored: names that need not be saved.
    """

    def __init__(self, saved: Any, frame: types.FrameType | None, ignored: Iterable[str]) -> None:
        known = {id(leaf) for node in _nodes(saved, 99) for _, leaf in _variables(node)}
        self._before: list[tuple[str, str, moduli.Variable[Any], Any]] = []
        if frame is None:
            return
        places = _named(frame.f_code, frame.f_globals) | frame.f_locals
        for value in list(places.values()):
            function = inspect.unwrap(value) if callable(value) else None
            if isinstance(function, types.FunctionType):
                places |= _named(function.__code__, function.__globals__)
                cells = zip(function.__code__.co_freevars, function.__closure__ or ())
                for name, cell in cells:
                    with contextlib.suppress(ValueError):  # of a variable that is not set yet
                        places[name] = cell.cell_contents
        owner = places.get("self")
        if owner is not None and not isinstance(owner, moduli.Pytree):
            held = getattr(owner, "__dict__", {})
            places |= {f"self.{name}": value for name, value in held.items()}
        for name, value in places.items():
            if name in ignored or isinstance(value, types.ModuleType):
                continue
            for node in _nodes(value, 2):
                for path, leaf in _variables(node):
                    if id(leaf) not in known:
                        self._before.append((name, path, leaf, leaf.get_raw_value()))

    def check(self) -> None:
        """Raises if a node changed.

        Raises:
          NotSavedError: naming the first.
        """
        for name, path, leaf, value in self._before:
            if leaf.get_raw_value() is not value:
                keyword = name.rpartition(".")[2]
                raise NotSavedError(
                    f"the step changed `{name}` (its `{path}`), which is in no checkpoint: after "
                    f"a resume it would start anew. Write `nnx.Run(folder, {keyword}={name}, ...)`"
                    f'; if it need not be kept, `unsaved=["{name}"]`'
                )
