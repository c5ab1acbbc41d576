"""The protocols by which other libraries read arrays: DLPack, ``__array__``, namespaces."""

from __future__ import annotations

import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli as nnx
from moduli.errors import VariableError


class Doubled(nnx.Param):
    def get_value(self, **kwargs):
        return super().get_value(**kwargs) * 2


KINDS = {
    "Param": nnx.Param,
    "BatchStat": nnx.BatchStat,
    "get_value": lambda x: Doubled(x / 2),
    "hook": lambda x: nnx.Param(x / 2, on_get_value=lambda v, value: value * 2),
}
KIND = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@KIND
def test_dlpack(kind):
    x = jnp.arange(6.0).reshape(2, 3)
    v = kind(x)
    for read in (np.from_dlpack, jnp.from_dlpack):
        got, want = read(v), read(x)
        assert type(got) is type(want) and got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)
    assert v.__dlpack_device__() == x.__dlpack_device__()
    torch = pytest.importorskip("torch")
    np.testing.assert_array_equal(torch.from_dlpack(v).numpy(), x)
    np.testing.assert_array_equal(torch.from_dlpack(nnx.Param(np.asarray(x).copy())).numpy(), x)


@KIND
def test_the_namespace_is_that_of_the_array(kind):
    x = jnp.arange(3.0)
    assert kind(x).__array_namespace__() is x.__array_namespace__()
    assert nnx.Param(np.ones(2)).__array_namespace__() is np


@KIND
@pytest.mark.parametrize("dtype", [None, np.float32, np.float64, np.float16, np.int32, "bfloat16"])
@pytest.mark.parametrize("copy", [None, True, False])
def test_array_with_dtype_and_copy(kind, dtype, copy):
    x = jnp.arange(4.0)
    dtype = jnp.dtype(dtype) if dtype else None
    v = kind(x)
    try:
        want = np.asarray(x, dtype=dtype, copy=copy)
    except ValueError:
        with pytest.raises(ValueError, match="copy"):
            np.asarray(v, dtype=dtype, copy=copy)
        return
    got = np.asarray(v, dtype=dtype, copy=copy)
    assert type(got) is np.ndarray and got.dtype == want.dtype
    np.testing.assert_array_equal(got, want)


def test_a_copy_of_a_numpy_value_is_one_and_a_view_is_none():
    held = np.ones(3)
    v = nnx.Variable(held)
    assert np.asarray(v) is held and np.asarray(v, copy=False) is held
    np.array(v)[0] = 5.0
    assert held[0] == 1.0
    with pytest.raises(ValueError, match="copy"):
        np.asarray(v, dtype=np.float32, copy=False)
    with pytest.raises(ValueError, match="copy"):
        np.asarray(nnx.Variable(2.0), copy=False)


def test_device_put_and_transfers_keep_the_kind():
    v = jax.device_put(nnx.Param(jnp.ones(2), tag="a"), jax.devices()[0])
    assert type(v) is nnx.Param and v.tag == "a" and v.devices() == {jax.devices()[0]}
    assert isinstance(jax.device_get(v).value, np.ndarray)


@pytest.mark.parametrize("function", [bool, int, float, complex, operator.index, len])
def test_conversions_of_what_has_no_single_element_are_errors_of_arrays(function):
    x = jnp.ones((2, 3)) if function is not len else jnp.ones(())
    with pytest.raises((TypeError, ValueError)) as want:
        function(x)
    with pytest.raises(type(want.value)) as got:
        function(nnx.Param(x))
    assert str(got.value) == str(want.value)


NO_ARRAYS = {
    "dict": (lambda: {"a": jnp.ones(2)}, "its value is a dict"),
    "ragged": (lambda: [jnp.ones(2), jnp.ones(3)], "its value is a list"),
    "None": (lambda: None, "its value is a NoneType"),
    "key": (lambda: jax.random.key(0), r"its value is a key<fry>.*jax\.random\.key_data"),
    "shape": (lambda: jax.ShapeDtypeStruct((2,), jnp.float32), "ShapeDtypeStruct.*no elements"),
}
READERS = {
    "np.asarray": np.asarray,
    "np.array": np.array,
    "np.exp": np.exp,
    "np.from_dlpack": np.from_dlpack,
    "jnp.from_dlpack": jnp.from_dlpack,
    "namespace": lambda v: v.__array_namespace__(),
    "jnp.asarray": jnp.asarray,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("value", NO_ARRAYS)
def test_what_is_no_array_is_named_with_its_place(value, reader):
    make, message = NO_ARRAYS[value]
    if reader in ("jnp.asarray", "namespace") and value == "key":
        return  # JAX takes arrays of keys
    model = nnx.Dict(inner=nnx.Dict(held=nnx.Cache(make())))
    with pytest.raises(VariableError, match=rf"(?s)the Cache at `inner/held` of Dict .*{message}"):
        READERS[reader](model.inner.held)


def test_a_traced_value_has_no_memory_to_share():
    with pytest.raises(jax.errors.ConcretizationTypeError):
        jax.jit(lambda v: np.from_dlpack(v))(nnx.Param(jnp.ones(2)))
    with pytest.raises(VariableError, match=r"read as DLPack: .* is traced here"):
        jax.jit(lambda v: v.__dlpack_device__())(nnx.Param(jnp.ones(2)))
    with pytest.raises(jax.errors.TracerArrayConversionError):
        jax.jit(lambda v: np.asarray(v))(nnx.Param(jnp.ones(2)))
