"""custom_vjp: a function of modules with a gradient of its own."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar, cast, overload

import jax
import jax.numpy as jnp

from moduli import errors
from moduli._base.compat import trace_state
from moduli._base.node import Node
from moduli._call.carried import is_array_like
from moduli._call.change_texts import describe_changes, outline
from moduli._call.function import Function, check_callable, function_name
from moduli._call.lift import Frame, Leaf
from moduli._call.naming import naming
from moduli._call.plain_call import PlainCall
from moduli._call.running import running
from moduli._call.writeback import ChangedEffects, only_written
from moduli._graph.cache import flat_of
from moduli._graph.data import is_graph_leaf
from moduli._graph.flatten import Slot, flatten_roots
from moduli._graph.state import State, _flat_items, from_flat_state
from moduli._graph.unflatten import build, decode
from moduli._recording.recording import Recording
from moduli._transforms.grad import DiffState
from moduli._variable.box import _EMPTY, Variable
from moduli._variable.filters import to_predicate

__all__ = ["CustomVjp", "custom_vjp"]

P = ParamSpec("P")
R = TypeVar("R")


@overload
def custom_vjp(
    fun: Callable[P, R],
    *,
    nondiff_argnums: int | DiffState | Iterable[int | DiffState] = (),
) -> CustomVjp[P, R]: ...
@overload
def custom_vjp(
    fun: None = None,
    *,
    nondiff_argnums: int | DiffState | Iterable[int | DiffState] = (),
) -> Callable[[Callable[P, R]], CustomVjp[P, R]]: ...
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
      function left in it, new Variables included (None for other arguments). In the place of a
      module, ``g`` has such a State too. The rule returns a tuple with the cotangent of each
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


class CustomVjp(Generic[P, R]):
    """A function of modules with a gradient of its own; made by :func:`custom_vjp`."""

    def __init__(self, fun: Callable[P, R], nondiff_argnums: tuple[int | DiffState, ...]):
        functools.update_wrapper(self, fun)
        self._function = Function(fun)
        self._fixed = {n for n in nondiff_argnums if isinstance(n, int)}
        self._parts = {n.argnum: n.filter for n in nondiff_argnums if isinstance(n, DiffState)}
        self._fwd: Callable[..., Any] | None = None
        self._bwd: Callable[..., Any] | None = None
        self._takes_updates = False

    def defvjp(self, fwd: Callable[..., tuple[R, Any]], bwd: Callable[..., Any]) -> None:
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

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Calls the function."""
        name = self._function.name
        if self._fwd is None or self._bwd is None:
            raise errors.StructureError(
                f"custom_vjp: {name} has no rule yet; write `{name}.defvjp(fwd, bwd)`"
            )
        given, named = self._function.positional(*self._function.complete(args, kwargs))
        if named:
            raise errors.StructureError(
                f"custom_vjp: {name} got the keyword arguments {sorted(named)}, which cannot be "
                "passed by position; a differentiated function takes positional arguments"
            )
        return _Call(self, given).run()


class _Value(NamedTuple):
    """A value below an argument."""

    path: tuple[Any, ...]
    kind: type[Variable[Any]] | None
    metadata: Any
    leaf: Leaf


class _Call:
    """One call: the pure functions that JAX gets, and what they found out.

    JAX may ask for the backward pass much later; what it needs to know of the caller's objects is
    therefore noted at the start.
    """

    def __init__(self, rule: CustomVjp, args: tuple[Any, ...]):
        self.rule, self.args = rule, args
        self.name = rule._function.name
        self.fixed = sorted({self._position(number) for number in rule._fixed})
        for number in self.fixed:
            if any(map(is_graph_leaf, jax.tree.leaves(args[number], is_leaf=is_graph_leaf))):
                raise errors.StructureError(
                    f"custom_vjp: argument {number} of {self.name} holds a module, and "
                    "nondiff_argnums names it as a whole; name what is differentiated: "
                    f"`moduli.DiffState({number}, filter)` (False for nothing)"
                )
        self.numbers = [n for n in range(len(args)) if n not in self.fixed]
        names = [f"argument {number}" for number in self.numbers]
        self.call = PlainCall("custom_vjp", tuple(args[n] for n in self.numbers), {}, names)
        self.effects: Any = None
        self.homes: list[Leaf | None] = []
        self.written: set[Leaf] = set()
        self.residuals: Any = None
        places = {
            _key(holder): (number, index)
            for number, flat in enumerate(self.call.binding.flats)
            for index, holder in enumerate(flat.holders)
        }
        filters = {self._position(number): item for number, item in rule._parts.items()}
        self._values: list[list[_Value]] = []  # of each root
        self._leaves: list[dict[Any, Leaf]] = []  # of each root, by every path
        self._selected: list[set[Leaf]] = []
        self._args: list[Any] = []  # (treedef, whether each leaf is a module) of each argument
        for number in self.numbers:
            leaves, treedef = jax.tree.flatten(args[number], is_leaf=is_graph_leaf)
            self._args.append((treedef, [is_graph_leaf(leaf) for leaf in leaves]))
            selected = to_predicate(filters.get(number, ...))
            for root in filter(is_graph_leaf, leaves):
                self._note(root, places, selected)

    def _position(self, number: int) -> int:
        count = len(self.args)
        if not -count <= number < count:
            raise errors.StructureError(
                f"custom_vjp: nondiff_argnums has {number}, but {self.name} was called with "
                f"{count} arguments"
            )
        return number % count

    def _note(self, root: Any, places: dict[Any, Leaf], selected: Any) -> None:
        flat = flat_of(root)
        leaves = [places[_key(holder)] for holder in flat.holders]
        pairs = list(zip(flat.graphdef.leaf_paths, flat.holders, strict=True))
        self._values.append(
            [
                _Value(path, type(holder), holder._metadata, leaf)
                if isinstance(holder, Variable)
                else _Value(path, None, None, leaf)
                for (path, holder), leaf in zip(pairs, leaves, strict=True)
            ]
        )
        self._leaves.append({p: leaves[i] for p, i in flat.graphdef.path_to_leaf.items()})
        self._selected.append(
            {
                leaf
                for (path, holder), leaf in zip(pairs, leaves, strict=True)
                if selected(path, holder if isinstance(holder, Variable) else holder._value)
            }
        )

    def run(self) -> Any:
        function = self.rule._function
        primal = self.call.named(lambda values: self.primal(values), function, self.numbers)
        forward = self.call.named(
            lambda values: self.forward(values),
            Function(cast(Any, self.rule._fwd)),
            self.numbers,
        )
        transformed = jax.custom_vjp(primal)
        transformed.defvjp(forward, self.backward)
        with naming("custom_vjp", function.call):
            out, outputs = transformed(self.call.dynamic)
        effects, outputs = only_written(self.effects, self.homes, outputs, self.written)
        return effects.apply(self.call.binding.flats, self.call.values, out, outputs)

    def _all_arguments(self, frame: Frame) -> list[Any]:
        new = iter(frame.args)
        return [self.args[n] if n in self.fixed else next(new) for n in range(len(self.args))]

    def _finish(self, frame: Frame, out: Any) -> Any:
        """Writes down what happened; both passes have to do the same to the arguments."""
        outputs = self.call.finish(frame, out, keep=self.call.is_dynamic, strict=True)
        effects = self.call.effects
        before = self.effects
        if before is not None and _structure(before) is not _structure(effects):
            raise errors.StructureError(
                f"custom_vjp: {self.name} {describe_changes(before, self.call.place)}, but its "
                f"forward rule {function_name(self.rule._fwd)} "
                f"{describe_changes(effects, self.call.place)}; both must leave the same structure"
            )
        self.effects, self.homes = effects, self.call.homes
        self.written |= self.call.written
        return outputs

    def primal(self, values: Any) -> Any:
        frame = self.call.make_frame(values)
        with running("custom_vjp", self.name, frame.recordings, self.rule._function.call):
            out = self.rule._function.call(*self._all_arguments(frame))
        return self._finish(frame, out)

    def forward(self, values: Any) -> Any:
        frame = self.call.make_frame(values)
        args = self._all_arguments(frame)
        pair = self._call_rule("forward", self.rule._fwd, args, {}, frame.recordings)
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
        return self._finish(frame, out), stored

    def _call_rule(
        self,
        which: str,
        rule: Any,
        args: Sequence[Any],
        kwargs: Any,
        opened: tuple[Recording, ...] = (),
    ) -> Any:
        name = function_name(rule)
        try:
            signature = inspect.signature(rule)
        except (TypeError, ValueError):
            signature = None
        if signature is not None:
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:
                fixed = "the nondiff arguments, " * bool(self.fixed)
                takes = (
                    f"the {len(args)} arguments of {self.name}"
                    if which == "forward"
                    else f"{fixed}the residuals and g, the keyword argument updates_g"
                    if kwargs
                    else f"{fixed}the residuals and the pair (updates_g, g)"
                )
                raise errors.StructureError(
                    f"custom_vjp: the {which} rule {name} of {self.name} is called with {takes}, "
                    f"but its signature is {signature} ({error})"
                ) from None
        with running("custom_vjp", f"{name}, the {which} rule of {self.name}", opened, rule):
            return rule(*args, **kwargs)

    def _rebuild_residuals(self, stored: Any) -> Any:
        treedef, marks, graphdef, mask, static = self.residuals
        new = iter(stored)
        every = [next(new) if use else old for use, old in zip(mask, static, strict=True)]
        values, plain = every[: graphdef.num_leaves], iter(every[graphdef.num_leaves :])
        objects = build(graphdef, values)
        roots = iter([decode(code, objects, values) for code in graphdef.roots])
        return jax.tree.unflatten(treedef, [next(roots if mark else plain) for mark in marks])

    def backward(self, stored: Any, cotangents: Any) -> Any:
        out_g, outputs_g = cotangents
        g, updates = self._given_cotangents(out_g, outputs_g)
        args = [*[self.args[n] for n in self.fixed], self._rebuild_residuals(stored)]
        if self.rule._takes_updates:
            result = self._call_rule("backward", self.rule._bwd, [*args, g], {"updates_g": updates})
        else:
            result = self._call_rule("backward", self.rule._bwd, [*args, (updates, g)], {})
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

    def _given_cotangents(self, out_g: Any, outputs_g: Sequence[Any]) -> tuple[Any, Any]:
        """The cotangent of the result, and for each argument that of what was left in it."""
        effects = self.effects
        roots = [self._root_cotangents(n, outputs_g) for n in range(len(self._values))]
        own = iter(roots)
        updates = []
        for _, marks in self._args:
            parts = [next(own) for is_root in marks if is_root]
            updates.append(parts[0] if len(parts) == len(marks) == 1 else None)
        if isinstance(effects, ChangedEffects):
            count = effects.num_roots
            objects = iter(range(count, count + sum(effects.marks)))
            plain = iter(out_g)
            out_g = jax.tree.unflatten(
                effects.treedef,
                [
                    self._root_cotangents(next(objects), outputs_g) if mark else next(plain)
                    for mark in effects.marks
                ],
            )
        return out_g, tuple(updates)

    def _root_cotangents(self, root: int, outputs_g: Sequence[Any]) -> Any:
        """The cotangents of the values below an argument or a returned object: a State."""
        trace = trace_state()
        pairs = []
        for path, kind, metadata, output in self._outputs_below(root):
            value = outputs_g[output]
            if kind is not None:
                value = kind._make(value, metadata, trace)
            if path == ():
                return value
            pairs.append((path, value))
        return from_flat_state(pairs)

    def _outputs_below(self, root: int) -> Iterator[tuple[Any, Any, Any, int]]:
        """(path, kind, metadata, number of the output) of the values below a root."""
        effects = self.effects
        if not isinstance(effects, ChangedEffects):
            outputs = {leaf: number for number, leaf in enumerate(self.homes)}
            for path, kind, metadata, leaf in self._values[root]:
                if leaf in outputs:
                    yield path, kind, metadata, outputs[leaf]
            return
        graphdef, seen = effects.graphdef, set()
        for path, index in graphdef.path_to_leaf.items():
            if len(graphdef.roots) > 1:
                if path[0] != root:
                    continue
                path = path[1:]
            output, owner = effects.sources[index], graphdef.leaf_objects[index]
            if index in seen or not isinstance(output, int):
                continue
            seen.add(index)
            if owner is None:
                yield path, None, None, output
            else:
                metadata = graphdef.metadatas.get(owner, _EMPTY)
                yield path, graphdef.objects[owner][1], metadata, output

    def _cotangents(self, result: Sequence[Any]) -> list[Any]:
        """The cotangent of each dynamic value, None where there is none."""
        found: dict[Leaf, tuple[Any, str]] = {}
        plain: list[tuple[Any, str]] = []
        roots = iter(range(len(self._values)))
        for number, cotangent, (treedef, marks) in zip(
            self.numbers, result, self._args, strict=True
        ):
            name = f"the cotangent of argument {number} of {self.name}"
            if cotangent is None:
                parts = [None] * len(marks)
            elif treedef == _LEAF:
                parts = [cotangent]
            else:
                try:
                    parts = treedef.flatten_up_to(cotangent)
                except (TypeError, ValueError):
                    raise errors.StructureError(
                        f"custom_vjp: {name} has the structure {outline(cotangent)}, but the "
                        f"argument is {outline(self.args[number])}; give the same structure, or "
                        "None for no cotangent"
                    ) from None
            for part, is_root in zip(parts, marks, strict=True):
                if is_root:
                    self._take(next(roots), name, part, found)
                else:
                    plain.append((part, name))
        graphs = [
            found.get((number, index), (None, ""))
            for number, group in enumerate(self.call.values)
            for index in range(len(group))
        ]
        picked = self.call.pick([*graphs, *plain])
        return [_fit(p, *item) for p, item in zip(self.call.dynamic, picked, strict=True)]

    def _take(
        self, root: int, name: str, cotangent: Any, found: dict[Leaf, tuple[Any, str]]
    ) -> None:
        """Notes the cotangents of the values below one module or Variable."""
        if cotangent is None:
            return
        known, selected = self._leaves[root], self._selected[root]
        if () in known:
            value = cotangent._value if isinstance(cotangent, Variable) else cotangent
            found[known[()]] = (value, name)
            return
        if isinstance(cotangent, Node):
            flat = flat_of(cotangent)
            pairs: Any = zip(flat.graphdef.leaf_paths, flat.values(), strict=True)
        elif isinstance(cotangent, (State, dict)):
            pairs = _flat_items(cotangent)
        else:
            raise errors.StructureError(
                f"custom_vjp: {name} is a {type(cotangent).__name__}; for a module give a State, "
                "a module, or None"
            )
        for path, value in pairs:
            leaf = known.get(path)
            text = f"{name} at `{errors.format_path(path)}`"
            if leaf is None:
                raise errors.StructureError(
                    f"custom_vjp: {text} is that of no value: the argument has none there"
                )
            if leaf in selected:
                found[leaf] = (value._value if isinstance(value, Variable) else value, text)


_LEAF = jax.tree.structure(0)


def _fit(primal: Any, cotangent: Any, name: str) -> Any:
    """Checks the cotangent of one value; those of values without a gradient are left out."""
    if cotangent is None:
        return None
    leaves, treedef = jax.tree.flatten(primal)
    if jax.tree.structure(cotangent) != treedef:
        raise errors.StructureError(
            f"custom_vjp: {name} has the structure {outline(cotangent)}, but the value is "
            f"{outline(primal)}; give the same structure, or None for no cotangent"
        )
    fitting = []
    for leaf, given in zip(leaves, jax.tree.leaves(cotangent), strict=True):
        wanted = jax.typeof(leaf)
        if not jnp.issubdtype(wanted.dtype, jnp.inexact):
            fitting.append(None)
            continue
        got = jax.typeof(given)
        if got.shape != wanted.shape or (got.dtype != wanted.dtype and not got.weak_type):
            raise errors.ShapeError(
                f"custom_vjp: {name} is {got.dtype}{list(got.shape)}, but the value is "
                f"{wanted.dtype}{list(wanted.shape)}; a cotangent has the shape and dtype of its "
                "value"
            )
        fitting.append(jnp.asarray(given, wanted.dtype))
    return fitting[0] if treedef == _LEAF else jax.tree.unflatten(treedef, fitting)


def _structure(effects: Any) -> Any:
    return effects.graphdef if isinstance(effects, ChangedEffects) else None


def _key(holder: Any) -> Any:
    if isinstance(holder, Slot):
        return (id(holder.node), holder.key, holder.position)
    return (id(holder),)
