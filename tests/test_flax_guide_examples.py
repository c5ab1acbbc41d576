"""What flax.nnx's guides show of transforms, random streams and graph functions, in our own words.

Each example is a function of the library: it checks what the guide promises and returns the numbers
it got. It runs with moduli, where any warning is an error, and with flax.nnx; the numbers must be
equal.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from programs import assert_same_numbers

import moduli

Example = Callable[[Any], Any]
EXAMPLES: dict[str, Example] = {}
X = np.linspace(-1.0, 1.0, 12, dtype=np.float32).reshape(4, 3)
Y = np.linspace(0.0, 1.0, 8, dtype=np.float32).reshape(4, 2)


def example(function: Example) -> Example:
    """Adds a function to the examples."""
    EXAMPLES[function.__name__] = function
    return function


@pytest.fixture(scope="module")
def flax_nnx() -> Any:
    nnx = pytest.importorskip("flax.nnx")
    if not hasattr(nnx, "with_rngs"):
        pytest.skip("this flax is before 0.12.8, with other defaults and fewer names")
    return nnx


def make_model(nnx: Any, seed: int = 0) -> Any:
    """Builds a module with weights, statistics, a stream of its own and a counter."""

    class Count(nnx.Variable):
        pass

    class Model(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.inner = nnx.Linear(3, 5, rngs=rngs)
            self.norm = nnx.BatchNorm(5, rngs=rngs)
            self.drop = nnx.Dropout(0.3, rngs=rngs)
            self.outer = nnx.Linear(5, 2, rngs=rngs)
            self.calls = Count(jnp.array(0))

        def __call__(self, x: Any) -> Any:
            self.calls[...] = self.calls[...] + 1
            return self.outer(nnx.relu(self.drop(self.norm(self.inner(x)))))

    return Model(nnx.Rngs(params=seed, dropout=seed + 1))


def loss_of(model: Any, x: Any, y: Any) -> Any:
    return ((model(x) - y) ** 2).mean()


# -- the functional style: raw jax.jit around split and merge -------------------------------------


@example
def a_functional_training_loop_over_several_objects(nnx: Any) -> Any:
    model = make_model(nnx)
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    metrics = nnx.MultiMetric(loss=nnx.metrics.Average("loss"))
    graphdef, state = nnx.split((model, optimizer, metrics))

    @jax.jit
    def step(graphdef: Any, state: Any, x: Any, y: Any) -> Any:
        model, optimizer, metrics = nnx.merge(graphdef, state)
        loss, grads = nnx.value_and_grad(loss_of)(model, x, y)
        optimizer.update(model, grads)
        metrics.update(loss=loss)
        return loss, nnx.state((model, optimizer, metrics))

    losses = []
    for _ in range(3):
        loss, state = step(graphdef, state, X, Y)
        losses.append(loss)
    nnx.update((model, optimizer, metrics), state)
    assert int(model.calls[...]) == int(optimizer.step[...]) == 3
    np.testing.assert_allclose(metrics.compute()["loss"], np.mean(losses), rtol=1e-6)
    return losses, model.inner.kernel, model.norm.mean


@example
def a_graphdef_is_an_argument_and_a_result(nnx: Any) -> Any:
    @jax.jit
    def step(graphdef: Any, state: Any) -> Any:
        def loss(graphdef: Any, state: Any) -> Any:
            return (nnx.merge(graphdef, state)(X) ** 2).mean()

        grads = jax.grad(loss, argnums=1)(graphdef, state)
        model = nnx.merge(graphdef, state)
        params = nnx.state(model, nnx.Param)
        nnx.update(model, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads))
        return nnx.split(model)

    graphdef, state = nnx.split(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    for _ in range(2):
        graphdef, state = step(graphdef, state)
    assert nnx.merge(graphdef, state).out_features == 2
    return state["kernel"], state["bias"]


@example
def the_states_of_two_objects_move_to_a_device_and_back(nnx: Any) -> Any:
    model = make_model(nnx)
    optimizer = nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param)
    state = nnx.state((model, optimizer))
    nnx.update((model, optimizer), jax.device_put(state, jax.devices()[-1]))
    assert model.inner.kernel[...].devices() == {jax.devices()[-1]}
    nnx.update((model, optimizer), jax.device_get(state))
    return model.inner.kernel, optimizer.step


@example
def shared_references_pass_through_split(nnx: Any) -> Any:
    class Pair(nnx.Module):
        def __init__(self) -> None:
            self.left = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
            self.right = self.left

    model = Pair()
    assert nnx.find_duplicates(model) == [[("left",), ("right",)]]
    graphdef, state = nnx.split(model)

    @jax.jit
    def double(graphdef: Any, state: Any) -> Any:
        inside = nnx.merge(graphdef, state)
        assert inside.left is inside.right
        inside.right.kernel[...] = 2 * inside.left.kernel[...]
        return nnx.state(inside)

    nnx.update(model, double(graphdef, state))
    assert model.left is model.right
    return model.right.kernel


@example
def gradients_are_taken_apart_like_models(nnx: Any) -> Any:
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    grads = nnx.state(nnx.grad(lambda m: (m(X) ** 2).mean())(model))
    kernels = nnx.state(grads, nnx.PathContains("kernel"))
    assert list(kernels) == ["kernel"]
    new = jax.tree.map(lambda p, g: p - 0.1 * g, nnx.variables(model), grads)
    nnx.update(model, new)
    return model.kernel, kernels["kernel"]


@example
def a_state_without_variables(nnx: Any) -> Any:
    state = nnx.state(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    pure = nnx.as_pure(state)
    assert isinstance(pure["kernel"], jax.Array)
    assert isinstance(state["kernel"], nnx.Param)
    model = nnx.as_pure(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    assert isinstance(model.kernel, jax.Array)
    return pure["kernel"], pure["bias"], model(X)


# -- random streams -------------------------------------------------------------------------------


@example
def draws_without_naming_a_key(nnx: Any) -> Any:
    rngs = nnx.Rngs(0, params=1)
    kernel = rngs.params.lecun_normal()((3, 4))
    return kernel, rngs.he_uniform()((3, 4)), rngs.normal((2,)), rngs.params.bernoulli(0.5, (8,))


@example
def split_and_broadcast_streams_under_vmap(nnx: Any) -> Any:
    drop = nnx.Dropout(0.5)

    @nnx.vmap(in_axes=(None, 0, 0))
    def forward(drop: Any, x: Any, rngs: Any) -> Any:
        return drop(x, rngs=rngs)

    rngs = nnx.Rngs(dropout=1)
    same = forward(drop, jnp.ones((4, 16)), rngs.broadcast(4))
    other = forward(drop, jnp.ones((4, 16)), rngs.split(4))
    assert len(np.unique(same, axis=0)) == 1
    assert len(np.unique(other, axis=0)) > 1
    assert int(rngs.dropout.count[...]) == 2
    return same, other


@example
def one_dropout_mask_for_all_steps_of_a_scan(nnx: Any) -> Any:
    class Count(nnx.Variable):
        pass

    class Cell(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.linear = nnx.Linear(3 + 4, 4, rngs=rngs)
            self.drop = nnx.Dropout(0.4, rngs=rngs, rng_collection="recurrent")
            self.steps = Count(jnp.array(0))

        def __call__(self, h: Any, x: Any) -> Any:
            self.steps[...] = self.steps[...] + 1
            h = self.drop(h)
            return (y := nnx.relu(self.linear(jnp.concatenate([h, x], -1)))), y

    cell = Cell(nnx.Rngs(params=0, recurrent=1))

    @nnx.jit
    def run(cell: Any, x: Any) -> Any:
        graphdef, streams, state = nnx.split(cell, "recurrent", ...)

        @nnx.scan(in_axes=(None, nnx.Carry, 0), out_axes=(nnx.Carry, 0))
        def unroll(streams: Any, carry: Any, x: Any) -> Any:
            state, h = carry
            cell = nnx.merge(graphdef, nnx.clone(streams), state)
            h, y = cell(h, x)
            return (nnx.state(cell, nnx.Not("recurrent")), h), y

        (state, _), y = unroll(streams, (state, jnp.ones((1, 4))), x)
        nnx.update(cell, state)
        return y

    y = run(cell, X[:, None])
    assert int(cell.steps[...]) == 4
    return y


# -- many devices ---------------------------------------------------------------------------------


def split_over_devices(nnx: Any, model: Any, axes: dict[str, Any]) -> Any:
    """Runs a model with parts of its parameters on each device; sums what the devices give."""
    spec = jax.sharding.PartitionSpec
    mesh = jax.make_mesh((4,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    shardings = {nnx.PathContains(name): spec(*axis) for name, axis in axes.items()}
    specs = nnx.StateSharding(shardings)

    @nnx.shard_map(mesh=mesh, in_specs=(specs, spec()), out_specs=spec())
    def forward(model: Any, x: Any) -> Any:
        return jax.lax.psum(model(x), "model")

    y = forward(model, X)
    np.testing.assert_allclose(y, model(X), rtol=1e-5, atol=1e-6)
    return y


def make_pair(nnx: Any, first: Any, second: Any) -> Any:
    class Pair(nnx.Module):
        def __init__(self) -> None:
            self.first, self.second = first, second

        def __call__(self, x: Any) -> Any:
            return self.second(nnx.relu(self.first(x)))

    return Pair()


@example
def two_linears_in_parallel_parts(nnx: Any) -> Any:
    rngs = nnx.Rngs(0)
    first = nnx.Linear(3, 16, use_bias=False, rngs=rngs)
    model = make_pair(nnx, first, nnx.Linear(16, 2, use_bias=False, rngs=rngs))
    return split_over_devices(nnx, model, {"first": (None, "model"), "second": ("model", None)})


@example
def general_linears_in_parallel_parts(nnx: Any) -> Any:
    rngs = nnx.Rngs(0)
    first = nnx.LinearGeneral(3, (4, 5), use_bias=False, rngs=rngs)
    second = nnx.LinearGeneral((4, 5), 2, axis=(-2, -1), use_bias=False, rngs=rngs)
    model = make_pair(nnx, first, second)
    return split_over_devices(nnx, model, {"first": (None, "model"), "second": ("model",)})


@example
def einsums_in_parallel_parts(nnx: Any) -> Any:
    rngs = nnx.Rngs(0)
    first = nnx.Einsum("bi,ihd->bhd", (3, 4, 5), rngs=rngs)
    model = make_pair(nnx, first, nnx.Einsum("bhd,hdo->bo", (4, 5, 2), rngs=rngs))
    return split_over_devices(nnx, model, {"first": (None, "model"), "second": ("model",)})


# -- views ----------------------------------------------------------------------------------------


@example
def with_attributes(nnx: Any) -> Any:
    model = make_model(nnx)
    quiet = nnx.with_attributes(model, deterministic=True, use_running_average=True)
    assert (quiet.drop.deterministic, model.drop.deterministic) == (True, False)
    assert quiet.inner.kernel is model.inner.kernel
    half = nnx.with_attributes(model, only=nnx.Dropout, deterministic=True)
    assert (half.drop.deterministic, half.norm.use_running_average) == (True, False)
    with pytest.raises(ValueError, match="misspelt"):
        nnx.with_attributes(model, misspelt=True)
    nnx.with_attributes(model, misspelt=True, raise_if_not_found=False)
    return quiet(X)


@example
def a_module_says_itself_what_a_view_means(nnx: Any) -> Any:
    class Noise(nnx.Module):
        def __init__(self) -> None:
            self.scale = 1.0

        def __call__(self, x: Any) -> Any:
            return self.scale * x

        def set_view(self, loudness: Any = None) -> None:
            if loudness is not None:
                self.scale = 10.0 * loudness

    class Model(nnx.Module):
        def __init__(self) -> None:
            self.noise = Noise()
            self.drop = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

        def __call__(self, x: Any) -> Any:
            return self.drop(self.noise(x))

    model = Model()
    loud = nnx.view(model, loudness=2.0, deterministic=True)
    assert (loud.noise.scale, model.noise.scale) == (20.0, 1.0)
    assert (loud.drop.deterministic, model.drop.deterministic) == (True, False)
    with pytest.raises(ValueError, match="volume"):
        nnx.view(model, volume=2.0)
    with pytest.raises(ValueError, match="loudness"):
        nnx.view(model, only=nnx.Dropout, loudness=2.0)
    return loud(X)


# -- pytrees --------------------------------------------------------------------------------------


@example
def fields_of_a_dataclass_say_what_is_data(nnx: Any) -> Any:
    @dataclasses.dataclass
    class Box(nnx.Pytree):
        size: int = dataclasses.field(metadata={"static": False})
        name: str = dataclasses.field(metadata={"static": True})

    box = Box(size=10, name="hello")
    assert jax.tree.leaves(box) == [10]
    return jax.tree.map(lambda x: x + 1, box).size


@example
def a_class_that_is_no_pytree_for_jax(nnx: Any) -> Any:
    class Opaque(nnx.Pytree, pytree=False):  # pyright: ignore
        def __init__(self) -> None:
            self.parts = [jnp.array(1.0), jnp.array(2.0)]

    box = Opaque()
    assert jax.tree_util.all_leaves([box])

    @nnx.jit
    def double(box: Any) -> None:
        box.parts = [2 * part for part in box.parts]

    double(box)
    return list(box.parts)


@example
def annotations_with_the_type_of_a_structure(nnx: Any) -> Any:
    class Count(nnx.Variable[nnx.A]):
        pass

    def call(graphdef: nnx.GraphDef[Any], state: nnx.State) -> Any:  # pyright: ignore
        return nnx.merge(graphdef, state)(X)

    assert Count(3).get_value() == 3
    return call(*nnx.split(nnx.Linear(3, 2, rngs=nnx.Rngs(0))))


# -- the tests ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXAMPLES)
def test_runs_with_moduli_and_warns_of_nothing(name: str) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        EXAMPLES[name](moduli)
    assert [str(warning.message) for warning in seen] == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", EXAMPLES)
def test_flax_gives_the_same_numbers(name: str, flax_nnx: Any) -> None:
    ours, theirs = EXAMPLES[name](moduli), EXAMPLES[name](flax_nnx)
    assert_same_numbers(ours, theirs, rtol=1e-5, atol=1e-6)
