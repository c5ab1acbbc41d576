"""accumulate: value and gradients of a batch that is worked on in parts.

The activations of one part are in memory at a time. The parts run one after another in a loop that
is compiled once; what the loss writes into a model, such as statistics and counts of streams, the
next part sees, as in a Python loop over the parts.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import moduli
from moduli.errors import ShapeError, StructureError
from moduli.lowlevel import Function, check_callable, folded, wraps
from moduli_train._meshes import gathered, rows_like

__all__ = ["accumulate"]

WHOLE, SPLIT, STATIC = "whole", "split", "static"


def accumulate(
    loss_fn: Callable[..., Any],
    parts: int,
    weight: Callable[..., Any] | None = None,
    *,
    argnums: Any = 0,
    has_aux: bool = False,
    batch_argnums: int | Sequence[int] | None = None,
) -> Callable[..., Any]:
    r"""Like :func:`moduli.value_and_grad`, with a batch that is worked on in parts.

    With losses :math:`l_i` of the parts and weights :math:`w_i` the value is
    :math:`\sum_i w_i l_i / \sum_i w_i`, and the gradient is that of it. For a loss that is a mean
    over rows this is the value for the whole batch; only a layer that looks at a whole batch, such
    as BatchNorm, sees parts. Sums are in float32 at least.

    Args:
      loss_fn: takes a model and a batch and returns a scalar; with ``has_aux`` a pair
        (scalar, anything).
      parts: in how many parts a batch is worked on. All have ``ceil(rows / parts)`` rows but for
        the last, which has the rest.
      weight: returns the weight of a part, a scalar; it takes the arguments of the loss, or those
        of them that are not differentiated. By default a part weighs as many as its rows. Where the
        loss is a mean over some rows, as over those that a mask selects, it is their number:
        ``lambda x, y, mask: mask.sum()``. A part of weight zero adds nothing.
      argnums: see :func:`moduli.grad`.
      has_aux: see ``loss_fn``. What has a row for each row of the part is joined; other floats are
        averaged like the loss.
      batch_argnums: the positions of the arguments that are split along their first axis; by
        default all that are not differentiated. Modules, and arrays without axes, go whole to each
        part.

    Returns:
      A function with the arguments of ``loss_fn`` that returns what ``value_and_grad`` does. Call
      it in a jitted step.

    Raises:
      StructureError: if there is nothing to split, or aux holds something that cannot be joined.
      ShapeError: if arrays differ in the number of their rows, or a weight is no scalar.

    Example:
      >>> import moduli as nnx, jax.numpy as jnp
      >>> model = nnx.Dict({"w": nnx.Param(2.0)})
      >>> def loss_fn(model, x):
      ...     return jnp.mean(model["w"].value * x)
      >>> x = jnp.arange(10.0)
      >>> loss, grads = nnx.accumulate(loss_fn, parts=4)(model, x)  # of 3, 3, 3 rows and 1
      >>> float(loss), float(grads["w"].value)
      (9.0, 4.5)
    """
    check_callable(loss_fn, "accumulate", "parts=...")
    if not isinstance(parts, (int, np.integer)) or isinstance(parts, bool) or parts < 1:
        raise StructureError(f"accumulate: parts is the number of parts, 1 or more; got {parts!r}")
    function = Function(loss_fn)
    first = len(function.bound)
    targets = _shifted(argnums, first)
    differentiated = moduli.value_and_grad(function.call, argnums=targets, has_aux=has_aux)
    zero = moduli.value_and_grad(_zero, argnums=targets)

    @functools.lru_cache(maxsize=32)
    def step_of(layout: _Layout) -> tuple[Callable[..., Any], Callable[..., Any]]:
        def step(sums: Any, whole: list[Any], part: list[Any]) -> Any:
            args, kwargs = layout.join(whole, part)
            rows = part[0].shape[0]
            share = jnp.float32(rows) if weight is None else _weight(weight, layout, args, kwargs)
            out, grads = differentiated(*args, **kwargs)
            loss, aux = out if has_aux else (out, ())
            aux = jax.tree.map(jnp.asarray, aux)
            for path, leaf in jax.tree.leaves_with_path(aux):
                _check_joinable(path, leaf, rows)
            values = jax.tree.leaves(grads)
            sums = [old + _times(value, share) for old, value in zip(sums, values, strict=True)]
            return sums, (share, loss, aux)

        loop = moduli.scan(step, in_axes=(moduli.Carry, None, 0), out_axes=(moduli.Carry, 0))
        return step, loop

    @wraps(loss_fn)
    @folded
    def accumulated(*args: Any, **kwargs: Any) -> Any:
        given, keywords = function.complete(*function.by_position(args, kwargs))
        layout, whole, batch = _split(given, keywords, targets, batch_argnums, first, function)
        rows = batch[0].shape[0]
        size = -(-rows // int(parts))
        count, rest = divmod(rows, size)
        likes, treedef = jax.tree.flatten(zero(*given, **keywords)[1])
        sums = [_times(like, jnp.float32(0)) for like in likes]
        try:
            step, loop = step_of(layout)
        except TypeError:  # a static argument that has no hash
            step, loop = step_of.__wrapped__(layout)
        if count > 1:
            sums, end = loop(sums, whole, [_cut(leaf, size, count) for leaf in batch])
        else:
            sums, end = step(sums, whole, [_cut(leaf, size) for leaf in batch])
            end = _alone(end)
        ends = [(size, end)]
        if rest:
            sums, end = step(sums, whole, [_cut(leaf, rest, -1) for leaf in batch])
            ends.append((rest, _alone(end)))
        shares = jnp.concatenate([end[0] for _, end in ends])
        means = [
            _mean(value, shares.sum(), like.dtype) for value, like in zip(sums, likes, strict=True)
        ]
        value, aux = _joined(ends, shares)
        return (value, aux) if has_aux else value, treedef.unflatten(means)

    return accumulated


class _Layout:
    """Where the leaves of a call's arguments go: whole to each part, in parts, or nowhere."""

    def __init__(self, treedef: Any, kinds: Sequence[str], static: Sequence[Any], targets: Any):
        self._treedef, self._kinds, self._static = treedef, tuple(kinds), tuple(static)
        self.targets = targets
        self._key = (treedef, self._kinds, tuple((type(s), s) for s in static))

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Layout) and self._key == other._key

    def join(self, whole: Sequence[Any], part: Sequence[Any]) -> tuple[tuple[Any, ...], Any]:
        """Returns the arguments for one part."""
        left = {WHOLE: iter(whole), SPLIT: iter(part), STATIC: iter(self._static)}
        return self._treedef.unflatten([next(left[kind]) for kind in self._kinds])


def _split(
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    argnums: Any,
    batch_argnums: int | Sequence[int] | None,
    first: int,
    function: Function,
) -> tuple[_Layout, list[Any], list[Any]]:
    """Returns the layout of a call, what goes whole to each part, and what is split."""
    targets = {n % len(args) for n in _numbers(argnums)}
    wanted: set[Any] = {n for n in range(first, len(args)) if n not in targets} | set(kwargs)
    if batch_argnums is not None:
        numbers = (batch_argnums,) if isinstance(batch_argnums, int) else batch_argnums
        wanted = {n + first if n >= 0 else n + len(args) for n in numbers}
    pairs, treedef = jax.tree_util.tree_flatten_with_path((args, kwargs), is_leaf=_is_node)
    kinds: list[str] = []
    held: dict[str, list[Any]] = {WHOLE: [], SPLIT: [], STATIC: []}
    lengths: dict[str, int] = {}
    for path, leaf in pairs:
        top = path[1].idx if path[0].idx == 0 else path[1].key
        array = isinstance(leaf, (jax.Array, np.ndarray))
        kind = WHOLE if array or _is_node(leaf) else STATIC
        if top in wanted and array and leaf.ndim:
            kind = SPLIT
            name = _argument(function, top, args) + jax.tree_util.keystr(path[2:])
            lengths[name] = leaf.shape[0]
        kinds.append(kind)
        held[kind].append(leaf)
    if not lengths or 0 in lengths.values():
        what = "no array with rows" if not lengths else f"rows {lengths}"
        raise StructureError(
            f"accumulate: {function.name} was called with {what} to split; pass the batch as an "
            "argument, as in `accumulate(loss_fn, parts=8)(model, x, y)`"
        )
    if len(set(lengths.values())) > 1:
        raise ShapeError(
            f"accumulate: the first axis of these has to be that of the batch's rows: {lengths}. "
            "Say which arguments are split, as in `accumulate(loss_fn, parts, batch_argnums=(1, "
            "2))`; the others go whole to each part"
        )
    return _Layout(treedef, kinds, held[STATIC], targets), held[WHOLE], held[SPLIT]


def _is_node(leaf: object) -> bool:
    return isinstance(leaf, (moduli.Pytree, moduli.Variable))


def _argument(function: Function, top: Any, args: tuple[Any, ...]) -> str:
    parameters = list(function.signature.parameters) if function.signature else []
    if isinstance(top, str):
        return top
    return parameters[top] if top < len(parameters) else f"args[{top}]"


def _numbers(argnums: Any) -> Iterator[int]:
    for item in argnums if isinstance(argnums, (list, tuple)) else (argnums,):
        yield item.argnum if isinstance(item, moduli.DiffState) else item


def _shifted(argnums: Any, first: int) -> Any:
    """Positions among all arguments, the bound module too, for those of the user's own."""
    if isinstance(argnums, (list, tuple)):
        return tuple(_shifted(item, first) for item in argnums)
    if isinstance(argnums, moduli.DiffState):
        return moduli.DiffState(_shifted(argnums.argnum, first), argnums.filter)
    own = isinstance(argnums, int) and argnums >= 0
    return argnums + first if own else argnums


def _zero(*args: Any, **kwargs: Any) -> jax.Array:
    return jnp.zeros((), jnp.float32)


def _weight(
    weight: Callable[..., Any], layout: _Layout, args: tuple[Any, ...], kwargs: Any
) -> jax.Array:
    others = tuple(arg for n, arg in enumerate(args) if n not in layout.targets)
    try:
        inspect.signature(weight).bind(*others, **kwargs)
    except TypeError:
        others = args
    except ValueError:  # a function without a signature
        pass
    value = jnp.asarray(weight(*others, **kwargs))
    if value.shape:
        raise ShapeError(
            f"accumulate: the weight of a part is a scalar; got one of shape {value.shape}. For "
            "weights of rows return their sum: `lambda x, y, weights: weights.sum()`"
        )
    return jax.lax.stop_gradient(value.astype(jnp.float32))


def _times(value: Any, share: jax.Array) -> jax.Array:
    """The product, in float32 at least; zero for a share of zero, be the value finite or not."""
    narrow = jnp.issubdtype(value.dtype, jnp.floating) and value.dtype.itemsize < 4
    dtype = jnp.float32 if narrow else value.dtype
    product = value.astype(dtype) * share.astype(dtype)
    return jnp.where(share == 0, jnp.zeros_like(product), product)


def _mean(value: jax.Array, total: jax.Array, dtype: Any) -> jax.Array:
    return (value / total.astype(value.dtype)).astype(dtype)


def _cut(batch: Any, size: int, count: int = 0) -> jax.Array:
    """Returns rows of an array.

    Args:
      batch: the array.
      size: how many rows a part has.
      count: how many parts, along a new first axis; 0 for the first part alone, -1 for the last.
    """
    rows = gathered(batch)
    if count <= 0:
        rows = jnp.asarray(
            rows if size == len(rows) else rows[:size] if count == 0 else rows[-size:]
        )
        return rows_like(rows, batch, axis=0)
    rows = rows if len(rows) == count * size else rows[: count * size]
    return rows_like(jnp.reshape(rows, (count, size, *rows.shape[1:])), batch, axis=1)


def _check_joinable(path: Any, leaf: jax.Array, rows: int) -> None:
    if leaf.shape[:1] != (rows,) and not jnp.issubdtype(leaf.dtype, jnp.inexact):
        raise StructureError(
            f"accumulate: aux{jax.tree_util.keystr(path)} is {leaf.dtype}{list(leaf.shape)} for a "
            f"part of {rows} rows: it has neither a row for each, nor a mean. Return a value for "
            "each row, or a mean as a float"
        )


def _alone(end: Any) -> Any:
    """What a part returned as what a loop over one part returns."""
    return jax.tree.map(lambda leaf: leaf[None], end)


def _joined(ends: Sequence[tuple[int, Any]], shares: jax.Array) -> tuple[jax.Array, Any]:
    """Returns the loss and the aux of the whole batch.

    Args:
      ends: for each loop the rows of its parts, and their (weights, losses, aux).
      shares: the weights of all parts.
    """

    def mean(*leaves: jax.Array) -> jax.Array:
        values = jnp.concatenate(leaves)
        weights = shares.reshape((-1, *[1] * (values.ndim - 1)))
        return _mean(_times(values, weights).sum(0), shares.sum(), values.dtype)

    def join(*leaves: jax.Array) -> jax.Array:
        sizes = [leaf.shape[1:2] == (rows,) for leaf, (rows, _) in zip(leaves, ends, strict=True)]
        if not all(sizes):
            return mean(*leaves)
        return jnp.concatenate(
            [gathered(leaf, 2).reshape((-1, *leaf.shape[2:])) for leaf in leaves]
        )

    losses, auxes = [end[1] for _, end in ends], [end[2] for _, end in ends]
    return mean(*losses), jax.tree.map(join, *auxes)
