"""Every public name of flax.nnx is in moduli, and does there what it does in flax."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import numpy as np
import pytest
from flax_name_programs import PROGRAMS, plain

import moduli

flax = pytest.importorskip("flax")
nnx = pytest.importorskip("flax.nnx")

NAMES = sorted(name for name in dir(nnx) if not name.startswith("_"))
OF_LATER = ["RoPE", "dot_product_attention_with_rope"]  # than the oldest flax that we know


def run(library: Any, name: str) -> Any:
    with warnings.catch_warnings():
        if library is nnx:  # what flax deprecates is its own matter
            warnings.simplefilter("ignore")
        return plain(PROGRAMS[name](library))


def same(ours: Any, theirs: Any, place: str = "") -> None:
    if isinstance(theirs, dict):
        assert sorted(map(str, ours)) == sorted(map(str, theirs)), place
        for key in theirs:
            same(ours[key], theirs[key], f"{place}[{key!r}]")
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs), place
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            same(one, other, f"{place}[{number}]")
    elif isinstance(theirs, np.ndarray):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6, err_msg=place)
    else:
        assert ours == theirs, place


def test_every_public_name_has_a_program() -> None:
    assert len(NAMES) > 200
    missing = [name for name in NAMES if name not in PROGRAMS]
    assert missing == [], f"flax {flax.__version__} has names that moduli does not know"
    assert [n for n in PROGRAMS if n not in NAMES and n not in OF_LATER] == []


def test_every_public_name_is_there_and_listed() -> None:
    assert [name for name in NAMES if not hasattr(moduli, name)] == []
    assert [name for name in NAMES if name not in dir(moduli)] == []
    assert moduli.VariableState is moduli.Variable


CASES = {id(program): name for name, program in reversed(PROGRAMS.items()) if name in NAMES}


@pytest.mark.parametrize("name", sorted(CASES.values()))
def test_a_program_gives_the_same_in_both_libraries(name: str) -> None:
    with jax.numpy_dtype_promotion("standard"):
        same(run(moduli, name), run(nnx, name))


@pytest.mark.parametrize("name", OF_LATER)
def test_names_of_later_versions_work(name: str) -> None:
    if name not in NAMES:
        assert run(moduli, name).shape == (2, 3, 1, 4)
