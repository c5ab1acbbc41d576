"""A file that is not what was written is an error that says so; never wrong values."""

from __future__ import annotations

import io
import json
import pathlib
import pickle
import re
import zipfile
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import moduli as nnx
from moduli_interop import (
    CheckpointError,
    CheckpointVersionError,
    CorruptCheckpointError,
    NotACheckpointError,
    TruncatedCheckpointError,
    load,
    load_state,
    save,
)
from moduli_interop._npz.layout import DIGITS, TRAILER, format_line
from moduli_interop._npz.write import _HashingStream, _member


def small_model() -> nnx.Dict:
    return nnx.Dict(
        {
            "first": nnx.Param(jnp.arange(4.0, dtype=jnp.float32)),
            "second": nnx.Param((np.int8(3), 1.5)),
        }
    )


@pytest.fixture
def content(file: pathlib.Path) -> bytes:
    save(file, small_model(), metadata={"epoch": 3})
    return file.read_bytes()


@pytest.mark.parametrize("flip", [0x01, 0x20, 0x80, 0xFF])
def test_every_flipped_byte_is_an_error(flip: int, file: pathlib.Path, content: bytes) -> None:
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= flip
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=re.escape(str(file))):
            load_state(file)


def test_every_truncation_is_an_error(file: pathlib.Path, content: bytes) -> None:
    for length in range(len(content)):
        file.write_bytes(content[:length])
        with pytest.raises(TruncatedCheckpointError if length else NotACheckpointError):
            load_state(file)


def test_error_names_the_damaged_array(file: pathlib.Path, content: bytes) -> None:
    position = content.index(np.arange(4.0, dtype=np.float32).tobytes()) + 5
    file.write_bytes(content[:position] + b"?" + content[position + 1 :])
    model = small_model()
    model["first"].value = jnp.full((4,), 7.0, jnp.float32)
    with pytest.raises(CorruptCheckpointError, match=r"SHA-256.*; damaged: `first`\. Nothing"):
        load(file, model)
    assert model["first"].value.tolist() == [7.0] * 4


def test_error_names_the_array_where_the_file_ends(file: pathlib.Path, content: bytes) -> None:
    position = content.index(b"second/0.npy") + 40
    file.write_bytes(content[:position])
    with pytest.raises(TruncatedCheckpointError, match=r"`second/0`, 2 of 2"):
        load_state(file)
    file.write_bytes(content[: content.index(b"first.npy")])
    with pytest.raises(TruncatedCheckpointError, match="ends before the first array"):
        load_state(file)


def test_appended_bytes_are_an_error(file: pathlib.Path, content: bytes) -> None:
    file.write_bytes(content + b"\n")
    with pytest.raises(TruncatedCheckpointError, match="something was appended"):
        load_state(file)


def other_version(version: int, *, with_trailer: bool) -> bytes:
    buffer = io.BytesIO()
    stream = _HashingStream(buffer)
    with zipfile.ZipFile(stream, "w") as archive:  # type: ignore[call-overload]
        archive.writestr(_member("moduli.checkpoint"), format_line(version))
        archive.writestr(_member("whatever"), b"another layout")
        archive.comment = TRAILER + b"0" * DIGITS if with_trailer else b""
    data = buffer.getvalue()
    return data[:-DIGITS] + stream.hexdigest() if with_trailer else data


@pytest.mark.parametrize("with_trailer", [True, False])
def test_later_format_is_an_error_that_says_to_upgrade(
    with_trailer: bool, file: pathlib.Path
) -> None:
    file.write_bytes(other_version(2, with_trailer=with_trailer))
    with pytest.raises(CheckpointVersionError, match=r"is of format 2.*reads format 1.*pip"):
        load_state(file)


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, x=np.ones(3))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty"),
        (npz(), "another zip archive"),
        (pickle.dumps({"x": 1}), "may be a pickle, which moduli never reads"),
        (b"x" * 500, "begins with the bytes b'xxxx'"),
    ],
    ids=["empty", "npz", "pickle", "text"],
)
def test_other_files_are_named_as_such(data: bytes, reason: str, file: pathlib.Path) -> None:
    file.write_bytes(data)
    with pytest.raises(NotACheckpointError, match=reason):
        load_state(file)


def test_missing_file(file: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"model\.npz"):
        load_state(file)


# -- files with a right checksum that moduli.save would not write ---------------------------------


class Evil:
    """Runs code when it is unpickled."""

    ran = False

    def __reduce__(self) -> Any:
        return (setattr, (Evil, "ran", True))


def crafted(manifest: Any, members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    stream = _HashingStream(buffer)
    with zipfile.ZipFile(stream, "w") as archive:  # type: ignore[call-overload]
        archive.writestr(_member("moduli.checkpoint"), format_line(1))
        text = manifest if isinstance(manifest, (str, bytes)) else json.dumps(manifest)
        archive.writestr(_member("manifest.json"), text)
        for name, data in members.items():
            archive.writestr(_member(name), data)
        archive.comment = TRAILER + b"0" * DIGITS
    return buffer.getvalue()[:-DIGITS] + stream.hexdigest()


def manifest(value: Any, path: Any = ("x",)) -> dict[str, Any]:
    leaf = {"path": path, "kind": "array", "kind_name": None, "aliases": [], "value": value}
    return {"moduli_version": "0.1.0", "metadata": {}, "leaves": [leaf]}


def array_record(**changes: Any) -> dict[str, Any]:
    record = {
        "member": "x",
        "dtype": "float32",
        "shape": [2],
        "container": "numpy",
        "weak_type": False,
        "key_impl": None,
    }
    return {"array": {**record, **changes}}


def npy(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


GOOD = npy(np.array([1, 2], np.float32))


def test_crafted_files_that_are_right_can_be_read(file: pathlib.Path) -> None:
    file.write_bytes(crafted(manifest(array_record()), {"x.npy": GOOD}))
    assert load_state(file)["x"].tolist() == [1.0, 2.0]


BAD = {
    "not json": crafted("{", {}),
    "nested too deep": crafted("[" * 100_000, {}),
    "no leaves": crafted({"moduli_version": "0", "metadata": {}}, {}),
    "leaves of another type": crafted({**manifest(0), "leaves": 3}, {}),
    "metadata of another type": crafted({**manifest({"int": 1}), "metadata": []}, {}),
    "member missing": crafted(manifest(array_record()), {}),
    "another shape": crafted(manifest(array_record(shape=[3])), {"x.npy": GOOD}),
    "negative shape": crafted(manifest(array_record(shape=[-2])), {"x.npy": GOOD}),
    "another dtype": crafted(manifest(array_record(dtype="int32")), {"x.npy": GOOD}),
    "object dtype": crafted(manifest(array_record(dtype="object")), {"x.npy": GOOD}),
    "longer member": crafted(manifest(array_record()), {"x.npy": GOOD + b"more"}),
    "shorter member": crafted(manifest(array_record()), {"x.npy": GOOD[:-1]}),
    "bad path": crafted(manifest(array_record(), path=[1.5]), {"x.npy": GOOD}),
    "unknown value": crafted(manifest({"pickle": "gASVBQ=="}), {}),
    "wrong scalar": crafted(manifest({"int": "1"}), {}),
    "bad float": crafted(manifest({"float": "00"}), {}),
    "two kinds in one value": crafted(manifest({"int": 1, "str": "a"}), {}),
    "object array": crafted(
        manifest(array_record(dtype="float32")),
        {"x.npy": npy(np.array([Evil(), Evil()], object), allow_pickle=True)},
    ),
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_crafted_files_are_errors_and_run_no_code(data: bytes, file: pathlib.Path) -> None:
    file.write_bytes(data)
    with pytest.raises(CorruptCheckpointError, match="has the right checksum, but its content"):
        load_state(file)
    assert not Evil.ran


def test_unknown_prng_implementation_is_an_error(file: pathlib.Path) -> None:
    record = array_record(dtype="uint32", container="jax", key_impl="enigma")
    file.write_bytes(crafted(manifest(record), {"x.npy": npy(np.array([1, 2], np.uint32))}))
    with pytest.raises(CheckpointError, match="enigma"):
        load_state(file)
