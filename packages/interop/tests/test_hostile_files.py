"""Files of tensors made to do harm, or damaged: nothing is run, one class of error comes out."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest

from moduli_interop import CheckpointError, TensorFileError, read_tensors
from moduli_interop._safetensors import Spec, write

STORAGE = b"((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x04tQ"
"""The persistent id of a storage of four numbers, and what comes for it."""


def rebuilt(offset: bytes, shape: bytes, strides: bytes) -> bytes:
    """Makes the pickle of ``{"a": tensor}`` on that storage."""
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE.replace(b"((", b"(", 1)
    return b"\x80\x02}X\x01\0\0\0a" + call + offset + shape + strides + b"\x89}tRs."


def nested(count: int) -> bytes:
    """Makes a pickle of a tuple in a tuple in a tuple."""
    return b"\x80\x02)" + b"\x85" * count + b"."


def laughs(levels: int) -> bytes:
    """Makes a list that holds the one before it ten times, again and again."""
    text = b"\x80\x02]q\x00"
    for level in range(levels):
        text += (
            b"](" + b"h" + bytes([level]) + (b"h" + bytes([level])) * 9 + b"eq" + bytes([level + 1])
        )
    return text + b"."


HARMLESS = {
    "system": b"cposix\nsystem\n(S'touch HARM'\ntR.",
    "os": b"cos\nsystem\nX\x0a\0\0\0touch HARM\x85R.",
    "stack global": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x0atouch HARM\x85R.",
    "eval": b"\x80\x02cbuiltins\neval\nX\x12\0\0\0__import__('antigr\x85R.",
    "python 2": b"c__builtin__\nexec\n(S'1'\ntR.",
    "import": b"cantigravity\ngeolocate\n.",
    "popen": b"csubprocess\nPopen\n(S'touch HARM'\ntR.",
    "inst": b"(S'touch HARM'\niposix\nsystem\n.",
    "obj": b"(cposix\nsystem\nS'touch HARM'\no.",
    "newobj": b"\x80\x02csubprocess\nPopen\nX\x0a\0\0\0touch HARM\x85\x81.",
    "newobj_ex": b"\x80\x04csubprocess\nPopen\nX\x0a\0\0\0touch HARM\x85}\x92.",
    "build": b"\x80\x02csubprocess\nPopen\n)\x81}X\x04\0\0\0argsX\x05\0\0\0touchsb.",
    "extension": b"\x80\x02\x82\x01.",
    "open": b"cbuiltins\nopen\n(S'HARM'\nS'w'\ntR.",
    "torch.hub": b"ctorch.hub\nload\n(S'x/y'\nS'z'\ntR.",
    "torch's load": b"ctorch\nload\n(S'HARM'\ntR.",
    "attribute": b"cbuiltins\ngetattr\n(cos\npath\nS'os'\ntR.",
    "from type": b"ctorch._tensor\n_rebuild_from_type_v2\n(cposix\nsystem\nNS'touch HARM'\n"
    b"\x85NtR.",
    "codecs": b"c_codecs\nencode\n(X\x01\0\0\0aX\x06\0\0\0latin1tR.",
    "numpy": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\0\x85S'b'\ntR.",
    "deep": nested(500_000),
    "deep key": b"\x80\x02})" + b"\x85" * 200_000 + b"K\x01s.",
}
DAMAGED = {
    "cycle": (b"\x80\x02]q\x00h\x00a.", "nested deeper than 100 levels"),
    "laughs": (laughs(30), "has more than|nested deeper"),
    "many": (b"\x80\x02" + b"(}}}}}}}}}}}}}}}}t0" * 150_000 + b".", "more than 2000000 objects"),
    "no end": (b"\x80\x02}", "the pickle is damaged"),
    "empty": (b"", "the pickle"),
    "marks": (b"(" * 50_000 + b".", "a mark stands in place of a value"),
    "no mark": (b"\x80\x02}u.", "a mark is missing"),
    "unsaid": (b"\x80\x02h\x07.", "refers to what it has not said"),
    "no container": (b"\x80\x02K\x01K\x02a.", "a container is missing"),
    "odd": (b"\x80\x02}(K\x01u.", "a key has no value"),
    "long text": (b"\x80\x02X\xff\xff\xff\x7fabc.", "the pickle is damaged"),
    "long bytes": (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc.", "the pickle is damaged"),
    "long number": (b"\x80\x02\x8b\xff\xff\xff\x7f\x01.", "the pickle is damaged"),
    "no number": (b"I1e5\n.", "the pickle is damaged"),
    "no opcode": (b"\x80\x02\xff.", "the pickle is damaged"),
    "no storage": (b"\x80\x02K\x01Q.", "none of a storage"),
    "arguments": (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nK\x01R.", "arguments are no tuple"),
    "few": (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.", "the pickle is damaged"),
    "no tensor": (b"ctorch._utils\n_rebuild_tensor_v2\n(NK\0))\x89NtR.", "a tensor has no storage"),
    "beyond": (
        rebuilt(b"K\x00", b"K\x05\x85", b"K\x01\x85"),
        "reaches beyond the end of its storage",
    ),
    "offset": (
        rebuilt(b"K\x01", b"K\x04\x85", b"K\x01\x85"),
        "reaches beyond the end of its storage",
    ),
    "stride": (
        rebuilt(b"K\x00", b"K\x02\x85", b"K\x04\x85"),
        "reaches beyond the end of its storage",
    ),
    "negative": (rebuilt(b"K\x03", b"K\x02\x85", b"J\xff\xff\xff\xff\x85"), "are no sizes"),
    "expanded": (
        rebuilt(b"K\x00", b"\x8a\x05\0\0\0\0\x10\x85", b"K\x00\x85"),
        "is expanded from 16 bytes",
    ),
    "empty and huge": (
        rebuilt(b"K\x00", b"(K\x00\x8a\x06\0\0\0\0\0\x10\x8a\x06\0\0\0\0\0\x10t", b"(K\0K\0K\0t"),
        "a shape that no array has",
    ),
    "storage": (
        rebuilt(b"K\x00", b"K\x04\x85", b"K\x01\x85").replace(b"FloatStorage", b"nn\nLinear"[:2]),
        "is not known",
    ),
}


def archive(text: bytes) -> bytes:
    """Makes a torch file around a pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("archive/data.pkl", text)
        made.writestr("archive/data/0", np.arange(4, dtype=np.float32).tobytes())
        made.writestr("archive/version", "3\n")
    return file.getvalue()


def legacy(text: bytes) -> bytes:
    """Makes a file as torch wrote them before version 1.6."""
    first = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    head = b"".join(pickle.dumps(value, 2) for value in first)
    return head + text + pickle.dumps([], 2)


WATCHED = """
import json, os, sys
sys.modules["torch"] = None
from moduli_interop import TensorFileError, read_tensors
folder = sys.argv[1]
files = sorted(os.listdir(folder))
def run(name):
    try:
        return len(read_tensors(os.path.join(folder, name)))
    except TensorFileError as error:
        return str(error)[:300]
for name in ("first.zip", "first.old"): run(name)  # whatever is imported for it, is imported now
seen, found = [], {}
def hook(event, arguments):
    if event == "open" and str(arguments[0]).startswith(folder) and "w" not in str(arguments[1]):
        return
    if event in ("import", "exec", "compile", "open") or event.split(".")[0] in (
        "os", "subprocess", "socket", "ctypes", "pickle", "shutil", "marshal", "code", "mmap",
    ):
        seen.append([event, str(arguments)[:200]])
sys.addaudithook(hook)
for name in files:
    found[name] = run(name)
saw = list(seen)
print(json.dumps([found, saw]))
"""


def test_nothing_is_imported_called_or_opened(tmp_path):
    for name, text in HARMLESS.items():
        (tmp_path / f"{name}.zip").write_bytes(archive(text))
        (tmp_path / f"{name}.old").write_bytes(legacy(text))
    for name, (text, _) in DAMAGED.items():
        (tmp_path / f"{name}.zip").write_bytes(archive(text))
    (tmp_path / "first.zip").write_bytes(archive(b"}."))
    (tmp_path / "first.old").write_bytes(legacy(b"}."))
    run = subprocess.run(
        [sys.executable, "-c", WATCHED, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found, seen = json.loads(run.stdout)
    assert seen == []
    assert len(found) > 60
    for name in HARMLESS:
        if "deep" not in name:
            assert found[f"{name}.zip"] == 0, name
            assert found[f"{name}.old"] == 0, name
    assert not (tmp_path / "HARM").exists()


@pytest.mark.parametrize(("text", "message"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_pickles_are_refused(tmp_path, text, message):
    (tmp_path / "file").write_bytes(archive(text))
    with pytest.raises(TensorFileError, match=message):
        read_tensors(tmp_path / "file")


def test_the_corpus_itself_is_well_formed(tmp_path):
    (tmp_path / "file").write_bytes(archive(rebuilt(b"K\x01", b"K\x03\x85", b"K\x01\x85")))
    np.testing.assert_array_equal(read_tensors(tmp_path / "file")["a"].read(), [1, 2, 3])


def zipped(change, members=None) -> bytes:
    """Makes a torch file whose archive is changed."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for name, data in (members or {}).items():
            made.writestr(name, data)
        change(made)
    return file.getvalue()


def test_a_member_that_is_damaged_names_its_tensor(tmp_path):
    content = bytearray(archive(rebuilt(b"K\x00", b"K\x04\x85", b"K\x01\x85")))
    at = content.index(np.float32(3).tobytes())
    content[at] ^= 1
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(
        TensorFileError, match="the tensor 'a': its bytes are damaged: the checksum"
    ):
        read_tensors(tmp_path / "file")["a"].read()


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (
            "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }",
            "should have 8000",
        ),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", "nothing here unpickles"),
        ("{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (1,), }", "no numbers"),
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }", "has no shape"),
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (True,), }", "has no shape"),
        ("{'descr': '<f8', 'fortran_order': False}", "its header is damaged"),
        ("__import__('os').system('touch HARM')", "its header is damaged"),
        ("(" * 5000, "its header is damaged"),
    ],
)
def test_headers_of_arrays_are_checked(tmp_path, header, message):
    text = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("a.npy", text + bytes(8))
    (tmp_path / "file").write_bytes(file.getvalue())
    with pytest.raises(TensorFileError, match=f"the tensor 'a': .*{message}"):
        read_tensors(tmp_path / "file")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_with_tricks(tmp_path):
    good = io.BytesIO()
    np.save(good, np.ones(3))
    path = tmp_path / "file"
    path.write_bytes(zipped(lambda z: z.writestr("a.npy", b""), {"a.npy": good.getvalue()}))
    with pytest.raises(TensorFileError, match=r"the member 'a\.npy' twice"):
        read_tensors(path)
    content = bytearray(zipped(lambda z: None, {"a.npy": good.getvalue()}))
    for signature, at in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        content[content.index(signature) + at] |= 1
    path.write_bytes(content)
    with pytest.raises(TensorFileError, match="the member is encrypted"):
        read_tensors(path)
    bomb = zipfile.ZipInfo("a.npy")
    bomb.compress_type = zipfile.ZIP_DEFLATED
    head = b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False, 'shape': (%d,), }"
    text = (head % (200 * 2**20)).ljust(127) + b"\n" + bytes(200 * 2**20)
    path.write_bytes(zipped(lambda z: z.writestr(bomb, text)))
    tracemalloc.start()
    assert read_tensors(path)["a"].shape == (200 * 2**20,)
    assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    tracemalloc.stop()


def examples(folder):
    """Makes a small file of each kind."""
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, np.int8)}
    write(
        folder / "safetensors",
        [Spec(n, a.dtype, a.shape, lambda a=a: a) for n, a in arrays.items()],
    )
    with open(folder / "npz", "wb") as file:
        np.savez(file, **arrays)
    with open(folder / "deflated", "wb") as file:
        np.savez_compressed(file, **arrays)
    with open(folder / "npy", "wb") as file:
        for array in arrays.values():
            np.save(file, array)
    (folder / "torch").write_bytes(archive(rebuilt(b"K\x01", b"K\x03\x85", b"K\x01\x85")))
    serialization = pytest.importorskip("flax.serialization")
    (folder / "msgpack").write_bytes(serialization.msgpack_serialize({"p": arrays, "n": 3}))
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.ones(2, 3)}, folder / "legacy", _use_new_zipfile_serialization=False)
    return sorted(folder.iterdir())


def test_a_changed_file_is_read_or_refused_with_one_class_of_error(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "good").mkdir()
    path = tmp_path / "changed"
    tracemalloc.start()
    for good in examples(tmp_path / "good"):
        content = good.read_bytes()
        for _ in range(40):
            changed = bytearray(content)
            start, stop = sorted(rng.integers(0, len(content), 2))
            match rng.integers(5):
                case 0:
                    changed[start] ^= 1 << rng.integers(8)
                case 1:
                    changed[start] = rng.integers(256)
                case 2:
                    del changed[start:]
                case 3:
                    del changed[start : min(stop, start + 9)]
                case 4:
                    changed[start:start] = changed[start : min(stop, start + 40)]
            path.write_bytes(changed)
            try:
                for tensor in read_tensors(path).values():
                    tensor.read()
            except CheckpointError:
                pass
    assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"\n  <!DOCTYPE html><title>404</title>", "is a web page or XML"),
        (b"\x1f\x8b\x08rest", "is compressed by gzip"),
        (b"GGUF\x03\0\0\0", "is a GGUF file"),
        (b"name" + bytes(253) + b"ustar\0" + bytes(200), "is a tar archive"),
    ],
)
def test_what_stands_in_the_place_of_a_file_of_tensors_is_said(tmp_path, content, told):
    (tmp_path / "model.safetensors").write_bytes(content)
    for path in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(TensorFileError, match=told):
            read_tensors(path)
