"""What pytest prints when States, modules and graphs differ: paths, not walls of text."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_models import Linear

import moduli as nnx
from moduli.testing._differences import state_differences
from moduli_pytest._explained import pytest_assertrepr_compare


def model(value=1.0, size=2, **extra):
    parts = nnx.List([Linear(2, size, rngs=nnx.Rngs(0))])
    return nnx.Dict(a=nnx.Param(jnp.full((3,), value)), parts=parts, **extra)


CASES = {
    "values": (model(), model(2.5), ["`a` differs in 3 of 3 values, by up to 1.5"]),
    "one side": (model(), model(b=nnx.Param(1.0)), ["`b` is on the right alone: Param float"]),
    "other side": (model(b=nnx.Param(1.0)), model(), ["`b` is on the left alone: Param float"]),
    "shape": (
        model(),
        model(size=4),
        [
            "`parts/0/bias` is Param float32[2] on the left and Param float32[4] on the right",
            "`parts/0/kernel` is Param float32[2, 2] on the left and Param float32[2, 4] on the",
        ],
    ),
    "kind": (
        nnx.Dict(a=nnx.Param(jnp.ones(2))),
        nnx.Dict(a=nnx.BatchStat(jnp.ones(2))),
        ["`a` is Param float32[2] on the left and BatchStat float32[2] on the right"],
    ),
    "metadata": (
        nnx.Dict(a=nnx.Param(jnp.ones(2), tag="x")),
        nnx.Dict(a=nnx.Param(jnp.ones(2))),
        ["`a` has other metadata: tag"],
    ),
    "number": (nnx.Dict(a=nnx.Param(1.0)), nnx.Dict(a=nnx.Param(2.0)), ["`a` is 1.0 on the left"]),
    "integers": (
        nnx.Dict(a=nnx.Param(jnp.array([1, 2]))),
        nnx.Dict(a=nnx.Param(jnp.array([1, 3]))),
        ["`a` differs in 1 of 2 values"],
    ),
    "keys": (
        nnx.Dict(a=nnx.RngKey(jax.random.key(0))),
        nnx.Dict(a=nnx.RngKey(jax.random.key(1))),
        ["`a` differs in 1 of 2 values"],
    ),
    "text": (nnx.Dict(a=nnx.Variable("x")), nnx.Dict(a=nnx.Variable("y")), ["`a` is 'x' and 'y'"]),
    "nan": (
        nnx.Dict(a=nnx.Param(jnp.array([jnp.nan, 1.0]))),
        nnx.Dict(a=nnx.Param(jnp.array([jnp.nan, 2.0]))),
        ["`a` differs in 1 of 2 values, by up to 1"],
    ),
}


@pytest.mark.parametrize(("left", "right", "lines"), CASES.values(), ids=CASES)
def test_states_are_explained_path_by_path(left, right, lines):
    found = pytest_assertrepr_compare("==", nnx.state(left), nnx.state(right))
    assert found is not None
    assert len(found) == len(lines) + 1
    for text, line in zip(found[1:], lines, strict=True):
        assert text.strip().startswith(line), text


def test_a_nan_is_named_where_nothing_else_differs():
    state = nnx.state(model(float("nan")))
    lines = pytest_assertrepr_compare("==", state, state.map(lambda path, leaf: leaf))
    assert lines is not None
    assert "NaN" in lines[-1]


def test_equal_states_have_no_differences():
    assert state_differences(nnx.state(model()), nnx.state(model())) == []


def test_many_differences_are_cut():
    many = [nnx.Dict({f"w{n}": nnx.Param(np.float32(n + k)) for n in range(100)}) for k in (0, 1)]
    lines = state_differences(*map(nnx.state, many))
    assert len(lines) == 41
    assert lines[-1] == "... and 60 more lines"


def test_modules_are_told_what_compares_their_values():
    lines = pytest_assertrepr_compare("==", model(), model())
    assert lines is not None
    assert "assert_equal_graphs" in lines[-1]
    assert pytest_assertrepr_compare("==", 1, 2) is None
    assert pytest_assertrepr_compare("!=", nnx.state(model()), nnx.state(model())) is None


def test_graphs_that_differ_in_structure_show_the_lines_that_do():
    with pytest.raises(AssertionError) as caught:
        nnx.testing.assert_equal_graphs(model(), model(b=nnx.Param(1.0)))
    lines = str(caught.value).splitlines()
    assert lines[0] == "the graphs differ in structure:"
    assert len(lines) < 12
    assert any(line.startswith("+") and "b" in line for line in lines)


class Sized(nnx.Module):
    def __init__(self, size: int, rate: float = 0.5, fn=len):
        self.size, self.rate, self.fn = size, rate, fn
        self.w = nnx.Param(1.0)


@pytest.mark.parametrize(
    ("left", "right", "line"),
    [
        (Sized(1), Sized(2), "`0` Sized.size: 1 on the left, 2 on the right"),
        (Sized(1), Sized(1, rate=0.1), "`0` Sized.rate: 0.5 on the left, 0.1 on the right"),
        (Sized(1), Sized(1, fn=lambda x: x), "`0` Sized.fn: <built-in function len>"),
        (Sized(1), nnx.Param(1.0), "`0` is a Sized on the left and a Param on the right"),
        (nnx.Param(1.0), nnx.Param(1.0, tag="a"), "`0` Param.tag: absent on the left, 'a' on the"),
        (Sized(1), nnx.List(), "- `0/w` is on the left alone: a Param"),
    ],
)
def test_structures_are_compared_path_by_path(left, right, line):
    structures = [nnx.graphdef(nnx.List([item, nnx.Param(0.0)])) for item in (left, right)]
    explained = pytest_assertrepr_compare("==", *structures)
    assert explained is not None and explained[0] == "two structures differ:"
    assert any(line in text for text in explained), explained
    assert len(explained) <= 3


def test_sharing_is_a_difference():
    one, other = nnx.Param(1.0), nnx.Param(1.0)
    tied, untied = (nnx.Dict(a=one, b=b) for b in (one, other))
    with pytest.raises(AssertionError, match=r"Dict\.b: shared with `a` on the left, absent"):
        nnx.testing.assert_equal_graphs(tied, untied)
