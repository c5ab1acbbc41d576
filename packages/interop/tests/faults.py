"""Faults that checkpoints must survive: damaged and forged files, flipped bits, killed processes.

``python packages/interop/tests/faults.py`` (``nox -s faults``) does all of it and prints figures;
``test_faults.py`` does a little of each. A fault that is not survived is an AssertionError.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import pathlib
import random
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

import moduli as nnx
from moduli_interop import (
    CheckpointError,
    CheckpointManager,
    CorruptCheckpointError,
    load_state,
    save,
    verify_checkpoint,
)
from moduli_interop._npz.layout import DIGITS as NPZ_DIGITS
from moduli_interop._orbax.layout import first_line
from moduli_interop._single_file.layout import DIGEST, DIGITS, header_digest, place_of

FORMATS = ("safetensors", "npz")
ABOVE_THE_FILE = 64 << 20  # bytes of memory that reading a bad file may take besides its length


def tree(value: int = 0, size: int = 60) -> nnx.State:
    """Values of every kind, in numpy: nothing of it starts a backend of JAX."""
    rng = np.random.default_rng(0)
    square = rng.standard_normal((3, 3)).astype(np.float32)
    return nnx.State(
        {
            "square": nnx.Param(square),
            "same": nnx.Param(square + 1),
            "long": np.full(size, value, np.int64),
            "blocks": {0: {"bias": nnx.BatchStat(rng.integers(0, 9, 7).astype(np.int8))}},
            "mixed": nnx.Variable((np.float16(1.5), {"a": 2.5, 3: None}, [True, "text", 10**30])),
        }
    )


def content(format: str, folder: pathlib.Path) -> bytes:
    path = folder / f"original.{format}"
    save(path, tree(), metadata={"epoch": 3})
    return path.read_bytes()


def values(state: nnx.State) -> Any:
    def plain(value: Any) -> Any:
        if isinstance(value, (np.ndarray, np.generic)):
            return (value.dtype.name, value.shape, value.tobytes())
        return value

    found = {}
    for path, leaf in nnx.to_flat_state(state).items():
        held = leaf.get_raw_value() if isinstance(leaf, nnx.Variable) else leaf
        held = tuple(map(plain, held)) if isinstance(held, tuple) else plain(held)
        found[path] = (type(leaf).__name__ if isinstance(leaf, nnx.Variable) else "", held)
    return found


# -- mutations -------------------------------------------------------------------------------------


def _flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 2, 8))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def _remove(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    del data[start : start + rng.choice((1, 4, 8, 100))]


def _insert(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data) + 1)
    data[start:start] = rng.randbytes(rng.choice((1, 4, 8, 1000)))


def _overwrite(data: bytearray, rng: random.Random) -> None:
    start, length = rng.randrange(len(data)), rng.choice((1, 2, 4, 8, 64))
    end = min(start + length, len(data))
    fill = rng.choice((b"\0", b"\xff", b"[", b"9", b'"', b"{"))
    data[start:end] = fill * (end - start)


def _exchange(data: bytearray, rng: random.Random) -> None:
    length = rng.choice((1, 4, 36, 100))
    a, b = (rng.randrange(max(len(data) - length, 1)) for _ in range(2))
    data[a : a + length], data[b : b + length] = data[b : b + length], data[a : a + length]


def _number(data: bytearray, rng: random.Random) -> None:
    places = list(re.finditer(rb"\d+", data))
    place = rng.choice(places)
    new = rng.choice((0, 1, 2, 7, 255, 2**31, 2**63, 10**12, 10**40, -1))
    data[place.start() : place.end()] = str(new).encode()


def _token(data: bytearray, rng: random.Random) -> None:
    """Exchanges a word of the manifest for another of it."""
    words = list(re.finditer(rb"[a-z_0-9]{2,}|[\[\]{},:]", data))
    place, other = rng.choice(words), rng.choice(words)
    data[place.start() : place.end()] = other.group()


def _repeat(data: bytearray, rng: random.Random) -> None:
    start, length = rng.randrange(len(data)), rng.choice((1, 10, 100))
    piece = data[start : start + length]
    data[start:start] = piece * rng.choice((1, 2, 100))


MUTATIONS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _flip,
    _cut,
    _remove,
    _insert,
    _overwrite,
    _exchange,
    _number,
    _token,
    _repeat,
)


def forged(data: bytes, format: str) -> bytes:
    """Makes the digest of a mutated file right again, as somebody could who knows the format."""
    if format == "npz":
        body = data[:-NPZ_DIGITS]
        return body + hashlib.sha256(body + b"0" * NPZ_DIGITS).hexdigest().encode()
    length = 8 + int.from_bytes(data[:8], "little")
    header = data[:length]
    with contextlib.suppress(ValueError):
        place = place_of(header, DIGEST, DIGITS)
        header = header[:place] + header_digest(header).encode() + header[place + DIGITS :]
    return header + data[length:]


def _header_only(data: bytes, mutate: Any, rng: random.Random, format: str) -> bytes:
    """Mutates what describes the arrays, so that more of it is believed."""
    if format == "safetensors":
        length = 8 + int.from_bytes(data[:8], "little")
        header = bytearray(data[8:length])
        mutate(header, rng)
        return len(header).to_bytes(8, "little") + bytes(header) + data[length:]
    start = data.index(b'{"moduli_version"')
    end = data.index(b"PK\x03\x04", start)
    header = bytearray(data[start:end])
    mutate(header, rng)
    return data[:start] + bytes(header) + data[end:]


def mutations(format: str, count: int, seed: int = 0) -> Counter[str]:
    """Reads mutated files; only a CheckpointError may come of it, and with little memory.

    Returns:
      How often each error was raised, ``"read"`` for forged files that are right, and ``"peak"``,
      the most bytes of memory.
    """
    rng = random.Random(seed)
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        original = content(format, folder)
        expected = values(load_state(folder / f"original.{format}"))
        path = folder / f"mutated.{format}"
        for number in range(count):
            mutate = rng.choice(MUTATIONS)
            kind = number % 3
            if kind == 0:
                changed = bytearray(original)
                mutate(changed, rng)
                data = bytes(changed)
            else:
                data = _header_only(original, mutate, rng, format)
                if kind == 2:
                    data = forged(data, format)
            if data == original:
                continue
            path.write_bytes(data)
            tracemalloc.start()
            try:
                got = values(load_state(path))
            except CheckpointError as error:
                found[type(error).__name__] += 1
                assert len(str(error)) < 20_000, str(error)[:1000]
            except BaseException as error:
                kept = pathlib.Path(tempfile.gettempdir()) / f"escaped.{format}"
                kept.write_bytes(data)
                raise AssertionError(
                    f"mutation {number} ({mutate.__name__}): see {kept}"
                ) from error
            else:
                found["read"] += 1
                assert kind == 2, f"mutation {number} ({mutate.__name__}) passed silently"
                assert got.keys() or expected
            finally:
                _, peak = tracemalloc.get_traced_memory()
                tracemalloc.stop()
            found["peak"] = max(found["peak"], peak)
            assert peak < len(data) + ABOVE_THE_FILE, (number, peak)
    return found


def well_formed(count: int = 50, seed: int = 0) -> int:
    """Rewrites safetensors files so that they stay right, but hold something else.

    Two arrays of one shape are exchanged, a square one is transposed, one is dropped, doubled or
    renamed; all but the arrays' digests is made right.

    Returns:
      How many were refused, which is all of them.
    """
    rng = random.Random(seed)
    refused = 0
    with tempfile.TemporaryDirectory() as name:
        original = content("safetensors", pathlib.Path(name))
        path = pathlib.Path(name, "rewritten.safetensors")
        length = 8 + int.from_bytes(original[:8], "little")
        header = json.loads(original[8:length])
        for number in range(count):
            described = json.loads(json.dumps(header))
            data = bytearray(original[length:])
            names = [key for key in described if key != "__metadata__"]
            kind = ("exchange", "transpose", "drop", "double", "rename", "order")[number % 6]
            if kind in ("exchange", "order"):
                one, two = described["square"], described["same"]
                if kind == "order":
                    one["data_offsets"], two["data_offsets"] = (
                        two["data_offsets"],
                        one["data_offsets"],
                    )
                else:
                    a, b = one["data_offsets"], two["data_offsets"]
                    data[slice(*a)], data[slice(*b)] = data[slice(*b)], data[slice(*a)]
            elif kind == "transpose":
                place = slice(*described[rng.choice(("square", "same"))]["data_offsets"])
                square = np.frombuffer(bytes(data[place]), np.float32).reshape(3, 3)
                data[place] = square.T.tobytes()
            elif kind == "rename":
                described["other"] = described.pop(rng.choice(names))
            else:
                last = max(names, key=lambda key: described[key]["data_offsets"])
                start, end = described[last]["data_offsets"]
                if kind == "drop":
                    del described[last], data[start:end]
                else:
                    described["copy"] = {
                        **described[last],
                        "data_offsets": [end, 2 * end - start],
                    }
                    data += data[start:end]
            text = json.dumps(described, separators=(",", ":")).encode()
            rewritten = len(text).to_bytes(8, "little") + text + bytes(data)
            path.write_bytes(forged(rewritten, "safetensors"))
            try:
                load_state(path)
            except CheckpointError:
                refused += 1
            else:
                raise AssertionError(f"{kind} passed silently")
    return refused


# -- flips -----------------------------------------------------------------------------------------


def flips(format: str, count: int, seed: int = 0) -> tuple[int, int]:
    """Flips single bits.

    Returns:
      How many were found, which is all of them; and how many were in an array, which was named.
    """
    rng = random.Random(seed)
    named = 0
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        path = folder / f"flipped.{format}"
        arrays = {f"layer{i}": np.random.default_rng(i).bytes(997) for i in range(20)}
        save(path, nnx.State({key: np.frombuffer(data, np.uint8) for key, data in arrays.items()}))
        original = path.read_bytes()
        places = {key: original.index(data) for key, data in arrays.items()}
        for _ in range(count):
            position = rng.randrange(len(original))
            damaged = bytearray(original)
            damaged[position] ^= 1 << rng.randrange(8)
            path.write_bytes(damaged)
            inside = [key for key, at in places.items() if at <= position < at + 997]
            for use in (load_state, verify_checkpoint):
                try:
                    use(path)
                except CheckpointError as error:
                    if inside:
                        assert isinstance(error, CorruptCheckpointError), error
                        assert f"damaged: `{inside[0]}`" in str(error), error
                else:
                    raise AssertionError(f"the flip at {position} was not found")
            named += len(inside)
    return count, named


# -- folders that orbax writes ---------------------------------------------------------------------


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file() and file.stat().st_size)


def _forged_manifest(data: bytes) -> bytes:
    text = data.partition(b"\n")[2]
    return first_line(1, text) + text


def folder_mutations(count: int, seed: int = 0) -> Counter[str]:
    """Reads folders of which one file is mutated, as :func:`mutations` does with files."""
    rng = random.Random(seed)
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name, "model.orbax")
        save(folder, tree(), metadata={"epoch": 3})
        files = _files(folder)
        for number in range(count):
            kind = number % 3
            file = folder / "manifest.json" if kind else rng.choice(files)
            original = file.read_bytes()
            changed = bytearray(original)
            mutate = rng.choice(MUTATIONS[:-3] if kind == 0 else MUTATIONS)
            mutate(changed, rng)
            data = _forged_manifest(bytes(changed)) if kind == 2 else bytes(changed)
            if data == original:
                continue
            file.write_bytes(data)
            tracemalloc.start()
            try:
                load_state(folder)
            except CheckpointError as error:
                found[type(error).__name__] += 1
            except BaseException as error:
                kept = pathlib.Path(tempfile.gettempdir(), "escaped.json")
                kept.write_bytes(data)
                raise AssertionError(
                    f"mutation {number} ({mutate.__name__}): see {kept}"
                ) from error
            else:
                found["read"] += 1
                assert kind == 2, f"mutation {number} ({mutate.__name__}) passed silently"
            finally:
                _, peak = tracemalloc.get_traced_memory()
                tracemalloc.stop()
            found["peak"] = max(found["peak"], peak)
            assert peak < len(data) + ABOVE_THE_FILE, (number, peak)
            file.write_bytes(original)
    return found


def folder_flips(count: int, seed: int = 0) -> tuple[int, int]:
    """Flips single bits in the files of a folder, as :func:`flips` does in a file."""
    rng = random.Random(seed)
    named = 0
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name, "model.orbax")
        rows = {f"layer{i}": np.random.default_rng(i).integers(0, 9, 997) for i in range(20)}
        save(folder, nnx.State(rows))
        names = sorted(rows)  # the order of a State's flat form
        files = _files(folder)
        for _ in range(count):
            (file,) = rng.choices(files, [file.stat().st_size for file in files])
            original = file.read_bytes()
            damaged = bytearray(original)
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
            file.write_bytes(damaged)
            inside = re.fullmatch(r"array(\d+)", file.parent.name)
            for use in (load_state, verify_checkpoint):
                try:
                    use(folder)
                except CheckpointError as error:
                    text = str(error)
                    assert not inside or f"damaged: `{names[int(inside[1])]}`" in text, text
                else:
                    raise AssertionError(f"a flip in {file} was not found")
            named += inside is not None
            file.write_bytes(original)
    return count, named


# -- kills -----------------------------------------------------------------------------------------


def kills(what: str, count: int, seed: int = 0) -> tuple[int, int]:
    """Kills processes that save, at random moments.

    This process forks, so it must not have started a backend of JAX; see :func:`kills_apart`.

    Args:
      what: a format, or ``"manager"``.
      count: how many processes.
      seed: of the moments.

    Returns:
      After how many kills everything that a process had said to be saved was there, which is all
      of them; and how many left something behind, which the next save removed.
    """
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        last, left = 0, 0
        if what == "orbax":
            import orbax.checkpoint  # noqa: F401  # here, and not in each process
        _apart(lambda: _saved(what, folder, 0) or 0)
        for number in range(count):
            told = _killed(what, folder, last, rng)
            now = _resumed_apart(what, folder)
            assert now >= max(told, last), (what, number, now, told, last)
            left += any("moduli-tmp" in entry for entry in os.listdir(folder))
            last = now
        _apart(lambda: _saved(what, folder, last + 1) or 0)
        assert _resumed_apart(what, folder) == last + 1
        entries = {entry for entry in os.listdir(folder) if entry != ".moduli-lock"}
        whole = 2 * len(_manager(folder).steps()) if what == "manager" else 1
        assert len(entries) == whole, entries
    return count, left


def _manager(folder: pathlib.Path) -> CheckpointManager:
    return CheckpointManager(folder, keep_last=3)


def _saved(what: str, folder: pathlib.Path, value: int) -> None:
    if what == "manager":
        with _manager(folder) as manager:
            manager.save(value, tree(value, 20_000), metrics={"loss": -value})
    else:
        save(folder / f"model.{what}", tree(value, 20_000), metadata={"value": value})


def _resumed(what: str, folder: pathlib.Path) -> int:
    if what != "manager":
        long = load_state(folder / f"model.{what}")["long"]
    else:
        manager = _manager(folder)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # nothing is half written, so nothing is passed over
            step = manager.latest()
        long = manager.load(tree(0, 20_000))["long"]
        assert step == long[0]
    assert (long == long[0]).all()
    return int(long[0])


def _apart(work: Callable[[], int]) -> int:
    """Does something in a process of its own, which may start a backend of JAX."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.write(writer, b"%d" % work())
            status = 0
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        os._exit(status)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    told = os.read(reader, 100)
    os.close(reader)
    assert status == 0, "it failed"
    return int(told)


def _resumed_apart(what: str, folder: pathlib.Path) -> int:
    return _apart(lambda: _resumed(what, folder))


def _killed(what: str, folder: pathlib.Path, last: int, rng: random.Random) -> int:
    """Forks a process that saves one value after another; returns what it told before its end."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            os.close(reader)
            value = last
            while True:
                value += 1
                _saved(what, folder, value)
                os.write(writer, b"%d\n" % value)
        os._exit(1)
    os.close(writer)
    time.sleep(rng.uniform(0, 2.0 if what == "orbax" else 0.1))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the process ended by itself"
    told = b""
    while select.select([reader], [], [], 1)[0]:
        data = os.read(reader, 1 << 16)
        if not data:
            break
        told += data
    os.close(reader)
    return max(map(int, told.split()), default=0)


def kills_apart(what: str, count: int, seed: int = 0) -> tuple[int, int]:
    """Does :func:`kills` in a process of its own."""
    command = [sys.executable, __file__, "--kills", what, "--count", str(count)]
    done = subprocess.run(
        [*command, "--seed", str(seed)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    survived, left = json.loads(done.stdout)
    return survived, left


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", help="only kill processes that save so")
    parser.add_argument("--count", type=int, default=0, help="how many, instead of the full number")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.kills:
        print(json.dumps(kills(options.kills, options.count or 100, options.seed)))
        return
    for format in FORMATS:
        start = time.perf_counter()
        found = mutations(format, options.count or 10_000, options.seed)
        peak = found.pop("peak") / 2**20
        seconds = time.perf_counter() - start
        print(f"{format}: {sum(found.values())} mutations, {dict(found)}, at most {peak:.1f} MiB, "
              f"{seconds:.0f} s", flush=True)  # fmt: skip
        all_found, named = flips(format, options.count or 500, options.seed)
        print(f"{format}: {all_found} flips, all found; {named} in an array, all named", flush=True)
    print(f"safetensors: {well_formed(600)} well-formed rewritings, all refused", flush=True)
    start = time.perf_counter()
    found = folder_mutations(options.count or 10_000, options.seed)
    peak = found.pop("peak") / 2**20
    print(f"orbax: {sum(found.values())} mutations, {dict(found)}, at most {peak:.1f} MiB, "
          f"{time.perf_counter() - start:.0f} s", flush=True)  # fmt: skip
    all_found, named = folder_flips(options.count or 500, options.seed)
    print(f"orbax: {all_found} flips, all found; {named} in an array, all named", flush=True)
    for what in (*FORMATS, "manager", "orbax"):
        survived, left = kills_apart(what, options.count or 100, options.seed)
        print(f"{what}: {survived} kills, all resumed; {left} left something, all of it removed",
              flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
