"""What flax.nnx documents of Module's methods, with only the import changed.

Each example is a function of the library: it checks what the documentation promises and returns
the numbers it got. It runs with moduli, where any warning is an error, and with flax.nnx where
flax still has the form; the numbers must be equal.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import assert_same_numbers

import moduli

Example = Callable[[Any], Any]
EXAMPLES: dict[str, Example] = {}
X = np.linspace(-1.0, 1.0, 12, dtype=np.float32).reshape(4, 3)


def example(function: Example) -> Example:
    """Adds a function to the examples."""
    EXAMPLES[function.__name__] = function
    return function


@pytest.fixture(scope="module")
def flax_nnx() -> Any:
    return pytest.importorskip("flax.nnx")


def make_cell(nnx: Any, **modes: bool) -> Any:
    """Builds a module with a Linear, a Dropout and a BatchNorm, in given modes."""

    class Cell(nnx.Module):
        def __init__(self, *, rngs: Any) -> None:
            self.project = nnx.Linear(3, 5, rngs=rngs)
            self.drop = nnx.Dropout(0.5, deterministic=modes.get("deterministic", False))
            self.norm = nnx.BatchNorm(
                5, use_running_average=modes.get("use_running_average", False), rngs=rngs
            )

        def __call__(self, x: Any, rngs: Any = None) -> Any:
            return self.norm(self.drop(self.project(x), rngs=rngs))

    return Cell(rngs=nnx.Rngs(0))


def modes_of(cell: Any) -> tuple[bool, bool]:
    """Reads the two modes of a cell."""
    return cell.drop.deterministic, cell.norm.use_running_average


# -- train, eval, set_attributes, view -----------------------------------------------------------


@example
def train(nnx: Any) -> Any:
    cell = make_cell(nnx, deterministic=True, use_running_average=True)
    assert modes_of(cell) == (True, True)
    assert cell.train() is None
    assert modes_of(cell) == (False, False)
    return cell(X, rngs=nnx.Rngs(dropout=1)), cell.norm.mean, cell.norm.var


@example
def evaluate(nnx: Any) -> Any:
    cell = make_cell(nnx)
    assert modes_of(cell) == (False, False)
    assert cell.eval() is None
    assert modes_of(cell) == (True, True)
    return cell(X), cell.norm.mean, cell.norm.var


@example
def train_and_eval_with_more_attributes(nnx: Any) -> Any:
    cell = make_cell(nnx)
    cell.eval(rate=0.25)
    assert (*modes_of(cell), cell.drop.rate) == (True, True, 0.25)
    cell.train(rate=0.75)
    assert (*modes_of(cell), cell.drop.rate) == (False, False, 0.75)


@example
def train_and_eval_reach_nested_modules(nnx: Any) -> Any:
    class Outer(nnx.Module):
        def __init__(self) -> None:
            self.one, self.two = make_cell(nnx), make_cell(nnx)

    outer = Outer()
    outer.eval()
    assert modes_of(outer.one) == modes_of(outer.two) == (True, True)
    outer.two.train()
    assert (modes_of(outer.one), modes_of(outer.two)) == ((True, True), (False, False))


@example
def set_attributes(nnx: Any) -> Any:
    cell = make_cell(nnx)
    cell.set_attributes(deterministic=True, use_running_average=True)
    assert modes_of(cell) == (True, True)


@example
def set_attributes_with_a_filter(nnx: Any) -> Any:
    cell = make_cell(nnx)
    cell.set_attributes(nnx.Dropout, deterministic=True)
    assert modes_of(cell) == (True, False)
    cell = make_cell(nnx)
    cell.set_attributes(nnx.Any(nnx.BatchNorm, nnx.Linear), use_running_average=True)
    assert modes_of(cell) == (False, True)
    cell = make_cell(nnx)
    cell.set_attributes(nnx.PathContains("norm"), use_running_average=True)
    assert modes_of(cell) == (False, True)


@example
def set_attributes_that_exist_nowhere(nnx: Any) -> Any:
    cell = make_cell(nnx)
    with pytest.raises(ValueError, match="misspelt"):
        cell.set_attributes(misspelt=True)
    cell.set_attributes(misspelt=True, raise_if_not_found=False)
    assert not hasattr(cell, "misspelt")
    with pytest.raises(ValueError, match="use_running_average"):
        cell.set_attributes(nnx.Dropout, use_running_average=True)
    assert modes_of(cell) == (False, False)


@example
def view(nnx: Any) -> Any:
    cell = make_cell(nnx)
    other = nnx.view(cell, deterministic=True, use_running_average=True)
    assert (modes_of(other), modes_of(cell)) == ((True, True), (False, False))
    assert type(other) is type(cell)
    assert other is not cell
    cell.project.bias[...] = jnp.ones(5, jnp.float32)  # the Variables are the same
    assert other.project.kernel is cell.project.kernel
    return other(X), other.project.bias


@example
def view_with_a_filter(nnx: Any) -> Any:
    cell = make_cell(nnx)
    other = nnx.view(cell, only=nnx.Dropout, deterministic=True)
    assert (modes_of(other), modes_of(cell)) == ((True, False), (False, False))
    with pytest.raises(ValueError, match="misspelt"):
        nnx.view(cell, misspelt=True)
    nnx.view(cell, raise_if_not_found=False, misspelt=True)


# -- iter_modules, iter_children -----------------------------------------------------------------


def make_tree(nnx: Any) -> Any:
    """Builds a module with children on two levels."""

    class Pair(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.second = nnx.Linear(5, 5, rngs=rngs)
            self.first = nnx.Linear(3, 5, rngs=rngs)

    class Tree(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.pair = Pair(rngs)
            self.norm = nnx.BatchNorm(5, rngs=rngs)
            self.drop = nnx.Dropout(0.5)

    return Tree(nnx.Rngs(0))


@example
def iter_modules(nnx: Any) -> Any:
    tree = make_tree(nnx)
    expected = [
        (("drop",), "Dropout"),
        (("norm",), "BatchNorm"),
        (("pair", "first"), "Linear"),
        (("pair", "second"), "Linear"),
        (("pair",), "Pair"),
        ((), "Tree"),
    ]
    assert [(path, type(m).__name__) for path, m in nnx.iter_modules(tree)] == expected
    assert [(path, type(m).__name__) for path, m in tree.iter_modules()] == expected


@example
def iter_children(nnx: Any) -> Any:
    tree = make_tree(nnx)
    expected = [("drop", "Dropout"), ("norm", "BatchNorm"), ("pair", "Pair")]
    assert [(key, type(m).__name__) for key, m in nnx.iter_children(tree)] == expected
    assert [(key, type(m).__name__) for key, m in tree.iter_children()] == expected


@example
def a_shared_module_is_met_once(nnx: Any) -> Any:
    tree = make_tree(nnx)
    tree.alias = tree.pair
    paths = [path for path, _ in nnx.iter_modules(tree)]
    assert paths == [("alias", "first"), ("alias", "second"), ("alias",), ("drop",), ("norm",), ()]


# -- sow, classic form ---------------------------------------------------------------------------


def make_sower(nnx: Any, **sow_options: Any) -> Any:
    """Builds a model that sows the value between its two layers as ``i``."""

    class Model(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.linear1 = nnx.Linear(3, 4, rngs=rngs)
            self.linear2 = nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            x = self.linear1(x)
            self.sow(nnx.Intermediate, "i", x, **sow_options)
            return self.linear2(x)

    return Model(rngs=nnx.Rngs(0))


@example
def sow(nnx: Any) -> Any:
    model = make_sower(nnx)
    assert not hasattr(model, "i")
    model(X)
    assert hasattr(model, "i")
    assert isinstance(model.i, nnx.Intermediate)
    assert len(model.i.value) == 1
    assert model.i.value[0].shape == (4, 4)
    model(2 * X)
    assert len(model.i.value) == 2
    return model.i.value


@example
def sow_with_a_reducer(nnx: Any) -> Any:
    model = make_sower(nnx, init_fn=lambda: 0, reduce_fn=lambda prev, curr: prev + curr)
    assert not hasattr(model, "i")
    model(X)
    once = model.i.value
    assert once.shape == (4, 4)
    model(X)
    np.testing.assert_allclose(model.i.value, 2 * once, rtol=1e-6)
    return model.i.value


@example
def sow_by_name(nnx: Any) -> Any:
    module = nnx.Module()
    assert module.sow("kind_of_example", "a", 1.0) is True
    assert type(module.a) is nnx.variable_type_from_name("kind_of_example")
    return module.a.value


@example
def sow_over_something_else(nnx: Any) -> Any:
    model = make_sower(nnx)
    model.i = 3
    with pytest.raises(ValueError, match=r"to be a Variable|expected a Variable"):
        model(X)
    model = make_sower(nnx)
    model.i = nnx.Param(jnp.ones(2))
    with pytest.raises(ValueError, match="Param"):
        model(X)


@example
def sow_under_jit_and_pop(nnx: Any) -> Any:
    model = make_sower(nnx)

    @nnx.jit
    def forward(model: Any, x: Any) -> Any:
        return model(x)

    forward(model, X)
    forward(model, 2 * X)
    state = nnx.pop(model, nnx.Intermediate)
    assert not hasattr(model, "i")
    return state["i"].value


@example
def pop_inside_jit(nnx: Any) -> Any:
    model = make_sower(nnx)

    @nnx.jit
    def forward(model: Any, x: Any) -> Any:
        out = model(x)
        return out, nnx.pop(model, nnx.Intermediate)

    for scale in (1, 2):
        out, state = forward(model, scale * X)
        assert not hasattr(model, "i")
        assert len(state["i"].value) == 1
    return out, state["i"].value


# -- perturb, classic form -----------------------------------------------------------------------


def make_perturber(nnx: Any) -> Any:
    """Builds a model that perturbs the value between its two layers as ``xgrad``."""

    class Model(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.linear1 = nnx.Linear(3, 4, rngs=rngs)
            self.linear2 = nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            x = nnx.relu(self.linear1(x))
            x = self.perturb("xgrad", x)
            return self.linear2(x)

    return Model(rngs=nnx.Rngs(0))


def squared(model: Any, x: Any) -> Any:
    """The loss of the examples."""
    return (model(x) ** 2).mean()


def expected_xgrad(model: Any) -> np.ndarray:
    """Computes the gradient of ``squared`` at the perturbed value, by the chain rule in float64."""

    def read(variable: Any) -> np.ndarray:
        return np.asarray(variable[...], np.float64)

    hidden = np.maximum(X @ read(model.linear1.kernel) + read(model.linear1.bias), 0)
    out = hidden @ read(model.linear2.kernel) + read(model.linear2.bias)
    return (2 * out / out.size) @ read(model.linear2.kernel).T


@example
def perturb(nnx: Any) -> Any:
    model = make_perturber(nnx)
    assert not hasattr(model, "xgrad")
    out = model(X)
    assert model.xgrad.value.shape == (4, 4)  # same as the intermediate's
    assert isinstance(model.xgrad, nnx.Perturbation)
    assert not model.xgrad.value.any()
    wanted = nnx.DiffState(0, nnx.Any(nnx.Param, nnx.Perturbation))
    grads = nnx.grad(squared, argnums=wanted)(model, X)
    np.testing.assert_allclose(grads.xgrad.value, expected_xgrad(model), rtol=1e-5, atol=1e-7)
    return out, grads.xgrad.value, grads.linear1.kernel.value


@example
def perturb_alone(nnx: Any) -> Any:
    model = make_perturber(nnx)
    model(X)
    grads = nnx.grad(squared, argnums=nnx.DiffState(0, nnx.Perturbation))(model, X)
    assert list(grads) == ["xgrad"]
    np.testing.assert_allclose(grads.xgrad.value, expected_xgrad(model), rtol=1e-5, atol=1e-7)


@example
def perturb_in_a_jitted_step(nnx: Any) -> Any:
    model = make_perturber(nnx)
    model(X)

    @nnx.jit
    def step(model: Any, x: Any) -> Any:
        wanted = nnx.DiffState(0, nnx.Any(nnx.Param, nnx.Perturbation))
        loss, grads = nnx.value_and_grad(squared, argnums=wanted)(model, x)
        return loss, grads

    loss, grads = step(model, X)
    np.testing.assert_allclose(grads.xgrad.value, expected_xgrad(model), rtol=1e-5, atol=1e-7)
    return loss, grads.linear2.bias.value


@example
def perturb_by_split_and_merge(nnx: Any) -> Any:
    model = make_perturber(nnx)
    model(X)
    graphdef, params, perturbations = nnx.split(model, nnx.Param, nnx.Perturbation)

    def loss(params: Any, perturbations: Any) -> Any:
        return squared(nnx.merge(graphdef, params, perturbations), X)

    _, gradients = jax.grad(loss, argnums=(0, 1))(params, perturbations)
    np.testing.assert_allclose(gradients.xgrad.value, expected_xgrad(model), rtol=1e-5, atol=1e-7)
    return gradients.xgrad.value


@example
def perturb_a_python_float(nnx: Any) -> Any:
    class Triple(nnx.Module):
        def __call__(self, x: Any) -> Any:
            return 3 * self.perturb("grad_of_x", x)

    model = Triple()
    assert model(1.0) == 3.0
    grads = nnx.grad(lambda m: m(1.0), argnums=nnx.DiffState(0, nnx.Perturbation))(model)
    assert grads["grad_of_x"].value == 3.0


@example
def perturb_over_another_kind(nnx: Any) -> Any:
    model = make_perturber(nnx)
    model.xgrad = nnx.Param(jnp.ones((4, 4)))
    with pytest.raises(ValueError, match="Perturbation"):
        model(X)


# -- capture -------------------------------------------------------------------------------------


@example
def capture_as_a_decorator(nnx: Any) -> Any:
    model = make_sower(nnx)

    @nnx.capture(nnx.Intermediate)
    def forward(model: Any, x: Any) -> Any:
        return model(x)

    result, intermediates = forward(model, X)
    assert "i" in intermediates
    assert not hasattr(model, "i")
    return result, intermediates["i"].value


@example
def capture_two_calls_of_a_method(nnx: Any) -> Any:
    class Distance(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.dense = nnx.Linear(3, 4, rngs=rngs)

        def features(self, x: Any) -> Any:
            x = nnx.relu(self.dense(x))
            self.sow(nnx.Intermediate, "features", x)
            return x

        def __call__(self, x: Any, y: Any) -> Any:
            return jnp.sum((self.features(x) - self.features(y)) ** 2)

    model = Distance(nnx.Rngs(0))
    result, state = nnx.capture(model, nnx.Intermediate)(X, 2 * X)
    assert [value.shape for value in state["features"].value] == [(4, 4)] * 2
    first, second = map(np.asarray, state["features"].value)
    np.testing.assert_allclose(result, ((first - second) ** 2).sum(), rtol=1e-5)
    _, one = nnx.capture(model.features, nnx.Intermediate)(X)
    np.testing.assert_array_equal(one["features"].value[0], first)
    return result, first, second


@example
def capture_some_kinds(nnx: Any) -> Any:
    class Metric1(nnx.Intermediate):
        pass

    class Metric2(nnx.Intermediate):
        pass

    answers = []

    def sow_both(module: Any) -> None:
        answers.append(module.sow(Metric1, "first", jnp.ones(2)))
        answers.append(module.sow(Metric2, "second", jnp.zeros(3)))

    _, state = nnx.capture(Metric1)(sow_both)(nnx.Module())
    assert answers == [True, False]
    assert list(state) == ["first"]
    assert type(state["first"]) is Metric1
    _, second, first = nnx.capture(sow_both, Metric2, Metric1)(nnx.Module())
    assert (list(second), list(first)) == (["second"], ["first"])
    return second["second"].value, first["first"].value


@example
def capture_gradients_of_intermediates(nnx: Any) -> Any:
    class Model(nnx.Module):
        def __call__(self, x: Any) -> Any:
            x2 = self.perturb("grad_of_x", x)
            self.sow(nnx.Intermediate, "activations", x2)
            return 3 * x2

    def train_step(model: Any, x: Any) -> Any:
        _, perturbations = nnx.capture(model, nnx.Perturbation)(x)

        def loss(model: Any, perturbations: Any, x: Any) -> Any:
            return nnx.capture(model, nnx.Intermediate, init=perturbations)(x)

        (grads, perturb_grads), sowed = nnx.grad(loss, argnums=(0, 1), has_aux=True)(
            model, perturbations, x
        )
        assert not jax.tree.leaves(grads)
        return nnx.merge_state(perturb_grads, sowed)

    model = Model()
    found = train_step(model, 1.0)
    assert set(found) == {"activations", "grad_of_x"}
    assert found["grad_of_x"].value == 3.0
    assert found["activations"].value == (1.0,)
    assert not hasattr(model, "activations")
    return found["grad_of_x"].value


@example
def capture_gradients_in_a_jitted_step(nnx: Any) -> Any:
    model = make_perturber(nnx)
    _, zeros = nnx.capture(model, nnx.Perturbation)(X)

    @nnx.jit
    def step(model: Any, zeros: Any, x: Any) -> Any:
        def loss(model: Any, zeros: Any, x: Any) -> Any:
            return (nnx.capture(model, init=zeros)(x) ** 2).mean()

        return nnx.grad(loss, argnums=(0, 1))(model, zeros, x)

    grads, perturbed = step(model, zeros, X)
    np.testing.assert_allclose(
        perturbed["xgrad"].value, expected_xgrad(model), rtol=1e-5, atol=1e-7
    )
    return perturbed["xgrad"].value, grads["linear1"]["kernel"].value


# -- the tests -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXAMPLES)
def test_runs_with_moduli_and_warns_of_nothing(name: str) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        EXAMPLES[name](moduli)
    assert [str(warning.message) for warning in seen] == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # flax deprecates the classic forms
@pytest.mark.parametrize("name", EXAMPLES)
def test_flax_gives_the_same_numbers(name: str, flax_nnx: Any) -> None:
    ours, theirs = EXAMPLES[name](moduli), EXAMPLES[name](flax_nnx)
    assert_same_numbers(ours, theirs, rtol=1e-6, atol=1e-7)
