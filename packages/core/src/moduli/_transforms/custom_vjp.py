"""custom_vjp: a function of modules with a gradient of its own."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from moduli import errors
from moduli._compat import trace_state
from moduli._filters import to_predicate
from moduli._graph.cache import flat_of
from moduli._graph.flatten import Slot, flatten_roots
from moduli._graph.nodes import Node, is_graph_leaf
from moduli._graph.unflatten import build, decode
from moduli._state import State, _flat_items, from_flat_state
from moduli._transforms.arguments import Function, check_callable, function_name
from moduli._transforms.carry import is_array_like
from moduli._transforms.effects import ChangedEffects, Effects
from moduli._transforms.grad import DiffState
from moduli._transforms.plain_call import PlainCall
from moduli._variable import Variable

__all__ = ["CustomVjp", "custom_vjp"]


def custom_vjp(
    fun: Callable[..., Any] | None = None,
    *,
    nondiff_argnums: int | DiffState | Iterable[int | DiffState] = (),
) -> Any:
    """``jax.custom_vjp`` for functions that take modules, with all their updates.

    Give the rule with ``defvjp(fwd, bwd)``:

    - ``fwd`` takes the arguments of ``fun`` and returns ``(result, residuals)``; the residuals are
      any pytree, modules included.
    - ``bwd(residuals, (updates_g, g))`` gets the cotangent ``g`` of the result and, in
      ``updates_g``, for each argument that is a module a State with the cotangents of what the
      function left in it (None for other arguments). It returns a tuple with the cotangent of each
      argument: for a module a State of the same form (values that it leaves out have none) or a
      module. If ``bwd`` has a keyword argument ``updates_g``, it gets that apart:
      ``bwd(residuals, g, *, updates_g)``.

    Args:
      fun: the function. Without it a decorator is returned.
      nondiff_argnums: positions of arguments that are not differentiated; ``bwd`` gets them before
        the residuals. ``DiffState(position, filter)`` selects the differentiated values of a
        module; the others then have no cotangent.

    Returns:
      A callable with the arguments of ``fun`` and the method ``defvjp``.

    Raises:
      StructureError: if no rule was given, or what ``bwd`` returns does not fit.

    Example:
      >>> import moduli as nnx, jax.numpy as jnp
      >>> @nnx.custom_vjp
      ... def clipped(model, x):
      ...     return model["w"] * x
      >>> def forward(model, x):
      ...     return clipped(model, x), (model, x)
      >>> def backward(residuals, g):
      ...     (model, x), (_, g) = residuals, g
      ...     return nnx.State({"w": jnp.clip(g * x, -1.0, 1.0)}), g * model["w"]
      >>> clipped.defvjp(forward, backward)
      >>> model = nnx.Dict({"w": nnx.Param(jnp.array(3.0))})
      >>> float(nnx.grad(clipped)(model, 50.0)["w"].value)
      1.0
    """
    if fun is None:
        return functools.partial(custom_vjp, nondiff_argnums=nondiff_argnums)
    check_callable(fun, "custom_vjp", "nondiff_argnums=...")
    numbers = (
        (nondiff_argnums,)
        if isinstance(nondiff_argnums, (int, DiffState))
        else tuple(nondiff_argnums)
    )
    return CustomVjp(fun, numbers)


class CustomVjp:
    """A function of modules with a gradient of its own; made by :func:`custom_vjp`."""

    def __init__(self, fun: Callable[..., Any], nondiff_argnums: tuple[int | DiffState, ...]):
        functools.update_wrapper(self, fun)
        self._function = Function(fun)
        self._fixed = {n for n in nondiff_argnums if isinstance(n, int)}
        self._parts = {n.argnum: n.filter for n in nondiff_argnums if isinstance(n, DiffState)}
        self._fwd: Callable[..., Any] | None = None
        self._bwd: Callable[..., Any] | None = None
        self._takes_updates = False

    def defvjp(self, fwd: Callable[..., Any], bwd: Callable[..., Any]) -> None:
        """Gives the rule; see :func:`custom_vjp`.

        Args:
          fwd: the forward pass: ``(result, residuals)``.
          bwd: the backward pass: the cotangents of the arguments.
        """
        check_callable(fwd, "custom_vjp", "...")
        check_callable(bwd, "custom_vjp", "...")
        self._fwd, self._bwd = fwd, bwd
        self._takes_updates = "updates_g" in inspect.signature(bwd).parameters

    def __get__(self, instance: object | None, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function."""
        name = self._function.name
        if self._fwd is None or self._bwd is None:
            raise errors.StructureError(
                f"custom_vjp: {name} has no rule yet; write `{name}.defvjp(fwd, bwd)`"
            )
        args, kwargs = self._function.positional(*self._function.complete(args, kwargs))
        if kwargs:
            raise errors.StructureError(
                f"custom_vjp: {name} got the keyword arguments {sorted(kwargs)}, which cannot be "
                "passed by position; a differentiated function takes positional arguments"
            )
        return _Call(self, args).run()


class _Call:
    """One call: the pure functions that JAX gets, and what they found out."""

    def __init__(self, rule: CustomVjp, args: tuple[Any, ...]):
        self.rule, self.args = rule, args
        self.name = rule._function.name
        self.fixed = sorted({n + len(args) if n < 0 else n for n in rule._fixed})
        for number in self.fixed:
            if any(map(is_graph_leaf, jax.tree.leaves(args[number], is_leaf=is_graph_leaf))):
                raise errors.StructureError(
                    f"custom_vjp: argument {number} of {self.name} holds a module, and "
                    "nondiff_argnums names it as a whole; name what is differentiated: "
                    f"`moduli.DiffState({number}, filter)` (False for nothing)"
                )
        self.numbers = [n for n in range(len(args)) if n not in self.fixed]
        self.call = PlainCall("custom_vjp", tuple(args[n] for n in self.numbers), {})
        self.effects: Any = None
        self.homes: list[Any] = []
        self.written: set[Any] = set()
        self.residuals: Any = None

    def run(self) -> Any:
        transformed = jax.custom_vjp(self.primal)
        transformed.defvjp(self.forward, self.backward)
        out, outputs = transformed(self.call.dynamic)
        effects = self.effects
        if isinstance(effects, Effects):
            written = sorted(self.written)
            places = {leaf: position for position, leaf in enumerate(self.homes)}
            outputs = [outputs[places[leaf]] for leaf in written]
            effects = Effects(written, only_variables=False)
        return effects.apply(self.call.binding.flats, self.call.values, out, outputs)

    def _all_arguments(self, dynamic: Sequence[Any]) -> list[Any]:
        new = iter(dynamic)
        return [self.args[n] if n in self.fixed else next(new) for n in range(len(self.args))]

    def _finish(self, out: Any) -> Any:
        """Writes down what happened; both passes have to do the same to the arguments."""
        frame = self.call.frame
        effects, outputs = frame.finish(out, keep=lambda leaf: True, strict=True)
        if isinstance(effects, ChangedEffects) and self.effects is not None:
            same = isinstance(self.effects, ChangedEffects) and (
                self.effects.graphdef is effects.graphdef
            )
            if not same:
                raise errors.StructureError(
                    f"custom_vjp: {self.name} and its forward rule leave the arguments in two "
                    "different structures; do in one what you do in the other"
                )
        self.effects, self.homes = effects, frame.homes
        for leaf, value in zip(frame.homes, outputs[1], strict=True):
            if leaf is not None and value is not frame.given[leaf[0]][leaf[1]]:
                self.written.add(leaf)
        return outputs

    def primal(self, values: Any) -> Any:
        frame = self.call.make_frame(values)
        return self._finish(self.rule._function.call(*self._all_arguments(frame.args)))

    def forward(self, values: Any) -> Any:
        frame = self.call.make_frame(values)
        assert self.rule._fwd is not None
        pair = self.rule._fwd(*self._all_arguments(frame.args))
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise errors.StructureError(
                f"custom_vjp: the forward rule {function_name(self.rule._fwd)} of {self.name} must "
                f"return a pair (result, residuals); it returned a {type(pair).__name__}"
            )
        out, residuals = pair
        leaves, treedef = jax.tree.flatten(residuals, is_leaf=is_graph_leaf)
        flat = flatten_roots([leaf for leaf in leaves if is_graph_leaf(leaf)])
        every = [*flat.values(), *[leaf for leaf in leaves if not is_graph_leaf(leaf)]]
        mask = [is_array_like(value) for value in every]
        static = [None if use else value for value, use in zip(every, mask, strict=True)]
        marks = [is_graph_leaf(leaf) for leaf in leaves]
        self.residuals = (treedef, marks, flat.graphdef, mask, static)
        stored = [value for value, use in zip(every, mask, strict=True) if use]
        return self._finish(out), stored

    def _rebuild_residuals(self, stored: Any) -> Any:
        treedef, marks, graphdef, mask, static = self.residuals
        new = iter(stored)
        every = [next(new) if use else old for use, old in zip(mask, static, strict=True)]
        values, plain = every[: graphdef.num_leaves], iter(every[graphdef.num_leaves :])
        objects = build(graphdef, values)
        roots = iter([decode(code, objects, values) for code in graphdef.roots])
        return jax.tree.unflatten(treedef, [next(roots if mark else plain) for mark in marks])

    def backward(self, stored: Any, cotangents: Any) -> Any:
        g, outputs_g = cotangents
        updates = self._updates(outputs_g)
        residuals = self._rebuild_residuals(stored)
        fixed = [self.args[n] for n in self.fixed]
        assert self.rule._bwd is not None
        if self.rule._takes_updates:
            result = self.rule._bwd(*fixed, residuals, g, updates_g=updates)
        else:
            result = self.rule._bwd(*fixed, residuals, (updates, g))
        if not isinstance(result, (tuple, list)) or len(result) != len(self.numbers):
            got = f"{type(result).__name__}" + (
                f" of {len(result)}" if isinstance(result, (tuple, list)) else ""
            )
            raise errors.StructureError(
                f"custom_vjp: the backward rule {function_name(self.rule._bwd)} of {self.name} "
                f"must return a tuple of {len(self.numbers)} cotangents, one for each "
                f"differentiated argument; it returned a {got}"
            )
        return (self._cotangents(result),)

    def _updates(self, outputs_g: list[Any]) -> tuple[Any, ...]:
        """For each argument a State of the cotangents of its values afterwards, or None."""
        by_leaf = dict(zip(self.homes, outputs_g, strict=True))
        trace = trace_state()
        places = self._places()
        updates = []
        for number in self.numbers:
            root = self.args[number]
            if not is_graph_leaf(root):
                updates.append(None)
                continue
            pairs = []
            for path, holder, leaf in self._leaves_of(root, places):
                value = by_leaf.get(leaf)
                if isinstance(holder, Variable):
                    value = type(holder)._make(value, holder._metadata, trace)
                pairs.append((path, value))
            updates.append(pairs[0][1] if isinstance(root, Variable) else from_flat_state(pairs))
        return tuple(updates)

    def _places(self) -> dict[Any, tuple[int, int]]:
        return {
            _key(holder): (number, index)
            for number, flat in enumerate(self.call.binding.flats)
            for index, holder in enumerate(flat.holders)
        }

    @staticmethod
    def _leaves_of(root: Any, places: dict[Any, tuple[int, int]]) -> list[tuple[Any, Any, Any]]:
        flat = flat_of(root)
        return [
            (path, holder, places[_key(holder)])
            for path, holder in zip(flat.graphdef.leaf_paths, flat.holders, strict=True)
        ]

    def _cotangents(self, result: Any) -> list[Any]:
        """The cotangent of each dynamic value, None where there is none."""
        places = self._places()
        found: dict[tuple[int, int], Any] = {}
        plain: list[Any] = []
        for number, cotangent in zip(self.numbers, result, strict=True):
            argument = self.args[number]
            if is_graph_leaf(argument):
                self._take(number, argument, cotangent, places, found)
                continue
            leaves, treedef = jax.tree.flatten(argument, is_leaf=is_graph_leaf)
            if any(map(is_graph_leaf, leaves)):
                parts = treedef.flatten_up_to(cotangent)
                for leaf, part in zip(leaves, parts, strict=True):
                    if is_graph_leaf(leaf):
                        self._take(number, leaf, part, places, found)
                    else:
                        plain.append(part)
            elif cotangent is None:
                plain.extend([None] * len(leaves))
            else:
                plain.extend(treedef.flatten_up_to(cotangent))
        values = [
            found.get((number, index))
            for number, group in enumerate(self.call.values)
            for index in range(len(group))
        ]
        return self.call.pick([*values, *plain])

    def _take(
        self,
        number: int,
        root: Any,
        cotangent: Any,
        places: dict[Any, tuple[int, int]],
        found: dict[tuple[int, int], Any],
    ) -> None:
        if cotangent is None:
            return
        if isinstance(root, Variable):
            value = cotangent._value if isinstance(cotangent, Variable) else cotangent
            found[places[_key(root)]] = value
            return
        if isinstance(cotangent, Node):
            flat = flat_of(cotangent)
            pairs: Any = zip(flat.graphdef.leaf_paths, flat.values(), strict=True)
        elif isinstance(cotangent, (State, dict)):
            pairs = _flat_items(cotangent)
        else:
            raise errors.StructureError(
                f"custom_vjp: the cotangent of argument {number} of {self.name} is a "
                f"{type(cotangent).__name__}; for a module give a State, or a module"
            )
        known = {path: (holder, leaf) for path, holder, leaf in self._leaves_of(root, places)}
        selected = to_predicate(self.rule._parts.get(number, ...))
        for path, value in pairs:
            if path not in known:
                raise errors.StructureError(
                    f"custom_vjp: the cotangent of argument {number} of {self.name} has a value at "
                    f"`{errors.format_path(path)}`, where {type(root).__name__} has none"
                )
            holder, leaf = known[path]
            if selected(path, holder._value if isinstance(holder, Slot) else holder):
                found[leaf] = value._value if isinstance(value, Variable) else value


def _key(holder: Any) -> Any:
    if isinstance(holder, Slot):
        return (id(holder.node), holder.key, holder.position)
    return (id(holder),)
