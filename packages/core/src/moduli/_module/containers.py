"""List and Dict: a list and a dict that tell the graph of every change.

Assigning a plain list or dict to an attribute turns it into one of these, so ``self.layers = []``
and a later ``self.layers.append(...)`` work. They are a real ``list`` and ``dict``: ``isinstance``,
``==``, unpacking and iteration behave as usual.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

from moduli import errors
from moduli._base.foreign_trace import check_mutable
from moduli._base.node import Bookkeeping
from moduli._base.type_variables import T
from moduli._graph.data import (
    Annotated,
    adopt,
    check_source,
    containers,
    is_array,
    is_array_of_numbers,
)
from moduli._module.copying import deepcopy_item, picklable_item
from moduli._module.module import Module
from moduli._module.pytree import change_class, refuse_replacing
from moduli._variable.box import Variable

if TYPE_CHECKING:
    from _collections_abc import dict_items, dict_keys, dict_values
    from typing import Self

__all__ = ["Dict", "List"]

_adopted: dict[int, weakref.ref[Any]] = {}


def _item(value: Any) -> Any:
    return adopt(value.value if isinstance(value, Annotated) else value)


class List(Module, list[T]):
    """A list of modules, Variables, arrays or static values that is part of a graph.

    It takes attributes as any module does.

    Args:
      it: the first elements; plain lists and dicts among them become List and Dict.

    Example:
      >>> import moduli as nnx
      >>> class Model(nnx.Module):
      ...     def __init__(self):
      ...         self.layers = []
      ...         self.layers.append(nnx.Param(1.0))
      >>> model = Model()
      >>> type(model.layers).__name__, list(nnx.state(model).layers)
      ('List', [0])
    """

    def __init__(self, it: Iterable[T] | None = None, /):
        list.__init__(self, map(_item, () if it is None else it))

    # -- items, as the graph code reads and writes them

    def _items(self) -> list[tuple[Any, Any]]:
        elements: list[tuple[Any, Any]] = list(enumerate(list.__iter__(self)))
        return elements + Module._items(self) if self._has_attributes() else elements

    _items_in_order = _items

    def _has_attributes(self) -> bool:
        return len(self.__dict__) > 1  # besides the bookkeeping

    def _fill(self, items: Iterable[tuple[Any, Any]]) -> None:
        list.clear(self)
        attributes = []
        for key, value in items:
            if isinstance(key, int):
                list.append(self, value)
            else:
                attributes.append((key, value))
        if attributes or self._has_attributes():
            Module._fill(self, attributes)

    def _read(self, key: Any) -> Any:
        if isinstance(key, str):
            return Module._read(self, key)
        if not isinstance(key, int) or key < 0:
            raise KeyError(key)
        return list.__getitem__(self, key)

    def _write(self, key: Any, value: Any) -> None:
        if isinstance(key, str):
            Module._write(self, key, value)
        else:
            list.__setitem__(self, key, value)

    def _remove(self, key: Any) -> None:
        if isinstance(key, str):
            Module._remove(self, key)
        else:
            list.__delitem__(self, key)

    def _check_source(self) -> None:
        check_source(self, tuple, "list", "as in `model.layers.append(...)`")

    def _mutable(self) -> None:
        check_mutable(self, "change the elements")
        self._check_source()

    # -- reading: a list behind this one must not have changed

    def __iter__(self) -> Iterator[T]:
        self._check_source()
        return list.__iter__(self)

    def __len__(self) -> int:
        if self._moduli.source is not None:
            self._check_source()
        return list.__len__(self)

    @overload
    def __getitem__(self, index: SupportsIndex) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: Any) -> Any:
        if self._moduli.source is not None:
            self._check_source()
        return list.__getitem__(self, index)

    # -- writing

    @overload
    def __setitem__(self, index: SupportsIndex, value: T) -> None: ...
    @overload
    def __setitem__(self, index: slice, value: Iterable[T]) -> None: ...
    def __setitem__(self, index: Any, value: Any) -> None:
        self._mutable()
        if isinstance(index, slice):
            list.__setitem__(self, index, [_item(item) for item in value])
        else:
            old, new = list.__getitem__(self, index), _item(value)
            if isinstance(old, Variable):
                refuse_replacing(self, f"[{index!r}]", old, value)
            list.__setitem__(self, index, new)
            if is_array(old) and is_array_of_numbers(new):
                return
        self._moduli.changed()

    def __delitem__(self, index: Any) -> None:
        self._mutable()
        list.__delitem__(self, index)
        self._moduli.changed()

    def append(self, value: T) -> None:
        """Adds one element at the end."""
        self._mutable()
        list.append(self, _item(value))
        self._moduli.changed()

    def extend(self, values: Iterable[T]) -> None:
        """Adds elements at the end."""
        self._mutable()
        list.extend(self, [_item(value) for value in values])
        self._moduli.changed()

    def insert(self, index: SupportsIndex, value: T) -> None:
        """Adds one element before an index."""
        self._mutable()
        list.insert(self, index, _item(value))
        self._moduli.changed()

    def pop(self, index: SupportsIndex = -1) -> T:
        """Removes an element and returns it."""
        self._mutable()
        value = list.pop(self, index)
        self._moduli.changed()
        return value

    def remove(self, value: T) -> None:
        """Removes the first element that is, or equals, a value."""
        self._mutable()
        for index, item in enumerate(list.__iter__(self)):
            if item is value:
                list.__delitem__(self, index)
                break
        else:
            list.remove(self, value)
        self._moduli.changed()

    def clear(self) -> None:
        """Removes all elements."""
        self._mutable()
        list.clear(self)
        self._moduli.changed()

    def reverse(self) -> None:
        """Reverses the order in place."""
        self._mutable()
        list.reverse(self)
        self._moduli.changed()

    def sort(self, *, key: Any = None, reverse: bool = False) -> None:
        """Sorts in place."""
        self._mutable()
        list.sort(self, key=key, reverse=reverse)
        self._moduli.changed()

    def __iadd__(self, values: Iterable[T]) -> Self:  # type: ignore[override,misc]
        self.extend(values)
        return self

    def __imul__(self, times: SupportsIndex) -> Self:  # type: ignore[override,misc]
        self._mutable()
        list.__imul__(self, times)
        self._moduli.changed()
        return self

    def copy(self) -> List[T]:
        """Returns a shallow copy."""
        return self.__copy__()

    def __reduce__(self) -> tuple[Any, ...]:  # type: ignore[override]
        elements = iter([picklable_item(value) for value in list.__iter__(self)])
        state = self.__getstate__() if self._has_attributes() else None
        return List, (), state, elements

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:  # type: ignore[override]
        return self.__reduce__()


class Dict(Module, dict[Any, T]):
    """A dict of modules, Variables, arrays or static values that is part of a graph.

    Entries whose key is an identifier can be read and written as attributes too.

    Args:
      *args: as of ``dict``.
      **kwargs: as of ``dict``.

    Example:
      >>> import moduli as nnx
      >>> heads = nnx.Dict({"a": nnx.Param(1.0)}, b=nnx.Param(2.0))
      >>> heads["a"].value, heads.b.value
      (1.0, 2.0)
    """

    @overload
    def __init__(self, entries: Mapping[Any, T] | Iterable[tuple[Any, T]], /, **kwargs: T): ...
    @overload
    def __init__(self, /, **kwargs: T): ...
    def __init__(self, /, *args: Any, **kwargs: Any):
        dict.__init__(self)
        for key, value in dict(*args, **kwargs).items():
            dict.__setitem__(self, key, _item(value))

    # -- items, as the graph code reads and writes them

    def _items(self) -> list[tuple[Any, Any]]:
        return list(dict.items(self))

    _items_in_order = _items

    def _fill(self, items: Iterable[tuple[Any, Any]]) -> None:
        dict.clear(self)
        dict.update(self, items)

    def _read(self, key: Any) -> Any:
        return dict.__getitem__(self, key)

    def _write(self, key: Any, value: Any) -> None:
        dict.__setitem__(self, key, value)

    def _remove(self, key: Any) -> None:
        dict.__delitem__(self, key)

    def _check_source(self) -> None:
        check_source(
            self,
            lambda plain: (*plain.keys(), *plain.values()),
            "dict",
            "as in `model.heads['name'] = ...`",
        )

    def _mutable(self) -> None:
        check_mutable(self, "change the entries")
        self._check_source()

    # -- reading: a dict behind this one must not have changed

    def __iter__(self) -> Iterator[Any]:
        self._check_source()
        return dict.__iter__(self)

    def __len__(self) -> int:
        self._check_source()
        return dict.__len__(self)

    def __getitem__(self, key: Any) -> T:
        self._check_source()
        return dict.__getitem__(self, key)

    def items(self) -> dict_items[Any, T]:
        """The (key, value) pairs."""
        self._check_source()
        return dict.items(self)

    def values(self) -> dict_values[Any, T]:
        """The values."""
        self._check_source()
        return dict.values(self)

    def keys(self) -> dict_keys[Any, T]:
        """The keys."""
        self._check_source()
        return dict.keys(self)

    # -- writing

    def __setitem__(self, key: Any, value: T) -> None:
        self._mutable()
        old, new = dict.get(self, key), _item(value)
        if isinstance(old, Variable):
            refuse_replacing(self, f"[{key!r}]", old, value)
        dict.__setitem__(self, key, new)
        if not (is_array(old) and is_array_of_numbers(new)):
            self._moduli.changed()

    def __delitem__(self, key: Any) -> None:
        self._mutable()
        dict.__delitem__(self, key)
        self._moduli.changed()

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """Returns the entry, after setting it to ``default`` if it is missing."""
        if key not in self:
            self[key] = default
        return self[key]

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Writes entries, as of ``dict.update``."""
        entries = dict(*args, **kwargs)
        for key, value in entries.items():  # all of them, before the first is written
            old = dict.get(self, key)
            if isinstance(old, Variable):
                refuse_replacing(self, f"[{key!r}]", old, value)
        for key, value in entries.items():
            self[key] = value

    def pop(self, key: Any, *default: Any) -> Any:
        """Removes an entry and returns its value."""
        self._mutable()
        value = dict.pop(self, key, *default)
        self._moduli.changed()
        return value

    def popitem(self) -> tuple[Any, T]:
        """Removes the last entry and returns it."""
        self._mutable()
        item = dict.popitem(self)
        self._moduli.changed()
        return item

    def clear(self) -> None:
        """Removes all entries."""
        self._mutable()
        dict.clear(self)
        self._moduli.changed()

    def __ior__(self, other: Any) -> Self:  # type: ignore[override,misc]
        self.update(other)
        return self

    def __getattr__(self, name: str) -> T:
        if not name.startswith("__") and dict.__contains__(self, name):
            return self[name]
        raise errors.ModuliAttributeError(
            f"Dict has no entry or attribute {name!r}; it has {list(self)!r}"
        )

    def __setattr__(self, name: str, value: T) -> None:
        if name == "__class__":
            change_class(self, value)
            return
        self[name] = value

    def __delattr__(self, name: str) -> None:
        del self[name]

    def copy(self) -> Dict[T]:
        """Returns a shallow copy."""
        return Dict(self)

    def __copy__(self) -> Dict[T]:
        return Dict(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Dict[T]:
        new: Dict[T] = Dict()
        memo[id(self)] = new
        dict.update(new, {k: deepcopy_item(v, memo) for k, v in dict.items(self)})
        return new

    def __reduce__(self) -> tuple[Any, ...]:  # type: ignore[override]
        return Dict, (), None, None, iter([(k, picklable_item(v)) for k, v in dict.items(self)])

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:  # type: ignore[override]
        return self.__reduce__()


def _adopt_list(plain: list[Any]) -> List[Any]:
    return _adopt(plain, List, tuple(plain))


def _adopt_dict(plain: Mapping[Any, Any]) -> Dict[Any]:
    return _adopt(plain, Dict, (*plain.keys(), *plain.values()))


def _adopt(plain: Any, cls: type[Any], snapshot: tuple[Any, ...]) -> Any:
    """Makes the container for a plain one; the same one again while the plain one is watched."""
    known = _adopted.get(id(plain))
    if known is not None:
        node = known()
        if node is not None:
            source = node._moduli.source
            if source is not None and source[0] is plain:
                node._check_source()
                return node
        _adopted.pop(id(plain), None)
    node = cls(plain)
    book: Bookkeeping = node._moduli
    book.source = (plain, snapshot)
    key = id(plain)
    _adopted[key] = weakref.ref(node, lambda _: _adopted.pop(key, None))
    return node


containers[list] = _adopt_list
containers[dict] = _adopt_dict
