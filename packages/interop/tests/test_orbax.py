"""The format that orbax writes: shards, several processes, and every file with its digest."""

from __future__ import annotations

import os
import pathlib
import random
import re
import socket
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_strategies import EXTENDED, NATIVE, bits, dtype_of, random_array, state_bits

import moduli as nnx
from moduli_interop import (
    CheckpointError,
    CheckpointManager,
    CorruptCheckpointError,
    NotACheckpointError,
    inspect_checkpoint,
    load,
    load_state,
    save,
    verify_checkpoint,
)

pytest.importorskip("orbax.checkpoint")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "model.orbax"


def test_everything_comes_back_bit_by_bit(path: pathlib.Path) -> None:
    names = NATIVE + EXTENDED
    numpy_arrays = {name: random_array(dtype_of(name), (3, 5), 0) for name in names}
    empty = {f"{name}0": random_array(dtype_of(name), (0, 5), 0) for name in names}
    jax_arrays = {
        f"{name}1": jnp.asarray(numpy_arrays[name]) for name in (*NATIVE[:4], "bfloat16", "int4")
    }
    others = {
        "weak": jnp.full((3,), 2.5),
        "key": jax.random.key(3),
        "scalar": np.float32(1.5),
        "mixed": nnx.Variable((1, {"a": jnp.ones(2), 3: None}, "text")),
        "param": nnx.Param(jnp.arange(6.0).reshape(2, 3)),
    }
    state = nnx.State({**numpy_arrays, **empty, **jax_arrays, **others})
    save(path, state, metadata={"epoch": 3})
    assert state_bits(load_state(path)) == state_bits(state)
    assert inspect_checkpoint(path).metadata == {"epoch": 3}
    fresh = nnx.State({"param": nnx.Param(jnp.zeros((2, 3))), **{
        key: value for key, value in state.items() if key != "param"
    }})  # fmt: skip
    assert state_bits(load(path, fresh)) == state_bits(state)
    assert bits(load_state(path, only="param")["param"]) == bits(state["param"])


def test_weak_arrays_of_a_program_without_64_bits(path: pathlib.Path) -> None:
    with jax.enable_x64(False):
        weak = jnp.full((2,), 2.5)
        save(path, {"a": weak})
    with jax.enable_x64(True):
        loaded = load_state(path)["a"]
    assert loaded.weak_type and loaded.dtype == weak.dtype and loaded.tolist() == [2.5] * 2


def test_a_checkpoint_without_arrays_and_one_that_is_replaced(path: pathlib.Path) -> None:
    save(path, {"x": 3})
    assert load_state(path)["x"] == 3
    save(path, {"x": jnp.ones(3)})
    assert load_state(path)["x"].tolist() == [1.0] * 3
    assert os.listdir(path.parent) == [path.name]


def test_flips_in_every_file_are_found_and_their_array_is_named(path: pathlib.Path) -> None:
    arrays = {f"layer{i}": np.random.default_rng(i).bytes(997) for i in range(5)}
    save(path, nnx.State({key: np.frombuffer(data, np.uint8) for key, data in arrays.items()}))
    rng = random.Random(0)
    files = [file for file in path.rglob("*") if file.is_file() and file.stat().st_size]
    assert len(files) > 10
    for file in files * 3:
        original = file.read_bytes()
        damaged = bytearray(original)
        damaged[rng.randrange(len(original))] ^= 1 << rng.randrange(8)
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError) as error:
            verify_checkpoint(path)
        if re.fullmatch(r"array\d+", file.parent.name):
            number = file.parent.name.removeprefix("array")
            assert f"damaged: `layer{number}`" in str(error.value)
        file.write_bytes(original)
    with pytest.raises(CorruptCheckpointError):
        (path / "more").write_text("not of ours")
        load_state(path)
    (path / "more").unlink()
    os.unlink(files[-1])
    with pytest.raises(CheckpointError):
        load_state(path)


def test_other_folders_are_named_as_such(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.orbax").mkdir()
    with pytest.raises(NotACheckpointError, match="has no manifest"):
        load_state(tmp_path / "a.orbax")
    with pytest.raises(FileNotFoundError):
        load_state(tmp_path / "b.orbax")


def test_the_manager_keeps_steps_of_it(tmp_path: pathlib.Path) -> None:
    with CheckpointManager(tmp_path, format="orbax", keep_last=1) as manager:
        for step in range(3):
            manager.save(step, {"x": jnp.full((3,), float(step))})
        assert manager.steps() == [2] and manager.latest() == 2
        assert manager.load({"x": jnp.zeros(3)})["x"].tolist() == [2.0] * 3
    assert len([name for name in os.listdir(tmp_path) if name.startswith("step_")]) == 2


PROGRAM = """
import sys, jax, jax.numpy as jnp, numpy as np
address, count, number, folder, do = sys.argv[1:]
if int(count) > 1:
    jax.distributed.initialize(address, int(count), int(number))
import moduli as nnx
from moduli_interop import CheckpointManager, load, save
from jax.sharding import NamedSharding, PartitionSpec as P
devices = jax.devices()
sharding = NamedSharding(jax.make_mesh((len(devices),), ("x",)), P("x"))
value = np.random.default_rng(0).standard_normal((16, 33)).astype(np.float32)
def array(value):
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])
manager = CheckpointManager(folder, format="orbax", keep_last=1)
if do == "save":
    for step in range(2):
        manager.save(step, {"a": nnx.Param(array(value + step)), "n": step})
    assert manager.steps() == [1]
else:
    shape = jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding)
    for like in (array(value * 0), shape):
        tree = manager.load({"a": nnx.Param(like), "n": 0})
        found = tree["a"].value
        assert tree["n"] == 1 and found.sharding == sharding
        for shard in found.addressable_shards:
            assert np.array_equal(shard.data, (value + 1)[shard.index])
print("done", len(devices))
"""


def processes(count: int, devices: int, folder: pathlib.Path, do: str) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{found.getsockname()[1]}"
    flags = f"--xla_force_host_platform_device_count={devices}"
    alone = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
    running: list[Any] = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, address, str(count), str(n), str(folder), do],
            env={**alone, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for n in range(count)
    ]
    for process in running:
        out, err = process.communicate(timeout=120)
        assert f"done {count * devices}" in out, err[-3000:]


def test_several_processes_write_what_one_reads_and_back(tmp_path: pathlib.Path) -> None:
    processes(2, 2, tmp_path, "save")
    processes(1, 1, tmp_path, "load")
    processes(1, 8, tmp_path, "save")
    processes(2, 2, tmp_path, "load")


@pytest.mark.parametrize("dtype", ["bfloat16", "int4", "float8_e4m3fn", "bool", "float32"])
def test_empty_array_of_jax_fills_a_model(dtype: str, path: pathlib.Path) -> None:
    save(path, {"x": jnp.zeros((3, 0), dtype), "y": jnp.ones(2)})
    got = load(path, {"x": jnp.zeros((3, 0), dtype), "y": jnp.zeros(2)})
    assert isinstance(got["x"], jax.Array)
    assert (got["x"].dtype, got["x"].shape) == (jnp.dtype(dtype), (3, 0))


def test_folder_with_other_things_in_it_is_not_replaced(tmp_path: pathlib.Path) -> None:
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(FileExistsError, match=r"thesis\.tex"):
        save(tmp_path, {"x": jnp.ones(2)}, format="orbax")
    assert (tmp_path / "thesis.tex").read_text() == "years"


def test_error_of_the_disk_is_an_oserror(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import orbax.checkpoint as ocp

    def fail(*args: object, **kwargs: object) -> None:
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device [os_error_code='28']")

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "save", fail, raising=True)
    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "async_save", fail, raising=True)
    with pytest.raises(OSError, match="No space left") as caught:
        save(path, {"x": jnp.ones(2)})
    assert caught.value.errno == 28 and not path.exists()
