"""Variable: a box with a value and metadata, the only mutable leaf of a graph.

A layer keeps an array in a Variable and writes ``variable.value = new``; functional JAX then sees
that write as an output. The *kind* of a Variable (its class) is how filters, optimizers and
checkpoints tell parameters from statistics, so a new kind is a new subclass. Writing the value is
cheap and never changes the structure of the graph; writing metadata does.
"""

from __future__ import annotations

import builtins
import operator
from collections.abc import Callable, Iterator, Mapping
from types import EllipsisType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, overload

import jax
import jax.numpy as jnp
import numpy as np

from moduli import _plugins, errors
from moduli._base.closed_over import ACTIVE, note_read
from moduli._base.compat import Tracer, is_key_array, trace_state
from moduli._base.current_transform import describe_running
from moduli._base.epoch import EPOCH
from moduli._base.locate import describe_owner, locate
from moduli._base.lost_writes import Borrowed, mark_seen
from moduli._base.source_lines import Site, describe_site, find_site
from moduli._base.type_variables import A
from moduli._variable.jax_pytree import register
from moduli._variable.laid_out import lay_out
from moduli._variable.metadata import AXIS_NAMES, EMPTY, VariableMetadata, with_axis_names
from moduli._variable.operators import add_operators
from moduli._variable.packed_keys import pack_keys, unpack_keys

if TYPE_CHECKING:
    from typing import Self

    from moduli._variable.operator_types import Operators
else:
    Operators = Generic

__all__ = ["Variable"]

_MISSING: Any = type("Missing", (), {"__repr__": lambda self: "<missing>"})()
_SLOTS = ("_value", "_metadata", "_trace", "_made")


class Variable(Operators[A]):
    """A mutable box for a value (an array or a pytree of arrays) with metadata.

    Arithmetic, indexing and attributes such as ``shape`` act on the value. ``v.value``, ``v[...]``
    and ``v.get_value()`` read it; ``v.value = x``, ``v[...] = x`` and ``v.set_value(x)`` write it.

    Args:
      value: an array, a Python scalar, or a pytree of these; or a :class:`VariableMetadata`.
      **metadata: hashable facts about the value, such as ``out_sharding=("in", "out")`` or a
        ``tag``. Three names are hooks, each one callable ``(variable, value) -> value`` or a
        sequence of them: ``on_create_value``, ``on_get_value``, ``on_set_value``. A subclass may
        define methods with these names instead.

    Raises:
      VariableError: if ``value`` is itself a Variable.

    Example:
      >>> import moduli as nnx, jax.numpy as jnp
      >>> count = nnx.Variable(jnp.zeros(3), tag="count")
      >>> count.value = count + 1
      >>> count[0] = 5.0
      >>> count.value.tolist(), count.shape, count.tag
      ([5.0, 1.0, 1.0], (3,), 'count')
    """

    # Nothing ever stands in __dict__; with its slot all kinds are laid out alike, so that a
    # Variable can be given another kind.
    __slots__ = (*_SLOTS, "__dict__", "__weakref__")
    __array_priority__ = 100  # a jax.Array's: NumPy leaves `array + variable` to `__radd__`
    _value: A
    _metadata: Mapping[str, Any]
    _own_get_value: ClassVar[bool] = False  # of the class, so that reading a value looks up one
    _own_property: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._own_get_value = cls.get_value is not Variable.get_value
        cls._own_property = cls.value is not Variable.value
        register(cls)

    def __init__(
        self,
        value: A | VariableMetadata[A],
        *,
        hijax: bool | None = None,
        ref: bool | None = None,
        **metadata: Any,
    ):
        if isinstance(value, VariableMetadata):
            metadata.update(value.metadata)
            value = value.raw_value
            for switch in ("hijax", "ref"):
                metadata.pop(switch, None)
        if isinstance(value, Variable):
            raise errors.VariableError(
                f"{type(self).__name__}(...) got a {type(value).__name__} as its value; pass "
                "the value itself (`variable.value`), or copy the box with `variable.copy()`"
            )
        write = object.__setattr__
        write(self, "_trace", trace_state())
        write(self, "_made", find_site())
        write(self, "_metadata", with_axis_names(metadata) if metadata else EMPTY)
        write(self, "_value", value)
        name = "on_create_value"  # as _hook does it, without the call
        create = metadata[name] if name in metadata else getattr(type(self), name, None)
        if create is not None:
            write(self, "_value", _run_hooks(create, self, value))
        if metadata and AXIS_NAMES in self._metadata:
            write(self, "_value", lay_out(self._value, self._metadata, type(self).__name__))

    @classmethod
    def _make(
        cls, value: Any, metadata: Mapping[str, Any], trace: Any, made: Site | None = None
    ) -> Self:
        """Builds a Variable without hooks and checks; for graph code that rebuilds objects."""
        self = object.__new__(cls)
        write = object.__setattr__
        write(self, "_value", value)
        write(self, "_metadata", metadata)
        write(self, "_trace", trace)
        write(self, "_made", made)
        return self

    # -- the value ---------------------------------------------------------------------------

    @property
    def value(self) -> A:
        """The value as the kind shows it: what :meth:`get_value` returns.

        Whatever else shows the value (operators, indexing, attributes, JAX and NumPy) reads it
        here, so a kind overrides ``get_value`` alone.
        """
        if ACTIVE:
            note_read(self)
        if self._own_get_value:
            return self.get_value()
        metadata, name = self._metadata, "on_get_value"  # as _hook does it, without the call
        hook = metadata[name] if name in metadata else getattr(type(self), name, None)
        return self._value if hook is None else _run_hooks(hook, self, self._value)

    @value.setter
    def value(self, value: A) -> None:
        self.set_value(value)

    @overload
    def get_value(self) -> A: ...
    @overload
    def get_value(self, *, index: Any) -> Any: ...
    def get_value(self, *, index: Any = _MISSING) -> Any:
        """Returns the value, or ``value[index]`` when an index is given.

        A kind may override it; all that shows the value then shows what it returns.

        Args:
          index: any array index; ``...`` is the whole value, of whatever type.

        Returns:
          The stored value after the ``on_get_value`` hooks, or a part of it.

        Example:
          >>> import moduli as nnx, jax.numpy as jnp
          >>> class Positive(nnx.Param):
          ...     def get_value(self, **index):
          ...         return jnp.exp(super().get_value(**index))
          >>> scale = Positive(jnp.zeros(2))
          >>> scale.value.tolist(), (3 * scale).tolist(), float(scale[0]), scale.raw_value.tolist()
          ([1.0, 1.0], [3.0, 3.0], 1.0, [0.0, 0.0])
        """
        value: Any
        if self._own_property and not self._own_get_value:
            value = self.value
        else:
            if ACTIVE:
                note_read(self)
            hook = self._hook("on_get_value")
            value = self._value if hook is None else _run_hooks(hook, self, self._value)
        if index is _MISSING or index is Ellipsis:
            return value
        return value[_plain_index(index)]

    def set_value(self, value: Any, *, index: Any = _MISSING) -> None:
        """Writes the value, or a part of it when an index is given.

        Args:
          value: the new value. With ``index``, whatever ``array.at[index].set`` accepts; the
            array's shape and dtype are then kept.
          index: any array index; ``...`` writes every element. ``on_set_value`` hooks then get
            what is written, not the elements that stay.

        Raises:
          VariableError: if ``value`` is a Variable.
          TraceError: if the Variable belongs to another JAX trace than the current one.
        """
        if isinstance(value, Variable):
            if index is _MISSING:
                raise errors.VariableError(
                    f"cannot write a {type(value).__name__} into a {type(self).__name__}: write "
                    "`variable.value = other.value`, or `variable.copy_from(other)`"
                )
            value = value.value
        self._check_trace()
        hook, stored = self._hook("on_set_value"), self._value
        if hook is not None:
            if index is Ellipsis and isinstance(stored, (jax.Array, np.ndarray)):
                value = jnp.broadcast_to(jnp.asarray(value), stored.shape)  # hooks see all of it
            value = _run_hooks(hook, self, value)
        if index is not _MISSING:
            value = _set_at(self._value, _plain_index(index), value)
        if _plugins.watches_writes():
            _plugins.value_written(self, self._value, value)
        object.__setattr__(self, "_value", value)

    def get_raw_value(self) -> A:
        """Returns the stored value; no hook runs."""
        if ACTIVE:
            note_read(self)
        return self._value

    def set_raw_value(self, value: A, *, _unsafe_bypass_check: bool = False) -> None:
        """Stores a value; no hook runs."""
        if not _unsafe_bypass_check:
            self._check_trace()
        object.__setattr__(self, "_value", value)

    @property
    def raw_value(self) -> A:
        """The stored value; no hook runs."""
        if ACTIVE:
            note_read(self)
        return self._value

    def _check_trace(self) -> None:
        if self._trace != trace_state():
            borrowed = self._trace
            if borrowed.__class__ is Borrowed and borrowed.trace == trace_state():
                borrowed.site = (
                    find_site()
                )  # legal, but maybe dropped: see moduli._base.lost_writes
                return
            place, site = describe_owner(self), describe_site(self)
            root, path = locate(self)
            merged = path and root._moduli.trace == trace_state()  # an old Variable in a new module
            raise errors.TraceError(
                f"cannot write {place}{f' ({site})' if site else ''} here: it was made outside of "
                f"the trace that is running, that of {describe_running()}, so the write would "
                "leak a tracer or be lost. Pass the module that holds it as an argument of the "
                "transformed function, use moduli's transform (`moduli.jit`, `moduli.grad`) "
                "instead of JAX's own, or return the new value and write it outside."
                + (
                    " If the module was merged in this function, `moduli.merge(graphdef, state, "
                    "copy=True)` gives it Variables of its own."
                    if merged
                    else ""
                )
            )

    # -- copies ------------------------------------------------------------------------------

    @property
    def type(self) -> type[Variable[Any]]:
        """The kind of the Variable: its class."""
        return type(self)

    def copy(self, value: Any = _MISSING, **metadata: Any) -> Self:
        """Returns a new Variable of the same kind.

        Args:
          value: the new value; the same one by default.
          **metadata: entries that replace or extend the metadata.

        Returns:
          A Variable which shares nothing mutable with this one.
        """
        merged = {**self._metadata, **metadata} if metadata else self._metadata
        new = self._value if value is _MISSING else value
        if isinstance(new, Variable):
            new = new._value
        mark_seen(self)
        return type(self)._make(new, merged, trace_state(), self._made)

    replace = copy

    def to_state(self, value: Any = _MISSING, **updates: Any) -> Self:
        """Returns a copy, as :meth:`copy` does."""
        return self.copy(value, **updates)

    def update_from_state(self, variable_state: Variable[A]) -> None:
        """Takes over the value and the metadata of another Variable, of whatever kind."""
        self._check_trace()
        if _plugins.watches_writes():
            _plugins.value_written(self, self._value, variable_state._value)
        object.__setattr__(self, "_value", variable_state._value)
        if dict(variable_state._metadata) != dict(self._metadata):
            self._set_all_metadata(variable_state._metadata)

    @classmethod
    def from_metadata(cls, value: A, attributes: Mapping[str, Any]) -> Self:
        """Returns a Variable of a stored value and metadata; no hook runs."""
        metadata = {k: v for k, v in attributes.items() if k not in cls.required_metadata}
        return cls._make(value, metadata or EMPTY, trace_state(), find_site())

    def create_value(self, value: A) -> A:
        """Returns the value as it is: what ``on_create_value`` makes of it is stored already."""
        return value

    @property
    def var_type(self) -> builtins.type[Variable[Any]]:
        """The kind of the Variable: its class."""
        return self.__class__

    @property
    def hijax(self) -> bool:
        """False: flax's hijax types are not used (the argument is accepted)."""
        return False

    @property
    def ref(self) -> bool:
        """False: the value does not stand in a ``jax.Ref`` (the argument is accepted)."""
        return False

    # -- axes --------------------------------------------------------------------------------

    def add_axis(self, axis_index: int, axis_name: str | None) -> None:
        """Runs the hooks ``on_add_axis``: the value has got an axis.

        Args:
          axis_index: where it is.
          axis_name: its name, or None.
        """
        self._run_axis_hooks("on_add_axis", axis_index, axis_name)

    def remove_axis(self, axis_index: int, axis_name: str | None) -> None:
        """Runs the hooks ``on_remove_axis``: the value has lost an axis; see :meth:`add_axis`."""
        self._run_axis_hooks("on_remove_axis", axis_index, axis_name)

    def _run_axis_hooks(self, name: str, axis_index: int, axis_name: str | None) -> None:
        hooks = self._hook(name) or ()
        for hook in hooks if isinstance(hooks, (list, tuple)) else (hooks,):
            hook(self, axis_index, axis_name)

    def copy_from(self, other: Variable[A]) -> None:
        """Takes over the value and the metadata of another Variable of the same kind."""
        if type(other) is not type(self):
            raise errors.VariableError(
                f"copy_from: a {type(self).__name__} cannot take over a {type(other).__name__}; "
                "write `variable.value = other.value` to take the value alone"
            )
        self._check_trace()
        if _plugins.watches_writes():
            _plugins.value_written(self, self._value, other._value)
        object.__setattr__(self, "_value", other._value)
        self._set_all_metadata(other._metadata)

    @property
    def sharding_names(self) -> Any:
        """The names of the value's axes, which are its metadata ``out_sharding``, or None."""
        return self._metadata.get(AXIS_NAMES)

    # -- metadata ----------------------------------------------------------------------------

    required_metadata: ClassVar[frozenset[str]] = frozenset({"hijax", "ref"})

    def get_metadata(
        self,
        name: str | None = None,
        default: Any = _MISSING,
        *,
        exclude_required: bool | None = None,
    ) -> Any:
        """Returns one metadata entry, or a dict of all of them when no name is given.

        Args:
          name: the entry's name.
          default: returned if there is no such entry; without it that is an error.
          exclude_required: accepted: flax's switches, which it leaves out, are no metadata here.
        """
        if name is None:
            return dict(self._metadata)
        if name in self._metadata:
            return self._metadata[name]
        if default is not _MISSING:
            return default
        raise errors.PathError(
            f"{type(self).__name__} has no metadata {name!r}; it has "
            f"{sorted(self._metadata) or 'none'}"
        )

    def has_metadata(self, name: str) -> bool:
        """Returns whether the metadata has an entry of this name."""
        return name in self._metadata

    def set_metadata(self, *args: Any, **metadata: Any) -> None:
        """Writes metadata: ``v.set_metadata(name=value)`` or ``v.set_metadata("name", value)``.

        A single mapping replaces all metadata: ``v.set_metadata({"tag": "a"})``.
        """
        if len(args) == 2 and isinstance(args[0], str):
            metadata = {args[0]: args[1], **metadata}
        elif len(args) == 1 and isinstance(args[0], Mapping):
            self._check_trace()
            self._set_all_metadata(with_axis_names({**args[0], **metadata}))
            return
        elif args:
            raise errors.VariableError(
                "set_metadata takes a name and a value, one mapping, or keyword arguments; got "
                f"{len(args)} positional arguments"
            )
        self._check_trace()
        self._set_all_metadata({**self._metadata, **with_axis_names(metadata)})

    def del_metadata(self, name: str) -> None:
        """Removes one metadata entry."""
        self.get_metadata(name)
        self._check_trace()
        self._set_all_metadata({k: v for k, v in self._metadata.items() if k != name})

    def _set_all_metadata(self, metadata: Mapping[str, Any]) -> None:
        if metadata is not self._metadata:
            object.__setattr__(self, "_metadata", metadata)
            EPOCH[1] += 1
            EPOCH[0] += 1

    def _hook(self, name: str) -> Any:
        metadata = self._metadata
        if metadata is not EMPTY and name in metadata:
            return metadata[name]
        return getattr(type(self), name, None)

    # -- attributes --------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        if name in _SLOTS or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(name)
        if name == "value":  # the property raised an AttributeError of its own: raise that again
            return type(self).value.__get__(self)
        metadata = self._metadata
        if name in metadata:
            return metadata[name]
        try:
            return getattr(self.value, name)
        except AttributeError:
            raise errors.ModuliAttributeError(
                f"{type(self).__name__} has no attribute or metadata {name!r}, and neither has "
                f"its value of type {type(self._value).__name__}"
            ) from None

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "value" and not self._own_property:
            self.set_value(value)
        elif name in _SLOTS or name == "value":
            object.__setattr__(self, name, value)
        elif name == "__class__":
            self._change_kind(value)
        else:
            raise errors.ModuliAttributeError(
                f"cannot set {name!r} on a {type(self).__name__}: write "
                f"`variable.set_metadata({name}=...)` for metadata, or `variable.value = ...` for "
                "the value"
            )

    def _change_kind(self, kind: Any) -> None:
        if not (isinstance(kind, type) and issubclass(kind, Variable)):
            raise errors.VariableError(
                f"the kind of a {type(self).__name__} cannot become {kind!r}; kinds are subclasses "
                "of moduli.Variable"
            )
        self._check_trace()
        object.__setattr__(self, "__class__", kind)
        self._set_all_metadata(dict(self._metadata))  # another object, which is how graphs see it

    # -- Python protocols --------------------------------------------------------------------

    @overload
    def __getitem__(self: Variable[jax.Array], index: Any) -> jax.Array: ...
    @overload
    def __getitem__(self, index: EllipsisType) -> A: ...
    @overload
    def __getitem__(self, index: Any) -> Any: ...
    def __getitem__(self, index: Any) -> Any:
        return self.get_value(index=index)

    def __setitem__(self, index: Any, value: Any) -> None:
        self.set_value(value, index=index)

    def __jax_array__(self) -> jax.Array:
        value: Any = self.value
        if isinstance(value, jax.Array):
            return value
        try:
            return jnp.asarray(value)
        except (TypeError, ValueError) as error:
            raise self._no_array(value, "a JAX array") from error

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        value: Any = self.value
        if isinstance(value, jax.Array) and not is_key_array(value):
            return np.asarray(value, dtype=dtype, copy=copy)
        try:
            array = np.asarray(value)
        except (TypeError, ValueError) as error:
            raise self._no_array(value, "a NumPy array") from error
        if array.dtype == object and not isinstance(value, np.ndarray):
            raise self._no_array(value, "a NumPy array")
        return np.asarray(value, dtype=dtype, copy=copy)

    def __array_namespace__(self, **options: Any) -> Any:
        return self._protocol("__array_namespace__", "an array namespace")(**options)

    def __dlpack__(self, **options: Any) -> Any:
        return self._protocol("__dlpack__", "DLPack")(**options)

    def __dlpack_device__(self) -> tuple[Any, int]:
        return self._protocol("__dlpack_device__", "DLPack")()

    def _protocol(self, name: str, what: str) -> Callable[..., Any]:
        """The method of the value behind a protocol of arrays."""
        value: Any = self.value
        method = None if is_key_array(value) else getattr(value, name, None)
        if method is None:
            raise self._no_array(value, what)
        return method

    def _no_array(self, value: Any, what: str) -> errors.VariableError:
        if is_key_array(value):
            hint = "take its numbers with `jax.random.key_data(variable.value)`"
        elif isinstance(value, jax.ShapeDtypeStruct):
            hint = "it has a shape and a dtype but no elements yet: give it a value first"
        elif isinstance(value, Tracer):
            hint = "it is traced here: do this outside of the transformed function"
        else:
            hint = "take an array out of `variable.value`, or map over it with `jax.tree.map`"
        kind = str(value.dtype) if is_key_array(value) else type(value).__name__
        return errors.VariableError(
            f"{describe_owner(self)} cannot be read as {what}: its value is a {kind}; {hint}"
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.value(*args, **kwargs)  # type: ignore[operator]

    def __len__(self) -> int:
        return len(self.value)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.value)  # type: ignore[call-overload]

    def __contains__(self, item: Any) -> bool:
        return item in self.value  # type: ignore[operator]

    def __bool__(self) -> bool:
        return bool(self.value)

    def __int__(self) -> int:
        return int(self.value)  # type: ignore[call-overload]

    def __float__(self) -> float:
        return float(self.value)  # type: ignore[arg-type]

    def __complex__(self) -> complex:
        return complex(self.value)  # type: ignore[arg-type]

    def __index__(self) -> int:
        return operator.index(self.value)  # type: ignore[arg-type]

    def __format__(self, spec: str) -> str:
        return format(self.value, spec) if spec else repr(self)

    def __hash__(self) -> int:
        return id(self) >> 4

    def __getstate__(self) -> tuple[Any, dict[str, Any]]:
        return pack_keys(self._value), dict(self._metadata)

    def __setstate__(self, state: tuple[Any, dict[str, Any]]) -> None:
        value, metadata = state
        object.__setattr__(self, "_value", unpack_keys(value))
        object.__setattr__(self, "_metadata", metadata or EMPTY)
        object.__setattr__(self, "_trace", trace_state())
        object.__setattr__(self, "_made", None)

    def __reduce__(self) -> tuple[Any, ...]:
        return (object.__new__, (type(self),), self.__getstate__())

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        from copy import deepcopy

        value = jax.tree.map(
            lambda leaf: leaf if isinstance(leaf, jax.Array) else deepcopy(leaf, memo), self._value
        )
        mark_seen(self)
        new = type(self)._make(value, self._metadata, trace_state(), self._made)
        memo[id(self)] = new
        return new

    def __repr__(self) -> str:
        from moduli._variable.one_line import variable_repr

        return variable_repr(self)


def _is_indexable(value: Any) -> bool:
    return isinstance(value, (jax.Array, np.ndarray))


def _value_of(other: Any) -> Any:
    return other.value if isinstance(other, Variable) else other


def _plain_index(index: Any) -> Any:
    """An index without Variables, which arrays do not take in every place."""
    if isinstance(index, tuple):
        return tuple([_value_of(item) for item in index])
    return _value_of(index)


def _is_like(value: Any, old: Any) -> bool:
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    return shape == old.shape and dtype == old.dtype


def _set_at(old: Any, index: Any, value: Any) -> Any:
    if index is Ellipsis and (not _is_indexable(old) or _is_like(value, old)):
        return value
    if isinstance(old, jax.Array):
        return old.at[index].set(value)
    if isinstance(old, np.ndarray) and isinstance(value, Tracer):
        return jnp.asarray(old).at[index].set(value)
    new = old.copy() if hasattr(old, "copy") else list(old)
    new[index] = value
    return new


def _run_hooks(hooks: Any, variable: Variable[Any], value: Any) -> Any:
    for hook in hooks if isinstance(hooks, (list, tuple)) else (hooks,):
        value = hook(variable, value)
    return value


add_operators(Variable, _value_of)

register(Variable)
