"""Saving and loading with the arguments the wrong way round, as other libraries have them."""

from __future__ import annotations

import pathlib

import pytest

import moduli as nnx
from moduli_interop import (
    inspect_checkpoint,
    load,
    load_state,
    load_weights,
    save,
    save_weights,
    verify_checkpoint,
)

ALONE = (load_state, inspect_checkpoint, verify_checkpoint)


def model():
    return nnx.Dict(scale=nnx.Param(2.5))


@pytest.mark.parametrize("path", ["model.safetensors", pathlib.Path("model.safetensors")], ids=type)
@pytest.mark.parametrize("function", [save, load, save_weights, load_weights])
def test_swapped_arguments_say_how_to_write_it(function, path, tmp_path):
    with pytest.raises(TypeError, match=rf"swapped; write `{function.__name__}\(\w+, model\)`"):
        function(model(), tmp_path / path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("function", [save, load, save_weights, *ALONE])
def test_what_is_no_path_is_named(function):
    arguments = () if function in ALONE else (model(),)
    with pytest.raises(nnx.errors.ModuliError, match=f"{function.__name__} got a int as the path"):
        function(3, *arguments)
