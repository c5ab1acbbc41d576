"""grad and value_and_grad: gradients with respect to parts of modules."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, ParamSpec, TypeVar, Unpack, overload

import jax

from moduli import errors
from moduli._call.again import remember
from moduli._call.differentiated import DiffState, Targets
from moduli._call.function import Function, Modes, check_callable, folded, options_of, wraps
from moduli._call.naming import naming
from moduli._call.results import scalar_and_aux

__all__ = ["grad", "value_and_grad"]

P = ParamSpec("P")
R = TypeVar("R")
X = TypeVar("X")


@overload
def value_and_grad(
    f: Callable[P, R],
    *,
    argnums: int | DiffState | Sequence[int | DiffState] = 0,
    has_aux: Literal[False] = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    reduce_axes: Sequence[Any] = (),
    **_modes: Unpack[Modes],
) -> Callable[P, tuple[R, Any]]: ...
@overload
def value_and_grad(
    f: Callable[P, tuple[R, X]],
    *,
    argnums: int | DiffState | Sequence[int | DiffState] = 0,
    has_aux: Literal[True],
    holomorphic: bool = False,
    allow_int: bool = False,
    reduce_axes: Sequence[Any] = (),
    **_modes: Unpack[Modes],
) -> Callable[P, tuple[tuple[R, X], Any]]: ...
@overload
def value_and_grad(
    f: None = None,
    *,
    argnums: int | DiffState | Sequence[int | DiffState] = 0,
    has_aux: Literal[False] = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    reduce_axes: Sequence[Any] = (),
    **_modes: Unpack[Modes],
) -> Callable[[Callable[P, R]], Callable[P, tuple[R, Any]]]: ...
@overload
def value_and_grad(
    f: None = None,
    *,
    argnums: int | DiffState | Sequence[int | DiffState] = 0,
    has_aux: Literal[True],
    holomorphic: bool = False,
    allow_int: bool = False,
    reduce_axes: Sequence[Any] = (),
    **_modes: Unpack[Modes],
) -> Callable[[Callable[P, tuple[R, X]]], Callable[P, tuple[tuple[R, X], Any]]]: ...
@overload
def value_and_grad(
    f: Callable[P, Any] | None = None,
    *,
    argnums: int | DiffState | Sequence[int | DiffState] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    reduce_axes: Sequence[Any] = (),
    **_modes: Unpack[Modes],
) -> Any: ...
def value_and_grad(
    f: Callable[..., Any] | None = None,
    *,
    argnums: int | DiffState | Sequence[int | DiffState] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    reduce_axes: Sequence[Any] = (),
    **_modes: Unpack[Modes],
) -> Any:
    """Like :func:`grad`, but the new function returns the value and the gradient.

    Args:
      f: see :func:`grad`.
      argnums: see :func:`grad`.
      has_aux: see :func:`grad`.
      holomorphic: as of ``jax.value_and_grad``.
      allow_int: as of ``jax.value_and_grad``.
      reduce_axes: accepted for flax's signature; only ``()`` has a meaning.

    Returns:
      A function that returns ``(value, gradient)``, or ``((value, aux), gradient)``.

    Example:
      >>> import moduli as nnx
      >>> model = nnx.Dict({"w": nnx.Param(2.0)})
      >>> value, grads = nnx.value_and_grad(lambda m: m.w ** 2)(model)
      >>> float(value), float(grads.w.value)
      (4.0, 4.0)
    """
    options = options_of(locals())
    if f is None:
        return functools.partial(value_and_grad, **options)
    both = _differentiate(f, "value_and_grad", **options)
    return remember(both, f, value_and_grad, options)


@overload
def grad(
    f: Callable[P, Any],
    *,
    argnums: int | DiffState | Sequence[int | DiffState] = 0,
    has_aux: Literal[False] = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    reduce_axes: Sequence[Any] = (),
    **_modes: Unpack[Modes],
) -> Callable[P, Any]: ...
@overload
def grad(
    f: Callable[P, tuple[Any, X]],
    *,
    argnums: int | DiffState | Sequence[int | DiffState] = 0,
    has_aux: Literal[True],
    holomorphic: bool = False,
    allow_int: bool = False,
    reduce_axes: Sequence[Any] = (),
    **_modes: Unpack[Modes],
) -> Callable[P, tuple[Any, X]]: ...
@overload
def grad(
    f: None = None,
    *,
    argnums: int | DiffState | Sequence[int | DiffState] = 0,
    has_aux: Literal[False] = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    reduce_axes: Sequence[Any] = (),
    **_modes: Unpack[Modes],
) -> Callable[[Callable[P, Any]], Callable[P, Any]]: ...
@overload
def grad(
    f: None = None,
    *,
    argnums: int | DiffState | Sequence[int | DiffState] = 0,
    has_aux: Literal[True],
    holomorphic: bool = False,
    allow_int: bool = False,
    reduce_axes: Sequence[Any] = (),
    **_modes: Unpack[Modes],
) -> Callable[[Callable[P, tuple[Any, X]]], Callable[P, tuple[Any, X]]]: ...
@overload
def grad(
    f: Callable[P, Any] | None = None,
    *,
    argnums: int | DiffState | Sequence[int | DiffState] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    reduce_axes: Sequence[Any] = (),
    **_modes: Unpack[Modes],
) -> Any: ...
def grad(
    f: Callable[..., Any] | None = None,
    *,
    argnums: int | DiffState | Sequence[int | DiffState] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    reduce_axes: Sequence[Any] = (),
    **_modes: Unpack[Modes],
) -> Any:
    """``jax.grad`` for functions that take modules, with all their updates.

    Args:
      f: a function that returns a scalar; with ``has_aux`` a pair (scalar, anything). Without it a
        decorator is returned, so ``@nnx.grad(argnums=1)`` works.
      argnums: the differentiated arguments. An int means the Params of a module, all of a Variable
        or State, or a whole pytree of arrays; ``DiffState(argnum, filter)`` selects other values.
      has_aux: see ``f``.
      holomorphic: as of ``jax.grad``.
      allow_int: as of ``jax.grad``.
      reduce_axes: accepted for flax's signature; only ``()`` has a meaning.

    Returns:
      A function with the arguments of ``f`` that returns the gradient, or ``(gradient, aux)``: for
      a module a State of its selected values, for other arguments their own structure; a tuple of
      these if ``argnums`` is a sequence.

    Raises:
      StructureError: if an object is differentiated in two ways, or ``argnums`` is wrong.
      ShapeError: if ``f`` does not return a scalar.
      VariableError: if a selected value is an integer.

    Example:
      >>> import moduli as nnx, jax.numpy as jnp
      >>> class Linear(nnx.Module):
      ...     def __init__(self):
      ...         self.kernel, self.calls = nnx.Param(jnp.ones((2, 1))), nnx.Variable(0)
      ...     def __call__(self, x):
      ...         self.calls += 1
      ...         return x @ self.kernel
      >>> model = Linear()
      >>> grads = nnx.grad(lambda m, x: m(x).sum())(model, jnp.array([[3.0, 4.0]]))
      >>> grads.kernel.value.tolist(), model.calls.value
      ([[3.0], [4.0]], 1)
    """
    options = options_of(locals())
    if f is None:
        return functools.partial(grad, **options)
    both = _differentiate(f, "grad", **options)

    @wraps(f)
    @folded
    def gradient(*args: Any, **kwargs: Any) -> Any:
        value, grads = both(*args, **kwargs)
        return (grads, value[1]) if has_aux else grads

    return remember(gradient, f, grad, options)


def _differentiate(
    f: Callable[..., Any],
    transform: str,
    *,
    argnums: Any,
    has_aux: bool,
    holomorphic: bool,
    allow_int: bool,
    reduce_axes: Sequence[Any],
) -> Callable[..., Any]:
    check_callable(f, transform, "argnums=...")
    if tuple(reduce_axes):
        raise errors.StructureError(
            f"{transform}: reduce_axes={reduce_axes!r} has no meaning in today's JAX; sum over the "
            "axis yourself with jax.lax.psum"
        )
    function = Function(f)
    name = function.name

    @wraps(f)
    @folded
    def value_and_gradient(*args: Any, **kwargs: Any) -> Any:
        given, keywords = function.by_position(args, kwargs)
        targets = Targets("grad", argnums, len(given), function)
        call = targets.take_apart(function, given, keywords, allow_int)

        def pure(wanted: Any) -> Any:
            frame = targets.frame(call, wanted)
            out = frame.run(transform, name, function.call)
            value, aux = scalar_and_aux(out, has_aux, transform, name)
            return value, call.finish(frame, aux)

        with naming(transform, function.call):
            (value, outputs), grads = jax.value_and_grad(
                call.named(pure, function),
                has_aux=True,
                holomorphic=holomorphic,
                allow_int=allow_int,
            )(call.dynamic)
        aux = call.apply(outputs)
        return (value, aux) if has_aux else value, targets.gradients(call, grads)

    return value_and_gradient
