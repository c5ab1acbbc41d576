"""``Module.perturb``: zeros that change nothing, and whose gradient is the intermediate's."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from debug_models import (
    INPUTS,
    WANTED,
    Probed,
    Tower,
    hidden_gradient,
    hidden_of,
    loss,
    loss_from_hidden,
    tower_gradients,
)

import moduli as nnx
from moduli import errors

FLOAT = jnp.result_type(float)


class Perturber(nnx.Module):
    """Returns what ``perturb`` makes of its input."""

    def __call__(self, value: Any) -> Any:
        return self.perturb("noise", value)


def test_the_first_run_makes_zeros_and_changes_nothing() -> None:
    model, plain = Probed(), Probed()
    out = model(INPUTS)
    expected = plain.second(jnp.tanh(plain.first(INPUTS)))
    assert (out == expected).all()
    assert type(model.hidden_grad) is nnx.Perturbation
    assert model.hidden_grad.shape == (5, 4)
    assert not model.hidden_grad.value.any()


@pytest.mark.parametrize(
    "dtype", ["float32", "float16", "bfloat16", "complex64", "int32", "uint8", "bool"]
)
def test_shape_and_dtype_are_the_values(dtype: str) -> None:
    model, value = Perturber(), jnp.ones((2, 3), dtype)
    for _ in range(2):
        out = model(value)
        assert (out == value).all()
        assert out.dtype == model.noise.dtype == value.dtype
        assert model.noise.shape == (2, 3)


@pytest.mark.parametrize("value", [1.5, 2, 1 + 2j, np.float32(3), np.arange(3.0)])
def test_numbers_and_numpy_arrays(value: Any) -> None:
    model = Perturber()
    for _ in range(2):
        assert np.all(np.asarray(model(value)) == value)
    assert model.noise.dtype == jnp.result_type(value)
    assert model.noise.shape == np.shape(value)


def test_a_python_float_has_a_gradient() -> None:
    class Triple(nnx.Module):
        def __call__(self, x: float) -> Any:
            return 3 * self.perturb("x_grad", x) ** 2

    model = Triple()
    assert float(model(2.0)) == 12.0
    grads = nnx.grad(lambda model: model(2.0), argnums=WANTED)(model)
    assert float(grads.x_grad.value) == 12.0


def test_pytrees_get_zeros_leaf_by_leaf() -> None:
    class Pair(nnx.Module):
        def __call__(self, x: jax.Array) -> jax.Array:
            parts = self.perturb("parts", {"sum": x.sum(), "rows": [x, x**2]})
            return parts["sum"] * 2 + (parts["rows"][0] * x).sum() + parts["rows"][1].sum()

    model = Pair()
    model(INPUTS)
    zeros = model.parts.value
    assert zeros["sum"].shape == ()
    assert [z.shape for z in zeros["rows"]] == [INPUTS.shape] * 2
    grads = nnx.grad(lambda model: model(INPUTS), argnums=WANTED)(model).parts.value
    assert float(grads["sum"]) == 2.0
    np.testing.assert_allclose(grads["rows"][0], INPUTS)
    np.testing.assert_array_equal(grads["rows"][1], np.ones(INPUTS.shape))


def test_a_variable_is_perturbed_by_its_value() -> None:
    model = Perturber()
    out = model(nnx.Param(jnp.ones(2)))
    assert isinstance(out, jax.Array)
    assert out.tolist() == [1.0, 1.0]


def test_a_stored_perturbation_is_added() -> None:
    model = Probed()
    model(INPUTS)
    shift = np.linspace(-1, 1, 20).reshape(5, 4)
    model.hidden_grad.value = jnp.asarray(shift, jnp.float32)
    expected = loss_from_hidden(model, hidden_of(model, INPUTS) + shift)
    np.testing.assert_allclose(loss(model, INPUTS), expected, rtol=1e-5)


# -- gradients -----------------------------------------------------------------------------------


def eager(model: Any, x: jax.Array) -> Any:
    return nnx.grad(loss, argnums=WANTED)(model, x)


def jit_of_grad(model: Any, x: jax.Array) -> Any:
    return nnx.jit(lambda model, x: nnx.grad(loss, argnums=WANTED)(model, x))(model, x)


def grad_of_jit(model: Any, x: jax.Array) -> Any:
    return nnx.grad(nnx.jit(loss), argnums=WANTED)(model, x)


def with_value(model: Any, x: jax.Array) -> Any:
    return nnx.value_and_grad(loss, argnums=WANTED)(model, x)[1]


GRADS = [eager, jit_of_grad, grad_of_jit, with_value]


@pytest.mark.parametrize("gradients", GRADS)
def test_the_gradient_is_the_intermediates(gradients: Callable[..., Any]) -> None:
    model = Probed()
    model(INPUTS)
    grads = gradients(model, INPUTS)
    expected = hidden_gradient(model, INPUTS)
    np.testing.assert_allclose(grads.hidden_grad.value, expected, rtol=1e-4)
    assert not isinstance(grads.hidden_grad.value, jax.core.Tracer)
    assert not model.hidden_grad.value.any()


@pytest.mark.parametrize("gradients", GRADS)
def test_the_first_run_may_be_inside_the_transform(gradients: Callable[..., Any]) -> None:
    model = Probed()
    first = gradients(model, INPUTS)
    assert "hidden_grad" not in first  # there was nothing to differentiate yet
    assert not isinstance(model.hidden_grad.value, jax.core.Tracer)
    assert model.hidden_grad.shape == (5, 4)
    second = gradients(model, INPUTS)
    np.testing.assert_allclose(second.hidden_grad.value, hidden_gradient(model, INPUTS), rtol=1e-4)
    np.testing.assert_allclose(first.first.kernel.value, second.first.kernel.value, rtol=1e-6)


def test_the_first_run_under_jit_makes_it_on_the_callers_object() -> None:
    model = Probed()
    forward = nnx.jit(lambda model, x: model(x))
    forward(model, INPUTS)
    zeros = model.hidden_grad
    forward(model, INPUTS)
    assert model.hidden_grad is zeros
    np.testing.assert_array_equal(zeros.value, np.zeros((5, 4)))


def test_parameters_keep_their_gradients() -> None:
    model = Probed()
    model(INPUTS)
    both, params = eager(model, INPUTS), nnx.grad(loss)(model, INPUTS)
    assert set(both) == {"first", "second", "hidden_grad"}
    assert set(params) == {"first", "second"}
    for name in params:
        for kind in ("kernel", "bias"):
            np.testing.assert_array_equal(both[name][kind].value, params[name][kind].value)


@pytest.mark.parametrize("gradients", GRADS)
def test_several_perturbations_in_a_list_of_blocks(gradients: Callable[..., Any]) -> None:
    model = Tower(3)
    model(INPUTS)
    grads = gradients(model, INPUTS)
    for index, expected in enumerate(tower_gradients(model, INPUTS)):
        np.testing.assert_allclose(
            grads.blocks[index].out_grad.value, expected, rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("gradients", GRADS)
def test_a_shared_submodule_sums_the_gradients_of_its_calls(
    gradients: Callable[..., Any],
) -> None:
    class Twice(nnx.Module):
        def __init__(self) -> None:
            self.probed = Probed()
            self.again = self.probed

        def __call__(self, x: jax.Array) -> jax.Array:
            return jnp.concatenate([self.probed(x), self.again(2 * x)])

    model = Twice()
    model(INPUTS)
    grads = gradients(model, INPUTS)
    one = hidden_gradient(model.probed, INPUTS)
    two = hidden_gradient(model.probed, 2 * INPUTS)
    assert list(grads) == ["again"]  # a shared module has one path, the first by name
    np.testing.assert_allclose(grads.again.hidden_grad.value, one + two, rtol=1e-4)


@pytest.mark.parametrize("kind", ["noise_of_test_perturb", "perturbations"])
def test_a_kind_may_be_given_by_name(kind: str) -> None:
    model = nnx.Module()
    model.perturb("noise", 1.0, kind)
    assert type(model.noise) is nnx.variable_type_from_name(kind)


def test_a_kind_of_ones_own() -> None:
    class Noise(nnx.Variable):
        pass

    class Model(nnx.Module):
        def __call__(self, x: jax.Array) -> jax.Array:
            return self.perturb("noise", x, Noise) ** 2

    model = Model()
    model(INPUTS)
    grads = nnx.grad(lambda m: m(INPUTS).sum(), argnums=nnx.DiffState(0, Noise))(model)
    np.testing.assert_allclose(grads.noise.value, 2 * INPUTS, rtol=1e-6)


# -- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (
            jnp.ones((5, 3), jnp.float32),
            jnp.ones((2, 3), jnp.float32),
            "made for float32[5,3], and the value is now float32[2,3]",
        ),
        (
            jnp.ones((5, 3), jnp.float32),
            jnp.ones((1, 3), jnp.float32),
            "float32[1,3]",
        ),  # would broadcast silently
        (
            jnp.ones(3, jnp.float32),
            jnp.ones(3, jnp.bfloat16),
            "made for float32[3], and the value is now bfloat16[3]",
        ),
        (
            (1.0, 2.0),
            (1.0,),
            f"made for ({FLOAT}[], {FLOAT}[]), and the value is now ({FLOAT}[],)",
        ),
        (
            {"a": 1.0},
            {"b": 1.0},
            f"made for {{'a': {FLOAT}[]}}, and the value is now {{'b': {FLOAT}[]}}",
        ),
    ],
    ids=["shape", "broadcast", "dtype", "structure", "keys"],
)
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_a_value_that_changed_its_shape_is_an_error_with_a_remedy(
    before: Any, after: Any, text: str, jit: bool
) -> None:
    model = Perturber()
    call = nnx.jit(lambda model, value: model(value)) if jit else Perturber.__call__
    call(model, before)
    with pytest.raises(errors.ShapeError, match=re.escape(text)) as caught:
        call(model, after)
    assert "`noise` of Perturber" in str(caught.value)
    assert "moduli.pop(model, moduli.Perturbation)" in str(caught.value)
    nnx.pop(model, nnx.Perturbation)  # the remedy
    out = call(model, after)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), out, after))


class Crowded(nnx.Module):
    """Has attributes that are no perturbations."""

    def __init__(self) -> None:
        self.child, self.weight = nnx.Module(), nnx.Param(1.0)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("child", "`child` of Crowded is a Module"),
        ("train", "`train` of Crowded is a method"),
        ("weight", "`weight` of Crowded is a Variable of kind Param; expected kind Perturbation"),
    ],
)
def test_a_name_that_is_taken_is_an_error(name: str, found: str) -> None:
    model = Crowded()
    before = nnx.graphdef(model)
    with pytest.raises(errors.StructureError, match=found):
        model.perturb(name, 1.0)
    assert nnx.graphdef(model) is before


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("text", "holds 'text'"),
        ({"a": [1.0, "text"]}, r"holds 'text' at \['a'\]\[1\]"),
        (None, "is None, which holds no array"),
        ((), r"is \(\), which holds no array"),
        (jax.random.key(0), "only numbers have a gradient"),
        (nnx.Module(), "holds a Module"),
    ],
    ids=["text", "nested", "None", "empty", "random key", "module"],
)
def test_only_numbers_can_be_perturbed(value: Any, text: str) -> None:
    model = Perturber()
    with pytest.raises(errors.VariableError, match=f"'noise' of Perturber {text}|{text}"):
        model(value)
    assert not hasattr(model, "noise")


@pytest.mark.parametrize("name", ["", 5, None])
def test_a_name_must_be_a_text(name: Any) -> None:
    with pytest.raises(errors.VariableError, match="non-empty str; got"):
        nnx.Module().perturb(name, 1.0)


def test_jax_own_jit_over_a_closed_over_model_is_an_error() -> None:
    model = Perturber()
    with pytest.raises(errors.TraceError, match=r"`noise` of this Perturber"):
        jax.jit(lambda x: model(x))(INPUTS)
    assert not hasattr(model, "noise")
