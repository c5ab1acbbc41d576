"""vjp and jvp: linear maps of functions of modules, backwards and forwards."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moduli import errors
from moduli._graph.flatten import Slot
from moduli._graph.nodes import is_graph_leaf
from moduli._running import running
from moduli._state import State
from moduli._transforms.arguments import Function, check_callable, wraps
from moduli._transforms.plain_call import PlainCall
from moduli._transforms.prefixes import label_finder, spread
from moduli._variable import Variable

__all__ = ["jvp", "vjp"]


def vjp(
    f: Callable[..., Any] | None = None,
    *primals: Any,
    has_aux: bool = False,
    reduce_axes: Sequence[Any] = (),
) -> Any:
    """``jax.vjp`` for functions that take modules, with all their updates.

    Args:
      f: a function, a method, or a module. Without it a decorator is returned; without primals a
        function that takes them.
      *primals: the arguments of ``f``: modules, arrays, pytrees of these.
      has_aux: whether ``f`` returns a pair (result, anything).
      reduce_axes: accepted for flax's signature; only ``()`` has a meaning.

    Returns:
      ``(result, vjp_fn)``, or ``(result, vjp_fn, aux)``. ``vjp_fn`` takes a cotangent like the
      result and returns a tuple with a cotangent like each argument: for a module a new module of
      the same structure (values without a gradient, such as counts, have dtype float0).

    Raises:
      StructureError: if the result holds a module.

    Example:
      >>> import moduli as nnx, jax.numpy as jnp
      >>> model = nnx.Dict({"w": nnx.Param(jnp.array(3.0))})
      >>> y, pullback = nnx.vjp(lambda m, x: m["w"] * x, model, jnp.array(2.0))
      >>> grad_model, grad_x = pullback(jnp.array(1.0))
      >>> float(y), float(grad_model["w"].value), float(grad_x)
      (6.0, 2.0, 3.0)
    """
    if f is None:
        return functools.partial(vjp, has_aux=has_aux, reduce_axes=reduce_axes)
    check_callable(f, "vjp", "has_aux=...")
    if tuple(reduce_axes):
        raise errors.StructureError(
            f"vjp: reduce_axes={reduce_axes!r} has no meaning in today's JAX; sum over the axis "
            "yourself with jax.lax.psum"
        )
    if not primals:
        return wraps(f)(lambda *primals: vjp(f, *primals, has_aux=has_aux))
    function = Function(f)
    args, kwargs = function.complete(primals, {})
    call = PlainCall("vjp", args, kwargs)
    result, pullback, outputs = jax.vjp(
        lambda values: _run(call, function, values, has_aux), call.dynamic, has_aux=True
    )
    aux = call.apply(outputs)

    def vjp_fn(cotangent: Any) -> Any:
        (cotangents,) = pullback(cotangent)
        return tuple(call.make_frame(cotangents).args[len(function.bound) :])

    return (result, vjp_fn, aux) if has_aux else (result, vjp_fn)


def jvp(
    f: Callable[..., Any] | None = None,
    primals: tuple[Any, ...] | None = None,
    tangents: tuple[Any, ...] | None = None,
    *,
    has_aux: bool = False,
) -> Any:
    """``jax.jvp`` for functions that take modules, with all their updates.

    Args:
      f: a function, a method, or a module. Without it a decorator is returned; without primals a
        function that takes primals and tangents.
      primals: a tuple of the arguments of ``f``.
      tangents: a tuple of tangents like the arguments. For a module, a module of the same
        structure or a State; values that a State leaves out have a tangent of zero, as have values
        that are not floating point.
      has_aux: whether ``f`` returns a pair (result, anything).

    Returns:
      ``(result, tangent of the result)``, or ``(result, tangent, aux)``.

    Raises:
      StructureError: if a tangent does not fit its argument, or the result holds a module.

    Example:
      >>> import moduli as nnx, jax.numpy as jnp
      >>> model = nnx.Dict({"w": nnx.Param(jnp.array(3.0))})
      >>> towards = nnx.State({"w": 1.0})
      >>> y, dy = nnx.jvp(lambda m, x: m["w"] * x, (model, 2.0), (towards, 0.0))
      >>> float(y), float(dy)
      (6.0, 2.0)
    """
    if f is None:
        return functools.partial(jvp, has_aux=has_aux)
    check_callable(f, "jvp", "has_aux=...")
    if primals is None:
        return wraps(f)(lambda primals, tangents: jvp(f, primals, tangents, has_aux=has_aux))
    if not isinstance(primals, (tuple, list)) or not isinstance(tangents, (tuple, list)):
        raise errors.StructureError(
            f"jvp: primals and tangents are tuples, one entry for each argument; got a "
            f"{type(primals).__name__} and a {type(tangents).__name__}"
        )
    if len(primals) != len(tangents):
        raise errors.StructureError(
            f"jvp: got {len(primals)} primals and {len(tangents)} tangents; give one tangent for "
            "each argument (zeros where there is none)"
        )
    function = Function(f)
    args, kwargs = function.complete(tuple(primals), {})
    call = PlainCall("jvp", args, kwargs)
    directions = _directions(call, args, (*[State({}) for _ in function.bound], *tangents))
    result, tangent, outputs = jax.jvp(
        lambda values: _run(call, function, values, has_aux),
        (call.dynamic,),
        (directions,),
        has_aux=True,
    )
    aux = call.apply(outputs)
    return (result, tangent, aux) if has_aux else (result, tangent)


def _run(call: PlainCall, function: Function, values: Any, has_aux: bool) -> Any:
    """The pure function: ``values -> (result, outputs)`` with aux in the place of the result."""
    frame = call.make_frame(values)
    with running(call.transform, function.name):
        out = function.call(*frame.args, **frame.kwargs)
    aux = None
    if has_aux:
        if not isinstance(out, (tuple, list)) or len(out) != 2:
            raise errors.StructureError(
                f"{call.transform}: with has_aux=True {function.name} must return a pair "
                f"(result, aux); it returned a {type(out).__name__}"
            )
        out, aux = out
    if isinstance(out, Variable):
        out = out.value
    if any(map(is_graph_leaf, jax.tree.leaves(out, is_leaf=is_graph_leaf))):
        raise errors.StructureError(
            f"{call.transform}: {function.name} returns a module or a Variable as its result, "
            "which has no cotangent of its own; return its values (`moduli.state(module)`), or "
            "return it as aux with has_aux=True"
        )
    call.effects, outputs = frame.finish(aux)
    return out, outputs


def _directions(call: PlainCall, args: tuple[Any, ...], tangents: tuple[Any, ...]) -> list[Any]:
    """The tangent of each dynamic value, in order."""
    finders: list[Any] = []
    plain: list[Any] = []
    for number, (primal, tangent) in enumerate(zip(args, tangents, strict=True)):
        name = f"jvp: tangents[{number}]"
        leaves = jax.tree.leaves(primal, is_leaf=is_graph_leaf)
        for leaf, (found, base) in zip(leaves, spread(tangent, primal, name), strict=True):
            if not is_graph_leaf(leaf):
                plain.append(found)
            elif isinstance(found, State):
                known = dict(_flat(found))
                finders.append(lambda path, leaf, known=known: known.get(path))
            elif is_graph_leaf(found) or isinstance(leaf, Variable):
                finders.append(label_finder(found, base, name))
            else:
                raise errors.StructureError(
                    f"{name} is a {type(found).__name__} in the place of a {type(leaf).__name__}; "
                    "give a module of the same structure, or a State"
                )
    values: list[Any] = []
    start = 0
    for flat in call.binding.flats:
        many = len(flat.graphdef.roots) > 1
        for path, holder in zip(flat.graphdef.leaf_paths, flat.holders, strict=True):
            root, rest = (start + path[0], path[1:]) if many else (start, path)
            leaf = holder._value if isinstance(holder, Slot) else holder
            found = finders[root](rest, leaf)
            values.append(found._value if isinstance(found, Variable) else found)
        start += len(flat.graphdef.roots)
    every = call.pick([*values, *plain])
    return [_tangent(primal, found) for primal, found in zip(call.dynamic, every, strict=True)]


def _flat(state: State) -> Any:
    from moduli._state import _flat_items

    return _flat_items(state)


def _tangent(primal: Any, tangent: Any) -> Any:
    leaves, treedef = jax.tree.flatten(primal)
    given: Any = [None] * len(leaves)
    if tangent is not None:
        given = jax.tree.leaves(tangent)
        if len(given) != len(leaves):
            given = [tangent] * len(leaves)
    made = []
    for leaf, direction in zip(leaves, given, strict=True):
        kind = jax.typeof(leaf)
        if not jnp.issubdtype(kind.dtype, jnp.inexact):
            made.append(np.zeros(kind.shape, jax.dtypes.float0))
        elif direction is None:
            made.append(jnp.zeros(kind.shape, kind.dtype))
        else:
            made.append(jnp.asarray(direction, kind.dtype))
    return jax.tree.unflatten(treedef, made)
