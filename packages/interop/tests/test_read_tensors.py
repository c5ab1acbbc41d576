"""Tensors of foreign files: bit for bit what the framework that wrote a file reads from it."""

from __future__ import annotations

import collections
import json
import os
import pathlib
import shutil
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

import moduli as nnx
from moduli_interop import (
    CheckpointError,
    TensorFileError,
    TensorSource,
    inspect_checkpoint,
    load_state,
    read_tensors,
    verify_checkpoint,
)
from moduli_interop._safetensors import Spec, write


def bits(tensor) -> bytes:
    """Returns the bytes of a torch tensor, in the order of its entries."""
    import torch

    tensor = tensor.detach().resolve_conj().resolve_neg().contiguous()
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def torch_tensors():
    """Makes tensors of every dtype, and views of every kind."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    found = collections.OrderedDict()
    for name in (
        *("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8"),
        *("bool", "complex64", "complex128", "uint16", "uint32", "uint64"),
        *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"),
    ):
        if hasattr(torch, name):
            found[name] = (torch.randn(3, 4) * 3).to(getattr(torch, name))
    base = torch.arange(60.0)
    cube = base.reshape(3, 4, 5)
    found |= {
        "transposed": cube.permute(2, 0, 1),
        "part": base[3:17:2],
        "window": cube[1:, 2:, ::2],
        "again": cube[1:],
        "expanded": torch.ones(1, 3).expand(7, 3),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(3.5),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "conjugate": torch.view_as_complex(torch.randn(3, 2)).conj(),
        "negative": torch.view_as_complex(torch.randn(3, 2)).conj().imag,
        "parameter": torch.nn.Parameter(torch.randn(2), requires_grad=False),
    }
    return found


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_torchs_files(tmp_path, legacy):
    torch = pytest.importorskip("torch")
    tensors = torch_tensors()
    if legacy:  # torch cannot read these back itself
        tensors = {
            n: t
            for n, t in tensors.items()
            if "float8" not in n and n not in ("uint16", "uint32", "uint64")
        }
    state = {
        "epoch": 3,
        "state_dict": tensors,
        "optimizer": {"state": {0: {"step": torch.tensor(7)}}, "groups": [{"lr": 0.1}]},
        "pair": (torch.ones(2), None),
    }
    path = tmp_path / "checkpoint"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    found = read_tensors(path)
    expected = {f"state_dict.{name}": tensor for name, tensor in tensors.items()}
    expected |= {"optimizer.state.0.step": torch.tensor(7), "pair.0": torch.ones(2)}
    assert set(found) == set(expected)
    loaded = torch.load(path)["state_dict"]
    for name, tensor in expected.items():
        tensor = loaded.get(name.removeprefix("state_dict."), tensor)
        assert found[name].shape == tuple(tensor.shape), name
        assert found[name].dtype.name == str(tensor.dtype).removeprefix("torch."), name
        assert found[name].read().tobytes() == bits(tensor), name
        assert found[name].read().flags.writeable
    np.testing.assert_array_equal(found["state_dict.window"][0, 1:], tensors["window"][0, 1:])


def test_a_whole_module_has_the_names_of_its_state_dict(tmp_path):
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    torch.save(module, tmp_path / "module.pt")
    found = read_tensors(tmp_path / "module.pt")
    assert set(found) == set(module.state_dict())
    for name, tensor in module.state_dict().items():
        assert found[name].read().tobytes() == bits(tensor)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore:.torch.jit")
def test_a_scripted_module(tmp_path):
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU())
    torch.jit.trace(module, torch.ones(1, 2)).save(str(tmp_path / "module.pt"))
    found = read_tensors(tmp_path / "module.pt")
    for name, tensor in module.state_dict().items():
        assert found[name].read().tobytes() == bits(tensor)


class Settings:
    """A class of a user's, for which ``weights_only=True`` refuses a whole file."""

    def __init__(self):
        self.rate, self.names = 0.1, {"a", "b"}
        self.inner = {"parent": self}  # as omegaconf's

    def __reduce_ex__(self, protocol):
        return super().__reduce_ex__(protocol)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_objects_of_other_classes_are_passed_over(tmp_path, legacy):
    torch = pytest.importorskip("torch")
    state = {
        "config": Settings(),
        "device": torch.device("cpu"),
        "dtype": torch.float16,
        "size": torch.Size([2]),
        "path": pathlib.PurePosixPath("a/b"),
        "numpy": np.float32(3),
        "function": print,
        "counts": collections.defaultdict(list, a=[torch.ones(1)]),
        "weight": torch.ones(3),
    }
    path = tmp_path / "file"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(Exception, match="weights_only"):
        torch.load(path)
    assert set(read_tensors(path)) == {"counts.a.0", "weight"}


@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_no_arrays_are_listed_and_refused(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"s": torch.eye(2).to_sparse(), "d": torch.ones(1)}, tmp_path / "file")
    found = read_tensors(tmp_path / "file")
    assert set(found) == {"s", "d"}
    with pytest.raises(TensorFileError, match="'s': is no plain array"):
        found["s"].read()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("legacy", [False, True])
def test_a_quantised_tensor_does_not_hide_the_others(tmp_path, legacy):
    torch = pytest.importorskip("torch")
    kinds = (torch.qint8, torch.quint8, torch.qint32)
    state = {str(kind): torch.quantize_per_tensor(torch.ones(3), 0.1, 0, kind) for kind in kinds}
    state = {name.replace(".", "_"): tensor for name, tensor in state.items()}
    path = tmp_path / "file"
    torch.save(state | {"w": torch.arange(3.0)}, path, _use_new_zipfile_serialization=not legacy)
    found = read_tensors(path)
    assert found["w"].read().tolist() == [0, 1, 2]
    for name in state:
        with pytest.raises(TensorFileError, match=f"'{name}': is no plain array"):
            found[name].read()


def test_the_other_order_of_bytes(tmp_path):
    torch = pytest.importorskip("torch")
    import zipfile

    torch.save({"a": torch.arange(3.0), "h": torch.arange(3).bfloat16()}, tmp_path / "little")
    with (
        zipfile.ZipFile(tmp_path / "little") as little,
        zipfile.ZipFile(tmp_path / "big", "w") as big,
    ):
        for name in little.namelist():
            data = little.read(name)
            if name.endswith("byteorder"):
                data = b"big"
            elif "/data/" in name:
                width = 4 if len(data) == 12 else 2
                data = b"".join(data[i : i + width][::-1] for i in range(0, len(data), width))
            big.writestr(name, data)
    found = read_tensors(tmp_path / "big")
    np.testing.assert_array_equal(found["a"].read(), [0, 1, 2])
    np.testing.assert_array_equal(found["h"].read().astype(float), [0, 1, 2])


ARRAYS = {
    "f": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "big": np.arange(3, dtype=">i4"),
    "half": np.arange(3).astype(ml_dtypes.bfloat16),
    "scalar": np.float64(2)[()].reshape(()),
    "empty": np.zeros((0, 2)),
    "complex": np.array([1 + 2j]),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_archives_of_numpys(tmp_path, save):
    with open(tmp_path / "weights.pth", "wb") as file:  # the suffix says nothing
        save(file, **ARRAYS)
    found = read_tensors(tmp_path / "weights.pth")
    assert found.kind == "npz"
    for name, array in ARRAYS.items():
        assert found[name].shape == array.shape
        assert found[name].dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(found[name].read(), array)


def test_flaxs_msgpack(tmp_path, monkeypatch):
    serialization = pytest.importorskip("flax.serialization")
    tree = {
        "params": {"Dense_0": {n: a for n, a in ARRAYS.items() if n != "big"}},
        "batch_stats": {"long" * 20: np.ones(300, np.float16)},
        "step": 3,
        "rate": 0.5,
        "name": "x",
        "scalar": np.float32(2),
        "many": {str(i): np.full(1, i) for i in range(20)},
    }
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 64)
    (tmp_path / "file").write_bytes(serialization.msgpack_serialize(tree))
    found = read_tensors(tmp_path / "file")
    assert found.kind == "msgpack"
    for name, array in tree["params"]["Dense_0"].items():
        np.testing.assert_array_equal(found[f"params.Dense_0.{name}"].read(), array)
        assert found[f"params.Dense_0.{name}"].dtype == array.dtype
    np.testing.assert_array_equal(found["batch_stats." + "long" * 20].read(), np.ones(300))
    assert found["scalar"].read() == 2
    assert found["many.19"].read() == 19


def test_equinoxs_files(tmp_path):
    eqx = pytest.importorskip("equinox")
    import jax.numpy as jnp

    tree = {"a": jnp.arange(3.0), "b": jnp.ones((2, 2), jnp.bfloat16), "c": 3}
    with open(tmp_path / "file", "wb") as file:
        file.write(b'{"width": 3}\n')
        eqx.tree_serialise_leaves(file, tree)
    found = read_tensors(tmp_path / "file")
    np.testing.assert_array_equal(found["0"].read(), [0, 1, 2])
    assert found["1"].dtype == ml_dtypes.bfloat16
    assert found["2"].read() == 3
    assert found.metadata == {"header": '{"width": 3}'}
    eqx.tree_serialise_leaves(tmp_path / "plain", tree)
    assert list(read_tensors(tmp_path / "plain.eqx")) == ["0", "1", "2"]


def test_dicts_of_arrays_of_any_library():
    torch = pytest.importorskip("torch")
    import jax.numpy as jnp

    source = {
        "numpy": np.arange(3.0),
        "jax": [jnp.ones(2, jnp.bfloat16)],
        "torch": {
            "weight": torch.ones(2, 2).bfloat16().t(),
            "f8": torch.ones(2).to(torch.float8_e5m2),
        },
        "param": nnx.Param(jnp.ones(3)),
        "nothing": None,
        "number": 2.5,
    }
    found = read_tensors(source)
    assert set(found) == {"numpy", "jax.0", "torch.weight", "torch.f8", "param", "number"}
    assert found["torch.weight"].dtype == ml_dtypes.bfloat16
    assert found["torch.f8"].read().dtype == ml_dtypes.float8_e5m2
    assert found["param"].shape == (3,)
    np.testing.assert_array_equal(found["torch.weight"].read().astype(float), np.ones((2, 2)))
    assert set(read_tensors(nnx.state(nnx.Dict({"a": nnx.Param(jnp.ones(1))})))) == {"a"}
    kept = found["numpy"].read()
    source["numpy"][:] = 7
    np.testing.assert_array_equal(kept, np.arange(3.0))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"a": "text"}, "the tensor 'a': is a str, no array; take it out"),
        ({"a": np.ma.masked_array([1.0], [True])}, "mask would be lost; fill it first"),
        ({"a": np.array([object()])}, "holds Python objects"),
        ({"a.b": np.ones(1), "a": {"b": np.ones(1)}}, "'a.b': two tensors have this name"),
        (3, "a int: is no source of tensors"),
    ],
)
def test_what_is_no_array_is_named(source, message):
    with pytest.raises(TensorFileError, match=message):
        read_tensors(source)


def one(path, **arrays):
    write(path, [Spec(n, a.dtype, a.shape, lambda a=a: a) for n, a in arrays.items()])


def sharded(folder, places=None, metadata=None):
    """Makes a folder of two shards and their index."""
    folder.mkdir(exist_ok=True)
    one(folder / "a.safetensors", x=np.ones(2), y=np.full(3, 2.0))
    one(folder / "b.safetensors", z=np.full(1, 3.0))
    places = {"x": "a.safetensors", "y": "a.safetensors", "z": "b.safetensors"} | (places or {})
    places = {name: place for name, place in places.items() if place}
    index = {"metadata": metadata or {"total_size": 48}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_a_folder_with_an_index_opens_its_shards_one_at_a_time(tmp_path):
    folder = sharded(tmp_path / "model")
    for source in (folder, folder / "model.safetensors.index.json"):
        found = read_tensors(source)
        assert {name: tensor.read()[0] for name, tensor in found.items()} == {
            "x": 1,
            "y": 2,
            "z": 3,
        }
        assert found.metadata == {"total_size": "48"}
        assert found["z"].file.endswith("b.safetensors")
    if sys.platform == "linux":
        opened = {os.path.realpath(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")}
        assert not [name for name in opened if name.startswith(str(folder))]


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"x": "../a.safetensors"}, "'../a.safetensors', which is no name of a file in its own"),
        ({"x": "sub/a.safetensors"}, "no name of a file in its own folder"),
        ({"x": "C:\\a"}, "no name of a file in its own folder"),
        ({"x": "/etc/passwd"}, "no name of a file in its own folder"),
        ({"x": ".."}, "no name of a file in its own folder"),
        ({"x": "c.safetensors"}, "'c.safetensors', which the folder does not have"),
        ({"x": "b.safetensors"}, "'x': the file 'b.safetensors' should hold it and does not"),
        ({"w": "a.safetensors"}, "'w': the file 'a.safetensors' should hold it and does not"),
    ],
)
def test_an_index_names_what_its_folder_holds(tmp_path, places, message):
    shutil.copy(__file__, tmp_path / "c")
    with pytest.raises(TensorFileError, match=message):
        read_tensors(sharded(tmp_path / "model", places))


def test_what_an_index_forgets_is_read_all_the_same(tmp_path):
    found = read_tensors(sharded(tmp_path / "model", {"y": None}))
    assert set(found) == {"x", "y", "z"}
    one(tmp_path / "model" / "b.safetensors", z=np.ones(1), y=np.ones(2))
    with pytest.raises(TensorFileError, match=r"'y': is in two files, 'a\.safetensors' and 'b\."):
        read_tensors(tmp_path / "model")


def test_links_and_doubles_of_an_index(tmp_path):
    folder = sharded(tmp_path / "model")
    one(folder / "b.safetensors", z=np.ones(1), x=np.ones(2))
    with pytest.raises(TensorFileError, match=r"'x': is in two files, 'a\.safetensors' and 'b\."):
        read_tensors(folder)
    text = '{"weight_map": {"x": "a.safetensors", "x": "b.safetensors"}}'
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(TensorFileError, match="'x': the index has this name twice"):
        read_tensors(folder)
    sharded(folder)
    shutil.move(folder / "a.safetensors", tmp_path / "outside")
    (folder / "a.safetensors").symlink_to(tmp_path / "outside")
    with pytest.raises(TensorFileError, match=r"a link to .*outside, out of its folder"):
        read_tensors(folder)


@pytest.mark.parametrize("shard", ["model.safetensors.index.json", "other.index.json"])
def test_an_index_names_no_index(tmp_path, shard):
    folder = sharded(tmp_path / "model")
    for name in ("model.safetensors.index.json", "other.index.json"):
        (folder / name).write_text(json.dumps({"weight_map": {"x": shard}}))
    with pytest.raises(TensorFileError, match=f"names '{shard}', which is an index itself"):
        read_tensors(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without pipes of this kind")
def test_pipes_are_not_waited_for(tmp_path):
    pipe = tmp_path / "model.safetensors"
    os.mkfifo(pipe)
    for read in (
        lambda: read_tensors(pipe),
        lambda: read_tensors(tmp_path),
        lambda: load_state(pipe),
        lambda: inspect_checkpoint(pipe),
        lambda: verify_checkpoint(pipe),
    ):
        with pytest.raises(CheckpointError, match="is a pipe or a device, no file"):
            read()


def test_the_cache_of_hugging_face(tmp_path):
    """It keeps files in ``blobs``, and links to them from ``snapshots/<revision>``."""
    (tmp_path / "snapshots").mkdir()
    folder = sharded(tmp_path / "snapshots" / "abc")
    (tmp_path / "blobs").mkdir()
    for file in sorted(folder.iterdir()):
        shutil.move(file, tmp_path / "blobs" / f"sha-{file.name}")
        file.symlink_to(f"../../blobs/sha-{file.name}")
    assert len(read_tensors(folder)) == 3


def test_a_folder_without_an_index(tmp_path):
    with pytest.raises(TensorFileError, match="no file of tensors; it has nothing"):
        read_tensors(tmp_path)
    one(tmp_path / "weights.safetensors", a=np.ones(1))
    (tmp_path / "config.json").write_text("{}")
    assert list(read_tensors(tmp_path)) == ["a"]
    one(tmp_path / "other.safetensors", b=np.ones(1))
    with pytest.raises(TensorFileError, match="several files of tensors: "):
        read_tensors(tmp_path)
    one(tmp_path / "model.safetensors", c=np.ones(1))
    assert list(read_tensors(tmp_path)) == ["c"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\x89HDF\r\n\x1a\nrest", "is an HDF5 file; read it with h5py"),
        (b"\x80\x04}.", "is a bare pickle, which can hold anything"),
        (b"PK\x03\x04rest", "is a zip archive that is damaged or truncated"),
        (b"something else", "is of no kind that is known"),
    ],
)
def test_files_of_no_known_kind(tmp_path, content, message):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(TensorFileError, match=message):
        read_tensors(tmp_path / "model.safetensors")


def test_two_sources_for_one_file_are_named(tmp_path):
    one(tmp_path / "file", a=np.ones(1))

    class Plugin:
        @nnx.hookimpl
        def moduli_tensor_sources(self):
            return [TensorSource("mine", lambda opened: True, lambda path: read_tensors({}))]

    with nnx.using(Plugin()):
        with pytest.raises(TensorFileError, match="say which: format="):
            read_tensors(tmp_path / "file")
        assert len(read_tensors(tmp_path / "file", format="mine")) == 0
        with pytest.raises(
            TensorFileError, match="no kind of source 'other'; known are index, mine"
        ):
            read_tensors(tmp_path / "file", format="other")


def test_a_process_without_torch_reads_torchs_files(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.arange(3.0)}, tmp_path / "new")
    torch.save({"a": torch.arange(3.0)}, tmp_path / "old", _use_new_zipfile_serialization=False)
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from moduli_interop import read_tensors\n"
        "for path in sys.argv[1:]: print(read_tensors(path)['a'].read())\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "new"), str(tmp_path / "old")],
        capture_output=True,
        text=True,
    )
    assert run.stdout.split("\n")[:2] == ["[0. 1. 2.]"] * 2, run.stderr


def test_a_part_reads_no_other_rows(tmp_path):
    array = np.arange(60, dtype=np.int16).reshape(5, 4, 3)
    one(tmp_path / "file", a=array, s=np.float32(2)[()].reshape(()))
    tensor = read_tensors(tmp_path / "file")["a"]
    asked = []
    object.__setattr__(
        tensor,
        "read_rows",
        lambda rows, inner=tensor.read_rows: (asked.append(rows), inner(rows))[1],
    )
    for index in [
        *(2, -1, slice(1, 3), slice(None), slice(None, None, 2), slice(4, 0, -2), slice(3, 1)),
        *((1, 2), (slice(1, 3), 0), (slice(3, None, -1), slice(1, 3), -1), (0, ..., 1)),
        *(..., (..., 1), None, [0, 3], (), np.array([True, False, True, False, True])),
    ]:
        np.testing.assert_array_equal(tensor[index], array[index])
    assert slice(2, 3) in asked
    assert slice(1, 3) in asked
    with pytest.raises(IndexError, match="index 5 is out of bounds"):
        tensor[5]
    assert read_tensors(tmp_path / "file")["s"][()] == 2
