"""A checkpoint that does not fit is an error that lists everything, and writes nothing."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_strategies import Pair, state_bits

import moduli as nnx
from moduli_interop import CheckpointMismatchError, load, save


def problems(file: pathlib.Path, saved: Any, model: Any) -> tuple[str, ...]:
    """Saves one, loads into the other, and returns the problems; the model must not change."""
    save(file, saved)
    before = state_bits(model if isinstance(model, nnx.State) else nnx.state(model))
    with pytest.raises(CheckpointMismatchError) as error:
        load(file, model)
    after = state_bits(model if isinstance(model, nnx.State) else nnx.state(model))
    assert before == after
    assert str(file) in str(error.value)
    for problem in error.value.problems:
        assert problem in str(error.value)
    return error.value.problems


def test_all_problems_come_at_once(file: pathlib.Path) -> None:
    saved = nnx.Dict(
        {
            "dense": nnx.Dict({"kernel": nnx.Param(jnp.ones((2, 3), jnp.float32))}),
            "bias": nnx.Param(jnp.ones(3, jnp.float32)),
            "scale": nnx.Param(jnp.ones(3, jnp.float32)),
            "mean": nnx.BatchStat(jnp.ones(3, jnp.float32)),
            "good": nnx.Param(jnp.ones(3, jnp.float32)),
        }
    )
    model = nnx.Dict(
        {
            "dense": nnx.Dict({"kernels": nnx.Param(jnp.zeros((2, 3), jnp.float32))}),
            "bias": nnx.Param(jnp.zeros(4, jnp.float32)),
            "scale": nnx.Param(jnp.zeros(3, jnp.bfloat16)),
            "mean": nnx.Param(jnp.zeros(3, jnp.float32)),
            "good": nnx.Param(jnp.zeros(3, jnp.float32)),
        }
    )
    assert problems(file, saved, model) == (
        "missing: the checkpoint has no `dense/kernels` (Param float32[2,3]); did you mean "
        "`dense/kernel`?",
        "unexpected: the model has no `dense/kernel` (Param float32[2,3]); did you mean "
        "`dense/kernels`?",
        "shape: `bias` is (4,) in the model and (3,) in the checkpoint",
        "kind: `mean` is of kind Param in the model and of kind BatchStat in the checkpoint",
        "dtype: `scale` is bfloat16 in the model and float32 in the checkpoint",
    )


def test_near_miss_prefers_the_same_type(file: pathlib.Path) -> None:
    saved = nnx.Dict({"layer1": nnx.Param(jnp.ones(3)), "layer3": nnx.Param(jnp.ones((4, 4)))})
    (missing, *_) = problems(file, saved, nnx.Dict({"layer2": nnx.Param(jnp.ones((4, 4)))}))
    assert missing.endswith("did you mean `layer3`?")


def test_sharing_that_was_dissolved_or_added_is_explained(file: pathlib.Path) -> None:
    weight, other = nnx.Param(jnp.ones(2, jnp.float32)), nnx.Param(jnp.ones(2, jnp.float32))
    tied = nnx.Dict({"a": weight, "b": weight})
    untied = nnx.Dict({"a": weight, "b": other})
    assert problems(file, tied, untied) == (
        "missing: the checkpoint has no `b` (Param float32[2]): when it was saved, it was the same "
        "Variable as `a`",
    )
    assert problems(file, untied, tied) == (
        "unexpected: the model has no `b` (Param float32[2]): in the model it is the same Variable "
        "as `a`",
    )


@pytest.mark.parametrize("kind", [nnx.Intermediate, nnx.Perturbation])
def test_what_tools_left_behind_is_explained(kind: Any, file: pathlib.Path) -> None:
    saved = nnx.Dict({"x": nnx.Param(1.0), "seen": kind((jnp.ones(2, jnp.float32),))})
    (problem,) = problems(file, saved, nnx.Dict({"x": nnx.Param(0.0)}))
    assert problem == (
        f"unexpected: the model has no `seen` ({kind.__name__} (float32[2],)); take it out before "
        f"saving: `moduli.pop(model, moduli.{kind.__name__})`"
    )


@pytest.mark.parametrize(
    ("stored", "present", "problem"),
    [
        (1.5, 1, "value: `x` is int in the model and float in the checkpoint"),
        (True, 1, "value: `x` is int in the model and bool in the checkpoint"),
        (np.float32(1), 1, "value: `x` is int in the model and float32[] in the checkpoint"),
        (1, np.ones(()), "value: `x` is float64[] in the model and int in the checkpoint"),
        ((1,), (1, 2), "value: `x` is (int, int) in the model and (int,) in the checkpoint"),
        ([1], (1,), "value: `x` is (int,) in the model and [int] in the checkpoint"),
        (None, 1, "value: `x` is int in the model and None in the checkpoint"),
        ({"a": 1}, {"b": 1}, "value: `x` is {'b': int} in the model and {'a': int} in the "
         "checkpoint"),
        ((1, Pair(1, 2)), (1, (1, 2)), "value: `x/1` is (int, int) in the model and "
         "Pair(first=int, second=int) in the checkpoint"),
        ((1, jnp.ones(2)), (1, jnp.ones(3)), "shape: `x/1` is (3,) in the model and (2,) in the "
         "checkpoint"),
        (jax.random.key(0), jax.random.key(0, impl="rbg"), "dtype: `x` is key<rbg> uint32[4] in "
         "the model and key<threefry2x32> uint32[2] in the checkpoint"),
        (jax.random.key(0), jnp.zeros(2, jnp.uint32), "dtype: `x` is uint32[2] in the model and "
         "key<threefry2x32> uint32[2] in the checkpoint"),
        (np.zeros(2, np.int8), np.zeros(2, np.uint8), "dtype: `x` is uint8 in the model and int8 "
         "in the checkpoint"),
    ],
)  # fmt: skip
def test_values_of_another_structure(
    stored: Any, present: Any, problem: str, file: pathlib.Path
) -> None:
    saved = nnx.State({"x": nnx.Variable(stored)})
    assert problems(file, saved, nnx.State({"x": nnx.Variable(present)})) == (problem,)


@pytest.mark.parametrize(
    ("stored", "present"),
    [
        (3, np.zeros((), np.int16)),
        (np.uint8(3), 0),
        (1.5, np.zeros((), np.float16)),
        (True, np.zeros((), bool)),
        (np.complex64(1j), 0j),
    ],
)
def test_a_number_may_be_an_array_on_one_side(
    stored: Any, present: Any, file: pathlib.Path
) -> None:
    save(file, nnx.State({"x": nnx.Variable(stored)}))
    loaded = load(file, nnx.State({"x": nnx.Variable(present)}))["x"].value
    assert type(loaded) is type(stored)
    assert loaded == stored


def test_bare_array_and_variable_differ(file: pathlib.Path) -> None:
    saved, model = nnx.State({"x": jnp.ones(2)}), nnx.State({"x": nnx.Param(jnp.ones(2))})
    assert problems(file, saved, model) == (
        "kind: `x` is of kind Param in the model and of kind array in the checkpoint",
    )
