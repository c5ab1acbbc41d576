"""What a State, a GraphDef and an optimizer's state look like: short, with equal blocks once."""

from __future__ import annotations

import collections

import jax.numpy as jnp
import pytest

import moduli as nnx


class Block(nnx.Module):
    def __init__(self, size: int, rate: float = 0.5):
        self.w = nnx.Param(jnp.zeros(size))
        self.size, self.rate = size, rate


def blocks(*sizes):
    return nnx.List([Block(size) for size in sizes])


def test_equal_blocks_of_a_state_are_shown_once():
    assert repr(nnx.state(blocks(99, 99, 99, 50))) == (
        "State({\n"
        "  0-2: 3 x {\n    'w': Param(float32[99]),\n  },\n"
        "  3: {\n    'w': Param(float32[50]),\n  },\n"
        "})"
    )


def test_elements_on_a_line_of_their_own_stay():
    state = nnx.State({number: nnx.Param(jnp.ones(2)) for number in range(2)})
    assert repr(state).count("[1., 1.]") == 2
    numbers = nnx.State({number: nnx.Param(1.0) for number in range(2)})
    assert repr(numbers) == "State({\n  0-1: 2 x Param(1.0),\n})"


@pytest.mark.parametrize("keys", [("a", "b"), (0, 2), (True, 2)])
def test_keys_that_do_not_follow_each_other_are_not_folded(keys):
    state = nnx.State({key: {"w": nnx.Param(jnp.zeros(99))} for key in keys})
    assert repr(state).count("Param") == 2


def test_a_structure_is_shown_without_defaults_and_equal_blocks_once():
    model = nnx.Dict(blocks=blocks(2, 2, 2), last=Block(2, rate=0.1))
    assert repr(nnx.graphdef(model)) == (
        "GraphDef(10 objects, 4 leaves\n"
        "  0 Dict()\n"
        "    1 blocks: List()\n"
        "      2 0-2: 3 x Block(size=2)\n"
        "        3 w: Param\n"
        "    8 last: Block(rate=0.1, size=2)\n"
        "      9 w: Param\n"
        ")"
    )


def test_structures_that_differ_look_different():
    one, other = Block(2), Block(2, rate=0.1)
    tied = nnx.Dict(a=one, b=one)
    shown = [nnx.graphdef(m) for m in (nnx.Dict(a=one, b=other), tied, nnx.Dict(a=one, b=Block(2)))]
    assert len(set(map(repr, shown))) == 3
    assert "b=#1" in repr(nnx.graphdef(tied))


Moments = collections.namedtuple("Moments", ["count", "mu"])


def test_named_tuples_of_states_are_indented_where_they_stand():
    state = nnx.State({"w": nnx.Param(jnp.zeros(99))})
    shown = repr(nnx.Dict(inner=nnx.Dict(state=(Moments(nnx.Variable(3), state), ()))))
    assert (
        "    'state': (\n      Moments(\n        count=Variable(3),\n        mu=State({\n" in shown
    )
    assert "          'w': Param(float32[99]),\n        }),\n      ),\n      (),\n    )" in shown
