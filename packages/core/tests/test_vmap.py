"""vmap: axes of modules, what happens to the caller's objects, and what it says when it cannot."""

from __future__ import annotations

import gc
import inspect
import re
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli as nnx
from moduli import errors
from moduli.testing import assert_equal_graphs, assert_unchanged


class Affine(nnx.Module):
    def __init__(self, rngs: nnx.Rngs | None = None, size: int = 3):
        self.w = nnx.Param(
            jnp.arange(float(size)) if rngs is None else jax.random.normal(rngs.params(), (size,))
        )
        self.b = nnx.BatchStat(jnp.array(1.0))
        self.calls = nnx.Variable(jnp.array(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        self.calls.value += 1
        return (x * self.w).sum() + self.b


def stacked(count: int = 4) -> Affine:
    return nnx.vmap(Affine)(nnx.Rngs(0).split(count))


def one(models: nnx.Module, index: int) -> nnx.Module:
    graphdef, state = nnx.split(models)
    return nnx.merge(graphdef, jax.tree.map(lambda value: value[index], state))


X = jnp.arange(12.0).reshape(4, 3)


# -- axes ------------------------------------------------------------------------------------------


def test_a_mapped_module_is_as_many_modules_as_its_axis_is_long():
    models = stacked()
    assert models.w.shape == (4, 3) and models.b.shape == (4,)
    expected = jnp.stack([one(models, n)(X[n]) for n in range(4)])
    np.testing.assert_allclose(nnx.vmap(lambda m, x: m(x))(models, X), expected, rtol=1e-6)
    assert models.calls.value.tolist() == [1, 1, 1, 1]


def test_an_unmapped_module_is_one_for_all_elements():
    model = Affine()
    out = nnx.vmap(lambda m, x: m(x), in_axes=(None, 0))(model, X)
    np.testing.assert_allclose(out, X @ model.w.value + 1.0, rtol=1e-6)
    assert model.calls.value.tolist() == 1 and model.w.shape == (3,)


@pytest.mark.parametrize(
    "axes",
    [
        nnx.StateAxes({nnx.Param: 0, ...: None}),
        nnx.StateAxes([(nnx.PathContains("w"), 0), (..., None)]),
        nnx.StateAxes(nnx.State({"w": 0, "b": None, "calls": None})),
        nnx.State({"w": 0, "b": None, "calls": None}),
        nnx.State({"w": -2, "b": None, "calls": None}),
    ],
    ids=["kinds", "pairs", "state axes of a state", "state", "negative"],
)
def test_parts_of_a_module_may_have_axes_of_their_own(axes):
    model = Affine()
    model.w.value = jnp.stack([model.w.value, 2 * model.w.value])
    out = nnx.vmap(lambda m, x: m(x), in_axes=(axes, None))(model, X[0])
    np.testing.assert_allclose(out, [6.0, 11.0])
    assert model.calls.value.shape == () and int(model.calls) == 1


def test_prefix_gives_the_axes_of_every_value():
    model = Affine()
    model.w.value = jnp.stack([model.w.value] * 2)
    tree = {"model": model, "free": nnx.BatchStat(jnp.ones(2))}
    axes = nnx.prefix(tree, {nnx.Param: 0, ...: None})
    assert axes["model"]["w"] == 0 and axes["model"]["b"] is None and axes["free"] is None
    called = nnx.prefix(tree, lambda path, value: 0 if path[-1] in ("w", "free") else None)
    assert called["free"] == 0
    out = nnx.vmap(lambda t: t["model"](t["free"].value), in_axes=(called,))(
        {"model": model, "free": nnx.BatchStat(jnp.ones((2, 3)))}
    )
    np.testing.assert_allclose(out, [4.0, 4.0])


def test_other_axes_than_the_first():
    models = stacked()
    models.w.value = models.w.value.T
    axes = nnx.StateAxes({nnx.Param: 1, ...: 0})
    expected = jnp.stack([(X[n] * models.w.value[:, n]).sum() for n in range(4)]) + 1.0
    out = nnx.vmap(lambda m, x: m(x), in_axes=(axes, 1))(models, X.T)
    np.testing.assert_allclose(out, expected, rtol=1e-6)

    def double(m):
        m.w.value = 2 * m.w.value

    before = models.w.value
    nnx.vmap(double, in_axes=axes)(models)
    np.testing.assert_array_equal(models.w.value, 2 * before)


def test_new_modules_are_returned_under_the_axes_that_are_asked_for():
    axes = nnx.StateAxes({nnx.Param: 1, ...: 0})
    models = nnx.vmap(Affine, out_axes=axes)(nnx.Rngs(0).split(4))
    assert models.w.shape == (3, 4) and models.b.shape == (4,)
    np.testing.assert_array_equal(models.w.value.T, stacked().w.value)


def test_arguments_may_be_nested_named_and_defaults():
    models = stacked()

    def f(pair, x, *, scale, default):
        return pair["models"][0](x) * scale + default.b

    out = nnx.vmap(f, in_axes=({"models": 0}, 0))(
        {"models": (models,)}, X, scale=jnp.full(4, 2.0), default=nnx.vmap(Affine, axis_size=4)()
    )
    expected = [2 * one(models, n)(X[n]) + 1.0 for n in range(4)]
    np.testing.assert_allclose(out, jnp.stack(expected), rtol=1e-6)


def test_a_default_argument_that_holds_a_module_is_lifted():
    plain = Affine()

    def f(x, m=plain):
        return m(x)

    np.testing.assert_allclose(
        nnx.vmap(f, in_axes=0)(X, m=stacked()), nnx.vmap(f)(X, stacked()), rtol=1e-6
    )
    np.testing.assert_allclose(nnx.jit(f)(X[0]), plain.w.value @ X[0] + 1.0, rtol=1e-6)
    assert int(plain.calls) == 1


def test_keyword_arguments_take_the_axes_of_their_places():
    model = Affine()
    out = nnx.vmap(lambda m, x: m(x), in_axes=(None, 0))(x=X, m=model)
    np.testing.assert_allclose(out, X @ model.w.value + 1.0, rtol=1e-6)


def test_methods_bound_methods_and_modules():
    class Net(Affine):
        @nnx.vmap(in_axes=(None, 0))
        def rows(self, x):
            return self(x)

    net = Net()
    expected = X @ net.w.value + 1.0
    for call in (net.rows, nnx.vmap(net), nnx.vmap(net.__call__, in_axes=(0,))):
        np.testing.assert_allclose(call(X), expected, rtol=1e-6)
    assert int(net.calls) == 3


def test_axis_size_names_and_collectives():
    class Norm(nnx.Module):
        def __init__(self):
            self.mean = nnx.BatchStat(jnp.zeros(()))

        def __call__(self, x):
            self.mean.value = jax.lax.pmean(x, "batch")
            return x - self.mean

    norm = Norm()
    out = nnx.vmap(norm, axis_name="batch")(jnp.array([1.0, 3.0]))
    assert out.tolist() == [-1.0, 1.0] and float(norm.mean) == 2.0
    assert nnx.vmap(lambda: Affine(), axis_size=2)().w.shape == (2, 3)


# -- the caller's objects --------------------------------------------------------------------------


def test_structure_made_inside_is_seen_outside():
    def grow(m, x):
        m.child = Affine()
        m.child.w.value = x
        m.seen = nnx.Cache(x)
        m.note = "grown"
        del m.b

    models = stacked()
    nnx.vmap(grow)(models, X)
    assert models.child.w.shape == (4, 3) and models.note == "grown"
    np.testing.assert_array_equal(models.seen.value, X)
    assert not hasattr(models, "b")


def test_intermediates_of_an_unmapped_module_are_stacked():
    def look(m, x):
        m.seen = nnx.Intermediate((x,))
        return m(x)

    model = Affine()
    nnx.vmap(look, in_axes=(None, 0))(model, X)
    np.testing.assert_array_equal(model.seen.value[0], X)


def test_new_variables_take_the_axis_that_their_filter_gives():
    def grow(m, x):
        m.seen = nnx.Cache(x)

    models = stacked()
    nnx.vmap(grow, in_axes=(nnx.StateAxes({nnx.Cache: 1, ...: 0}), 0))(models, X)
    np.testing.assert_array_equal(models.seen.value, X.T)


def test_shared_references_stay_shared():
    class Tied(nnx.Module):
        def __init__(self):
            self.a = nnx.Param(jnp.arange(3.0))
            self.b = self.a

    def double(first, second):
        assert first is second and first.a is first.b
        first.a.value = 2 * first.b.value

    tied = Tied()
    nnx.vmap(double)(tied, tied)
    assert tied.a is tied.b and tied.a.value.tolist() == [0.0, 2.0, 4.0]


def test_an_argument_that_is_returned_is_the_callers_own_object():
    models = stacked()
    back, w = nnx.vmap(lambda m: (m, m.w))(models)
    assert back is models and w is models.w


def test_bare_arrays_and_pytrees_of_values_are_mapped():
    class Bare(nnx.Module):
        def __init__(self):
            self.array = jnp.arange(4.0)
            self.pair = nnx.Variable({"a": jnp.arange(4.0), "b": (jnp.ones((4, 2)),)})
            self.mixed = ("name", jnp.arange(4.0))

    def step(m):
        m.array = m.array + 1
        m.pair.value = {"a": m.pair.value["a"] * 2, "b": m.pair.value["b"]}
        return m.mixed[1] + m.pair.value["b"][0].sum()

    bare = Bare()
    assert nnx.vmap(step)(bare).tolist() == [2.0, 3.0, 4.0, 5.0]
    assert bare.array.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert bare.pair.value["a"].tolist() == [0.0, 2.0, 4.0, 6.0]


def test_an_exception_leaves_everything_as_it_was():
    def fail(m, x):
        m.w.value = x
        m.new = nnx.Param(x)
        raise RuntimeError("stop")

    models = stacked()
    with assert_unchanged(models), pytest.raises(RuntimeError, match="stop"):
        nnx.vmap(fail)(models, X)


def test_it_nests_and_agrees_with_loops():
    def loss(model, x):
        return nnx.remat(lambda m, x: jnp.tanh(m(x)))(model, x) ** 2

    def lossy(models, xs):
        per_example = nnx.vmap(loss, in_axes=(None, 0))
        return nnx.vmap(per_example, in_axes=(0, None))(models, xs).mean()

    models = stacked()
    eager = nnx.clone(models)
    value, grads = nnx.jit(lambda m, x: nnx.value_and_grad(lossy)(m, x))(models, X)
    terms = [loss(one(eager, n), x) for n in range(4) for x in X]
    np.testing.assert_allclose(value, jnp.stack(terms).mean(), rtol=1e-5)

    def by_hand(w):
        return (jnp.tanh(X @ w.T + 1.0) ** 2).mean()

    np.testing.assert_allclose(
        grads["w"].value, jax.grad(by_hand)(eager.w.value), rtol=1e-4, atol=1e-7
    )


def test_a_jitted_vmap_is_traced_once_and_keeps_nothing_alive():
    traces = []

    @nnx.jit
    def run(models, x):
        traces.append(1)
        return nnx.vmap(lambda m, x: m(x))(models, x)

    for _ in range(3):
        models = stacked()
        run(models, X)
    dead = weakref.ref(models), weakref.ref(models.w)
    del models
    gc.collect()
    assert len(traces) == 1 and [ref() for ref in dead] == [None, None]


# -- partition names -------------------------------------------------------------------------------


def test_the_name_of_the_axis_comes_and_goes_in_partition_names():
    class Named(nnx.Module):
        def __init__(self, rngs):
            value = jax.random.normal(rngs.params(), (3, 2))
            self.w = nnx.Param(value, out_sharding=("in", "out"))

    metadata = {nnx.PARTITION_NAME: "layers"}
    models = nnx.vmap(Named, transform_metadata=metadata)(nnx.Rngs(0).split(4))
    assert models.w.out_sharding == ("layers", "in", "out")
    seen = []

    def look(m):
        seen.append(m.w.out_sharding)
        m.w.value = m.w.value + 1

    nnx.vmap(look, transform_metadata=metadata)(models)
    assert seen == [("in", "out")] and models.w.out_sharding == ("layers", "in", "out")
    with pytest.raises(errors.StructureError, match=r"is named 'stages'.*but 'layers'"):
        nnx.vmap(look, transform_metadata={nnx.PARTITION_NAME: "stages"})(models)
    with pytest.raises(errors.StructureError, match="PARTITION_NAME"):
        nnx.vmap(look, transform_metadata={"partition": "stages"})


# -- errors ----------------------------------------------------------------------------------------


def error_of(call, kind=errors.StructureError):
    with pytest.raises(kind) as caught:
        call()
    return re.sub(r"made at [^()]*test_vmap", "made at test_vmap", str(caught.value))


def test_a_value_that_differs_under_none_is_named():
    model = Affine()

    def store(m, x):
        m.b.value = x.sum()

    with assert_unchanged(model):
        assert error_of(lambda: nnx.vmap(store, in_axes=(None, 0))(model, X)) == (
            f"vmap: the BatchStat (made at test_vmap.py:{made('b')}) at `b` of argument 0 is under "
            "the axis None, one for all elements, but got a value that differs between them; give "
            "it an axis (`moduli.StateAxes`), or reduce the value, as with "
            "`jax.lax.pmean(value, axis_name)`"
        )


def made(name: str) -> int:
    lines, start = inspect.getsourcelines(Affine.__init__)
    return start + next(n for n, text in enumerate(lines) if f"self.{name} =" in text)


@pytest.mark.parametrize("transform", [nnx.vmap, nnx.pmap])
def test_streams_that_do_not_tell_the_size_are_named(transform):
    text = error_of(lambda: transform(lambda rngs: rngs.params())(nnx.Rngs(params=0)))
    text = re.sub(r"test_vmap.py:\d+", "test_vmap.py", text)
    assert text.endswith(
        "give one of them an axis in in_axes, or pass axis_size (the RngKey (made at test_vmap.py) "
        "at `params/key` of argument 0 is one key, which is split for the elements but does not "
        "tell how many there are; an Rngs that does is `rngs.split(n)`)"
    )
    made = nnx.vmap(lambda rngs: rngs.params(), axis_size=3)(nnx.Rngs(params=0))
    assert (made == nnx.vmap(lambda rngs: rngs.params())(nnx.Rngs(params=0).split(3))).all()


def test_two_axes_for_one_variable_are_named():
    model = Affine()
    assert error_of(lambda: nnx.vmap(lambda a, b: None, in_axes=(0, None))(model, model)) == (
        "vmap: `b` of argument 0 and `b` of argument 1 are the same BatchStat (made at "
        f"test_vmap.py:{made('b')}), but in_axes gives it 0 there and None here; give both the same"
    )


def test_two_axes_by_filters_on_one_shared_variable_are_named():
    model = Affine()
    tied = nnx.Dict(a=model.w, b=model.w)
    axes = nnx.StateAxes({nnx.PathContains("a"): 0, ...: None})
    message = error_of(lambda: nnx.vmap(lambda m: None, in_axes=(axes,), axis_size=3)(tied))
    assert message.startswith("vmap: `a` of argument 0 and `b` of argument 0 are the same Param")
    assert message.endswith("but in_axes gives it 0 there and None here; give both the same")


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda m: nnx.vmap(lambda m, x: x)(stacked(), jnp.ones(5)),
            errors.ShapeError,
            "vmap: argument 1 has shape (5,), so size 5 along axis 0; but the BatchStat (made at "
            "test_vmap.py:{b}) at `b` of argument 0 has size 4",
        ),
        (
            lambda m: nnx.vmap(lambda m: m)(m),
            errors.ShapeError,
            "vmap: the BatchStat (made at test_vmap.py:{b}) at `b` of argument 0 has shape (), "
            "which has no axis 0 to map over; give it the axis None, or add the axis",
        ),
        (
            lambda m: nnx.vmap(lambda m: m, in_axes=None)(m),
            errors.StructureError,
            "vmap: no argument of {f} is mapped, so the size of the axis is unknown; give one of "
            "them an axis in in_axes, or pass axis_size",
        ),
        (
            lambda m: nnx.vmap(lambda m: m, in_axes=(0, 0))(m),
            errors.StructureError,
            "vmap: in_axes has 2 entries, but {f} was called with 1 positional arguments: (0, 0)",
        ),
        (
            lambda m: nnx.vmap(lambda m: m, in_axes="w")(m),
            errors.StructureError,
            "vmap: in_axes gives `b` of argument 0 the label 'w'; it must be an int or None",
        ),
        (
            lambda m: nnx.vmap(lambda m: m, in_axes=nnx.StateAxes({nnx.Param: 0}))(m),
            errors.StructureError,
            "vmap: in_axes[0]: no filter of StateAxes({{<class 'moduli.Param'>: 0}}) selects `b` "
            "(BatchStat); add `...: None` (or another label) as the last one",
        ),
        (
            lambda m: nnx.vmap(lambda m, x: (m, x), in_axes=(None, 0))(m, X),
            errors.StructureError,
            "vmap: out_axes returns the result[0] under 0, but it contains the BatchStat (made at "
            "test_vmap.py:{b}) at `b` of argument 0, which was passed under None; return it under "
            "the same, or return a copy (`moduli.clone`)",
        ),
        (
            lambda m: nnx.vmap(lambda x: {"a": x}, out_axes=(0, 1))(X),
            errors.StructureError,
            "vmap: out_axes is a tuple of [0, 1], but the value there is a dict of ['a']; give one "
            "label for the whole value, or one for each part",
        ),
        (
            lambda m: nnx.vmap((0, 1)),
            errors.StructureError,
            "vmap needs a callable; got a tuple. As a decorator with options write "
            "`@moduli.vmap(in_axes=...)`",
        ),
    ],
    ids=["sizes", "scalar", "unmapped", "count", "label", "filter", "alias", "out", "callable"],
)
def test_messages(call, kind, message):
    text = error_of(lambda: call(Affine()), kind)
    text = re.sub(r"<lambda>\.<locals>\.<lambda>|<lambda>", "{f}", text)
    assert text == message.format(b=made("b"), f="{f}")


def test_writing_a_module_that_was_not_passed_is_refused():
    model = Affine()

    def store(x):
        model.b.value = x

    with pytest.raises(errors.TraceError) as caught:
        nnx.vmap(store)(jnp.ones(3))
    text = str(caught.value)
    assert f"test_vmap.py:{made('b')}" in text
    assert "moduli.vmap of test_writing_a_module_that_was_not_passed_is_refused" in text
    assert_equal_graphs(model, Affine())
