"""Recurrent layers: transforms, dtypes, cells of one's own, and what they refuse."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli
from moduli.errors import RngError, ShapeError, StructureError
from moduli_layers import (
    RNN,
    Bidirectional,
    Dropout,
    DtypePolicy,
    GRUCell,
    Linear,
    LSTMCell,
    OptimizedLSTMCell,
    RNNCellBase,
    SimpleCell,
    flip_sequences,
    initializers,
    set_dtypes,
)
from moduli_layers.errors import ArgumentError, DtypeError

CELLS: list[Any] = [SimpleCell, LSTMCell, OptimizedLSTMCell, GRUCell]
each_cell = pytest.mark.parametrize("kind", CELLS, ids=lambda kind: kind.__name__)
X = np.asarray(np.random.default_rng(0).normal(size=(2, 5, 3)), np.float32)


def parts(carry: Any) -> tuple[Any, ...]:
    """Returns the arrays of a carry."""
    return carry if isinstance(carry, tuple) else (carry,)


class Noisy(RNNCellBase):
    """Drops from its inputs and counts its calls."""

    def __init__(self, rngs: moduli.Rngs) -> None:
        self.cell = GRUCell(3, 4, rngs=rngs)
        self.dropout = Dropout(0.5, rngs=rngs)
        self.calls = moduli.BatchStat(jnp.zeros(()))

    def __call__(self, carry: Any, inputs: Any) -> Any:
        """One step."""
        self.calls.value = self.calls.value + 1
        return self.cell(carry, self.dropout(inputs))

    def initialize_carry(self, *args: Any, **kwargs: Any) -> Any:
        """That of the cell inside."""
        return self.cell.initialize_carry(*args, **kwargs)

    @property
    def num_feature_axes(self) -> int:
        """One."""
        return 1


# -- the loop ------------------------------------------------------------------------------------


def by_hand(cell: Any, x: Any) -> tuple[Any, Any]:
    """Runs a cell in a Python loop."""
    carry, outputs = cell.initialize_carry(x[:, 0].shape), []
    for t in range(x.shape[1]):
        carry, y = cell(carry, x[:, t])
        outputs.append(y)
    return carry, jnp.stack(outputs, 1)


@pytest.mark.parametrize("lift", ["eager", "jit", "remat", "grad", "vmap"])
def test_what_a_cell_writes_is_seen_as_after_a_python_loop(lift: str) -> None:
    looped, cell = Noisy(moduli.Rngs(0)), Noisy(moduli.Rngs(0))
    rnn = RNN(cell)
    x = jnp.asarray(X)
    _, expected = by_hand(looped, x)

    def call(rnn: Any, x: Any) -> Any:
        return rnn(x)

    if lift == "grad":

        def loss(rnn: Any) -> Any:
            y = rnn(x)
            return jnp.sum(y), y

        def loss_by_hand(looped: Any) -> Any:
            return jnp.sum(by_hand(looped, x)[1])

        grads, y = moduli.grad(loss, has_aux=True)(rnn)
        wanted = moduli.grad(loss_by_hand)(Noisy(moduli.Rngs(0)))
        for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    elif lift == "vmap":
        axes = moduli.StateAxes({...: None})
        y = moduli.vmap(call, in_axes=(axes, None), axis_size=3)(rnn, x)
        np.testing.assert_array_equal(y[0], y[2])
        y = y[0]
    else:
        lifted = {"eager": call, "jit": moduli.jit(call), "remat": moduli.remat(call)}[lift]
        y = lifted(rnn, x)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    assert cell.calls.value == 5
    assert cell.dropout.rngs.count.value == looped.dropout.rngs.count.value == 5


def test_the_compiled_loop_is_the_one_written_by_hand() -> None:
    """No Variable is carried that does not change, and nothing else is computed."""
    rnn = RNN(OptimizedLSTMCell(3, 4, rngs=moduli.Rngs(0)))
    cell = rnn.cell
    values = [cell.dense_i.kernel.value, cell.dense_h.kernel.value, cell.dense_h.bias.value]

    def by_raw_jax(values: Any, x: Any) -> Any:
        w_i, w_h, b = values

        def step(carry: Any, x: Any) -> Any:
            c, h = carry
            i, f, g, o = jnp.split(x @ w_i + (h @ w_h + b), 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (c, h), h

        zeros = jnp.zeros((x.shape[0], 4), x.dtype)
        _, y = jax.lax.scan(step, (zeros, zeros), jnp.moveaxis(x, 1, 0))
        return jnp.sum(jnp.moveaxis(y, 0, 1) ** 2)

    ours = moduli.jit(moduli.value_and_grad(lambda rnn, x: jnp.sum(rnn(x) ** 2)))
    raw = jax.jit(jax.value_and_grad(by_raw_jax))
    x = jnp.asarray(X)
    np.testing.assert_allclose(ours(rnn, x)[0], raw(values, x)[0], rtol=1e-6)
    costs: list[Any] = [
        f.lower(m, x).compile().cost_analysis() for f, m in ((ours, rnn), (raw, values))
    ]
    assert costs[0]["flops"] == costs[1]["flops"]
    assert costs[0]["transcendentals"] == costs[1]["transcendentals"]


def products(jaxpr: Any) -> int:
    """Counts the matrix products of a jaxpr and of the functions that it calls."""
    inner = [eqn.params["jaxpr"].jaxpr for eqn in jaxpr.eqns if "jaxpr" in eqn.params]
    own = sum(eqn.primitive.name == "dot_general" for eqn in jaxpr.eqns)
    return own + sum(map(products, inner))


@each_cell
def test_ahead_leaves_one_product_for_each_layer_of_h_to_the_loop(kind: Any) -> None:
    rnn = RNN(kind(3, 4, rngs=moduli.Rngs(0)), project_ahead=True)
    jaxpr = moduli.make_jaxpr(lambda rnn, x: rnn(x))(rnn, jnp.asarray(X))
    (loop,) = [eqn for eqn in jaxpr.jaxpr.eqns if eqn.primitive.name == "scan"]
    assert products(loop.params["jaxpr"].jaxpr) == (4 if kind is LSTMCell else 1)


def test_an_empty_sequence_returns_the_first_carry() -> None:
    rnn = RNN(GRUCell(3, 4, rngs=moduli.Rngs(0)), return_carry=True)
    h = jnp.ones((2, 4))
    for lengths in (None, jnp.zeros(2, jnp.int32)):
        for reverse in (False, True):
            carry, y = rnn(
                jnp.ones((2, 0, 3)), initial_carry=h, seq_lengths=lengths, reverse=reverse
            )
            np.testing.assert_array_equal(carry, h)
            assert y.shape == (2, 0, 4)


@each_cell
def test_lengths_with_several_batch_axes(kind: Any) -> None:
    rnn = RNN(kind(3, 4, rngs=moduli.Rngs(0)), return_carry=True)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, 5, 3)), jnp.float32)
    lengths = jnp.array([[5, 1, 2], [0, 3, 4]])
    carry, y = rnn(x, seq_lengths=lengths, reverse=True)
    flat, y_flat = rnn(x.reshape(6, 5, 3), seq_lengths=lengths.reshape(6), reverse=True)
    np.testing.assert_allclose(y.reshape(6, 5, 4), y_flat, rtol=1e-6)
    for one, other in zip(parts(carry), parts(flat), strict=True):
        np.testing.assert_allclose(one.reshape(6, 4), other, rtol=1e-6)
    assert (parts(carry)[0][1, 0] == 0).all()


def test_sliced_parameters_give_each_step_its_own() -> None:
    cells = [SimpleCell(3, 4, rngs=moduli.Rngs(seed)) for seed in range(5)]
    graphdef, _ = moduli.split(cells[0])
    states = [moduli.state(cell) for cell in cells]
    stacked = moduli.merge(graphdef, jax.tree.map(lambda *values: jnp.stack(values), *states))
    x = jnp.asarray(X)
    for reverse in (False, True):
        order = x[:, ::-1] if reverse else x
        h, outputs = jnp.zeros((2, 4)), []
        for t, cell in enumerate(cells):
            h, y = cell(h, order[:, t])
            outputs.append(y)
        rnn = RNN(stacked, state_axes={moduli.Param: 0, ...: moduli.Carry}, reverse=reverse)
        np.testing.assert_allclose(rnn(x), jnp.stack(outputs, 1), rtol=1e-6, atol=1e-7)


def test_sequences_are_turned_round_up_to_their_ends() -> None:
    x = jnp.array([[1, 2, 3, 4], [5, 6, 7, 8], [1, 0, 0, 0]])
    lengths = jnp.array([4, 2, 1])
    turned = flip_sequences(x, lengths, num_batch_dims=1, time_major=False)
    np.testing.assert_array_equal(turned, [[4, 3, 2, 1], [6, 5, 8, 7], [1, 0, 0, 0]])
    turned = flip_sequences(x.T, lengths, num_batch_dims=1, time_major=True)
    np.testing.assert_array_equal(turned.T, [[4, 3, 2, 1], [6, 5, 8, 7], [1, 0, 0, 0]])


# -- a cell of one's own -------------------------------------------------------------------------


class Images(RNNCellBase):
    """A cell over images: two axes of space, one of features; it leaks its inputs."""

    def __call__(self, carry: Any, inputs: Any) -> Any:
        """One step."""
        carry = 0.5 * carry + inputs
        return carry, {"sum": carry, "mean": carry.mean(-1)}

    def initialize_carry(self, input_shape: Any, rngs: Any = None, carry_init: Any = None) -> Any:
        """Zeros of the shape of the inputs."""
        return jnp.zeros(input_shape)

    @property
    def num_feature_axes(self) -> int:
        """Space and features."""
        return 3


def test_cells_with_more_axes_and_several_outputs() -> None:
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5, 4, 4, 3)), jnp.float32)
    y = RNN(Images())(x)
    assert y["mean"].shape == (2, 5, 4, 4)
    np.testing.assert_allclose(y["sum"][:, 1], 0.5 * x[:, 0] + x[:, 1], rtol=1e-6)
    with pytest.raises(ShapeError, match="with 3 axes of features, got shape"):
        RNN(Images())(x[0, 0])


def test_an_overridden_call_of_our_cells_is_called() -> None:
    class Doubled(GRUCell):
        def __call__(self, carry: Any, inputs: Any) -> Any:
            carry, y = super().__call__(carry, inputs)
            return carry, 2 * y

    cell = Doubled(3, 4, rngs=moduli.Rngs(0))
    plain = RNN(GRUCell(3, 4, rngs=moduli.Rngs(0)))
    np.testing.assert_allclose(RNN(cell)(X), 2 * plain(X), rtol=1e-6)
    with pytest.raises(ArgumentError, match=r"nothing to compute ahead, because Doubled does not"):
        RNN(cell, project_ahead=True)(X)


def test_a_base_without_methods_says_which_are_missing() -> None:
    cell = RNNCellBase()
    for call, name in (
        (lambda: cell(0, ()), "neither __call__ nor step"),
        (lambda: cell.initialize_carry((2, 3)), "initialize_carry"),
        (lambda: cell.num_feature_axes, "num_feature_axes"),
    ):
        with pytest.raises(NotImplementedError, match=f"RNNCellBase .*{name}"):
            call()


# -- dtypes --------------------------------------------------------------------------------------


@each_cell
@pytest.mark.parametrize("carried", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("computed", [jnp.float32, jnp.bfloat16], ids=["to-float32", "to-bf16"])
def test_a_carry_keeps_its_dtype_and_outputs_have_the_computations(
    kind: Any, carried: Any, computed: Any
) -> None:
    cell = kind(3, 4, dtype=computed, rngs=moduli.Rngs(0))
    exact = RNN(kind(3, 4, dtype=jnp.float32, rngs=moduli.Rngs(0)))(X)
    initial = jax.tree.map(lambda a: a.astype(carried), cell.initialize_carry((2, 3)))
    carry, y = RNN(cell, return_carry=True)(X, initial_carry=initial)
    assert y.dtype == computed
    assert all(array.dtype == carried for array in parts(carry))
    np.testing.assert_allclose(np.asarray(y, np.float32), exact, atol=0.03)


@each_cell
def test_parameters_in_half_precision(kind: Any) -> None:
    cell = kind(3, 4, param_dtype=jnp.bfloat16, dtype=jnp.bfloat16, rngs=moduli.Rngs(0))
    params = jax.tree.leaves(moduli.state(cell, moduli.Param))
    assert all(array.dtype == jnp.bfloat16 for array in params)
    assert all(array.dtype == jnp.bfloat16 for array in parts(cell.initialize_carry((2, 3))))
    assert RNN(cell)(jnp.asarray(X, jnp.bfloat16)).dtype == jnp.bfloat16


def test_a_policy_reaches_cells() -> None:
    rnn = RNN(OptimizedLSTMCell(3, 4, rngs=moduli.Rngs(0)), return_carry=True)
    set_dtypes(rnn, DtypePolicy(param=jnp.float32, compute=jnp.bfloat16, accumulate=jnp.float32))
    (c, _), y = rnn(jnp.asarray(X))
    assert (c.dtype, y.dtype) == (jnp.float32, jnp.bfloat16)


@each_cell
def test_recurrent_kernels_are_orthogonal(kind: Any) -> None:
    cell = kind(3, 16, rngs=moduli.Rngs(0))
    kernel = (cell.hf if kind is LSTMCell else cell.dense_h).kernel.value
    np.testing.assert_allclose(kernel @ kernel.T, np.eye(16), atol=1e-5)


# -- first carries -------------------------------------------------------------------------------


def test_zeros_need_no_streams_and_draw_none_of_the_layers() -> None:
    rnn = RNN(GRUCell(3, 4, rngs=moduli.Rngs(0)))
    rnn(X)
    assert rnn.rngs is not None and rnn.rngs.count.value == 0
    np.testing.assert_array_equal(RNN(rnn.cell, rngs=False)(X), rnn(X))


def test_random_carries_differ_from_call_to_call_and_under_jit() -> None:
    cell = GRUCell(3, 4, carry_init=initializers.normal(1.0), rngs=moduli.Rngs(0))
    eager, jitted = RNN(cell), RNN(moduli.clone(cell))
    run = moduli.jit(lambda rnn, x: rnn(x))
    first = eager(X)
    np.testing.assert_allclose(run(jitted, X), first, rtol=1e-5, atol=1e-6)
    second = eager(X)
    assert not np.allclose(first, second)
    np.testing.assert_allclose(run(jitted, X), second, rtol=1e-5, atol=1e-6)
    with pytest.raises(RngError, match=re.escape("GRUCell.initialize_carry has a carry_init and")):
        RNN(cell, rngs=False)(X)


def test_kept_streams_serve_the_carry() -> None:
    cell = LSTMCell(3, 4, carry_init=initializers.normal(1.0), keep_rngs=True, rngs=moduli.Rngs(0))
    c, h = cell.initialize_carry((2, 3))
    assert not np.allclose(c, h)
    assert cell.rngs is not None and cell.rngs.count.value == 2


# -- torch ---------------------------------------------------------------------------------------


def test_torchs_bias_inside_of_the_reset_gate_has_to_be_zero() -> None:
    cell = GRUCell(3, 4, rngs=moduli.Rngs(0))
    tensors = cell.torch_counterpart.to_theirs(cell)
    assert (tensors["bias_hh"] == 0).all()
    tensors["bias_hh"] = np.arange(12, dtype=np.float32) * (np.arange(12) < 8)
    cell.torch_counterpart.to_ours(cell, tensors)
    np.testing.assert_array_equal(cell.dense_i.bias.value, tensors["bias_hh"])
    tensors["bias_hh"][8] = 1
    with pytest.raises(StructureError, match="no parameter, and which is not zero"):
        cell.torch_counterpart.to_ours(cell, tensors)


@pytest.mark.parametrize(
    ("cell", "match"),
    [
        (GRUCell(3, 4, gate_fn=jnp.tanh, rngs=moduli.Rngs(0)), "none to choose; got gate_fn="),
        (SimpleCell(3, 4, residual=True, rngs=moduli.Rngs(0)), "no residual; got"),
    ],
)
def test_what_torch_cannot_compute_has_no_constructor_there(cell: Any, match: str) -> None:
    for layer in (cell, RNN(cell)):
        with pytest.raises(StructureError, match=match):
            layer.torch_counterpart.arguments(layer)


def test_networks_without_a_counterpart_have_none() -> None:
    cells = [GRUCell(3, 4, rngs=moduli.Rngs(seed)) for seed in range(2)]
    forward, backward = map(RNN, cells)
    assert not hasattr(RNN(cells[0], reverse=True), "torch_counterpart")
    assert not hasattr(RNN(Images()), "torch_counterpart")
    assert not hasattr(Bidirectional(forward, forward), "torch_counterpart")
    assert not hasattr(Bidirectional(forward, backward, merge_fn=jnp.add), "torch_counterpart")
    assert hasattr(Bidirectional(forward, backward), "torch_counterpart")


# -- what is refused -----------------------------------------------------------------------------


def golden(error: type[Exception], text: str) -> Any:
    """Expects an error with exactly this message."""
    return pytest.raises(error, match=f"^{re.escape(text)}$")


def test_wrong_features() -> None:
    text = (
        "GRUCell(in_features=3) expects inputs of shape (..., 3), got shape (2, 7); build the "
        "layer with in_features=7, or give the inputs an axis -1 of size 3"
    )
    cell = GRUCell(3, 4, rngs=moduli.Rngs(0))
    with golden(ShapeError, text):
        cell(jnp.zeros((2, 4)), jnp.zeros((2, 7)))
    for ahead in (False, True):
        model = moduli.List([RNN(cell, project_ahead=ahead)])
        with pytest.raises(ShapeError, match=r"^GRUCell\(in_features=3\) .* \(in `0.* of List"):
            model[0](jnp.zeros((2, 5, 7)))


def test_wrong_carries() -> None:
    lstm, gru = OptimizedLSTMCell(3, 4, rngs=moduli.Rngs(0)), GRUCell(3, 4, rngs=moduli.Rngs(0))
    x, h = jnp.zeros((2, 3)), jnp.zeros((2, 4))
    with golden(
        ArgumentError,
        "OptimizedLSTMCell expects the carry (c, h), a tuple of 2 arrays, got one array; write "
        "cell.initialize_carry(inputs.shape) for the first step",
    ):
        lstm(h, x)
    with golden(
        ArgumentError,
        "GRUCell expects the carry h, one array, got a tuple of 2; write "
        "cell.initialize_carry(inputs.shape) for the first step",
    ):
        gru((h, h), x)
    with pytest.raises(ArgumentError, match="one array, got NoneType"):
        gru(None, x)
    with pytest.raises(
        ArgumentError, match=r"of 2 arrays, got a tuple of 2 \(NoneType, NoneType\);"
    ):
        lstm((None, None), x)
    text = (
        "GRUCell(hidden_features=4) expects h of shape (2, 4) in the carry, got shape {}; write "
        "cell.initialize_carry((2, 3))"
    )
    for shape in ((2, 5), (3, 4), (1, 2, 4), ()):
        with golden(ShapeError, text.format(shape)):
            gru(jnp.zeros(shape), x)
    np.testing.assert_array_equal(gru(jnp.ones(4), x)[0], gru(jnp.ones((2, 4)), x)[0])
    with pytest.raises(ShapeError, match=re.escape(text.format((4,)))):
        RNN(gru)(X, initial_carry=jnp.ones(4))
    with golden(
        DtypeError,
        "OptimizedLSTMCell expects a carry of floating-point numbers, got c of dtype int32; write "
        "c.astype(jnp.float32)",
    ):
        lstm((jnp.zeros((2, 4), jnp.int32), h), x)


def test_wrong_lengths() -> None:
    rnn = RNN(GRUCell(3, 4, rngs=moduli.Rngs(0)))
    with golden(
        ShapeError,
        "RNN expects seq_lengths of the batch's shape (2,), got shape (3,); write one length for "
        "each sequence, as jnp.full((2,), 5)",
    ):
        rnn(X, seq_lengths=jnp.array([1, 2, 3]))
    with golden(
        DtypeError,
        "RNN expects seq_lengths of integers, got float32; write seq_lengths.astype(jnp.int32)",
    ):
        rnn(X, seq_lengths=jnp.ones(2, jnp.float32))
    with pytest.raises(DtypeError, match=re.escape("got bool; write seq_lengths=mask.sum(-1) for")):
        rnn(X, seq_lengths=jnp.ones((2, 5), bool))


def test_a_missing_axis_of_time() -> None:
    rnn = RNN(GRUCell(3, 4, rngs=moduli.Rngs(0)))
    with golden(
        ShapeError,
        "RNN(GRUCell) expects inputs of shape (..., time, features) with 1 axis of features, got "
        "shape (3,); write inputs[None] for a sequence of one step, or call the cell",
    ):
        rnn(jnp.zeros(3))


def test_what_is_no_cell_no_stream_no_pair_is_refused() -> None:
    cell = GRUCell(3, 4, rngs=moduli.Rngs(0))
    with pytest.raises(ArgumentError, match=r"expects a recurrent cell, got a Linear; write RNN\("):
        RNN(Linear(3, 4, rngs=moduli.Rngs(0)))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ArgumentError, match="got the class GRUCell; write"):
        RNN(GRUCell)  # pyright: ignore[reportArgumentType]
    with pytest.raises(RngError, match=r"^RNN got rngs of type int; write rngs=True for a stream"):
        RNN(cell, rngs=3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(RngError, match="initialize_carry got rngs of type int; write"):
        cell.initialize_carry((2, 3), 3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ArgumentError, match=r"expects initial_carry=\(forward carry, backward"):
        Bidirectional(RNN(cell), RNN(cell))(X, initial_carry=jnp.zeros((2, 4)))  # pyright: ignore
    with pytest.raises(ArgumentError, match="got hidden_features=0; write a size of at least 1"):
        GRUCell(3, 0, rngs=moduli.Rngs(0))
    axes = {moduli.Param: 0}
    with pytest.raises(ArgumentError, match="because state_axes gives each step its own layers"):
        RNN(cell, state_axes=axes, project_ahead=True)(X)
