"""Where a Variable was made: the line in the user's code, in messages."""

from __future__ import annotations

import copy
import dataclasses
import gc
import inspect
import os
import pathlib
import pickle
import weakref

import jax
import jax.numpy as jnp
import pytest
from core_models import Linear

import moduli as nnx
from moduli import errors
from moduli._base.source_lines import describe_site

HERE = os.path.relpath(__file__)


def line() -> int:
    """The number of the line that calls this."""
    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return frame.f_back.f_lineno


def test_the_site_is_the_line_that_made_the_variable():
    variable, number = nnx.Param(1.0), line()
    assert describe_site(variable) == f"made at {HERE}:{number}"


def test_the_site_is_the_first_line_of_a_call_over_several_lines():
    number = line()
    variable = nnx.Param(
        jnp.zeros(3),
        tag="long",
    )
    assert describe_site(variable) == f"made at {HERE}:{number + 1}"


def test_the_site_passes_over_moduli_and_jax():
    rngs, number = nnx.Rngs(0), line()
    assert describe_site(rngs.default.count) == f"made at {HERE}:{number}"
    made = jax.eval_shape(nnx.Rngs, 0).default.key
    assert describe_site(made) == f"made at {HERE}:{number + 2}"


def test_the_site_of_a_layer_of_ones_own_is_in_the_layer():
    path = pathlib.Path(inspect.getfile(Linear))
    lines = path.read_text().splitlines()
    number = lines.index("        self.bias = nnx.Param(jnp.zeros(size_out, jnp.float32))")
    kernel = Linear(2, 3, rngs=nnx.Rngs(0)).bias
    assert describe_site(kernel) == f"made at {os.path.relpath(path)}:{number + 1}"


def test_the_site_passes_over_code_that_dataclasses_generate():
    @dataclasses.dataclass(eq=False)
    class Scale(nnx.Module):
        factor: nnx.Param = dataclasses.field(default_factory=lambda: nnx.Param(1.0))

    made = Scale()
    assert describe_site(made.factor).startswith(f"made at {HERE}:")


def test_a_path_outside_of_the_working_directory_stays_absolute(tmp_path, monkeypatch):
    variable, number = nnx.Param(1.0), line()
    monkeypatch.chdir(tmp_path)
    assert describe_site(variable) == f"made at {os.path.abspath(__file__)}:{number}"


def test_copies_keep_the_site_and_pickles_do_not():
    variable = nnx.Param(jnp.ones(2))
    made = describe_site(variable)
    assert describe_site(variable.copy(jnp.zeros(2))) == made
    assert describe_site(variable.replace(tag="a")) == made
    assert describe_site(copy.deepcopy(variable)) == made
    assert describe_site(jax.tree.map(lambda x: 2 * x, variable)) == made
    assert describe_site(pickle.loads(pickle.dumps(variable))) == ""


def test_the_site_takes_no_part_in_comparing_structures():
    first, second = nnx.Param(1.0), nnx.Param(1.0)
    assert describe_site(first) == describe_site(second)
    third = nnx.Param(1.0)
    assert jax.tree.structure(first) == jax.tree.structure(third)
    assert hash(jax.tree.structure(first)) == hash(jax.tree.structure(third))


def test_a_site_keeps_no_frame_alive():
    class Big:
        pass

    def make():
        big = Big()
        return nnx.Param(1.0), weakref.ref(big)

    _variable, ref = make()
    gc.collect()
    assert ref() is None


def test_a_trace_error_names_the_site():
    model, number = nnx.Dict(count=nnx.BatchStat(jnp.array(1.0))), line()

    def function(x):
        model.count.value = x
        return x

    with pytest.raises(errors.TraceError) as caught:
        jax.jit(function)(1.0)
    assert str(caught.value) == (
        f"cannot write the BatchStat at `count` of Dict (made at {HERE}:{number}) here: it was "
        "made outside of the trace that is running, that of a transform of JAX's own (jit, grad, "
        "vmap, ...), so the write would leak a tracer or be lost. Pass the module that holds it as "
        "an argument of the transformed function, use moduli's transform (`moduli.jit`, "
        "`moduli.grad`) instead of JAX's own, or return the new value and write it outside."
    )
