"""Modules in linen's style: fields, ``setup`` and ``compact``, called with ``init`` and ``apply``.

``flax.nnx.bridge.Module`` for users of flax. A module holds its fields alone. ``apply`` works on a
copy whose modules have a :class:`Scope`: the streams of the call, and the variables that were given
for attributes that are not there yet. The scope is an attribute, so that a transform in the model
carries it.
"""

from __future__ import annotations

import abc
import collections
import contextlib
import contextvars
import dataclasses
import enum
import functools
import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, dataclass_transform

import jax
import numpy as np

import moduli
from moduli.errors import StructureError
from moduli_interop._bridges.linen_variables import (
    collection_of,
    kind_of,
    nested,
    to_attributes,
    to_linen_var,
    to_nnx_var,
)
from moduli_interop._bridges.linen_wrappers import (
    ToNNX,
    initializing,
    linen_call,
    take_variables,
)

__all__ = [
    "MODULE_CONTEXT",
    "AttrPriority",
    "Module",
    "ModuleStackEntry",
    "Scope",
    "compact",
    "current_context",
    "current_module",
    "place_in_parent",
]

F = TypeVar("F", bound=Callable[..., Any])
Path = tuple[Any, ...]


# -- where a call is -----------------------------------------------------------------------------


@dataclasses.dataclass
class ModuleStackEntry:
    """One module whose ``setup`` or method runs.

    Attributes:
      module: the module.
      in_compact: whether a method of it runs that :func:`compact` wraps.
      in_setup: whether its ``setup`` runs.
      type_counter: how many submodules of each class have been named in it.
    """

    module: Module
    in_compact: bool
    in_setup: bool = False
    type_counter: collections.Counter[type] = dataclasses.field(default_factory=collections.Counter)

    def name_for(self, cls: type) -> str:
        """Returns the next name for a submodule of a class, ``Dense_0``."""
        self.type_counter[cls] += 1
        return f"{cls.__name__}_{self.type_counter[cls] - 1}"


_stack: contextvars.ContextVar[tuple[ModuleStackEntry, ...]] = contextvars.ContextVar(
    "modules", default=()
)


class _ModuleContext:
    """The modules whose methods run, as flax's code reads them."""

    @property
    def module_stack(self) -> list[ModuleStackEntry | None]:
        """The entries, outermost first, after a None for "no module"."""
        return [None, *_stack.get()]


MODULE_CONTEXT = _ModuleContext()


@contextlib.contextmanager
def _running(module: Module, *, in_compact: bool = False, in_setup: bool = False) -> Iterator[None]:
    token = _stack.set((*_stack.get(), ModuleStackEntry(module, in_compact, in_setup)))
    try:
        yield
    finally:
        _stack.reset(token)


def current_context() -> ModuleStackEntry | None:
    """Returns the entry of the :class:`Module` whose ``setup`` or method runs, or None."""
    entries = _stack.get()
    return entries[-1] if entries else None


def current_module() -> Module | None:
    """Returns the :class:`Module` whose ``setup`` or method runs, or None."""
    entry = current_context()
    return None if entry is None else entry.module


class AttrPriority(enum.IntEnum):
    """Which of its names a submodule with several has in the variables: the lowest number's."""

    HIGH = 0
    INIT_PARENT = 20
    DEFAULT = 50
    LOW = 100


class Scope(moduli.Pytree):
    """What a module has while ``apply`` runs.

    Args:
      rngs: the streams of the call.
      mutable: the collections that the call may write.
    """

    __module__ = "moduli_interop.bridge"

    def __init__(self, rngs: moduli.Rngs, mutable: Any) -> None:
        self.rngs = rngs
        self.mutable = moduli.static(mutable)
        self.pending: dict[str, Any] = {}  # variables of attributes that are not there yet
        self.is_initializing = False
        self.is_set_up = False

    def copy(self) -> Scope:
        """Makes the scope of a submodule: the same streams, no variables."""
        new = Scope(self.rngs, self.mutable)
        new.is_initializing = self.is_initializing
        return new


# -- modules -------------------------------------------------------------------------------------


class _Named(abc.ABCMeta):
    """The class of :class:`Module`: takes ``name`` and ``parent`` where a submodule is made."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        entry = current_context()
        if entry is None:
            return super().__call__(*args, **kwargs)
        given = kwargs.pop("parent", entry.module)
        if entry.in_compact and given is not None and given is not entry.module:
            raise StructureError(
                f"`parent` of {cls.__name__} can be None alone, which makes a module that is no "
                f"part of the {type(entry.module).__name__}; got a {type(given).__name__}"
            )
        name = kwargs.get("name")
        if "name" in kwargs:
            if not isinstance(name, str):
                raise StructureError(
                    f"`name` of {cls.__name__} is a string; got a {type(name).__name__}"
                )
            if "name" not in inspect.get_annotations(cls):
                del kwargs["name"]
        elif entry.in_compact:
            name = entry.name_for(cls)
        module = super().__call__(*args, **kwargs)
        if given is not None and name is not None:
            if entry.in_setup:
                raise StructureError(
                    f"in `setup` of {type(entry.module).__name__} a submodule has the name of its "
                    f"attribute; leave `name={name!r}` out"
                )
            place_in_parent(given, name, module)
        return module


@dataclass_transform(eq_default=False, field_specifiers=(dataclasses.field,))
class Module(moduli.Module, metaclass=_Named):
    """Base class of modules in linen's style, made of the parts of this library.

    A subclass is a dataclass. It makes its submodules in ``setup``, or where it uses them in a
    method under :func:`compact`; its values stand outside of it, in a dict by collection.

    Example:
      >>> import jax.numpy as jnp, moduli as nnx
      >>> class Dense(nnx.bridge.Module):
      ...     features: int
      ...
      ...     @nnx.bridge.compact
      ...     def __call__(self, x):
      ...         shape = (x.shape[-1], self.features)
      ...         return x @ self.param("kernel", nnx.initializers.ones_init(), shape)
      >>> class Net(nnx.bridge.Module):
      ...     @nnx.bridge.compact
      ...     def __call__(self, x):
      ...         return Dense(2)(Dense(4)(x))
      >>> variables = Net().init(0, jnp.ones((1, 3)))
      >>> sorted(variables["params"])
      ['Dense_0', 'Dense_1']
      >>> print(Net().apply(variables, jnp.ones((1, 3))))
      [[12. 12.]]
    """

    __module__ = "moduli_interop.bridge"

    scope: Any = None  # a Scope, while `apply` runs
    attr_priorities: Any = types.MappingProxyType({})

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**{"pytree": False, **kwargs})
        dataclasses.dataclass(repr=False, eq=False)(cls)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        scope = self.__dict__.get("scope")
        if scope is None or name in ("scope", "attr_priorities"):
            return
        held = self.__dict__[name]
        if name in scope.pending:
            given = scope.pending.pop(name)
            _bind(held, scope)
            _write(held, given, (name,))
        _bind(held, scope)
        _set_up(held)

    def __getattr__(self, name: str) -> Any:
        scope = self.__dict__.get("scope")
        if scope is not None and isinstance(scope.pending.get(name), moduli.Variable):
            variable = scope.pending.pop(name)
            setattr(self, name, variable)
            return variable
        raise AttributeError(
            f"{type(self).__name__} has no attribute {name!r}", name=name, obj=self
        )

    def set_attr_priority(self, name: str, value: AttrPriority) -> None:
        """Says which name counts in the variables, if a submodule stands under several.

        Args:
          name: the attribute's name.
          value: its priority; the lowest counts, then the first name.
        """
        self.attr_priorities = moduli.static({**self.attr_priorities, name: value})

    def is_initializing(self) -> bool:
        """Returns whether ``init`` runs, which makes the variables."""
        return self.scope is not None and self.scope.is_initializing

    def make_rng(self, name: str = "default") -> jax.Array:
        """Draws a key of a stream that the call was given."""
        return self._bound("make_rng").rngs[name]()

    def _bound(self, method: str) -> Scope:
        if self.scope is None:
            raise StructureError(
                f"`{method}` of {type(self).__name__} works inside of a call: in `setup`, or in a "
                "method that `init` or `apply` runs"
            )
        return self.scope

    def param(
        self,
        name: str,
        init_fn: Callable[..., Any],
        *init_args: Any,
        unbox: bool = True,
        **init_kwargs: Any,
    ) -> Any:
        """Returns the parameter of a name; makes it, if it was not given.

        Args:
          name: its name, also that of its attribute.
          init_fn: makes its value of a key.
          *init_args: what it gets after the key.
          unbox: accepted: a Variable holds the value and its metadata apart.
          **init_kwargs: likewise.

        Returns:
          The Param.

        Raises:
          StructureError: there is another value of the name, or one of another shape was given.
        """
        self._bound("param")

        def make(key: Any) -> Any:
            return init_fn(key, *init_args, **init_kwargs)

        return self._variable(
            "params",
            name,
            lambda: make(self.make_rng("params")),
            lambda: make(jax.random.key(0)),
        )

    def variable(
        self,
        col: str,
        name: str,
        init_fn: Callable[..., Any] | None = None,
        *init_args: Any,
        unbox: bool = True,
        **init_kwargs: Any,
    ) -> Any:
        """Returns the variable of a collection and a name; makes it, if it was not given.

        Args:
          col: the collection, ``"batch_stats"``.
          name: its name, also that of its attribute.
          init_fn: makes its value, where there is none.
          *init_args: its arguments.
          unbox: accepted, see :meth:`param`.
          **init_kwargs: its arguments.

        Returns:
          The Variable.
        """
        self._bound("variable")
        if init_fn is None:
            return self._variable(col, name, None, None)
        make = functools.partial(init_fn, *init_args, **init_kwargs)
        return self._variable(col, name, make, make)

    def _variable(
        self,
        col: str,
        name: str,
        make: Callable[[], Any] | None,
        make_abstract: Callable[[], Any] | None,
    ) -> Any:
        kind = kind_of(col)
        given = name in self._bound("variable").pending
        held = getattr(self, name, None)
        if held is None:
            if make is None:
                raise StructureError(
                    f"{type(self).__name__} was given no {name!r} in {col!r}, and `init_fn` is "
                    "None; pass a function that makes the value"
                )
            variable = to_nnx_var(col, make())
        elif isinstance(held, moduli.Variable):
            if col == "params" and not isinstance(held, kind):
                raise StructureError(
                    f"`{name}` of {type(self).__name__} is a {type(held).__name__} and no "
                    f"{kind.__name__}; give the two different names"
                )
            if given and make_abstract is not None:
                self._check_shape(name, held.get_raw_value(), make_abstract)
            return held
        else:
            if make_abstract is not None:
                self._check_shape(name, held, make_abstract)
            variable = kind(held)
        setattr(self, name, variable)
        return getattr(self, name)

    def _check_shape(self, name: str, value: Any, make: Callable[[], Any]) -> None:
        def arrays() -> Any:
            made = make()
            return made.raw_value if isinstance(made, moduli.VariableMetadata) else made

        got = [np.shape(leaf) for leaf in jax.tree.leaves(value)]
        wanted = [leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(arrays))]
        if got != wanted and len(got) == len(wanted):
            pairs = zip(got, wanted, strict=True)
            one, other = next(pair for pair in pairs if pair[0] != pair[1])
            raise StructureError(
                f"`{name}` of {type(self).__name__} was given with the shape {one}, where its "
                f"initializer makes {other}"
            )

    # -- calls -----------------------------------------------------------------------------------

    @property
    def variables(self) -> Any:
        """The values of the module, by collection."""
        from flax.core import FrozenDict

        return FrozenDict(_variables_of(self))

    def apply(
        self,
        variables: Mapping[str, Any],
        *args: Any,
        rngs: Any = None,
        method: Callable[..., Any] | str = "__call__",
        mutable: Any = False,
        **kwargs: Any,
    ) -> Any:
        """Calls a method on values that are given; the module stays as it is.

        Args:
          variables: the values, by collection.
          *args: what the method gets.
          rngs: streams, a seed, a key, or a dict of them by stream.
          method: the method or its name, or a function of the module.
          mutable: False, or the collections that the call may write.
          **kwargs: what the method gets.

        Returns:
          What the method returns; with ``mutable``, a pair of that and all variables.
        """
        return self._run(variables, args, kwargs, rngs, method, mutable, start=False)

    def init(
        self,
        rngs: Any = None,
        *args: Any,
        method: Callable[..., Any] | str = "__call__",
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Makes the variables with a call.

        Args:
          rngs: streams, a seed, a key, or a dict of them by stream.
          *args: inputs as they will be.
          method: see :meth:`apply`.
          **kwargs: likewise.

        Returns:
          The variables, by collection.
        """
        return self.init_with_output(rngs, *args, method=method, **kwargs)[1]

    def init_with_output(
        self,
        rngs: Any = None,
        *args: Any,
        method: Callable[..., Any] | str = "__call__",
        mutable: Any = True,
        **kwargs: Any,
    ) -> tuple[Any, dict[str, Any]]:
        """Like :meth:`init`; returns a pair of the method's result and the variables."""
        return self._run({}, args, kwargs, rngs, method, True, start=True)

    def _run(
        self,
        variables: Mapping[str, Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        rngs: Any,
        method: Callable[..., Any] | str,
        mutable: Any,
        *,
        start: bool,
    ) -> Any:
        given = nested(to_attributes(variables).items())
        module = moduli.clone(self)
        scope = Scope(_streams(rngs), mutable)
        scope.is_initializing = start
        _bind(module, scope)
        _write(module, given, ())
        with initializing(start), linen_call(mutable):
            _set_up(module)
            called = _function(module, method)
            with _running(module):
                out = called(module, *args, **kwargs)
        return out if mutable is False else (out, _variables_of(module))


def compact(f: F) -> F:
    """Lets a method of a :class:`Module` make submodules and parameters where it uses them.

    Args:
      f: the method.

    Returns:
      The method; submodules that are made in it are named by class and number, ``Dense_0``, or as
      ``name=`` says.
    """

    @functools.wraps(f)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(self, Module):
            raise StructureError(
                f"compact is for methods of nnx.bridge.Module; got a {type(self).__name__}"
            )
        with _running(self, in_compact=True):
            return f(self, *args, **kwargs)

    return wrapped  # type: ignore[return-value]


def place_in_parent(parent: Module, name: str, module: Any) -> None:
    """Makes a module that a compact method has made a submodule."""
    parent.set_attr_priority(name, AttrPriority.INIT_PARENT)
    setattr(parent, name, module)


def _streams(rngs: Any) -> moduli.Rngs:
    if rngs is None:
        return moduli.Rngs()
    return rngs if isinstance(rngs, moduli.Rngs) else moduli.Rngs(rngs)


def _function(module: Module, method: Callable[..., Any] | str) -> Callable[..., Any]:
    """Returns a function of the module."""
    found: Any = method
    if isinstance(method, str):
        found = getattr(module, method, None)
        if isinstance(found, moduli.Module):  # a submodule
            return lambda module, *args, **kwargs: getattr(module, method)(*args, **kwargs)
    if not callable(found):
        raise StructureError(f"{type(module).__name__} has no method {method!r}")
    if inspect.ismethod(found) and isinstance(found.__self__, Module):
        found = found.__func__
    if not inspect.signature(found).parameters:
        raise StructureError(f"{method!r} takes no arguments, and so no module")
    return found


# -- values of modules ---------------------------------------------------------------------------


def _modules_in(value: Any) -> list[Module]:
    """Returns the modules in linen's style in a value, the inner ones first."""
    return [item for _, item in moduli.iter_graph(value) if isinstance(item, Module)]


def _bind(value: Any, scope: Scope) -> None:
    """Gives the modules in a value a scope, if they have none."""
    for module in _modules_in(value):
        if module.scope is None:
            module.scope = scope if module is value and not scope.is_set_up else scope.copy()


def _set_up(value: Any) -> None:
    """Runs ``setup`` of the modules in a value that has not run yet."""
    for module in _modules_in(value):
        scope = module.scope
        if scope is not None and not scope.is_set_up:
            scope.is_set_up = True
            setup = getattr(type(module), "setup", None)
            if setup is not None:
                with _running(module, in_setup=True):
                    setup(module)


def _write(held: Any, given: Any, path: Path) -> None:
    """Writes variables, in nested dicts, into what is there for them."""
    if isinstance(held, moduli.Variable) and isinstance(given, moduli.Variable):
        held.set_raw_value(given.get_raw_value())
        held.set_metadata(**given.get_metadata())
    elif isinstance(held, ToNNX) and isinstance(given, Mapping):
        take_variables(held, given)
    elif isinstance(held, Module) and isinstance(given, Mapping):
        for name, item in given.items():
            if name in vars(held):
                _write(vars(held)[name], item, (*path, name))
            else:
                assert held.scope is not None  # of a call
                held.scope.pending[name] = item
    elif isinstance(given, Mapping):
        children = {str(key): item for key, item in _children(held)}
        for name, item in given.items():
            if str(name) not in children:
                where = moduli.errors.format_path((*path, name))
                raise StructureError(
                    f"the variables have `{where}`, which the {type(held).__name__} there has not"
                )
            _write(children[str(name)], item, (*path, name))
    else:
        where = moduli.errors.format_path(path)
        raise StructureError(
            f"the variables have a {type(given).__name__} at `{where}`, where the module has a "
            f"{type(held).__name__}"
        )


def _children(node: Any) -> list[tuple[Any, Any]]:
    if isinstance(node, Mapping):
        return list(node.items())
    if isinstance(node, (list, tuple)):
        return list(enumerate(node))
    return [item for item in getattr(node, "__dict__", {}).items() if item[0] != "_moduli"]


def _variables_of(module: Module) -> dict[str, Any]:
    """Returns the values, by collection; each once, under the first of its names."""
    flat: list[tuple[Path, Any]] = []
    seen: set[int] = set()

    def add(node: Any, path: Path) -> None:
        if id(node) in seen:
            return
        seen.add(id(node))
        if isinstance(node, moduli.RngState):  # linen's variables have no streams
            return
        if isinstance(node, moduli.Variable):
            flat.append(((collection_of(type(node)), *path), to_linen_var(node)))
            return
        children = _children(node)
        if isinstance(node, Module):
            order = node.attr_priorities
            children = [item for item in children if item[0] not in ("scope", "attr_priorities")]
            children.sort(key=lambda item: (order.get(item[0], AttrPriority.DEFAULT), item[0]))
            children += [] if node.scope is None else node.scope.pending.items()
        for name, item in children:
            if isinstance(item, (moduli.Variable, moduli.Pytree, list, tuple, dict)):
                add(item, (*path, name))

    add(module, ())
    return nested(flat)
