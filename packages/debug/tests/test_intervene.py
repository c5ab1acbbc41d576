"""``intervene`` and ``capture_grads``: against the computation by hand, and their refusals."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from debug_models import INPUTS, Dense, Probed, Tower, arrays, hidden_gradient, loss, nothing_sown

import moduli as nnx
from moduli import errors
from moduli_debug import capture, capture_grads, intervene, intervening


class Net(nnx.Module):
    """Two layers; no debugging code."""

    def __init__(self) -> None:
        self.first, self.second = Dense(3, 4, 1), Dense(4, 2, 2)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.second(jnp.tanh(self.first(x)))


def by_hand(model: Net, first: Any = None, x: Any = INPUTS) -> Any:
    first = model.first(x) if first is None else first
    return model.second(jnp.tanh(first))


def test_ablation_addition_and_scaling() -> None:
    model, direction = Net(), arrays(7, (4,))[0]
    y = model.first(INPUTS)
    for act, value in [
        (jnp.zeros_like, jnp.zeros_like(y)),
        (lambda v: v + direction, y + direction),
        (lambda v: v.at[:, 0].set(0.0), y.at[:, 0].set(0.0)),
        (2.0, jnp.full_like(y, 2.0)),
        (direction[None] * jnp.ones((5, 1)), jnp.broadcast_to(direction, (5, 4))),
        (nnx.Param(y + 1), y + 1),
    ]:
        for run in (model, nnx.jit(model.__call__)):
            out = intervene(run, {"first": act})(INPUTS)
            np.testing.assert_allclose(out, by_hand(model, value), rtol=1e-6)


def test_several_filters_act_in_their_order() -> None:
    model = Net()
    run = intervene(model, {"first": lambda v: v + 1, Dense: lambda v: 2 * v})
    expected = 2 * by_hand(model, 2 * (model.first(INPUTS) + 1))
    np.testing.assert_allclose(run(INPUTS), expected, rtol=1e-6)


def test_inputs() -> None:
    class Add(nnx.Module):
        def __call__(self, a: Any, b: Any) -> Any:
            return a + b

    class Model(nnx.Module):
        def __init__(self) -> None:
            self.add, self.dense = Add(), Dense(3, 3, 0)

        def __call__(self, x: Any) -> Any:
            return self.add(self.dense(x), x)

    model = Model()
    out = intervene(model, {"dense": lambda x: 0 * x}, at="inputs")(INPUTS)
    np.testing.assert_allclose(out, model.dense.bias + INPUTS, rtol=1e-6)
    out = intervene(model, {"add": lambda a, b: (b, b)}, at="inputs")(INPUTS)
    np.testing.assert_allclose(out, 2 * INPUTS, rtol=1e-6)


def test_a_block_with_interventions() -> None:
    model, run = Net(), nnx.jit(lambda model, x: model(x))
    before = run(model, INPUTS)
    with intervening(model, {"first": jnp.zeros_like}):
        inside = run(model, INPUTS)
        with intervening(model, {"second": jnp.zeros_like}):
            assert not run(model, INPUTS).any()
    np.testing.assert_allclose(inside, by_hand(model, jnp.zeros((5, 4))), rtol=1e-6)
    np.testing.assert_array_equal(run(model, INPUTS), before)


def test_it_can_be_differentiated_with_respect_to_the_value() -> None:
    model = Net()

    def with_direction(direction: Any, act: Any) -> Any:
        run = intervene(nnx.jit(lambda model, x: (model(x) ** 2).sum()), {"first": act(direction)})
        return run(model, INPUTS)

    direction = arrays(7, (5, 4))[0]
    expected = jax.grad(lambda value: (by_hand(model, value) ** 2).sum())(direction)
    for grad in (jax.grad, nnx.grad):
        given = grad(lambda d: with_direction(d, lambda d: d))(direction)
        closed_over = grad(lambda d: with_direction(d, lambda d: lambda value: d))(direction)
        np.testing.assert_allclose(given, expected, rtol=1e-5)
        np.testing.assert_allclose(closed_over, expected, rtol=1e-5)


def test_other_values_do_not_compile_again() -> None:
    traces = []

    @nnx.jit
    def forward(model: Net, x: jax.Array) -> jax.Array:
        traces.append(1)
        return model(x)

    model = Net()
    for scale in range(3):
        value = jnp.full((5, 4), float(scale))
        out = intervene(forward, {"first": value})(model, INPUTS)
        np.testing.assert_allclose(out, by_hand(model, value), rtol=1e-6)
    assert len(traces) == 1


def test_patching_from_one_run_into_another() -> None:
    model, other = Tower(3), arrays(9, (5, 3))[0]
    with nnx.using(nothing_sown):
        clean, seen = capture(model, outputs="blocks/1")(INPUTS)
        patched = intervene(model, {"blocks/1": seen})(other)
        np.testing.assert_array_equal(patched, clean)  # nothing after block 1 sees the other input
        unpatched = model(other)
    assert np.abs(np.asarray(unpatched - clean)).max() > 0.1


def test_patching_one_layer_of_a_stack_of_scanned_blocks() -> None:
    stack = nnx.Stack(lambda rngs: nnx.Linear(3, 3, rngs=rngs), 4, rngs=nnx.Rngs(0))
    other = arrays(9, (5, 3))[0]
    clean, seen = capture(nnx.jit(lambda m, x: m(x)), outputs="block")(stack, INPUTS)
    assert seen.block.outputs.value[0].shape == (4, 5, 3)
    patched = intervene(nnx.jit(lambda m, x: m(x)), {"block": seen})(stack, other)
    np.testing.assert_allclose(patched, clean, rtol=1e-6)
    corrupt, theirs = capture(stack, outputs="block")(other)
    mixed = nnx.clone(theirs)
    mixed.block.outputs.value = (
        theirs.block.outputs.value[0].at[3].set(seen.block.outputs.value[0][3]),
    )
    out = intervene(stack, {"block": mixed})(other)
    np.testing.assert_allclose(out, clean, rtol=1e-6)
    assert np.abs(np.asarray(corrupt - clean)).max() > 0.1


@pytest.mark.parametrize(
    ("interventions", "options", "error", "text"),
    [
        (None, {}, errors.VariableError, "the interventions are a NoneType; write a dict"),
        ({"first": "zero"}, {}, errors.VariableError, "for 'first' is 'zero'; give a function"),
        ({3: jnp.zeros_like}, {}, errors.VariableError, "3 of type int is no filter"),
        ({"first": 1.0}, {"at": "output"}, errors.VariableError, 'at="outputs" or at="inputs"'),
        ({"frist": 1.0}, {}, errors.PathError, "intervene: the filter 'frist' .* mean 'first'"),
        (
            {"first": lambda v: v[:2]},
            {},
            errors.ShapeError,
            r"the outputs of `first` has shape \(5, 4\), and .*<lambda> makes shape \(2, 4\)",
        ),
        ({"first": lambda v: (v, v)}, {}, errors.ShapeError, "return the same structure"),
        ({"first": nnx.State({})}, {}, errors.PathError, "has no outputs of a module"),
        (
            {"first": nnx.State({"first": {"outputs": nnx.Intermediate((1.0,))}})},
            {},
            errors.VariableError,
            "not as moduli.capture returned it",
        ),
    ],
)
def test_refusals(interventions: Any, options: Any, error: type, text: str) -> None:
    model = Net()
    before = nnx.graphdef(model)
    with pytest.raises(error, match=text):
        intervene(model, interventions, **options)(INPUTS)
    assert nnx.graphdef(model) is before


def test_a_patch_for_a_call_that_the_other_run_did_not_make() -> None:
    model = Net()
    _, seen = capture(model, outputs="first")(INPUTS)
    twice = intervene(lambda model, x: model(x) + model(x), {"first": seen})
    with pytest.raises(errors.PathError, match="no value for call 1 of `first`"):
        twice(model, INPUTS)


# -- gradients -----------------------------------------------------------------------------------

LOSSES = [
    lambda f: f,
    nnx.jit,
    lambda f: nnx.jit(lambda model, x: nnx.value_and_grad(f)(model, x)[0]),
]


@pytest.mark.parametrize("inner", LOSSES, ids=["eager", "jit", "jit(grad)"])
@pytest.mark.parametrize("outer", [lambda f: f, nnx.jit], ids=["eager", "jit"])
def test_the_gradient_of_outputs(inner: Any, outer: Any) -> None:
    model = Net()
    run = outer(capture_grads(inner(loss), "first"))
    value, seen, grads = run(model, INPUTS)
    first = model.first(INPUTS)
    expected = jax.grad(lambda v: (by_hand(model, v) ** 2).sum())(first)
    np.testing.assert_allclose(value, loss(model, INPUTS), rtol=1e-6)
    np.testing.assert_allclose(seen.first.outputs.value[0], first, rtol=1e-6)
    np.testing.assert_allclose(grads.first.outputs.value[0], expected, rtol=1e-5)
    assert vars(model).keys() == {"_moduli", "first", "second"}


def test_every_batch_size_without_a_sample_run() -> None:
    model = Probed()
    run = nnx.jit(capture_grads(loss))
    for size in (5, 2):
        _, seen, grads = run(model, INPUTS[:size])
        expected = hidden_gradient(model, INPUTS[:size])
        np.testing.assert_allclose(grads.hidden_grad.value[0], expected, rtol=1e-4)
        assert seen.hidden_grad.value[0].shape == (size, 4)
    assert vars(model).keys() == {"_moduli", "first", "second"}


def test_several_perturbations_of_pytrees_and_repeated_names() -> None:
    class Model(nnx.Module):
        def __call__(self, x: Any) -> Any:
            pair = self.perturb("pair", {"a": x, "b": (2 * x, 3)})
            for _ in range(2):
                x = self.perturb("x", x * pair["a"])
            return (x + pair["b"][0]).sum()

    x = jnp.array([1.0, 2.0])
    _, seen, grads = capture_grads(lambda model, x: model(x))(Model(), x)

    def reference(a: Any, b: Any, first: Any, second: Any) -> Any:
        pair = {"a": x + a, "b": 2 * x + b}
        y = x * pair["a"] + first
        y = y * pair["a"] + second
        return (y + pair["b"]).sum()

    zeros = jnp.zeros(2)
    a, b, first, second = jax.grad(reference, argnums=(0, 1, 2, 3))(zeros, zeros, zeros, zeros)
    pair = grads.pair.value[0]
    np.testing.assert_allclose([pair["a"], pair["b"][0]], [a, b], rtol=1e-6)
    np.testing.assert_allclose(grads.x.value, [first, second], rtol=1e-6)
    np.testing.assert_allclose(seen.x.value[1], x**3, rtol=1e-6)


def test_what_the_loss_writes_is_written_once() -> None:
    class Counting(Net):
        def __init__(self) -> None:
            super().__init__()
            self.calls = nnx.BatchStat(0)

        def __call__(self, x: Any) -> Any:
            self.calls.value += 1
            return super().__call__(x)

    model = Counting()
    for step in range(3):
        capture_grads(loss, "first")(model, INPUTS)
        assert int(model.calls.value) == step + 1


def test_aux_methods_and_patterns() -> None:
    class Model(Net):
        def loss(self, x: Any, *, scale: float) -> Any:
            return scale * self(x).sum(), {"scale": scale}

    model = Model()
    (value, aux), _, grads = capture_grads(model.loss, "*", has_aux=True)(INPUTS, scale=3.0)
    np.testing.assert_allclose(value, 3 * model(INPUTS).sum(), rtol=1e-5)
    assert float(aux["scale"]) == 3.0
    assert nnx.to_flat_state(grads).paths == (("first", "outputs"), ("second", "outputs"))
    np.testing.assert_array_equal(grads.second.outputs.value[0], jnp.full((5, 2), 3.0))


@pytest.mark.parametrize(
    ("args", "error", "text"),
    [
        ((3,), errors.VariableError, "capture_grads needs a Module, a method, a function; got 3"),
        ((loss, nnx.Param), errors.VariableError, "the kind Param is no Perturbation"),
        ((loss, "frist"), errors.PathError, "did you mean 'first'"),
        ((loss,), errors.PathError, "the loss perturbs nothing; write `x = self.perturb"),
        ((lambda model, x: model(x), "first"), errors.ShapeError, "must return a scalar"),
        (
            (lambda model, x: x.sum(), "first"),
            errors.PathError,
            "none of the modules that 'first' selects is called",
        ),
    ],
)
def test_refusals_of_gradients(args: Any, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        capture_grads(*args)(Net(), INPUTS)
