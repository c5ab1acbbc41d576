"""flax.nnx: modules, States and streams of random keys, both ways.

The two libraries have the same names, so that one translation serves both ways: a class becomes the
class of its name, an attribute stays where it is, and a class of the user's is derived anew from
the other library's ``Module``.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

import moduli
from moduli_interop._bridges.arguments import build, parameters, unfilled
from moduli_interop._bridges.bridge import Conversion
from moduli_interop._bridges.frameworks import import_framework, makers

__all__ = ["from_flax", "to_flax"]

_KEPT = (type(None), bool, int, float, complex, str, bytes, np.ndarray, np.generic, jax.Array)
_OWN_METADATA = frozenset(("hijax", "ref", "eager_sharding"))
_TRANSFORMS = frozenset(
    """
    jit grad value_and_grad custom_vjp vjp jvp vmap pmap scan while_loop fori_loop cond switch remat
    checkpoint shard_map split_rngs fork_rngs eval_shape cached_partial jit_partial state split
    merge update pop clone iter_graph iter_modules iter_children variables Optimizer with_rngs
    """.split()  # noqa: SIM905
)
_FOR_SPEED = ("project_ahead",)  # settings that change no result
_CELLS = ("state_axes",)  # of RNN: both have a default of their own classes


def from_flax(module: Any, *, classes: Mapping[type, type] | None = None) -> Any:
    """Makes a model of ours from one of flax.nnx, with its values, keys and counters.

    Layers become the layers of the same name, ``nnx.List`` and ``nnx.Dict`` ours, integer keys stay
    integers. A class of the user's becomes one with the same methods that derives from
    :class:`moduli.Module`. What is shared stays shared.

    Args:
      module: a flax.nnx module, State, Variable, ``Rngs``, or lists, tuples and dicts of these.
      classes: our class for a class of flax's or of the user's, where not the one of its name. Its
        attributes are set without its ``__init__``.

    Returns:
      The model. Arrays are the same objects, as they are immutable.

    Raises:
      BridgeError: a layer has no counterpart, or a class runs flax's own transforms.
      MissingFrameworkError: flax is not installed.

    Example:
      >>> import flax.nnx, moduli as nnx
      >>> theirs = flax.nnx.Linear(3, 4, rngs=flax.nnx.Rngs(0))
      >>> ours = nnx.from_flax(theirs)
      >>> type(ours) is nnx.Linear, bool((ours.kernel.value == theirs.kernel[...]).all())
      (True, True)
    """
    flax = import_framework("flax.nnx", "flax")
    return _Translation(flax, moduli, "from", classes or {}).run(module)


def to_flax(model: Any, *, classes: Mapping[type, type] | None = None) -> Any:
    """Makes a flax.nnx model from one of ours; the inverse of :func:`from_flax`.

    Args:
      model: a module of ours, a State, Variable, ``Rngs``, or lists, tuples and dicts of these.
      classes: flax's class for one of ours or of the user's, where not the one of its name.

    Returns:
      The model.

    Raises:
      BridgeError: a layer has no counterpart, or a class runs moduli's own transforms.
      MissingFrameworkError: flax is not installed.

    Example:
      >>> import jax.numpy as jnp, moduli as nnx
      >>> class Net(nnx.Module):
      ...     def __init__(self, rngs):
      ...         self.layers = [nnx.Linear(2, 2, rngs=rngs) for _ in range(2)]
      ...     def __call__(self, x):
      ...         for layer in self.layers:
      ...             x = nnx.relu(layer(x))
      ...         return x
      >>> model = Net(nnx.Rngs(0))
      >>> theirs = nnx.to_flax(model)
      >>> type(theirs.layers[0])
      <class 'flax.nnx.nn.linear.Linear'>
      >>> bool(jnp.allclose(theirs(jnp.ones((1, 2))), model(jnp.ones((1, 2)))))
      True
    """
    flax = import_framework("flax.nnx", "flax")
    return _Translation(moduli, flax, "to", classes or {}).run(model)


class _Translation:
    """One conversion from the library ``source`` to the library ``target``."""

    def __init__(self, source: Any, target: Any, way: str, classes: Mapping[type, type]) -> None:
        self.source, self.target, self.classes = source, target, classes
        name, other = ("moduli", "flax.nnx") if target is moduli else ("flax.nnx", "moduli")
        self.other = other
        self.conversion = Conversion(
            "flax.nnx",
            makers("flax.nnx", way),
            wanted=f"counterpart in {name}",
            advice=(
                f"pass {way}_flax(..., classes={{TheClass: YourClass}}) with a class written for "
                f"{name}, or put a layer that has a counterpart in its place"
            ),
            fallback=lambda part, _: self.convert(part),
        )

    def run(self, part: Any) -> Any:
        made = self.conversion(part)
        if isinstance(made, self.target.Module):
            missing = unfilled(made, self.target)
            if missing:
                self.conversion.refuse(part, f"which has no value for {', '.join(missing)}")
        return made

    # -- objects ---------------------------------------------------------------------------------

    def convert(self, part: Any) -> Any:
        source, target = self.source, self.target
        if isinstance(part, source.Variable):
            return self.variable(part)
        if isinstance(part, source.State):
            return target.State({key: self.conversion(item, key) for key, item in part.items()})
        if isinstance(part, source.RngStream):
            stream = target.RngStream(0, tag=part.tag)
            stream.key = self.conversion(part.key, "key")
            stream.count = self.conversion(part.count, "count")
            return stream
        if isinstance(part, source.Rngs):
            rngs = target.Rngs()
            for name, stream in part.items():
                setattr(rngs, name, self.conversion(stream, name))
            return rngs
        if type(part) is source.List:
            return target.List([self.conversion(item, n) for n, item in enumerate(part)])
        if type(part) is source.Dict:
            return self.mapping(part)
        if isinstance(part, type):
            return self.type(part)
        if isinstance(part, source.Module):
            return self.module(part)
        if isinstance(part, source.Pytree):
            return NotImplemented
        if isinstance(part, source.StateAxes):
            axes = {self.type(f): axis for f, axis in part.items()}
            return target.StateAxes(axes)
        if callable(part) and not isinstance(part, source.Pytree):
            return self.function(part)
        return part

    def mapping(self, part: Any) -> Any:
        items = {key: self.conversion(item, key) for key, item in part.items()}
        if self.target is not moduli and not all(isinstance(key, str) for key in items):
            return items  # keys of flax.nnx.Dict are names; as an attribute, a plain dict is data
        return self.target.Dict(items)

    def variable(self, part: Any) -> Any:
        metadata = {
            name: self.function(item) if callable(item) else item
            for name, item in part.get_metadata().items()
            if name not in _OWN_METADATA and not (name.startswith("on_") and not item)
        }
        made = self.type(type(part))(jax.numpy.zeros(()), **metadata)
        made.set_raw_value(part.get_raw_value())  # no hook of the Variable runs
        return made

    def function(self, part: Any) -> Any:
        """A function of the one library becomes the other's of its name; others stay."""
        name = getattr(part, "__name__", None)
        home = getattr(part, "__module__", None) or ""
        own = isinstance(name, str) and getattr(self.source, name, None) is part
        if own and home.startswith(("flax", "moduli")):
            return getattr(self.target, str(name), part)
        return part

    # -- classes ---------------------------------------------------------------------------------

    def type(self, cls: Any) -> Any:
        """The class of the other library; other things than classes of the one stay."""
        source, target = self.source, self.target
        if cls in self.classes:
            return self.classes[cls]
        if not isinstance(cls, type):
            return cls
        if getattr(source, cls.__name__, None) is cls:
            return getattr(target, cls.__name__, cls)
        if issubclass(cls, source.Variable):
            base = self.type(cls.__base__)
            name = source.variable_name_from_type(cls, allow_register=True)
            return target.variable_type_from_name(name, base=base, allow_register=True)
        return cls

    def module(self, part: Any) -> Any:
        cls = type(part)
        if cls in self.classes:
            made = self.empty(self.classes[cls])
        elif getattr(self.source, cls.__name__, None) is cls:
            other = getattr(self.target, cls.__name__, None)
            if other is None:
                return NotImplemented
            return self.layer(part, other)
        elif cls.__module__.partition(".")[0] in ("flax", "moduli", "moduli_layers"):
            return NotImplemented
        else:
            made = self.empty(self.derived(cls))
        self.conversion._done[id(part)] = (part, made)  # a cycle leads back to it
        for name, item in self.attributes(part):
            setattr(made, name, self.attribute(item, name))
        return made

    def empty(self, cls: Any) -> Any:
        """Makes an object without attributes."""
        if self.target is moduli:
            return cls.__new__(cls)
        kind: Any = type(cls)
        bare = kind(cls.__name__, (cls,), {"__init__": lambda self: None})
        made = bare()
        object.__setattr__(made, "__class__", cls)
        return made

    @staticmethod
    def attributes(part: Any) -> list[tuple[str, Any]]:
        return [
            (name, item)
            for name, item in vars(part).items()
            if name != "_moduli" and not name.startswith("_pytree__")
        ]

    def attribute(self, item: Any, name: str) -> Any:
        return self.attribute_of(item if isinstance(item, _KEPT) else self.conversion(item, name))

    def attribute_of(self, made: Any) -> Any:
        """What to assign, so that flax takes containers of nodes as data."""
        if self.target is not moduli and type(made) in (list, dict, tuple):
            if type(made) is list and self.holds_nodes(made):
                return self.target.List(made)
            if self.holds_nodes(made):
                return self.target.data(made)
        return made

    def holds_nodes(self, made: Any) -> bool:
        items = made.values() if isinstance(made, dict) else made
        return any(
            isinstance(item, (self.target.Pytree, self.target.Variable, jax.Array))
            or (isinstance(item, (list, tuple, dict)) and self.holds_nodes(item))
            for item in items
        )

    # -- layers ----------------------------------------------------------------------------------

    def layer(self, part: Any, cls: Any) -> Any:
        """Builds the layer with the settings that the other one holds, then takes its values."""
        if cls is self.target.Sequential:
            return cls(*(self.conversion(item, "layers", n) for n, item in enumerate(part.layers)))
        held = dict(self.attributes(part))
        theirs, ours = parameters(type(part)), parameters(cls)
        settings: dict[str, Any] = {}
        nodes: dict[str, Any] = {}
        for name, item in held.items():
            if isinstance(item, (self.source.Pytree, self.source.Variable)) or (
                type(item) in (list, tuple, dict)
                and any(
                    isinstance(x, self.source.Variable)
                    for x in jax.tree.leaves(
                        item, is_leaf=lambda x: isinstance(x, self.source.Variable)
                    )
                )
            ):
                nodes[name] = self.conversion(item, name)
            elif name in ours and not self.is_default(theirs.get(name), item):
                settings[name] = self.setting(name, item)
        self.check_known(part)
        self.check_lost(part, theirs, ours, held)
        settings.pop("rngs", None)
        if "num_features" in ours and "num_features" not in settings:
            settings["num_features"] = part.num_groups * part.group_size  # of GroupNorm
        wrapped = {"layer_instance", "base_module", "cell", "forward_rnn", "backward_rnn"}
        settings.update({name: nodes[name] for name in wrapped & nodes.keys() & ours.keys()})
        if settings.get("num_groups") is not None:
            settings.pop("group_size", None)  # either is worked out from the other one
        if "lora_rank" in ours and "lora_rank" not in settings:
            settings["lora_rank"] = getattr(part, "lora", part).lora_a.get_raw_value().shape[-1]
        made = self.built(cls, settings)
        for name, node in nodes.items():
            setattr(made, name, self.attribute_of(node))
        for name, item in settings.items():
            if isinstance(item, (jax.Array, np.ndarray)):
                setattr(made, name, item)
        for name, item in held.items():  # what a constructor calls otherwise, or a mode has set
            if name in nodes or name in settings or not hasattr(made, name):
                continue
            if item is None and isinstance(getattr(made, name), self.target.Pytree):
                setattr(made, name, None)
            elif type(item) in (bool, int, float, str) and type(getattr(made, name)) in (
                bool,
                type(item),
                type(None),
            ):
                setattr(made, name, item)
        return made

    def check_known(self, part: Any) -> None:
        """Raises for settings with which flax's layer computes something else."""
        if type(part).__name__ == "GroupNorm" and part.reduction_axes is not None:
            self.conversion.refuse(
                part, "with reduction_axes, for which flax normalises groups by each other's mean"
            )

    def check_lost(self, part: Any, theirs: Any, ours: Any, held: Mapping[str, Any]) -> None:
        """Raises if the other library's layer has no argument for a setting that is in use."""
        for name, parameter in theirs.items():
            if name in ours or name not in held or name in _FOR_SPEED or name == "rngs":
                continue
            if held[name] is not None and held[name] != parameter.default:
                self.conversion.refuse(part, f"whose `{name}` the other library's layer lacks")

    def built(self, cls: Any, settings: dict[str, Any]) -> Any:
        if self.target is moduli:
            return build(cls, **settings)
        flax = self.target
        if "rngs" in parameters(cls):
            return flax.eval_shape(lambda: cls(**settings, rngs=flax.Rngs(0)))
        return flax.eval_shape(lambda: cls(**settings))

    @staticmethod
    def is_default(parameter: inspect.Parameter | None, item: Any) -> bool:
        """Returns whether a setting is the one library's own default, which the other has too."""
        if parameter is None or isinstance(item, _KEPT):
            return False
        return item is parameter.default or parameter.name in _CELLS

    def setting(self, name: str, item: Any) -> Any:
        if name == "batch_axis":
            return dict(item)
        if isinstance(item, (tuple, list)):
            return type(item)(item)
        return self.conversion(item, name) if not isinstance(item, _KEPT) else item

    # -- classes of the user's -------------------------------------------------------------------

    def derived(self, cls: type) -> type:
        """Returns a class with the same methods below the other library's Module."""
        key = (self.target.__name__, cls)
        if key in _derived:
            return _derived[key]
        if cls in _origins:
            return _origins[cls]
        bases: list[Any] = []
        for base in cls.__bases__:
            if getattr(self.source, base.__name__, None) is base:
                other = getattr(self.target, base.__name__, None)
                if other is None:
                    self.conversion.refuse(base, f"from which {cls.__qualname__} is derived")
                bases.append(other)
            elif issubclass(base, self.source.Pytree):
                bases.append(self.derived(base))
            else:
                bases.append(base)
        cell = types.CellType()
        body = {
            name: self.member(cls, name, item, cell)
            for name, item in vars(cls).items()
            if name not in _NOT_COPIED and not name.startswith(("_pytree__", "_moduli"))
        }
        made = types.new_class(
            cls.__name__, tuple(bases), {}, lambda namespace: namespace.update(body)
        )
        cell.cell_contents = made
        made.__qualname__ = cls.__qualname__
        _derived[key], _origins[made] = made, cls
        return made

    def member(self, cls: type, name: str, item: Any, cell: types.CellType) -> Any:
        item = getattr(item, "_moduli_function", item)
        if isinstance(item, types.FunctionType):
            self.check(cls, item, item.__code__)
            return _rebound(item, cell)
        if isinstance(item, (staticmethod, classmethod)):
            return type(item)(self.member(cls, name, item.__func__, cell))
        if isinstance(item, property):
            parts = [
                f if f is None else self.member(cls, name, f, cell)
                for f in (item.fget, item.fset, item.fdel)
            ]
            return property(parts[0], parts[1], parts[2], item.__doc__)
        home = type(item).__module__.partition(".")[0]
        if home in ("flax", "moduli") and callable(item) and not isinstance(item, type):
            self.refuse_class(cls, f"`{name}` is made by {self.other}'s {type(item).__name__}")
        return item

    def check(self, cls: type, function: types.FunctionType, code: types.CodeType) -> None:
        """Raises if a method runs transforms of the one library, blind to the other's modules."""
        for name in code.co_names:
            known = function.__globals__.get(name)
            direct = name in _TRANSFORMS and known is getattr(self.source, name, self)
            if direct or (known is self.source and _TRANSFORMS & set(code.co_names)):
                used = sorted({name} if direct else _TRANSFORMS & set(code.co_names))
                self.refuse_class(
                    cls, f"`{function.__name__}` runs {self.other}'s {', '.join(used)}"
                )
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self.check(cls, function, constant)

    def refuse_class(self, cls: type, why: str) -> None:
        self.conversion.refuse(cls, f"whose {why}, which does not see the other library's modules")


_NOT_COPIED = frozenset(
    """
    __dict__ __weakref__ __module__ __qualname__ __firstlineno__ __static_attributes__
    __abstractmethods__ _abc_impl __signature__ _descriptors _is_jax_pytree __orig_bases__
    """.split()  # noqa: SIM905
)
_derived: dict[tuple[str, type], type] = {}  # JAX's registry keeps classes alive anyway
_origins: dict[type, type] = {}


def _rebound(function: types.FunctionType, cell: types.CellType) -> types.FunctionType:
    """Returns a copy of a method whose ``super()`` is that of the class in the cell."""
    closure = tuple(
        cell if name == "__class__" else held
        for name, held in zip(function.__code__.co_freevars, function.__closure__ or ())
    )
    made = types.FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        closure or None,
    )
    made.__kwdefaults__ = function.__kwdefaults__
    made.__dict__.update({k: v for k, v in vars(function).items() if k != "_moduli_function"})
    made.__doc__, made.__annotations__ = function.__doc__, function.__annotations__
    made.__qualname__ = function.__qualname__
    return made
