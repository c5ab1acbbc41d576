"""State: the values of a graph as a nested mapping, ``state.layer.kernel.value``.

A State is what :func:`moduli.state` and :func:`moduli.split` take out of a model and what gradients
come back as. It is a JAX pytree; its leaves are Variables (pytrees themselves) and bare arrays.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any, overload

import jax

from moduli import errors
from moduli._base.epoch import EPOCH
from moduli._base.type_variables import Path
from moduli._graph.loading import fitted, is_number, placed
from moduli._graph.named_filters import check_names
from moduli._variable.box import Variable
from moduli._variable.filters import check_order, partition

__all__ = [
    "FlatState",
    "State",
    "as_pure",
    "filter_state",
    "from_flat_state",
    "map_state",
    "merge_state",
    "replace_by_pure_dict",
    "restore_int_paths",
    "split_state",
    "to_flat_state",
    "to_pure_dict",
]


def _state_changed() -> None:
    """Moves the epoch: the State may be an attribute of something whose flatten is cached."""
    EPOCH[0] += 1
    EPOCH[2] += 1


class State(MutableMapping[Any, Any]):
    """A nested mapping of path parts to Variables, arrays or further States.

    Args:
      mapping: a nested mapping, or an iterable of (key, value) pairs. Inner mappings become
        States when they are read.

    Example:
      >>> import moduli as nnx
      >>> state = nnx.State({"layer": {"kernel": nnx.Param(1.0)}, "count": nnx.Variable(3)})
      >>> state.layer.kernel.value, state["count"].value
      (1.0, 3)
      >>> list(state.filter(nnx.Param))
      ['layer']
    """

    __slots__ = ("_mapping",)
    _mapping: dict[Any, Any]
    _is_moduli_state = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _register(cls)

    def __init__(self, mapping: Mapping[Any, Any] | Iterable[tuple[Any, Any]] = (), /):
        if isinstance(mapping, State):
            mapping = mapping._mapping
        object.__setattr__(self, "_mapping", dict(mapping))

    @property
    def raw_mapping(self) -> dict[Any, Any]:
        """The dict behind the State; inner mappings are dicts or States."""
        return self._mapping

    def _wrap(self, value: Any) -> Any:
        if isinstance(value, State) or not isinstance(value, Mapping):
            return value
        inner = type(self).__new__(type(self))
        object.__setattr__(inner, "_mapping", value)  # shares the dict: writes are seen
        return inner

    def __getitem__(self, key: Any) -> Any:
        try:
            return self._wrap(self._mapping[key])
        except KeyError:
            raise KeyError(_missing(key, self._mapping)) from None

    def __setitem__(self, key: Any, value: Any) -> None:
        self._mapping[key] = value
        _state_changed()

    def __delitem__(self, key: Any) -> None:
        del self._mapping[key]
        _state_changed()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._mapping)

    def __len__(self) -> int:
        return len(self._mapping)

    def __contains__(self, key: object) -> bool:
        return key in self._mapping

    def __getattr__(self, name: str) -> Any:
        if name == "_mapping" or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(name)
        try:
            return self._wrap(self._mapping[name])
        except KeyError:
            raise AttributeError(_missing(name, self._mapping)) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self._mapping[name] = value
        _state_changed()

    def __delattr__(self, name: str) -> None:
        if name not in self._mapping:
            raise AttributeError(_missing(name, self._mapping))
        del self._mapping[name]
        _state_changed()

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *(key for key in self._mapping if isinstance(key, str))]

    def __eq__(self, other: object) -> bool:
        """Compares structure and values; arrays are equal if all elements are."""
        if not isinstance(other, Mapping):
            return NotImplemented
        return _same(self, other)

    __hash__ = None  # type: ignore[assignment]

    def __or__(self, other: Mapping[Any, Any]) -> State:
        return type(self).merge(self, other)

    def __sub__(self, other: Mapping[Any, Any]) -> State:
        remove = dict(_flat_items(other))
        return type(self).from_flat_path(
            (path, value) for path, value in _flat_items(self) if path not in remove
        )

    def __getstate__(self) -> dict[Any, Any]:
        return self._mapping

    def __setstate__(self, mapping: dict[Any, Any]) -> None:
        object.__setattr__(self, "_mapping", mapping)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), _plain(self._mapping))

    def __copy__(self) -> State:
        return type(self)(self._mapping)

    def __repr__(self) -> str:
        from moduli._graph.tree_repr import state_repr

        return state_repr(self)

    # -- whole-state operations --------------------------------------------------------------

    def flat_state(self) -> FlatState:
        """Returns the flat form: (path, value) pairs in order of the paths."""
        return FlatState(_flat_items(self))

    @classmethod
    def from_flat_path(
        cls, flat_state: Mapping[Path, Any] | Iterable[tuple[Path, Any]], /
    ) -> State:
        """Builds a State from paths and values."""
        return from_flat_state(flat_state, cls=cls)

    def filter(self, first: Any, /, *filters: Any) -> Any:
        """Like :func:`filter_state` on this State."""
        return filter_state(self, first, *filters)

    def split(self, first: Any, /, *filters: Any) -> Any:
        """Like :func:`split_state` on this State."""
        return split_state(self, first, *filters)

    @classmethod
    def merge(cls, state: Mapping[Any, Any], /, *states: Mapping[Any, Any]) -> State:
        """Like :func:`merge_state`."""
        return merge_state(state, *states, cls=cls)

    def map(self, f: Callable[[Path, Any], Any]) -> State:
        """Returns a State with ``f(path, value)`` in place of each value."""
        return map_state(f, self)

    def to_pure_dict(self, extract_fn: Callable[[Any], Any] | None = None) -> dict[Any, Any]:
        """Like :func:`to_pure_dict` on this State."""
        return to_pure_dict(self, extract_fn)

    def replace_by_pure_dict(
        self,
        pure_dict: Mapping[Any, Any],
        replace_fn: Callable[[Any, Any], Any] | None = None,
        *,
        resize: bool = False,
    ) -> None:
        """Like :func:`replace_by_pure_dict` on this State."""
        replace_by_pure_dict(self, pure_dict, replace_fn, resize=resize)


class FlatState(Mapping[Path, Any]):
    """The flat form of a State: an ordered mapping of paths to values, iterated as pairs.

    Args:
      items: (path, value) pairs, or a mapping.
      sort: whether to sort them by path.
    """

    __slots__ = ("_items",)

    def __init__(
        self, items: Mapping[Path, Any] | Iterable[tuple[Path, Any]] = (), /, *, sort: bool = False
    ):
        pairs = items.items() if isinstance(items, Mapping) else items
        if sort:
            pairs = sorted(pairs, key=lambda pair: pair[0])
        self._items = {tuple(path): value for path, value in pairs}

    @classmethod
    def from_sorted_keys_values(cls, keys: Iterable[Path], values: Iterable[Any], /) -> FlatState:
        """Returns a FlatState of paths and their values."""
        return cls(zip(keys, values, strict=True))

    @property
    def paths(self) -> tuple[Path, ...]:
        """The paths."""
        return tuple(self._items)

    @property
    def leaves(self) -> tuple[Any, ...]:
        """The values."""
        return tuple(self._items.values())

    def __getitem__(self, path: Path | int | slice) -> Any:
        if isinstance(path, int):
            return list(self._items.items())[path]
        if isinstance(path, slice):
            return FlatState(list(self._items.items())[path])
        return self._items[path]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items.items())

    def split(self, first: Any, /, *filters: Any) -> Any:
        """Splits it into parts that together are all of it; see :func:`split_state`.

        Returns:
          One FlatState for one filter, otherwise a tuple of them.

        Raises:
          StructureError: if a value is selected by no filter.
        """
        pairs = list(self._items.items())
        *groups, rest = partition(pairs, (first, *filters))
        check_names(pairs, (first, *filters), "split", any_name=False)
        check_exhaustive(rest, (first, *filters), "split")
        return _one_or_all(tuple(map(FlatState, groups)))

    def filter(self, first: Any, /, *filters: Any) -> Any:
        """Like :meth:`split`, and leaves out what no filter selects."""
        pairs = list(self._items.items())
        *groups, _ = partition(pairs, (first, *filters))
        check_names(pairs, (first, *filters), "filter", any_name=True)
        return _one_or_all(tuple(map(FlatState, groups)))

    @staticmethod
    def merge(flat_state: Iterable[tuple[Path, Any]], /, *flat_states: Any) -> FlatState:
        """Puts FlatStates together, sorted by path; of equal paths the last one counts."""
        pairs = [pair for one in (flat_state, *flat_states) for pair in one]
        return FlatState(pairs, sort=True)

    def index(self, value: tuple[Path, Any], start: int = 0, stop: int | None = None) -> int:
        """Returns the position of a (path, value) pair."""
        return list(self._items.items()).index(value, start, len(self) if stop is None else stop)

    def count(self, value: tuple[Path, Any]) -> int:
        """Returns how often a (path, value) pair occurs: 0 or 1."""
        return list(self._items.items()).count(value)

    def keys(self) -> Any:
        """The paths."""
        return self._items.keys()

    def values(self) -> Any:
        """The values."""
        return self._items.values()

    def items(self) -> Any:
        """The (path, value) pairs."""
        return self._items.items()

    def __contains__(self, path: object) -> bool:
        return path in self._items

    def __len__(self) -> int:
        return len(self._items)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FlatState) and _same(self._items, other._items)

    __hash__ = None  # type: ignore[assignment]

    def to_nested_state(self) -> State:
        """Returns the nested form."""
        return from_flat_state(self._items)

    def __repr__(self) -> str:
        lines = "".join(
            f"  {errors.format_path(path)}: {value!r}\n" for path, value in self._items.items()
        )
        return f"FlatState({{\n{lines}}})" if lines else "FlatState({})"


def _one_or_all(parts: tuple[FlatState, ...]) -> Any:
    return parts[0] if len(parts) == 1 else parts


jax.tree_util.register_pytree_node(
    FlatState,
    lambda flat: (flat.leaves, flat.paths),
    lambda paths, leaves: FlatState(zip(paths, leaves, strict=True)),
)


def to_flat_state(state: Mapping[Any, Any]) -> FlatState:
    """Returns the flat form of a State: sorted, so its values are in the order of JAX's leaves.

    Example:
      >>> import moduli as nnx
      >>> nnx.to_flat_state(nnx.State({"a": {"b": nnx.Param(1)}})).paths
      (('a', 'b'),)
    """
    return FlatState(_flat_items(state))


def from_flat_state(
    flat_state: Mapping[Path, Any] | Iterable[tuple[Path, Any]], *, cls: type[State] = State
) -> State:
    """Builds a State from paths and values.

    Args:
      flat_state: a mapping of paths, or (path, value) pairs.
      cls: the class of the result.

    Raises:
      StructureError: if one path runs through the value of another.
    """
    pairs = flat_state.items() if isinstance(flat_state, Mapping) else flat_state
    nested = _Level()
    for path, value in pairs:
        *inner, last = path
        target = nested
        for part in inner:
            target = target.setdefault(part, _Level())
            if not isinstance(target, _Level):
                raise _overlap(path, part)
        if isinstance(target.get(last), _Level):
            raise _overlap(path, last)
        target[last] = value
    return cls(nested)


class _Level(dict[Any, Any]):
    """A level of nesting that is being built; told apart from values that are dicts."""


def _overlap(path: Path, part: Any) -> errors.StructureError:
    return errors.StructureError(
        f"the path `{errors.format_path(path)}` runs through, or ends at, a level of another path "
        f"of the flat state, at {part!r}"
    )


def merge_state(
    state: Mapping[Any, Any], /, *states: Mapping[Any, Any], cls: type[State] = State
) -> State:
    """Merges States into one; where two have the same path, the later one wins.

    Example:
      >>> import moduli as nnx
      >>> merged = nnx.merge_state(nnx.State({"a": {"b": 1}}), nnx.State({"a": {"c": 2}}))
      >>> nnx.to_pure_dict(merged)
      {'a': {'b': 1, 'c': 2}}
    """
    if not states:
        return state if isinstance(state, cls) else cls(state)
    flat: dict[Path, Any] = {}
    for one in (state, *states):
        flat.update(_flat_items(one))
    return from_flat_state(flat, cls=cls)


@overload
def filter_state(state: Mapping[Any, Any], first: Any, /) -> State: ...
@overload
def filter_state(
    state: Mapping[Any, Any], first: Any, second: Any, /, *filters: Any
) -> tuple[State, ...]: ...
def filter_state(state: Mapping[Any, Any], first: Any, /, *filters: Any) -> Any:
    """Selects parts of a State; what no filter selects is left out.

    Args:
      state: the State.
      first: a filter.
      *filters: more filters; each value goes to the first that selects it.

    Returns:
      One State for one filter, otherwise a tuple of them.

    Raises:
      StructureError: if a filter is a name that selects nothing: no value has that tag.
    """
    pairs = list(_flat_items(state))
    groups = partition(pairs, (first, *filters))[:-1]
    check_names(pairs, (first, *filters), "filter_state", any_name=True)
    states = tuple(map(from_flat_state, groups))
    return states if filters else states[0]


@overload
def split_state(state: Mapping[Any, Any], first: Any, /) -> State: ...
@overload
def split_state(
    state: Mapping[Any, Any], first: Any, second: Any, /, *filters: Any
) -> tuple[State, ...]: ...
def split_state(state: Mapping[Any, Any], first: Any, /, *filters: Any) -> Any:
    """Splits a State into parts that together are all of it.

    Args:
      state: the State.
      first: a filter.
      *filters: more filters; each value goes to the first that selects it.

    Returns:
      One State for one filter, otherwise a tuple of them.

    Raises:
      StructureError: if a value is selected by no filter.
    """
    pairs = list(_flat_items(state))
    *groups, rest = partition(pairs, (first, *filters))
    check_names(pairs, (first, *filters), "split_state", any_name=False)
    check_exhaustive(rest, (first, *filters), "split_state")
    states = tuple(map(from_flat_state, groups))
    return states if filters else states[0]


def check_exhaustive(rest: list[tuple[Path, Any]], filters: tuple[Any, ...], caller: str) -> None:
    """Raises if some values were selected by no filter."""
    check_order(filters)
    if rest:
        path, value = rest[0]
        raise errors.StructureError(
            f"{caller}: no filter of {filters!r} selects the {type(value).__name__} at "
            f"`{errors.format_path(path)}`"
            + (f" and {len(rest) - 1} more" if len(rest) > 1 else "")
            + "; add `...` as the last filter to take the rest"
        )


def map_state(f: Callable[[Path, Any], Any], state: Mapping[Any, Any]) -> State:
    """Returns a State with ``f(path, value)`` in place of each value."""
    return from_flat_state((path, f(path, value)) for path, value in _flat_items(state))


def to_pure_dict(
    state: Mapping[Any, Any], extract_fn: Callable[[Any], Any] | None = None
) -> dict[Any, Any]:
    """Turns a State into nested dicts of plain values, without Variables.

    Args:
      state: the State.
      extract_fn: takes a leaf and returns its plain value; by default a Variable's value.
    """
    extract = extract_fn or (lambda leaf: leaf.value if isinstance(leaf, Variable) else leaf)

    def convert(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: convert(value[key]) for key in _sorted_keys(value)}
        return extract(value)

    return convert(state)


def as_pure(tree: Any) -> Any:
    """Puts plain values in place of the Variables of a State or another pytree.

    For what wants arrays alone: other libraries' serialization, export. The structure stays.

    Args:
      tree: a State, a Module, or any pytree that holds Variables.

    Returns:
      A copy of the tree with each Variable's value where the Variable was.

    Example:
      >>> import moduli as nnx
      >>> state = nnx.state(nnx.Dict({"scale": nnx.Param(2.0), "count": nnx.Variable(3)}))
      >>> nnx.as_pure(state)["scale"], nnx.as_pure(state)["count"]
      (2.0, 3)
    """
    return jax.tree.map(
        lambda leaf: as_pure(leaf.value) if isinstance(leaf, Variable) else leaf,
        tree,
        is_leaf=lambda leaf: isinstance(leaf, Variable),
    )


def replace_by_pure_dict(
    state: State,
    pure_dict: Mapping[Any, Any],
    replace_fn: Callable[[Any, Any], Any] | None = None,
    *,
    resize: bool = False,
) -> None:
    """Writes the values of nested dicts into a State, in place.

    Args:
      state: the State to change; its Variables keep their kind and metadata.
      pure_dict: nested dicts as :func:`to_pure_dict` gives them. Where a file has turned numbers
        into text, ``"0"`` stands for the key 0; a list of numbers stands for an array.
      replace_fn: takes the old leaf and the new value and returns the new leaf.
      resize: take values of another shape or dtype, as in :func:`moduli.update`. Nothing is checked
        with a ``replace_fn``.

    Raises:
      PathError: if ``pure_dict`` has a path that the State has not. Nothing is changed then.
      StructureError: if a value has another shape or numbers of another kind, or two keys mean the
        same place. Nothing is changed then.
    """

    def default(old: Any, new: Any) -> Any:
        return old.replace(new) if isinstance(old, Variable) else new

    replace = replace_fn or default
    flat = dict(_flat_items(state))
    new_flat = dict(placed(_flat_items(pure_dict), flat, "replace_by_pure_dict"))
    unknown = [path for path in new_flat if path not in flat]
    if unknown:
        raise errors.PathError(
            f"the State has no value at `{errors.format_path(unknown[0])}`; it has "
            f"{sorted(map(errors.format_path, flat))}"
        )
    if replace_fn is None:
        items = [(path, flat[path], new) for path, new in new_flat.items()]
        fits = fitted(items, "replace_by_pure_dict", resize=resize)
        new_flat = dict(zip(new_flat, fits, strict=True))
    leaves = {path: replace(flat[path], new) for path, new in new_flat.items()}
    for path, leaf in leaves.items():
        target: Any = state
        for part in path[:-1]:
            target = target[part]
        target[path[-1]] = leaf


def restore_int_paths(pure_dict: Mapping[Any, Any]) -> dict[Any, Any]:
    """Turns keys that are digits (as after JSON) back into ints, at every level.

    Example:
      >>> import moduli as nnx
      >>> nnx.restore_int_paths({"layers": {"0": 1.0}})
      {'layers': {0: 1.0}}

    Raises:
      StructureError: if a level has a number both as text and as an int.
    """

    def convert(value: Any, path: Path) -> Any:
        if not isinstance(value, Mapping):
            return value
        keys = [int(key) if is_number(key) else key for key in value]
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise errors.StructureError(
                f"restore_int_paths: `{errors.format_path(path)}` has several keys for {twice!r}: "
                f"{[key for key in value if str(key) == str(twice)]}"
            )
        return {
            key: convert(item, (*path, key)) for key, item in zip(keys, value.values(), strict=True)
        }

    return convert(pure_dict, ())


def _flat_items(mapping: Mapping[Any, Any], path: Path = ()) -> Iterator[tuple[Path, Any]]:
    found: list[tuple[Path, Any]] = []
    _collect(mapping, path, found)
    return iter(found)


def _collect(mapping: Mapping[Any, Any], path: Path, found: list[tuple[Path, Any]]) -> None:
    items = mapping._mapping if isinstance(mapping, State) else mapping
    if isinstance(items, FlatState):
        found.extend(items.items())
        return
    for key in _sorted_keys(items):  # as JAX has them
        value = items[key]
        if not isinstance(value, Variable) and isinstance(value, Mapping):
            _collect(value, (*path, key), found)
        else:
            found.append(((*path, key), value))


def _missing(key: Any, mapping: Mapping[Any, Any]) -> str:
    names = [name for name in mapping if isinstance(name, str)]
    near = difflib.get_close_matches(str(key), names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"it has {list(mapping)!r}."
    return f"the State has no entry {key!r}; {hint}"


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, Variable) and isinstance(b, Variable):
        same = type(a) is type(b) and dict(a._metadata) == dict(b._metadata)
        return same and _same(a._value, b._value)
    if isinstance(a, Variable) or isinstance(b, Variable):
        return False
    leaves_a, tree_a = jax.tree.flatten(a)
    leaves_b, tree_b = jax.tree.flatten(b)
    return tree_a == tree_b and all(map(_same_leaf, leaves_a, leaves_b))


def _same_leaf(a: Any, b: Any) -> bool:
    if getattr(a, "shape", ()) != getattr(b, "shape", ()):
        return False
    equal = a == b
    return bool(equal.all() if hasattr(equal, "all") else equal)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        items = value._mapping if isinstance(value, State) else value
        return {key: _plain(item) for key, item in items.items()}
    return value


def _rebuild(cls: type[State], mapping: dict[Any, Any]) -> State:
    return cls(mapping)


def _sorted_keys(mapping: Mapping[Any, Any]) -> list[Any]:
    try:
        return sorted(mapping)
    except TypeError:
        pass
    try:
        return sorted(mapping, key=lambda key: (type(key).__name__, key))
    except TypeError:  # keys without an order, such as those of an enum
        return list(mapping)


def _register(cls: type[State]) -> None:
    def flatten(state: State) -> tuple[list[Any], tuple[Any, ...]]:
        mapping = state._mapping
        keys = _sorted_keys(mapping)
        children = [mapping[key] for key in keys]
        wrapped = [
            child if isinstance(child, (Variable, State)) else state._wrap(child)
            for child in children
        ]
        return wrapped, tuple(keys)

    def flatten_with_keys(state: State) -> tuple[list[Any], tuple[Any, ...]]:
        children, keys = flatten(state)
        entries = map(jax.tree_util.DictKey, keys)
        return list(zip(entries, children, strict=True)), keys

    def unflatten(keys: tuple[Any, ...], children: Iterable[Any]) -> State:
        state = object.__new__(cls)
        object.__setattr__(state, "_mapping", dict(zip(keys, children, strict=True)))
        return state

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)


_register(State)
