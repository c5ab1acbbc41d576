"""Finds the module by running the function as Python does, where it cannot be traced as a whole.

A function whose Python code looks at values (``if x.max() > 1:``) is no program that could be
searched. Its modules' calls can still be watched: of those that run eagerly, the first that got
finite values and gave some that are not, and that reach the outputs. Nothing is seen inside of what
is compiled or differentiated.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

import moduli
from moduli_debug._finite.marks import Call, following, is_object, objects_in, place_of_call
from moduli_debug._finite.snapshot import arrays_in
from moduli_debug._finite.statistics import ArrayStatistics, is_finite, is_inexact, statistics_of

__all__ = ["SeenCall", "search_eagerly"]

_ROUNDS = 4


class SeenCall(NamedTuple):
    """A call that got finite values and gave some that are not."""

    call: Call
    inputs: tuple[ArrayStatistics, ...]
    outputs: tuple[ArrayStatistics, ...]


class _Frame:
    """A call that is running.

    Attributes:
      call: which one.
      inputs: what it got; None if that is not known.
      has_fault_inside: whether a call inside of it has a fault.
    """

    def __init__(self, call: Call, inputs: tuple[ArrayStatistics, ...] | None):
        self.call, self.inputs, self.has_fault_inside = call, inputs, False


class _Run:
    """One run: the calls whose outputs are repaired, and what was seen."""

    def __init__(self, repairs: Collection[Call]):
        self.repairs = repairs
        self.seen: list[SeenCall] = []
        self.frames: list[_Frame] = []
        self.next: _Frame | None = None
        self.last: _Frame | None = None


_running: contextvars.ContextVar[_Run | None] = contextvars.ContextVar(
    "moduli_debug_eager_run", default=None
)


class Watch:
    """The plugin."""

    @moduli.hookimpl
    def moduli_before_call(
        self,
        module: moduli.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        path: tuple[Any, ...],
        number: int,
    ) -> None:
        """Looks at the arguments."""
        run = _running.get()
        if run is not None:
            named = {**{f"[{n}]": arg for n, arg in enumerate(args)}, **kwargs}
            run.next = _Frame(place_of_call(module, path, number), _measured(named))

    @moduli.hookimpl
    def moduli_call_context(self, module: moduli.Module) -> Any:
        """Notes that the call runs."""
        run = _running.get()
        return None if run is None or run.next is None else _inside(run, run.next)

    @moduli.hookimpl
    def moduli_after_call(self, output: Any) -> moduli.Replace | None:
        """Looks at the output."""
        run = _running.get()
        if run is None or run.last is None:
            return None
        frame, run.last = run.last, None
        outputs = _measured({"": output})
        if frame.inputs is None or outputs is None or all(item.is_finite for item in outputs):
            return None
        if frame.call in run.repairs:
            return moduli.Replace(jax.tree.map(_repaired, output, is_leaf=is_object))
        if all(item.is_finite for item in frame.inputs) and not frame.has_fault_inside:
            run.seen.append(SeenCall(frame.call, frame.inputs, outputs))
            for around in run.frames:
                around.has_fault_inside = True
        return None


WATCH = Watch()


@contextlib.contextmanager
def _inside(run: _Run, frame: _Frame) -> Iterator[None]:
    run.next = None
    run.frames.append(frame)
    try:
        yield
    finally:
        run.last = run.frames.pop()


def _measured(named: dict[str, Any]) -> tuple[ArrayStatistics, ...] | None:
    """Measures the numbers in pytrees; None if some are tracers."""
    found = []
    for name, tree in named.items():
        pairs, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_object)
        for path, leaf in pairs:
            if isinstance(leaf, Tracer):
                return None
            if is_inexact(leaf):
                found.append(statistics_of(name + jax.tree_util.keystr(path), leaf))
    return tuple(found)


def _repaired(leaf: Any) -> Any:
    if not is_inexact(leaf):
        return leaf
    return jnp.where(jnp.isfinite(leaf), leaf, jnp.zeros((), leaf.dtype))


def search_eagerly(fn: Callable[..., Any], tree: Any) -> SeenCall | None:
    """Finds the first call of a module whose values that are not finite reach an output.

    Args:
      fn: a function that takes all its modules as arguments. It is run several times.
      tree: ``moduli.to_tree((args, kwargs))``.

    Returns:
      The call; None if no call that runs eagerly is at fault.
    """
    suspects: dict[Call, SeenCall] = {}
    good = False
    for _ in range(_ROUNDS):
        good, seen = _run(fn, tree, suspects.keys())
        new = [found for found in seen if found.call not in suspects]
        if good or not new:
            break
        suspects.update({found.call: found for found in new})
    if not suspects or not good:
        return None
    for call, found in suspects.items():
        if not _run(fn, tree, suspects.keys() - {call})[0]:
            return found
    return next(iter(suspects.values()))


def _run(
    fn: Callable[..., Any], tree: Any, repairs: Collection[Call]
) -> tuple[bool, list[SeenCall]]:
    """Runs the function; returns whether its outputs are finite, and what was seen."""
    args, kwargs = moduli.from_tree(jax.tree.map(_copied, tree))  # it may donate what it gets
    given = set(map(id, arrays_in((args, kwargs))))
    run = _Run(repairs)
    token = _running.set(run)
    try:
        with following(objects_in((args, kwargs)), WATCH):
            result = fn(*args, **kwargs)
    finally:
        _running.reset(token)
    written = [array for array in arrays_in((args, kwargs)) if id(array) not in given]
    numbers = [
        jnp.asarray(leaf) if isinstance(leaf, (float, complex)) else leaf
        for leaf in (*arrays_in(result), *written)
    ]
    return all(is_finite(leaf) for leaf in numbers if is_inexact(leaf)), run.seen


def _copied(leaf: Any) -> Any:
    return jnp.copy(leaf) if isinstance(leaf, jax.Array) else leaf
