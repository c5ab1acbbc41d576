"""tabulate: what a model is made of, and what it costs, without running it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import moduli
from moduli import errors
from moduli_debug._module_filter import select_modules

if TYPE_CHECKING:
    from moduli_debug._summary.result import Summary

__all__ = ["tabulate"]

_NONE: Mapping[str, Any] = MappingProxyType({})


def tabulate(
    obj: moduli.Pytree,
    /,
    *input_args: Any,
    depth: int | None = None,
    method: str = "__call__",
    filter: Any = ...,
    row_filter: Callable[[Any], bool] | None = None,
    table_kwargs: Mapping[str, Any] = _NONE,
    column_kwargs: Mapping[str, Any] = _NONE,
    console_kwargs: Mapping[str, Any] = _NONE,
    compute_flops: bool = False,
    compute_vjp_flops: bool = False,
    **input_kwargs: Any,
) -> Summary:
    """Makes a table of a model: its modules, their inputs, outputs, sizes and costs.

    A method other than ``__call__`` has a row of its own, as ``block/encode``, if it is called with
    arrays, or calls modules; so has one that a module calls of itself. Names that begin with an
    underscore have none.

    The model is not run, and stays as it is: everything is found by tracing it with shapes alone.
    So a model made by ``moduli.eval_shape``, for which nothing was allocated, will do, and
    ``jax.ShapeDtypeStruct`` may stand for inputs.

    The result is a str, and more: see :class:`Summary`. A module in a loop, such as the block of a
    ``Stack``, is one row; its values have the loop's axis, and ``calls`` and the operations count
    every step. What is shared counts once in each row and in the totals.

    Operations are those of XLA's cost analysis before any optimization: two for each multiplication
    and addition of a matrix product or a convolution (positions in the padding left out), one for
    each element of elementwise operations; functions such as ``exp`` and ``tanh`` count nothing.

    Args:
      obj: the model, or another ``Pytree``, such as a metric with ``method="update"``.
      *input_args: arguments of the call: arrays, ``jax.ShapeDtypeStruct``, pytrees of these,
        modules, random streams. Everything else, such as a bool, is passed on as it is.
      depth: how long the paths of the modules shown may be, as ``blocks/0`` has 2 parts; all by
        default.
      method: the name of the method to call.
      filter: which modules to show: a path pattern (``"blocks/*/attention"``), a Module class, a
        callable (path, module) -> bool, or a tuple of these, which means any of them. The totals
        are those of the model all the same.
      row_filter: a callable (row) -> bool: which of the rows to show.
      table_kwargs: arguments of ``rich.table.Table``.
      column_kwargs: arguments of its ``add_column``.
      console_kwargs: arguments of ``rich.console.Console``, such as ``{"width": 100}``.
      compute_flops: whether to count the operations of a call, in a column ``flops``.
      compute_vjp_flops: whether to count, in a column ``vjp_flops``, those of a call together with
        its backward pass: the gradients of all floating point outputs for the Params and floating
        point arguments.
      **input_kwargs: keyword arguments of the call, as ``input_args``.

    Returns:
      The summary. Its text has colours if it is for a terminal, and is as wide as it has to be if
      it is not.

    Raises:
      StructureError: if ``obj`` is no Pytree, has no such method, or the method cannot be called
        with these arguments.
      PathError: if ``filter`` selects no module.
      Exception: what the model raises on these inputs, with a note that says in which module.

    Example:
      >>> import jax, jax.numpy as jnp, moduli as nnx
      >>> from moduli_debug import tabulate
      >>> def make(rngs):
      ...     hidden, out = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)
      ...     return nnx.Sequential(hidden, nnx.relu, out)
      >>> model = nnx.eval_shape(make, nnx.Rngs(0))
      >>> x = jax.ShapeDtypeStruct((1, 4), jnp.float32)
      >>> summary = tabulate(model, x, compute_flops=True)
      >>> for row in summary.rows:
      ...     print(row.name or "(model)", row.outputs.shape, row.sizes["Param"].count, row.flops)
      (model) (1, 2) 58 114.0
      layers/0 (1, 8) 40 72.0
      layers/2 (1, 2) 18 34.0
    """
    from moduli_debug._summary.calls import trace_backward, trace_forward
    from moduli_debug._summary.columns import columns_for
    from moduli_debug._summary.result import make_summary
    from moduli_debug._summary.rows import make_rows

    _check_call(obj, method, input_args, input_kwargs)
    every = filter is ...
    chosen = set() if every else {path for path, _ in select_modules(obj, filter, "tabulate")}
    forward = trace_forward(obj, method, input_args, input_kwargs)
    notes: list[str] = []
    backward = None
    if compute_vjp_flops:
        outputs = next(iter(forward.calls.values())).outputs
        try:
            backward = trace_backward(obj, method, input_args, input_kwargs, outputs)
            if backward is None:
                notes.append("vjp_flops: no output is floating point, so there is no backward pass")
        except Exception as error:  # whatever cannot be differentiated can still be shown
            reason = str(error).splitlines()
            notes.append(f"vjp_flops: no backward pass; {reason[0] if reason else error!r}")
    rows, uncounted = make_rows(obj, forward, backward, compute_flops)
    columns = columns_for([row for row, _ in rows])
    shown = [
        (row, module)
        for row, module in rows
        if (depth is None or len(row.full_path) <= depth)
        and (every or row.path in chosen)
        and (row_filter is None or row_filter(row))
    ]
    return make_summary(
        rows,
        shown,
        columns,
        [*notes, *uncounted],
        table_kwargs=table_kwargs,
        column_kwargs=column_kwargs,
        console_kwargs=console_kwargs,
    )


tabulate.__module__ = "moduli_debug"


def _check_call(
    obj: Any, method: str, input_args: tuple[Any, ...], input_kwargs: dict[str, Any]
) -> None:
    name = type(obj).__name__
    if not isinstance(obj, moduli.Pytree):
        raise errors.StructureError(
            f"tabulate needs a Module, got {obj if isinstance(obj, type) else f'a {name}'}; for a "
            "model that is not made yet, write "
            "`nnx.tabulate(nnx.eval_shape(lambda: Model(rngs=nnx.Rngs(0))), inputs)`"
        )
    function = getattr(obj, method, None)
    if not callable(function):
        methods = [
            key
            for key, value in vars(type(obj)).items()
            if inspect.isfunction(value) and not key.startswith("_")
        ]
        known = f"; its methods are {', '.join(methods)}" if methods else ""
        raise errors.StructureError(
            f"tabulate: {name} has no method {method!r}{known}. Write "
            "`nnx.tabulate(model, inputs, method='name')`"
        )
    signature = inspect.signature(function)
    try:
        signature.bind(*input_args, **input_kwargs)
    except TypeError as error:
        call = name if method == "__call__" else f"{name}.{method}"
        raise errors.StructureError(
            f"tabulate: {call}{signature} cannot be called with these inputs: {error}. Give the "
            "inputs after the model, as arrays or shapes: "
            "`nnx.tabulate(model, jax.ShapeDtypeStruct((1, 8), jnp.float32))`"
        ) from None
