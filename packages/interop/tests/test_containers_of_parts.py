"""Dicts, lists and tuples of nodes, arrays, keys and numbers are saved and filled as they are."""

from __future__ import annotations

import collections
import pathlib
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_strategies import bits

import moduli as nnx
from moduli_interop import (
    CheckpointMismatchError,
    UnsupportedValueError,
    inspect_checkpoint,
    load,
    load_state,
    save,
)


class Moments(NamedTuple):
    count: Any
    mu: Any


def tree(seed: int) -> dict[Any, Any]:
    model = nnx.Dict({"w": nnx.Param(jnp.full((2, 3), float(seed))), 7: nnx.BatchStat(seed)})
    return {
        "model": model,
        "step": seed,
        "loss": seed + 0.5,
        "name": f"run {seed}",
        "nothing": None,
        "key": jax.random.key(seed),
        "raw": jax.random.PRNGKey(seed),
        "rngs": nnx.Rngs(seed),
        3: np.arange(3) + seed,
        "nested": [model["w"], (jnp.ones(2) * seed, {"deep": [np.float32(seed), seed]})],
        "moments": Moments(np.int32(seed), {"a": jnp.full((2,), seed, jnp.bfloat16)}),
        "state": nnx.State({"s": nnx.Param(float(seed)), "plain": np.ones(2) * seed}),
        "huge": 10**5000 + seed,
    }


def plain(value: Any) -> Any:
    """What a tree holds, as comparable data."""
    if isinstance(value, (nnx.Pytree, nnx.State)):
        state = value if isinstance(value, nnx.State) else nnx.state(value)
        return {path: bits(leaf) for path, leaf in nnx.to_flat_state(state).items()}
    if isinstance(value, (dict, types.MappingProxyType)):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return (type(value).__name__, *map(plain, value))
    return bits(value)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_a_tree_comes_back_in_the_same_objects(suffix: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / f"run{suffix}"
    save(path, tree(3))
    fresh = tree(0)
    model, nested, weight = fresh["model"], fresh["nested"], fresh["model"]["w"]
    assert load(path, fresh) is fresh
    assert plain(fresh) == plain(tree(3))
    assert fresh["model"] is model and fresh["nested"] is nested
    assert fresh["nested"][0] is weight is model["w"]
    assert type(fresh["moments"]) is Moments and type(fresh["step"]) is int


@pytest.mark.parametrize(
    ("make", "changed"),
    [
        (lambda x: [x, 1], True),
        (lambda x: (x, 1), True),
        (lambda x: Moments(x, 1), True),
        (lambda x: {"a": (x,)}, True),
        (lambda x: collections.OrderedDict(b=x, a=1), True),
        (lambda x: types.MappingProxyType({"a": x}), True),
        (lambda x: (nnx.Param(x),), False),
    ],
)
def test_containers_of_each_kind(make: Any, changed: bool, tmp_path: pathlib.Path) -> None:
    save(tmp_path / "x", make(jnp.arange(3.0)))
    empty = make(jnp.zeros(3))
    back = load(tmp_path / "x", empty)
    assert type(back) is type(empty)
    assert plain(back) == plain(make(jnp.arange(3.0)))
    assert (back is empty) == (isinstance(empty, (list, dict)) or not changed)


def test_integer_keys_stay_integers(tmp_path: pathlib.Path) -> None:
    save(tmp_path / "x", {0: jnp.zeros(1), "0": jnp.ones(1), 10**20: 5, "l": [np.ones(1)]})
    paths = [leaf.path for leaf in inspect_checkpoint(tmp_path / "x").leaves]
    assert sorted(paths, key=repr) == sorted([(0,), ("0",), (10**20,), ("l", 0)], key=repr)
    state = load_state(tmp_path / "x")
    assert state[0].tolist() == [0.0] and state["0"].tolist() == [1.0] and state[10**20] == 5


def test_a_variable_in_two_parts_is_stored_once(tmp_path: pathlib.Path) -> None:
    class Wrapper(nnx.Module):
        def __init__(self, model: Any):
            self.model = model

    def parts(value: float, swap: bool) -> dict[str, Any]:
        model = nnx.Dict({"w": nnx.Param(jnp.full((3,), value))})
        both = {"model": model, "wrapper": Wrapper(model), "state": nnx.state(model)}
        return dict(reversed(both.items())) if swap else both

    save(tmp_path / "x", parts(2.0, False))
    (leaf,) = inspect_checkpoint(tmp_path / "x").leaves
    assert {leaf.path, *leaf.aliases} == {
        ("model", "w"),
        ("wrapper", "model", "w"),
        ("state", "w"),
    }
    fresh = load(tmp_path / "x", parts(0.0, True))  # the first path of each is another one
    assert fresh["model"]["w"].value.tolist() == [2.0] * 3


def test_a_tree_that_does_not_fit_is_not_touched(tmp_path: pathlib.Path) -> None:
    saved = tree(3)
    del saved["step"]
    save(tmp_path / "x", saved)
    fresh = tree(0)
    with pytest.raises(CheckpointMismatchError, match=r"no `step` \(value int\)"):
        load(tmp_path / "x", fresh)
    assert plain(fresh) == plain(tree(0))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.ma.masked_array([1, 2], [True, False]), r"`x/y` holds a numpy\.ma.*MaskedArray.*mask"),
        (np.ones(2).view(np.recarray), r"`x/y` holds a numpy\.rec.*recarray"),
        (object(), r"`x/y` holds a builtins\.object"),
        ({1, 2}, r"`x/y` holds a builtins\.set"),
        (lambda: 0, r"`x/y` holds a builtins\.function"),
    ],
)
@pytest.mark.parametrize("boxed", [True, False])
def test_what_would_lose_something_is_refused(
    value: Any, reason: str, boxed: bool, tmp_path: pathlib.Path
) -> None:
    tree = {"x": nnx.Dict(y=nnx.Variable(value)) if boxed else {"y": value}}
    with pytest.raises(UnsupportedValueError, match=reason):
        save(tmp_path / "x", tree)
    assert not (tmp_path / "x").exists()


def test_a_mapped_array_is_an_array(tmp_path: pathlib.Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(4.0))
    save(tmp_path / "x", {"a": np.load(tmp_path / "a.npy", mmap_mode="r")})
    assert load_state(tmp_path / "x")["a"].tolist() == [0.0, 1.0, 2.0, 3.0]


def test_donated_arrays_can_be_filled_but_not_saved(tmp_path: pathlib.Path) -> None:
    save(tmp_path / "x", {"a": jnp.arange(3.0)})
    model = {"a": jnp.zeros(3)}
    model["a"].delete()
    assert load(tmp_path / "x", model)["a"].tolist() == [0.0, 1.0, 2.0]


def test_states_of_optax_hold_arrays_and_variables(tmp_path: pathlib.Path) -> None:
    optax = pytest.importorskip("optax")
    model = nnx.Dict(w=nnx.Param(jnp.ones((2, 3))), b=nnx.Param(jnp.zeros(3)))
    for params in (nnx.state(model, nnx.Param), nnx.to_pure_dict(nnx.state(model, nnx.Param))):
        transform = optax.chain(optax.clip(1.0), optax.adam(0.1))
        start = transform.init(params)
        _, used = transform.update(jax.tree.map(jnp.ones_like, params), start, params)
        save(tmp_path / "x", {"params": params, "optimizer": used})
        back = load(tmp_path / "x", {"params": params, "optimizer": start})
        assert plain(back["optimizer"]) == plain(used)
        assert jax.tree.structure(back["optimizer"]) == jax.tree.structure(used)


def test_a_model_of_eval_shape_takes_numpy_arrays_as_they_are(tmp_path: pathlib.Path) -> None:
    class Model(nnx.Module):
        def __init__(self) -> None:
            self.table = np.arange(3)  # int64, and eval_shape says int32
            self.weight = nnx.Param(jnp.arange(3.0))
            self.count = nnx.Variable(0)

    save(tmp_path / "x", Model())
    abstract = load(tmp_path / "x", nnx.eval_shape(Model))
    assert plain(abstract) == plain(Model())
    save(tmp_path / "x", nnx.Dict(x=nnx.Param(jnp.arange(3, dtype=jnp.int32))))
    other = nnx.Dict(x=nnx.Param(jax.ShapeDtypeStruct((3,), jnp.int16)))
    with pytest.raises(CheckpointMismatchError, match="`x` is int16 in the model and int32"):
        load(tmp_path / "x", other)
