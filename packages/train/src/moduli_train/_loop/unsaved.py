"""Nodes that a step changes and no checkpoint holds: a run that resumes would not be the same."""

from __future__ import annotations

import contextlib
import functools
import inspect
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import moduli
from moduli.errors import ModuliError, format_path
from moduli_train._errors import NotSavedError

__all__ = ["Watch"]

_OTHERS = (moduli.Pytree, types.ModuleType, type, types.FunctionType)


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


def _places(frame: types.FrameType, apart: Iterable[Any]) -> dict[str, Any]:
    """Returns what a loop names, what functions name that it names, and what objects hold."""
    places = _named(frame.f_code, frame.f_globals) | frame.f_locals
    for name, value in list(places.items()):
        function = inspect.unwrap(value) if callable(value) else None
        if isinstance(function, functools.partial):
            given = [*function.args, *function.keywords.values()]
            places |= {f"{name}.args[{index}]": value for index, value in enumerate(given)}
            function = inspect.unwrap(function.func)
        if isinstance(function, types.MethodType):
            places[f"{name}.__self__"] = function.__self__
            function = function.__func__
        if isinstance(function, types.FunctionType):
            places |= _named(function.__code__, function.__globals__)
            for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
                with contextlib.suppress(ValueError):  # of a variable that is not set yet
                    places[name] = cell.cell_contents
    for name, owner in list(places.items()):
        held = getattr(owner, "__dict__", {})
        other = isinstance(owner, _OTHERS) or "__wrapped__" in held
        if not other and all(owner is not thing for thing in apart):
            places |= {f"{name}.{attribute}": value for attribute, value in held.items()}
    return places


class Watch:
    """Compares the nodes that a loop names, or a function in it, before the first step and after.

    ``saved`` is what the checkpoints hold, ``ignored`` are names that need not be saved, ``apart``
    objects that keep their own state.
    """

    def __init__(
        self, saved: Any, frame: types.FrameType, ignored: Iterable[str], apart: Iterable[Any]
    ) -> None:
        known = {id(leaf) for node in _nodes(saved, 99) for _, leaf in _variables(node)}
        self._before = [
            (name, path, leaf, leaf.get_raw_value())
            for name, value in _places(frame, apart).items()
            if name not in ignored
            for node in _nodes(value, 2)
            for path, leaf in _variables(node)
            if id(leaf) not in known
        ]

    def check(self) -> None:
        """Raises NotSavedError, which names the first node that changed."""
        for name, path, leaf, value in self._before:
            if leaf.get_raw_value() is not value:
                last = name.rpartition(".")[2]
                keyword = last if last.isidentifier() and last != "__self__" else "more"
                raise NotSavedError(
                    f"the step changed `{name}` (its `{path}`), which is in no checkpoint: after "
                    f"a resume it would start anew. Write `nnx.Run(folder, {keyword}={name}, ...)`"
                    f'; if it need not be kept, `unsaved=["{name}"]`'
                )
