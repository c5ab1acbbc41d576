"""Comparisons of graphs, with messages that name the path."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from moduli import errors
from moduli._base.compat import is_key_array
from moduli._graph.split import clone, graphdef, state
from moduli._graph.state import to_flat_state
from moduli._variable.box import Variable
from moduli.testing._differences import structure_differences

__all__ = ["assert_equal_graphs", "assert_unchanged"]


def assert_equal_graphs(
    actual: Any, expected: Any, *, rtol: float = 0.0, atol: float = 0.0
) -> None:
    """Asserts that two graphs have one structure, sharing included, and equal values.

    Args:
      actual: a Module or another node.
      expected: another one.
      rtol: relative tolerance of floating-point values; exact by default.
      atol: absolute tolerance.

    Raises:
      AssertionError: with the first path that differs.

    Example:
      >>> import moduli as nnx
      >>> from moduli.testing import assert_equal_graphs
      >>> model = nnx.Dict(scale=nnx.Param(1.0))
      >>> assert_equal_graphs(nnx.clone(model), model)
    """
    __tracebackhide__ = True  # pytest shows the line of the test
    if graphdef(actual) is not graphdef(expected):
        raise AssertionError(
            "the graphs differ in structure:\n"
            + structure_differences(graphdef(actual), graphdef(expected))
        )
    assert_equal_states(state(actual), state(expected), rtol, atol)


def assert_equal_states(actual: Any, expected: Any, rtol: float = 0.0, atol: float = 0.0) -> None:
    """Asserts that two States of the same paths have equal values."""
    __tracebackhide__ = True
    right = dict(to_flat_state(expected).items())
    for path, leaf in to_flat_state(actual).items():
        where = errors.format_path(path)
        a, b = (x._value if isinstance(x, Variable) else x for x in (leaf, right[path]))
        if jax.tree.structure(a) != jax.tree.structure(b):
            raise AssertionError(f"the values at `{where}` have different structures: {a!r}, {b!r}")
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            _assert_equal_values(x, y, where, rtol, atol)


def _assert_equal_values(x: Any, y: Any, where: str, rtol: float, atol: float) -> None:
    __tracebackhide__ = True
    x, y = _plain(x), _plain(y)
    if x.dtype.kind in "USO" and x.dtype.kind == y.dtype.kind:  # text, whatever its length
        if x.shape != y.shape or not all(map(_equal, x.flat, y.flat)):
            raise AssertionError(f"the values at `{where}` differ: {_shown(x)}, {_shown(y)}")
        return
    if x.dtype != y.dtype:
        raise AssertionError(f"the dtypes at `{where}` differ: {x.dtype}, {y.dtype}")
    if x.dtype.kind in "mM":
        np.testing.assert_array_equal(x, y, err_msg=f"at `{where}`")
    else:
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol, err_msg=f"at `{where}`")


def _plain(value: Any) -> np.ndarray:
    if is_key_array(value):
        value = jax.random.key_data(value)
    if isinstance(value, bytes | str):
        value = np.array(value, object)  # numpy drops zeros at the end of its own texts
    return np.asarray(value)


def _equal(x: Any, y: Any) -> bool:
    return x is y or (type(x) is type(y) and bool(x == y))


def _shown(x: np.ndarray) -> str:
    return repr(x.item() if x.ndim == 0 else x)


@contextlib.contextmanager
def assert_unchanged(node: Any, *, values: bool = True) -> Iterator[None]:
    """Asserts that a block leaves a graph and its modules' classes as they were.

    Args:
      node: a Module or another node.
      values: compare the values too; with False only structure and classes.

    Raises:
      AssertionError: if something differs afterwards.

    Example:
      >>> import moduli as nnx
      >>> from moduli.testing import assert_unchanged
      >>> model = nnx.Dict(scale=nnx.Param(1.0))
      >>> with assert_unchanged(model):
      ...     _ = nnx.state(model)
    """
    from moduli._graph.walk import iter_graph

    before, kept = graphdef(node), clone(state(node))
    classes = {type(item) for _, item in iter_graph(node)}
    attributes = {cls: dict(vars(cls)) for cls in classes}
    yield
    if graphdef(node) is not before:
        changes = structure_differences(before, graphdef(node))
        raise AssertionError(f"the structure changed:\n{changes}")
    if values:
        assert_equal_states(state(node), kept, 0.0, 0.0)
    for cls, known in attributes.items():
        if dict(vars(cls)) != known:
            raise AssertionError(f"the class {cls.__name__} changed")
