"""``Module.sow``: what is stored, where, and when it refuses."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from debug_models import INPUTS, Probed, Tower, hidden_of, loss

import moduli as nnx
from moduli import errors

VALUES = (3.0, 1.0, 2.0)


class Sower(nnx.Module):
    """Sows whatever it is called with."""

    def __call__(self, value: Any, *args: Any, **kwargs: Any) -> bool:
        return self.sow(nnx.Intermediate, "seen", value, *args, **kwargs)


def test_the_first_run_makes_a_variable_of_the_kind() -> None:
    model = Probed()
    assert not hasattr(model, "hidden")
    model(INPUTS)
    assert type(model.hidden) is nnx.Intermediate
    assert type(model.hidden.value) is tuple
    (hidden,) = model.hidden.value
    np.testing.assert_allclose(hidden, hidden_of(model, INPUTS), rtol=1e-5)


def test_later_runs_append_to_the_same_variable() -> None:
    model, other = Probed(), -0.5 * INPUTS
    model(INPUTS)
    variable = model.hidden
    model(other)
    assert model.hidden is variable
    first, second = variable.value
    np.testing.assert_allclose(first, hidden_of(model, INPUTS), rtol=1e-5)
    np.testing.assert_allclose(second, hidden_of(model, other), rtol=1e-5)


@pytest.mark.parametrize(
    ("reduce_fn", "init_fn", "expected"),
    [
        (lambda total, x: total + x, lambda: 0.0, sum(VALUES)),
        (lambda best, x: jnp.maximum(best, x), lambda: -jnp.inf, max(VALUES)),
        (lambda _, x: x, lambda: None, VALUES[-1]),
        (lambda kept, x: (x, *kept)[:2], tuple, (VALUES[2], VALUES[1])),
    ],
    ids=["sum", "max", "last", "last two"],
)
def test_reducers(reduce_fn: Any, init_fn: Any, expected: Any) -> None:
    model = Sower()
    for value in VALUES:
        assert model(jnp.float32(value), reduce_fn=reduce_fn, init_fn=init_fn) is True
    assert jax.tree.all(jax.tree.map(lambda a, b: float(a) == b, model.seen.value, expected))


def test_init_fn_runs_before_the_first_value_only() -> None:
    calls = []

    def init() -> float:
        calls.append(1)
        return 10.0

    model = Sower()
    for value in VALUES:
        model(value, reduce_fn=lambda a, b: a + b, init_fn=init)
    assert model.seen.value == 10.0 + sum(VALUES)
    assert len(calls) == 1


def test_a_kind_may_be_given_by_name() -> None:
    model = nnx.Module()
    model.sow("intermediates", "known", 1.0)
    model.sow("loss_terms_of_test_sow", "new", 2.0)
    model.sow("loss_terms_of_test_sow", "new", 3.0)
    assert type(model.known) is nnx.Intermediate
    assert type(model.new) is nnx.variable_type_from_name("loss_terms_of_test_sow")
    assert model.new.value == (2.0, 3.0)


def test_a_variable_made_by_hand_is_used() -> None:
    model = nnx.Module()
    model.seen = variable = nnx.Intermediate(("made by hand",))
    model.sow(nnx.Intermediate, "seen", 1.0)
    assert model.seen is variable
    assert variable.value == ("made by hand", 1.0)


def test_pytrees_are_stored_as_they_are() -> None:
    model = Sower()
    model({"a": jnp.ones(2), "b": (1, None)})
    ((stored),) = model.seen.value
    assert jax.tree.structure(stored) == jax.tree.structure({"a": 0, "b": (1, None)})


def test_variables_are_stored_by_value() -> None:
    model, weight = Sower(), nnx.Param(jnp.ones(2))
    model({"weight": weight})
    weight.value = jnp.zeros(2)
    assert model.seen.value[0]["weight"].tolist() == [1.0, 1.0]


# -- refusals ------------------------------------------------------------------------------------


class Crowded(nnx.Module):
    """Has an attribute of every sort."""

    label = "on the class"

    def __init__(self) -> None:
        self.child, self.size, self.names = nnx.Module(), 3, ["a"]
        self.weight, self.array = nnx.Param(1.0), jnp.ones(2)

    def method(self) -> None:
        """Does nothing."""

    @property
    def computed(self) -> int:
        return 5


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("child", "a Module;"),
        ("size", "an? int;"),
        ("names", "a List;"),
        ("array", "ArrayImpl;"),
        ("method", "a method;"),
        ("computed", "an? int;"),
        ("label", "a str;"),
        ("train", "a method;"),
        ("weight", "kind Param; expected kind Intermediate"),
    ],
)
def test_a_name_that_is_taken_is_an_error(name: str, found: str) -> None:
    model = Crowded()
    before = nnx.graphdef(model)
    with pytest.raises(errors.StructureError, match=rf"`{name}` of Crowded is .*{found}"):
        model.sow(nnx.Intermediate, name, 1.0)
    assert nnx.graphdef(model) is before
    assert model.weight.value == 1.0


def test_another_kind_is_an_error_both_ways() -> None:
    class Seen(nnx.Intermediate):
        pass

    model = nnx.Module()
    model.sow(Seen, "a", 1.0)
    model.sow(nnx.Intermediate, "b", 1.0)
    with pytest.raises(errors.StructureError, match="kind Seen; expected kind Intermediate"):
        model.sow(nnx.Intermediate, "a", 2.0)
    with pytest.raises(ValueError, match="kind Intermediate; expected kind Seen"):
        model.sow(Seen, "b", 2.0)
    assert (model.a.value, model.b.value) == ((1.0,), (1.0,))


@pytest.mark.parametrize("name", ["", 5, None])
def test_a_name_must_be_a_text(name: Any) -> None:
    with pytest.raises(errors.VariableError, match=r"non-empty str; got"):
        nnx.Module().sow(nnx.Intermediate, name, 1.0)


def test_a_module_cannot_be_sown() -> None:
    model = nnx.Module()
    with pytest.raises(errors.VariableError, match=r"'seen' of Module holds a Probed"):
        model.sow(nnx.Intermediate, "seen", [Probed()])
    assert not hasattr(model, "seen")


# -- under transforms ----------------------------------------------------------------------------


def run_jit(model: Probed, x: jax.Array) -> None:
    nnx.jit(lambda model, x: model(x))(model, x)


def run_grad(model: Probed, x: jax.Array) -> None:
    nnx.grad(loss)(model, x)


def run_jit_of_grad(model: Probed, x: jax.Array) -> None:
    nnx.jit(lambda model, x: nnx.grad(loss)(model, x))(model, x)


def run_grad_of_jit(model: Probed, x: jax.Array) -> None:
    nnx.grad(nnx.jit(loss))(model, x)


def run_jit_of_jit(model: Probed, x: jax.Array) -> None:
    inner = nnx.jit(lambda model, x: model(x))
    nnx.jit(lambda model, x: inner(model, x))(model, x)


def run_grad_of_grad(model: Probed, x: jax.Array) -> None:
    def outer(model: Probed, x: jax.Array) -> jax.Array:
        return (nnx.grad(loss)(model, x).second.bias.value ** 2).sum()

    nnx.grad(outer)(model, x)


RUNS = [run_jit, run_grad, run_jit_of_grad, run_grad_of_jit, run_jit_of_jit, run_grad_of_grad]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.__name__[4:])
def test_transforms_bring_concrete_values_to_the_callers_object(
    run: Callable[[Probed, jax.Array], None],
) -> None:
    model, other = Probed(), -0.5 * INPUTS
    run(model, INPUTS)
    variable = model.hidden
    run(model, other)
    assert model.hidden is variable
    assert len(variable.value) == 2
    for value, x in zip(variable.value, (INPUTS, other), strict=True):
        assert not isinstance(value, jax.core.Tracer)
        np.testing.assert_allclose(np.asarray(value), hidden_of(model, x), rtol=1e-5)


def test_a_compiled_program_sows_on_every_call() -> None:
    traces = []

    @nnx.jit
    def forward(model: Sower, x: jax.Array) -> jax.Array:
        traces.append(1)
        model(x * 2, reduce_fn=lambda _, new: new, init_fn=lambda: None)
        return x

    model = Sower()
    for value in range(5):
        forward(model, jnp.float32(value))
        assert float(model.seen.value) == 2 * value
    assert len(traces) == 2  # without the attribute, and with it


def test_models_of_equal_structure_share_the_program() -> None:
    traces = []

    @nnx.jit
    def forward(model: Probed, x: jax.Array) -> jax.Array:
        traces.append(1)
        return model(x)

    models = [Probed() for _ in range(3)]
    for scale, model in enumerate(models):
        forward(model, scale * INPUTS)
    assert len(traces) == 1
    for scale, model in enumerate(models):
        np.testing.assert_allclose(
            model.hidden.value[0], hidden_of(model, scale * INPUTS), rtol=1e-5
        )


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_a_shared_submodule_sows_once_for_each_call(jit: bool) -> None:
    class Twice(nnx.Module):
        def __init__(self) -> None:
            self.first = Probed()
            self.again = self.first

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.first(x) + self.again(2 * x)

    model = Twice()
    forward = nnx.jit(lambda model, x: model(x)) if jit else Twice.__call__
    forward(model, INPUTS)
    assert model.first is model.again
    first, second = model.first.hidden.value
    np.testing.assert_allclose(first, hidden_of(model.first, INPUTS), rtol=1e-5)
    np.testing.assert_allclose(second, hidden_of(model.first, 2 * INPUTS), rtol=1e-5)


def test_an_error_in_a_transform_leaves_nothing() -> None:
    def fails(model: Probed, x: jax.Array) -> jax.Array:
        model(x)
        raise ZeroDivisionError

    model = Probed()
    before = nnx.graphdef(model)
    for transform in (nnx.jit, nnx.grad):
        with pytest.raises(ZeroDivisionError):
            transform(fails)(model, INPUTS)
        assert nnx.graphdef(model) is before
        assert not hasattr(model, "hidden")


@pytest.mark.parametrize("runs_before", [0, 1])
def test_jax_own_jit_over_a_closed_over_model_is_an_error(runs_before: int) -> None:
    model = Probed()
    for _ in range(runs_before):
        model(INPUTS)
    with pytest.raises(errors.TraceError, match=r"`hidden` of .*Probed"):
        jax.jit(lambda x: model(x))(INPUTS)
    seen = model.hidden.value if runs_before else ()
    assert not any(isinstance(value, jax.core.Tracer) for value in seen)
    assert len(seen) == runs_before


def test_pop_takes_everything_sown_and_sowing_starts_anew() -> None:
    model = Tower()
    before = nnx.graphdef(model)
    model(INPUTS), model(INPUTS)
    popped = nnx.pop(model, nnx.Any(nnx.Intermediate, nnx.Perturbation))
    assert [len(popped.blocks[i].out.value) for i in range(2)] == [2, 2]
    assert nnx.graphdef(model) is before
    model(INPUTS)
    assert len(model.blocks[0].out.value) == 1


def test_the_classic_form_gives_no_warning() -> None:
    model = Probed()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model(INPUTS)
        nnx.jit(lambda model, x: model(x))(model, INPUTS)
        assert len(model.hidden.value) == 2
        assert model.hidden_grad.value.shape == (5, 4)
        nnx.pop(model, nnx.Intermediate)
    assert [str(warning.message) for warning in seen] == []
