"""What is saved comes back bit by bit, whatever it is and wherever it stands."""

from __future__ import annotations

import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_strategies import (
    EXTENDED,
    NATIVE,
    Pair,
    bits,
    dtype_of,
    random_array,
    state_bits,
    states,
)
from hypothesis import HealthCheck, given, settings

import moduli as nnx
from moduli_interop import load, load_state, save

slow = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@slow
@given(states)
def test_any_state_comes_back_bit_by_bit(state: nnx.State) -> None:
    expected = state_bits(state)
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / "state.npz"
        save(path, state)
        again = load_state(path)
        copy = path.with_suffix(".again.npz")
        save(copy, again)
        assert state_bits(state) == expected  # saving changes nothing
        assert state_bits(again) == expected
        assert state_bits(load(path, _blank(state))) == expected


def _blank(state: nnx.State) -> nnx.State:
    """The same structure with other values."""

    def other(value: Any) -> Any:
        if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(
                jax.random.key_data(value) + 1, impl=str(jax.random.key_impl(value))
            )
        if isinstance(value, (jax.Array, np.ndarray)):
            return jnp.zeros_like(value) if isinstance(value, jax.Array) else np.zeros_like(value)
        return type(value)()

    def blank(path: Any, leaf: Any) -> Any:
        if not isinstance(leaf, nnx.Variable):
            return other(leaf)
        return leaf.replace(_blank_value(leaf.get_raw_value(), other))

    return nnx.map_state(blank, state)


def _blank_value(value: Any, other: Any) -> Any:
    if isinstance(value, tuple):
        items = [_blank_value(item, other) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, list):
        return [_blank_value(item, other) for item in value]
    if isinstance(value, dict):
        return {key: _blank_value(item, other) for key, item in value.items()}
    if value is None or isinstance(value, np.generic):
        return value
    return other(value)


@pytest.mark.parametrize("name", NATIVE + EXTENDED)
def test_every_dtype_as_numpy_array(name: str, file: pathlib.Path) -> None:
    array = random_array(dtype_of(name), (7, 5), 0)
    save(file, nnx.State({"x": array}))
    assert bits(load_state(file)["x"]) == bits(array)


@pytest.mark.parametrize(
    "bit_pattern", [0x7FC00000, 0x7FC12345, 0xFFC00001, 0x7F812345, 0x80000000, 0x00000001]
)
@pytest.mark.parametrize("weak", [False, True])
def test_nan_payloads_negative_zero_and_subnormals(
    bit_pattern: int, weak: bool, file: pathlib.Path
) -> None:
    value = np.array([bit_pattern], np.uint32).view(np.float32)
    with jax.enable_x64(False):  # else what is weak is float64
        array = jnp.full((1,), 0.0).at[...].set(value) if weak else jnp.asarray(value)
    save(file, nnx.State({"x": nnx.Param(array)}))
    loaded = load_state(file)["x"].value
    assert np.asarray(loaded).view(np.uint32).tolist() == [bit_pattern]
    assert loaded.weak_type is weak


def test_big_endian_and_strided_arrays_come_back_with_equal_values(file: pathlib.Path) -> None:
    array = np.arange(24, dtype=">f4").reshape(2, 3, 4)[:, ::2].T
    save(file, nnx.State({"x": array}))
    loaded = load_state(file)["x"]
    np.testing.assert_array_equal(loaded, array)
    assert loaded.dtype == np.dtype("float32")


def test_loaded_numpy_arrays_can_be_written(file: pathlib.Path) -> None:
    save(file, nnx.State({"x": np.zeros(3)}))
    loaded = load_state(file)["x"]
    loaded[0] = 1.0
    assert loaded.tolist() == [1.0, 0.0, 0.0]


def test_named_tuple_gets_its_class_from_the_model(file: pathlib.Path) -> None:
    save(file, nnx.State({"x": nnx.Variable(Pair(1, (2.0, "a")))}))
    model = nnx.State({"x": nnx.Variable(Pair(0, (0.0, "")))})
    assert load(file, model)["x"].value == Pair(1, (2.0, "a"))
    assert type(model["x"].value) is Pair
    assert load_state(file)["x"].value == (1, (2.0, "a"))


def test_paths_that_look_alike_stay_apart(file: pathlib.Path) -> None:
    state = nnx.State(
        {0: np.array(1), "0": np.array(2), "a": {"b": np.array(3)}, "a.b": np.array(4)}
    )
    save(file, state)
    assert {path: int(x) for path, x in nnx.to_flat_state(load_state(file)).items()} == {
        (0,): 1,
        ("0",): 2,
        ("a", "b"): 3,
        ("a.b",): 4,
    }


def test_equal_content_gives_equal_files(file: pathlib.Path) -> None:
    def content() -> bytes:
        save(file, nnx.State({"x": jnp.arange(5), "y": nnx.Param((1, 2.0))}), metadata={"a": 1})
        return file.read_bytes()

    assert content() == content()


def test_numpy_alone_can_read_the_arrays(file: pathlib.Path) -> None:
    model = nnx.Dict({"layers": nnx.List([nnx.Param(jnp.arange(6.0).reshape(2, 3))])})
    save(file, model)
    with np.load(file, allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["layers/0"], np.arange(6.0).reshape(2, 3))
        assert archive["moduli.checkpoint"] == b"moduli checkpoint, format 1\n"


def test_large_arrays_use_zip64(file: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moduli_interop._npz.write._ZIP64_FROM", -1)  # as if all were above 2 GiB
    save(file, nnx.State({"x": np.arange(5), "y": nnx.Param(1.5)}))
    assert load_state(file)["x"].tolist() == [0, 1, 2, 3, 4]
    with np.load(file) as archive:
        assert archive["x"].tolist() == [0, 1, 2, 3, 4]
