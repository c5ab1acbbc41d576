"""Modules under raw JAX transforms: a write that JAX drops is reported, and nothing else is."""

from __future__ import annotations

import copy
import gc
import inspect
import os
import re
import warnings
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_models import batch

import moduli as nnx
from moduli import errors
from moduli.errors import DroppedWriteWarning

HERE = os.path.relpath(__file__)
LINES = inspect.getsource(inspect.getmodule(lambda: None)).splitlines()  # type: ignore[arg-type]


def at(text: str) -> str:
    """The place of the one line of this file that holds ``# <text>`` at its end."""
    (number,) = [i for i, line in enumerate(LINES, 1) if line.endswith(f"# {text}")]
    return f"{HERE}:{number}"


class Norm(nnx.Module):
    def __init__(self):
        self.scale = nnx.Param(jnp.ones(3))
        self.mean = nnx.BatchStat(jnp.zeros(3))  # mean made

    def __call__(self, x):
        mean = x.mean(0)
        self.mean.value = 0.5 * self.mean.value + 0.5 * mean  # mean written
        return (x - mean) * self.scale.value


class Model(nnx.Module):
    def __init__(self):
        self.bn = Norm()
        self.kernel = nnx.Param(jnp.ones((3, 3)))

    def __call__(self, x):
        return self.bn(x @ self.kernel.value)


class Noisy(nnx.Module):
    def __init__(self):
        self.scale = nnx.Param(jnp.ones(3))
        self.rngs = nnx.Rngs(dropout=0)  # rngs made

    def __call__(self, x):
        keep = jax.random.bernoulli(self.rngs.dropout(), 0.5, x.shape)  # key drawn
        return jnp.where(keep, x * self.scale.value, 0)


def apply(model, x):
    return model(x)


def loss(model, x):
    return (model(x) ** 2).sum()


def fresh(function):
    """The same as another function, which JAX has not traced in another test."""
    return lambda model, x: function(model, x)


def dropped(function, *args):
    """Runs it, and returns the one DroppedWriteWarning."""
    with pytest.warns(DroppedWriteWarning) as caught:
        function(*args)
    (record,) = caught
    return record


X = batch()

TRANSFORMS = {
    "jit": jax.jit,
    "grad": jax.grad,
    "value_and_grad": jax.value_and_grad,
    "vmap": lambda f: jax.vmap(f, in_axes=(None, 0)),
    "jit of grad": lambda f: jax.jit(jax.grad(f)),
    "grad of jit": lambda f: jax.grad(jax.jit(f)),
    "jit of jit": lambda f: jax.jit(jax.jit(f)),
    "checkpoint": jax.checkpoint,
    "jvp": lambda f: lambda model, x: jax.jvp(lambda m: f(m, x), (model,), (model,)),
    "vjp": lambda f: lambda model, x: jax.vjp(lambda m: f(m, x), model),
    "linearize": lambda f: lambda model, x: jax.linearize(lambda m: f(m, x), model),
    "make_jaxpr": jax.make_jaxpr,
    "jit of moduli.grad": lambda f: jax.jit(nnx.grad(f)),
    "jit of moduli.jit": lambda f: jax.jit(nnx.jit(f)),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_dropped_write_is_reported_once_with_its_path(name):
    model = Model()
    x = X[None] if name == "vmap" else X
    record = dropped(TRANSFORMS[name](fresh(loss)), model, x)
    assert "a copy of Model," in str(record.message)
    assert re.findall(r"the (\w+) at `(.*?)`", str(record.message)) == [("BatchStat", "bn/mean")]
    np.testing.assert_array_equal(model.bn.mean.value, jnp.zeros(3))


def test_the_message_for_a_batch_statistic():
    record = dropped(jax.jit(fresh(apply)), Model(), X)
    assert str(record.message) == (
        "a function under a raw JAX transform (jax.jit, jax.grad, jax.vmap, ...) was given a copy "
        "of Model, and what it wrote into that copy is lost:\n"
        f"  the BatchStat at `bn/mean` (made at {at('mean made')}), written at "
        f"{at('mean written')}\n"
        "Use moduli's transform (`moduli.jit`, `moduli.grad`, ...) instead, which writes the "
        "values back, or return the module or `moduli.state(module)` from the function."
    )
    assert f"{os.path.relpath(record.filename)}:{record.lineno}" == at("mean written")


def test_the_message_for_the_key_of_dropout():
    record = dropped(jax.vmap(fresh(apply), in_axes=(None, 0)), Noisy(), X)
    assert (
        f"\n  the RngCount at `rngs/dropout/count` (made at {at('rngs made')}), written at "
        f"{at('key drawn')}\n"
    ) in str(record.message)


def test_rngs_given_by_themselves_are_reported_too():
    record = dropped(jax.jit(lambda rngs: rngs.dropout()), nnx.Rngs(dropout=0))
    assert "a copy of Rngs," in str(record.message)
    assert "the RngCount at `dropout/count`" in str(record.message)


def test_all_dropped_writes_of_a_model_come_in_one_warning():
    class Deep(nnx.Module):
        def __init__(self):
            self.norms = [Norm() for _ in range(12)]
            self.pair = (Norm(), Noisy())

        def __call__(self, x):
            for norm in self.norms:
                x = norm(x)
            return self.pair[1](self.pair[0](x))

    lines = str(dropped(jax.jit(fresh(apply)), Deep(), X).message).splitlines()
    assert [re.findall("`(.*?)`", line)[0] for line in lines[1:11]] == [
        f"norms/{i}/mean" for i in range(10)
    ]
    assert lines[11] == "  and 4 more"


def test_a_write_by_a_transform_of_moduli_inside_is_reported_at_its_call():
    def step(model, x):
        return nnx.value_and_grad(loss)(model, x)  # lifted call

    record = dropped(jax.jit(step), Model(), X)
    assert f"`bn/mean` (made at {at('mean made')}), written at {at('lifted call')}\n" in str(
        record.message
    )


def test_writes_of_metadata_and_updates_of_params_count_as_writes():
    def step(model, x):
        nnx.update(model, {"kernel": x[:3]})

    record = dropped(jax.jit(step), Model(), X)
    assert "the Param at `kernel`" in str(record.message)


def test_a_call_that_hits_the_cache_of_jax_warns_no_more():
    function, model = jax.jit(fresh(apply)), Model()
    dropped(function, model, X)
    function(model, X)
    dropped(function, model, X[:2])  # traces again


def test_two_models_give_two_warnings():
    with pytest.warns(DroppedWriteWarning) as caught:
        jax.jit(lambda a, b, x: a(x) + b(x))(Model(), Noisy(), X)
    names = {re.findall(r"a copy of (\w+)", str(record.message))[0] for record in caught}
    assert names == {"Model", "Noisy"}
    assert len(caught) == 2


# -- no false alarms (warnings are errors in these tests) ------------------------------------------


def returns_the_model(model, x):
    return model(x), model


def returns_the_state(model, x):
    y = model(x)
    return y, nnx.state(model)


def returns_part_of_the_state(model, x):
    y = model(x)
    return y, nnx.state(model, nnx.BatchStat, nnx.RngCount)


def returns_an_earlier_state(model, x):
    state = nnx.state(model)
    return model(x), state


def returns_a_split(model, x):
    y = model(x)
    _graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    return y, params, rest


def returns_a_merged_model(model, x):
    model = nnx.merge(*nnx.split(model))
    return model(x), model


def returns_a_clone(model, x):
    y = model(x)
    return y, nnx.clone(model)


def returns_a_deepcopy(model, x):
    y = model(x)
    return y, copy.deepcopy(model)


def returns_a_pure_dict(model, x):
    y = model(x)
    return y, nnx.to_pure_dict(nnx.state(model))


def returns_leaves(model, x):
    y = model(x)
    return y, jax.tree.leaves(model)


def returns_a_mapped_model(model, x):
    y = model(x)
    return y, jax.tree.map(lambda leaf: leaf, model)


def works_on_a_copy_of_its_own(model, x):
    model = jax.tree.map(lambda leaf: leaf, model)
    return model(x)


def works_on_a_clone(model, x):
    return nnx.clone(model)(x)


def only_reads(model, x):
    return x * jax.tree.leaves(nnx.state(model, nnx.Param))[0].sum()


FUNCTIONAL = [
    returns_the_model,
    returns_the_state,
    returns_part_of_the_state,
    returns_an_earlier_state,
    returns_a_split,
    returns_a_merged_model,
    returns_a_clone,
    returns_a_deepcopy,
    returns_a_pure_dict,
    returns_leaves,
    returns_a_mapped_model,
    works_on_a_copy_of_its_own,
    works_on_a_clone,
    only_reads,
]


@pytest.fixture
def strict():
    """Collects what a filter "error" cannot raise from a destructor."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
        gc.collect()
    assert [str(item.message) for item in caught] == []


@pytest.mark.parametrize("cls", [Model, Noisy])
@pytest.mark.parametrize("function", FUNCTIONAL, ids=lambda f: f.__name__)
def test_functional_code_is_silent(function, cls, strict):
    model = cls()
    function = fresh(function)
    nested = jax.jit(lambda model, x: jax.jit(function)(model, x))
    for transformed, x in [(jax.jit(function), X), (jax.jit(function), X[:2]), (nested, X)]:
        out = transformed(model, x)
        del out


def test_a_returned_model_is_an_ordinary_one(strict):
    step = jax.jit(returns_the_model)
    model = Model()
    for _ in range(3):
        _, model = step(model, X)
        model(X)
    expected = Model()
    for _ in range(6):
        expected(X)
    np.testing.assert_allclose(model.bn.mean.value, expected.bn.mean.value, rtol=1e-6)


def test_value_and_grad_with_the_model_as_aux_is_silent(strict):
    def function(model, x):
        return loss(model, x), model

    for transform in [lambda f: f, jax.jit]:
        (_, model), _grads = transform(jax.value_and_grad(function, has_aux=True))(Model(), X)
        assert np.any(model.bn.mean.value)
        model(X)


def test_a_model_made_inside_a_transform_is_silent(strict):
    model = jax.jit(Model)()
    model(X)
    models = jax.vmap(lambda _: Model())(jnp.arange(2))
    models.bn.mean.value = jnp.ones((2, 3))
    jax.jit(lambda x: Model()(x))(X)


def test_a_model_made_by_an_inner_transform_belongs_to_the_outer_trace(strict):
    @jax.jit
    def outer(given, x):
        given = jax.tree.map(lambda leaf: 2 * leaf, given)
        return jax.jit(Model)()(x) + given.scale.value

    outer(Norm(), X)


def test_a_loop_that_carries_the_model_is_silent(strict):
    def body(model, x):
        return model, model(x).sum()

    model, _ = jax.lax.scan(body, Model(), jnp.stack([X, X]))
    model(X)
    jax.jit(lambda m: jax.lax.scan(body, m, jnp.stack([X, X])))(Model())


def test_eager_tree_maps_and_copies_are_silent(strict):
    model = jax.tree.map(lambda leaf: leaf, Model())
    model(X)
    leaves, treedef = jax.tree.flatten(model)
    jax.tree.unflatten(treedef, leaves)(X)
    nnx.clone(model)(X)
    copy.deepcopy(model)(X)


def test_tree_map_of_a_captured_model_inside_a_trace_is_silent(strict):
    model = Model()
    jax.jit(lambda x: jax.tree.map(lambda leaf: leaf, model)(x))(X)


@pytest.mark.parametrize("transform", [nnx.jit, nnx.grad, nnx.value_and_grad])
def test_the_transforms_of_moduli_are_silent_and_keep_the_write(transform, strict):
    model = Model()
    transform(loss)(model, X)
    assert np.any(model.bn.mean.value)


def test_split_and_merge_around_raw_grad_are_silent(strict):
    def function(params, rest, graphdef, x):
        model = nnx.merge(graphdef, params, rest, copy=True)  # jax.grad passes rest itself
        return loss(model, x), nnx.state(model, nnx.BatchStat, nnx.RngState)

    for cls in [Model, Noisy]:
        graphdef, params, rest = nnx.split(cls(), nnx.Param, ...)
        jax.grad(function, has_aux=True)(params, rest, graphdef, X)


@pytest.mark.parametrize("transform", [jax.jit, jax.grad])
def test_an_exception_is_not_buried_under_warnings(transform, strict):
    def function(model, x):
        model(x)
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        transform(function)(Model(), X)


def test_writing_a_borrowed_variable_in_a_trace_further_in_is_still_an_error(strict):
    def function(model, x):
        return jax.jit(lambda x: model(x))(x)

    with pytest.raises(errors.TraceError, match=r"BatchStat at `bn/mean` of Model"):
        jax.jit(function)(Model(), X)


# -- objects ---------------------------------------------------------------------------------------


def test_the_copy_and_its_variables_are_collected():
    refs = []

    def function(model, x):
        refs.extend(map(weakref.ref, [model, model.bn, model.bn.mean, model.kernel]))
        return model(x)

    dropped(jax.jit(function), Model(), X)
    gc.collect()
    assert [ref() for ref in refs] == [None] * 4


def test_the_copy_dies_without_the_garbage_collector():
    refs = []

    def function(model, x):
        refs.append(weakref.ref(model))
        return model(x), model

    gc.disable()
    try:
        jax.jit(function)(Model(), X)
        assert refs[0]() is None
    finally:
        gc.enable()


def test_the_trace_is_no_part_of_the_structure():
    model = Model()
    outside = jax.tree.structure(model)
    inside = []
    jax.jit(lambda m: inside.append(jax.tree.structure(m)))(model)
    assert inside == [outside]
    assert hash(inside[0]) == hash(outside)


def test_the_warning_is_a_user_warning_that_can_be_silenced(strict):
    assert issubclass(DroppedWriteWarning, UserWarning)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nnx.errors.DroppedWriteWarning)
        jax.jit(fresh(apply))(Model(), X)
