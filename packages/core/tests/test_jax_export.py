"""jax.export.export takes what moduli.jit returns: the program is that of JAX's pytrees."""

from __future__ import annotations

import importlib.util
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_models import batch, mlp
from jax import export

import moduli as nnx
from moduli import errors

serialized = pytest.mark.skipif(
    importlib.util.find_spec("flatbuffers") is None, reason="jax.export serializes with flatbuffers"
)


class Scale(nnx.Module):
    def __init__(self) -> None:
        self.factor = nnx.Param(jnp.arange(3.0))
        self.calls = nnx.Variable(jnp.array(0))

    @nnx.jit
    def times(self, x, *, power=1):
        return x * self.factor**power

    def __call__(self, x):
        return x * self.factor


def evaluated():
    model = mlp()
    model.eval()
    return model


WAYS = {
    "module as argument": lambda model, x: (nnx.jit(lambda model, x: model(x)), (model, x)),
    "module in a closure": lambda model, x: (nnx.jit(lambda x: model(x)), (x,)),
    "jitted module": lambda model, x: (nnx.jit(model), (x,)),
    "jitted method": lambda model, x: (nnx.jit(model.__call__), (x,)),
    "decorated with options": lambda model, x: (
        nnx.jit(static_argnames="twice")(lambda model, x, *, twice=False: model(x)),
        (model, x),
    ),
    "donated": lambda model, x: (nnx.jit(lambda m, x: m(x), donate_argnums=1), (model, x)),
    "state": lambda model, x: (
        nnx.jit(lambda state, x: nnx.merge(nnx.graphdef(model), state)(x)),
        (nnx.state(model), x),
    ),
    "containers of modules": lambda model, x: (
        nnx.jit(lambda held: held["model"][0](held["x"])),
        ({"model": [model], "x": x},),
    ),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_an_exported_function_is_called_as_the_jitted_one(way) -> None:
    model, x = evaluated(), batch()
    expected = np.asarray(model(x))
    function, args = way(model, x)
    exported = export.export(function)(*args)
    assert exported.in_tree == jax.tree.structure((args, {}))
    np.testing.assert_allclose(exported.call(*args), expected, rtol=1e-6)


def test_plain_functions_and_static_arguments() -> None:
    exported = export.export(nnx.jit(jnp.sin))(jnp.ones(3))
    assert exported.fun_name == "sin"
    np.testing.assert_allclose(exported.call(jnp.ones(3)), np.sin(np.ones(3)), rtol=1e-6)
    power = nnx.jit(lambda x, n: x**n, static_argnums=1)
    np.testing.assert_allclose(export.export(power)(jnp.full(2, 3.0), 2).call(jnp.full(2, 3.0)), 9)
    model = Scale()
    doubled = export.export(nnx.jit(Scale.times, static_argnames="power"))(
        model, jnp.ones(3), power=2
    )
    np.testing.assert_allclose(doubled.call(model, jnp.ones(3)), [0, 1, 4])
    np.testing.assert_allclose(export.export(model.times)(jnp.ones(3)).call(jnp.ones(3)), [0, 1, 2])


def test_sizes_may_be_symbols_and_platforms_several() -> None:
    model = evaluated()
    shape = export.symbolic_shape(f"batch, {batch().shape[-1]}")
    exported = export.export(nnx.jit(lambda m, x: m(x)), platforms=("cpu", "cuda", "tpu"))(
        model, jax.ShapeDtypeStruct(shape, jnp.float32)
    )
    assert exported.platforms == ("cpu", "cuda", "tpu")
    for n in (1, 3):
        np.testing.assert_allclose(exported.call(model, batch()[:n]), model(batch()[:n]), rtol=1e-6)


@serialized
def test_a_file_holds_the_program_and_its_gradient() -> None:
    model, x = evaluated(), batch()
    exported = export.export(nnx.jit(lambda x: model(x)))(x)
    again = export.deserialize(exported.serialize(vjp_order=1))
    np.testing.assert_allclose(again.call(x), model(x), rtol=1e-6)
    grads = jax.grad(lambda x: again.call(x).sum())(x)
    np.testing.assert_allclose(grads, jax.grad(lambda x: model(x).sum())(x), rtol=1e-5)


def test_gradients_reach_the_module() -> None:
    model, x = Scale(), jnp.ones(3)
    exported = export.export(nnx.jit(lambda model, x: model(x)))(model, x)
    grads = jax.grad(lambda model: exported.call(model, x).sum(), allow_int=True)(model)
    np.testing.assert_allclose(grads.factor.value, x)


def test_a_write_that_the_program_would_lose_is_an_error() -> None:
    @nnx.jit
    def count(model, x):
        model.calls += 1
        return model(x)

    model = Scale()
    with pytest.raises(errors.StructureError, match=r"(?s)count cannot be exported.*`calls`"):
        export.export(count)(model, jnp.ones(3))
    assert model.calls.value == 0 and nnx.jit(count)(model, jnp.ones(3)).shape == (3,)


def test_a_write_that_is_returned_is_none() -> None:
    graphdef, state = nnx.split(Scale())

    @nnx.jit
    def count(state, x):
        model = nnx.merge(graphdef, state)
        model.calls += 1
        return model(x), nnx.state(model)

    exported = export.export(count)(state, jnp.ones(3))
    _, after = exported.call(state, jnp.ones(3))
    assert after.calls.value == 1 and state.calls.value == 0


def test_other_warnings_of_the_trace_are_given() -> None:
    def warn(x):
        warnings.warn("of the user's", UserWarning, stacklevel=1)
        return x

    traced = nnx.jit(warn)
    with pytest.warns(UserWarning, match="of the user's"):
        export.export(traced)(jnp.ones(2))
