"""The same programs under flax.nnx and under moduli: the same results, and the same left behind.

A program is a function of the library. What it returns is compared as a user sees it: values, kinds
of Variables, which attributes there are, and which of them are one object. Differences that are
meant stand at the end, with both behaviours.
"""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli as nnx
from moduli import errors

flax = pytest.importorskip("flax.nnx")
flax_errors = pytest.importorskip("flax.errors")
if not hasattr(flax, "with_rngs"):
    pytest.skip("this flax is before 0.12.8, with other defaults", allow_module_level=True)

X = jnp.linspace(-1.0, 1.0, 6).reshape(2, 3)
KERNEL = jnp.arange(6.0).reshape(3, 2) / 10
KERNELS = jnp.stack([KERNEL, KERNEL[::-1]])
SQUARES = jnp.stack([0.5 * jnp.eye(3), jnp.eye(3) + 0.1])

PROGRAMS: list[Any] = []


def program(function):
    """Marks a function of the library as one to run with both."""
    PROGRAMS.append(function)
    return function


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_the_same_as_flax(program):
    same(describe(nnx, program(nnx)), describe(flax, program(flax)))


def describe(lib, result):
    """What a user can see of a result, as plain data; an object met before is its number."""
    seen: dict[int, int] = {}

    def look(thing):
        if isinstance(thing, (lib.Pytree, lib.Variable)):
            if id(thing) in seen:
                return f"object {seen[id(thing)]}"
            seen[id(thing)] = len(seen)
        kind = type(thing).__name__
        if isinstance(thing, lib.Variable):
            return kind, look(thing.get_raw_value())
        if isinstance(thing, (lib.List, list, tuple)):
            return [kind, *map(look, thing)]
        if isinstance(thing, (lib.Dict, lib.State, dict)):
            items = dict(thing.items())
        elif isinstance(thing, lib.Pytree):
            items = {name: value for name, value in vars(thing).items() if name[0] != "_"}
        else:
            is_key = isinstance(thing, jax.Array) and jnp.issubdtype(
                thing.dtype, jax.dtypes.prng_key
            )
            return np.asarray(jax.random.key_data(thing)) if is_key else thing
        return kind, {name: look(items[name]) for name in sorted(items, key=str)}

    return look(result)


def same(ours, theirs, place="result"):
    assert type(ours) is type(theirs) or isinstance(ours, jax.Array), (place, ours, theirs)
    if isinstance(ours, dict):
        assert list(ours) == list(theirs), place
        for name in ours:
            same(ours[name], theirs[name], f"{place}.{name}")
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs), place
        for number, pair in enumerate(zip(ours, theirs, strict=True)):
            same(*pair, f"{place}[{number}]")
    elif isinstance(ours, (jax.Array, np.ndarray)):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype), place
        # sums that come close to 0 have no relative precision
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7, err_msg=place)
    else:
        assert ours == theirs, place


def layer(lib, kernel=KERNEL):
    """A parameter, a statistic and a counter; or several as one, along the first axes."""

    class Layer(lib.Module):
        def __init__(self, kernel):
            *many, _, size = kernel.shape
            self.kernel = lib.Param(kernel)
            self.mean = lib.BatchStat(jnp.zeros((*many, size)))
            self.calls = lib.Variable(jnp.zeros(many, jnp.int32))

        def __call__(self, x):
            y = jnp.tanh(x @ self.kernel[...])
            self.mean[...] = 0.5 * self.mean[...] + y.reshape(-1, y.shape[-1]).mean(0)
            self.calls[...] = self.calls[...] + 1
            return y

    return Layer(kernel)


def pair(lib, a, b):
    class Pair(lib.Module):
        def __init__(self, a, b):
            self.a, self.b = a, b

    return Pair(a, b)


def forward(model, x):
    return model(x)


def loss(model, x):
    return (model(x) ** 2).sum()


# -- jit -----------------------------------------------------------------------------------------


@program
def jit_calls_again_with_other_objects(lib):
    run, one, other = lib.jit(forward), layer(lib), layer(lib, KERNEL + 1)
    return [run(one, X), run(one, X + 1), run(other, X)], one, other


@program
def jit_with_static_arguments(lib):
    model = layer(lib)

    @partial(lib.jit, static_argnums=(1, -1))
    def run(model, names, x, last):
        return {name: model(x) * last for name in names}

    return run(model, ("a", "b"), X, 2), run(model, ("c",), X, 3), model


@program
def jit_with_keywords(lib):
    model = layer(lib)

    @partial(lib.jit, static_argnames="mode")
    def run(x, *, model, mode, by=1.0):
        return model(x) * by if mode == "on" else x

    return run(X, model=model, mode="on"), run(X, by=2.0, mode="on", model=model), model


@program
def jit_donates_arrays(lib):
    model, x = layer(lib, SQUARES[0]), X + 0.0
    y = lib.jit(forward, donate_argnums=1)(model, x)
    z = X + 0.0
    w = lib.jit(lambda model, z: model(z), donate_argnames="z")(model, z=z)
    return y, w, x.is_deleted(), z.is_deleted(), model


@program
def jit_donates_models(lib):
    model, kept = layer(lib), layer(lib, KERNEL + 1)
    model.kernel[...] = KERNEL + 0.0  # not the buffer that the tests share
    old = model.mean[...]
    run = lib.jit(lambda model, kept, x: model(x) + kept(x), donate_argnums=0)
    return run(model, kept, X), run(model, kept, X), old.is_deleted(), model, kept


@program
def jit_makes_and_removes_variables_and_modules(lib):
    model = pair(lib, layer(lib), layer(lib))

    @lib.jit
    def change(model):
        model.bias = lib.Param(model.a.kernel[...].sum(0))
        model.c = pair(lib, lib.BatchStat(jnp.zeros(1)), model.bias)
        model.again = model.a
        del model.b.mean
        del model.a.calls
        return model.bias, model.c

    return change(model), model


@program
def jit_replaces_and_moves_modules(lib):
    model = pair(lib, layer(lib), layer(lib, KERNEL + 1))
    a, kernel = model.a, model.b.kernel

    @lib.jit
    def swap(model):
        model.a, model.b = model.b, model.a
        model.a.kernel = lib.Param(model.a.kernel[...] * 2)
        model.b.mean = lib.Variable(model.b.mean[...] + 1)
        model.a.calls = model.b.calls

    swap(model)
    return model, a, kernel


@program
def jit_changes_containers(lib):
    model = pair(lib, lib.List([layer(lib), lib.Param(X)]), lib.Dict(one=layer(lib)))

    @lib.jit
    def change(model):
        model.a.append(lib.Param(X[0] + 1))
        model.a.append(model.b["one"])
        model.b["two"] = model.a[0]
        model.a[0] = layer(lib, KERNEL * 3)
        del model.b["one"]
        return model.a[0](X)

    return change(model), model


@program
def jit_changes_attributes_that_are_no_variables(lib):
    model = layer(lib)
    model.steps, model.array = 0, jnp.zeros(2)
    run = lib.jit(forward)

    @lib.jit
    def change(model):
        model.steps += 1
        model.name = f"step {model.steps}"
        model.array = model.array + model.steps

    change(model)
    y = run(model, X)
    change(model)
    return y, run(model, X), model


@program
def jit_keeps_shared_references(lib):
    model = pair(lib, layer(lib), layer(lib))
    model.b.kernel, model.me = model.a.kernel, model

    @lib.jit
    def run(model):
        model.a.kernel[...] = model.b.kernel[...] + 1
        return model.me.b.kernel[...]

    return run(model), run(model), model


@program
def jit_separates_and_ties_variables(lib):
    model = pair(lib, layer(lib), layer(lib, KERNEL + 1))
    model.b.mean = model.a.mean

    @lib.jit
    def run(model):
        model.b.mean = lib.BatchStat(model.a.mean[...] + 1)
        model.b.kernel = model.a.kernel

    run(model)
    model.a.kernel[...] = model.a.kernel[...] * 2
    return model


@program
def jit_with_the_same_module_twice(lib):
    model, other = layer(lib), layer(lib)

    @lib.jit
    def run(a, b, kernel):
        a.kernel[...] = a.kernel[...] + 1
        same = (a is b, a.kernel is kernel)
        return same, a(X) + b(X), kernel[...] + b.kernel[...]

    first = run(model, model, model.kernel)
    return first, run(model, other, other.kernel), run(model, other, model.kernel), model, other


@program
def jit_with_a_part_beside_the_whole(lib):
    model = pair(lib, layer(lib), layer(lib))

    @lib.jit
    def run(whole, part):
        part.calls[...] = part.calls[...] + whole.b.calls[...] + 1
        whole.c = part
        return part, whole.b is part

    return run(model, model.b), model


@program
def jit_returns_its_arguments_and_new_modules_of_them(lib):
    model, x = layer(lib), lib.Param(X)

    @lib.jit
    def run(model, x):
        model(x[...])
        return model, {"new": pair(lib, model, x), "x": x, "kernel": model.kernel, "none": None}

    return run(model, x), model, x


@program
def jit_of_pytrees_of_modules_and_variables(lib):
    models = {"a": (layer(lib), [layer(lib, KERNEL + 1)]), "b": lib.Param(X)}

    @lib.jit
    def run(models, more):
        (a, [b]), x = models["a"], models["b"]
        x[...] = a(x[...]) @ jnp.ones((2, 3)) + more[0]
        return [b(x[...]), (a, b)]

    return run(models, (1.0, None)), models


@program
def jit_with_modules_in_many_places(lib):
    models, last = [layer(lib, square) for square in SQUARES], layer(lib, SQUARES[0] + 1)

    @lib.jit
    def run(x, *models, by=None, **more):
        for model in models if by is None else (*models, by):
            x = model(x)
        more["last"].kernel[...] = more["last"].kernel[...] + x.sum()
        return x, by is more["last"]

    first = run(X, *models, last=last)
    return first, run(X, by=models[0], last=models[0]), models, last


@program
def jit_with_variables_shared_by_arguments(lib):
    a, b = layer(lib), layer(lib)
    b.kernel = a.kernel

    @lib.jit
    def run(a, b):
        a.kernel[...] = a.kernel[...] + 1
        b.mean, a.mean = a.mean, lib.BatchStat(X)
        return b.kernel[...], a.kernel is b.kernel

    return run(a, b), a, b


@program
def jit_of_values_that_are_no_arrays_or_change_their_shape(lib):
    model = layer(lib)
    model.tree = lib.Variable({"a": X, "b": [X[0], None]})
    model.number = lib.Variable(1)

    @lib.jit
    def run(model):
        tree = model.tree.get_value()
        model.tree.set_value({"a": tree["a"] + 1, "c": tree["b"]})
        model.number.set_value(model.number.get_value() + 1)
        model.kernel.set_value(model.kernel[...][:2])
        model.mean.set_value(model.mean[...].astype(jnp.int32))

    run(model)
    return model


@program
def jit_of_clone_pop_and_update(lib):
    a, b = layer(lib), layer(lib, KERNEL + 1)

    @lib.jit
    def run(a, b):
        copy = lib.clone(a)
        copy.kernel[...] = copy.kernel[...] * 2
        lib.update(a, lib.state(b, lib.Param))
        return copy, lib.pop(b, lib.BatchStat), lib.state(a)

    return run(a, b), a, b


@program
def jit_of_states(lib):
    model = layer(lib)
    state = lib.state(model, lib.Param)
    y = lib.jit(lambda state, x: x @ state["kernel"][...])(state, X)
    doubled = lib.jit(lambda state: jax.tree.map(lambda v: 2 * v, state))(state)
    lib.update(model, doubled)
    return y, doubled, model


@program
def jit_of_split_and_merge(lib):
    graphdef, params, rest = lib.split(layer(lib), lib.Param, ...)

    @lib.jit
    def run(params, rest, x):
        model = lib.merge(graphdef, params, rest)
        y = model(x)
        return y, lib.state(model, lib.BatchStat)

    return run(params, rest, X)


@program
def jit_of_methods(lib):
    class Model(lib.Module):
        def __init__(self):
            self.w = lib.Param(X)

        @lib.jit
        def scale(self, by):
            self.w[...] = self.w[...] * by
            return self.w[...].sum()

        @partial(lib.jit, static_argnames="count")
        def repeat(self, *, count):
            self.copies = lib.List([lib.Param(self.w[...]) for _ in range(count)])
            return self.scale(2.0)

    model = Model()
    return model.scale(3.0), model.repeat(count=2), Model.scale(model, 1.5), model


@program
def classes_and_their_methods(lib):
    class Model(lib.Module):
        def __init__(self, w):
            self.w = lib.Param(w)

        @classmethod
        @partial(lib.vmap, in_axes=(None, 0))
        def many(cls, w):
            return cls(w)

        @staticmethod
        @lib.jit
        def make(w):
            return Model(w * 2)

    return lib.jit(Model)(X), lib.vmap(Model)(KERNELS), Model.many(X), Model.make(X)


@program
def jit_in_jit(lib):
    model = pair(lib, layer(lib), lib.Param(X))
    inner = lib.jit(forward)

    @lib.jit
    def outer(model, x):
        y = inner(model.a, x)
        model.b = model.a.calls
        return y + inner(model.a, x)

    return outer(model, X), outer(model, X), model


@program
def jit_that_raises_changes_nothing(lib):
    model = layer(lib)

    @lib.jit
    def run(model):
        model.kernel[...] = model.kernel[...] + 1
        model.new = lib.Param(X)
        del model.mean
        raise KeyError("no")

    with pytest.raises(KeyError, match="no"):
        run(model)
    return model


@program
def jit_with_shardings(lib):
    mesh = jax.sharding.Mesh(jax.devices()[:2], ("i",))
    rows, whole = (jax.sharding.NamedSharding(mesh, spec) for spec in (jax.P("i"), jax.P()))
    model = layer(lib, SQUARES[0, :2])
    shardings = lib.StateSharding({lib.Param: rows, lib.BatchStat: whole, ...: None})
    run = lib.jit(forward, in_shardings=(shardings, rows), out_shardings=whole)
    y = run(model, X[:, :2])
    # what JAX chose where nothing was asked for is not compared: the counter, under None
    return y, str(y.sharding), [str(v[...].sharding) for v in (model.kernel, model.mean)], model


@program
def jit_makes_a_model_with_shardings(lib):
    mesh = jax.sharding.Mesh(jax.devices()[:2], ("i",))
    rows, whole = (jax.sharding.NamedSharding(mesh, spec) for spec in (jax.P(None, "i"), jax.P()))
    out = lib.StateSharding({lib.Param: rows, ...: whole})
    model = lib.jit(lambda kernel: layer(lib, kernel), out_shardings=out)(KERNEL)
    return model, [str(v[...].sharding) for v in (model.kernel, model.mean, model.calls)]


# -- vmap and pmap -------------------------------------------------------------------------------


@program
def vmap_over_a_module(lib):
    model = layer(lib, KERNELS)
    return lib.vmap(forward, in_axes=(0, None), out_axes=1)(model, X), model


@program
def vmap_over_other_axes(lib):
    model = pair(lib, lib.Param(jnp.stack([X, X + 1], 1)), lib.Param(jnp.stack([X, X - 1], 1)))

    @lib.vmap(in_axes=(1, -1), out_axes={"y": 2, "x": -1})
    def run(model, x):
        model.a[...] = model.a[...] * 2
        return {"y": model.a[...] + model.b[...], "x": x}

    return run(model, X[:, :2]), model


@program
def vmap_with_one_module_for_all(lib):
    model = layer(lib)

    @lib.vmap(in_axes=(None, 0), axis_name="rows")
    def run(model, x):
        y = x @ model.kernel[...]
        model.mean[...] = jax.lax.pmean(y, "rows")
        model.calls[...] = model.calls[...] + jax.lax.psum(1, "rows")
        return y - model.mean[...]

    return run(model, X), model


def part_axes(lib):
    return lib.StateAxes({lib.Param: None, ...: 0})


def mixed(lib, size=2):
    model = layer(lib)
    model.mean.set_value(jnp.zeros((size, 2)))
    model.calls.set_value(jnp.arange(size, dtype=jnp.int32))
    return model


@program
def vmap_with_axes_by_filters(lib):
    model = mixed(lib)
    return lib.vmap(forward, in_axes=(part_axes(lib), 0))(model, X), model


def takes_prefixes(lib):
    """flax takes what prefix returns only where no changes of structure are asked for."""
    return {"graph": True, "graph_updates": False} if lib is flax else {}


@program
def vmap_with_axes_by_prefix(lib):
    model = mixed(lib)
    axes = lib.prefix(model, {lib.Param: None, ...: 0})
    return lib.vmap(forward, in_axes=(axes, 0), **takes_prefixes(lib))(model, X), model


@program
def vmap_with_axes_by_a_state(lib):
    model = layer(lib, KERNELS)
    graphdef, state = lib.split(layer(lib, KERNELS))
    zeros = jax.tree.map(lambda v: 0, state, is_leaf=lambda v: isinstance(v, lib.Variable))
    y = lib.vmap(forward, in_axes=(lib.StateAxes(zeros), None))(model, X)

    @lib.vmap(in_axes=(0, None))
    def run(state, x):
        model = lib.merge(graphdef, state)
        return model(x), lib.state(model)

    return y, run(state, X), model, state


@program
def vmap_returns_modules_with_axes_by_filters(lib):
    axes = lib.StateAxes({lib.Param: 1, lib.PathContains("calls"): None, ...: 0})

    @lib.vmap(in_axes=1, out_axes=(axes, 0))
    def make(kernel):
        model = layer(lib, kernel)
        return model, model.mean

    return make(jnp.swapaxes(KERNELS, 0, 1))


@program
def vmap_makes_models(lib):
    make = lib.vmap(lambda kernel: pair(lib, layer(lib, kernel), lib.Param(kernel.sum())))
    return make(KERNELS)


@program
def vmap_over_attributes_that_are_arrays(lib):
    model = layer(lib, KERNELS)
    model.array, model.plain = X, np.ones((2, 2), np.float32)

    @lib.vmap
    def run(model):
        model.array = model.array * 2
        return model.array.sum() + model.plain.sum()

    return run(model), model


@program
def vmap_over_bare_variables(lib):
    sliced, one, tree = lib.Variable(X.T), lib.Variable(jnp.zeros(())), lib.Param({"a": X})

    @lib.vmap(in_axes=(0, None, 1))
    def run(sliced, one, tree):
        sliced[...] = sliced[...].sum()
        one[...] = one[...] + 2.0
        return sliced, tree.get_value()["a"]

    return run(sliced, one, tree), sliced, one


@program
def vmap_changes_structure(lib):
    model = layer(lib, KERNELS)

    @lib.vmap
    def change(model, x):
        model.last = lib.Variable(model(x))
        model.again = model.kernel
        del model.calls
        return model.last

    return change(model, X), model


@program
def vmap_keeps_shared_references(lib):
    model = pair(lib, layer(lib, KERNELS), layer(lib, KERNELS))
    model.b.kernel, model.me = model.a.kernel, model

    @lib.vmap
    def run(model, again, x):
        again.b.kernel[...] = again.b.kernel[...] + x.sum()
        return model.a(x), again.me

    return run(model, model, X), model


@program
def vmap_with_keywords_and_names_of_axes(lib):
    model = layer(lib, KERNELS)

    @lib.vmap(in_axes=(None, 0, 0), axis_name="i", axis_size=2)
    def run(x, model, by):
        return model(x) * by + jax.lax.axis_index("i").astype(by.dtype)

    return run(X, model, by=jnp.arange(2.0)), model


@program
def vmap_of_pytrees(lib):
    models = [layer(lib, KERNELS), (lib.Param(X), layer(lib))]

    @lib.vmap(in_axes=([0, (0, None)], None), out_axes=(0, 1))
    def run(models, x):
        a, (row, b) = models
        row[...] = row[...] + a.mean[...].sum()
        return a(x), row[...] @ b.kernel[...]

    return run(models, X), models


@program
def vmap_of_methods(lib):
    class Model(lib.Module):
        def __init__(self):
            self.w = lib.Param(X)

        @partial(lib.vmap, in_axes=(0, None))
        def __call__(self, x):
            self.w[...] = self.w[...] + x
            return self.w[...].sum()

    model = Model()
    return model(1.0), model(2.0), model


@program
def vmap_in_vmap(lib):
    model = layer(lib, KERNELS[:, None] * jnp.arange(1.0, 4.0)[:, None, None])
    each = lib.vmap(lib.vmap(forward, in_axes=(0, None)), in_axes=(0, 0))
    return each(model, jnp.stack([X, X + 1])), model


@program
def pmap_over_a_module(lib):
    model = layer(lib, KERNELS)
    run = lib.pmap(forward, in_axes=(0, None), axis_name="i")
    return run(model, X), run(model, X + 1), model


@program
def pmap_with_axes_by_filters(lib):
    model = mixed(lib)

    @lib.pmap(in_axes=(part_axes(lib), 0), axis_name="i")
    def run(model, x):
        y = model(x)
        model.kernel[...] = model.kernel[...] + jax.lax.pmean(y.sum(), "i")
        model.mean[...] = jax.lax.pmean(model.mean[...], "i")
        return y

    return run(model, X), model


@program
def pmap_and_scan_with_axes_by_prefix(lib):
    model, layers = mixed(lib), layer(lib, SQUARES)
    shared = lib.prefix(model, {lib.Param: None, ...: 0})
    sliced, options = lib.prefix(layers, {...: 0}), takes_prefixes(lib)
    y = lib.pmap(forward, in_axes=(shared, 0), **options)(model, X)
    axes = {"in_axes": (lib.Carry, sliced), "out_axes": lib.Carry}
    return y, lib.scan(lambda x, layer: layer(x), **axes, **options)(X, layers), model, layers


@program
def pmap_with_static_and_donated_arguments(lib):
    model = layer(lib, SQUARES + 0.0)

    old = model.kernel[...]

    @partial(
        lib.pmap, in_axes=(0, 1, None), static_broadcasted_argnums=2, donate_argnums=0, out_axes=1
    )
    def run(model, x, by):
        model.kernel[...] = model.kernel[...] * by
        return model(x)

    return run(model, X.T, 2), run(model, X.T, 3), old.is_deleted(), model


@program
def pmap_changes_structure(lib):
    model = layer(lib, KERNELS)

    @lib.pmap
    def run(model, x):
        model.last = lib.Variable(model(x))
        model.again = model.kernel
        return model.last

    return run(model, X), model


@program
def pmap_makes_models(lib):
    return lib.pmap(lambda kernel: layer(lib, kernel), axis_size=2)(KERNELS)


# -- scan ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("unroll", [1, 2])
def test_scan_over_layers(reverse, unroll):
    def scanned(lib):
        model = layer(lib, SQUARES)

        @lib.scan(in_axes=(lib.Carry, 0), out_axes=lib.Carry, reverse=reverse, unroll=unroll)
        def run(x, layer):
            return layer(x)

        return run(X, model), model

    same(describe(nnx, scanned(nnx)), describe(flax, scanned(flax)))


@program
def scan_with_a_carried_module(lib):
    model = layer(lib, SQUARES[0])

    @lib.scan(in_axes=(lib.Carry, 0), out_axes=(lib.Carry, 0))
    def run(carry, x):
        model, total = carry
        y = model(x)
        model.kernel[...] = model.kernel[...] * 0.5
        return (model, total + y.sum()), y

    return run((model, jnp.zeros(())), jnp.stack([X, X + 1, X - 1])), model


@program
def scan_with_parts_carried_by_filters(lib):
    model = layer(lib, SQUARES[0])
    axes = lib.StateAxes({lib.Param: None, ...: lib.Carry})

    @lib.scan(in_axes=(axes, lib.Carry, 0), out_axes=(lib.Carry, 0))
    def run(model, total, x):
        y = model(x)
        return total + y.sum(), y

    return run(model, jnp.zeros(()), jnp.stack([X, X + 1, X - 1])), model


@program
def scan_with_parts_sliced_by_filters(lib):
    model = layer(lib, SQUARES)
    model.mean.set_value(jnp.zeros(3))
    model.calls.set_value(jnp.zeros((), jnp.int32))
    axes = lib.StateAxes({lib.Param: 0, ...: lib.Carry})

    @lib.scan(in_axes=(axes, lib.Carry), out_axes=(lib.Carry, 1))
    def run(model, x):
        y = model(x)
        return y, y

    return run(model, X), model


@program
def scan_with_a_module_for_all_steps(lib):
    model = layer(lib)

    @lib.scan(in_axes=(None, 0), out_axes=0)
    def run(model, x):
        return x @ model.kernel[...]

    return run(model, X), model


@program
def scan_with_the_carry_alone(lib):
    model = layer(lib, SQUARES[0])

    @lib.scan(in_axes=lib.Carry, out_axes=lib.Carry, length=3)
    def run(carry):
        model, x = carry
        return model, model(x)

    return run((model, X)), model


@program
def scan_along_other_axes(lib):
    model = pair(lib, lib.Param(X), lib.Param(X.T))
    axes = lib.StateAxes({lib.PathContains("a"): 1, ...: 0})

    @lib.scan(in_axes=(lib.Carry, axes, 1), out_axes=(lib.Carry, {"y": 1}))
    def run(total, model, x):
        model.a[...] = model.a[...] + x
        return total + model.b[...].sum(), {"y": model.a[...] * model.b[...]}

    return run(jnp.zeros(()), model, X), model


@program
def scan_keeps_shared_references(lib):
    model = pair(lib, layer(lib, SQUARES), layer(lib, SQUARES + 1))
    model.b.kernel = model.a.kernel

    @lib.scan(in_axes=(lib.Carry, 0, 0), out_axes=lib.Carry)
    def run(x, model, again):
        again.b.kernel[...] = again.b.kernel[...] * 2
        return model.a(again.b(x))

    return run(X, model, model), model


@program
def scan_changes_structure_and_returns_slices(lib):
    model = layer(lib, SQUARES)

    @lib.scan(in_axes=(lib.Carry, 0), out_axes=(lib.Carry, 0))
    def run(x, layer):
        y = layer(x)
        layer.last, layer.again = lib.Variable(y), layer.kernel
        del layer.calls
        return y, layer

    return run(X, model), model


@program
def scan_makes_models(lib):
    axes = lib.StateAxes({lib.Param: 1, ...: 0})

    @lib.scan(in_axes=(lib.Carry, 0), out_axes=(lib.Carry, axes))
    def run(x, kernel):
        model = layer(lib, kernel)
        return model(x), model

    return run(X, SQUARES)


@program
def names_of_axes_come_and_go(lib):
    name = {"transform_metadata": {lib.PARTITION_NAME: "layers"}}
    seen = []

    def param(value, *names):
        return lib.Param(value, out_sharding=names, eager_sharding=False)

    def run(x, p):
        seen.append(p.get_metadata()["out_sharding"])
        return x

    p = param(KERNELS, "layers", "a", "b")
    lib.scan(run, in_axes=(lib.Carry, 0), out_axes=lib.Carry, **name)(X, p)
    made = lib.vmap(lambda value: param(value, "a", "b"), **name)(KERNELS)
    return seen, [p.get_metadata()["out_sharding"], made.get_metadata()["out_sharding"]]


@program
def scan_of_methods(lib):
    class Stack(lib.Module):
        def __init__(self):
            self.w = lib.Param(SQUARES)
            self.seen = lib.BatchStat(jnp.zeros(2))

        @partial(lib.scan, in_axes=(0, lib.Carry), out_axes=lib.Carry)
        def __call__(self, x):
            self.seen[...] = x.sum()
            return jnp.tanh(x @ self.w[...])

    model = Stack()
    return model(X), model


@program
def scan_in_scan(lib):
    model = layer(lib, SQUARES)
    inner = lib.scan(lambda x, layer: layer(x), in_axes=(lib.Carry, 0), out_axes=lib.Carry)

    @lib.scan(in_axes=(lib.Carry, 0), out_axes=(lib.Carry, 0))
    def outer(carry, by):
        model, x = carry
        x = inner(x, model) * by
        return (model, x), x.sum()

    return outer((model, X), jnp.arange(1.0, 4.0)), model


@program
def scan_of_training_steps(lib):
    model = layer(lib)

    @lib.jit
    @partial(lib.scan, in_axes=(lib.Carry, 0), out_axes=(lib.Carry, 0))
    def train(model, x):
        value, grads = lib.value_and_grad(loss)(model, x)
        model.kernel[...] = model.kernel[...] - 0.1 * grads["kernel"][...]
        return model, value

    returned, values = train(model, jnp.stack([X, X + 1, X - 1]))
    return values, returned, model


# -- shard_map -----------------------------------------------------------------------------------


@program
def shard_map_with_specs_by_filters(lib):
    mesh = jax.sharding.Mesh(jax.devices()[:2], ("i",))
    model = layer(lib, SQUARES[1][:2])
    specs = lib.StateSharding({lib.Param: jax.P("i"), ...: jax.P()})

    @partial(lib.shard_map, mesh=mesh, in_specs=(specs, jax.P(None, "i")), out_specs=jax.P())
    def run(model, x):
        y = jax.lax.psum(x @ model.kernel[...], "i")
        model.mean[...] = y.mean(0)
        model.kernel[...] = model.kernel[...] * 2
        return y

    return run(model, X[:, :2]), str(model.kernel[...].sharding), run(model, X[:, :2]), model


@program
def shard_map_and_jit_with_specs_by_prefix(lib):
    mesh = jax.sharding.Mesh(jax.devices()[:2], ("i",))
    model, other = layer(lib, SQUARES[1][:2]), layer(lib, SQUARES[0, :2])
    specs = lib.prefix(model, {lib.Param: jax.P("i"), ...: jax.P()})
    rows, whole = (jax.sharding.NamedSharding(mesh, spec) for spec in (jax.P("i"), jax.P()))
    shardings = lib.prefix(other, {lib.Param: rows, ...: whole})

    @partial(
        lib.shard_map,
        mesh=mesh,
        in_specs=(specs, jax.P(None, "i")),
        out_specs=jax.P(),
        **takes_prefixes(lib),
    )
    def run(model, x):
        model.mean[...] = jax.lax.psum(x @ model.kernel[...], "i").mean(0)
        return model.mean[...]

    again = lib.jit(
        forward, in_shardings=(shardings, rows), out_shardings=whole, **takes_prefixes(lib)
    )
    return run(model, X[:, :2]), again(other, X[:, :2]), model, other


@program
def shard_map_of_a_data_parallel_step(lib):
    mesh = jax.sharding.Mesh(jax.devices()[:2], ("i",))
    model = layer(lib)

    @lib.jit
    @partial(lib.shard_map, mesh=mesh, in_specs=(jax.P(), jax.P("i")), out_specs=jax.P("i"))
    def run(model, x):
        y = x @ model.kernel[...]
        model.mean[...] = jax.lax.pmean(y.mean(0), "i")
        model.calls[...] = model.calls[...] + 1
        return y

    return run(model, X), model


@program
def shard_map_makes_a_model(lib):
    mesh = jax.sharding.Mesh(jax.devices()[:2], ("i",))
    out = lib.StateSharding({lib.Param: jax.P("i"), lib.BatchStat: jax.P("i"), ...: jax.P()})
    make = lib.shard_map(
        lambda kernel: layer(lib, kernel), mesh=mesh, in_specs=jax.P("i"), out_specs=out
    )
    return make(SQUARES[0, :2])


# -- gradients of parts --------------------------------------------------------------------------


@program
def gradients_of_parts_of_several_arguments(lib):
    a, b = layer(lib), layer(lib, KERNEL.T)
    wrt = (lib.DiffState(0, lib.Param), 2, lib.DiffState(1, lib.BatchStat))

    @partial(lib.value_and_grad, argnums=wrt, has_aux=True)
    def run(a, b, x):
        y = b(a(x)) + b.mean[...]
        return (y**2).sum(), {"y": y, "calls": a.calls}

    return run(a, b, X), a, b


@program
def gradients_of_a_filtered_argument(lib):
    model = pair(lib, layer(lib), layer(lib, KERNEL.T))
    wrt = lib.DiffState(0, lib.All(lib.Param, lib.PathContains("b")))
    return lib.grad(lambda m, x: (m.b(m.a(x)) ** 2).sum(), argnums=wrt)(model, X), model


@program
def gradients_of_tied_parameters(lib):
    model = pair(lib, layer(lib), layer(lib))
    model.b.kernel = model.a.kernel
    grads = lib.grad(lambda m, x: (m.a(x) * m.b(x + 1)).sum())(model, X)
    return grads, model


@program
def gradients_of_pytrees_and_bare_variables(lib):
    models = {"a": layer(lib), "b": [layer(lib, KERNEL * 2), lib.Param(X)]}

    @partial(lib.grad, argnums=(0, 1))
    def run(models, p):
        a, (b, x) = models["a"], models["b"]
        return loss(a, x[...] * p[...]) + loss(b, p[...])

    return run(models, lib.Param(X + 1)), models


@program
def gradients_with_arrays_as_attributes(lib):
    model = layer(lib)
    model.array = KERNEL[0]
    return lib.grad(lambda m, x: (m(x) * m.array).sum())(model, X), model


@program
def gradients_and_changes_of_structure(lib):
    model = layer(lib)

    @lib.value_and_grad
    def run(model):
        y = model(X)
        model.last = lib.Variable(y)
        del model.calls
        return (y**2).sum()

    return run(model), model


# -- one in another ------------------------------------------------------------------------------


@program
def jit_of_grad_of_scan_over_vmap_of_remat(lib):
    models = layer(lib, SQUARES)

    def step(x, model):
        model.calls[...] = model.calls[...] + 1
        mapped = lib.vmap(
            lib.remat(lambda m, row: jnp.tanh(row @ m.kernel[...])), in_axes=(None, 0)
        )
        return mapped(model, x)

    @lib.jit
    @lib.value_and_grad
    def run(models, x):
        y = lib.scan(step, in_axes=(lib.Carry, 0), out_axes=lib.Carry)(x, models)
        models.last = lib.Variable(y)
        return (y**2).sum()

    first = run(models, X)
    return first, run(models, X + 1), models


@program
def vmap_of_grad_and_grad_of_vmap(lib):
    model = layer(lib, KERNELS)
    each = lib.vmap(lib.grad(loss), in_axes=(0, None))(model, X)
    total = lib.grad(lambda m, x: lib.vmap(loss, in_axes=(0, None))(m, x).sum())(model, X)
    return each, total, model


@program
def gradients_of_each_example(lib):
    model = layer(lib)

    @partial(lib.vmap, in_axes=(None, 0))
    def run(model, x):
        return lib.grad(lambda m, x: (jnp.tanh(x @ m.kernel[...]) ** 2).sum())(model, x)

    return run(model, X), model


@program
def gradients_through_a_custom_rule_in_jit(lib):
    model = pair(lib, lib.Param(KERNEL), lib.BatchStat(X))

    @lib.custom_vjp
    def f(model, x):
        model.b[...] = x * 2
        return x @ model.a[...]

    def forward_rule(model, x):
        return f(model, x), (model.a[...], x)

    def backward_rule(residuals, updates_and_g):
        kernel, _ = residuals
        (updates, _), g = updates_and_g
        return jax.tree.map(lambda v: v + 1.5, updates), g @ kernel.T

    f.defvjp(forward_rule, backward_rule)
    wrt = (lib.DiffState(0, ...), 1)
    run = lib.jit(lib.grad(lambda model, x: f(model, x).sum() + model.b[...].sum(), argnums=wrt))
    return run(model, X), model


@program
def control_flow_under_vmap(lib):
    model = layer(lib, KERNELS)
    model.count = lib.Variable(jnp.array([0.0, 3.0]))

    def count_up(model):
        model.count[...] = model.count[...] + 1
        return model

    def double(model):
        model.kernel[...] = model.kernel[...] * 2
        return model(X)

    @lib.vmap
    def run(model, choice):
        y = lib.cond(choice, double, lambda model: model(X) * 0, model)
        lib.while_loop(lambda model: model.count[...] < 5, count_up, model)
        return y, model.count[...]

    return run(model, jnp.array([True, False])), model


@program
def gradients_in_shard_map(lib):
    mesh = jax.sharding.Mesh(jax.devices()[:2], ("i",))
    model = pair(lib, layer(lib), layer(lib))
    model.b.kernel = model.a.kernel

    @lib.jit
    @partial(lib.shard_map, mesh=mesh, in_specs=(jax.P(), jax.P("i")), out_specs=jax.P())
    def run(model, x):
        grads = lib.grad(lambda m, x: jnp.tanh(x @ m.b.kernel[...]).sum())(model, x)
        model.a.kernel[...] = model.b.kernel[...] - jax.lax.pmean(grads["a"]["kernel"][...], "i")
        model.new = lib.Param(jnp.ones(2))
        return model.new

    return run(model, X), model


@program
def control_flow_in_scan_in_jit(lib):
    model = layer(lib, SQUARES[0])

    @lib.jit
    @partial(lib.scan, in_axes=(lib.Carry, 0), out_axes=(lib.Carry, 0))
    def run(carry, n):
        model, x = carry
        x = lib.cond(n % 2 == 0, forward, lambda model, x: x + model.mean[...], model, x)
        x, _ = lib.fori_loop(0, 2, lambda i, c: (c[1](c[0]), c[1]), (x, model))
        return (model, x), x.sum()

    return run((model, X), jnp.arange(3)), model


# -- random streams ------------------------------------------------------------------------------


def noisy(lib, rngs):
    class Noisy(lib.Module):
        def __init__(self, rngs):
            self.w = lib.Param(jax.random.normal(rngs.params(), (3,)))
            self.rngs = rngs.fork() if hasattr(rngs, "fork") else rngs

        def __call__(self, x):
            return self.w[...] * x + jax.random.normal(self.rngs.noise(), (3,))

    return Noisy(rngs)


@program
def streams_split_to_make_models(lib):
    rngs = lib.Rngs(0, noise=1)
    make = lib.split_rngs(splits=2)(lib.vmap(lambda rngs: noisy(lib, rngs)))
    models = make(rngs)
    out = lib.vmap(forward, in_axes=(0, None))(models, X[0])
    return out, models, rngs


@program
def streams_split_for_each_element(lib):
    model = noisy(lib, lib.Rngs(0, noise=1))
    axes = lib.StateAxes({lib.RngState: 0, ...: None})

    @lib.split_rngs(splits=2)
    @partial(lib.vmap, in_axes=(axes, 0))
    def run(model, x):
        return model(x) + model(x)

    return run(model, X), run(model, X), model


@program
def streams_of_some_names_split(lib):
    rngs = lib.Rngs(params=0, noise=1)
    axes = lib.StateAxes({"params": 0, ...: None})

    @lib.split_rngs(splits=2, only="params")
    @partial(lib.vmap, in_axes=(axes,))
    def run(rngs):
        return jax.random.normal(rngs.params(), (2,)), jax.random.normal(rngs.noise(), (2,))

    return run(rngs), run(rngs), rngs


@program
def streams_shared_on_purpose(lib):
    model = noisy(lib, lib.Rngs(0, noise=1))
    axes = lib.StateAxes({lib.RngState: None, ...: None})
    return lib.vmap(forward, in_axes=(axes, 0))(model, X), model


@program
def streams_split_for_each_step(lib):
    models = lib.vmap(lambda rngs: noisy(lib, rngs))(lib.Rngs(0, noise=1).split(2))

    @partial(lib.scan, in_axes=(lib.Carry, 0), out_axes=lib.Carry)
    def run(x, model):
        return model(x)

    return run(X[0], models), run(X[1], models), models


@program
def streams_carried_from_step_to_step(lib):
    model = noisy(lib, lib.Rngs(0, noise=1))
    axes = lib.StateAxes({lib.RngState: lib.Carry, ...: None})

    @partial(lib.scan, in_axes=(axes, 0), out_axes=0)
    def run(model, x):
        return model(x)

    return run(model, X), run(model, X), model


@program
def streams_split_around_a_scan(lib):
    model = noisy(lib, lib.Rngs(0, noise=1))
    axes = lib.StateAxes({lib.RngState: 0, ...: None})

    @lib.split_rngs(splits=2)
    @partial(lib.scan, in_axes=(axes, 0), out_axes=0)
    def run(model, x):
        return model(x)

    return run(model, X), model


@program
def streams_split_along_two_axes(lib):
    rngs, one = lib.Rngs(0), lib.Rngs(1)

    @lib.split_rngs(splits=(2, 3))
    @lib.vmap
    @lib.vmap
    def run(rngs):
        return jax.random.normal(rngs.noise(), (2,))

    @lib.split_rngs(splits=1, squeeze=True)
    @lib.jit
    def squeezed(rngs):
        return jax.random.normal(rngs.noise(), (2,))

    return run(rngs), squeezed(one), rngs, one


@program
def streams_in_vmap_in_scan_in_jit(lib):
    model = noisy(lib, lib.Rngs(0, noise=1))
    sliced = lib.StateAxes({lib.RngState: 0, ...: None})
    carried = lib.StateAxes({lib.RngState: lib.Carry, ...: None})

    @lib.jit
    def run(model, x):
        @lib.scan(in_axes=(carried, lib.Carry), out_axes=lib.Carry, length=2)
        def steps(model, x):
            with lib.split_rngs(model, splits=2):
                return lib.vmap(forward, in_axes=(sliced, 0))(model, x)

        return steps(model, x)

    return run(model, X), run(model, X), model


@program
def streams_in_jit(lib):
    model, rngs = noisy(lib, lib.Rngs(0, noise=1)), lib.Rngs(3)

    @lib.jit
    def run(model, rngs, x):
        model.more = rngs
        return model(x) + jax.random.uniform(rngs.other(), x.shape)

    return run(model, rngs, X), run(model, rngs, X), model, rngs


# -- programs made by chance ---------------------------------------------------------------------


def graph_by_chance(lib, chance):
    """A few modules with Variables, arrays and lists, shared references and cycles."""

    class Node(lib.Module):
        pass

    kinds = [lib.Param, lib.BatchStat, lib.Variable]
    nodes = [Node() for _ in range(chance.randint(2, 4))]
    values = [chance.choice(kinds)(jnp.arange(2.0) + n) for n in range(chance.randint(1, 4))]
    for node in nodes:
        for name in chance.sample("abcd", chance.randint(1, 3)):
            what = [chance.choice(values), chance.choice(values), chance.choice(nodes), jnp.ones(2)]
            setattr(node, name, chance.choice(what))
        if chance.random() < 0.5:
            node.items = lib.List([chance.choice(values), chance.choice(nodes)])
    return nodes[0]


def objects_below(lib, thing, found=None):
    found = {} if found is None else found
    if isinstance(thing, (lib.Module, lib.Variable)) and id(thing) not in found:
        found[id(thing)] = thing
        if isinstance(thing, lib.List):
            children = thing
        else:
            pairs = sorted(vars(thing).items()) if isinstance(thing, lib.Module) else ()
            children = [value for name, value in pairs if name[0] != "_"]
        for child in children:
            objects_below(lib, child, found)
    return list(found.values())


def changes_by_chance(lib, chance, root, x):
    """Writes, adds, moves, shares and removes; returns some of the objects."""
    returned = []
    for _ in range(chance.randint(2, 6)):
        objects = objects_below(lib, root)
        lists = [item for item in objects if isinstance(item, lib.List)]
        modules = [item for item in objects if isinstance(item, lib.Module)]
        nodes = [item for item in modules if not isinstance(item, lib.List)]
        values = [item for item in objects if isinstance(item, lib.Variable)]
        node, other = chance.choice(nodes), chance.choice(objects)
        names = sorted(name for name in vars(node) if name[0] != "_")
        what = chance.choice(["write", "write", "set", "set", "new", "remove", "static", "list"])
        if what == "write":
            for name in names:
                if isinstance(getattr(node, name), jax.Array):
                    setattr(node, name, getattr(node, name) * 2 + x)
            if values:
                one, another = chance.choice(values), chance.choice(values)
                one.set_value(another.get_value() * 2 + x)
        elif what == "set":
            setattr(node, chance.choice("ef"), other)
        elif what == "new":
            setattr(node, chance.choice("ef"), chance.choice([lib.Param(x * 2), type(root)()]))
        elif what == "remove" and names:
            delattr(node, chance.choice(names))
        elif what == "static":
            node.number = chance.randint(0, 9)
        elif lists:
            items = chance.choice(lists)
            items.append(other) if chance.random() < 0.5 or not len(items) else items.pop()
        if chance.random() < 0.2:
            returned.append(other)
    return returned, x.sum()


@pytest.mark.parametrize("seed", range(34, 54))
def test_changes_by_chance_are_those_of_flax_and_of_the_call_without_jit(seed):
    def run(lib, transform):
        root = graph_by_chance(lib, random.Random(seed))
        held = objects_below(lib, root)

        @transform
        def change(root, x):
            return changes_by_chance(lib, random.Random(seed + 1), root, x)

        return (change(root, jnp.ones(2)), root), held

    eager, held_of_eager = run(nnx, lambda f: f)
    ours, held = run(nnx, nnx.jit)
    theirs, _ = run(flax, flax.jit)  # which leaves what was taken out of the root as it was
    same(describe(nnx, ours), describe(flax, theirs))
    same(describe(nnx, (ours, held)), describe(nnx, (eager, held_of_eager)))


# -- what both refuse ------------------------------------------------------------------------------


def two_axes(lib):
    model = layer(lib, KERNELS)
    lib.vmap(lambda model, kernel: model(X), in_axes=(0, None))(model, model.kernel)


def two_axes_by_filters(lib):
    a, b = layer(lib, KERNELS), layer(lib, KERNELS)
    b.kernel = a.kernel
    axes = lib.StateAxes({lib.Param: None, ...: 0})
    lib.vmap(lambda a, b: a(X), in_axes=(0, axes))(a, b)


def no_axis(lib):
    lib.vmap(forward, in_axes=(lib.StateAxes({lib.Param: 0}), None))(layer(lib, KERNELS), X)


def one_value_from_many(lib):
    lib.vmap(forward, in_axes=(None, 0))(layer(lib), X)


def two_carries(lib):
    lib.scan(lambda a, b: (a, b), in_axes=(lib.Carry, lib.Carry), out_axes=(lib.Carry, 0))(X, X)


def a_write_to_what_was_not_passed(lib):
    model = layer(lib)
    lib.jit(lambda x: model(x))(X)


@pytest.mark.parametrize(
    "call",
    [
        two_axes,
        two_axes_by_filters,
        no_axis,
        one_value_from_many,
        two_carries,
        a_write_to_what_was_not_passed,
    ],
    ids=lambda call: call.__name__,
)
def test_what_flax_refuses_is_refused(call):
    with pytest.raises(errors.ModuliError):
        call(nnx)
    with pytest.raises((ValueError, flax_errors.TraceContextError)):
        call(flax)


# -- what is meant to differ: docs/decisions/0004-what-is-not-as-in-flax.md ------------------------


def test_streams_of_one_module_for_all_elements_are_split_where_flax_draws_one_number():
    """The same key for all elements is what flax does, and does in moduli who asks for it."""
    split = describe(flax, streams_split_for_each_element_once(flax))
    ours, theirs = noisy(nnx, nnx.Rngs(0, noise=1)), noisy(flax, flax.Rngs(0, noise=1))
    rows = nnx.vmap(forward, in_axes=(None, 0))(ours, X)
    rows_of_flax = flax.vmap(forward, in_axes=(None, 0))(theirs, X)
    noise, noise_of_flax = rows - ours.w[...] * X, rows_of_flax - theirs.w[...] * X
    np.testing.assert_allclose(noise_of_flax[0], noise_of_flax[1], rtol=1e-5)
    assert not np.isclose(noise[0], noise[1]).any()
    same(describe(nnx, (rows, ours)), split)  # what flax does when it is told to


def streams_split_for_each_element_once(lib):
    model = noisy(lib, lib.Rngs(0, noise=1))
    axes = lib.StateAxes({lib.RngState: 0, ...: None})
    run = lib.split_rngs(splits=2)(lib.vmap(forward, in_axes=(axes, 0)))
    return run(model, X), model


def test_a_mapped_stream_of_one_key_is_split_where_flax_raises():
    def build(lib):
        model = noisy(lib, lib.Rngs(0, noise=1))
        model.w.set_value(jnp.stack([model.w[...], model.w[...] + 1]))
        return model

    ours, theirs, split = build(nnx), build(flax), build(flax)
    with pytest.raises(ValueError, match="rank should be at least 1"):
        flax.vmap(forward)(theirs, X)
    rows = flax.split_rngs(splits=2)(flax.vmap(forward))(split, X)
    same(describe(nnx, (nnx.vmap(forward)(ours, X), ours)), describe(flax, (rows, split)))


def test_a_module_for_all_steps_sees_its_own_writes_where_flax_drops_them():
    def build(lib, axis):
        model = layer(lib, SQUARES[0])
        axes = lib.StateAxes({...: axis})
        return lib.scan(forward, in_axes=(axes, 0), out_axes=0)(model, X[:, None]), model

    _, dropped = build(flax, None)
    assert int(dropped.calls[...]) == 0
    same(describe(nnx, build(nnx, None)), describe(flax, build(flax, flax.Carry)))


def test_bound_methods_and_modules_are_lifted_where_flax_refuses_or_fails():
    ours, theirs = layer(nnx, SQUARES[0]), layer(flax, SQUARES[0])
    with pytest.raises(ValueError, match="bound methods"):
        flax.jit(theirs.__call__)
    with pytest.raises(flax_errors.TraceContextError):
        flax.jit(theirs)(X)
    got = nnx.jit(ours.__call__)(X), nnx.jit(ours)(X), nnx.scan(ours, in_axes=0, out_axes=0)(X)
    run = flax.jit(type(theirs).__call__)
    want = run(theirs, X), run(theirs, X), jnp.stack([run(theirs, X[n]) for n in range(2)])
    same(describe(nnx, (got, ours)), describe(flax, (want, theirs)))


def test_a_module_in_a_default_is_lifted_where_flax_refuses_the_write():
    def run(lib):
        model = layer(lib)
        return lib.jit(lambda x, model=model: model(x))(X), model

    with pytest.raises(flax_errors.TraceContextError):
        run(flax)
    model = layer(flax)
    same(describe(nnx, run(nnx)), describe(flax, (flax.jit(forward)(model, X), model)))


def test_keyword_only_arguments_are_mapped_where_flax_refuses_them():
    def run(lib, transform):
        model = layer(lib, KERNELS)
        return transform(lambda model, *, x: model(x))(model, x=jnp.stack([X, X])), model

    for name in ("vmap", "pmap"):
        with pytest.raises(TypeError):
            run(flax, getattr(flax, name))
        got = describe(nnx, run(nnx, getattr(nnx, name)))
        model = layer(flax, KERNELS)
        want = flax.vmap(forward)(model, jnp.stack([X, X]))
        same(got, describe(flax, (want, model)))


def test_metadata_set_in_a_program_stays_where_flax_drops_it():
    def run(lib):
        param = lib.Param(X, tag="before")

        @lib.jit
        def change(param):
            param.set_metadata(tag="after")
            return lib.Param(param[...], tag=param.tag)

        return change(param).tag, param.tag

    assert run(nnx) == ("after", "after")
    assert run(flax) == ("after", "before")


def test_values_that_were_not_written_stay_the_objects_that_they_were():
    """flax puts an array in their place, with the same value."""

    def run(lib):
        model = pair(lib, lib.Variable(np.ones(2, np.float32)), lib.Variable(2.5))
        plain = model.a.get_value()
        lib.jit(lambda model: model.b.get_value() * 2.0)(model)
        return model.a.get_value() is plain, isinstance(model.b.get_value(), float)

    assert run(nnx) == (True, True)
    assert run(flax) == (False, False)


def test_none_may_become_a_variable_where_flax_wants_it_declared():
    def run(lib):
        model = pair(lib, lib.Param(X), None)

        @lib.jit
        def change(model):
            model.b = lib.Param(model.a[...] + 1)

        change(model)
        return model

    with pytest.raises(ValueError, match="static attribute 'b'"):
        run(flax)
    np.testing.assert_array_equal(run(nnx).b[...], X + 1)


def test_a_variable_that_was_written_and_taken_out_keeps_the_value_where_flax_drops_it():
    def run(lib, transform):
        model = layer(lib, KERNELS)
        mean = model.mean

        @transform
        def change(model):
            model.mean[...] = model.mean[...] + 3
            del model.mean

        change(model)
        return float(mean[...][0, 0]), hasattr(model, "mean")

    for name in ("jit", "vmap"):
        assert run(nnx, getattr(nnx, name)) == (3.0, False)
        assert run(flax, getattr(flax, name)) == (0.0, False)


def test_a_carried_module_keeps_its_structure_where_flax_lets_some_changes_pass():
    """The body is traced once, so flax makes the change once, whatever steps would have done."""

    def run(lib):
        model = layer(lib, SQUARES[0])
        model.steps = 0

        @lib.scan(in_axes=(lib.Carry, 0), out_axes=(lib.Carry, 0))
        def body(model, x):
            model.steps += 1
            return model, model(x)

        body(model, X)
        return model.steps

    with pytest.raises(errors.StructureError, match="changes the attribute `steps`"):
        run(nnx)
    assert run(flax) == 1  # of two steps


def test_a_cached_partial_may_change_the_structure_where_flax_raises():
    def run(lib):
        model = layer(lib)

        @lib.jit
        def change(model):
            model.new = lib.Param(X)

        lib.cached_partial(change, model)()
        return model

    with pytest.raises(ValueError, match="not allowed"):
        run(flax)
    np.testing.assert_array_equal(run(nnx).new[...], X)
