"""What programs keep of a call: how its arguments are rebuilt, and where each value stands."""

from __future__ import annotations

from typing import Any

from moduli._base.source_lines import describe_place
from moduli._call.bind import Binding
from moduli._graph.graphdef import root_and_path

__all__ = ["Leaf", "Signature"]

Leaf = tuple[int, int]
"""(number of the graph, number of the leaf in it)"""


class Signature:
    """The part of a Binding that programs keep: how to rebuild the arguments from values.

    Attributes:
      template: from the Binding.
      names: from the Binding.
      graphdefs: the structure of each graph.
      sites: for each value of each graph the line where its Variable was made, or None.
      recordings: from the Binding.
    """

    __slots__ = ("graphdefs", "names", "recordings", "sites", "template")

    def __init__(self, binding: Binding):
        self.template, self.names = binding.template, binding.names
        self.recordings = binding.recordings
        self.graphdefs = tuple([flat.graphdef for flat in binding.flats])
        self.sites = [
            [getattr(holder, "_made", None) for holder in flat.holders] for flat in binding.flats
        ]

    def describe(self, leaf: Leaf) -> tuple[str, int, tuple[Any, ...]]:
        """Returns what a value is (kind, file and line), and its root's number and the path."""
        number, index = leaf
        graphdef, site = self.graphdefs[number], self.sites[number][index]
        kind = graphdef.leaf_types[index]
        text = "array" if kind is None else kind.__name__
        if site is not None:
            text += f" (made at {describe_place(site)})"
        return text, *root_and_path(self.graphdefs, number, graphdef.leaf_paths[index])
