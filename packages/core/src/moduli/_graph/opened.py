"""Opens the containers that stand between a node and its parts, and makes them again.

An attribute may hold modules, Variables and arrays in tuples, mappings, sequences, dataclasses and
whatever else JAX can take apart. Such a container stays the user's own object: it is *opened* into
leaves and a recipe, made again from both where a copy is needed, and what a transform wrote goes
back into the same object. The ones that can change without telling anybody are *watched*.

JAX sorts the keys of dicts and does not know most subclasses of the builtins, so those levels are
opened here; all others are left to JAX, one level at a time.
"""

from __future__ import annotations

import collections
import dataclasses
import operator
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from moduli import errors
from moduli._base.type_variables import Path
from moduli._variable.box import Variable

__all__ = ["Opened", "Recipe", "Watch", "is_container", "open_tree", "pour", "put"]

_ARRAY = object()
_LEAVES = (str, bytes, bytearray, memoryview, range, jax.Array, np.ndarray, np.generic, Variable)
_SIMPLE = frozenset((int, float, bool, str, bytes, complex, type(None), type))
_RECORDS = (types.SimpleNamespace,)

data_types: list[type] = []
"""Classes whose objects the user made leaves, see ``register_data_type``."""


class Level:
    """One container, opened: what stands in it and how one like it is made.

    Attributes:
      names: for each child its path from the container.
      children: what stands in it.
      make: makes a container from ``aux`` and new children.
      aux: the rest of it, hashable.
      by_jax: whether JAX would open it the same way.
      mutable: whether it can change without being another object.
      is_state: whether it is a State, whose changes move the epoch.
    """

    __slots__ = ("aux", "by_jax", "children", "is_state", "make", "mutable", "names")

    def __init__(
        self,
        names: Sequence[Path],
        children: Sequence[Any],
        make: Callable[[Any, list[Any]], Any],
        aux: Any,
        *,
        by_jax: bool = False,
        mutable: bool = True,
        is_state: bool = False,
    ):
        self.names, self.children, self.make, self.aux = names, children, make, aux
        self.by_jax, self.mutable, self.is_state = by_jax, mutable, is_state


def _is_leaf(value: Any) -> bool:
    if value.__class__ in _SIMPLE or isinstance(value, _LEAVES) or _is_node(value):
        return True
    # a registered type may be a pytree too: then JAX would open it, so it is opened here
    return isinstance(value, tuple(data_types)) and jax.tree_util.all_leaves([value])


def _is_node(value: Any) -> bool:
    return isinstance(value, Variable) or getattr(type(value), "_is_moduli_node", False)


def is_container(value: Any) -> bool:
    """Returns whether a value that JAX does not know is a container all the same."""
    if _is_leaf(value) or isinstance(value, type):
        return False
    if isinstance(value, (dict, list, tuple, collections.deque, *_RECORDS)):
        return True
    if isinstance(value, (Mapping, Sequence)) or dataclasses.is_dataclass(value):
        return _has_fields(value) or isinstance(value, types.MappingProxyType)
    return False


def _has_fields(value: Any) -> bool:
    return hasattr(value, "__dict__") or bool(_slots(type(value)))


def open_level(value: Any, sort: bool = False) -> Level | None:
    """Opens one container; None if the value is a leaf.

    Args:
      value: the container.
      sort: take plain dicts in the order of their keys, as JAX does.
    """
    if _is_leaf(value):
        return None if value is not None else _by_jax(value)
    cls = value.__class__
    if cls is tuple:
        return Level(_numbers(len(value)), value, _make_tuple, None, by_jax=True, mutable=False)
    if cls is dict or cls is collections.defaultdict:
        return _by_jax(value) if sort else _dict_level(value)
    if not jax.tree_util.all_leaves([value]):
        return _by_jax(value)
    if not is_container(value):
        return None
    if isinstance(value, dict):
        return _dict_level(value)
    if isinstance(value, (list, tuple, collections.deque)):
        return _sequence_level(value)
    if isinstance(value, types.MappingProxyType):
        names = [(key,) for key in value]
        return Level(names, list(value.values()), _make_proxy, _typed(value))
    return _object_level(value)


def _numbers(count: int) -> list[Path]:
    return [(number,) for number in range(count)]


def _typed(keys: Any) -> tuple[Any, ...]:
    return tuple([(key.__class__, key) for key in keys])


def _by_jax(value: Any) -> Level:
    pairs, treedef = jax.tree_util.tree_flatten_with_path(
        value, is_leaf=lambda part: part is not value
    )
    is_state = getattr(type(value), "_is_moduli_state", False)
    mutable = not isinstance(value, (tuple, type(None)))
    if _is_frozen(value):
        mutable = False
    names = [tuple(map(_plain_key, path)) for path, _ in pairs]
    children = [child for _, child in pairs]
    return Level(
        names, children, _make_by_jax, treedef, by_jax=True, mutable=mutable, is_state=is_state
    )


def _is_frozen(value: Any) -> bool:
    params = getattr(type(value), "__dataclass_params__", None)
    return params is not None and params.frozen


def _plain_key(entry: Any) -> Any:
    for name in ("key", "idx", "name"):
        if hasattr(entry, name):
            return getattr(entry, name)
    return str(entry)


def _make_by_jax(treedef: Any, children: list[Any]) -> Any:
    return treedef.unflatten(children)


def _make_tuple(aux: None, children: list[Any]) -> tuple[Any, ...]:
    return tuple(children)


def _make_proxy(keys: tuple[Any, ...], children: list[Any]) -> Any:
    return types.MappingProxyType({k: c for (_, k), c in zip(keys, children, strict=True)})


# -- subclasses of builtins, and other objects: their items, then their attributes ----------------


def _dict_level(value: dict[Any, Any]) -> Level:
    keys, values = _entries(value)
    extra = _fields(value)
    names = [(key,) for key in keys] + [(name,) for name in extra]
    cls, factory = value.__class__, getattr(value, "default_factory", None)
    aux = (cls, factory, _typed(keys), tuple(extra))
    children = [*values, *extra.values()]
    plain = cls is dict or cls is collections.defaultdict
    return Level(names, children, _make_dict, aux, by_jax=plain and _sorted(keys))


def _entries(value: dict[Any, Any]) -> tuple[list[Any], list[Any]]:
    """Keys and values in the order of the dict, whatever a subclass makes of its methods."""
    ordered = isinstance(value, collections.OrderedDict)  # keeps an order of its own
    keys = list(collections.OrderedDict.__iter__(value) if ordered else dict.__iter__(value))
    return keys, [dict.__getitem__(value, key) for key in keys]


def _sorted(keys: list[Any]) -> bool:
    try:
        return sorted(keys) == keys
    except TypeError:
        return False


def _make_dict(aux: Any, children: list[Any]) -> Any:
    cls, factory, keys, extra = aux
    new = cls.__new__(cls)
    if factory is not None:
        new.default_factory = factory
    _set_entries(new, [key for _, key in keys], children)
    _set_fields(new, extra, children[len(keys) :])
    return new


def _set_entries(target: Any, keys: list[Any], values: list[Any]) -> None:
    ordered = isinstance(target, collections.OrderedDict)
    write: Any = collections.OrderedDict.__setitem__ if ordered else dict.__setitem__
    for key, value in zip(keys, values, strict=False):
        write(target, key, value)


def _sequence_level(value: Any) -> Level:
    base: Any = next(b for b in (list, tuple, collections.deque) if isinstance(value, b))
    items = list(base.__iter__(value))
    extra = _fields(value)
    names = _numbers(len(items)) + [(name,) for name in extra]
    aux = (value.__class__, base, len(items), getattr(value, "maxlen", None), tuple(extra))
    return Level(names, [*items, *extra.values()], _make_sequence, aux, mutable=base is not tuple)


def _make_sequence(aux: Any, children: list[Any]) -> Any:
    cls, base, count, maxlen, extra = aux
    items = children[:count]
    if base is tuple:
        new = tuple.__new__(cls, items)
    else:
        new = cls.__new__(cls)
        if base is list:
            list.extend(new, items)
        else:
            collections.deque.__init__(new, items, maxlen)
    _set_fields(new, extra, children[count:])
    return new


def _object_level(value: Any) -> Level:
    fields = _fields(value)
    # the items of a UserDict or UserList stand in `data`, which nobody would write in a path
    inner = isinstance(value, (collections.UserDict, collections.UserList))
    names: list[Path] = [() if inner and name == "data" else (name,) for name in fields]
    frozen = _is_frozen(value)
    aux: Any = (type(value), tuple(fields))
    return Level(names, list(fields.values()), _make_object, aux, mutable=not frozen)


def _make_object(aux: Any, children: list[Any]) -> Any:
    cls, names = aux
    base: Any = types.SimpleNamespace if issubclass(cls, types.SimpleNamespace) else object
    new = base.__new__(cls)
    _set_fields(new, names, children)
    return new


def _slots(cls: type) -> list[str]:
    return [
        name
        for base in cls.__mro__
        if base.__module__ != "builtins"
        for name, item in vars(base).items()
        if isinstance(item, types.MemberDescriptorType)
        and base not in _FOREIGN
        and name != "__dict__"
    ]


_FOREIGN = (collections.OrderedDict, collections.defaultdict, collections.deque, Variable)


def _fields(value: Any) -> dict[str, Any]:
    """The attributes of an object, of its slots too."""
    found = dict(getattr(value, "__dict__", ()))
    for name in _slots(type(value)):
        if hasattr(value, name):
            found[name] = getattr(value, name)
    return found


def _set_fields(target: Any, names: Sequence[str], values: Sequence[Any]) -> None:
    attributes = getattr(target, "__dict__", None)
    for name, value in zip(names, values, strict=True):
        if attributes is None or isinstance(
            getattr(type(target), name, None), types.MemberDescriptorType
        ):
            object.__setattr__(target, name, value)
        else:
            attributes[name] = value


# -- whole trees ----------------------------------------------------------------------------------


class Recipe:
    """How to make a tree of containers from its leaves; does what a JAX treedef does.

    Args:
      make: of the outermost Level.
      aux: likewise.
      parts: for each child its Recipe, or None for a leaf.
    """

    __slots__ = ("_hash", "_key")

    def __init__(self, make: Any, aux: Any, parts: tuple[Recipe | None, ...]):
        self._key = (make, aux, parts)
        self._hash = hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self._key == other._key

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> Any:
        return Recipe, self._key

    def unflatten(self, leaves: Sequence[Any]) -> Any:
        """Makes the tree."""
        return self._made(iter(leaves))

    def _made(self, leaves: Iterator[Any]) -> Any:
        make, aux, parts = self._key
        return make(aux, [next(leaves) if p is None else p._made(leaves) for p in parts])


class Opened:
    """A tree of containers, opened.

    Attributes:
      leaves: nodes, Variables, arrays and all else that is no container.
      names: for each leaf its path in the tree.
      trails: for each leaf the number of the child at each level.
      recipe: makes the tree from leaves; JAX's treedef where that does the same.
      watched: the containers that can change, with their levels.
      by_jax: whether JAX would open the tree in the same way.
    """

    __slots__ = ("_inside", "_sort", "by_jax", "leaves", "names", "recipe", "trails", "watched")

    def __init__(self, tree: Any, sort: bool = False):
        self._sort = sort
        self._inside: set[int] = set()
        self.leaves: list[Any] = []
        self.names: list[Path] = []
        self.trails: list[tuple[int, ...]] = []
        self.watched: list[tuple[Any, Level]] = []
        self.by_jax = True
        self.recipe: Any = self._visit(tree, (), ())
        if self.by_jax:
            self.recipe = jax.tree.structure(tree, is_leaf=_is_node)

    def _visit(self, value: Any, path: Path, trail: tuple[int, ...]) -> Recipe | None:
        level = open_level(value, self._sort)
        if level is None:
            self.leaves.append(value)
            self.names.append(path)
            self.trails.append(trail)
            return None
        if id(value) in self._inside:
            raise errors.StructureError(
                f"the {type(value).__name__} at `{errors.format_path(path)}` of an attribute "
                "contains itself, and modules or arrays, so it cannot be taken apart; keep the "
                "reference back in a module, or leave it out"
            )
        self._inside.add(id(value))
        self.by_jax = self.by_jax and level.by_jax
        if level.mutable:
            self.watched.append((value, level))
        parts = [
            self._visit(child, path + name, (*trail, number))
            for number, (name, child) in enumerate(zip(level.names, level.children, strict=True))
        ]
        self._inside.discard(id(value))
        return Recipe(level.make, level.aux, tuple(parts))


def open_tree(tree: Any, *, sort: bool = False) -> Opened:
    """Opens a container and those in it, down to nodes, Variables, arrays and static values."""
    return Opened(tree, sort)


def read(tree: Any, trail: tuple[int, ...]) -> Any:
    """Returns the leaf at the end of a trail."""
    for number in trail:
        cls = tree.__class__
        if cls is tuple or cls is list:
            tree = tree[number]
        else:
            level = open_level(tree)
            assert level is not None
            tree = level.children[number]
    return tree


def put(tree: Any, trail: tuple[int, ...], new: Any) -> Any:
    """Writes one leaf; returns the tree, which is another one only if it cannot be written."""
    if not trail:
        return new
    level = open_level(tree)
    assert level is not None
    number, *rest = trail
    old = level.children[number]
    child = put(old, tuple(rest), new)
    if child is old:
        return tree
    children = list(level.children)
    children[number] = child
    fresh = level.make(level.aux, children)
    return _refill(tree, fresh) if level.mutable else fresh


def pour(old: Any, new: Any) -> Any:
    """Gives a user's container the content of a copy of it; returns the container.

    Args:
      old: the container.
      new: the copy; it is returned where it cannot be the same object.
    """
    if old is new or old.__class__ is not new.__class__:
        return new
    before, after = open_level(old), open_level(new)
    if before is None or after is None:
        return new
    known = dict(zip(before.names, before.children, strict=True))
    children = [
        pour(known[name], child) if name in known else child
        for name, child in zip(after.names, after.children, strict=True)
    ]
    fresh = after.make(after.aux, children)
    return _refill(old, fresh) if after.mutable else fresh


def _refill(old: Any, fresh: Any) -> Any:
    if getattr(type(old), "_is_moduli_state", False):
        _refill(old.raw_mapping, fresh.raw_mapping)
        return old
    if isinstance(old, dict):
        keys, values = _entries(fresh)
        if _entries(old)[0] != keys:  # otherwise somebody may be iterating
            ordered = isinstance(old, collections.OrderedDict)
            collections.OrderedDict.clear(old) if ordered else dict.clear(old)
        _set_entries(old, keys, values)
    elif isinstance(old, list):
        list.__setitem__(old, slice(None), list.__iter__(fresh))
    elif isinstance(old, collections.deque):
        if len(old) != len(fresh):
            old.clear()
            old.extend(fresh)
        for number, item in enumerate(fresh):
            old[number] = item
    elif not _has_fields(old):
        return fresh
    attributes, now = getattr(old, "__dict__", None), _fields(fresh)
    if attributes is not None:
        for name in [name for name in attributes if name not in now]:
            del attributes[name]
    _set_fields(old, list(now), list(now.values()))
    return old


# -- watching -------------------------------------------------------------------------------------


class Carrier:
    """A container that JAX does not open as it should, for JAX.

    ``Carrier(container)`` is a pytree; unflattening it gives the container back.
    """

    __slots__ = ("level",)

    def __init__(self, level: Level):
        self.level = level


def for_jax(value: Any) -> Any:
    """Returns what JAX is to be given in the place of a container: itself, if JAX knows it."""
    level = open_level(value)
    if level is None:
        return value
    children = [for_jax(child) for child in level.children]
    if level.by_jax and all(map(operator.is_, children, level.children)):
        return value
    return Carrier(Level(level.names, children, level.make, level.aux))


def _carrier_keys(carrier: Carrier) -> Any:
    level = carrier.level
    keys = [
        jax.tree_util.SequenceKey(name[0])
        if name and isinstance(name[0], int)
        else jax.tree_util.DictKey(name[0] if name else "data")
        for name in level.names
    ]
    return list(zip(keys, level.children, strict=True)), (level.make, level.aux)


jax.tree_util.register_pytree_with_keys(
    Carrier,
    _carrier_keys,
    lambda how, children: how[0](how[1], list(children)),
    lambda carrier: (carrier.level.children, (carrier.level.make, carrier.level.aux)),
)


_DICTS = (dict, collections.OrderedDict, collections.defaultdict)


class Watch:
    """Tells whether a container that the user may change still holds the same.

    It keeps no array alive, and lets arrays be replaced by others: those are values.

    Args:
      container: the container.
      level: as it was opened.
    """

    __slots__ = ("_aux", "_children", "_container", "_keys", "is_state")

    def __init__(self, container: Any, level: Level):
        self.is_state = level.is_state
        self._container = container
        self._keys = list(container) if container.__class__ in _DICTS else None
        self._aux, self._children = self._look(level)

    def _look(self, level: Level) -> tuple[Any, list[Any]]:
        children = level.children
        if self.is_state:  # it wraps inner dicts anew each time
            children = list(self._container.raw_mapping.values())
        aux = level.aux
        return aux, [_ARRAY if _is_array(child) else child for child in children]

    def changed(self) -> bool:
        """Returns whether another item stands in the container, or one is missing."""
        if self._keys is not None:  # as open_level says, but quicker
            items, held = self._container, self._children
            if list(items) != self._keys:
                return True
            for value, before in zip(items.values(), held, strict=True):
                if value is not before and not (before is _ARRAY and _is_array(value)):
                    return True
            return False
        level = open_level(self._container)
        if level is None:
            return True
        aux, children = self._look(level)
        return (
            len(children) != len(self._children)
            or not all(map(operator.is_, children, self._children))
            or aux != self._aux
        )


def _is_array(value: Any) -> bool:
    return isinstance(value, (jax.Array, np.ndarray, jax.ShapeDtypeStruct))
