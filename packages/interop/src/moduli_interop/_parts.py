"""What a user passes to ``save`` and ``load``: a node, a State, or nested containers of these.

In a container, whatever is no node is a value of its own: an array, a key, a number, a text, None.
Nodes and States of one container are one graph, so what they share is stored once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

import jax

import moduli
from moduli_interop._errors import UnsupportedValueError
from moduli_interop._stored import Path

__all__ = ["Bare", "Parts"]


class Bare:
    """A value in a container that belongs to no node; told apart from the nodes' own arrays."""

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value = value


class Parts:
    """The parts of what a user passed.

    Args:
      model: a Module or another node, a State, or dicts, lists and tuples of these, of arrays,
        keys, numbers, texts and None.

    Attributes:
      live: the path of each Variable and array with the object itself, each object once. What
        belongs to no node is wrapped in :class:`Bare`.
      aliases: for each object that is reached by several paths, all of these, the first first.

    Raises:
      UnsupportedValueError: if it is anything else.
    """

    live: list[tuple[Path, Any]]
    aliases: list[list[Path]]

    def __init__(self, model: Any):
        self._model = model
        self._prefixes: list[Path] | None = None
        self._root: Any = None
        self._bare_in_states: list[tuple[Path, Any, Path]] = []
        self._inner: list[Path] = []
        if isinstance(model, moduli.State):
            self.live, self.aliases = _flat(model), []
            return
        if isinstance(model, moduli.Pytree):
            self._root = model
            self.live, self.aliases = _flat(moduli.state(model)), moduli.find_duplicates(model)
            self._inner = [path for path, _ in self.live]
            return
        if not _is_container(model) or not model:
            empty = "n empty" if _is_container(model) else ""
            raise UnsupportedValueError(
                f"got a{empty} {type(model).__name__} as the model; pass a Module, an Optimizer or "
                "another moduli.Pytree, a State, or a dict, list or tuple of these and of arrays "
                'and numbers, such as {"model": model, "optimizer": optimizer, "step": 3}'
            )
        self._take_apart()

    def _take_apart(self) -> None:
        nodes: list[tuple[Path, Any]] = []
        bare: list[tuple[Path, Any]] = []

        self._visit(self._model, (), nodes, bare)
        self._prefixes = [path for path, _ in nodes]
        self._root = moduli.Dict({f"{index:08d}": node for index, (_, node) in enumerate(nodes)})
        found = _flat(moduli.state(self._root)) if nodes else []
        self._inner = [path for path, _ in found]
        self.live = [(self._outer(path), leaf) for path, leaf in found]
        self.live += bare
        duplicates = moduli.find_duplicates(self._root)
        self.aliases = [list(map(self._outer, paths)) for paths in duplicates]

    def _visit(
        self,
        value: Any,
        path: Path,
        nodes: list[tuple[Path, Any]],
        bare: list[tuple[Path, Any]],
    ) -> None:
        """Notes the nodes, and what belongs to none, of a value and what it contains."""
        if isinstance(value, jax.Array):
            bare.append((path, Bare(value)))
        elif isinstance(value, (moduli.Pytree, moduli.Variable)):
            nodes.append((path, value))
        elif isinstance(value, moduli.State):
            for inner, leaf in _flat(value):
                if isinstance(leaf, moduli.Variable):
                    nodes.append((path + inner, leaf))
                else:
                    bare.append((path + inner, Bare(leaf)))
                    self._bare_in_states.append((path + inner, value, inner))
        elif _is_container(value):
            for key, item in _items(value):
                self._visit(item, (*path, key), nodes, bare)
        else:
            bare.append((path, Bare(value)))

    def _outer(self, path: Path) -> Path:
        assert self._prefixes is not None
        return (*self._prefixes[int(path[0])], *path[1:])  # type: ignore[call-overload]

    def fill(self, new: list[tuple[Any, Any]]) -> Any:
        """Writes new values, in place where there is a place; all or none of them.

        Args:
          new: for each of :attr:`live`, in order, the object and its new value.

        Returns:
          What was passed; tuples that held numbers or arrays are new.
        """
        pairs = list(zip(self.live, new, strict=True))
        if isinstance(self._model, moduli.State):
            _fill_state(self._model, [(path, leaf, value) for (path, _), (leaf, value) in pairs])
            return self._model
        bare = {path: value for (path, _), (leaf, value) in pairs if isinstance(leaf, Bare)}
        self._fill_graph(new[: len(self._inner)])  # the bare ones follow
        if self._prefixes is None:
            return self._model
        for path, state, inner in self._bare_in_states:
            _set(state, inner, bare[path])
        return _rebuilt(self._model, (), bare)

    def _fill_graph(self, new: list[tuple[Any, Any]]) -> None:
        if all(isinstance(leaf, moduli.Variable) for leaf, _ in new):
            for leaf, _ in new:  # one that belongs to another trace raises before any is changed
                leaf.set_raw_value(leaf.get_raw_value())
            for leaf, value in new:
                leaf.set_raw_value(value)
            return
        boxed = (
            leaf.replace(value) if isinstance(leaf, moduli.Variable) else value
            for leaf, value in new
        )
        flat = moduli.from_flat_state(zip(self._inner, boxed, strict=True))
        moduli.update(self._root, flat, resize=True)  # it was compared with the model


def _flat(state: moduli.State) -> list[tuple[Path, Any]]:
    return list(moduli.to_flat_state(state).items())


def _is_container(value: Any) -> bool:
    return isinstance(value, (Mapping, list, tuple)) and not isinstance(
        value, (moduli.Pytree, moduli.State)
    )


def _items(container: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(container, Mapping):
        return container.items()
    fields = getattr(container, "_fields", None)
    return enumerate(container) if fields is None else zip(fields, container, strict=True)


def _rebuilt(value: Any, path: Path, bare: Mapping[Path, Any]) -> Any:
    if path in bare:
        return bare[path]
    if not _is_container(value):
        return value
    items = [(key, item, _rebuilt(item, (*path, key), bare)) for key, item in _items(value)]
    changed = [(key, new) for key, old, new in items if new is not old]
    if not changed:
        return value
    if isinstance(value, tuple):
        new = [item for _, _, item in items]
        return type(value)(*new) if hasattr(value, "_fields") else tuple(new)
    if isinstance(value, (list, MutableMapping)):
        for key, item in changed:
            value[key] = item
        return value
    new_items = dict(value) | dict(changed)  # a mapping that cannot be written
    return type(value)(new_items)


def _set(holder: Any, path: Path, value: Any) -> None:
    for part in path[:-1]:
        holder = holder[part]
    holder[path[-1]] = value


def _fill_state(state: moduli.State, new: list[tuple[Path, Any, Any]]) -> None:
    for path, leaf, value in new:
        if isinstance(leaf, moduli.Variable):
            leaf.set_raw_value(value)
        else:
            _set(state, path, value)
