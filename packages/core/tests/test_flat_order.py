"""The flat form of a State is sorted, whoever made the State: its values are in JAX's order."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import moduli as nnx


def states(lib: Any) -> dict[str, Any]:
    """States whose entries were put in out of order."""

    def param(number: int) -> Any:
        return lib.Param(jnp.float32(number))

    nested = lib.State({"b": param(1), "a": lib.State({"z": param(2), "y": param(3)})})
    other = lib.State({"c": param(4), "aa": param(5)})
    flat = lib.from_flat_state([(("z",), param(6)), (("a", 10), param(7)), (("a", 2), param(8))])
    set_late = lib.state(lib.Linear(2, 2, rngs=lib.Rngs(0)))
    set_late["early"] = param(9)
    return {
        "nested": nested,
        "merged": lib.merge_state(other, nested),
        "from flat": flat,
        "set": set_late,
        "filtered": lib.filter_state(nested, lib.Param),
        "mapped": lib.map_state(lambda path, value: value, nested),
        "difference": lib.merge_state(other, nested) - other,
        "rest": lib.split_state(nested, lib.PathContains("y"), ...)[1],
    }


@pytest.mark.parametrize("name", states(nnx))
def test_the_order_is_jaxs_and_flaxs(name: str) -> None:
    flax_nnx = pytest.importorskip("flax.nnx")
    ours, theirs = states(nnx)[name], states(flax_nnx)[name]
    flat = nnx.to_flat_state(ours)
    assert list(flat.paths) == list(flax_nnx.to_flat_state(theirs).paths)
    leaves = [leaf.sum() for leaf in jax.tree.leaves(ours)]
    assert [value[...].sum() for value in flat.leaves] == leaves
    pure = nnx.to_pure_dict(ours)
    assert list(pure) == list(flax_nnx.to_pure_dict(theirs)) == sorted(pure)


def test_kinds_that_are_made_from_names_are_called_so() -> None:
    flax_nnx = pytest.importorskip("flax.nnx")

    def names(lib: Any) -> tuple[str, ...]:
        class RunningTotal(lib.Variable):
            pass

        made = lib.variable_type_from_name("flat_order_terms", allow_register=True)
        name = lib.variable_name_from_type(RunningTotal, allow_register=True)
        assert lib.variable_type_from_name(name) is RunningTotal
        return made.__name__, lib.variable_name_from_type(made), name

    assert names(nnx) == names(flax_nnx) == ("flat_order_terms",) * 2 + ("RunningTotal",)
