"""Programs that are silently wrong with flax.nnx, and what moduli says or does; docs/silent.md."""

import re
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import moduli

nnx_of_flax = pytest.importorskip("flax.nnx")
X = jnp.ones((2, 3))


def speaks(nnx, program):
    """Runs a program; returns what it says (an error or a warning), or its result."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = program(nnx)
        except (ValueError, TypeError) as error:
            return str(error), None
    said = [w for w in caught if not issubclass(w.category, DeprecationWarning)]
    return (str(said[0].message) if said else None), result


def model_in_a_closure(nnx):
    """Whether a compiled function that reads a model from outside runs on its present values."""
    model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
    predict = nnx.jit(lambda x: model(x))
    predict(X)
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    optimizer.update(model, nnx.grad(lambda m: (m(X) ** 2).sum())(model))
    return bool(np.allclose(predict(X), model(X), atol=1e-6))


def parameter_replaced_by_an_array(nnx):
    """Whether a kernel that was assigned an array still trains."""
    model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
    model.kernel = jnp.ones((3, 1))
    return len(jax.tree.leaves(nnx.state(model, nnx.Param))) == 2


def state_of_another_width(nnx):
    """Whether the kernel that was loaded has the width that the layer says."""
    model = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
    nnx.update(model, nnx.state(nnx.Linear(3, 7, rngs=nnx.Rngs(0))))
    return model.kernel.shape[-1] == model.out_features


def module_in_a_function(nnx):
    """Whether a layer that stands only in an attribute's closure gets gradients."""

    class Model(nnx.Module):
        def __init__(self):
            linear = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
            self.step = lambda x: linear(x)

        def __call__(self, x):
            return self.step(x)

    grads = nnx.grad(lambda model: model(X).sum())(Model())
    return len(jax.tree.leaves(grads)) == 2


def settings_changed_after_a_call(nnx):
    """Whether a compiled call sees that a configuration object was changed."""

    class Model(nnx.Module):
        def __init__(self):
            self.settings = types.SimpleNamespace(scale=1.0)

        def __call__(self, x):
            return x * self.settings.scale

    model, run = Model(), nnx.jit(lambda model, x: model(x))
    run(model, X)
    model.settings.scale = 2.0
    return bool((run(model, X) == 2.0).all())


PROGRAMS = [
    (model_in_a_closure, "through a closure"),
    (parameter_replaced_by_an_array, r"kernel\.value"),
    (state_of_another_width, r"\(3, 7\)"),
    (module_in_a_function, "step"),
]


@pytest.mark.parametrize(("program", "words"), PROGRAMS, ids=lambda i: getattr(i, "__name__", ""))
def test_flax_is_silent_and_moduli_speaks(program, words):
    text, right = speaks(nnx_of_flax, program)
    assert text is None, text
    assert right is False
    text, right = speaks(moduli, program)
    assert right is not False
    assert text is not None
    assert re.search(words, text), text


def test_flax_keeps_old_settings_and_moduli_does_not():
    assert speaks(nnx_of_flax, settings_changed_after_a_call) == (None, False)
    assert speaks(moduli, settings_changed_after_a_call) == (None, True)
