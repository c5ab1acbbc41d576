"""custom_vjp: a function of modules with a gradient of its own."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, ParamSpec, TypeVar, Unpack, cast, overload

import jax

from moduli import errors
from moduli._call.bind import bind
from moduli._call.call import Call
from moduli._call.change_texts import describe_changes
from moduli._call.cotangents import Cotangents
from moduli._call.differentiated import DiffState
from moduli._call.frame import Frame
from moduli._call.function import (
    Function,
    Modes,
    as_positions,
    check_callable,
    folded,
    function_name,
    holds_modules,
)
from moduli._call.naming import naming
from moduli._call.running import running
from moduli._call.signature import Leaf
from moduli._call.writeback import ChangedEffects, only_written

__all__ = ["CustomVjp", "custom_vjp"]

P = ParamSpec("P")
R = TypeVar("R")


@overload
def custom_vjp(
    fun: Callable[P, R],
    *,
    nondiff_argnums: int | DiffState | Iterable[int | DiffState] = (),
    **_modes: Unpack[Modes],
) -> CustomVjp[P, R]: ...
@overload
def custom_vjp(
    fun: None = None,
    *,
    nondiff_argnums: int | DiffState | Iterable[int | DiffState] = (),
    **_modes: Unpack[Modes],
) -> Callable[[Callable[P, R]], CustomVjp[P, R]]: ...
def custom_vjp(
    fun: Callable[..., Any] | None = None,
    *,
    nondiff_argnums: int | DiffState | Iterable[int | DiffState] = (),
    **_modes: Unpack[Modes],
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
    return CustomVjp(fun, as_positions(nondiff_argnums, kept=(DiffState,)))


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

    @folded
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
            if holds_modules(args[number]):
                raise errors.StructureError(
                    f"custom_vjp: argument {number} of {self.name} holds a module, and "
                    "nondiff_argnums names it as a whole; name what is differentiated: "
                    f"`moduli.DiffState({number}, filter)` (False for nothing)"
                )
        self.numbers = [n for n in range(len(args)) if n not in self.fixed]
        names = [f"argument {number}" for number in self.numbers]
        self.call = Call("custom_vjp", tuple(args[n] for n in self.numbers), {}, names)
        self.effects: Any = None
        self.homes: list[Leaf | None] = []
        self.written: set[Leaf] = set()
        self.residuals: Call | None = None
        filters = {self._position(number): item for number, item in rule._parts.items()}
        arguments = [(number, args[number], filters.get(number, ...)) for number in self.numbers]
        self.cotangents = Cotangents(self.call, self.name, arguments)

    def _position(self, number: int) -> int:
        count = len(self.args)
        if not -count <= number < count:
            raise errors.StructureError(
                f"custom_vjp: nondiff_argnums has {number}, but {self.name} was called with "
                f"{count} arguments"
            )
        return number % count

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
        return self.call.apply((out, outputs), effects)

    def _frame(self, values: Any) -> Frame:
        frame = self.call.make_frame(values)
        frame.insert([(number, self.args[number]) for number in self.fixed])
        return frame

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
        frame = self._frame(values)
        out = frame.run("custom_vjp", self.name, self.rule._function.call)
        return self._finish(frame, out)

    def forward(self, values: Any) -> Any:
        frame = self._frame(values)
        rule: Any = self.rule._fwd
        self._check_rule("forward", rule, frame.args, {})
        pair = frame.run("custom_vjp", self._rule_name("forward", rule), rule)
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise errors.StructureError(
                f"custom_vjp: the forward rule {function_name(self.rule._fwd)} of {self.name} must "
                f"return a pair (result, residuals); it returned a {type(pair).__name__}"
            )
        out, residuals = pair
        kept = Call("custom_vjp", (residuals,), {}, binding=bind((residuals,), {}, recorded=False))
        self.residuals = kept.detached()
        return self._finish(frame, out), kept.dynamic

    def _rule_name(self, which: str, rule: Any) -> str:
        return f"{function_name(rule)}, the {which} rule of {self.name}"

    def _check_rule(self, which: str, rule: Any, args: Sequence[Any], kwargs: Any) -> None:
        """Raises if the rule does not take these arguments."""
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
                    f"custom_vjp: the {which} rule {function_name(rule)} of {self.name} is called "
                    f"with {takes}, but its signature is {signature} ({error})"
                ) from None

    def _call_backward(self, *args: Any, **kwargs: Any) -> Any:
        rule: Any = self.rule._bwd
        args = (*[self.args[n] for n in self.fixed], *args)
        self._check_rule("backward", rule, args, kwargs)
        with running("custom_vjp", self._rule_name("backward", rule), (), rule):
            return rule(*args, **kwargs)

    def backward(self, stored: Any, cotangents: Any) -> Any:
        out_g, outputs_g = cotangents
        g, updates = self.cotangents.given(self.effects, self.homes, out_g, outputs_g)
        assert self.residuals is not None
        (residuals,) = self.residuals.make_frame(stored).args
        if self.rule._takes_updates:
            result = self._call_backward(residuals, g, updates_g=updates)
        else:
            result = self._call_backward(residuals, (updates, g))
        if not isinstance(result, (tuple, list)) or len(result) != len(self.numbers):
            got = f"{type(result).__name__}" + (
                f" of {len(result)}" if isinstance(result, (tuple, list)) else ""
            )
            raise errors.StructureError(
                f"custom_vjp: the backward rule {function_name(self.rule._bwd)} of {self.name} "
                f"must return a tuple of {len(self.numbers)} cotangents, one for each "
                f"differentiated argument; it returned a {got}"
            )
        return (self.cotangents.match(result),)


def _structure(effects: Any) -> Any:
    return effects.graphdef if isinstance(effects, ChangedEffects) else None
