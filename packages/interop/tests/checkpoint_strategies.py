"""Random values, random nested States, and their bits."""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np
from hypothesis import strategies as st

import moduli as nnx

NATIVE = (
    "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64 "
    "complex128"
).split()
EXTENDED = (
    "bfloat16 float8_e4m3fn float8_e5m2 float8_e4m3b11fnuz float8_e4m3fnuz float8_e5m2fnuz "
    "float8_e3m4 float8_e4m3 float8_e8m0fnu float4_e2m1fn float6_e2m3fn float6_e3m2fn int2 int4 "
    "uint2 uint4"
).split()
JAX = "bool int8 int16 int32 uint8 uint16 uint32 float16 float32 complex64 bfloat16".split() + [
    "float8_e4m3fn",
    "float8_e5m2",
    "int4",
    "uint4",
]


class Pair(NamedTuple):
    """A named tuple to store."""

    first: Any
    second: Any


def dtype_of(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name)) if name in EXTENDED else np.dtype(name)


def random_array(dtype: np.dtype, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Random bits: every NaN payload, infinity, subnormal and negative zero can come up."""
    size = int(np.prod(shape, dtype=int)) * dtype.itemsize
    data = np.random.default_rng(seed).integers(0, 256, size, np.uint8)
    if dtype.name == "bool":
        data %= 2
    elif "int2" in dtype.name or "int4" in dtype.name:
        data = data.astype(dtype).view(np.uint8)
    elif "4_e" in dtype.name or "6_e" in dtype.name:
        data %= 16
    return np.frombuffer(data.tobytes(), dtype).reshape(shape).copy()


shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
seeds = st.integers(0, 2**32 - 1)
names = st.one_of(st.text(max_size=6), st.integers(-5, 10**20))
keys = st.one_of(names, st.lists(names, max_size=3).map(tuple), st.tuples(st.tuples(names), names))
numpy_arrays = st.builds(
    random_array, st.sampled_from(NATIVE + EXTENDED).map(dtype_of), shapes, seeds
)
jax_arrays = st.builds(
    lambda name, shape, seed: jax.numpy.asarray(random_array(dtype_of(name), shape, seed)),
    st.sampled_from(JAX),
    shapes,
    seeds,
)
prng_keys = st.builds(
    lambda implementation, seed, shape: jax.random.split(
        jax.random.key(seed, impl=implementation), shape
    ),
    st.sampled_from(["threefry2x32", "rbg", "unsafe_rbg"]),
    st.integers(0, 2**31 - 1),
    st.lists(st.integers(1, 2), max_size=2).map(tuple),
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.text(max_size=5),
    st.floats(allow_nan=True),
    st.binary(min_size=8, max_size=8).map(lambda data: struct.unpack("<d", data)[0]),
    st.complex_numbers(allow_nan=True),
)
leaves = st.one_of(
    numpy_arrays,
    jax_arrays,
    prng_keys,
    scalars,
    numpy_arrays.filter(lambda a: a.size).map(lambda array: array.reshape(-1)[0]),
)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.builds(Pair, inner, inner),
        st.dictionaries(keys, inner, max_size=3),
    ),
    max_leaves=4,
)
kinds = st.sampled_from([nnx.Param, nnx.BatchStat, nnx.Intermediate, nnx.RngCount, nnx.Variable])
boxes = st.one_of(
    st.builds(lambda kind, value: kind(value), kinds, values), numpy_arrays, jax_arrays
)
states = st.dictionaries(
    keys,
    st.recursive(
        boxes,
        lambda inner: st.dictionaries(keys, inner, min_size=1, max_size=3),
        max_leaves=4,
    ),
    min_size=1,
    max_size=3,
).map(nnx.State)


def bits(value: Any) -> Any:
    """What a value is, to the bit, as plain comparable data. Named tuples count as tuples."""
    if isinstance(value, nnx.Variable):
        return (type(value).__name__, bits(value.get_raw_value()))
    if isinstance(value, jax.Array):
        if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
            return ("key", str(value.dtype), bits(jax.random.key_data(value)))
        array = np.asarray(value)
        return ("jax", array.dtype.name, array.shape, value.weak_type, array.tobytes())
    if isinstance(value, (np.ndarray, np.generic)):
        kind = "numpy" if isinstance(value, np.ndarray) else "scalar"
        return (kind, value.dtype.name, value.shape, value.tobytes())
    if isinstance(value, float):
        return struct.pack("<d", value)
    if isinstance(value, complex):
        return struct.pack("<dd", value.real, value.imag)
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return ("tuple", *map(bits, value))
    if isinstance(value, list):
        return list(map(bits, value))
    return (type(value).__name__, value)


def state_bits(state: nnx.State) -> dict[Any, Any]:
    """Path -> bits of every leaf."""
    return {path: bits(leaf) for path, leaf in nnx.to_flat_state(state).items()}
