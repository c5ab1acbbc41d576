"""Every format: what was written comes back, and whatever else is in the file is an error.

The values come back whatever happens to the file afterwards; damage names its array; nothing that a
file says of itself is believed before it was compared with the length of the file.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import tracemalloc
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_strategies import EXTENDED, NATIVE, bits, dtype_of, random_array, state_bits

import moduli as nnx
from moduli_interop import (
    CheckpointError,
    CheckpointFormatError,
    CheckpointVersionError,
    CorruptCheckpointError,
    NotACheckpointError,
    TruncatedCheckpointError,
    inspect_checkpoint,
    load,
    load_state,
    save,
    verify_checkpoint,
)
from moduli_interop._choose import recognize_format
from moduli_interop._reading import BLOCK
from moduli_interop._single_file.layout import DIGEST, DIGITS, SUMS, header_digest, place_of
from moduli_interop._stored import named_arrays

SUFFIXES = [".safetensors", ".npz"]


def small_model(value: float = 0.0) -> nnx.Dict:
    return nnx.Dict(
        {
            "first": nnx.Param(jnp.arange(4.0, dtype=jnp.float32) + value),
            "second": nnx.Param((np.int8(3), 1.5)),
            "third": nnx.Param(jnp.arange(4.0, dtype=jnp.float32) - value),
        }
    )


@pytest.fixture(params=SUFFIXES)
def path(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / f"model{request.param}"


def test_every_dtype_comes_back_bit_by_bit(path: pathlib.Path) -> None:
    arrays = {name: random_array(dtype_of(name), (7, 5), 0) for name in NATIVE + EXTENDED}
    arrays |= {f"{name}0": random_array(dtype_of(name), (0, 5), 0) for name in NATIVE + EXTENDED}
    arrays |= {f"{name}1": random_array(dtype_of(name), (), 0) for name in NATIVE + EXTENDED}
    state = nnx.State(arrays)
    save(path, state)
    assert state_bits(load_state(path)) == state_bits(state)


def test_without_a_suffix_it_is_safetensors(tmp_path: pathlib.Path) -> None:
    save(tmp_path / "run 0.5", small_model())
    assert inspect_checkpoint(tmp_path / "run 0.5").format == "safetensors"
    os.rename(tmp_path / "run 0.5", tmp_path / "m.npz")  # the content tells it, not the name
    assert load_state(tmp_path / "m.npz").first.value.tolist() == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    "suffix", ["pth", "pt", "ckpt", "bin", "msgpack", "h5", "eqx", "pkl", "H5"]
)
def test_suffixes_of_other_programs_need_a_format(suffix: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / f"m.{suffix}"
    with pytest.raises(CheckpointFormatError, match=r"suffix of files of other.*format='safe"):
        save(path, small_model())
    assert not path.exists()
    save(path, small_model(), format="npz")
    with pytest.raises(CheckpointFormatError, match="load_weights"):
        load_state(path)
    assert load_state(path, format="npz").first.value.tolist() == [0.0, 1.0, 2.0, 3.0]


def test_a_folder_of_steps_is_named_as_such(tmp_path: pathlib.Path) -> None:
    with pytest.raises(NotACheckpointError, match=r"is a folder.*`manager\.load\(model\)`"):
        load_state(tmp_path)


def test_safetensors_reads_every_array_under_its_path(tmp_path: pathlib.Path) -> None:
    numpy_reader = pytest.importorskip("safetensors.numpy")
    model = nnx.Dict({"blocks": nnx.List([nnx.Param(jnp.arange(6.0).reshape(2, 3))])})
    save(tmp_path / "m.safetensors", model)
    found = numpy_reader.load_file(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(found["blocks.0"], np.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize("flip", [0x01, 0x20, 0xFF])
def test_every_flipped_byte_is_an_error(flip: int, path: pathlib.Path) -> None:
    save(path, small_model(), metadata={"epoch": 3})
    content = path.read_bytes()
    for position in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[position] ^= flip
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=re.escape(str(path))):
            load_state(path)
        with pytest.raises(CheckpointError):
            verify_checkpoint(path)


def test_every_other_length_is_an_error(path: pathlib.Path) -> None:
    save(path, small_model())
    content = path.read_bytes()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises((TruncatedCheckpointError, NotACheckpointError)):
            load_state(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(TruncatedCheckpointError, match="something was appended"):
        load_state(path)


def test_the_damaged_array_is_named_and_nothing_is_loaded(path: pathlib.Path) -> None:
    save(path, small_model())
    content = path.read_bytes()
    where = np.arange(4.0, dtype=np.float32).tobytes()
    first = content.index(where) + 5
    second = content.index(where, first) + 5
    path.write_bytes(content[:first] + b"?" + content[first + 1 :])
    model = small_model(7.0)
    with pytest.raises(CorruptCheckpointError, match="damaged: `first`"):
        load(path, model)
    assert model["third"].value.tolist() == [-7.0, -6.0, -5.0, -4.0]
    both = content[:first] + b"?" + content[first + 1 : second] + b"?" + content[second + 1 :]
    path.write_bytes(both)
    with pytest.raises(CorruptCheckpointError, match="damaged: `first`, `third`"):
        verify_checkpoint(path)


def test_what_becomes_of_the_file_changes_nothing(path: pathlib.Path) -> None:
    array = np.random.default_rng(0).standard_normal((1 << 16) + 3).astype(np.float32)
    save(path, {"a": jnp.asarray(array), "b": array, "c": jnp.asarray(array)})
    back = load(path, {"a": jnp.zeros_like(array), "b": np.zeros_like(array), "c": array * 0})
    with open(path, "r+b") as file:
        file.write(b"\xff" * path.stat().st_size)
        file.flush()
        assert all(np.array_equal(value, array) for value in back.values())
        file.truncate(0)
    assert all(np.array_equal(jnp.copy(value), array) for value in back.values())


def test_parts_are_read_and_verified_alone(path: pathlib.Path) -> None:
    first = nnx.Param(jnp.arange(4.0, dtype=jnp.float32))
    model = nnx.Dict({"a": nnx.List([first]), "ab": nnx.Param(jnp.ones(3))})
    save(path, model)
    assert list(load_state(path, only="a")) == ["a"]
    assert list(nnx.to_flat_state(load_state(path, only="a[0]")).keys()) == [("a", 0)]
    assert list(load_state(path, only=lambda path: path[-1] == "ab")) == ["ab"]
    with pytest.raises(CheckpointError, match="nothing in the part 'b'; it has `a"):
        load_state(path, only="b")
    content = path.read_bytes()
    position = content.index(np.arange(4.0, dtype=np.float32).tobytes()) + 5
    path.write_bytes(content[:position] + b"?" + content[position + 1 :])
    with pytest.raises(CorruptCheckpointError):
        load_state(path, only="a")
    if path.suffix == ".safetensors":  # the digest of an .npz is that of the whole file
        assert load_state(path, only="ab").ab.value.tolist() == [1.0] * 3


def test_rows_of_an_array_are_verified_by_the_blocks_they_lie_in(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "m.safetensors"
    array = np.random.default_rng(0).integers(0, 256, (3 * BLOCK // 1000 + 1, 1000), np.uint8)
    save(path, {"x": array})
    (_, stored), *_ = named_arrays(recognize_format(str(path), None).load(str(path)).leaves)
    for start, stop in [(0, 1), (0, len(array)), (16_000, 17_500), (5, 5), (len(array) - 1,) * 2]:
        np.testing.assert_array_equal(stored.read_rows(start, stop), array[start:stop])
    with open(path, "r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    np.testing.assert_array_equal(stored.read_rows(0, 16_000), array[:16_000])
    with pytest.raises(CorruptCheckpointError, match="damaged: `x`"):
        stored.read_rows(len(array) - 1, len(array))
    with pytest.raises(CorruptCheckpointError, match="damaged: `x`"):
        load_state(path)


def test_a_weak_array_stays_weak_whatever_its_dtype(path: pathlib.Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arrays = {str(i): jnp.full((2, 3), x) for i, x in enumerate([1, 2.5, 3j])}
    arrays["n"] = jnp.asarray(3)
    save(path, arrays)
    back = load(path, {key: jnp.zeros_like(value) for key, value in arrays.items()})
    assert {k: bits(v) for k, v in back.items()} == {k: bits(v) for k, v in arrays.items()}
    assert all(value.weak_type for value in back.values())


def test_large_mismatches_are_cut(path: pathlib.Path) -> None:
    one = nnx.Dict({f"layer_{i}": nnx.Param(float(i)) for i in range(3000)})
    other = nnx.Dict({f"block_{i}": nnx.Param(float(i)) for i in range(3000)})
    other["shape"], one["shape"] = nnx.Param(jnp.ones(3)), nnx.Param(jnp.ones(4))
    save(path, one)
    with pytest.raises(nnx.CheckpointError) as error:
        load(path, other)
    lines = str(error.value).splitlines()
    assert len(lines) <= 46 and len(str(error.value)) < 12_000
    assert "(6001 problems)" in lines[0] and "missing: ... and " in str(error.value)
    assert "shape: `shape` is (3,) in the model and (4,) in the checkpoint" in str(error.value)
    assert len(error.value.problems) == 6001


# -- files with right digests that moduli.save would not write -------------------------------------


def two_vectors() -> nnx.Dict:
    return nnx.Dict(
        {
            "x": nnx.Param(jnp.arange(3.0, dtype=jnp.float32)),
            "y": nnx.Param(jnp.ones(3, jnp.float32)),
        }
    )


def forged(content: bytes, old: bytes, new: bytes) -> bytes:
    """Changes the header of a safetensors checkpoint, and its digest with it."""
    length = 8 + int.from_bytes(content[:8], "little")
    header = content[:length].replace(old, new)
    assert header != content[:length], old
    header = (len(header) - 8).to_bytes(8, "little") + header[8:]
    place = place_of(header, DIGEST, DIGITS)
    header = header[:place] + header_digest(header).encode() + header[place + DIGITS :]
    return header + content[length:]


def escaped(text: str) -> bytes:
    return json.dumps(text)[1:-1].encode()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"path":["x"]', '"path":[]'),
        ('"path":["x"]', '"path":["y"]'),
        ('"path":["x"]', '"path":["y","z"]'),
        ('"path":["x"]', '"path":[true]'),
        ('"shape":[3]', '"shape":[1000000000000]'),
        ('"shape":[3]', '"shape":[1,3]'),
        ('"shape":[3]', f'"shape":{[1] * 40}'),
        ('"dtype":"float32"', '"dtype":"int32"'),
        ('"dtype":"float32"', '"dtype":"object"'),
        ('"container":"jax"', '"container":"numpy scalar"'),
        ('"container":"jax"', '"container":"abstract"'),
        ('"key_impl":null', '"key_impl":"threefry2x32"'),
        ('"key_impl":null', '"key_impl":3'),
        ('"weak_type":false', '"weak_type":1'),
        ('"member":"x"', '"member":"y"'),
        ('"member":"x"', '"member":"z"'),
        ('"kind":"Param"', '"kind":3'),
        ('"metadata":{}', '"metadata":[]'),
        ('"leaves":[', '"leaves":[[],'),
        ('"leaves":[', '"leaves":[null,'),
        ('"moduli_version"', '"version"'),
        ('"metadata":{}', '"metadata":' + "[" * 5000),
        ('"metadata":{}', '"metadata":{"a":' + "1" * 5000 + "}"),
    ],
)
def test_a_forged_manifest_is_an_error(old: str, new: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "m.safetensors"
    save(path, two_vectors())
    path.write_bytes(forged(path.read_bytes(), escaped(old), escaped(new)))
    with pytest.raises(CheckpointError):
        load_state(path)
    with pytest.raises(CheckpointError):
        load(path, two_vectors())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"F32","shape":[3],"data_offsets":[0,12]', b'"F32","shape":[3],"data_offsets":[12,24]'),
        (b'"F32","shape":[3],"data_offsets":[0,12]', b'"F32","shape":[4],"data_offsets":[0,16]'),
        (b'"F32","shape":[3],"data_offsets":[0,12]', b'"U32","shape":[3],"data_offsets":[0,12]'),
        (b'"F32","shape":[3],"data_offsets":[0,12]', b'"F64","shape":[9e9],"data_offsets":[0,12]'),
        (b'"x":{"dtype"', b'"y":{"dtype"'),
        (b'"x":{"dtype"', b'"z":{"dtype"'),
        (b'{"__metadata__":', b'[{"__metadata__":'),
        (b'"moduli.crc32":"', b'"moduli.crc32":"00000000'),
        (b'"moduli.manifest"', b'"moduli.other"'),
    ],
)
def test_a_forged_header_is_an_error(old: bytes, new: bytes, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "m.safetensors"
    save(path, two_vectors())
    path.write_bytes(forged(path.read_bytes(), old, new))
    with pytest.raises(CheckpointError):
        load_state(path)


@pytest.mark.parametrize("text", ["[],", '{"a":0},', '"",', "0,"])
def test_a_manifest_of_very_many_objects_takes_little_memory(
    text: str, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "m.safetensors"
    save(path, {"x": np.ones(3)})
    many = f'"metadata":{{"a":[{text * (8_000_000 // len(text))}0]}}'
    path.write_bytes(forged(path.read_bytes(), escaped('"metadata":{}'), escaped(many)))
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="more objects than its length allows"):
            load_state(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5 * path.stat().st_size + (64 << 20)


def test_a_later_format_says_to_upgrade(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "m.safetensors"
    save(path, {"x": np.ones(3)})
    old, new = b'"moduli.checkpoint":"1"', b'"moduli.checkpoint":"2"'
    path.write_bytes(forged(path.read_bytes(), old, new))
    with pytest.raises(CheckpointVersionError, match=r"is of format 2.*pip install"):
        load_state(path)


def test_a_file_that_another_program_wrote_again_is_refused(tmp_path: pathlib.Path) -> None:
    """Well-formed, with our metadata: arrays exchanged, transposed, dropped, doubled, renamed."""
    library = pytest.importorskip("safetensors")
    numpy_library = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "m.safetensors"
    square = np.random.default_rng(0).standard_normal((3, 3)).astype(np.float32)
    save(path, {"a": square, "b": square + 1})
    with library.safe_open(path, "np") as file:
        texts = file.metadata()
    a, b = square, square + 1
    for arrays in (
        {"a": b, "b": a},
        {"a": a.T.copy(), "b": b},
        {"a": a},
        {"a": a, "b": b, "c": b},
        {"a": a, "c": b},
    ):
        numpy_library.save_file(arrays, path, texts)
        with pytest.raises(CheckpointError):
            load_state(path)
        content = path.read_bytes()  # with the digest of the header made right as well
        length = 8 + int.from_bytes(content[:8], "little")
        place = place_of(content[:length], DIGEST, DIGITS)
        digest = header_digest(content[:length]).encode()
        path.write_bytes(content[:place] + digest + content[place + DIGITS :])
        with pytest.raises(CheckpointError):
            load_state(path)
    assert place_of(content[:length], SUMS, 16)


def test_a_checkpoint_of_eight_devices_is_one_of_one_and_back(tmp_path: pathlib.Path) -> None:
    import subprocess
    import sys

    program = """
import sys, jax, jax.numpy as jnp, numpy as np, moduli as nnx
from moduli_interop import load, save
from jax.sharding import NamedSharding, PartitionSpec as P
path, do = sys.argv[1:]
devices = len(jax.devices())
sharding = NamedSharding(jax.make_mesh((devices,), ("x",)), P("x"))
value = np.random.default_rng(0).standard_normal((16, 33)).astype(np.float32)
if do == "save":
    save(path, {"a": jax.device_put(value, sharding), "k": jax.random.key(3)})
else:
    shape = jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding)
    for model in ({"a": jax.device_put(value * 0, sharding), "k": jax.random.key(0)},
                  {"a": shape, "k": jax.random.key(0)}):
        back = load(path, model)
        assert back["a"].sharding == sharding and np.array_equal(back["a"], value)
        assert back["k"] == jax.random.key(3)
print(devices)
"""

    def run(devices: int, do: str) -> None:
        flags = f"--xla_force_host_platform_device_count={devices}"
        alone = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "m.safetensors"), do],
            env={**alone, "XLA_FLAGS": flags},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout.split() == [str(devices)], done.stderr

    for first, second in ((8, 1), (1, 8)):
        run(first, "save")
        run(second, "load")


def test_progress_counts_every_byte(path: pathlib.Path) -> None:
    seen: list[tuple[int, int]] = []
    model = {"a": np.ones(1000, np.float32), "b": jnp.ones(250, jnp.float32)}
    save(path, model, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4000, 5000), (5000, 5000)]
    seen.clear()
    load(path, model, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4000, 5000), (5000, 5000)]


def test_progress_is_a_line_on_stderr_if_asked_for(
    path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(path, {"a": np.ones(1000, np.float32)})
    assert capsys.readouterr().err == ""
    save(path, {"a": np.ones(1000, np.float32)}, progress=True)
    assert f"saving {path}: 100 % of 0.00 GiB\n" in capsys.readouterr().err


def test_arrays_of_another_precision_keep_theirs(path: pathlib.Path) -> None:
    array = np.ones(3, np.float64)
    save(path, {"a": array})
    with jax.enable_x64(False):
        assert load_state(path)["a"].dtype == np.float64


@pytest.mark.parametrize("number", [3, 2.5, 1j])
@pytest.mark.parametrize("x64", [False, True])
def test_weak_arrays_of_a_program_without_64_bits(
    path: pathlib.Path, number: complex, x64: bool
) -> None:
    with jax.enable_x64(False):
        weak = jnp.full((2,), number)
    save(path, {"a": weak})
    with jax.enable_x64(x64):
        loaded = load_state(path)["a"]
        assert loaded.weak_type and loaded.dtype == weak.dtype and loaded.tolist() == [number] * 2
        assert (loaded * jnp.ones(2, jnp.complex64)).dtype == jnp.complex64
