"""A Variable in the place of an array gives what the array gives: value, dtype, weak type, type.

Each operation runs on the array and on Variables that show this array: a plain kind, kinds that
show their value through a hook or through ``get_value``. The stored value of these is another one,
so that an operation that passes the kind by is found out.
"""

from __future__ import annotations

import contextlib
import math
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli as nnx


class Doubled(nnx.Param):
    """Shows twice what it stores: exact, so that equal means equal."""

    def get_value(self, **kwargs):
        return super().get_value(**kwargs) * 2

    def set_value(self, value, **kwargs):
        super().set_value(value / 2, **kwargs)


class Slotted(Doubled):
    __slots__ = ()


class Reader:
    """A mixin, of no kind by itself."""

    def get_value(self, **kwargs):
        return super().get_value(**kwargs) * 2  # type: ignore[misc]


class Mixed(Reader, nnx.Param):
    pass


class Hooked(nnx.Param):
    def on_get_value(self, value):
        return value * 2

    def on_set_value(self, value):
        return value / 2


class Propertied(nnx.Param):
    @property
    def value(self):
        return super().value * 2

    @value.setter
    def value(self, value):
        self.set_value(value / 2)


def double(variable, value):
    return value * 2


KINDS = {
    "Param": nnx.Param,
    "get_value": lambda x: Doubled(half(x)),
    "inherited": lambda x: Slotted(half(x)),
    "mixin": lambda x: Mixed(half(x)),
    "hook method": lambda x: Hooked(half(x)),
    "hook metadata": lambda x: nnx.Param(half(x), on_get_value=double),
    "hooks metadata": lambda x: nnx.Param(half(x), on_get_value=(double,)),
    "property": lambda x: Propertied(half(x)),
}
SHOWN = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def half(x):
    """What shows as ``x`` when doubled: integers here are even."""
    return x / 2 if jnp.issubdtype(x.dtype, jnp.inexact) else x // 2


def same(got, want):
    """Asserts equal type, dtype, weak type, shape and elements."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert type(a) is type(b)
        if isinstance(b, (jax.Array, np.ndarray, np.generic)):
            assert a.dtype == b.dtype and a.shape == b.shape
            assert getattr(a, "weak_type", None) == getattr(b, "weak_type", None)
        np.testing.assert_array_equal(a, b)


def outcome(run):
    """Returns what a call gives, or the type of what it raises."""
    try:
        return run(), None
    except Exception as error:
        return None, type(error)


@contextlib.contextmanager
def mode(promotion, x64):
    with jax.numpy_dtype_promotion(promotion), jax.enable_x64(x64):
        yield


BINARY = "add sub mul truediv floordiv mod pow matmul".split()
OTHERS = {
    "int": lambda: 2,
    "float": lambda: 0.5,
    "np.float64": lambda: np.sqrt(2.0),
    "np.float32": lambda: np.float32(2),
    "np.int64": lambda: np.int64(3),
    "np.array": lambda: np.full((2, 2), 1.5),
    "np.array f4": lambda: np.full((2, 2), 1.5, np.float32),
    "np.array 0-d": lambda: np.array(1.5),
    "jax": lambda: jnp.full((2, 2), 3.0),
    "None": lambda: None,
    "list": lambda: [1.0, 2.0],
}
VALUES = {
    "float32": lambda: jnp.array([[1.0, 4.0], [2.0, 6.0]], jnp.float32),
    "bfloat16": lambda: jnp.array([[1.0, 4.0], [2.0, 6.0]], jnp.bfloat16),
    "weak": lambda: jnp.asarray(4.0),
}


@pytest.mark.parametrize(
    ("value", "promotion", "x64"),
    [("float32", "standard", True), ("bfloat16", "strict", False), ("weak", "standard", False)],
)
def test_operators_with_anything_on_either_side(value, promotion, x64):
    with mode(promotion, x64):
        x = VALUES[value]()
        for name in ("add", "matmul", "lt", "eq", "divmod", "and_"):
            function = divmod if name == "divmod" else getattr(operator, name)
            for other in OTHERS.values():
                y = other()
                v = nnx.Param(x)
                for got, want in (
                    (lambda: function(v, y), lambda: function(x, y)),
                    (lambda: function(y, v), lambda: function(y, x)),
                ):
                    result, error = outcome(got)
                    expected, expected_error = outcome(want)
                    assert error == expected_error, (name, y)
                    same(result, expected)


@SHOWN
def test_every_kind_in_every_operator(kind):
    x = jnp.array([[1.0, 4.0], [2.0, 6.0]])
    n = np.array([[1.0, 2.0], [3.0, 4.0]])
    for name in BINARY[:8] if kind is nnx.Param else ("sub", "matmul", "ge", "divmod"):
        function = divmod if name == "divmod" else getattr(operator, name)
        same(function(kind(x), n), function(x, n))
        same(function(n, kind(x)), function(n, x))
        same(function(kind(x), kind(x)), function(x, x))
        same(jax.jit(function)(n, kind(x)), jax.jit(function)(n, x))
    for function in (operator.neg, operator.pos, abs, round):
        same(function(kind(x)), function(x))
    i = jnp.array([2, 4])
    same(~kind(i), ~i)


READS = {
    "value": lambda v: v.value if isinstance(v, nnx.Variable) else v,
    "get_value": lambda v: v.get_value() if isinstance(v, nnx.Variable) else v,
    "ellipsis": lambda v: v[...],
    "item": lambda v: v[0, 1],
    "slice": lambda v: v[0, ::2],
    "mask": lambda v: v[jnp.array([True, False])],
    "index of a Variable": lambda v: (
        v[nnx.Variable(jnp.array(1))] if isinstance(v, nnx.Variable) else v[1]
    ),
    "iteration": lambda v: list(v),
    "unpacking": lambda v: [*v][::-1],
    "len": len,
    "in": lambda v: outcome(lambda: 4.0 in v),
    "reversed": lambda v: list(reversed(v)),
    "sum": sum,
    "method": lambda v: v.sum(axis=0),
    "property": lambda v: v.T,
    "shape": lambda v: (v.shape, v.ndim, v.size, v.nbytes),
    "dtype": lambda v: str(v.dtype),
    "at": lambda v: v.at[0].set(7.0),
    "astype": lambda v: v.astype(jnp.bfloat16),
    "tolist": lambda v: v.tolist(),
    "jnp": lambda v: jnp.sum(v, axis=1),
    "jnp.where": lambda v: jnp.where(v > 2, v, 0),
    "jnp.stack": lambda v: jnp.stack([v, v]),
    "jnp.einsum": lambda v: jnp.einsum("ij,kj->ik", v, v),
    "jnp.asarray": jnp.asarray,
    "jnp.array": lambda v: jnp.array(v, jnp.int32),
    "np.asarray": np.asarray,
    "np.asarray dtype": lambda v: np.asarray(v, np.float16),
    "np.array": np.array,
    "np.mean": np.mean,
    "np.sum": lambda v: np.sum(v, axis=0),
    "np.exp": np.exp,
    "np.add": lambda v: np.add(v, 1),
    "np.add left": lambda v: np.add(np.ones(2), v),
    "np.add out": lambda v: np.add(np.ones((2, 2)), v, out=np.zeros((2, 2))),
    "np.stack": lambda v: np.stack([v, v]),
    "np.where": lambda v: np.where(np.asarray(v) > 2, v, 0),
    "np.matmul": lambda v: np.matmul(v, np.ones(2)),
    "np.linalg": lambda v: np.linalg.inv(v),
    "np.float32 on the left": lambda v: np.float32(2) * v,
    "np.float64 on the left": lambda v: np.sqrt(2.0) * v,
    "array on the left": lambda v: np.ones((2, 2)) @ v,
    "array compared": lambda v: np.full((2, 2), 3.0) < v,
    "device_put": lambda v: jnp.asarray(jax.device_put(v)),
    "vmap": lambda v: jax.vmap(lambda row: row * 2)(v),
    "scan": lambda v: jax.lax.scan(lambda c, row: (c + row, c * row), jnp.ones(2), v[...]),
    "grad": lambda v: jax.grad(lambda x: (x * v).sum())(jnp.ones((2, 2))),
    "jit closure": lambda v: jax.jit(lambda: np.ones((2, 2)) @ v)(),
}


@SHOWN
@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_whatever_shows_the_value_shows_what_the_kind_shows(kind, read):
    x = jnp.array([[2.0, 4.0], [8.0, 6.0]])
    same(read(kind(x)), read(x))


TRACED = {
    "left": lambda v: np.sqrt(2.0) * v,
    "array left": lambda v: np.ones((2, 2), np.float32) + v,
    "matmul": lambda v: np.ones((2, 2)) @ v,
    "compared": lambda v: np.ones((2, 2)) < v,
    "np.mean": lambda v: np.mean(v),
    "jnp": lambda v: jnp.exp(v),
    "index": lambda v: v[0] * v[1, 1],
    "method": lambda v: v.T.reshape(-1),
    "iteration": lambda v: sum(v),
    "round": round,
}


@pytest.mark.filterwarnings("ignore::moduli.errors.RecompilationWarning")  # fresh lambdas
@SHOWN
@pytest.mark.parametrize("run", TRACED.values(), ids=TRACED)
def test_traced_as_an_argument_and_from_a_closure(kind, run):
    x = jnp.array([[1.0, 4.0], [2.0, 6.0]])
    want = jax.jit(run)(x)
    v = kind(x)
    same(jax.jit(run)(v), want)
    same(nnx.jit(run)(v), want)
    same(jax.jit(lambda: run(v))(), jax.jit(lambda: run(x))())
    same(nnx.jit(lambda: run(v))(), jax.jit(lambda: run(x))())
    box = nnx.Dict(inner=nnx.List([v]))
    same(nnx.jit(lambda box: run(box.inner[0]))(box), want)


@pytest.mark.parametrize("function", [np.exp, lambda v: np.add(v, 1), np.asarray])
def test_numpy_functions_of_a_traced_variable_are_jax_errors(function):
    with pytest.raises(jax.errors.TracerArrayConversionError):
        jax.jit(lambda v: function(v))(nnx.Param(jnp.ones(2)))


@SHOWN
def test_gradients_are_those_of_what_is_stored(kind):
    x, c = jnp.array([[1.0, 4.0], [2.0, 6.0]]), np.array([[1.0, 2.0], [3.0, 4.0]])
    factor = 1.0 if kind is nnx.Param else 2.0
    for run in (lambda v: (c * v).sum(), lambda v: (v @ np.eye(2) * c).sum()):
        for grad in (jax.grad, nnx.grad):
            got = grad(run)(kind(x))
            np.testing.assert_allclose(got.raw_value, factor * c, rtol=1e-6)
        model = nnx.Dict(w=kind(x))
        got = nnx.grad(lambda model: run(model.w))(model)
        np.testing.assert_allclose(jax.tree.leaves(got)[0], factor * c, rtol=1e-6)


def test_augmented_assignment_of_an_array_gives_an_array():
    v = nnx.Param(jnp.array([1.0, 2.0]))
    array = np.ones(2, np.float32)
    array += v
    same(array, jnp.array([2.0, 3.0]))
    same(v.value, jnp.array([1.0, 2.0]))


@pytest.mark.parametrize("kind", ["Param", "get_value", "inherited", "hook method", "property"])
@pytest.mark.parametrize(
    "write",
    [
        lambda v: v.set_value(v.get_value() * 2 + 1),
        lambda v: setattr(v, "value", v.value * 2 + 1),
        lambda v: v.__setitem__(..., v[...] * 2 + 1),
        lambda v: operator.iadd(operator.imul(v, 2), np.float32(1)),
        lambda v: [v.__setitem__(i, v[i] * 2 + 1) for i in range(2)],
        lambda v: v.__setitem__(slice(None), 2 * v + 1),
        lambda v: v.set_value(v.at[0].multiply(2)[0] + 1, index=0) or v.__setitem__(1, 13.0),
    ],
    ids=["set_value", "value", "ellipsis", "augmented", "items", "slice", "index"],
)
def test_what_is_written_is_what_is_read(kind, write):
    if kind == "property" and "setattr" not in write.__code__.co_names:
        return  # a property is what `.value =` writes; the other spellings are set_value's
    v = KINDS[kind](jnp.array([[1.0, 4.0], [2.0, 6.0]]))
    write(v)
    if write.__code__.co_names.count("multiply"):
        same(v.value, jnp.array([[3.0, 9.0], [13.0, 13.0]]))
    else:
        same(v.value, jnp.array([[3.0, 9.0], [5.0, 13.0]]))


def test_hooks_of_a_write_see_what_is_written():
    """The elements that stay have been through the hooks already."""
    v = nnx.Param(jnp.array([1.0, 2.0]), on_set_value=lambda v, x: x * 10)
    v[0] = 3.0
    same(v.raw_value, jnp.array([30.0, 2.0]))
    v[...] = 1
    same(v.raw_value, jnp.array([10.0, 10.0]))
    unit = nnx.Param(jnp.array([3.0, 4.0]), on_set_value=lambda v, x: x / jnp.linalg.norm(x))
    unit[...] = unit * 1
    np.testing.assert_allclose(unit.value, [0.6, 0.8], rtol=1e-6)


def test_the_stored_value_passes_every_hook_by():
    for kind in list(KINDS.values())[1:]:
        v = kind(jnp.array([2.0, 4.0]))
        for raw in (v.raw_value, v.get_raw_value(), jax.tree.leaves(v)[0], v.copy().raw_value):
            same(raw, jnp.array([1.0, 2.0]))
        v.set_raw_value(jnp.array([5.0]))
        same(v.value, jnp.array([10.0]))


def test_a_kind_that_raises_is_not_hidden_behind_a_missing_attribute():
    class Broken(nnx.Param):
        def get_value(self, **kwargs):
            raise AttributeError("no such table")

    with pytest.raises(AttributeError, match="no such table"):
        _ = Broken(1.0).value


SCALARS = [2.5, 3, True, jnp.array(2.5), jnp.array(7), np.float32(1.5), np.array(4)]


@pytest.mark.parametrize("value", SCALARS, ids=repr)
def test_scalars_of_any_type(value):
    v = nnx.Variable(value)
    for run in (
        float,
        int,
        bool,
        complex,
        round,
        math.floor,
        math.ceil,
        math.sqrt,
        operator.index,
        abs,
        lambda x: round(x, 1),
        lambda x: f"{x:.3f}",
        lambda x: [10, 20, 30, 40, 50, 60, 70, 80][x],
        lambda x: list(range(x)),
        lambda x: np.float64(2) * x,
        lambda x: 2 * x,
        lambda x: x**2,
        lambda x: len(x),
        lambda x: np.asarray(x),
    ):
        result, error = outcome(lambda run=run: run(v))
        expected, expected_error = outcome(lambda run=run: run(value))
        assert error == expected_error
        same(result, expected)
