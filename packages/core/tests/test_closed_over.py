"""Variables that a compiled function reads through a closure: it never runs on what they held."""

import gc
import warnings
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli as nnx
from moduli.errors import ClosedOverWarning, TraceError


class Affine(nnx.Module):
    def __init__(self):
        self.kernel = nnx.Param(jnp.arange(6.0).reshape(3, 2))
        self.bias = nnx.Param(jnp.ones(2))

    def __call__(self, x):
        return x @ self.kernel + self.bias


X = jnp.ones((4, 3))


def expected(model):
    return np.asarray(X) @ np.asarray(model.kernel.raw_value) + np.asarray(model.bias.raw_value)


def by_state(model, x):
    _, state = nnx.split(model)
    kernel, bias = state["kernel"], state["bias"]
    return x @ kernel.value + bias.value


def by_leaves(model, x):
    bias, kernel = jax.tree.leaves(nnx.state(model))
    return x @ kernel + bias


def by_merge(model, x):
    return nnx.merge(*nnx.split(model), copy=True)(x)


def by_nested_grad(model, x):
    """The gradient by x of f(x)·f(x)/2 is f(x) @ kernelᵀ; solved for f(x) with an identity."""
    value, _ = nnx.value_and_grad(lambda model, x: (model(x).sum(), model(x)), has_aux=True)(
        model, x
    )
    return value[1]


def by_vmap(model, x):
    return nnx.vmap(lambda model, row: model(row), in_axes=(None, 0))(model, x)


def by_nested_jit(model, x):
    return nnx.jit(lambda model, x: model(x))(model, x)


def by_scan(model, x):
    return nnx.scan(lambda row: model(row), in_axes=0, out_axes=0)(x)


def by_cond(model, x):
    return nnx.cond(x.sum() > 0, lambda x: model(x), lambda x: x[:, :2], x)


def by_methods(model, x):
    return (model.kernel.T @ x.T).T + model.bias.get_raw_value()


READERS = [
    lambda model, x: model(x),
    by_state,
    by_leaves,
    by_merge,
    by_nested_grad,
    by_vmap,
    by_nested_jit,
    by_scan,
    by_cond,
    by_methods,
    lambda model, x: nnx.clone(model)(x),
    lambda model, x: x @ jnp.asarray(model.kernel) + model.bias[...],
]


def write_value(model):
    model.bias.value = model.bias.value + 1


def write_part(model):
    model.kernel[0] = 7.0


def write_raw(model):
    model.bias.set_raw_value(jnp.full(2, 5.0))


def write_in_jit(model):
    @nnx.jit
    def step(model):
        model.kernel.value = model.kernel.value * 2

    step(model)


def write_by_update(model):
    nnx.update(model, jax.tree.map(lambda value: value - 3, nnx.state(model)))


WRITERS = [write_value, write_part, write_raw, write_in_jit, write_by_update]


def names(items):
    return [f"{n}-{item.__name__.strip('<>')}" for n, item in enumerate(items)]


@pytest.mark.parametrize("reader", READERS, ids=names(READERS))
def test_what_is_read_through_a_closure_is_never_old(reader):
    model = Affine()
    run = nnx.jit(lambda x: reader(model, x))
    np.testing.assert_allclose(run(X), expected(model), rtol=1e-6)
    np.testing.assert_allclose(run(X), expected(model), rtol=1e-6)
    for write in WRITERS:
        write(model)
        with pytest.warns(ClosedOverWarning, match=r"(kernel|bias)` of Affine"):
            got = run(X)
        np.testing.assert_allclose(got, expected(model), rtol=1e-6)
        np.testing.assert_allclose(run(X), expected(model), rtol=1e-6)  # and no warning


OPTIONS = [
    {},
    {"donate_argnums": 0},
    {"static_argnums": 1},
    {"in_shardings": None, "out_shardings": jax.sharding.SingleDeviceSharding(jax.devices()[0])},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_with_options_of_jit(options):
    model = Affine()
    run = nnx.jit(lambda x, flag=True: jnp.pad(model(x), ((0, 0), (0, 1))), **options)
    for _ in range(2):
        np.testing.assert_allclose(run(X + 0, True)[:, :2], expected(model), rtol=1e-6)
        write_value(model)
        with pytest.warns(ClosedOverWarning):
            np.testing.assert_allclose(run(X + 0, True)[:, :2], expected(model), rtol=1e-6)


def test_pmap_and_shard_map():
    model = Affine()
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("i",))
    spec = jax.sharding.PartitionSpec("i")
    sharded = nnx.shard_map(lambda x: model(x), mesh=mesh, in_specs=spec, out_specs=spec)
    mapped = nnx.pmap(lambda x: model(x))
    for _ in range(2):
        np.testing.assert_allclose(sharded(X), expected(model), rtol=1e-6)
        np.testing.assert_allclose(mapped(X[None])[0], expected(model), rtol=1e-6)
        write_value(model)
        with pytest.warns(ClosedOverWarning):
            np.testing.assert_allclose(sharded(X), expected(model), rtol=1e-6)
        with pytest.warns(ClosedOverWarning):
            np.testing.assert_allclose(mapped(X[None])[0], expected(model), rtol=1e-6)


def test_a_program_inside_another_hands_over_what_it_read():
    model = Affine()
    inner = nnx.jit(lambda x: model(x))
    inner(X)  # traced before the outer one, which calls it as it is
    outer = nnx.jit(lambda x: 2 * inner(x))
    np.testing.assert_allclose(outer(X), 2 * expected(model), rtol=1e-6)
    write_value(model)
    with pytest.warns(ClosedOverWarning):
        np.testing.assert_allclose(outer(X), 2 * expected(model), rtol=1e-6)


def test_other_shapes_of_the_arguments_are_traced_with_what_is_held_then():
    model = Affine()
    run = nnx.jit(lambda x: model(x) if x.shape[0] > 2 else x[:, :2])
    np.testing.assert_allclose(run(X[:1]), X[:1, :2])  # reads nothing
    np.testing.assert_allclose(run(X), expected(model), rtol=1e-6)
    write_value(model)
    with pytest.warns(ClosedOverWarning):
        np.testing.assert_allclose(run(X), expected(model), rtol=1e-6)


class Pair(nnx.Module):
    def __init__(self):
        self.first, self.rest = Affine(), {"b": Affine()}
        self.scale = 1.0

    def __call__(self, x):
        return self.scale * (self.first(x) + self.rest["b"](x))


def replace_part(model):
    model.first = Affine()
    model.first.bias.value = jnp.full(2, 9.0)


def replace_part_in_a_dict(model):
    model.rest["b"] = Affine()
    model.rest["b"].kernel.value = jnp.full((3, 2), 4.0)


def change_an_attribute(model):
    model.scale += 1.0


@pytest.mark.parametrize("kept", [False, True], ids=["gone", "kept"])
@pytest.mark.parametrize("change", [replace_part, replace_part_in_a_dict, change_an_attribute])
def test_a_part_or_an_attribute_of_what_is_read_is_another_one(change, kept):
    model, old = Pair(), []
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("i",))
    spec = jax.sharding.PartitionSpec("i")
    for run in (
        nnx.jit(lambda x: model(x)),
        nnx.jit(lambda x, flag: model(x), static_argnums=1),
        nnx.shard_map(lambda x: model(x), mesh=mesh, in_specs=spec, out_specs=spec),
    ):
        args = (X, True) if "flag" in str(getattr(run, "_static_argnames", "")) else (X,)
        np.testing.assert_allclose(run(*args), model(X), rtol=1e-6)
        if kept:
            old.append([model.first, model.rest["b"]])
        change(model)
        with pytest.warns(ClosedOverWarning, match="reads the Pair through a closure"):
            got = run(*args)
        np.testing.assert_allclose(got, model(X), rtol=1e-6)
        np.testing.assert_allclose(run(*args), model(X), rtol=1e-6)  # and no warning


def test_a_program_compiled_ahead_of_time_is_refused():
    model = Affine()
    compiled = nnx.jit(lambda x: model(x)).lower(X).compile()
    np.testing.assert_allclose(compiled(X), expected(model), rtol=1e-6)
    write_value(model)
    with pytest.raises(TraceError, match=r"`bias` of Affine \(made at .*test_closed_over.py"):
        compiled(X)


def test_no_warning_without_a_closure_nor_without_a_write():
    model, other = Affine(), Affine()
    traces = []

    @nnx.jit
    def run(given, x):
        traces.append(1)
        local = nnx.Variable(jnp.ones(()))
        return given(x) + other(x) * local

    for _ in range(3):
        run(model, X)
        write_value(model)
    other.bias.value = other.bias.value  # the same array
    run(model, X)
    assert len(traces) == 1
    assert nnx.jit(lambda: float(other.bias.shape[0]))() == 2.0


def test_the_warning_names_function_place_and_remedy_and_comes_each_time():
    model = Affine()

    def predict(x):
        return model(x)

    run = nnx.jit(predict)
    run(X)
    write_value(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):  # as an error it leaves everything as it was
            with pytest.raises(ClosedOverWarning) as caught:
                run(X)
    text = str(caught.value)
    assert "predict (" in text
    assert "test_closed_over.py:" in text
    assert "`f(model, x)`" in text
    with pytest.warns(ClosedOverWarning) as found:
        np.testing.assert_allclose(run(X), expected(model), rtol=1e-6)
    assert found[0].filename == __file__


def test_without_jit_everything_is_read_anew():
    model = Affine()
    run = nnx.jit(lambda x: model(x))
    with jax.disable_jit():
        for _ in range(2):
            np.testing.assert_allclose(run(X), expected(model), rtol=1e-6)
            write_value(model)


def test_no_variable_is_kept_alive():
    model = Affine()
    alive, ref = [model.bias], weakref.ref(model.bias)
    run = nnx.jit(lambda x: x + alive[0].value if alive else x)
    run(jnp.ones(2))
    alive.clear()
    del model
    gc.collect()
    assert ref() is None
    run(jnp.ones(2))  # nobody can have written it since
