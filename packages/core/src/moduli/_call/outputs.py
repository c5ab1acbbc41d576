"""What a pure function returned, grouped by label.

A transform passes JAX one short prefix, the labels that there are, however many values there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from moduli import errors
from moduli._call.call import Call, is_detailed_label, label_key
from moduli._call.frame import Frame
from moduli._call.prefixes import label_finder, spread
from moduli._call.recorded_values import Recorded
from moduli._graph.data import is_graph_leaf, plain_key
from moduli._graph.holders import leaf_of
from moduli._variable.kinds import Intermediate

__all__ = ["Outputs"]


class Outputs:
    """What a pure function returned, grouped by label.

    Args:
      call: the labelled call.
      frame: the frame in which the function ran.
      out: what the function returned.
      out_labels: the prefix of ``out``.
      name: what that prefix is, for messages: "vmap: out_axes".
      finish: arguments of ``Frame.finish``.

    Attributes:
      effects: see ``writeback``.
      labels: the label of each value, the result's leaves first.
      values: the values.
      count: how many of them are leaves of the result.
      homes: for each of the others which leaf of the arguments it is the new value of, or None.
      names: where each value stands, for messages.
    """

    def __init__(
        self,
        call: Call,
        frame: Frame,
        out: Any,
        out_labels: Any,
        name: str,
        *,
        intermediate_label: Any = None,
        **finish: Any,
    ):
        marks = spread(out_labels, out, name)
        self.effects, (rest, outputs) = frame.finish(out, strict=True, **finish)
        leaves, self._treedef = jax.tree.flatten(rest)
        pairs, _ = jax.tree_util.tree_flatten_with_path(out, is_leaf=is_graph_leaf)
        self.values = [*leaves, *outputs]
        self.count, self.homes = len(leaves), frame.homes
        self.labels, self.names = [], []
        finders, spots = [], []
        for (path, leaf), (label, base) in zip(pairs, marks, strict=True):
            spot = "the result" + "".join(f"[{plain_key(key)!r}]" for key in path)
            if is_graph_leaf(leaf):
                finders.append(label_finder(label, base, name))
                spots.append(spot)
                self._check_alias(call, frame, leaf, label, spot, name)
            else:
                self.labels.append(call.checked(label, spot, name))
                self.names.append(spot)
        roots = call.signature.num_roots
        for position, home in enumerate(frame.homes):
            if home is not None:
                self.labels.append(call.label_of(home))
                self.names.append(call.describe(home))
                continue
            new = frame.new[position]
            if isinstance(new.holder, Recorded):
                place = new.holder.get_metadata("place")
                label = call.label_of_new(new) if intermediate_label is None else intermediate_label
                self.labels.append(label)
                self.names.append(f"what is recorded of `{errors.format_path(place.path)}`")
                continue
            kind = type(new.holder).__name__
            if new.root >= roots:
                spot = spots[new.root - roots]
                found = finders[new.root - roots](new.path, leaf_of(new.holder))
                label = call.checked(found, spot, name)
            else:
                label, spot = call.label_of_new(new), call.root_names[new.root]
                if not isinstance(label, int) and isinstance(new.holder, Intermediate):
                    label = label if intermediate_label is None else intermediate_label
            self.labels.append(label)
            self.names.append(f"the new {kind} at `{errors.format_path(new.path)}` of {spot}")

    @staticmethod
    def _check_alias(call: Call, frame: Frame, root: Any, label: Any, spot: str, name: str) -> None:
        """Raises if an argument is returned under another label than it was passed."""
        if is_detailed_label(label):
            return
        for leaf in frame.leaves_below(root):
            given = call.label_of(leaf)
            if label_key(given) != label_key(label) and isinstance(given, (int, type(None))):
                raise errors.StructureError(
                    f"{name} returns {spot} under {label!r}, but it contains "
                    f"{call.describe(leaf)}, which was passed under {given!r}; return it under the "
                    "same, or return a copy (`moduli.clone`)"
                )

    def rebuild(self, values: Sequence[Any]) -> tuple[Any, list[Any]]:
        """Puts (out, outputs) for ``effects.apply`` together from the transform's results."""
        rest = jax.tree.unflatten(self._treedef, list(values[: self.count]))
        return rest, list(values[self.count :])

    def grouped(self, labels: Sequence[Any]) -> list[list[Any]]:
        """The values of each of these labels."""
        places = {label_key(label): number for number, label in enumerate(labels)}
        groups: list[list[Any]] = [[] for _ in labels]
        for label, value in zip(self.labels, self.values, strict=True):
            groups[places[label_key(label)]].append(value)
        return groups

    def ungrouped(self, labels: Sequence[Any], groups: Sequence[Sequence[Any]]) -> list[Any]:
        """The inverse of :meth:`grouped`."""
        pairs = zip(labels, groups, strict=True)
        iterators = {label_key(label): iter(group) for label, group in pairs}
        return [next(iterators[label_key(label)]) for label in self.labels]
