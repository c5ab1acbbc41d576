"""trace, lower, compile and eval_shape of a jitted function: ahead of time, with modules."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_models import Linear, Norm, batch, mlp

import moduli as nnx
from moduli import errors
from moduli.testing import assert_unchanged


def forward(model, x, scale=1.0):
    return scale * model(x)


@pytest.fixture(scope="module")
def compiled():
    return nnx.jit(forward).lower(mlp(), batch()).compile()


def test_the_stages_follow_each_other_and_change_nothing():
    model, x = mlp(), batch()
    run = nnx.jit(forward)
    with assert_unchanged(model):
        traced = run.trace(model, x)
        lowered = traced.lower()
        shapes = run.eval_shape(model, x)
        compiled = lowered.compile()
    assert shapes.shape == (4, 3) and "tanh" in str(traced.jaxpr)
    assert "stablehlo.dot_general" in lowered.as_text()
    assert lowered.as_text() == run.lower(model, x).as_text()
    assert compiled.memory_analysis().argument_size_in_bytes > 0 and "cost_analysis" in dir(
        compiled
    )
    assert repr(compiled) == "<moduli Compiled of forward>"


def test_a_compiled_program_runs_on_every_model_of_its_structure(compiled):
    for seed in range(2):
        model, twin, x = mlp(seed), mlp(seed), batch()
        for _ in range(2):
            np.testing.assert_allclose(compiled(model, x), twin(x), rtol=1e-5)
        np.testing.assert_allclose(model.layers[1].mean, twin.layers[1].mean, rtol=1e-5)


def test_structure_made_inside_is_made_by_the_compiled_program():
    def grow(model):
        model.extra = nnx.Param(model.mean.value + 1)
        return model.extra

    program = nnx.jit(grow).lower(Norm(3)).compile()
    model = Norm(3)
    assert program(model) is model.extra and model.extra.value.tolist() == [1.0] * 3


def test_static_arguments_keywords_and_methods():
    @nnx.jit(static_argnames="n")
    def repeat(model, x, n):
        for _ in range(n):
            x = model(x)
        return x

    model, x = Linear(3, 3, rngs=nnx.Rngs(0)), batch()
    program = repeat.lower(model, x, n=2).compile()
    np.testing.assert_allclose(program(model, x), model(model(x)), rtol=1e-5)
    bound = nnx.jit(model.__call__)
    np.testing.assert_allclose(bound.lower(x).compile()(x), model(x), rtol=1e-6)
    np.testing.assert_allclose(nnx.jit(model).trace(x).lower().compile()(x), model(x), rtol=1e-6)
    assert bound.eval_shape(x).shape == (4, 3)

    class Counter(nnx.Module):
        def __init__(self):
            self.count = nnx.Variable(jnp.zeros((), jnp.int32))

        @nnx.jit(static_argnums=1)
        def add(self, by, x):
            self.count.value += by
            return x * by

    counter, other = Counter(), Counter()
    assert counter.add == counter.add != other.add and len({counter.add, counter.add}) == 1
    program = counter.add.lower(2, 3.0).compile()
    assert float(program(5.0)) == 10.0 == float(counter.add(2, 5.0))
    assert (int(counter.count.value), int(other.count.value)) == (4, 0)
    assert float(Counter.add(other, 3, 5.0)) == 15.0 and other.add.__name__ == "add"


def test_donation_is_part_of_the_program():
    def step(model, x):
        model.mean.value = model.mean.value + x
        return x.sum()

    ones = jnp.ones(3, jnp.float32)
    program = nnx.jit(step, donate_argnums=0).lower(Norm(3), ones).compile()
    model = Norm(3)
    before = model.mean.value
    program(model, ones)
    assert before.is_deleted() and model.mean.value.tolist() == [1.0] * 3
    assert program.memory_analysis().alias_size_in_bytes == 12


def test_lowering_for_shapes():
    model = nnx.eval_shape(lambda: mlp())
    lowered = nnx.jit(forward).lower(model, jax.ShapeDtypeStruct((4, 3), jnp.float32))
    real = mlp()
    np.testing.assert_allclose(lowered.compile()(real, batch()), mlp()(batch()), rtol=1e-5)


def test_an_exception_while_lowering_leaves_the_model_as_it_was():
    model = Norm(3)

    def fails(model, x):
        model(x)
        raise KeyError("here")

    with assert_unchanged(model), pytest.raises(KeyError, match="here"):
        nnx.jit(fails).lower(model, batch())


def other_shape():
    return mlp(), jnp.ones((5, 3))


def more_layers():
    return mlp(depth=3), batch()


def other_attribute():
    model = mlp()
    model.layers[1].use_running_average = True
    return model, batch()


def one_too_many():
    return mlp(), batch(), 2.0


def other_value_shape():
    model = mlp()
    model.layers[1].mean.value = jnp.zeros((4, 3))
    return model, batch()


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (
            other_shape,
            errors.ShapeError,
            "the program compiled from forward was called with argument 1 of float32[5, 3], but "
            "lowered for float32[4, 3]; pass values of the same shapes and dtypes, or call the "
            "jitted function, which compiles again",
        ),
        (
            other_value_shape,
            errors.ShapeError,
            "the program compiled from forward was called with the BatchStat (made at core_models."
            "py) at `layers/1/mean` of float32[4, 3], but lowered for float32[3]; pass",
        ),
        (
            more_layers,
            errors.StructureError,
            "the program compiled from forward was called with a module that also has a value at "
            "`layers/4/bias`; pass what it was lowered with, without the static arguments, or "
            "call the jitted function, which compiles again",
        ),
        (
            other_attribute,
            errors.StructureError,
            "the program compiled from forward was called with a module that has another static "
            "attribute, type or metadata at `layers/1/use_running_average`; pass",
        ),
        (
            one_too_many,
            errors.StructureError,
            "the program compiled from forward takes 2 positional arguments, and was called with "
            "3 positional arguments; pass",
        ),
    ],
)
def test_other_arguments_are_refused_by_name(compiled, arguments, kind, message):
    args = arguments()
    with assert_unchanged(args[0]), pytest.raises(kind) as caught:
        compiled(*args)
    text = re.sub(r"[\w/]*core_models\.py:\d+", "core_models.py", str(caught.value))
    text = text.replace(str(jnp.result_type(float)), "float32")  # wider with JAX_ENABLE_X64
    assert text.startswith(message), text
