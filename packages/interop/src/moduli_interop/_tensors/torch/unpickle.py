"""Runs a pickle whose only functions are ours.

Python's own Unpickler calls whatever a pickle names. This one knows a table; every other global
becomes a :class:`Record`, which has its name and what the pickle gave to it, and does nothing.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["PickleError", "Record", "unpickle"]

MAX_STEPS = 50_000_000
MAX_OBJECTS = 2_000_000
MAX_STACK = 1_000_000

_SCALARS = (str, int, float, bool, bytes, type(None))


class PickleError(ValueError):
    """A pickle is damaged, or asks for more than is given."""


class Record:
    """An object of a class that is not known here: its name, and what the pickle said of it.

    Attributes:
      name: the name of the class or function, with its module.
      arguments: what it was called with.
      state: what its attributes were.
      items: its items, if it is a mapping.
      elements: its elements, if it is a sequence or a set.
    """

    __slots__ = ("arguments", "elements", "items", "name", "state")

    def __init__(self, name: str, arguments: Any = ()):
        self.name, self.arguments = name, arguments
        self.state: Any = None
        self.items: dict[Any, Any] = {}
        self.elements: list[Any] = []

    def __repr__(self) -> str:
        return f"<{self.name}>"


class _Global:
    """What a name of the pickle stands for: one of our functions, or nothing."""

    __slots__ = ("function", "name")

    def __init__(self, name: str, function: Callable[..., Any] | None):
        self.name, self.function = name, function


_MARK = object()
_DAMAGE = (
    *(ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError),
    *(RecursionError, struct.error),
)


def unpickle(
    file: Any,
    table: Mapping[str, Any],
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """Reads one pickle from where a file stands.

    Args:
      file: the file; it stands behind the pickle afterwards.
      table: by ``"module name"`` the functions that stand for those of the pickle, and values that
        are no functions.
      persistent: gives what a persistent id stands for.

    Returns:
      What the pickle describes; objects of unknown classes are a :class:`Record`.

    Raises:
      PickleError: if it is damaged, or has too many steps.
    """
    machine = _Machine(table, persistent)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if count > MAX_STEPS or len(machine.stack) > MAX_STACK:
                raise PickleError("the pickle is too long")
            if opcode.name == "STOP":
                return machine.plain(machine.pop())
            machine.step(opcode.name, argument)
    except PickleError:
        raise
    except _DAMAGE as error:
        raise PickleError(f"the pickle is damaged: {str(error)[:200]}") from None
    raise PickleError("the pickle has no end")


class _Machine:
    """The pickle machine: a stack, a memo, and a step for each opcode."""

    def __init__(self, table: Mapping[str, Any], persistent: Callable[[Any], Any] | None):
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.made = 0
        self._table, self._persistent = table, persistent

    def step(self, name: str, argument: Any) -> None:
        """Does what one opcode says."""
        method = getattr(self, f"_{name.lower()}", None)
        if method is not None:
            if name in _MAKING:
                self.made += 1
                if self.made > MAX_OBJECTS:
                    raise PickleError(f"the pickle makes more than {MAX_OBJECTS} objects")
            method(argument)
        elif name in _PUSHED:
            self.stack.append(argument)
        elif name not in ("PROTO", "FRAME"):
            raise PickleError(f"the opcode {name} has no place in such a file")

    def pop(self) -> Any:
        """Takes the last value from the stack."""
        value = self.stack.pop()
        if value is _MARK:
            raise PickleError("the pickle is damaged: a mark stands in place of a value")
        return value

    def plain(self, value: Any) -> Any:
        """Returns a value as it is kept: a bare name becomes a Record."""
        return Record(value.name) if isinstance(value, _Global) else value

    def _take(self) -> list[Any]:
        """Takes what stands above the last mark."""
        for at in range(len(self.stack) - 1, -1, -1):
            if self.stack[at] is _MARK:
                break
        else:
            raise PickleError("the pickle is damaged: a mark is missing")
        taken = [self.plain(value) for value in self.stack[at + 1 :]]
        del self.stack[at:]
        return taken

    def _last(self, kind: type | tuple[type, ...]) -> Any:
        value = self.stack[-1]
        if not isinstance(value, kind):
            raise PickleError("the pickle is damaged: a container is missing")
        return value

    def _key(self, key: Any) -> Any:
        """Only simple keys are hashed: those of a hostile pickle could be nested without end."""
        return key if isinstance(key, _SCALARS) else Record("key", key)

    # values

    def _none(self, _: Any) -> None:
        self.stack.append(None)

    def _newtrue(self, _: Any) -> None:
        self.stack.append(True)

    def _newfalse(self, _: Any) -> None:
        self.stack.append(False)

    def _string(self, text: Any) -> None:
        self.stack.append(_text(text))

    _binstring = _short_binstring = _string

    def _mark(self, _: Any) -> None:
        self.stack.append(_MARK)

    def _pop(self, _: Any) -> None:
        self.stack.pop()

    def _pop_mark(self, _: Any) -> None:
        self._take()

    def _dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    # containers

    def _empty_dict(self, _: Any) -> None:
        self.stack.append({})

    def _empty_list(self, _: Any) -> None:
        self.stack.append([])

    def _empty_tuple(self, _: Any) -> None:
        self.stack.append(())

    def _empty_set(self, _: Any) -> None:
        self.stack.append(Record("builtins.set"))

    def _frozenset(self, _: Any) -> None:
        made = Record("builtins.frozenset")
        made.elements.extend(self._take())
        self.stack.append(made)

    def _dict(self, _: Any) -> None:
        made: dict[Any, Any] = {}
        self._fill(made, self._take())
        self.stack.append(made)

    def _list(self, _: Any) -> None:
        self.stack.append(self._take())

    def _tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._take()))

    def _tuple1(self, _: Any) -> None:
        self._several(1)

    def _tuple2(self, _: Any) -> None:
        self._several(2)

    def _tuple3(self, _: Any) -> None:
        self._several(3)

    def _several(self, count: int) -> None:
        parts = [self.plain(self.pop()) for _ in range(count)]
        self.stack.append(tuple(reversed(parts)))

    def _append(self, _: Any) -> None:
        value = self.plain(self.pop())
        self._extend([value])

    def _appends(self, _: Any) -> None:
        self._extend(self._take())

    def _additems(self, _: Any) -> None:
        self._extend(self._take())

    def _extend(self, values: list[Any]) -> None:
        target = self._last((list, Record))
        (target if isinstance(target, list) else target.elements).extend(values)

    def _setitem(self, _: Any) -> None:
        value, key = self.plain(self.pop()), self.plain(self.pop())
        self._fill(self._last((dict, Record)), [key, value])

    def _setitems(self, _: Any) -> None:
        pairs = self._take()
        self._fill(self._last((dict, Record)), pairs)

    def _fill(self, target: Any, pairs: list[Any]) -> None:
        if len(pairs) % 2:
            raise PickleError("the pickle is damaged: a key has no value")
        items = target if isinstance(target, dict) else target.items
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            items[self._key(key)] = value

    # the memo

    def _put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    _binput = _long_binput = _put

    def _memoize(self, _: Any) -> None:
        self._put(len(self.memo))

    def _get(self, index: int) -> None:
        if index not in self.memo:
            raise PickleError("the pickle is damaged: it refers to what it has not said")
        self.stack.append(self.memo[index])

    _binget = _long_binget = _get

    # names and calls

    def _find(self, module: Any, name: Any) -> None:
        full = f"{module} {name}"
        if full in self._table and not callable(self._table[full]):
            self.stack.append(self._table[full])
        else:
            dotted = f"{module}.{name}"[:500]
            self.stack.append(_Global(dotted, self._table.get(full)))

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._find(module, name)

    def _stack_global(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise PickleError("the pickle is damaged: a name is no text")
        self._find(module, name)

    def _call(self, function: Any, arguments: Any) -> None:
        if not isinstance(arguments, (tuple, list)):
            raise PickleError("the pickle is damaged: arguments are no tuple")
        if isinstance(function, _Global) and function.function is not None:
            self.stack.append(function.function(*arguments))
        else:
            name = function.name if isinstance(function, (_Global, Record)) else "unknown"
            self.stack.append(Record(name, tuple(arguments)))

    def _reduce(self, _: Any) -> None:
        arguments, function = self.pop(), self.pop()
        self._call(function, arguments)

    _newobj = _reduce

    def _newobj_ex(self, _: Any) -> None:
        self.pop()  # keyword arguments
        self._reduce(None)

    def _inst(self, argument: str) -> None:
        arguments = self._take()
        self._global(argument)
        self._call(self.pop(), tuple(arguments))

    def _obj(self, _: Any) -> None:
        taken = self._take()
        self._call(taken[0], tuple(taken[1:]))

    def _build(self, _: Any) -> None:
        state = self.plain(self.pop())
        target = self.plain(self.pop())
        if isinstance(target, Record):
            target.state = state
        self.stack.append(target)

    def _ext1(self, code: Any) -> None:
        self.stack.append(Record(f"extension {code}"))

    _ext2 = _ext4 = _ext1

    def _persid(self, argument: Any) -> None:
        self.stack.append(self._load(argument))

    def _binpersid(self, _: Any) -> None:
        self.stack.append(self._load(self.pop()))

    def _load(self, identity: Any) -> Any:
        if self._persistent is None:
            raise PickleError("the pickle refers to something outside of it")
        return self._persistent(identity)


_MAKING = frozenset(
    (
        *("EMPTY_DICT", "EMPTY_LIST", "EMPTY_SET", "DICT", "LIST", "FROZENSET", "TUPLE"),
        *("TUPLE1", "TUPLE2", "TUPLE3", "REDUCE", "NEWOBJ", "NEWOBJ_EX", "INST", "OBJ"),
        *("GLOBAL", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID"),
    )
)
_PUSHED = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    )
)


def _text(value: Any) -> Any:
    """Texts of Python 2 are bytes; pickletools reads them as Latin-1."""
    if isinstance(value, str):
        try:
            return value.encode("latin-1").decode("utf-8")
        except UnicodeError:
            return value
    return value
