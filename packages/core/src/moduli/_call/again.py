"""The compiled programs of a function, found again when the function is transformed again.

``moduli.jit(f)`` inside of a training loop makes a new wrapper at each step; without this each of
them would trace and compile. So the programs stand with the function: they are found by it and by
the options. A transform of a transform (``jit(grad(f))``) is known by the function at the bottom
and the *steps* above it, which are repeated when a program has to trace.

Nothing here keeps a user's object alive. The table is an attribute of the function, so both die
together, and the programs refer to the function weakly, so there is no cycle: a lambda and what it
closes over are freed as early as without a table.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from moduli._base.node import Node
from moduli._base.static_keys import UnhashableStatic, static_key
from moduli._call.function import UNBOUND, unbound, wraps
from moduli._call.naming import code_of
from moduli._call.seen import Seen
from moduli._variable.box import Variable

__all__ = [
    "Recipe",
    "base_of",
    "options_key",
    "options_key_or_none",
    "recipe_of",
    "remember",
    "shared",
]

_TABLE, _RECIPE = "_moduli_programs", "_moduli_recipe"
_MOST = 64  # tables of one function: options made anew at each call fill no memory

W = TypeVar("W", bound=Callable[..., Any])
Kept = TypeVar("Kept")


def options_key(value: Any) -> Any:
    """Returns a hashable key of a transform's options: lists and dicts by content.

    Raises:
      UnhashableStatic: if an option cannot be hashed, or is a module, which no table may keep.
    """
    if isinstance(value, (Node, Variable)):
        raise UnhashableStatic(value)
    if isinstance(value, dict):
        return (dict, tuple([(name, options_key(item)) for name, item in value.items()]))
    if value.__class__ in (list, tuple):
        return (value.__class__, *map(options_key, value))
    if isinstance(value, (set, frozenset)):
        return (value.__class__, frozenset(map(options_key, value)))
    return static_key(value)


class Recipe:
    """How a function was made: which transforms, with which options, of which Python function.

    Args:
      base: the function at the bottom.
      steps: the transforms above it, the innermost first.
      key: a hashable key of these.
    """

    __slots__ = ("base", "key", "owner", "steps")

    def __init__(self, base: Any, steps: tuple[Callable[[Any], Any], ...], key: tuple[Any, ...]):
        self.base, self.steps, self.key = base, steps, key
        self.owner: Callable[[], Any] = _gone

    def __reduce__(self) -> Any:  # of a copied wrapper it is not true any more
        return (object, ())


def recipe_of(fun: Any) -> Recipe | None:
    """Returns how a function was made; None for callables that no table can stand with."""
    if type(fun) is types.FunctionType:
        recipe = fun.__dict__.get(_RECIPE)
        if recipe is None or not isinstance(recipe, Recipe) or recipe.owner() is not fun:
            return Recipe(fun, (), ())  # (functools.wraps copies the attributes of another one)
        return recipe
    if type(fun) is functools.partial:
        return _recipe_of_partial(fun)
    recipe = getattr(fun, "__dict__", {}).get(_RECIPE)
    known = isinstance(recipe, Recipe) and recipe.owner() is fun
    return recipe if known else None


def _recipe_of_partial(fun: functools.partial[Any]) -> Recipe | None:
    """A partial of hashable constants is found again; one of arrays or modules is not."""
    inner, key = recipe_of(fun.func), options_key_or_none(fun.args, fun.keywords)
    if inner is None or key is None:
        return None
    args, keywords = fun.args, fun.keywords

    def step(function: Any) -> Any:
        return functools.partial(function, *args, **keywords)

    return Recipe(inner.base, (*inner.steps, step), (*inner.key, ("partial", key)))


def options_key_or_none(*options: Any) -> Any:
    """Like :func:`options_key`; None where that raises."""
    try:
        return options_key(options)
    except UnhashableStatic:
        return None


def remember(wrapper: W, fun: Any, transform: Callable[..., Any], options: Mapping[str, Any]) -> W:
    """Notes on a transformed function how it was made.

    A transformed method of a module is known by the method's function, as the method is: outer
    transforms get the module as the first argument.

    Args:
      wrapper: the transformed function.
      fun: the function.
      transform: the transform.
      options: its keyword arguments.

    Returns:
      The wrapper.
    """
    for name in (_TABLE, _RECIPE, UNBOUND):  # functools.wraps has copied the function's own
        wrapper.__dict__.pop(name, None)
    module, function = unbound(fun)
    key = options_key_or_none(transform.__name__, options)
    if module is None:
        _note_recipe(wrapper, fun, functools.partial(transform, **options), key)
        return wrapper
    is_module = fun is module

    def step(function: Any) -> Any:
        def call(module: Any, *args: Any, **kwargs: Any) -> Any:
            method = module if is_module else types.MethodType(function, module)
            return transform(method, **options)(*args, **kwargs)

        return wraps(function)(call)

    call = step(function)
    for name in (_TABLE, _RECIPE):
        call.__dict__.pop(name, None)
    _note_recipe(call, function, step, None if key is None else ("method", is_module, key))
    wrapper.__dict__[UNBOUND] = (weakref.ref(wrapper), module, call)
    return wrapper


def _note_recipe(wrapper: Any, fun: Any, step: Callable[[Any], Any], key: Any) -> None:
    inner = None if key is None else recipe_of(fun)
    if inner is not None:
        recipe = Recipe(inner.base, (*inner.steps, step), (*inner.key, key))
        recipe.owner = weakref.ref(wrapper)
        wrapper.__dict__[_RECIPE] = recipe


class _Weak:
    """A function that does not keep the Python function at its bottom alive.

    It is called to trace it, while somebody holds that function: a wrapper that is being called.
    """

    def __init__(self, fun: Any, recipe: Recipe):
        self._base, self._steps = weakref.ref(recipe.base), recipe.steps
        for name in ("__name__", "__qualname__"):
            if hasattr(fun, name):
                setattr(self, name, getattr(fun, name))
        code = code_of(fun)  # for messages
        if code is not None:
            self.__code__ = code

    @property
    def base(self) -> Any:
        """The Python function at the bottom, None if it is gone."""
        return self._base()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        fun = base = self._base()
        for step in self._steps:
            fun = step(fun)
        try:
            return fun(*args, **kwargs)  # type: ignore[misc]
        finally:
            _table_of(base).seen = Seen([base])


def base_of(fun: Any) -> Any:
    """Returns the function at the bottom of what :func:`shared` returned; or the function."""
    return fun.base if isinstance(fun, _Weak) else fun


class _Table:
    """What is kept for one function, by options, and what the function saw when it was traced.

    Args:
      owner: the function.
    """

    __slots__ = ("kept", "owner", "seen")

    def __init__(self, owner: Any = None):
        self.owner: Callable[[], Any] = _gone if owner is None else weakref.ref(owner)
        self.kept: dict[Any, Any] = {}
        self.seen: Seen | None = None

    def __reduce__(self) -> Any:  # cloudpickle takes a function's attributes along
        return (_Table, ())


def _gone() -> None:
    return None


def _table_of(base: Any) -> _Table:
    table = base.__dict__.get(_TABLE)
    if table is None or table.owner() is not base:
        table = base.__dict__[_TABLE] = _Table(base)
    return table


def shared(fun: Any, key: Any, make: Callable[[], Kept]) -> tuple[Kept, Any]:
    """Returns what is kept for a function under a key, and the function, not kept alive.

    What the function's code takes from a closure or a global name is a constant in its programs,
    and so is what functions of the same file take that it names. If one of these names now stands
    for something else, all is made anew.

    Args:
      fun: the function.
      key: the transform and its options; None if they cannot be hashed.
      make: makes what is to be kept.

    Returns:
      A pair: what is kept, and what to call in the place of ``fun``. A fresh one and ``fun`` itself
      if no table can stand with the function.
    """
    recipe = None if key is None else recipe_of(fun)
    if recipe is None:
        return make(), fun
    table = _table_of(recipe.base)
    if table.seen is not None and table.seen.is_another():
        table.kept.clear()
        table.seen = None
    key = (recipe.key, key)
    found = table.kept.get(key)
    if found is None:
        while len(table.kept) >= _MOST:
            table.kept.pop(next(iter(table.kept)), None)
        found = table.kept[key] = make()
    return found, _Weak(fun, recipe)
