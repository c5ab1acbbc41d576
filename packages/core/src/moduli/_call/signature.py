"""What programs keep of a call: how its arguments are rebuilt, and where each value stands."""

from __future__ import annotations

from collections.abc import Iterator

from moduli._base.source_lines import describe_place
from moduli._base.type_variables import Path
from moduli._call.bind import Binding
from moduli._graph.graphdef import root_and_path

__all__ = ["Leaf", "Path", "Signature"]

Leaf = tuple[int, int]
"""(number of the graph, number of the leaf in it)"""


class Signature:
    """The part of a Binding that programs keep: how to rebuild the arguments from values.

    It is also the table of the call's values: below which root each stands, by which paths, of
    which kind it is, and which line made it.

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

    @property
    def leaves(self) -> list[Leaf]:
        """The values of the graphs, in order."""
        return [(n, i) for n, graph in enumerate(self.graphdefs) for i in range(graph.num_leaves)]

    @property
    def num_roots(self) -> int:
        """How many modules and Variables there are."""
        return sum([len(graphdef.roots) for graphdef in self.graphdefs])

    def roots(self, number: int) -> range:
        """The numbers of the roots of a graph, among those of all graphs."""
        start = sum([len(earlier.roots) for earlier in self.graphdefs[:number]])
        return range(start, start + len(self.graphdefs[number].roots))

    def leaf_places(self, number: int) -> Iterator[tuple[int, Path, int]]:
        """Yields (root, path, index) of the values of a graph, by every path."""
        for path, index in self.graphdefs[number].path_to_leaf.items():
            yield *root_and_path(self.graphdefs, number, path), index

    def leaves_below(self, root: int) -> dict[Path, Leaf]:
        """The values below one root, by every path."""
        number = next(n for n in range(len(self.graphdefs)) if root in self.roots(n))
        places = self.leaf_places(number)
        return {path: (number, index) for owner, path, index in places if owner == root}

    def place_of_object(self, number: int, index: int) -> tuple[int, Path]:
        """Returns the root and the path of an object of a graph, by its first meeting."""
        path = self.graphdefs[number].object_paths[index]
        return root_and_path(self.graphdefs, number, path)

    def describe(self, leaf: Leaf) -> tuple[str, int, Path]:
        """Returns what a value is (kind, file and line), and its root's number and the path."""
        number, index = leaf
        graphdef, site = self.graphdefs[number], self.sites[number][index]
        kind = graphdef.leaf_types[index]
        text = "array" if kind is None else kind.__name__
        if site is not None:
            text += f" (made at {describe_place(site)})"
        return text, *root_and_path(self.graphdefs, number, graphdef.leaf_paths[index])
