"""Our own reader and writer of safetensors, with the format's library as the reference."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest

from moduli_interop import CheckpointError
from moduli_interop._safetensors import SafetensorsFile, Spec, write
from moduli_interop._safetensors.dtypes import BITS, DTYPES
from moduli_interop._tensors.errors import TensorFileError

WHOLE = {tag: dtype for tag, dtype in DTYPES.items() if BITS[tag] == 8 * dtype.itemsize}
SHAPES = [(), (0,), (3,), (2, 3), (2, 0, 3), (4, 1, 2)]


def some(dtype, shape, seed=0):
    """Makes an array of any bits that the dtype has."""
    rng = np.random.default_rng(seed)
    nbytes = int(np.prod(shape)) * dtype.itemsize
    bits = rng.integers(0, 2 if dtype.kind == "b" else 256, nbytes, np.uint8)
    return bits.view(dtype).reshape(shape)


def specs(arrays):
    return [Spec(n, a.dtype, a.shape, lambda a=a: a) for n, a in arrays.items()]


def test_bits_are_those_that_the_library_reads_and_writes(tmp_path):
    library = pytest.importorskip("safetensors")
    numpy = pytest.importorskip("safetensors.numpy")
    arrays = {
        f"{tag} {shape}": some(dtype, shape) for tag, dtype in WHOLE.items() for shape in SHAPES
    }
    write(tmp_path / "ours", specs(arrays), {"format": "pt", "näme": "x"})
    found = SafetensorsFile(tmp_path / "ours")
    assert dict(found.header.metadata) == {"format": "pt", "näme": "x"}
    for name, array in arrays.items():
        assert found.dtype(name) == array.dtype
        assert found.read(name).tobytes() == array.tobytes()
        assert found.read(name).shape == array.shape
    theirs = {name: entry for name, entry in library.deserialize((tmp_path / "ours").read_bytes())}
    for name, array in arrays.items():
        assert (theirs[name]["dtype"], tuple(theirs[name]["shape"])) == (
            found[name].tag,
            array.shape,
        )
        assert bytes(theirs[name]["data"]) == array.tobytes()
    plain = {n: a for n, a in arrays.items() if a.dtype.name in np.sctypeDict}
    numpy.save_file(plain, tmp_path / "theirs")
    again = SafetensorsFile(tmp_path / "theirs")
    assert all(again.read(name).tobytes() == array.tobytes() for name, array in plain.items())


def test_arrays_in_any_order_of_memory_are_written_in_rows(tmp_path):
    array = np.arange(24.0).reshape(2, 3, 4)
    layouts = {
        "transposed": array.T,
        "fortran": np.asfortranarray(array),
        "reversed": array[::-1],
        "broadcast": np.broadcast_to(array[:1], (5, 3, 4)),
        "big-endian": array.astype(">f8"),
        "part": array[:, 1:, ::2],
    }
    write(tmp_path / "file", specs(layouts))
    file = SafetensorsFile(tmp_path / "file")
    for name, layout in layouts.items():
        np.testing.assert_array_equal(file.read(name), layout)


def test_what_was_read_outlives_the_file_and_a_changed_file_is_refused(tmp_path):
    path = tmp_path / "file"
    write(path, specs({"a": np.arange(1000.0)}))
    tensors = SafetensorsFile(path)
    array = tensors.read("a")
    path.write_bytes(b"\0" * path.stat().st_size)
    np.testing.assert_array_equal(array, np.arange(1000.0))
    with pytest.raises(TensorFileError, match=r"the tensor 'a': the file was changed since"):
        tensors.read("a")


def test_mapped_arrays_are_aligned_and_cannot_be_written(tmp_path):
    arrays = {
        "b": np.ones(3, np.int8),
        "w": np.ones((3, 5), np.float64),
        "h": np.ones(1, np.float16),
    }
    write(tmp_path / "file", specs(arrays), {"x": "1"})
    for name, array in SafetensorsFile(tmp_path / "file").map().items():
        assert array.flags.aligned
        assert not array.flags.writeable
        np.testing.assert_array_equal(array, arrays[name])


def test_four_bit_numbers_stand_two_in_a_byte(tmp_path):
    header = json.dumps({"q": {"dtype": "F4", "shape": [2, 2], "data_offsets": [0, 2]}}).encode()
    path = tmp_path / "file"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes([0x21, 0x43]))
    array = SafetensorsFile(path).read("q")
    np.testing.assert_array_equal(array.astype(np.float32), [[0.5, 1.0], [1.5, 2.0]])
    assert array.dtype == ml_dtypes.float4_e2m1fn


def entry(dtype="F32", shape=(2,), start=0, stop=8):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": entry(), "b": entry(start=4, stop=12)}, 12, "'b': its bytes overlap those of 'a'"),
        ({"a": entry(), "b": entry(start=12, stop=20)}, 20, "'b': its bytes leave a gap after 'a'"),
        ({"a": entry(start=4, stop=12)}, 12, "'a': its bytes leave a gap after the header"),
        ({"a": entry()}, 9, "1 bytes follow the last tensor"),
        ({"a": entry(), "b": entry(start=8, stop=16)}, 12, "'b': the file is truncated: it has"),
        ({"a": entry(stop=4)}, 4, r"F32\[2\] takes 8 bytes, and the header gives it 4"),
        ({"a": entry("F4", (3,), 0, 1)}, 1, "12 bits, which are no whole bytes"),
        ({"a": entry("F7")}, 8, "has the dtype 'F7'; known are BOOL"),
        ({"a": entry(shape=[-2])}, 8, "no list of sizes"),
        ({"a": entry(shape=[True, 2])}, 8, "no list of sizes"),
        ({"a": entry(shape=[1] * 65 + [2])}, 8, "a shape that no array has"),
        ({"a": entry(shape=[0, 2**40, 2**40], stop=0)}, 0, "a shape that no array has"),
        ({"a": entry(start=8, stop=0)}, 8, r"no \[begin, end\]"),
        ({"a": entry() | {"more": 1}}, 8, "nothing else"),
        ({"a": [1]}, 0, "has to give its dtype"),
        ({"__metadata__": {"a": 1}}, 0, "has to hold texts"),
        ({"__metadata__": "a"}, 0, "has to hold texts"),
        ({"\ud800": entry()}, 8, "is no text"),
        ([], 0, "no JSON object"),
        (
            b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{}}',
            8,
            "'a': the header has",
        ),
        (b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', 8, "twice"),
        (b"{", 0, "is no JSON"),
        (b"\xff\xff", 0, "is no JSON"),
        (b"[" * 100_000, 0, "is no JSON"),
        (b'{"a":' + b"1" * 5000 + b"}", 0, "is no JSON"),
    ],
)
def test_a_header_that_does_not_describe_the_file_is_refused(tmp_path, header, data, message):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / "file"
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * data)
    with pytest.raises(TensorFileError, match=message) as caught:
        SafetensorsFile(path)
    assert isinstance(caught.value, CheckpointError)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (2**63, "says that its header has 9223372036854775808 bytes; at most 100000000"),
        (100_000_001, "at most 100000000"),
        (99_999_999, "the file is truncated"),
    ],
)
def test_the_length_of_the_header_is_bounded(tmp_path, length, message):
    path = tmp_path / "file"
    path.write_bytes(length.to_bytes(8, "little") + b"{}")
    with pytest.raises(TensorFileError, match=message):
        SafetensorsFile(path)
    path.write_bytes(b"\0" * 5)
    with pytest.raises(TensorFileError, match="is 5 bytes long"):
        SafetensorsFile(path)


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write(path, specs({"a": np.ones(2)}))
    before = path.read_bytes()
    wide = np.ones(2, np.complex128)
    for bad, message in [
        (specs({"a": wide}), "'a': safetensors has no dtype complex128; cast it before"),
        (specs({"a": np.ones(1)}) * 2, "two tensors cannot have one name"),
        (specs({"__metadata__": np.ones(1)}), "two tensors cannot have one name"),
        (
            [Spec("a", np.dtype("f4"), (3,), lambda: np.ones(2, "f4"))],
            r"was to be float32\[3\] and",
        ),
        ([Spec("a", np.dtype("f4"), (2,), lambda: np.ones(2, "i4"))], r"and is int32\[2\]"),
    ]:
        with pytest.raises(TensorFileError, match=message):
            write(path, bad)
        assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
