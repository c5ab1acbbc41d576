"""Saving a model and filling a freshly built one."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_strategies import state_bits

import moduli as nnx
from moduli_interop import UnsupportedValueError, inspect_checkpoint, load, load_state, save


class Block(nnx.Module):
    def __init__(self, size: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (size, size)), tag="kernel")
        self.bias = nnx.Param(jnp.zeros(size, jnp.bfloat16))
        self.mean = nnx.BatchStat(jnp.zeros(size))
        self.rngs = rngs.fork()


class Model(nnx.Module):
    def __init__(self, seed: int, size: int = 4):
        rngs = nnx.Rngs(seed)
        self.blocks = [Block(size, rngs=rngs), Block(size, rngs=rngs)]
        self.tied = self.blocks[0].kernel
        self.count = nnx.Variable(0)
        self.table = np.arange(size) + seed
        self.heads = {"a": nnx.Param(jnp.ones(())), 3: nnx.Param(jnp.full((2,), 1.0))}


def leaves(model: Any) -> Any:
    return state_bits(nnx.state(model))


def test_fresh_model_becomes_the_saved_one(file: pathlib.Path) -> None:
    model, fresh = Model(0), Model(1)
    model.blocks[1].mean.value = jnp.arange(4.0)
    model.blocks[0].rngs.params()
    variables = {path: v for path, v in nnx.to_flat_state(nnx.state(fresh)).items()}
    assert leaves(fresh) != leaves(model)
    save(file, model)
    assert load(file, fresh) is fresh
    assert leaves(fresh) == leaves(model)
    for path, variable in nnx.to_flat_state(nnx.state(fresh)).items():
        if isinstance(variable, nnx.Variable):
            assert variable is variables[path]  # filled in place
    assert fresh.blocks[0].kernel.get_metadata() == {"tag": "kernel"}
    key, expected = fresh.blocks[0].rngs.params(), model.blocks[0].rngs.params()
    assert jax.random.key_data(key).tolist() == jax.random.key_data(expected).tolist()


def test_shared_variable_is_stored_once_and_stays_shared(file: pathlib.Path) -> None:
    save(file, Model(0))
    info = inspect_checkpoint(file)
    (leaf,) = [leaf for leaf in info.leaves if leaf.path == ("blocks", 0, "kernel")]
    assert leaf.aliases == (("tied",),)
    assert ("tied",) not in [leaf.path for leaf in info.leaves]
    fresh = load(file, Model(1))
    assert fresh.tied is fresh.blocks[0].kernel


def test_shared_module_is_stored_once(file: pathlib.Path) -> None:
    block = Block(2, rngs=nnx.Rngs(0))
    save(file, nnx.Dict({"a": block, "b": block}))
    infos = {leaf.path: leaf.aliases for leaf in inspect_checkpoint(file).leaves}
    assert infos["a", "bias"] == (("b", "bias"),)
    assert not any(path[0] == "b" for path in infos)


def test_model_in_use_goes_on_in_a_jitted_step(file: pathlib.Path) -> None:
    @nnx.jit
    def step(model: Model) -> jax.Array:
        model.count.value = model.count.value + 1
        return (model.blocks[0].kernel.value * model.tied.value).sum()

    model = Model(0)
    expected = step(model)
    save(file, model)  # `count` is an array now, and the Python number 0 in a fresh model
    fresh = load(file, Model(1))
    assert step(fresh) == expected
    assert int(fresh.count) == 2


@pytest.mark.parametrize("as_str", [True, False])
def test_path_may_be_str_or_path_like_and_is_used_as_it_is(
    as_str: bool, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "checkpoint without suffix"
    save(str(path) if as_str else path, Model(0))
    assert os.listdir(tmp_path) == [path.name]
    assert leaves(load(str(path) if as_str else path, Model(1))) == leaves(Model(0))


def test_several_nodes_in_one_file(file: pathlib.Path) -> None:
    model, rngs = Model(0), nnx.Rngs(7)
    save(file, {"model": model, "rngs": rngs})
    fresh, other = Model(1), nnx.Rngs(8)
    load(file, {"model": fresh, "rngs": other})
    assert leaves(fresh) == leaves(model)
    assert leaves(other) == leaves(rngs)


def test_part_of_a_model_as_a_state(file: pathlib.Path) -> None:
    model, fresh = Model(0), Model(1)
    save(file, nnx.state(model, nnx.Param))
    before = leaves(fresh)
    load(file, nnx.state(fresh, nnx.Param))  # the State holds the model's own Variables
    after = leaves(fresh)
    for path, variable in nnx.to_flat_state(nnx.state(fresh)).items():
        expected = leaves(model) if isinstance(variable, nnx.Param) else before
        assert after[path] == expected[path]


def test_hooks_of_variables_see_nothing(file: pathlib.Path) -> None:
    def double(variable: Any, value: Any) -> Any:
        return value * 2

    def model(value: float) -> nnx.Dict:
        return nnx.Dict({"x": nnx.Param(value, on_get_value=double, on_set_value=double)})

    save(file, model(1.0))
    assert load(file, model(5.0))["x"].get_raw_value() == 1.0


def test_abstract_model_is_filled(file: pathlib.Path) -> None:
    save(
        file,
        nnx.Dict(
            {"x": nnx.Param(jnp.arange(3.0, dtype=jnp.float32)), "k": nnx.RngKey(jax.random.key(3))}
        ),
    )
    shape = jax.ShapeDtypeStruct((3,), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    abstract = nnx.Dict({"x": nnx.Param(shape), "k": nnx.RngKey(key)})
    load(file, abstract)
    assert abstract["x"].value.tolist() == [0.0, 1.0, 2.0]
    assert abstract["k"].value == jax.random.key(3)
    with pytest.raises(UnsupportedValueError, match=r"`x` holds a jax\.ShapeDtypeStruct"):
        save(file, nnx.Dict({"x": nnx.Param(shape)}))


def test_arrays_go_where_the_model_has_them(file: pathlib.Path) -> None:
    sharding = jax.sharding.NamedSharding(
        jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,)),
        jax.sharding.PartitionSpec("x"),
    )
    save(file, nnx.Dict({"x": nnx.Param(jnp.arange(4.0)), "y": nnx.Param(jnp.ones(2))}))
    fresh = nnx.Dict(
        {"x": nnx.Param(jax.device_put(jnp.zeros(4), sharding)), "y": nnx.Param(jnp.zeros(2))}
    )
    load(file, fresh)
    assert fresh["x"].value.sharding == sharding
    assert fresh["x"].value.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert not fresh["y"].value.committed


def test_state_without_a_model(file: pathlib.Path) -> None:
    save(file, Model(0))
    state = load_state(file)
    assert isinstance(state, nnx.State)
    assert type(state.blocks[1].mean) is nnx.BatchStat
    assert state.table.tolist() == [0, 1, 2, 3]
    fresh = Model(1)
    nnx.update(fresh, state)
    assert leaves(fresh) == leaves(Model(0))


def test_kind_without_a_name_becomes_a_plain_variable(file: pathlib.Path) -> None:
    class Nameless(nnx.Variable[Any]):
        pass

    save(file, nnx.Dict({"x": Nameless(1.0)}))
    assert type(load_state(file)["x"]) is nnx.Variable
    assert type(load(file, nnx.Dict({"x": Nameless(0.0)}))["x"]) is Nameless


def test_metadata_comes_back_as_json_has_it(file: pathlib.Path) -> None:
    metadata = {"epoch": 3, "loss": jnp.float32(0.5), "names": ("a", "b"), "nested": {"x": None}}
    save(file, nnx.Dict({"x": nnx.Param(1.0)}), metadata=metadata)
    assert inspect_checkpoint(file).metadata == {
        "epoch": 3,
        "loss": 0.5,
        "names": ["a", "b"],
        "nested": {"x": None},
    }


def test_metadata_that_json_cannot_hold(file: pathlib.Path) -> None:
    with pytest.raises(UnsupportedValueError, match=r"it holds a .*ArrayImpl.*Put arrays into"):
        save(file, nnx.Dict({"x": nnx.Param(1.0)}), metadata={"a": jnp.ones(3)})
    assert not file.exists()


# -- what cannot be stored ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.array([object()], object), r"`x` has dtype object.*object arrays would need pickle"),
        (np.array(["text"]), r"`x` has dtype <U4"),
        (np.array(["2020-01-01"], "datetime64[D]"), r"`x` has dtype datetime64\[D\]"),
        (object(), r"`x` holds a builtins\.object.*nothing is ever pickled"),
        ((1, {"a": [b"bytes"]}), r"`x/1/a/0` holds a builtins\.bytes"),
        ({True: 1}, r"the path `x/\[True\]` has the bool True in it"),
        ({("a", 1.5): 1}, r"the path `x/\[\('a', 1\.5\)\]` has the tuple \('a', 1\.5\) in it"),
    ],
)
def test_value_that_cannot_be_stored_is_named(value: Any, reason: str, file: pathlib.Path) -> None:
    with pytest.raises(UnsupportedValueError, match=reason):
        save(file, nnx.State({"x": nnx.Variable(value)}))
    assert not file.exists()


def test_long_double_is_refused_where_it_is_longer(file: pathlib.Path) -> None:
    array = np.ones(2, np.longdouble)
    if array.dtype == np.float64:
        pytest.skip("long double is double here")
    with pytest.raises(UnsupportedValueError, match="at most 64 bits"):
        save(file, nnx.State({"x": array}))


@pytest.mark.parametrize("model", [None, 3, {}, jnp.ones(3), nnx.Param(1.0), "x"])
def test_what_is_not_a_model(model: Any, file: pathlib.Path) -> None:
    with pytest.raises(UnsupportedValueError, match="pass a Module, an Optimizer"):
        save(file, model)


def test_tracer_is_refused(file: pathlib.Path) -> None:
    @jax.jit
    def f(x: jax.Array) -> None:
        save(file, nnx.State({"x": nnx.Param(x)}))

    with pytest.raises(UnsupportedValueError, match="`x` is being traced"):
        f(jnp.ones(3))


def test_deleted_array_is_refused(file: pathlib.Path) -> None:
    array = jnp.ones(3)
    array.delete()
    with pytest.raises(UnsupportedValueError, match="`x` has been deleted, probably by"):
        save(file, nnx.State({"x": nnx.Param(array)}))


def test_loading_into_variables_of_another_trace_writes_nothing(file: pathlib.Path) -> None:
    save(file, Model(0))
    fresh = Model(1)
    before = leaves(fresh)

    @jax.jit
    def f() -> None:
        load(file, fresh)

    with pytest.raises(nnx.errors.TraceError):
        f()
    assert leaves(fresh) == before


@pytest.mark.parametrize("metadata", [{3: "a"}, {"a": [{None: 1}]}, {"a": {"b": ({True: 1},)}}])
def test_key_of_metadata_that_json_would_make_a_text(
    metadata: dict[Any, Any], file: pathlib.Path
) -> None:
    with pytest.raises(UnsupportedValueError, match="it has the key"):
        save(file, {"x": 1}, metadata=metadata)
    assert not file.exists()


def test_empty_container_says_that_it_is_empty(file: pathlib.Path) -> None:
    with pytest.raises(UnsupportedValueError, match="an empty dict as the model"):
        save(file, {})
