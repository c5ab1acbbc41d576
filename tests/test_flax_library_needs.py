"""What libraries built on flax.nnx rely on beside its guides, in both libraries.

Each behaviour is a function of the library: it checks what such a library relies on, and returns
numbers, which must be equal in both.
"""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from programs import assert_same_numbers

import moduli

Behaviour = Callable[[Any], Any]
BEHAVIOURS: dict[str, Behaviour] = {}
X = np.linspace(-1.0, 1.0, 12, dtype=np.float32).reshape(4, 3)


def behaviour(function: Behaviour) -> Behaviour:
    BEHAVIOURS[function.__name__] = function
    return function


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_both_libraries_do_the_same(name: str) -> None:
    flax_nnx = pytest.importorskip("flax.nnx")
    ours = BEHAVIOURS[name](moduli)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = BEHAVIOURS[name](flax_nnx)
    assert_same_numbers(ours, theirs, rtol=1e-5, atol=1e-6)


def make_pair(nnx: Any) -> Any:
    class Pair(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.first = nnx.Linear(3, 3, rngs=rngs)
            self.second = nnx.Linear(3, 3, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.second(self.first(x))

    return Pair(nnx.Rngs(0))


# -- another class ---------------------------------------------------------------------------------


def make_doubled(nnx: Any) -> Any:
    """A Linear that doubles its outputs; it has no constructor of its own."""

    class Doubled(nnx.Linear):
        def __call__(self, x: Any, **kwargs: Any) -> Any:
            return 2 * super().__call__(x, **kwargs)

    return Doubled


@behaviour
def an_object_gets_another_class(nnx: Any) -> Any:
    model, doubled = make_pair(nnx), make_doubled(nnx)
    before, kernel = model(X), model.first.kernel
    model.first.__class__ = doubled
    assert isinstance(model.first, doubled) and type(model.first) is doubled
    assert model.first.kernel is kernel and model.first.in_features == 3
    return before, model(X)


@behaviour
def the_structure_knows_the_class(nnx: Any) -> Any:
    model, doubled = make_pair(nnx), make_doubled(nnx)
    graphdef, _ = nnx.split(model)
    model.first.__class__ = doubled
    changed, state = nnx.split(model)
    assert changed != graphdef
    again = nnx.merge(changed, state)
    assert type(again.first) is doubled
    model.first.__class__ = nnx.Linear
    assert type(nnx.merge(*nnx.split(model)).first) is nnx.Linear
    return again(X), nnx.clone(model)(X)


@behaviour
def a_compiled_function_sees_the_class(nnx: Any) -> Any:
    model, doubled = make_pair(nnx), make_doubled(nnx)
    forward = nnx.jit(lambda model, x: model(x))
    gradient = nnx.jit(nnx.grad(lambda model, x: model(x).sum()))
    outputs = [forward(model, X), gradient(model, X)["first"]["kernel"]]
    for cls in (doubled, nnx.Linear, doubled):
        model.first.__class__ = cls
        outputs += [forward(model, X), gradient(model, X)["first"]["kernel"]]
    return outputs


@behaviour
def the_root_gets_another_class(nnx: Any) -> Any:
    model, doubled = nnx.Linear(3, 2, rngs=nnx.Rngs(0)), make_doubled(nnx)
    forward = nnx.jit(lambda model, x: model(x))
    before = forward(model, X)
    model.__class__ = doubled
    return before, forward(model, X), jax.tree.leaves(nnx.state(model, nnx.Param))


@behaviour
def an_interceptor_makes_a_class_for_one_object(nnx: Any) -> Any:
    """As wrappers do that change how one object is called, and keep its class's name."""
    model, seen = make_pair(nnx), []

    def watched(module: Any) -> None:
        cls = type(module)

        def call(self: Any, *args: Any) -> Any:
            seen.append(np.asarray(args[0]))
            return cls.__call__(self, *args)

        module.__class__ = type(cls.__name__, (cls,), {"__call__": call})

    for _, module in list(nnx.iter_modules(model)):
        watched(module)
    outputs = model(X)
    assert len(seen) == 3
    return outputs, seen[-1]


# -- what a layer calls ----------------------------------------------------------------------------


def make_layers(nnx: Any, rngs: Any, product: Any) -> dict[str, tuple[Any, Any]]:
    """Layers that are given what multiplies, with inputs."""
    return {
        "linear": (nnx.Linear(3, 2, dot_general=product, rngs=rngs), X),
        "general": (nnx.LinearGeneral(3, (2, 2), dot_general=product, rngs=rngs), X),
        "attention": (
            nnx.MultiHeadAttention(
                2, 4, qkv_dot_general=product, out_dot_general=product, decode=False, rngs=rngs
            ),
            np.ones((1, 3, 4), np.float32),
        ),
    }


@behaviour
def a_product_sees_the_parameter_itself_at_each_call(nnx: Any) -> Any:
    calls: list[Any] = []

    def product(lhs: Any, rhs: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append((lhs, rhs))
        return lax.dot_general(lhs, rhs, *args, **kwargs)

    counts = []
    for layer, x in make_layers(nnx, nnx.Rngs(0), product).values():
        kernels = [
            p.get_value() for p in jax.tree.leaves(nnx.state(layer, nnx.Param), is_leaf=is_box)
        ]
        for _ in range(3):
            calls.clear()
            layer(x)
            assert all(any(rhs is kernel for kernel in kernels) for _, rhs in calls)
            assert not any(isinstance(item, jax.core.Tracer) for pair in calls for item in pair)
            counts.append(len(calls))
    return np.array(counts)


def is_box(value: Any) -> bool:
    return hasattr(value, "get_value")


@behaviour
def a_convolution_can_be_intercepted_at_each_call(nnx: Any) -> Any:
    calls: list[Any] = []

    def convolution(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return lax.conv_general_dilated(*args, **kwargs)

    layer = nnx.Conv(3, 2, (2,), conv_general_dilated=convolution, rngs=nnx.Rngs(0))
    for _ in range(3):
        layer(np.ones((1, 4, 3), np.float32))
    assert all(args[1] is layer.kernel.get_value() for args in calls)
    return np.array(len(calls))


@behaviour
def every_trace_is_intercepted_too(nnx: Any) -> Any:
    """Two layers of one shape, traced twice: nothing is remembered from one to the other."""
    calls: list[Any] = []

    def product(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return lax.dot_general(*args, **kwargs)

    rngs = nnx.Rngs(0)
    layers = nnx.Sequential(
        *[nnx.Linear(3, 3, dot_general=product, rngs=rngs) for _ in range(3)],
    )
    jax.make_jaxpr(lambda x: layers(x))(X)
    jax.make_jaxpr(lambda x: layers(x))(X)
    return np.array(len(calls))


@behaviour
def a_quantizer_leaves_a_table_that_is_looked_up(nnx: Any) -> Any:
    """It replaces the weights that it finds in a product, where a product only multiplies."""
    embed = nnx.Embed(5, 3, rngs=nnx.Rngs(0))
    found: list[Any] = []
    product = lax.dot_general

    def intercepted(lhs: Any, rhs: Any, *args: Any, **kwargs: Any) -> Any:
        found.extend(part for part in (lhs, rhs) if part is embed.embedding.get_value())
        return product(lhs, rhs, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lax, "dot_general", intercepted)
        scores = embed.attend(X)
        inside = nnx.jit(lambda embed, x: embed.attend(x))(embed, X)
    return scores, inside, np.array(len(found))


# -- attributes of containers ----------------------------------------------------------------------


@behaviour
def every_module_that_is_found_takes_attributes(nnx: Any) -> Any:
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Linear(3, 3, rngs=rngs), nnx.Linear(3, 2, rngs=rngs))
    before = model(X)
    found = list(nnx.iter_modules(model))
    for path, module in found:
        module.place = "/".join(map(str, path))
    assert model.layers.place == "layers" and len(model.layers) == 2
    forward = nnx.jit(lambda model, x: model(x))
    for again in (nnx.clone(model), copy.deepcopy(model), nnx.merge(*nnx.split(model))):
        assert again.layers.place == "layers" and again.layers[0].place == "layers/0"
    return before, forward(model, X), np.array(len(found))


def test_an_attribute_of_a_list_is_part_of_the_model() -> None:
    """flax keeps it too, but fails when JAX sorts numbers and names."""
    nnx = moduli
    model: Any = nnx.List([nnx.Param(jnp.ones(2))])
    model.scale = nnx.Param(jnp.array(3.0))
    forward = nnx.jit(lambda model: model[0][...] * model.scale[...])
    np.testing.assert_allclose(forward(model), [3.0, 3.0])
    model.scale[...] = jnp.array(4.0)
    np.testing.assert_allclose(forward(model), [4.0, 4.0])
    grads = nnx.grad(lambda model: (model[0][...] * model.scale[...]).sum())(model)
    assert float(grads["scale"].value) == 2.0 and len(model) == 1
    leaves, structure = jax.tree.flatten(model)
    assert jax.tree.unflatten(structure, leaves).scale.value == 4.0 and len(leaves) == 2
    for again in (pickle.loads(pickle.dumps(model)), model.copy(), copy.copy(model)):
        assert len(again) == 1 and float(again.scale.value) == 4.0

    @nnx.jit
    def note(model: Any) -> None:
        model.noted = "inside"
        model.append(nnx.Param(jnp.zeros(1)))

    note(model)
    assert model.noted == "inside" and len(model) == 2
    del model.scale
    assert not hasattr(model, "scale") and len(jax.tree.leaves(nnx.state(model))) == 2


# -- arguments -------------------------------------------------------------------------------------


@behaviour
def the_differentiated_argument_by_keyword(nnx: Any) -> Any:
    model = make_pair(nnx)

    def loss(model: Any, x: Any, scale: Any = 2.0) -> Any:
        return (model(x) * scale).sum()

    x = jnp.asarray(X)
    value, grads = nnx.value_and_grad(loss)(model=model, x=x)
    both = nnx.grad(loss, argnums=(0, 1))(model=model, x=x)
    return (
        value,
        grads["first"]["kernel"],
        nnx.grad(loss)(x=x, model=model)["first"]["kernel"],
        nnx.grad(loss, argnums=1)(model, x=x),
        nnx.grad(loss, argnums=2)(model, x=x, scale=3.0),
        nnx.grad(loss, argnums=-1)(model, scale=3.0, x=x),
        both[0]["second"]["bias"],
        both[1],
        nnx.jit(nnx.grad(loss))(model=model, x=x)["first"]["bias"],
        nnx.grad(loss, argnums=nnx.DiffState(0, nnx.PathContains("bias")))(model=model, x=x)[
            "first"
        ]["bias"],
    )


@behaviour
def reseeding_a_stream_that_is_not_there(nnx: Any) -> Any:
    model = nnx.Dropout(0.5, rngs=nnx.Rngs(dropout=0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nnx.reseed(model, dropout=3, noise=1)
    return model(jnp.ones((8,)))


@behaviour
def names_of_axes_under_all_their_names(nnx: Any) -> Any:
    names = ("in", "out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        params = [
            nnx.Param(jnp.ones((2, 3)), **{key: names, "eager_sharding": False})
            for key in ("sharding", "sharding_names", "out_sharding")
        ]
        params.append(nnx.Param(jnp.ones((2, 3)), eager_sharding=False))
        params[-1].set_metadata("sharding_names", names)
        for param in params:
            assert param.sharding_names == names and param.out_sharding == names
            assert param.get_metadata("out_sharding") == names
            assert not hasattr(param.get_value(), "sharding") or param.sharding != names
        assert nnx.Param(jnp.ones(2)).sharding_names is None
    return params[0][...]


@behaviour
def an_empty_sequential(nnx: Any) -> Any:
    empty = nnx.Sequential()
    assert empty() is None and empty(3) == 3 and empty(1, 2) == (1, 2)
    assert empty(x=1, y=2) == {"x": 1, "y": 2}
    return empty(4, y=2)


@behaviour
def splitting_what_is_no_module(nnx: Any) -> Any:
    found = []
    for value in (3.0, 2, np.ones(2, np.float32), jnp.arange(3)):
        graphdef, state = nnx.split(value)
        found += [nnx.merge(graphdef, state), state]
    return found


def make_sower(nnx: Any) -> Any:
    class Inner(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.linear = nnx.Linear(3, 3, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            y = self.linear(x)
            self.sow(nnx.Intermediate, "hidden", y)
            return y

    class Outer(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.inner = Inner(rngs)

        def run(self, x: Any) -> Any:
            return nnx.merge(*nnx.split(self.inner))(x)

        def compiled(self, x: Any) -> Any:
            return nnx.jit(lambda model, x: model.run(x))(self, x)

    return Outer(nnx.Rngs(0)), Inner(nnx.Rngs(1))


@behaviour
def what_a_merged_part_sows_is_captured(nnx: Any) -> Any:
    model, _ = make_sower(nnx)
    found = []
    for method in (model.run, model.compiled):
        output, sown = nnx.capture(method, nnx.Intermediate)(X)
        found += [output, sown["inner"]["hidden"].get_value()[0]]
    return found


@behaviour
def a_method_brings_a_module_that_the_call_does_not_hold(nnx: Any) -> Any:
    _, other = make_sower(nnx)
    graphdef, state = nnx.split(other)

    class Runner:
        def run(self, x: Any) -> Any:
            return nnx.merge(graphdef, state)(x)

    output, sown = nnx.capture(Runner().run, nnx.Intermediate)(X)
    assert not jax.tree.leaves(sown)
    return output


@jax.tree_util.register_pytree_node_class
class Quantized:
    """As quantizers keep a parameter: a pytree of arrays, in the place of a Param."""

    def __init__(self, values: Any, scale: Any):
        self.values, self.scale = values, scale

    def tree_flatten(self) -> Any:
        return (self.values, self.scale), None

    @classmethod
    def tree_unflatten(cls, _: Any, children: Any) -> Any:
        return cls(*children)


@behaviour
def a_pytree_that_is_registered_as_data(nnx: Any) -> Any:
    nnx.register_data_type(Quantized)

    class Layer(nnx.Module):
        def __init__(self) -> None:
            self.kernel = Quantized(jnp.arange(3), jnp.array(0.5))
            self.parts = nnx.List([Quantized(jnp.ones(3), jnp.array(2.0))])

        def __call__(self, x: Any) -> Any:
            part = self.parts[0]
            return x * self.kernel.values * self.kernel.scale + part.values * part.scale

    layer = Layer()
    graphdef, state = nnx.split(layer)
    outputs = [layer(2.0), nnx.jit(lambda layer, x: layer(x))(layer, 2.0)]
    return [*outputs, nnx.merge(graphdef, state)(2.0), nnx.clone(layer)(3.0)]


def test_the_class_survives_copies_and_pickles() -> None:
    model = make_pair(moduli)
    model.first.__class__ = Doubled
    for again in (copy.copy(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model.first))):
        assert type(getattr(again, "first", again)) is Doubled


class Doubled(moduli.Linear):
    pass


@pytest.mark.parametrize("layer", ["LayerNorm", "BatchNorm", "RMSNorm", "InstanceNorm"])
def test_an_eager_norm_calls_jax_itself(layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    norm = getattr(moduli, layer)(3, rngs=moduli.Rngs(0))
    seen: list[Any] = []
    rsqrt = lax.rsqrt
    monkeypatch.setattr(lax, "rsqrt", lambda x: seen.append(x) or rsqrt(x))
    for count in (1, 2, 3):
        norm(jnp.asarray(X))
        assert len(seen) == count and isinstance(seen[-1], jax.Array)
        assert not isinstance(seen[-1], jax.core.Tracer)
