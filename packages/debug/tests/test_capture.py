"""``capture``: what it returns, and that it leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from debug_models import (
    INPUTS,
    Dense,
    Probed,
    Tower,
    hidden_gradient,
    hidden_of,
    loss,
    tower_gradients,
)

import moduli as nnx
from moduli import errors
from moduli_debug import capture


def snapshot(model: nnx.Module) -> Any:
    """What a tool may not change: structure, values, attributes of objects and classes."""
    modules = [module for _, module in nnx.iter_modules(model)]
    return (
        nnx.graphdef(model),
        [(path, v, v.value) for path, v in nnx.to_flat_state(nnx.state(model)).items()],
        [(id(module), sorted(vars(module))) for module in modules],
        [dict(vars(type(module))) for module in modules],
    )


def same(before: Any, after: Any) -> bool:
    """Compares two snapshots; Variables and their values must be the same objects."""
    return (
        before[0] is after[0]
        and [(p, id(v), id(x)) for p, v, x in before[1]]
        == [(p, id(v), id(x)) for p, v, x in after[1]]
        and before[2:] == after[2:]
    )


def hidden_values(state: nnx.State) -> list[np.ndarray]:
    return list(map(np.asarray, state.hidden.value))


# -- what is wrapped -----------------------------------------------------------------------------


class Methods(Probed):
    """A Probed with another method."""

    def twice(self, x: jax.Array, *, scale: float = 2.0) -> jax.Array:
        """Calls the model twice."""
        return self(x) + self(scale * x)


def test_a_module() -> None:
    model = Probed()
    out, state = capture(model, nnx.Intermediate)(INPUTS)
    np.testing.assert_array_equal(out, Probed()(INPUTS))
    assert isinstance(state, nnx.State)
    assert list(state) == ["hidden"]
    assert type(state.hidden) is nnx.Intermediate
    np.testing.assert_allclose(hidden_values(state), [hidden_of(model, INPUTS)], rtol=1e-5)


def test_a_method_with_keyword_arguments() -> None:
    model = Methods()
    _, state = capture(model.twice, nnx.Intermediate)(INPUTS, scale=3.0)
    expected = [hidden_of(model, INPUTS), hidden_of(model, 3 * INPUTS)]
    np.testing.assert_allclose(hidden_values(state), expected, rtol=1e-5)


def test_a_function_of_a_module() -> None:
    model = Probed()
    _, state = capture(lambda model, x: model(x), nnx.Intermediate)(model, INPUTS)
    np.testing.assert_allclose(hidden_values(state), [hidden_of(model, INPUTS)], rtol=1e-5)


def test_a_decorator() -> None:
    @capture(nnx.Intermediate)
    def forward(model: Probed, x: jax.Array) -> jax.Array:
        """Runs the model."""
        return model(x)

    model = Probed()
    _, state = forward(model, INPUTS)
    np.testing.assert_allclose(hidden_values(state), [hidden_of(model, INPUTS)], rtol=1e-5)
    assert (forward.__name__, forward.__doc__) == ("forward", "Runs the model.")


def test_a_decorated_method() -> None:
    class Model(Probed):
        @capture(nnx.Intermediate)
        def look(self, x: jax.Array) -> jax.Array:
            return self(x)

    model = Model()
    _, state = model.look(INPUTS)
    np.testing.assert_allclose(hidden_values(state), [hidden_of(model, INPUTS)], rtol=1e-5)


def test_the_wrapper_of_a_module_takes_none_of_its_attributes() -> None:
    assert not hasattr(capture(Probed(), nnx.Intermediate), "first")


# -- what is returned ----------------------------------------------------------------------------


def test_values_are_keyed_by_module_path() -> None:
    model = Tower(3)
    _, state = capture(model, nnx.Intermediate)(INPUTS)
    assert nnx.to_flat_state(state).paths == tuple(("blocks", i, "out") for i in range(3))
    x = INPUTS
    for block, captured in zip(model.blocks, state.blocks.values(), strict=True):
        x = np.tanh(np.asarray(x) @ block.dense.kernel.value + block.dense.bias.value)
        np.testing.assert_allclose(captured.out.value[0], x, rtol=1e-5)


def test_several_kinds_come_in_a_state_each() -> None:
    out, perturbations, intermediates = capture(Probed(), nnx.Perturbation, nnx.Intermediate)(
        INPUTS
    )
    assert out.shape == (5, 2)
    assert (list(perturbations), list(intermediates)) == (["hidden_grad"], ["hidden"])
    np.testing.assert_array_equal(perturbations.hidden_grad.value, np.zeros((5, 4)))


def test_without_kinds_only_the_result_comes() -> None:
    model = Probed()
    before = snapshot(model)
    assert capture(model)(INPUTS).shape == (5, 2)
    assert same(before, snapshot(model))


def test_a_kind_that_is_not_captured_is_not_stored() -> None:
    class Model(nnx.Module):
        def __call__(self, x: float) -> tuple[bool, Any]:
            return self.sow(nnx.Intermediate, "seen", x), self.perturb("noise", x)

    model = Model()
    result, state = capture(model, nnx.Cache)(2.0)
    assert result == (False, 2.0)
    assert state == nnx.State({})
    assert vars(model).keys() == {"_moduli"}


def test_one_name_may_stand_for_each_kind() -> None:
    class Model(nnx.Module):
        def __call__(self, x: float) -> Any:
            self.sow(nnx.Intermediate, "x", x)
            return 3 * self.perturb("x", x)

    _, intermediates, perturbations = capture(Model(), nnx.Intermediate, nnx.Perturbation)(2.0)
    assert intermediates.x.value == (2.0,)
    assert float(perturbations.x.value) == 0.0


def test_a_name_may_be_that_of_a_submodule_or_a_method() -> None:
    class Model(nnx.Module):
        def __init__(self) -> None:
            self.dense = Dense(3, 2, 0)

        def run(self, x: jax.Array) -> jax.Array:
            y = self.dense(x)
            self.sow(nnx.Intermediate, "dense", y)
            self.sow(nnx.Intermediate, "run", 2 * y)
            return y

    y, state = capture(Model().run, nnx.Intermediate)(INPUTS)
    np.testing.assert_array_equal(state.dense.value[0], y)
    np.testing.assert_array_equal(state.run.value[0], 2 * y)


def test_a_name_of_a_submodule_that_sows_is_an_error() -> None:
    class Model(nnx.Module):
        def __init__(self) -> None:
            self.probed = Probed()

        def __call__(self, x: jax.Array) -> jax.Array:
            y = self.probed(x)
            self.sow(nnx.Intermediate, "probed", y)
            return y

    with pytest.raises(errors.StructureError, match=r"`probed`.*`probed/hidden`"):
        capture(Model(), nnx.Intermediate)(INPUTS)


class Loss(nnx.Intermediate):
    """A kind of its own."""


class Auxiliary(Loss):
    """A kind below that."""


def sow_three(model: nnx.Module) -> None:
    model.sow(nnx.Intermediate, "a", 1)
    model.sow(Loss, "b", 2)
    model.sow(Auxiliary, "c", 3)


@pytest.mark.parametrize(
    ("kinds", "names"),
    [
        ((Auxiliary,), ["c"]),
        ((Loss,), ["bc"]),
        ((nnx.Intermediate,), ["abc"]),
        ((nnx.Variable,), ["abc"]),
        ((nnx.Intermediate, Loss), ["ac", "b"]),
        ((Auxiliary, nnx.Intermediate), ["c", "ab"]),
    ],
)
def test_subclasses_are_captured_unless_they_have_a_place_of_their_own(
    kinds: tuple[Any, ...], names: list[str]
) -> None:
    _, *states = capture(sow_three, *kinds)(nnx.Module())
    assert ["".join(sorted(state)) for state in states] == names
    kinds_by_name = {"a": nnx.Intermediate, "b": Loss, "c": Auxiliary}
    for state in states:
        assert all(type(state[name]) is kinds_by_name[name] for name in state)


def test_capturing_everything_does_not_make_perturbations() -> None:
    _, state = capture(Probed(), nnx.Variable)(INPUTS)
    assert list(state) == ["hidden"]


# -- what is left behind: nothing ----------------------------------------------------------------


def run_jit(model: Any, x: jax.Array) -> Any:
    return nnx.jit(lambda model, x: model(x))(model, x)


def run_grad(model: Any, x: jax.Array) -> Any:
    return nnx.grad(loss)(model, x)


def run_jit_of_grad(model: Any, x: jax.Array) -> Any:
    return nnx.jit(lambda model, x: nnx.grad(loss)(model, x))(model, x)


RUNS = [Probed.__call__, run_jit, run_grad, run_jit_of_grad]
KINDS = (nnx.Intermediate, nnx.Perturbation)


@pytest.mark.parametrize("run", RUNS, ids=["eager", "jit", "grad", "jit_of_grad"])
def test_the_model_is_as_before(run: Callable[..., Any]) -> None:
    model = Probed()
    before = snapshot(model)
    _, state, zeros = capture(run, *KINDS)(model, INPUTS)
    assert same(before, snapshot(model))
    assert not isinstance(state.hidden.value[0], jax.core.Tracer)
    np.testing.assert_allclose(hidden_values(state), [hidden_of(model, INPUTS)], rtol=1e-5)
    np.testing.assert_array_equal(zeros.hidden_grad.value, np.zeros((5, 4)))


@pytest.mark.parametrize("run", RUNS, ids=["eager", "jit", "grad", "jit_of_grad"])
def test_what_was_sown_before_survives(run: Callable[..., Any]) -> None:
    model = Probed()
    model(2 * INPUTS)
    before = snapshot(model)
    _, state, _ = capture(run, *KINDS)(model, INPUTS)
    assert same(before, snapshot(model))
    np.testing.assert_allclose(hidden_values(state), [hidden_of(model, INPUTS)], rtol=1e-5)
    np.testing.assert_allclose(hidden_values(model), [hidden_of(model, 2 * INPUTS)], rtol=1e-5)


@pytest.mark.parametrize("transform", [lambda f: f, nnx.jit, nnx.grad])
@pytest.mark.parametrize("sown_before", [False, True])
def test_after_an_error_too(transform: Callable[..., Any], sown_before: bool) -> None:
    def fails(model: Probed, x: jax.Array) -> jax.Array:
        model(x)
        raise ZeroDivisionError

    model = Probed()
    if sown_before:
        model(INPUTS)
    before = snapshot(model)
    with pytest.raises(ZeroDivisionError):
        capture(transform(fails), *KINDS)(model, INPUTS)
    assert same(before, snapshot(model))


def test_what_the_call_itself_does_to_the_model_stays() -> None:
    class Counter(nnx.Module):
        def __init__(self) -> None:
            self.count, self.child = nnx.Variable(0), None

        def __call__(self) -> None:
            self.count += 1
            self.child = Dense(1, 1, 0)
            self.sow(nnx.Intermediate, "seen", self.count.value)

    for call in (Counter.__call__, nnx.jit(Counter.__call__)):
        model = Counter()
        _, state = capture(call, nnx.Intermediate)(model)
        assert int(state.seen.value[0]) == int(model.count) == 1
        assert isinstance(model.child, Dense)
        assert vars(model).keys() == {"_moduli", "count", "child"}


def test_the_captured_call_sees_its_own_modules_alone() -> None:
    seen = []

    def look(model: Tower) -> None:
        seen.append([path for path, _ in nnx.iter_modules(model)])
        seen.append(nnx.to_flat_state(nnx.state(model)).paths)

    model = Tower()
    look(model)
    capture(look, *KINDS)(model)
    assert seen[:2] == seen[2:]


def test_a_capture_inside_a_capture_takes_its_part() -> None:
    def outer(model: Tower, x: jax.Array) -> Any:
        first, second = model.blocks
        x, state = capture(first, nnx.Intermediate)(x)
        return first(second(x)), state

    model = Tower()
    before = snapshot(model)
    (_, inner), rest = capture(outer, nnx.Intermediate)(model, INPUTS)
    assert same(before, snapshot(model))
    assert nnx.to_flat_state(inner).paths == (("out",),)
    assert nnx.to_flat_state(rest).paths == (("blocks", 0, "out"), ("blocks", 1, "out"))
    assert len(rest.blocks[0].out.value) == 1  # the call after the inner capture


def test_a_module_that_the_call_puts_into_the_model_is_captured_like_any_other() -> None:
    def call(model: nnx.Module, x: jax.Array) -> jax.Array:
        model.child = Probed()
        return model.child(x)

    for run in (call, nnx.jit(call)):
        model = nnx.Module()
        for _ in range(2):
            _, state = capture(run, nnx.Intermediate)(model, INPUTS)
            assert len(state.child.hidden.value) == 1
            assert vars(model.child).keys() == {"_moduli", "first", "second"}


def test_a_module_that_stands_nowhere_sows_into_itself() -> None:
    made = []

    def call(model: nnx.Module, x: jax.Array) -> jax.Array:
        made.append(Probed())
        return made[0](x)

    _, state = capture(call, nnx.Intermediate)(nnx.Module(), INPUTS)
    assert state == nnx.State({})
    assert len(made[0].hidden.value) == 1


# -- with transforms -----------------------------------------------------------------------------


def jit_outside(traces: list[int]) -> Callable[..., Any]:
    def forward(model: Tower, x: jax.Array) -> jax.Array:
        traces.append(1)
        return model(x)

    return nnx.jit(capture(forward, nnx.Intermediate))


def jit_inside(traces: list[int]) -> Callable[..., Any]:
    def forward(model: Tower, x: jax.Array) -> jax.Array:
        traces.append(1)
        return model(x)

    return capture(nnx.jit(forward), nnx.Intermediate)


@pytest.mark.parametrize("make", [jit_outside, jit_inside])
def test_many_steps_are_traced_once(make: Callable[..., Any]) -> None:
    traces: list[int] = []
    forward, model = make(traces), Tower()
    before = snapshot(model)
    for scale in range(4):
        out, state = forward(model, scale * INPUTS)
        assert len(state.blocks[1].out.value) == 1
        np.testing.assert_array_equal(state.blocks[1].out.value[0], out)
    assert len(traces) == 1
    assert same(before, snapshot(model))


def test_a_program_compiled_before_is_not_reused_without_its_captures() -> None:
    forward, model = nnx.jit(lambda model, x: model.dense(model.probe(x))), nnx.Module()
    model.dense, model.probe = Dense(2, 2, 0), Probed()
    forward(model, INPUTS)
    nnx.pop(model, nnx.Any(*KINDS))
    forward(model, INPUTS)
    nnx.pop(model, nnx.Any(*KINDS))
    _, state = capture(forward, nnx.Intermediate)(model, INPUTS)
    assert nnx.to_flat_state(state).paths == (("probe", "hidden"),)
    forward(model, INPUTS)
    assert len(model.probe.hidden.value) == 1


def test_a_training_step_with_its_gradients_inside() -> None:
    def step(model: Probed, x: jax.Array) -> Any:
        value, grads = nnx.value_and_grad(loss)(model, x)
        model.first.kernel.value -= 0.1 * grads.first.kernel.value
        return value

    model = Probed()
    expected = hidden_of(model, INPUTS)
    kernel = model.first.kernel.value
    _, state = capture(nnx.jit(step), nnx.Intermediate)(model, INPUTS)
    np.testing.assert_allclose(hidden_values(state), [expected], rtol=1e-5)
    assert (model.first.kernel.value != kernel).all()
    assert list(nnx.state(model)) == ["first", "second"]


def test_a_model_closed_over_by_jax_own_transform_is_captured_inside_of_it() -> None:
    model = Probed()
    before = snapshot(model)
    run = jax.jit(lambda x: capture(model, nnx.Intermediate)(x)[1].hidden.value[0])
    np.testing.assert_allclose(run(INPUTS), hidden_of(model, INPUTS), rtol=1e-5)
    assert same(before, snapshot(model))


def test_a_capture_around_jax_own_transform_is_an_error() -> None:
    model = Probed()
    before = snapshot(model)
    with pytest.raises(errors.TraceError, match=r"hidden.*Use moduli's transform .`moduli\.jit`"):
        capture(lambda model, x: jax.jit(lambda x: model(x))(x), nnx.Intermediate)(model, INPUTS)
    assert same(before, snapshot(model))


# -- gradients of intermediates ------------------------------------------------------------------


def loss_with(model: Any, perturbations: nnx.State, x: jax.Array) -> Any:
    out, seen = capture(model, nnx.Intermediate, init=perturbations)(x)
    return (out**2).sum(), seen


GRADS = [
    nnx.grad(loss_with, argnums=(0, 1), has_aux=True),
    nnx.jit(nnx.grad(loss_with, argnums=(0, 1), has_aux=True)),
    nnx.grad(nnx.jit(loss_with), argnums=(0, 1), has_aux=True),
]


@pytest.mark.parametrize("gradients", GRADS, ids=["grad", "jit(grad)", "grad(jit)"])
def test_the_gradient_of_init_is_the_intermediates(gradients: Callable[..., Any]) -> None:
    model = Probed()
    before = snapshot(model)
    _, zeros = capture(model, nnx.Perturbation)(INPUTS)
    (grads, perturbed), seen = gradients(model, zeros, INPUTS)
    expected = hidden_gradient(model, INPUTS)
    np.testing.assert_allclose(perturbed.hidden_grad.value, expected, rtol=1e-4)
    np.testing.assert_allclose(hidden_values(seen), [hidden_of(model, INPUTS)], rtol=1e-5)
    plain = nnx.grad(loss)(Probed(), INPUTS)
    np.testing.assert_allclose(grads.first.kernel.value, plain.first.kernel.value, rtol=1e-5)
    assert same(before, snapshot(model))
    assert set(nnx.merge_state(perturbed, seen)) == {"hidden", "hidden_grad"}


@pytest.mark.parametrize("gradients", GRADS, ids=["grad", "jit(grad)", "grad(jit)"])
def test_gradients_by_path(gradients: Callable[..., Any]) -> None:
    model = Tower(3)
    _, zeros = capture(model, nnx.Perturbation)(INPUTS)
    (_, perturbed), _ = gradients(model, zeros, INPUTS)
    for index, expected in enumerate(tower_gradients(model, INPUTS)):
        np.testing.assert_allclose(
            perturbed.blocks[index].out_grad.value, expected, rtol=1e-5, atol=1e-6
        )


def test_init_is_added_and_not_changed() -> None:
    model = Probed()
    _, zeros = capture(model, nnx.Perturbation)(INPUTS)
    zeros.hidden_grad.value = ones = jnp.ones((5, 4), jnp.float32)
    out, again = capture(model, nnx.Perturbation, init=zeros)(INPUTS)
    expected = model.second(jnp.tanh(model.first(INPUTS)) + 1)
    np.testing.assert_allclose(out, expected, rtol=1e-6)
    assert zeros.hidden_grad.value is ones
    assert again.hidden_grad is not zeros.hidden_grad
    np.testing.assert_array_equal(again.hidden_grad.value, ones)


def test_sowing_goes_on_from_init() -> None:
    model = Probed()
    _, first = capture(model, nnx.Intermediate)(INPUTS)
    _, both = capture(model, nnx.Intermediate, init=first)(2 * INPUTS)
    expected = [hidden_of(model, INPUTS), hidden_of(model, 2 * INPUTS)]
    np.testing.assert_allclose(hidden_values(both), expected, rtol=1e-5)
    assert len(first.hidden.value) == 1


def test_a_perturbation_of_the_model_counts_unless_the_capture_has_its_own() -> None:
    model = Probed()
    model(INPUTS)
    model.hidden_grad.value = model.hidden_grad.value + 1
    hidden = jnp.tanh(model.first(INPUTS))
    out, _ = capture(model, nnx.Intermediate)(INPUTS)
    np.testing.assert_allclose(out, model.second(hidden + 1), rtol=1e-6)
    out, _ = capture(model, nnx.Perturbation)(INPUTS)
    np.testing.assert_allclose(out, model.second(hidden), rtol=1e-6)


def test_an_init_of_another_shape_is_an_error_with_a_remedy() -> None:
    model = Probed()
    _, zeros = capture(model, nnx.Perturbation)(INPUTS)
    with pytest.raises(errors.ShapeError, match=r"float32\[5,4\].*float32\[2,4\].*pass it as init"):
        capture(model, init=zeros)(INPUTS[:2])


@pytest.mark.parametrize(
    ("init", "error", "text"),
    [
        (
            nnx.State({"blocks": {2: {"out": nnx.Perturbation(0.0)}}}),
            errors.PathError,
            r"Perturbation at `blocks/2/out`, but Tower has no module at `blocks/2`; "
            r"its modules are .*`blocks/0`",
        ),
        ({"out": 0.0}, errors.VariableError, "init holds a float at `out`"),
    ],
)
def test_an_init_that_does_not_fit_is_an_error(init: Any, error: type, text: str) -> None:
    model = Tower()
    before = snapshot(model)
    with pytest.raises(error, match=text):
        capture(model, nnx.Intermediate, init=init)(INPUTS)
    assert same(before, snapshot(model))


# -- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ((3,), "capture needs a Module, a method, a function or a kind of Variable; got 3"),
        ((Probed.__call__, "intermediates"), "'intermediates' is no kind of Variable"),
        ((Probed.__call__, int), "<class 'int'> is no kind of Variable"),
    ],
)
def test_wrong_arguments(args: Any, text: str) -> None:
    with pytest.raises(errors.VariableError, match=text):
        capture(*args)


@pytest.mark.parametrize(
    ("args", "kwargs", "got"),
    [((1.0,), {}, "a float"), ((), {"model": Probed()}, "no positional argument")],
)
def test_the_first_argument_must_be_the_module(args: Any, kwargs: Any, got: str) -> None:
    def forward(model: Any) -> Any:
        return model

    with pytest.raises(errors.StructureError, match=f"forward must be the Module .* got {got}"):
        capture(forward, nnx.Intermediate)(*args, **kwargs)


class Sown(nnx.Module):
    def __init__(self) -> None:
        self.w = nnx.Param(jnp.arange(1.0, 5.0))

    def __call__(self, x: Any) -> Any:
        self.sow(nnx.Intermediate, "y", y := jnp.dot(self.perturb("gx", x), self.w))
        return y


class Above(nnx.Module):
    def __init__(self) -> None:
        self.parts = nnx.List([Sown(), Sown()])

    def __call__(self, x: Any) -> Any:
        return self.parts[0](x) + 2 * self.parts[1](x)


LIFTS: dict[str, Callable[..., Any]] = {
    "plain": lambda f: f,
    "jit": nnx.jit,
    "remat": nnx.remat,
    "vmap": lambda f: nnx.vmap(f, in_axes=(None, 0)),
    "jit of vmap": lambda f: nnx.jit(nnx.vmap(f, in_axes=(None, 0))),
    "grad": lambda f: lambda p, x: nnx.grad(lambda p, x: f(p, x).sum())(p, x),
}


@pytest.mark.parametrize("kind", [Sown, Above])
@pytest.mark.parametrize("name", LIFTS)
def test_a_module_merged_inside_of_a_transform_is_the_callers(name: str, kind: Any) -> None:
    """The transform gets a State alone, and the function makes the module of it."""
    lift, model, x = LIFTS[name], kind(), jnp.ones((3, 4))

    def split_off(model: Any, x: Any) -> Any:
        graphdef, state = nnx.split(model)
        return lift(lambda state, x: nnx.merge(graphdef, state)(x))(state, x)

    for what in (nnx.Intermediate, nnx.Perturbation):
        _, found = capture(split_off, what)(model, x)
        _, expected = capture(lambda model, x: lift(lambda m, x: m(x))(model, x), what)(model, x)
        ours, theirs = nnx.to_pure_dict(found), nnx.to_pure_dict(expected)
        assert len(jax.tree.leaves(theirs)) > 0
        assert jax.tree.structure(ours) == jax.tree.structure(theirs)
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_gradients_by_the_perturbations_of_a_merged_module() -> None:
    model, x = Sown(), jnp.ones((3, 4))

    @nnx.capture(nnx.Perturbation)
    def start(model: Any, x: Any) -> Any:
        graphdef, params = nnx.split(model, ...)
        return nnx.vmap(lambda p, x: nnx.merge(graphdef, p)(x), in_axes=(None, 0))(params, x)

    def gradients(model: Any, zeros: Any, x: Any) -> Any:
        def loss(model: Any, zeros: Any, x: Any) -> Any:
            return capture(model, nnx.Intermediate, init=zeros)(x)

        return nnx.grad(loss, argnums=1, has_aux=True)(model, zeros, x)

    _, zeros = start(model, x)
    of_x, seen = nnx.vmap(gradients, in_axes=(None, 0, 0))(model, zeros, x)
    np.testing.assert_array_equal(of_x["gx"][...], np.broadcast_to(np.arange(1.0, 5.0), (3, 4)))
    assert set(nnx.merge_state(of_x, seen)) == {"gx", "y"}
