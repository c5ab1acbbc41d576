"""A module of flax.linen as one of ours, and one of ours as a module of flax.linen.

The names are those of ``flax.nnx.bridge``.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

import moduli
from moduli.errors import StructureError
from moduli_interop._bridges.frameworks import import_framework
from moduli_interop._bridges.linen_variables import (
    collection_of,
    flat_items,
    nested,
    nnx_attrs_to_linen_vars,
    to_attributes,
    to_linen_var,
)

__all__ = [
    "Functional",
    "ToNNX",
    "functional",
    "initializing",
    "lazy_init",
    "linen_call",
    "linen_class",
    "take_variables",
    "to_linen",
    "to_linen_class",
]

_initializing: contextvars.ContextVar[bool] = contextvars.ContextVar("initializing", default=False)
_mutable: contextvars.ContextVar[Any] = contextvars.ContextVar("mutable", default=False)
_OWN = "to_nnx__"
Path = tuple[Any, ...]


def _linen() -> Any:
    return import_framework("flax.linen", "flax")


@contextlib.contextmanager
def initializing(whether: bool) -> Iterator[None]:
    """Says whether every :class:`ToNNX` that is called makes its variables."""
    token = _initializing.set(whether)
    try:
        yield
    finally:
        _initializing.reset(token)


@contextlib.contextmanager
def linen_call(mutable: Any) -> Iterator[None]:
    """Says what may be written in the call of linen's kind that runs."""
    token = _mutable.set(mutable)
    try:
        yield
    finally:
        _mutable.reset(token)


# -- a module of linen as one of ours ------------------------------------------------------------


class ToNNX(moduli.Module):
    """A module of flax.linen as one of ours.

    Its variables are attributes under their names in linen. They exist once :func:`lazy_init` has
    called the module with an example of its inputs. Other methods of the linen module are methods
    here too.

    Args:
      module: the linen module.
      rngs: streams of random keys, which are forked, or a key; for the initialization, and for
        calls that draw. A stream ``default`` stands for linen's ``params``.

    Example:
      >>> import flax.linen, jax.numpy as jnp, moduli as nnx
      >>> model = nnx.bridge.ToNNX(flax.linen.Dense(4), rngs=nnx.Rngs(0))
      >>> model = model.lazy_init(jnp.ones((1, 3)))
      >>> model.kernel.shape, model(jnp.ones((2, 3))).shape
      ((3, 4), (2, 4))
    """

    __module__ = "moduli_interop.bridge"

    def __init__(self, module: Any, rngs: moduli.Rngs | jax.Array | None = None) -> None:
        self.to_nnx__module = moduli.static(module)
        if isinstance(rngs, moduli.Rngs):
            self.to_nnx__rngs: moduli.Rngs | None = rngs.fork()
        else:
            self.to_nnx__rngs = None if rngs is None else moduli.Rngs(params=rngs)

    def lazy_init(self, *args: Any, **kwargs: Any) -> ToNNX:
        """Calls the module so that it makes its variables; see :func:`lazy_init`."""
        return lazy_init(self, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or "to_nnx__module" not in self.__dict__:
            raise AttributeError(name)
        if name in ("module", "rngs"):  # flax's older names
            return getattr(self, f"{_OWN}{name}")
        method = getattr(type(self.to_nnx__module), name, None)
        if not callable(method):
            raise AttributeError(
                f"ToNNX of {type(self.to_nnx__module).__name__} has no attribute {name!r}; its "
                "variables exist after `lazy_init` with an example of the inputs",
                name=name,
                obj=self,
            )
        return functools.partial(self.__call__, method=method)

    def __call__(
        self,
        *args: Any,
        rngs: moduli.Rngs | jax.Array | None = None,
        method: Callable[..., Any] | str | None = None,
        mutable: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Calls the linen module.

        Args:
          *args: its inputs.
          rngs: streams of random keys, or a key, in the place of the module's own.
          method: the method to call, ``__call__`` by default.
          mutable: the collections that the call may write, as of ``linen.Module.apply``; what it
            writes is written into the attributes. By default those of the call of linen's kind
            that it is part of (``to_linen``, ``bridge.Module``), else none.
          **kwargs: its inputs.

        Returns:
          What it returns, without the written collections.
        """
        keys = _keys(self.to_nnx__rngs if rngs is None else rngs)
        module: Any = self.to_nnx__module
        mutable = _mutable.get() if mutable is None else mutable
        if _initializing.get():
            out, written = module.init_with_output(keys, *args, method=method, **kwargs)
        else:
            held = {k: v for k, v in vars(self).items() if k != "_moduli" and _OWN not in k}
            variables = nnx_attrs_to_linen_vars(held)
            out = module.apply(
                variables, *args, rngs=keys, method=method, mutable=mutable, **kwargs
            )
            written = {}
            if mutable is not False:
                out, written = out
        take_variables(self, nested(to_attributes(written).items()))
        return out


def take_variables(model: ToNNX, variables: Mapping[str, Any]) -> None:
    """Writes values into the Variables that there are, and makes the others.

    Args:
      model: the module of linen.
      variables: Variables in nested mappings, as their paths are.
    """
    new: dict[Path, Any] = {}
    for path, variable in flat_items(variables):
        place: Any = model.__dict__
        for key in path:
            place = place.get(key) if isinstance(place, Mapping) else None
        if isinstance(place, moduli.Variable):
            place.set_raw_value(variable.get_raw_value())
        else:
            new[path] = variable
    for name, item in nested(new.items()).items():
        old = model.__dict__.get(name)
        setattr(model, name, _joined(old, item) if isinstance(old, Mapping) else item)


def _joined(old: Mapping[Any, Any], new: Mapping[Any, Any]) -> dict[Any, Any]:
    """Returns nested mappings put together."""
    both = {**old, **new}
    for key in old.keys() & new.keys():
        both[key] = _joined(old[key], new[key])
    return both


def _keys(rngs: moduli.Rngs | jax.Array | None) -> dict[str, jax.Array]:
    """Draws a key of each stream; linen's ``params`` from the default stream, if there is none."""
    if rngs is None:
        return {}
    if not isinstance(rngs, moduli.Rngs):
        return {"params": rngs}
    keys = {name: stream() for name, stream in rngs.items()}
    if "params" not in keys and "default" in keys:
        keys["params"] = keys.pop("default")
    return keys


def lazy_init(fn: Any, *args: Any, **kwargs: Any) -> Any:
    """Calls a module, or a method of one, so that every :class:`ToNNX` in it makes its variables.

    Args:
      fn: the module or its method.
      *args: inputs as they will be.
      **kwargs: likewise.

    Returns:
      ``fn``.
    """
    owner = fn if isinstance(fn, moduli.Module) else getattr(fn, "__self__", None)
    if not isinstance(owner, moduli.Module):
        raise StructureError(
            f"lazy_init needs a module or a method of one; got a {type(fn).__name__}"
        )
    with initializing(True):
        fn(*args, **kwargs)
    return fn


# -- a module of ours as one of linen ------------------------------------------------------------


@functools.cache
def linen_class() -> Any:
    """Makes ``ToLinen``, whose base class is only there once flax is imported."""
    linen = _linen()
    from flax.core import FrozenDict, meta, unfreeze

    def streams(module: Any) -> moduli.Rngs:
        given = {name: module.make_rng(name) for name in module.scope.rngs}
        if not module.is_initializing():
            given.setdefault("default", jax.random.key(0))  # for parameters that are replaced
        return moduli.Rngs(given)

    class ToLinen(linen.Module):
        """A class of our modules as a module of flax.linen.

        Args:
          nnx_class: the class, or a function that makes a module.
          args: its positional arguments.
          kwargs: its keyword arguments, without ``rngs``.
          skip_rng: whether it takes no ``rngs``.
          metadata_fn: makes the value of linen of a Variable; None takes the plain values.
        """

        nnx_class: Callable[..., Any]
        args: Any = ()
        kwargs: Any = FrozenDict({})
        skip_rng: bool = False
        metadata_fn: Callable[[Any], Any] | None = to_linen_var

        @linen.compact
        def __call__(self, *args: Any, nnx_method: Any = None, **kwargs: Any) -> Any:
            """Calls the module of ours; its values are the variables of linen's scope."""
            made = dict(self.kwargs)
            if not self.skip_rng:
                made["rngs"] = streams(self)
            module = self.nnx_class(*self.args, **made)
            if self.is_initializing():
                self._store(module)  # as they are before the call
            else:
                self._fill(module)
            with linen_call(self.scope.mutable):
                out = _method(module, nnx_method)(module, *args, **kwargs)
            if self.is_initializing():
                return out
            self._store(module)
            return out

        def _fill(self, module: Any) -> None:
            known = dict(moduli.to_flat_state(moduli.state(module)))
            unknown: list[str] = []
            for collection, tree in unfreeze(self.variables).items():
                for path, value in flat_items(tree):
                    if isinstance(value, meta.AxisMetadata):
                        value = value.unbox()
                    where = _as_known(path, known)
                    if where is None:
                        unknown.append(f"{collection}/{'/'.join(map(str, path))}")
                    else:
                        known[where].set_raw_value(value)
            if unknown:
                raise StructureError(
                    f"the variables have {', '.join(unknown[:5])}, of which "
                    f"{type(module).__name__} has none; pass the variables that its own "
                    "`init` makes"
                )

        def _store(self, module: Any) -> None:
            state = moduli.state(module, moduli.Not(moduli.RngState))
            found: dict[str, dict[Any, Any]] = {}
            for path, leaf in moduli.to_flat_state(state):
                if not isinstance(leaf, moduli.Variable):
                    continue
                collection = collection_of(type(leaf))
                value = leaf.get_raw_value() if self.metadata_fn is None else self.metadata_fn(leaf)
                place = found.setdefault(collection, {})
                for key in path[:-1]:
                    place = place.setdefault(str(key), {})
                place[str(path[-1])] = value
            for collection, tree in found.items():
                if self.is_mutable_collection(collection):
                    for name, value in tree.items():
                        self.put_variable(collection, name, value)

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_") or "nnx_class" not in self.__dict__:
                return super().__getattr__(name)
            if name in self.kwargs:
                return self.kwargs[name]
            method = getattr(self.nnx_class, name, None)
            if callable(method):

                def call(module: Any, *args: Any, **kwargs: Any) -> Any:
                    return module(*args, nnx_method=method, **kwargs)

                return types.MethodType(call, self)  # linen takes methods off their modules
            return super().__getattr__(name)

    ToLinen.__module__, ToLinen.__qualname__ = "moduli_interop.bridge", "ToLinen"
    return ToLinen


def _as_known(path: Path, known: Mapping[Path, Any]) -> Path | None:
    """Returns the path of ours for one of linen, whose keys are text."""
    if path in known:
        return path
    texts = {tuple(map(str, where)): where for where in known}
    return texts.get(tuple(map(str, path)))


def _method(module: Any, method: Any) -> Callable[..., Any]:
    method = "__call__" if method is None else method
    found = getattr(type(module), method, None) if isinstance(method, str) else method
    if not callable(found):
        raise StructureError(f"{type(module).__name__} has no method {method!r}")
    return found


def to_linen(
    nnx_class: Callable[..., Any],
    *args: Any,
    metadata_fn: Callable[[Any], Any] | None = to_linen_var,
    name: str | None = None,
    skip_rng: bool = False,
    **kwargs: Any,
) -> Any:
    """Makes a module of flax.linen of a class of ours; see ``ToLinen``.

    Args:
      nnx_class: the class.
      *args: its positional arguments.
      metadata_fn: makes the value of linen of a Variable; None takes the plain values.
      name: the name of the linen module.
      skip_rng: whether the class takes no ``rngs``.
      **kwargs: its keyword arguments.

    Example:
      >>> import jax, jax.numpy as jnp, moduli as nnx
      >>> model = nnx.bridge.to_linen(nnx.Linear, 3, 4)
      >>> y, variables = model.init_with_output(jax.random.key(0), jnp.ones((2, 3)))
      >>> y.shape, variables["params"]["kernel"].shape
      ((2, 4), (3, 4))
    """
    _linen()
    from flax.core import FrozenDict

    return linen_class()(
        nnx_class,
        args=args,
        kwargs=FrozenDict(kwargs),
        metadata_fn=metadata_fn,
        skip_rng=skip_rng,
        name=name,
    )


def to_linen_class(
    base_nnx_class: Callable[..., Any],
    base_metadata_fn: Callable[[Any], Any] | None = to_linen_var,
    base_skip_rng: bool = False,
    **partial_kwargs: Any,
) -> Callable[..., Any]:
    """Returns what makes linen modules of one class of ours, with arguments that it gets.

    Args:
      base_nnx_class: the class.
      base_metadata_fn: see :func:`to_linen`.
      base_skip_rng: see :func:`to_linen`.
      **partial_kwargs: keyword arguments of the class; calls may give others.
    """

    def make(*args: Any, name: str | None = None, **kwargs: Any) -> Any:
        return to_linen(
            base_nnx_class,
            *args,
            metadata_fn=base_metadata_fn,
            name=name,
            skip_rng=base_skip_rng,
            **{**partial_kwargs, **kwargs},
        )

    return make


# -- the functional form -------------------------------------------------------------------------


class Functional:
    """A class of modules with its arguments, in linen's style: ``init`` and ``apply``."""

    def __init__(self, module_type: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.module_type, self.args, self.kwargs = module_type, args, kwargs
        self.graphdef: Any = None

    def init(self, *, rngs: moduli.Rngs | None = None) -> Any:
        """Makes the module; returns its State."""
        given = {} if rngs is None else {"rngs": rngs}
        self.graphdef, state = moduli.split(self.module_type(*self.args, **self.kwargs, **given))
        return state

    def apply(self, *states: Any) -> Callable[..., Any]:
        """Returns a function that calls the module and returns its output and its new state."""
        if self.graphdef is None:
            raise StructureError("the module is not there yet; call `init(rngs=...)` first")

        def call(*args: Any, **kwargs: Any) -> Any:
            model = moduli.merge(self.graphdef, *states, copy=True)
            out = model(*args, **kwargs)
            return out, moduli.split(model)

        return call


def functional(cls: Any) -> Callable[..., Functional]:
    """Returns what makes a :class:`Functional` of a class and arguments.

    Args:
      cls: the class of modules.
    """
    return lambda *args, **kwargs: Functional(cls, args, kwargs)
