"""Module: modes, attributes, views; what an attribute's value makes of it."""

from __future__ import annotations

import copy
import pickle

import jax
import jax.numpy as jnp
import pytest
from core_models import Linear, Norm, batch, mlp

import moduli as nnx
from moduli import errors


class Noise(nnx.Module):
    def __init__(self):
        self.deterministic = False
        self.norm = Norm(2)


class Modes:
    """The mode attributes that a layers package would name."""

    @nnx.hookimpl
    def moduli_mode_attributes(self, mode):
        return {"deterministic": mode == "eval", "use_running_average": mode == "eval"}


@pytest.fixture(autouse=True)
def modes():
    with nnx.using(Modes()):
        yield


def flags(model):
    return model.deterministic, model.norm.use_running_average


def test_train_and_eval_set_what_plugins_name_everywhere():
    model = Noise()
    model.eval()
    assert flags(model) == (True, True)
    model.train()
    assert flags(model) == (False, False)
    model.eval(deterministic=False)
    assert flags(model) == (False, True)


@pytest.mark.parametrize("fails", [False, True])
def test_a_mode_block_restores_what_was_before_each_module_apart(fails):
    model = Noise()
    model.norm.use_running_average = True  # mixed on purpose
    try:
        with model.eval_mode() as inside:
            assert inside is model and flags(model) == (True, True)
            with model.train_mode():
                assert flags(model) == (False, False)
            assert flags(model) == (True, True)
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert flags(model) == (False, True)


def test_a_mode_block_leaves_no_attribute_that_the_class_provided():
    class Layer(nnx.Module):
        deterministic = False

    layer = Layer()
    before = nnx.graphdef(layer)
    with layer.eval_mode():
        assert layer.deterministic
    assert not layer.deterministic and nnx.graphdef(layer) is before


SURVIVALS = {
    "itself": lambda m: m,
    "merge": lambda m: nnx.merge(*nnx.split(m)),
    "clone": nnx.clone,
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "jit": lambda m: nnx.jit(nnx.clone)(m),
    "tree_map": lambda m: jax.tree.map(lambda x: x, m),
}


@pytest.mark.parametrize("how", SURVIVALS)
def test_a_frozen_mode_stays_through_copies_until_it_is_unfrozen(how):
    model = Noise()
    model.eval()
    model.freeze_mode(Norm)
    model = SURVIVALS[how](model)
    model.train()
    assert flags(model) == (False, True)
    with model.train_mode():
        assert flags(model) == (False, True)
    model.unfreeze_mode(Norm)
    model.train()
    assert flags(model) == (False, False)


def test_freezing_nothing_is_an_error_and_an_explicit_set_still_sets():
    model = Noise()
    with pytest.raises(errors.StructureError, match=r"no module of Noise.*`norm` \(Norm\)"):
        model.freeze_mode(Linear)
    model.freeze_mode()
    model.set_attributes(use_running_average=True)
    assert flags(model) == (False, True)


def test_set_attributes_selects_modules_by_filter():
    model = nnx.List([Noise(), Noise()])
    model.set_attributes(nnx.PathContains(0), Linear, deterministic=True)
    assert [n.deterministic for n in model] == [True, False]
    model.set_attributes(Noise, deterministic=None)
    assert [n.deterministic for n in model] == [None, None]


def test_set_attributes_sets_nothing_if_one_name_is_wrong():
    model = Noise()
    with pytest.raises(ValueError, match="has the attribute 'detreministic'"):
        model.set_attributes(deterministic=True, detreministic=True)
    assert flags(model) == (False, False)
    model.set_attributes(detreministic=True, raise_if_not_found=False)
    assert not hasattr(model, "detreministic")


def test_a_view_shares_the_variables_and_nothing_else():
    model = mlp()
    quiet = nnx.view(model, use_running_average=True)
    assert not model.layers[1].use_running_average and quiet.layers[1].use_running_average
    quiet.layers[0].bias.value = jnp.ones(3)
    assert float(model.layers[0].bias.value.sum()) == 3
    quiet.layers.append(3)
    assert len(model.layers) == 4
    with pytest.raises(errors.StructureError, match="nope"):
        nnx.view(model, nope=1)
    only = nnx.view(model, only=nnx.PathContains(1), use_running_average=True)
    assert [only.layers[i].use_running_average for i in (1, 3)] == [True, False]


def test_what_an_attribute_holds_decides_what_it_is():
    class Model(nnx.Module):
        def __init__(self):
            self.array = jnp.ones(2)
            self.variable = nnx.Param(1.0)
            self.module = Linear(1, 1, rngs=nnx.Rngs(0))
            self.numbers = [1, 2]
            self.pair = (1, jnp.zeros(1))
            self.plain = (1, 2)
            self.text = "a"
            self.forced = nnx.data(3)
            self.fixed = nnx.static(4)

    flat = nnx.to_flat_state(nnx.state(Model()))
    assert set(flat.paths) == {
        ("array",),
        ("variable",),
        ("module", "kernel"),
        ("module", "bias"),
        ("pair", 1),
        ("forced",),
    }
    assert Model().numbers == [1, 2] and Model().fixed == 4


def test_forced_data_stays_data_when_it_is_set_again():
    holder = Noise()
    holder.count = nnx.data(0)
    graphdef = nnx.graphdef(holder)
    holder.count = holder.count + 1
    assert nnx.graphdef(holder) is graphdef and nnx.state(holder)["count"] == 1
    del holder.count
    holder.count = 0
    assert nnx.graphdef(holder) is not graphdef


def test_properties_with_setters_and_dataclasses_work():
    class Model(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.ones(2))

        @property
        def scale(self):
            return self.w.value.sum()

        @scale.setter
        def scale(self, value):
            self.w.value = jnp.full(2, value / 2)

    model = Model()
    model.scale = 10.0
    assert float(model.scale) == 10 and "scale" not in vars(model)

    @nnx.dataclass
    class Record(nnx.Module):
        w: nnx.Param
        rate: float = 0.1
        steps: int = nnx.data(default=0)
        name: str = nnx.static(default="x")

    record = Record(nnx.Param(1.0))
    assert list(nnx.state(record)) == ["steps", "w"]
    assert record == record and record != Record(nnx.Param(1.0))


def test_functions_in_attributes_are_shared_by_copies():
    model = nnx.List([jax.nn.relu, nnx.Dict(act=jnp.tanh)])
    assert nnx.graphdef(copy.deepcopy(model)) is nnx.graphdef(model)
    assert nnx.graphdef(pickle.loads(pickle.dumps(model))) is nnx.graphdef(model)
    data = pickle.dumps(nnx.List([jax.nn.gelu]))
    assert b"jax.nn" in data and b"_src" not in data  # by its public name
    assert pickle.loads(data)[0] is jax.nn.gelu


def test_a_missing_attribute_cannot_be_deleted():
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        del Noise().nope


def test_repr_is_a_tree_with_shapes_counts_and_shared_parts():
    model = mlp(depth=1)
    model.again = model.layers[0]
    text = repr(model)
    first = text.splitlines()[0]
    assert first.startswith("MLP(") and "Param: 12 (48 B)" in first and "BatchStat: 3" in first
    assert "kernel=Param(float32[3, 3]" in text
    assert "again=Linear(shared with layers/0)" in text
    cycle = nnx.Dict()
    cycle["self"] = cycle
    assert "shared with the model itself" in repr(cycle)


def test_changing_a_captured_module_inside_a_transform_is_an_error_with_its_path():
    model = nnx.Dict(inner=Noise())

    @nnx.jit
    def run(x):
        model.inner.deterministic = True
        return x

    with pytest.raises(errors.TraceError, match="`deterministic` of the Noise at `inner` of Dict"):
        run(1.0)
    assert model.inner.deterministic is False


def test_calls_have_no_hidden_cost_in_the_signature():
    import inspect

    assert list(inspect.signature(Linear.__call__).parameters) == ["self", "x"]
    assert Linear.__call__.__qualname__ == "Linear.__call__"
    assert Linear(3, 2, rngs=nnx.Rngs(0))(batch()).shape == (4, 2)
