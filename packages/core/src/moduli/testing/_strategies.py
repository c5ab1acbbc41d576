"""Random graphs of modules for property tests, with shared references, cycles and containers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from moduli._module.containers import Dict, List
from moduli._module.module import Module
from moduli._variable.box import Variable
from moduli._variable.kinds import BatchStat, Cache, Param

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

__all__ = ["RandomModule", "graphs"]

_KINDS = (Param, BatchStat, Cache, Variable)
_NAMES = ("alpha", "beta", "gamma", "delta", "layer1", "layer10", "layer2")
_STATICS = (0, 1, True, 1.0, -0.0, "text", None, (1, "x"), len)
_DTYPES = ("float32", "int32", "bfloat16", "bool")


class RandomModule(Module):
    """A module whose attributes a strategy chose."""

    def __init__(self, **attributes: Any):
        for name, value in attributes.items():
            setattr(self, name, value)


def graphs(
    *, max_nodes: int = 8, cycles: bool = True, shared: bool = True
) -> SearchStrategy[RandomModule]:
    """Returns a hypothesis strategy that makes graphs of modules.

    Args:
      max_nodes: at most so many modules, besides containers.
      cycles: let modules refer to modules above them.
      shared: let nodes and Variables be referred to several times.

    Returns:
      A strategy of root modules. They hold Variables of several kinds, dtypes and metadata, bare
      arrays, static values, lists, dicts and tuples.

    Example:
      >>> import moduli as nnx
      >>> from hypothesis import given
      >>> from moduli.testing import assert_equal_graphs, graphs
      >>> @given(graphs())
      ... def test(model):
      ...     assert_equal_graphs(nnx.merge(*nnx.split(model)), model)
    """
    from hypothesis import strategies as st

    @st.composite
    def build(draw: Any) -> RandomModule:
        made: list[Any] = []  # what later attributes may refer to again
        above: list[RandomModule] = []
        budget = [draw(st.integers(1, max_nodes))]

        def array() -> Any:
            shape = draw(st.sampled_from([(), (2,), (2, 3), (0,)]))
            size = int(np.prod(shape))
            seed = draw(st.integers(0, 5))
            values = np.arange(size).reshape(shape) + seed
            return jnp.asarray(values).astype(draw(st.sampled_from(_DTYPES)))

        def variable() -> Any:
            kind = draw(st.sampled_from(_KINDS))
            value = draw(st.sampled_from(["array", "tuple"]))
            metadata = {"tag": "x"} if draw(st.booleans()) else {}
            content = array() if value == "array" else (array(), array())
            made.append(kind(content, **metadata))
            return made[-1]

        def module(depth: int) -> Any:
            budget[0] -= 1
            node = RandomModule()
            above.append(node)
            for name in draw(st.lists(st.sampled_from(_NAMES), unique=True, max_size=4)):
                setattr(node, name, value(depth + 1))
            above.pop()
            made.append(node)
            return node

        def value(depth: int) -> Any:
            choices = ["variable", "array", "static"]
            if depth < 4:
                choices += ["list", "dict", "tuple"]
                if budget[0] > 0:
                    choices += ["module", "module"]
            if shared and made:
                choices += ["again"]
            if cycles and above:
                choices += ["above"]
            choice = draw(st.sampled_from(choices))
            if choice == "variable":
                return variable()
            if choice == "array":
                return array()
            if choice == "static":
                return draw(st.sampled_from(_STATICS))
            if choice == "module":
                return module(depth)
            if choice == "again":
                return draw(st.sampled_from(made))
            if choice == "above":
                return draw(st.sampled_from(above))
            items = [value(depth + 1) for _ in range(draw(st.integers(0, 2)))]
            if choice == "list":
                return List(items)
            if choice == "dict":
                return Dict(zip(_NAMES, items, strict=False))
            return tuple(items)

        return module(0)

    return build()
