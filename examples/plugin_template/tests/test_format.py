"""The format: moduli's checks of formats, and a file as users write it."""

from __future__ import annotations

import pathlib

import jax.numpy as jnp
import moduli as nnx
from moduli.testing import Case, Check, FormatCase, parametrize_with_checks
from moduli_interop import load, save

from moduli_running_scale import _plugin
from moduli_running_scale._format import FORMAT


@parametrize_with_checks([FormatCase(FORMAT)])
def test_it_passes_the_checks(case: Case, check: Check) -> None:
    check(case)


def test_a_model_comes_back(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "model.running_scale"
    with nnx.using(_plugin):
        save(file, nnx.Dict(w=nnx.Param(jnp.arange(3.0))))
        loaded = load(file, nnx.Dict(w=nnx.Param(jnp.zeros(3))))
    assert loaded["w"].value.tolist() == [0.0, 1.0, 2.0]
    assert file.read_bytes().startswith(b"running_scale checkpoint 1\n")
