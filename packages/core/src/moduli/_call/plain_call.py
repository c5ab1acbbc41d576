"""A call without labels: all values alike, as for remat, cond and eval_shape."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax

from moduli import errors
from moduli._call.bind import bind
from moduli._call.carried import is_array_like
from moduli._call.frame import Frame
from moduli._call.function import Function
from moduli._call.naming import Names, named
from moduli._call.recorded_values import carries_records
from moduli._call.signature import Leaf, Signature
from moduli._graph.data import is_graph_leaf

__all__ = ["PlainCall"]

P = TypeVar("P", bound=Callable[..., Any])


class PlainCall:
    """The arguments of one call; its pure function takes the values that JAX can trace.

    No frame is kept after ``run``: it holds tracers.

    Args:
      transform: its name, for messages.
      args: positional arguments.
      kwargs: keyword arguments.
      names: the names of the positional arguments, for messages.

    Attributes:
      dynamic: the values that JAX can trace: of the graphs, then of the other arguments.
      effects: what the function did, after ``run``.
      homes: for each output that is no result the leaf that it is the new value of, or None.
      written: the leaves among them that the function wrote.
    """

    def __init__(
        self,
        transform: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        names: Sequence[str] | None = None,
    ):
        self.transform = transform
        self.binding = bind(args, kwargs)
        self.signature = Signature(self.binding)
        self.values = self.binding.values()
        self._leaves, self._treedef = jax.tree.flatten(self.binding.plain)
        self._every = [value for group in self.values for value in group] + self._leaves
        self._mask = [is_array_like(value) for value in self._every]
        self.dynamic = [v for v, use in zip(self._every, self._mask, strict=True) if use]
        self._args, self._kwargs, self._names = args, kwargs, names
        self._places: list[str] | None = None
        self.effects: Any = None
        self.homes: list[Leaf | None] = []
        self.written: set[Leaf] = set()

    def detached(self) -> PlainCall:
        """Returns the call without the caller's objects and values, for programs to keep."""
        copied = copy.copy(self)
        copied._places = self._root_names()
        copied._args, copied._kwargs, copied.binding = (), {}, None  # type: ignore[assignment]
        return copied.with_values([None] * len(self._every))

    def with_values(self, every: Sequence[Any]) -> PlainCall:
        """Returns the call with other values."""
        copied = copy.copy(self)
        copied.values, start = [], 0
        for group in self.values:
            copied.values.append(list(every[start : start + len(group)]))
            start += len(group)
        copied._leaves, copied._every = list(every[start:]), list(every)
        copied.dynamic = copied.pick(every)
        return copied

    def kind_key(self) -> Any:
        """What calls of one signature must have in common besides static values."""
        return (self.transform, self._treedef)

    def every_value(self) -> list[Any]:
        """The values that a program is given: of the graphs, then of the other arguments."""
        return self._every

    @property
    def keeps_records(self) -> bool:
        """Whether what is recorded inside has to be handed out."""
        return any(key.keeps for key in self.signature.recordings)

    def pick(self, every: Sequence[Any]) -> list[Any]:
        """Picks, of one item for each value, those of the dynamic values."""
        return [item for item, use in zip(every, self._mask, strict=True) if use]

    def is_dynamic(self, leaf: Leaf) -> bool:
        """Returns whether JAX can trace a value of a graph."""
        return self._mask[sum(map(len, self.values[: leaf[0]])) + leaf[1]]

    def make_frame(self, dynamic: Sequence[Any], *, static: bool = True) -> Frame:
        """Rebuilds the arguments around traced values.

        Args:
          dynamic: the values.
          static: put the other values in their places; otherwise None.
        """
        new = iter(dynamic)
        every = [
            next(new) if use else old if static else None
            for old, use in zip(self._every, self._mask, strict=True)
        ]
        groups, start = [], 0
        for group in self.values:
            groups.append(every[start : start + len(group)])
            start += len(group)
        return Frame(self.signature, groups, jax.tree.unflatten(self._treedef, every[start:]))

    def named(self, pure: P, function: Function, positions: Sequence[int] | None = None) -> P:
        """Gives a pure function of the dynamic values the names of the user's function.

        Args:
          pure: takes the dynamic values.
          function: the user's function.
          positions: the function's parameter for each positional argument; in order by default.
        """
        names = Names(function.signature, self.signature, positions)

        def pairs(values: Any) -> Any:
            return zip(self.pick(names.flat(self._treedef)), values, strict=True)

        return named(pure, function.call, pairs)

    def value_names(self, parameters: inspect.Signature | None) -> list[str]:
        """Returns the name of each value in the user's function."""
        return Names(parameters, self.signature).flat(self._treedef)

    def run(
        self,
        function: Function,
        dynamic: Sequence[Any],
        *,
        after: Callable[[Frame], None] | None = None,
        **finish: Any,
    ) -> Any:
        """Runs the user's function on rebuilt arguments; returns the pure function's outputs.

        Args:
          function: the function.
          dynamic: the traced values.
          after: what to do with the frame when the function has run.
          **finish: arguments of ``Frame.finish``.
        """
        frame = self.make_frame(dynamic)
        out = frame.run(self.transform, function.name, function.call)
        if after is not None:
            after(frame)
        return self.finish(frame, out, **finish)

    def finish(self, frame: Frame, out: Any, **finish: Any) -> Any:
        """Writes down what a function did in a frame; returns the pure function's outputs."""
        self.effects, outputs = frame.finish(out, **finish)
        self.homes = frame.homes
        self.written = {
            leaf
            for leaf, value in zip(frame.homes, outputs[1], strict=False)
            if leaf is not None and value is not frame.given[leaf[0]][leaf[1]]
        }
        return outputs

    def apply(self, outputs: Any) -> Any:
        """Does to the caller's objects what the function did; returns its result."""
        return self.effects.apply(self.binding.flats, self.values, *outputs)

    def describe(self, leaf: Leaf) -> str:
        """Describes where a value of a graph stands: kind, file and line, path, argument."""
        text, root, path = self.signature.describe(leaf)
        return f"the {text} at {self.place(root, path)}"

    def place(self, root: int, path: tuple[Any, ...]) -> str:
        """Formats a path below one of the modules of the call."""
        text = f"`{errors.format_path(path)}`"
        names = self._root_names()
        return text if len(names) == 1 else f"{text} of {names[root]}"

    def _root_names(self) -> list[str]:
        if self._places is not None:
            return self._places
        names = self._names or [f"argument {number}" for number in range(len(self._args))]
        items = [*zip(names, self._args, strict=True)]
        items += [(f"argument {name!r}", self._kwargs[name]) for name in sorted(self._kwargs)]
        found = [
            name + jax.tree_util.keystr(path)
            for name, item in items
            for path, leaf in jax.tree_util.tree_flatten_with_path(item, is_leaf=is_graph_leaf)[0]
            if is_graph_leaf(leaf)
        ]
        return found + [name for name in self.binding.names if carries_records(name)]
