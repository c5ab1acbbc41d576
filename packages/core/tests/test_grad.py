"""grad and value_and_grad: which values are differentiated, and what happens to the rest."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_models import Linear, Tied, batch, mlp

import moduli as nnx
from moduli import errors


def loss(model, x):
    return (model(x) ** 2).sum()


def functional_loss(params, x):
    """The same as ``loss`` of a Linear, written by hand."""
    return ((x @ params["kernel"] + params["bias"]) ** 2).sum()


def linear():
    return Linear(3, 2, rngs=nnx.Rngs(1))


def plain(state):
    return jax.tree.map(np.asarray, nnx.to_pure_dict(state))


def assert_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


@pytest.mark.parametrize("jitted", [False, True])
def test_gradients_are_those_of_the_hand_written_function(jitted):
    model, x = linear(), batch()
    params = {"kernel": model.kernel.value, "bias": model.bias.value}
    expected_value, expected = jax.value_and_grad(functional_loss)(params, x)
    wrap = nnx.jit if jitted else lambda f: f
    grads = wrap(nnx.grad(loss))(model, x)
    assert isinstance(grads, nnx.State) and type(grads.kernel) is nnx.Param
    assert_close(plain(grads), expected)
    value, grads = wrap(nnx.value_and_grad(loss))(model, x)
    assert_close(value, expected_value)
    assert_close(plain(grads), expected)


def test_updates_inside_reach_the_caller_and_statistics_are_not_differentiated():
    model, twin, x = mlp(), mlp(), batch()
    grads = nnx.grad(loss)(model, x)
    twin(x)
    assert_close(plain(nnx.state(model)), plain(nnx.state(twin)))
    assert {path[-1] for path in nnx.to_flat_state(grads).paths} == {"kernel", "bias"}
    assert all(
        isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)
        for leaf in jax.tree.leaves(nnx.state(model))
    )


def test_argnums_select_arguments_and_parts():
    model, x = linear(), batch()
    by_model, by_x = nnx.grad(loss, argnums=(0, 1))(model, x)
    expected = jax.grad(lambda x: ((x @ model.kernel.value) ** 2).sum())(x)
    assert_close(by_x, expected)
    assert_close(plain(by_model), plain(nnx.grad(loss)(model, x)))
    assert_close(nnx.grad(loss, argnums=-1)(model, x), expected)
    only = nnx.grad(loss, argnums=nnx.DiffState(0, nnx.PathContains("bias")))(model, x)
    assert list(only) == ["bias"]
    both = nnx.grad(loss, argnums=(nnx.DiffState(0, "nothing has this tag"), 1))(model, x)
    assert list(both[0]) == [] and both[1].shape == x.shape


def test_decorator_forms_and_aux():
    @nnx.grad(argnums=1, has_aux=True)
    def by_x(model, x):
        y = model(x)
        return y.sum(), {"y": y, "model": model, "new": nnx.Variable(y.mean())}

    model, x = linear(), batch()
    grads, aux = by_x(model, x)
    assert_close(grads, np.tile(np.asarray(model.kernel.value).sum(1), (4, 1)))
    assert aux["model"] is model and isinstance(aux["y"], jax.Array)
    assert_close(aux["new"].value, aux["y"].mean())
    (value, aux2), _ = nnx.value_and_grad(lambda m, x: (m(x).sum(), 3), has_aux=True)(model, x)
    assert aux2 == 3 and value.shape == ()
    with pytest.raises(errors.StructureError, match=r"must return a pair \(value, aux\)"):
        nnx.grad(loss, has_aux=True)(model, x)


def test_structure_changes_inside_reach_the_caller():
    def probe(model, x):
        model.seen = nnx.Intermediate(model(x))
        return model.seen.value.sum()

    model, x = linear(), batch()
    nnx.grad(probe)(model, x)
    assert_close(model.seen.value, np.asarray(x @ model.kernel.value + model.bias.value))
    assert not isinstance(model.seen.value, jax.core.Tracer)


def test_a_perturbation_has_the_gradient_of_the_intermediate():
    class Model(nnx.Module):
        def __init__(self):
            self.first, self.second = linear(), Linear(2, 1, rngs=nnx.Rngs(2))
            self.zeros = nnx.Perturbation(jnp.zeros((4, 2)))

        def __call__(self, x):
            return self.second(jnp.tanh(self.first(x) + self.zeros.value))

    model, x = Model(), batch()
    wanted = nnx.DiffState(0, nnx.Any(nnx.Param, nnx.Perturbation))
    grads = nnx.grad(loss, argnums=wanted)(model, x)
    hidden = model.first(x)
    expected = jax.grad(lambda h: (model.second(jnp.tanh(h)) ** 2).sum())(hidden)
    assert_close(grads.zeros.value, expected)


def test_a_shared_parameter_collects_its_gradient_once():
    model = Tied()
    grads = nnx.grad(lambda m: (m.a.value * 2 + m.b.value * 3).sum())(model)
    assert nnx.to_flat_state(grads).paths == (("a",),)
    np.testing.assert_array_equal(grads.a.value, [5, 5, 5])


def test_variables_states_and_pytrees_as_arguments():
    np.testing.assert_array_equal(
        nnx.grad(lambda v: (v.value**2).sum())(nnx.BatchStat(jnp.arange(3.0))).value, [0, 2, 4]
    )
    model, x = linear(), batch()
    graphdef, params = nnx.split(model)
    grads = nnx.grad(lambda params: loss(nnx.merge(graphdef, params), x))(params)
    assert isinstance(grads, nnx.State)
    assert_close(plain(grads), plain(nnx.grad(loss)(model, x)))
    nested = {"model": model, "scale": jnp.array(2.0)}
    grads = nnx.grad(lambda t: (t["model"](x) * t["scale"]).sum())(nested)
    assert_close(grads["scale"], model(x).sum())
    assert_close(plain(grads["model"])["bias"], np.full(2, 8.0))


def test_the_gradient_of_a_gradient():
    def inner(model, x):
        return sum((leaf**2).sum() for leaf in jax.tree.leaves(nnx.grad(loss)(model, x)))

    model, x = linear(), batch()
    params = {"kernel": model.kernel.value, "bias": model.bias.value}
    expected = jax.grad(
        lambda p: sum((g**2).sum() for g in jax.tree.leaves(jax.grad(functional_loss)(p, x)))
    )(params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4),
        plain(nnx.grad(inner)(model, x)),
        expected,
    )


def test_an_exception_leaves_the_model_as_it_was():
    def fail(model, x):
        model(x)
        model.extra = nnx.Param(x)
        raise ZeroDivisionError

    model = mlp()
    before, graphdef = nnx.clone(nnx.state(model)), nnx.graphdef(model)
    with pytest.raises(ZeroDivisionError):
        nnx.grad(fail)(model, batch())
    assert nnx.state(model) == before and nnx.graphdef(model) is graphdef


def test_one_object_differentiated_in_two_ways_is_an_error_with_both_paths():
    model, x = mlp(), batch()
    function = lambda m, layer: m(x).sum()
    with pytest.raises(
        errors.StructureError, match=r"`layers/0/bias` of argument 0.*`bias` of argument 1"
    ):
        nnx.grad(function, argnums=(0, 1))(model, model.layers[0])
    with pytest.raises(errors.StructureError, match=r"also passed as `bias` of argument 1"):
        nnx.grad(function)(model, model.layers[0])


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda m, x: nnx.grad(loss, argnums=5)(m, x), "argnums=5"),
        (lambda m, x: nnx.grad(loss, argnums="0")(m, x), "argnums takes ints"),
        (lambda m, x: nnx.grad(loss, argnums=(0, 0))(m, x), "twice"),
        (lambda m, x: nnx.grad(3)(m, x), "needs a callable"),
        (lambda m, x: nnx.grad(lambda m, x: m(x))(m, x), r"scalar.*shape \(4, 2\).*mean"),
        (lambda m, x: nnx.grad(loss, reduce_axes=("i",))(m, x), "reduce_axes"),
        (lambda m, x: nnx.grad(loss)(nnx.Dict(n=nnx.Param(jnp.arange(2))), x), "`n` of argument 0"),
    ],
)
def test_wrong_use_says_what_is_wrong(call, text):
    with pytest.raises(errors.ModuliError, match=text):
        call(linear(), batch())


def test_matches_flax():
    flax = pytest.importorskip("flax.nnx")

    def build(lib):
        class Model(lib.Module):
            def __init__(self):
                self.w = lib.Param(jnp.arange(6.0).reshape(3, 2))
                self.mean = lib.BatchStat(jnp.zeros(2))

            def __call__(self, x):
                y = x @ self.w[...]
                self.mean[...] = 0.9 * self.mean[...] + 0.1 * y.mean(0)
                return y - self.mean[...]

        return Model()

    ours, theirs, x = build(nnx), build(flax), batch()
    a, b = nnx.grad(loss)(ours, x), flax.grad(loss)(theirs, x)
    np.testing.assert_allclose(a.w.value, b["w"][...], rtol=1e-6)
    np.testing.assert_allclose(ours.mean.value, theirs.mean[...], rtol=1e-6)


def test_a_filter_must_select_a_shared_value_by_all_its_paths():
    class Tied(nnx.Module):
        def __init__(self):
            self.a = nnx.Param(jnp.ones(2))
            self.b = self.a

    tied = Tied()
    line = tied.a._made[0].co_firstlineno + 1
    with pytest.raises(errors.StructureError) as caught:
        nnx.grad(lambda m: (m.a * m.b).sum(), argnums=nnx.DiffState(0, nnx.PathContains("b")))(tied)
    message = str(caught.value)
    assert message.startswith(
        "grad: `b` of argument 0 and `a` of argument 0 are the same Param (made at "
    )
    assert f"test_grad.py:{line}), but the filter PathContains('b'" in message
    assert "selects it by the first path and not by the second" in message
    both = nnx.Any(nnx.PathContains("a"), nnx.PathContains("b"))
    grads = nnx.grad(lambda m: (m.a * m.b).sum(), argnums=nnx.DiffState(0, both))(tied)
    assert grads["a"].value.tolist() == [2.0, 2.0]


def test_bound_methods_and_module_defaults_are_lifted():
    class Counter(nnx.Module):
        def __init__(self):
            self.calls = nnx.Variable(jnp.array(0))

        def square(self, x):
            self.calls.value += 1
            return x**2

    counter = Counter()

    def square(x, counter=counter):
        return counter.square(x)

    assert float(nnx.grad(counter.square)(3.0)) == 6.0
    assert float(nnx.grad(square)(3.0)) == 6.0
    assert int(counter.calls) == 2


@pytest.mark.parametrize("transform", [nnx.grad, nnx.value_and_grad], ids=["grad", "value"])
@pytest.mark.parametrize(
    ("returned", "remedy"),
    [
        (lambda x: None, "its `return` missing"),
        (lambda x: (x, 1.0), r"`return loss, more` and `\w+\(\.\.\., has_aux=True\)`"),
        (lambda x: [x], "returned a list"),
        (lambda x: {"loss": x}, "returned a dict"),
    ],
)
def test_a_loss_that_is_no_scalar_says_what_to_write(transform, returned, remedy):
    with pytest.raises(nnx.errors.ShapeError, match=remedy):
        transform(lambda model: returned(model["w"][...]))(nnx.Dict(w=nnx.Param(2.0)))
