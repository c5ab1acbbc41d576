"""Static values as keys: equal only when a traced program may not tell them apart.

Python says ``1 == True == 1.0`` and ``0.0 == -0.0``; a program compiled for one of them must not
serve another. A key carries the exact type, through nested tuples, and writes floats bit by bit.

What Python cannot hash (a config object, a set, a list inside a frozen dataclass) may change at any
time. Its key, a :class:`Held`, says what it contained: so a change is seen when keys are compared,
and the key stays what it was.
"""

from __future__ import annotations

import pickle
import types
from collections.abc import Hashable, Mapping
from typing import Any

import jax

from moduli._base.compat import Tracer

__all__ = [
    "Held",
    "UnhashableStatic",
    "has_key",
    "is_held",
    "metadata_key",
    "object_key",
    "static_key",
    "static_value",
]

_BY_VALUE = frozenset(
    (int, bool, str, bytes, type(None), type, types.FunctionType, types.BuiltinFunctionType)
)


class UnhashableStatic(TypeError):
    """A static value cannot be hashed; ``value`` is the value."""

    def __init__(self, value: object):
        super().__init__(f"unhashable static value of type {type(value).__name__}")
        self.value = value


def static_key(value: Any) -> tuple[Any, ...]:
    """Returns a hashable key of a static value, which keeps the exact type.

    Args:
      value: any hashable value; tuples, frozensets and slices are keyed element by element.

    Returns:
      A tuple from which :func:`static_value` gives the value back.

    Raises:
      UnhashableStatic: if the value, or one inside it, cannot be hashed.

    Example:
      >>> from moduli._base.static_keys import static_key, static_value
      >>> static_key(1) == static_key(True), static_key((1, 0.0)) == static_key((1, -0.0))
      (False, False)
      >>> static_value(static_key((1, 0.5, "a")))
      (1, 0.5, 'a')
    """
    cls = value.__class__
    if cls in _BY_VALUE:
        return (cls, value)
    if cls is float:
        return (cls, value.hex())
    if cls is complex:
        return (cls, value.real.hex(), value.imag.hex())
    if isinstance(value, tuple):
        return (cls, *map(static_key, value))
    if cls is frozenset:
        return (cls, frozenset(map(static_key, value)))
    if cls is slice:
        return (cls, static_key(value.start), static_key(value.stop), static_key(value.step))
    try:
        hash(value)
    except TypeError:
        raise UnhashableStatic(value) from None
    fields = getattr(cls, "__dataclass_fields__", None)
    if fields is not None and not isinstance(value, type):  # its == takes 1 for True
        kinds = [type(getattr(value, name, None)) for name in fields if fields[name].compare]
        return (cls, value, *kinds)
    return (cls, value)


def static_value(key: tuple[Any, ...]) -> Any:
    """Gives back the value of a key made by :func:`static_key`."""
    cls = key[0]
    if cls is Held:
        return key[1].make()
    if cls is float:
        return float.fromhex(key[1])
    if cls is complex:
        return complex(float.fromhex(key[1]), float.fromhex(key[2]))
    if issubclass(cls, tuple):
        values = map(static_value, key[1:])
        return tuple(values) if cls is tuple else cls(*values)
    if cls is frozenset:
        return frozenset(map(static_value, key[1]))
    if cls is slice:
        return slice(*map(static_value, key[1:]))
    return key[1]


def object_key(value: Any) -> tuple[Any, ...]:
    """Like :func:`static_key`, also of a value that cannot be hashed: that is keyed by content.

    Two of these are equal if they are of one type and contain the same, or if the type's own
    ``==`` says so and they do not differ in a type alone (``1``, ``True``).

    Args:
      value: any object that Python can copy.

    Returns:
      A tuple from which :func:`static_value` makes an object equal to what the value is now.

    Raises:
      UnhashableStatic: if the value can neither be hashed nor taken apart.

    Example:
      >>> from types import SimpleNamespace
      >>> from moduli._base.static_keys import object_key, static_value
      >>> config = SimpleNamespace(width=3, names=["a"])
      >>> key = object_key(config)
      >>> config.names.append("b")
      >>> key == object_key(config), static_value(key)
      (False, namespace(width=3, names=['a']))
    """
    return _object_key(value, ())


def is_held(key: tuple[Any, ...]) -> bool:
    """Returns whether a key of :func:`object_key` is of something that may change."""
    cls = key[0]
    if cls is Held:
        return True
    return (issubclass(cls, tuple) or cls is slice) and any(map(is_held, key[1:]))


def has_key(value: Any, key: tuple[Any, ...]) -> bool:
    """Returns whether a value still has the key that :func:`object_key` gave it."""
    try:
        return object_key(value) == key
    except UnhashableStatic:
        return False


def metadata_key(metadata: Mapping[str, Any]) -> Hashable:
    """Returns a hashable key of a Variable's metadata: its names, and the key of each entry."""
    return (dict, tuple([(name, object_key(item)) for name, item in metadata.items()]))


class _Cycle(Exception):
    """An object contains itself."""


class _Same:
    """An object as a key, equal to itself alone."""

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


class Held:
    """What an object that cannot be hashed contained when its key was made.

    Args:
      cls: its class.
      parts: keys of what it contained: elements, or what Python's copy protocol says of it.
    """

    __slots__ = ("_hash", "cls", "parts")

    def __init__(self, cls: type, parts: tuple[Any, ...]):
        self.cls, self.parts = cls, parts
        own = isinstance(getattr(cls, "__eq__", None), types.FunctionType)
        self._hash = hash(cls) if own else hash((cls, parts))  # its own == may say more is equal

    def make(self) -> Any:
        """Makes an object equal to what was there."""
        if self.cls in _ELEMENTS:
            return self.cls(map(static_value, self.parts[0]))
        if self.cls is dict:
            return {static_value(name): static_value(item) for name, item in self.parts}
        if self.parts[0] is pickle:
            return pickle.loads(self.parts[1])
        return _rebuild(*map(static_value, self.parts))

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Held) or self.cls is not other.cls or self._hash != other._hash:
            return False
        try:
            if self.parts == other.parts:
                return True
            if not isinstance(getattr(self.cls, "__eq__", None), types.FunctionType):
                return False
            return (self.make() == other.make()) is True and not _differ_in_type(self, other)
        except Exception:  # of the class's own ==
            return False

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[Any, ...]:
        return _held_again, (self.make(),)  # keys themselves hold what pickle cannot name

    def __repr__(self) -> str:
        return f"Held({self.make()!r})"


_ELEMENTS = frozenset((list, set, bytearray))


def _held_again(value: Any) -> Held:
    return object_key(value)[1]


def _differ_in_type(one: Held, other: Held) -> bool:
    """Returns whether an attribute of two objects differs, though Python calls it equal."""
    if pickle in (one.parts[0], other.parts[0]):
        return False
    for mine, others in zip(map(_entries, one.parts), map(_entries, other.parts), strict=True):
        for name in mine.keys() & others.keys():
            a, b = mine[name], others[name]
            if a != b and static_value(a) == static_value(b):
                return True
    return False


def _entries(key: tuple[Any, ...]) -> dict[Any, Any]:
    is_dict = key[0] is Held and key[1].cls is dict
    return dict(key[1].parts) if is_dict else {None: key}


def _object_key(value: Any, inside: tuple[int, ...]) -> tuple[Any, ...]:
    cls = value.__class__
    try:
        return static_key(value)
    except UnhashableStatic:
        if id(value) in inside:
            raise _Cycle from None
    inside = (*inside, id(value))
    if isinstance(value, Tracer):
        raise UnhashableStatic(value)
    if isinstance(value, jax.Array):
        return (cls, _Same(value))
    if isinstance(value, tuple):
        return (cls, *[_object_key(item, inside) for item in value])
    if isinstance(value, slice):
        ends = (value.start, value.stop, value.step)
        return (cls, *[_object_key(item, inside) for item in ends])
    try:
        return (Held, Held(cls, _parts(value, inside)))
    except _Cycle:
        if len(inside) > 1:
            raise
        return (Held, Held(cls, (pickle, _pickled(value))))


def _parts(value: Any, inside: tuple[int, ...]) -> tuple[Any, ...]:
    cls = value.__class__
    if cls is list or cls is bytearray:
        return (tuple([_object_key(item, inside) for item in value]),)
    if cls is set:
        return (frozenset(map(static_key, value)),)
    if cls is dict:
        return tuple(
            [(_object_key(k, inside), _object_key(item, inside)) for k, item in value.items()]
        )
    try:
        reduced = value.__reduce_ex__(4)
    except Exception:
        raise UnhashableStatic(value) from None
    if not isinstance(reduced, tuple):
        raise UnhashableStatic(value)
    function, arguments, *rest = reduced
    state, elements, pairs, setter = [*rest, None, None, None, None][:4]
    elements = None if elements is None else list(elements)
    pairs = None if pairs is None else list(pairs)
    parts = (function, arguments, state, elements, pairs, setter)
    return tuple([_object_key(part, inside) for part in parts])


def _pickled(value: Any) -> bytes:
    try:
        return pickle.dumps(value)
    except Exception:
        raise UnhashableStatic(value) from None


def _rebuild(
    function: Any, arguments: Any, state: Any, elements: Any, pairs: Any, setter: Any
) -> Any:
    """Makes an object as the copy module does from what ``__reduce_ex__`` says."""
    new = function(*arguments)
    if setter is not None:
        setter(new, state)
    elif hasattr(new, "__setstate__") and state is not None:
        new.__setstate__(state)
    elif state is not None:
        attributes, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
        if attributes:
            new.__dict__.update(attributes)
        for name, item in (slots or {}).items():
            object.__setattr__(new, name, item)
    for item in elements or ():
        new.append(item)
    for name, item in pairs or ():
        new[name] = item
    return new
