"""What a user writes into an optimizer's state between steps is what the next step uses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optimizer_models import INPUTS, KERNEL, Dense

import moduli as nnx


def step(model, optimizer):
    grads = nnx.grad(lambda model: (model(INPUTS) ** 2).mean())(model)
    optimizer.update(model, grads)


RUNS = {"eager": step, "jit": nnx.jit(step)}


@pytest.fixture(params=RUNS)
def run(request):
    return RUNS[request.param]


def by_hand(kernel, rate):
    """One step of sgd on the mean square of a Dense whose bias is zero."""
    outputs = INPUTS @ kernel
    return kernel - rate * 2 * INPUTS.T @ outputs / outputs.size


@pytest.mark.parametrize(
    "number", [0.25, 1, np.float32(0.25), jnp.array(0.25), nnx.Variable(jnp.array(0.25))], ids=repr
)
@pytest.mark.parametrize("nested", [False, True])
def test_hyperparams_are_read_by_the_next_step(run, number, nested):
    tx = optax.inject_hyperparams(optax.sgd)(learning_rate=0.125)
    model = Dense(KERNEL)
    optimizer = nnx.Optimizer(model, optax.chain(optax.identity(), tx) if nested else tx)
    injected = optimizer.opt_state[1] if nested else optimizer.opt_state
    hyperparams = injected.hyperparams
    run(model, optimizer)
    np.testing.assert_allclose(model.kernel.value, by_hand(KERNEL, 0.125), rtol=1e-5)
    for _ in range(2):  # written again, through the same dict
        hyperparams["learning_rate"] = number
        model.kernel.value, model.bias.value = jnp.asarray(KERNEL), jnp.zeros(4)
        run(model, optimizer)
        rate = float(nnx.as_pure(number))
        np.testing.assert_allclose(model.kernel.value, by_hand(KERNEL, rate), rtol=1e-5)
        again = optimizer.opt_state[1] if nested else optimizer.opt_state
        assert again.hyperparams is hyperparams
        assert isinstance(hyperparams["learning_rate"], nnx.Variable)
        np.testing.assert_allclose(hyperparams["learning_rate"].value, rate)
    hyperparams["learning_rate"][...] = 0
    before = model.kernel.value
    run(model, optimizer)
    np.testing.assert_array_equal(model.kernel.value, before)


def test_a_rate_that_is_written_each_step_compiles_no_more_than_for_each_kind():
    traces = []

    @nnx.jit
    def counted(model, optimizer):
        traces.append(1)
        step(model, optimizer)

    model = Dense(KERNEL)
    tx = optax.inject_hyperparams(optax.sgd)(learning_rate=0.125)
    optimizer = nnx.Optimizer(model, tx)
    for number in range(6):
        optimizer.opt_state.hyperparams["learning_rate"] = 0.1 * number
        counted(model, optimizer)
        counted(model, optimizer)
    assert len(traces) == 2


@pytest.mark.parametrize("boxed", [True, False])
def test_moments_are_read_by_the_next_step(run, boxed):
    model, twin = Dense(KERNEL), Dense(KERNEL)
    optimizer = nnx.Optimizer(model, optax.adam(0.1))
    run(model, optimizer)
    plain = optax.adam(0.1)
    params = {"bias": twin.bias.value, "kernel": twin.kernel.value}

    def gradients(params):
        def loss(params):
            return ((INPUTS @ params["kernel"] + params["bias"]) ** 2).mean()

        return jax.grad(loss)(params)

    state = plain.init(params)
    updates, state = plain.update(gradients(params), state, params)
    params = optax.apply_updates(params, updates)
    new = jnp.full(KERNEL.shape, 3.0)
    metadata = optimizer.opt_state[0].mu["kernel"].get_metadata()
    kind = type(optimizer.opt_state[0].mu["kernel"])
    optimizer.opt_state[0].mu["kernel"] = kind(new, **metadata) if boxed else new
    state[0].mu["kernel"] = new
    updates, state = plain.update(gradients(params), state, params)
    params = optax.apply_updates(params, updates)
    run(model, optimizer)
    np.testing.assert_allclose(model.kernel.value, params["kernel"], rtol=1e-5)
    written = optimizer.opt_state[0].mu["kernel"]
    assert type(written) is kind
    assert written.get_metadata() == metadata
    np.testing.assert_allclose(written.value, state[0].mu["kernel"], rtol=1e-5)
