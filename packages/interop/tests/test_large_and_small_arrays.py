"""Large arrays, and very many small ones: what saving and loading them fast must not change."""

from __future__ import annotations

import json
import os
import pathlib
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import moduli as nnx
from moduli_interop import (
    Checkpoint,
    CorruptCheckpointError,
    Leaf,
    StoredArray,
    StoredNamedTuple,
    encode_manifest,
    load_state,
    save,
)
from moduli_interop import _reading as reading
from moduli_interop._safetensors import Spec, layout

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
keys = st.recursive(st.integers() | names, lambda key: st.tuples(key, key), max_leaves=3)
arrays = st.builds(
    StoredArray,
    st.sampled_from(["float32", "bfloat16", "bool"]),
    st.lists(st.integers(0, 9), max_size=3).map(tuple),
    st.sampled_from(["jax", "numpy"]),
    st.booleans(),
    st.none() | st.just("threefry2x32"),
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.complex_numbers() | names
values = st.recursive(
    arrays | scalars,
    lambda v: st.one_of(
        st.lists(v, max_size=3),
        st.lists(v, max_size=3).map(tuple),
        st.dictionaries(keys, v, max_size=3),
        st.builds(StoredNamedTuple, names, st.just(("a", "b")), st.tuples(v, v)),
    ),
    max_leaves=5,
)
paths = st.lists(keys, min_size=1, max_size=3).map(tuple)
leaves = st.builds(
    Leaf, paths, names, st.none() | names, values, st.lists(paths, max_size=2).map(tuple)
)


@given(st.lists(leaves, max_size=4), st.dictionaries(names, st.integers()))
def test_the_text_of_a_manifest_is_what_json_writes_of_its_content(found, metadata) -> None:
    text, stored = encode_manifest(Checkpoint(tuple(found), metadata, "0.1.0"))
    content = json.loads(text)
    assert json.dumps(content, separators=(",", ":")) == text
    assert [_tuples(leaf["path"]) for leaf in content["leaves"]] == [leaf.path for leaf in found]
    assert [leaf["kind"] for leaf in content["leaves"]] == [leaf.kind for leaf in found]
    records = [record for leaf in content["leaves"] for record in _records(leaf["value"])]
    assert [record["member"] for record in records] == list(stored)
    for record, array in zip(records, stored.values(), strict=True):
        assert (record["dtype"], tuple(record["shape"])) == (array.dtype, array.shape)
        assert (record["weak_type"], record["key_impl"]) == (array.weak_type, array.key_impl)


def _tuples(path):
    return tuple(_tuples(part) if isinstance(part, list) else part for part in path)


def _records(value):
    ((kind, item),) = value.items()
    if kind == "array":
        yield item
    elif kind in ("tuple", "list", "dict", "namedtuple"):
        item = item["items"] if kind == "namedtuple" else item
        for child in [pair[1] for pair in item] if kind == "dict" else item:
            yield from _records(child)


@given(st.dictionaries(names, st.lists(st.integers(0, 9), max_size=3).map(tuple), max_size=5))
def test_the_text_of_a_header_is_what_json_writes_of_its_content(shapes) -> None:
    specs = [Spec(name, np.dtype("f4"), shape, lambda: None) for name, shape in shapes.items()]
    first, _ = layout(specs, {'"\\': "\N{SNOWMAN}"})
    content = json.loads(first[8:])
    again = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    assert first[8:].rstrip(b" ") == again
    del content["__metadata__"]
    assert {name: tuple(entry["shape"]) for name, entry in content.items()} == shapes


@pytest.fixture
def file(tmp_path: pathlib.Path) -> str:
    path = str(tmp_path / "many.safetensors")
    save(path, _many())
    return path


def _many() -> dict[str, jax.Array | np.ndarray]:
    rng = np.random.default_rng(0)
    found = {}
    for n in range(60):  # several dtypes, so that the file's order is not the model's
        dtype = (np.float32, np.int8, np.float16, jnp.bfloat16)[n % 4]
        array = rng.integers(0, 99, (n % 7, 3)).astype(dtype)
        found[f"x{n}"] = jnp.asarray(array) if n % 3 else array
    return found


@pytest.mark.parametrize("most", [1, 7, 1000])
@pytest.mark.parametrize("system", ["whole", "short", "none"])
def test_however_the_system_reads(file, monkeypatch, most, system) -> None:
    monkeypatch.setattr(reading, "_MOST_TOGETHER", most)
    if system == "none":
        monkeypatch.delattr(os, "preadv")
    elif system == "short":
        monkeypatch.setattr(os, "preadv", _short(os.preadv))
    found = load_state(file)
    for name, array in _many().items():
        assert type(found[name]) is type(array)
        np.testing.assert_array_equal(found[name], array)


def _short(preadv):
    """Gives at most five bytes at a time, as a file system in a network may."""

    def read(descriptor, buffers, offset):
        return preadv(descriptor, [memoryview(buffers[0])[:5]], offset)

    return read


def test_what_is_read_together_shares_no_memory(file) -> None:
    state = load_state(file)
    numpy = [x for x in state.values() if isinstance(x, np.ndarray) and x.size]
    assert len(numpy) > 9
    kept = [x.copy() for x in numpy]
    numpy[3][...] = 1
    del kept[3], numpy[3]
    for now, before in zip(numpy, kept, strict=True):
        np.testing.assert_array_equal(now, before)
        assert now.flags.writeable
        assert all(other is now or not np.shares_memory(now, other) for other in numpy)


def test_one_of_those_read_together_is_named_when_it_is_damaged(file) -> None:
    data = bytearray(pathlib.Path(file).read_bytes())
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    for name in ("x5", "x33", "x59"):
        begin, _ = header[name]["data_offsets"]
        bad = bytearray(data)
        bad[8 + length + begin] ^= 1
        pathlib.Path(file).write_bytes(bad)
        with pytest.raises(CorruptCheckpointError, match=f"damaged: `{name}`"):
            load_state(file)


def test_arrays_of_one_width_stay_in_the_order_of_the_model(tmp_path) -> None:
    path = tmp_path / "ordered.safetensors"
    model = nnx.Dict({name: nnx.Param(np.ones(2, np.float32)) for name in ("b", "a10", "a9")})
    save(path, model)
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    in_model = [".".join(map(str, key)) for key in nnx.to_flat_state(nnx.state(model)).paths]
    assert [name for name in header if name != "__metadata__"] == in_model


def test_a_large_array_is_in_memory_once_and_may_be_donated(tmp_path, monkeypatch) -> None:
    made = []
    empty = reading.aligned_empty
    monkeypatch.setattr(reading, "aligned_empty", lambda size: made.append(empty(size)) or made[-1])
    path = tmp_path / "large.safetensors"
    save(path, {"x": jnp.arange(1 << 16, dtype=jnp.float32)})
    x = load_state(path)["x"]
    assert [np.shares_memory(np.asarray(x), memory) for memory in made] == [True]
    assert not x.committed
    made.clear()
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    y = add(add(x))
    assert x.is_deleted()
    np.testing.assert_array_equal(y, np.arange(1 << 16) + 2)


def test_an_array_may_have_the_name_that_the_format_keeps_for_itself(tmp_path) -> None:
    path = tmp_path / "named.safetensors"
    save(path, {"__metadata__": jnp.arange(3), "x": jnp.ones(2)})
    assert load_state(path)["__metadata__"].tolist() == [0, 1, 2]


def test_array_that_another_thread_writes_into_is_saved_with_the_digest_of_what_was_saved(
    tmp_path: pathlib.Path,
) -> None:
    array, stop = np.zeros(2**24, np.uint8), threading.Event()

    def change() -> None:
        while not stop.is_set():
            np.add(array, 1, out=array)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(3):
            save(tmp_path / "a.safetensors", {"changing": array})
            load_state(tmp_path / "a.safetensors")
    finally:
        stop.set()
        thread.join()
