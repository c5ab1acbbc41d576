"""Formats come through the hook and are chosen by name or suffix."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import moduli as nnx
from moduli_interop import (
    Checkpoint,
    CheckpointFormatError,
    CorruptCheckpointError,
    Format,
    Leaf,
    StoredArray,
    decode_manifest,
    encode_manifest,
    inspect_checkpoint,
    load,
    load_state,
    save,
)
from moduli_interop._choose import formats


class Memory:
    """A format that keeps checkpoints in a dict."""

    def __init__(self, name: str = "memory", *suffixes: str):
        self.kept: dict[str, Checkpoint] = {}
        self.format = Format(
            name, suffixes or (".mem",), self.kept.__setitem__, self.kept.__getitem__
        )

    @nnx.hookimpl
    def moduli_checkpoint_formats(self) -> list[Format]:
        return [self.format]


def model(value: float) -> nnx.Dict:
    return nnx.Dict({"x": nnx.Param(value)})


def test_built_in_format_comes_through_the_hook() -> None:
    assert formats()["npz"].suffixes == (".npz", ".moduli")


def test_suffix_chooses_the_format() -> None:
    plugin = Memory()
    with nnx.using(plugin):
        save("there.MEM", model(2.0), metadata={"a": 1})
        assert load("there.MEM", model(0.0))["x"].value == 2.0
        assert load_state("there.MEM")["x"].value == 2.0
        assert inspect_checkpoint("there.MEM").format == "memory"
    assert list(plugin.kept) == ["there.MEM"]
    assert plugin.kept["there.MEM"].metadata == {"a": 1}
    assert not pathlib.Path("there.MEM").exists()


def test_argument_wins_over_the_suffix(file: pathlib.Path) -> None:
    plugin = Memory()
    with nnx.using(plugin):
        save(file, model(2.0), format="memory")
        assert load(file, model(0.0), format="memory")["x"].value == 2.0
    assert not file.exists()


def test_unknown_format(file: pathlib.Path) -> None:
    with pytest.raises(
        CheckpointFormatError, match="no checkpoint format 'npx'; did you mean 'npz'"
    ):
        save(file, model(1.0), format="npx")


def test_two_formats_for_one_suffix_must_be_told_apart() -> None:
    first, second = Memory("first", ".mem"), Memory("second", ".mem")
    with nnx.using(first), nnx.using(second):
        with pytest.raises(CheckpointFormatError, match=r"\['first', 'second'\] all claim"):
            save("a.mem", model(1.0))
        save("a.mem", model(1.0), format="second")
    assert list(second.kept) == ["a.mem"]


def test_two_formats_of_one_name_are_an_error() -> None:
    with (
        nnx.using(Memory("same", ".a")),
        nnx.using(Memory("same", ".b")),
        pytest.raises(CheckpointFormatError, match="both have a checkpoint format named 'same'"),
    ):
        save("x.npz", model(1.0))


def test_format_that_loads_something_wrong_is_noticed() -> None:
    plugin = Memory()
    with nnx.using(plugin):
        save("a.mem", nnx.Dict({"y": nnx.Param(1.0)}))
        with pytest.raises(nnx.CheckpointError, match="the checkpoint has no `x`"):
            load("a.mem", model(0.0))


def test_formats_can_use_the_manifest(file: pathlib.Path) -> None:
    """A format for any container of named arrays needs only `encode_manifest` and its inverse."""
    stored: dict[str, Any] = {}

    def write(path: str, checkpoint: Checkpoint) -> None:
        text, arrays = encode_manifest(checkpoint)
        bits = {name: array.read() for name, array in arrays.items() if array.read}
        stored[path] = text, bits

    def read(path: str) -> Checkpoint:
        text, bits = stored[path]
        return decode_manifest(text, lambda name, array: lambda: bits[name])

    class Plugin:
        @nnx.hookimpl
        def moduli_checkpoint_formats(self) -> list[Format]:
            return [Format("two", (".two",), write, read)]

    with nnx.using(Plugin()):
        save("a.two", nnx.Dict({"x": nnx.Param(jnp.arange(3, dtype=jnp.bfloat16))}))
        loaded = load_state("a.two")["x"].value
    assert loaded.dtype == jnp.bfloat16
    assert loaded.tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    "wrong",
    [
        np.ones(3, np.float64),  # asarray would have converted it
        np.ones(3, ">f4"),
        np.ones(3, np.int32),
        np.ones((3, 1), np.float32),
        np.ones(2, np.float32),
        np.float32(1),
    ],
)
@pytest.mark.parametrize("abstract", [False, True])
def test_a_format_that_gives_other_bits_is_an_error(wrong: Any, abstract: bool) -> None:
    plugin = Memory()
    with nnx.using(plugin):
        save("a.mem", nnx.Dict({"x": nnx.Param(jnp.ones(3, jnp.float32))}))
        (leaf,) = plugin.kept["a.mem"].leaves
        bad = dataclasses.replace(leaf.value, read=lambda: wrong)
        plugin.kept["a.mem"] = Checkpoint((dataclasses.replace(leaf, value=bad),), {}, "0.1.0")
        fresh = nnx.Dict({"x": nnx.Param(jnp.zeros(3, jnp.float32))})
        if abstract:
            fresh = nnx.eval_shape(lambda: nnx.Dict({"x": nnx.Param(jnp.zeros(3, jnp.float32))}))
        with pytest.raises(CorruptCheckpointError, match=r"it has to give float32\[3\]"):
            load("a.mem", fresh)
        with pytest.raises(CorruptCheckpointError, match=r"it has to give float32\[3\]"):
            load_state("a.mem")
        assert abstract or fresh["x"].value.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "name", ["../x", "/x", "a/b", "a\\b", "..", ".", "", ".x", "x\0", "a:b", "x" * 300, 3]
)
def test_names_of_members_are_plain_also_in_forged_manifests(name: Any) -> None:
    array = StoredArray("float32", (3,), "jax")
    text, _ = encode_manifest(Checkpoint((Leaf(("x",), "Param", "params", array),), {}, "0.1.0"))
    assert text.count('"member":"x"') == 1
    asked = []

    def reader(member: str, array: StoredArray) -> Any:
        asked.append(member)
        return lambda: np.ones(3, np.float32)

    decode_manifest(text, reader)
    assert asked == ["x"]
    with pytest.raises(ValueError, match="no array has the name"):
        decode_manifest(text.replace('"member":"x"', f'"member":{json.dumps(name)}'), reader)
    assert asked == ["x"]


@pytest.mark.parametrize("key", ["a/b", "..", "é", "", "x" * 300, ("t", 1)])
def test_names_that_are_made_are_such(key: Any) -> None:
    read = lambda: np.ones(3, np.float32)
    leaf = Leaf((key,), "Param", "params", StoredArray("float32", (3,), "jax", read=read))
    text, arrays = encode_manifest(Checkpoint((leaf,), {}, "0.1.0"))
    found = decode_manifest(text, lambda name, array: arrays[name].read_bits)
    assert found.leaves[0].path == (key,)
