"""Module: the base class of layers and models."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from moduli import _plugins, errors
from moduli._base.foreign_trace import check_mutable
from moduli._base.modes import Modes
from moduli._base.type_variables import Path
from moduli._graph.data import is_graph_leaf
from moduli._graph.split import clone
from moduli._graph.walk import iter_nodes, node_children
from moduli._module.class_definition import wrap_call, wrap_methods
from moduli._module.pytree import Pytree
from moduli._variable.box import Variable
from moduli._variable.filters import to_predicate
from moduli._variable.kinds import Perturbation
from moduli._variable.names import variable_type_from_name

if TYPE_CHECKING:
    from typing import Self

__all__ = [
    "Module",
    "iter_children",
    "iter_module_children",
    "iter_modules",
    "view",
    "with_attributes",
]

T = TypeVar("T")

_ABSENT: Any = object()
_FROZEN = ""  # the annotation of a node whose mode train() and eval() leave alone


def _append(previous: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    return (*previous, value)


def _empty() -> tuple[Any, ...]:
    return ()


class Module(Pytree):
    """Base class of layers and models.

    Define attributes in ``__init__`` and the computation in ``__call__``. Attributes that are
    Variables, arrays, Modules, lists and dicts are data, the rest is static. The same submodule or
    Variable may be assigned twice; it stays one object through every transform.

    Example:
      >>> import moduli as nnx, jax, jax.numpy as jnp
      >>> class Affine(nnx.Module):
      ...     def __init__(self, size: int, *, rngs: nnx.Rngs):
      ...         self.kernel = nnx.Param(jax.random.normal(rngs.params(), (size, size)))
      ...         self.calls = nnx.Variable(0)
      ...
      ...     def __call__(self, x):
      ...         self.calls += 1
      ...         return x @ self.kernel
      >>> model = Affine(3, rngs=nnx.Rngs(0))
      >>> model(jnp.ones((2, 3))).shape, model.calls.value
      ((2, 3), 1)
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        wrap_call(cls)
        wrap_methods(cls)

    if TYPE_CHECKING:  # a subclass says in its own annotations what it takes and returns

        def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    # -- modes -----------------------------------------------------------------------------------

    def train(self, **attributes: Any) -> None:
        """Puts this module and all below it into training mode.

        Sets the attributes that plugins name for this mode (``deterministic=False`` and
        ``use_running_average=False`` from moduli-layers) on every module that has them, except
        those under :meth:`freeze_mode`.

        Args:
          **attributes: more attributes to set.
        """
        self._set_mode("train", attributes)

    def eval(self, **attributes: Any) -> None:
        """Puts this module and all below it into evaluation mode.

        Sets the attributes that plugins name for this mode (``deterministic=True`` and
        ``use_running_average=True`` from moduli-layers) on every module that has them, except
        those under :meth:`freeze_mode`.

        Args:
          **attributes: more attributes to set.
        """
        self._set_mode("eval", attributes)

    def _set_mode(self, mode: str, attributes: dict[str, Any]) -> list[tuple[Module, str, Any]]:
        modules = [module for module in _modules_below(self) if not module._mode_is_frozen()]
        return _set_on(modules, _mode_attributes(mode, modules, attributes))

    @contextlib.contextmanager
    def train_mode(self, **attributes: Any) -> Iterator[Self]:
        """Training mode inside a ``with`` block; what was before comes back, on errors too.

        Example:
          >>> import moduli as nnx
          >>> class Noise(nnx.Module):
          ...     def __init__(self):
          ...         self.deterministic = True
          >>> noise = Noise()
          >>> with noise.train_mode(deterministic=False):
          ...     noise.deterministic
          False
          >>> noise.deterministic
          True
        """
        previous = self._set_mode("train", attributes)
        try:
            yield self
        finally:
            _restore(previous)

    @contextlib.contextmanager
    def eval_mode(self, **attributes: Any) -> Iterator[Self]:
        """Evaluation mode inside a ``with`` block; what was before comes back, on errors too."""
        previous = self._set_mode("eval", attributes)
        try:
            yield self
        finally:
            _restore(previous)

    def freeze_mode(self, *filters: Any) -> None:
        """Keeps the present mode of some modules: ``train()`` and ``eval()`` leave them alone.

        Args:
          *filters: select modules by class, by path, or by a callable (path, module); everything
            by default. :meth:`unfreeze_mode` undoes it. ``set_attributes`` still sets.

        Raises:
          StructureError: if the filters select no module.

        Example:
          >>> import moduli as nnx
          >>> class Norm(nnx.Module):
          ...     def __init__(self):
          ...         self.use_running_average = True
          >>> model = nnx.List([Norm(), Norm()])
          >>> model.freeze_mode(nnx.PathContains(0))
          >>> model.train(use_running_average=False)
          >>> [norm.use_running_average for norm in model]
          [True, False]
        """
        self._note_frozen(filters, "frozen", "freeze_mode")

    def unfreeze_mode(self, *filters: Any) -> None:
        """Lets ``train()`` and ``eval()`` set the selected modules again."""
        self._note_frozen(filters, None, "unfreeze_mode")

    def _note_frozen(self, filters: tuple[Any, ...], status: str | None, caller: str) -> None:
        chosen = [module for _, module in _selected(self, filters)]
        if not chosen:
            raise errors.StructureError(
                f"{caller}: no module of {type(self).__name__} is selected by {filters!r}; its "
                f"modules are {_module_summary(self)}"
            )
        for module in chosen:
            check_mutable(module, f"{caller} the mode")
        for module in chosen:
            if module._mode_is_frozen() != (status is not None):
                module._moduli.annotate(_FROZEN, status)
                module._moduli.changed()

    def _mode_is_frozen(self) -> bool:
        annotations = self._moduli.annotations
        return annotations is not None and _FROZEN in annotations

    def set_attributes(
        self, *filters: Any, raise_if_not_found: bool = True, **attributes: Any
    ) -> None:
        """Sets attributes on this module and all below it, where a module has them.

        Args:
          *filters: select the modules; all of them by default.
          raise_if_not_found: raise if an attribute exists in none of the selected modules.
          **attributes: names and values.

        Raises:
          StructureError: (a ValueError) if an attribute is found nowhere. Nothing is set then.

        Example:
          >>> import moduli as nnx
          >>> class Noise(nnx.Module):
          ...     def __init__(self):
          ...         self.rate = 0.1
          >>> model = nnx.List([Noise(), Noise()])
          >>> model.set_attributes(rate=0.5)
          >>> [noise.rate for noise in model]
          [0.5, 0.5]
        """
        modules = [module for _, module in _selected(self, filters)]
        if raise_if_not_found:
            missing = [
                name
                for name in attributes
                if not any(_has_attribute(module, name) for module in modules)
            ]
            if missing:
                raise errors.StructureError(
                    f"set_attributes: none of the {len(modules)} selected modules of "
                    f"{type(self).__name__} has the attribute {missing[0]!r}; "
                    f"modules: {_module_summary(self)}. Pass raise_if_not_found=False to allow it"
                )
        _set_on(modules, attributes)

    # -- looking around --------------------------------------------------------------------------

    def iter_modules(self) -> Iterator[tuple[Path, Module]]:
        """Like the function :func:`iter_modules` on this module."""
        return iter_modules(self)

    def iter_children(self) -> Iterator[tuple[Any, Any]]:
        """Like the function :func:`iter_children` on this module."""
        return iter_children(self)

    # -- debugging, through hooks ----------------------------------------------------------------

    def sow(
        self,
        variable_type: type[Variable[Any]] | str,
        name: str,
        value: Any,
        reduce_fn: Callable[[Any, Any], Any] = _append,
        init_fn: Callable[[], Any] = _empty,
        capture_noop: bool | None = None,
    ) -> bool:
        """Stores a value from inside the model, for looking at it later.

        Implemented by a plugin (``moduli-debug``): the value goes into a Variable of the given
        kind, by default an attribute of this module.

        Args:
          variable_type: the kind of Variable, usually ``moduli.Intermediate``, or its name.
          name: the attribute's name.
          value: the value to store.
          reduce_fn: combines the previous content and the value; appends to a tuple by default.
          init_fn: makes the content before the first value; an empty tuple by default.
          capture_noop: store nothing while no capture runs; default: False.

        Returns:
          Whether the value was stored.

        Raises:
          MissingPluginError: if no plugin implements it; the text is the command to install one.
        """
        return _plugins.call_first(
            "moduli_sow",
            module=self,
            variable_type=_variable_type(variable_type, "sow"),
            name=name,
            value=value,
            reduce_fn=reduce_fn,
            init_fn=init_fn,
            capture_noop=bool(capture_noop),
        )

    def perturb(
        self,
        name: str,
        value: Any,
        variable_type: type[Variable[Any]] | str = Perturbation,
        capture_noop: bool | None = None,
    ) -> Any:
        """Adds a perturbation of zeros to a value, whose gradient is the value's gradient.

        Implemented by a plugin (``moduli-debug``): the zeros live in a Variable of this module.
        Use the returned value in place of ``value``.

        Args:
          name: the attribute's name.
          value: an array, or a pytree of arrays.
          variable_type: the kind of Variable, or its name.
          capture_noop: return the value as it is while no capture runs; default: False.

        Returns:
          ``value`` plus the perturbation.

        Raises:
          MissingPluginError: if no plugin implements it; the text is the command to install one.
        """
        return _plugins.call_first(
            "moduli_perturb",
            module=self,
            name=name,
            value=value,
            variable_type=_variable_type(variable_type, "perturb"),
            capture_noop=bool(capture_noop),
        )


def _variable_type(variable_type: type[Variable[Any]] | str, caller: str) -> type[Variable[Any]]:
    if isinstance(variable_type, str):
        return variable_type_from_name(variable_type, allow_register=True)
    if isinstance(variable_type, type) and issubclass(variable_type, Variable):
        return variable_type
    raise errors.VariableError(
        f"{caller} needs a kind of Variable (a subclass of moduli.Variable) or its name; got "
        f"{variable_type!r}"
    )


def _mode_attributes(
    mode: str, modules: list[Module], attributes: dict[str, Any]
) -> dict[str, Any]:
    """Returns what the plugins say of a mode; the given attributes go before it.

    Raises:
      NameClashError: two plugins give an attribute that some module has different values.
    """
    said = _plugins.contributions(f"attribute of {mode}()", "moduli_mode_attributes", mode=mode)
    for name in said.clashes:
        if name not in attributes and any(_has_attribute(module, name) for module in modules):
            said.check(name)
    return {**said.values, **attributes}


def _selected(root: Module, filters: tuple[Any, ...]) -> list[tuple[Path, Module]]:
    predicate = to_predicate(list(filters) if filters else ...)
    return [(path, module) for path, module in iter_modules(root) if predicate(path, module)]


def _modules_below(root: Module) -> list[Module]:
    """All modules below a module and itself; from the cache if its graph is in it."""
    flat = root._moduli.flat
    if flat is not None and (flat.is_current() or flat.revise()):
        return flat.of_kind(Module)
    return [module for _, module in iter_modules(root)]


def _has_attribute(module: Module, name: str) -> bool:
    return name in module.__dict__ or name in type(module)._descriptors or hasattr(module, name)


def _set_on(modules: list[Module], attributes: dict[str, Any]) -> list[tuple[Module, str, Any]]:
    """Sets attributes where they exist; returns what was there before."""
    writes = [
        (module, name, value)
        for module in modules
        for name, value in attributes.items()
        if _has_attribute(module, name)
    ]
    previous: list[tuple[Module, str, Any]] = []
    try:
        for module, name, value in writes:
            own = name in module.__dict__ or name in type(module)._descriptors
            old = getattr(module, name) if own else _ABSENT  # it came from the class
            setattr(module, name, value)
            previous.append((module, name, old))
    except BaseException:
        _restore(previous)
        raise
    return previous


def _restore(previous: list[tuple[Module, str, Any]]) -> None:
    for module, name, value in reversed(previous):
        if value is _ABSENT:
            delattr(module, name)
        else:
            setattr(module, name, value)


def _module_summary(root: Module) -> str:
    found = [f"`{errors.format_path(p)}` ({type(m).__name__})" for p, m in iter_modules(root)]
    return ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")


def iter_modules(module: Any, /, **_modes: Unpack[Modes]) -> Iterator[tuple[Path, Module]]:
    """Walks a module and all modules below it, each once.

    Args:
      module: a Module, another node, or a pytree of these.

    Yields:
      Pairs (path, module): attributes sorted by name, children before their parent, the module
      itself last with the path ``()``.

    Example:
      >>> import moduli as nnx
      >>> class Leaf(nnx.Module):
      ...     pass
      >>> class Model(nnx.Module):
      ...     def __init__(self):
      ...         self.head, self.blocks = Leaf(), [Leaf()]
      >>> for path, module in nnx.iter_modules(Model()):
      ...     print(path, type(module).__name__)
      ('blocks', 0) Leaf
      ('blocks',) List
      ('head',) Leaf
      () Model
    """
    return iter_nodes(module, Module)


def iter_children(module: Any, /, **_modes: Unpack[Modes]) -> Iterator[tuple[Any, Any]]:
    """Walks the modules, other nodes and Variables that stand directly in a module, each once.

    Args:
      module: a Module or another node.

    Yields:
      Pairs (key, child), sorted by attribute name; the key of a child inside a tuple is a path.

    Example:
      >>> import moduli as nnx
      >>> [(key, type(child).__name__) for key, child in nnx.iter_children(nnx.Rngs(0).default)]
      [('count', 'RngCount'), ('key', 'RngKey')]
    """
    seen: set[int] = set()
    for relative, child in node_children(module):
        if is_graph_leaf(child) and id(child) not in seen:
            seen.add(id(child))
            yield relative[0] if len(relative) == 1 else relative, child


def iter_module_children(module: Any, /, **_modes: Unpack[Modes]) -> Iterator[tuple[Any, Module]]:
    """Like :func:`iter_children`, of modules alone.

    Args:
      module: a Module or another node.
    """
    return (pair for pair in iter_children(module) if isinstance(pair[1], Module))


def with_attributes(
    node: T, /, *, only: Any = ..., raise_if_not_found: bool = True, **attributes: Any
) -> T:
    """Copies a model with other attributes; the copy shares the Variables.

    Args:
      node: a Module, or a pytree of these.
      only: a filter that selects the modules whose attributes are set.
      raise_if_not_found: raise if an attribute exists in none of them.
      **attributes: names and values, such as ``deterministic=True``.

    Returns:
      A new module; writing one of its Variables writes the original's too.

    Raises:
      StructureError: (a ValueError) if an attribute is found nowhere.

    Example:
      >>> import moduli as nnx
      >>> class Noise(nnx.Module):
      ...     def __init__(self):
      ...         self.rate, self.scale = 0.1, nnx.Param(1.0)
      >>> model = Noise()
      >>> loud = nnx.with_attributes(model, rate=0.9)
      >>> loud.rate, model.rate, loud.scale is model.scale
      (0.9, 0.1, True)
    """
    new: Any = clone(node, variables=False)
    Module.set_attributes(new, only, raise_if_not_found=raise_if_not_found, **attributes)
    return new


def view(node: T, /, *, only: Any = ..., raise_if_not_found: bool = True, **attributes: Any) -> T:
    """Copies a model in another mode; the copy shares the Variables.

    Like :func:`with_attributes`, but a module may say itself what a mode means to it: if it has a
    method ``set_view``, that gets the arguments which it takes by name, on the copy.

    Args:
      node: a Module, or a pytree of these.
      only: a filter that selects the modules that are set.
      raise_if_not_found: raise if one of the names means nothing to any of them.
      **attributes: names and values, such as ``deterministic=True``.

    Returns:
      A new module; writing one of its Variables writes the original's too.

    Raises:
      StructureError: (a ValueError) if a name is found nowhere.

    Example:
      >>> import moduli as nnx
      >>> class Noise(nnx.Module):
      ...     def __init__(self):
      ...         self.deterministic, self.scale = False, nnx.Param(1.0)
      >>> model = Noise()
      >>> quiet = nnx.view(model, deterministic=True)
      >>> quiet.deterministic, model.deterministic, quiet.scale is model.scale
      (True, False, True)
    """
    new: Any = clone(node, variables=False)
    unknown = dict(attributes)
    for _, module in _selected(new, (only,)):
        taken = _taken_by_set_view(module, attributes)
        if taken:
            module.set_view(**taken)  # type: ignore[attr-defined]
        for name in taken:
            unknown.pop(name, None)
        own = {
            name: value
            for name, value in attributes.items()
            if name not in taken and _has_attribute(module, name)
        }
        _set_on([module], own)
        for name in own:
            unknown.pop(name, None)
    if raise_if_not_found:
        Module.set_attributes(new, only, **unknown)  # raises if something is left
    return new


def _taken_by_set_view(module: Module, attributes: dict[str, Any]) -> dict[str, Any]:
    """The arguments that a module's own ``set_view`` takes; none if it has no such method."""
    method = getattr(type(module), "set_view", None)
    if method is None:
        return {}
    parameters = inspect.signature(method).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return dict(attributes)
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return {name: value for name, value in attributes.items() if name in names}
