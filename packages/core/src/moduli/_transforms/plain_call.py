"""A call without labels: all values alike, as for remat, cond and eval_shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from moduli import errors
from moduli._running import running
from moduli._transforms.arguments import Function
from moduli._transforms.carry import is_array_like
from moduli._transforms.lift import Frame, Leaf, Signature, bind

__all__ = ["PlainCall"]


class PlainCall:
    """The arguments of one call; its pure function takes the values that JAX can trace.

    Args:
      transform: its name, for messages.
      args: positional arguments.
      kwargs: keyword arguments.

    Attributes:
      dynamic: the values that JAX can trace: of the graphs, then of the other arguments.
      effects: what the function did, after ``run``.
      frame: the frame of the latest ``run``.
    """

    def __init__(self, transform: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]):
        self.transform = transform
        self.binding = bind(args, kwargs)
        self.signature = Signature(self.binding)
        self.values = self.binding.values()
        self._leaves, self._treedef = jax.tree.flatten(self.binding.plain)
        self._every = [value for group in self.values for value in group] + self._leaves
        self._mask = [is_array_like(value) for value in self._every]
        self.dynamic = [v for v, use in zip(self._every, self._mask, strict=True) if use]
        self.effects: Any = None
        self.frame: Any = None

    def pick(self, every: Sequence[Any]) -> list[Any]:
        """Picks, of one item for each value, those of the dynamic values."""
        return [item for item, use in zip(every, self._mask, strict=True) if use]

    def make_frame(self, dynamic: Sequence[Any]) -> Frame:
        """Rebuilds the arguments around traced values."""
        new = iter(dynamic)
        every = [
            next(new) if use else old for old, use in zip(self._every, self._mask, strict=True)
        ]
        groups, start = [], 0
        for group in self.values:
            groups.append(every[start : start + len(group)])
            start += len(group)
        self.frame = Frame(self.signature, groups, jax.tree.unflatten(self._treedef, every[start:]))
        return self.frame

    def run(self, function: Function, dynamic: Sequence[Any], **finish: Any) -> Any:
        """Runs the user's function on rebuilt arguments; returns the pure function's outputs."""
        frame = self.make_frame(dynamic)
        with running(self.transform, function.name):
            out = function.call(*frame.args, **frame.kwargs)
        self.effects, outputs = frame.finish(out, **finish)
        return outputs

    def apply(self, outputs: Any) -> Any:
        """Does to the caller's objects what the function did; returns its result."""
        return self.effects.apply(self.binding.flats, self.values, *outputs)

    def describe(self, leaf: Leaf) -> str:
        """Writes where a value of a graph stands: kind, path, file and line."""
        text, _, path = self.signature.describe(leaf)
        return f"the {text} at `{errors.format_path(path)}`"
