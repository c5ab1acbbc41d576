"""Recurrent layers are flax.nnx's: initial parameters bit for bit, outputs, carries, keys."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli
import moduli_layers as layers

flax_nnx = pytest.importorskip("flax.nnx")

CELLS = ["SimpleCell", "LSTMCell", "OptimizedLSTMCell", "GRUCell"]
LENGTHS = np.array([5, 2, 1])
ONES = jax.nn.initializers.normal(1.0)
each_cell = pytest.mark.parametrize("name", CELLS)


def pair(name: str, **kwargs: Any) -> tuple[Any, Any]:
    """Returns our cell and flax's, from one seed."""
    ours = getattr(layers, name)(3, 4, **kwargs, rngs=moduli.Rngs(3))
    with jax.enable_x64(False):  # else it draws LSTMCell's orthogonal kernels in 64 bits
        return ours, getattr(flax_nnx, name)(3, 4, **kwargs, rngs=flax_nnx.Rngs(3))


def inputs(*shape: int) -> jax.Array:
    """Returns normal random numbers."""
    return jax.random.normal(jax.random.key(1), shape, jnp.float32)


def assert_close(ours: Any, theirs: Any) -> None:
    """Compares pytrees."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"kernel_init": ONES, "bias_init": ONES},
        {"recurrent_kernel_init": ONES, "keep_rngs": True},
        {"kernel_metadata": {"tag": "x"}, "bias_metadata": {"tag": "b"}},
    ],
    ids=lambda kwargs: "-".join(kwargs) or "defaults",
)
@pytest.mark.filterwarnings("ignore:keep_rngs")
@each_cell
def test_equal_seeds_give_flax_parameters(name: str, kwargs: dict[str, Any]) -> None:
    ours_rngs, theirs_rngs = moduli.Rngs(7), flax_nnx.Rngs(7)
    for _ in range(2):  # the second cell shows that the first drew as many keys
        ours = getattr(layers, name)(3, 4, **kwargs, rngs=ours_rngs)
        with jax.enable_x64(False):  # as in `pair`
            theirs = getattr(flax_nnx, name)(3, 4, **kwargs, rngs=theirs_rngs)
        found = moduli.to_flat_state(moduli.state(ours, moduli.Param))
        expected = dict(flax_nnx.to_flat_state(flax_nnx.state(theirs, flax_nnx.Param)))
        assert set(dict(found.items())) == set(expected)
        for path, variable in found.items():
            np.testing.assert_array_equal(variable.value, expected[path][...])
            assert getattr(variable, "tag", None) == expected[path].get_metadata().get("tag")


@each_cell
def test_a_step_and_its_carry_are_flax(name: str) -> None:
    ours, theirs = pair(name)
    x = inputs(2, 3)
    carry = ours.initialize_carry(x.shape, moduli.Rngs(5), ONES)
    expected = theirs.initialize_carry(x.shape, flax_nnx.Rngs(5), ONES)
    jax.tree.map(np.testing.assert_array_equal, carry, expected)
    assert ours.num_feature_axes == theirs.num_feature_axes
    for _ in range(2):
        (carry, y), (expected, y_expected) = ours(carry, x), theirs(expected, x)
        assert_close((carry, y), (expected, y_expected))


@each_cell
def test_zeros_are_drawn_from_given_streams_as_in_flax(name: str) -> None:
    ours, theirs = pair(name)
    ours_rngs, theirs_rngs = moduli.Rngs(5), flax_nnx.Rngs(5)
    ours.initialize_carry((2, 3), ours_rngs)
    theirs.initialize_carry((2, 3), theirs_rngs)
    assert ours_rngs.default.count.value == theirs_rngs.default.count[...]


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["all-steps", "lengths"])
@pytest.mark.parametrize("time_major", [False, True], ids=["batch-major", "time-major"])
@pytest.mark.parametrize("order", ["forward", "reverse", "kept"])
@pytest.mark.parametrize("ahead", [False, True], ids=["in-loop", "ahead"])
@each_cell
def test_outputs_and_last_carry_are_flax(
    name: str, lengths: Any, time_major: bool, order: str, ahead: bool
) -> None:
    ours, theirs = pair(name)
    x = inputs(5, 3, 3) if time_major else inputs(3, 5, 3)
    if lengths is not None:
        lengths = jnp.asarray(lengths)
    options: dict[str, Any] = {
        "time_major": time_major,
        "reverse": order != "forward",
        "keep_order": order == "kept",
        "return_carry": True,
    }
    built = layers.RNN(ours, **options, project_ahead=ahead)(x, seq_lengths=lengths)
    called = layers.RNN(ours, project_ahead=ahead)(x, seq_lengths=lengths, **options)
    assert_close(built, flax_nnx.RNN(theirs, **options)(x, seq_lengths=lengths))
    assert_close(called, built)


@pytest.mark.parametrize("time_major", [False, True], ids=["batch-major", "time-major"])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["all-steps", "lengths"])
def test_bidirectional_is_flax(time_major: bool, lengths: Any) -> None:
    ours, theirs = pair("GRUCell")
    ours_back, theirs_back = (
        layers.GRUCell(3, 4, rngs=moduli.Rngs(4)),
        flax_nnx.GRUCell(3, 4, rngs=flax_nnx.Rngs(4)),
    )
    x = inputs(5, 3, 3) if time_major else inputs(3, 5, 3)
    options: dict[str, Any] = {"time_major": time_major, "return_carry": True}
    if lengths is not None:
        lengths = jnp.asarray(lengths)
    start = (inputs(3, 4), -inputs(3, 4))
    for kwargs in ({}, {"merge_fn": jnp.add}):
        model = layers.Bidirectional(layers.RNN(ours), layers.RNN(ours_back), **options, **kwargs)
        expected = flax_nnx.Bidirectional(
            flax_nnx.RNN(theirs), flax_nnx.RNN(theirs_back), **options, **kwargs
        )
        for initial in (None, start):
            assert_close(
                model(x, seq_lengths=lengths, initial_carry=initial),
                expected(x, seq_lengths=lengths, initial_carry=initial),
            )


@pytest.mark.filterwarnings("ignore:carry_init")
def test_random_first_carries_are_flax() -> None:
    x = inputs(2, 5, 3)
    ours, theirs = pair("OptimizedLSTMCell", carry_init=ONES)
    for own in (
        {"ours": True, "theirs": True},
        {"ours": moduli.Rngs(2), "theirs": flax_nnx.Rngs(2)},
    ):
        rnn = layers.RNN(ours, rngs=own["ours"])
        expected = flax_nnx.RNN(theirs, rngs=own["theirs"])
        for _ in range(2):
            assert_close(rnn(x), expected(x))
    assert_close(rnn(x, rngs=moduli.Rngs(9)), expected(x, rngs=flax_nnx.Rngs(9)))
    both = layers.Bidirectional(rnn, layers.RNN(ours))
    expected_both = flax_nnx.Bidirectional(expected, flax_nnx.RNN(theirs))
    for _ in range(2):
        assert_close(both(x), expected_both(x))


class OurDropoutCell(layers.RNNCellBase):
    """A cell that drops and counts in each step."""

    def __init__(self, nnx: Any, cell: Any, dropout: Any) -> None:
        self.cell, self.dropout = cell, dropout
        self.calls = nnx.BatchStat(jnp.zeros(()))

    def __call__(self, carry: Any, inputs: Any) -> Any:
        """Drops from the inputs, then makes the step."""
        self.calls[...] = self.calls[...] + 1
        return self.cell(carry, self.dropout(inputs))

    def initialize_carry(self, *args: Any, **kwargs: Any) -> Any:
        """That of the cell inside."""
        return self.cell.initialize_carry(*args, **kwargs)

    @property
    def num_feature_axes(self) -> int:
        """One."""
        return 1


TheirDropoutCell: Any = type(
    "TheirDropoutCell", (flax_nnx.RNNCellBase,), dict(vars(OurDropoutCell))
)


@pytest.mark.parametrize("broadcast", [None, "dropout"], ids=["each-step", "one-mask"])
def test_dropout_in_a_cell_draws_flax_masks_and_its_writes_are_seen(broadcast: str | None) -> None:
    ours, theirs = pair("GRUCell")
    mine = OurDropoutCell(moduli, ours, layers.Dropout(0.5, rngs=moduli.Rngs(dropout=1)))
    yours = TheirDropoutCell(flax_nnx, theirs, flax_nnx.Dropout(0.5, rngs=flax_nnx.Rngs(dropout=1)))
    rnn = layers.RNN(mine, broadcast_rngs=broadcast)
    expected = flax_nnx.RNN(yours, broadcast_rngs=broadcast)
    x = inputs(2, 5, 3)
    first = rnn(x)
    assert_close(first, expected(x))
    second = rnn(x)
    assert_close(second, expected(x))
    assert not np.allclose(first, second)
    assert mine.calls.value == 10


def test_one_mask_for_all_steps() -> None:
    class Masked(OurDropoutCell):
        def __call__(self, carry: Any, inputs: Any) -> Any:
            return carry, self.dropout(inputs)

    x = jnp.ones((2, 5, 30))
    cell = layers.GRUCell(30, 4, rngs=moduli.Rngs(0))
    dropout = layers.Dropout(0.5, rngs=moduli.Rngs(dropout=1))
    one = layers.RNN(Masked(moduli, cell, dropout), broadcast_rngs="dropout")(x)
    assert (one == one[:, :1]).all()
    assert not (one == 0).all()
    several = layers.RNN(Masked(moduli, cell, dropout))(x)
    assert not (several == several[:, :1]).all()
