"""GraphDef: the structure of a graph without its values, immutable and interned.

A graph is a table of *objects* in the order in which a depth-first walk first meets them. Each
entry says how to rebuild one object; references between objects are indices into the table, so
shared references and cycles need nothing special. Everything is nested tuples: hashing and
comparing run in C, and equal structures are one GraphDef, so comparing two is ``is``.

Encodings of a value: ``(STATIC, key)``; ``(HELD, key, number)`` for a static value that may change,
each numbered where it is first met; ``(OBJECT, index)``, ``(LEAF, index)`` for a bare array,
``(TREE, treedef, names, encodings)`` for a tuple or another JAX pytree that holds data.

Entries of the table: ``(VARIABLE, cls, metadata_key, leaf)`` and
``(NODE, cls, ((key, encoding), ...), annotations)``.
"""

from __future__ import annotations

import functools
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Generic

import jax

from moduli._base.static_keys import static_value
from moduli._base.type_variables import Path, T

__all__ = [
    "HELD",
    "LEAF",
    "NODE",
    "OBJECT",
    "STATIC",
    "TREE",
    "VARIABLE",
    "GraphDef",
    "root_and_path",
]

HELD, STATIC, OBJECT, LEAF, TREE = range(-1, 4)
VARIABLE, NODE = range(2)

_lock = threading.Lock()
_interned: weakref.WeakValueDictionary[Any, GraphDef] = weakref.WeakValueDictionary()


class GraphDef(Generic[T]):
    """The structure of a graph: types, attributes, static values and sharing, without arrays.

    Made by :func:`moduli.split` and :func:`moduli.graphdef`; given back to :func:`moduli.merge`.
    Equal structures are the same object. Two structures differ if a type, an attribute name, a
    static value, a Variable's metadata or the pattern of sharing differs; shapes and dtypes of
    arrays are not part of it.

    Attributes:
      objects: the table of objects (see the module's text).
      roots: the encodings of the graph's roots; a public GraphDef has one.
      num_leaves: how many values the graph holds.
      metadatas: metadata of each Variable in the table, by object index.

    Example:
      >>> import moduli as nnx
      >>> class Scale(nnx.Module):
      ...     def __init__(self, size):
      ...         self.size, self.scale = size, nnx.Param(2.0)
      >>> nnx.graphdef(Scale(3)) is nnx.graphdef(Scale(3))
      True
      >>> nnx.graphdef(Scale(3)) == nnx.graphdef(Scale(4))
      False
    """

    __slots__ = ("__dict__", "__weakref__", "metadatas", "num_leaves", "objects", "roots")

    objects: tuple[Any, ...]
    roots: tuple[Any, ...]
    num_leaves: int
    metadatas: Mapping[int, Mapping[str, Any]]

    def __new__(
        cls,
        objects: tuple[Any, ...],
        roots: tuple[Any, ...],
        num_leaves: int,
        metadatas: Mapping[int, Mapping[str, Any]],
    ) -> GraphDef[Any]:
        content = (objects, roots)
        found = _interned.get(content)
        if found is not None:
            return found
        self = object.__new__(cls)
        self.objects, self.roots, self.num_leaves = objects, roots, num_leaves
        self.metadatas = metadatas
        with _lock:
            return _interned.setdefault(content, self)

    def __reduce__(self) -> tuple[Any, ...]:
        return GraphDef, (self.objects, self.roots, self.num_leaves, dict(self.metadatas))

    def __copy__(self) -> GraphDef[T]:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> GraphDef[T]:
        return self

    def apply(self, state: Any, /, *states: Any) -> Any:
        """Calls a method of the object that these States make; see ``moduli.call``.

        Args:
          state: a State. It stays as it is.
          *states: more of them.

        Returns:
          What is called like a method of the object: ``graphdef.apply(state).encode(x)`` returns
          the result and ``(graphdef, state)`` afterwards.
        """
        names: Any = sys.modules["moduli"]  # `call` is of the package moduli-interop
        return names.call((self, state, *states))

    @property
    def attributes(self) -> list[tuple[Any, Any]]:
        """(path, value) of each static attribute, and (path, kind) of each Variable."""
        found: list[tuple[Any, Any]] = []
        for path, entry in zip(self.object_paths, self.objects, strict=True):
            if entry[0] == VARIABLE:
                found.append((path, entry[1]))
                continue
            found += [
                ((*path, key), static_value(code[1])) for key, code in entry[2] if code[0] <= STATIC
            ]
        return found

    @property
    def nodes(self) -> tuple[Any, ...]:
        """The table of objects; its length is the number of nodes and Variables."""
        return self.objects

    @functools.cached_property
    def leaf_paths(self) -> tuple[Path, ...]:
        """The path of each value, by its first meeting."""
        paths: list[Path] = [()] * self.num_leaves
        for entry_path, kind, index in self._walk():
            if kind == LEAF:
                paths[index] = entry_path
        return tuple(paths)

    @functools.cached_property
    def object_paths(self) -> tuple[Path, ...]:
        """The path of each node and Variable, by its first meeting."""
        paths: list[Path] = [()] * len(self.objects)
        seen: set[int] = set()
        for entry_path, kind, index in self._walk():
            if kind == OBJECT and index not in seen:
                seen.add(index)
                paths[index] = entry_path
        return tuple(paths)

    @functools.cached_property
    def path_to_leaf(self) -> dict[Path, int]:
        """Every path at which a value can be reached (shared ones have several)."""
        return {path: index for path, kind, index in self._walk(repeat=True) if kind == LEAF}

    @functools.cached_property
    def templates(self) -> tuple[tuple[tuple[Any, int, Any], ...] | None, ...]:
        """For each node its items as (key, kind of encoding, what it says); None for Variables.

        A static item says its value, an object or a value its index; a tree, and a static value
        that may change, its encoding.
        """
        return tuple(
            None
            if entry[0] == VARIABLE
            else tuple(
                (
                    key,
                    code[0],
                    static_value(code[1])
                    if code[0] == STATIC
                    else code
                    if code[0] in (HELD, TREE)
                    else code[1],
                )
                for key, code in entry[2]
            )
            for entry in self.objects
        )

    @functools.cached_property
    def held(self) -> tuple[tuple[int, Any, tuple[Any, ...]], ...]:
        """(index of the node, attribute, key) of each static value that may change."""
        found: list[tuple[int, Any, tuple[Any, ...]]] = []
        for index, entry in enumerate(self.objects):
            if entry[0] == NODE:
                found += [(index, name, code[1]) for name, code in entry[2] if code[0] == HELD]
        return tuple(found)

    @functools.cached_property
    def nodes_in_order(self) -> tuple[tuple[Path, int], ...]:
        """(path, index) of each node, children before their parent, by its first meeting."""
        found: list[tuple[Path, int]] = []
        entered: set[int] = set()

        def visit(encoding: tuple[Any, ...], path: Path) -> None:
            if encoding[0] == TREE:
                for name, child in zip(encoding[2], encoding[3], strict=True):
                    visit(child, path + name)
            elif encoding[0] == OBJECT and encoding[1] not in entered:
                index = encoding[1]
                entered.add(index)
                entry = self.objects[index]
                if entry[0] == NODE:
                    for key, child in entry[2]:
                        visit(child, (*path, key))
                    found.append((path, index))

        many = len(self.roots) > 1
        for number, root in enumerate(self.roots):
            visit(root, (number,) if many else ())
        return tuple(found)

    @functools.cached_property
    def trees(self) -> tuple[tuple[int, Any], ...]:
        """(index of the node, key) of each attribute that holds a tree of containers."""
        return tuple(
            (index, key)
            for index, entry in enumerate(self.objects)
            if entry[0] == NODE
            for key, code in entry[2]
            if code[0] == TREE
        )

    @functools.cached_property
    def leaf_objects(self) -> tuple[int | None, ...]:
        """For each value the index of its Variable, or None for a bare array."""
        owners: list[int | None] = [None] * self.num_leaves
        for index, entry in enumerate(self.objects):
            if entry[0] == VARIABLE:
                owners[entry[3]] = index
        return tuple(owners)

    @functools.cached_property
    def leaf_types(self) -> tuple[type | None, ...]:
        """For each value the class of its Variable, or None for a bare array."""
        return tuple(None if i is None else self.objects[i][1] for i in self.leaf_objects)

    @functools.cached_property
    def reference_counts(self) -> tuple[int, ...]:
        """How often each object is referred to, roots included."""
        counts = [0] * len(self.objects)

        def count(encoding: tuple[Any, ...]) -> None:
            if encoding[0] == OBJECT:
                counts[encoding[1]] += 1
            elif encoding[0] == TREE:
                for child in encoding[3]:
                    count(child)

        for root in self.roots:
            count(root)
        for entry in self.objects:
            if entry[0] == NODE:
                for _, encoding in entry[2]:
                    count(encoding)
        return tuple(counts)

    @property
    def is_tree(self) -> bool:
        """Whether no object is referred to twice."""
        return max(self.reference_counts, default=0) <= 1

    def _walk(self, repeat: bool = False) -> list[tuple[Path, int, int]]:
        """Lists (path, OBJECT or LEAF, index) depth first; shared parts once, unless ``repeat``.

        With ``repeat`` a cycle still ends, because an object is not entered below itself.
        """
        found: list[tuple[Path, int, int]] = []
        entered: set[int] = set()

        def visit(encoding: tuple[Any, ...], path: Path) -> None:
            kind = encoding[0]
            if kind == LEAF:
                found.append((path, LEAF, encoding[1]))
            elif kind == TREE:
                for name, child in zip(encoding[2], encoding[3], strict=True):
                    visit(child, path + name)
            elif kind == OBJECT:
                index = encoding[1]
                found.append((path, OBJECT, index))
                if index in entered:
                    return
                entered.add(index)
                entry = self.objects[index]
                if entry[0] == VARIABLE:
                    found.append((path, LEAF, entry[3]))
                else:
                    for key, child in entry[2]:
                        visit(child, (*path, key))
                if repeat:
                    entered.discard(index)

        many = len(self.roots) > 1
        for number, root in enumerate(self.roots):
            visit(root, (number,) if many else ())
        return found

    def __repr__(self) -> str:
        from moduli._graph.tree_repr import graphdef_repr

        head = f"GraphDef({len(self.objects)} objects, {self.num_leaves} leaves"
        return f"{head}\n{graphdef_repr(self)}\n)" if self.objects else head + ")"


jax.tree_util.register_static(GraphDef)


def root_and_path(graphdefs: Sequence[GraphDef[Any]], number: int, path: Path) -> tuple[int, Path]:
    """Tells below which root something stands: a graph with several counts them in its paths.

    Args:
      graphdefs: all graphs of a call.
      number: which of them it is.
      path: the path in that graph.

    Returns:
      The number of the root among those of all graphs, and the path from there.
    """
    root = sum([len(earlier.roots) for earlier in graphdefs[:number]])
    if len(graphdefs[number].roots) > 1:
        return root + path[0], path[1:]
    return root, path
