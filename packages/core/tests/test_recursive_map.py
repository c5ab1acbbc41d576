"""recursive_map: a new graph from the bottom up, each object once, sharing and cycles kept."""

from __future__ import annotations

import jax.numpy as jnp
import pytest
from core_models import Linear, Tied, mlp
from hypothesis import given, settings

import moduli as nnx
from moduli import errors, testing


def same(path, value):
    return value


def example(lib):
    class Example(lib.Module):
        def __init__(self):
            self.weight = lib.Param(jnp.ones(2))
            self.alias = self.weight
            self.size, self.nothing, self.pair = 3, None, (1, 2)
            self.array = jnp.zeros(2)
            self.items = lib.List([lib.Param(jnp.zeros(1)), 2])
            self.heads = lib.Dict({"a": 1, "b": lib.Param(jnp.ones(1))})
            self.nested = lib.data((lib.Param(jnp.ones(1)), (5, lib.Param(jnp.ones(1)))))

    return Example()


def test_f_is_called_in_the_order_of_flax():
    flax = pytest.importorskip("flax.nnx")
    calls = []
    for lib in (nnx, flax):
        seen = []

        def note(path, value):
            own = [part for part in path if str(part).startswith("_pytree__") or part == "_length"]
            if not own:  # flax's bookkeeping
                seen.append((path, type(value).__name__))
            return value

        lib.recursive_map(note, example(lib))
        calls.append(seen)
    assert calls[0] == calls[1]
    assert (("alias",), "Param") in calls[0] and (("weight",), "Param") not in calls[0]


@settings(max_examples=60, deadline=None)
@given(testing.graphs())
def test_the_identity_gives_an_equal_graph_of_new_nodes(model):
    before = nnx.graphdef(model)
    calls = []

    def note(path, value):
        if isinstance(value, (nnx.Pytree, nnx.Variable)):
            calls.append(id(value))
        return value

    new = nnx.recursive_map(note, model)
    testing.assert_equal_graphs(new, model)
    assert nnx.graphdef(model) is before
    assert len(set(calls)) == len(calls) == len(before.nodes)
    old = {id(item) for _, item in nnx.iter_graph(model) if isinstance(item, nnx.Pytree)}
    assert not old & {id(item) for _, item in nnx.iter_graph(new)}


def test_values_are_replaced_and_the_original_stays():
    model = mlp()
    before = nnx.clone(model)

    def double(path, value):
        return value.copy(2 * value.value) if isinstance(value, nnx.Param) else value

    new = nnx.recursive_map(double, model)
    testing.assert_equal_graphs(model, before)
    twins = dict(nnx.to_flat_state(nnx.state(new, nnx.Param)))
    assert len(twins) == 4
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        twin = twins[path]
        assert twin is not variable and (twin.value == 2 * variable.value).all()
    assert new.layers[1].mean is model.layers[1].mean  # returned as it is: in both


def test_a_node_comes_with_its_new_parts_and_may_be_replaced():
    seen = {}

    class Scaled(nnx.Module):
        def __init__(self, inner):
            self.inner = inner

    def wrap(path, value):
        if isinstance(value, nnx.Param):
            return value.copy(value.value + 1)
        if isinstance(value, Linear):
            seen[path] = value.bias.value.tolist()
            return Scaled(value)
        return value

    new = nnx.recursive_map(wrap, mlp())
    assert seen == {("layers", 0): [1.0] * 3, ("layers", 2): [1.0] * 3}
    assert [type(layer).__name__ for layer in new.layers] == ["Scaled", "Norm", "Scaled", "Norm"]
    assert nnx.state(new, nnx.Param).layers[0].inner.bias.value.tolist() == [1.0] * 3


def test_a_shared_object_stays_shared_and_a_cycle_closes():
    tied = Tied()
    calls = []

    def fresh(path, value):
        calls.append(path)
        return value.copy() if isinstance(value, nnx.Param) else value

    new = nnx.recursive_map(fresh, tied)
    assert new is not tied and new.me is new and new.a is new.b and new.a is not tied.a
    assert calls == [("a",), ()] and tied.me is tied


def test_another_object_for_a_node_in_a_cycle_is_an_error():
    class Child(nnx.Module):
        def __init__(self, parent):
            self.parent = parent

    class Parent(nnx.Module):
        def __init__(self):
            self.child = Child(self)

    def replace(path, value):
        return nnx.Dict() if isinstance(value, Parent) else value

    with pytest.raises(
        errors.StructureError, match=r"\(Dict\) for the Parent at `top`.*`top.child."
    ):
        nnx.recursive_map(replace, nnx.Dict(top=Parent()))
    new = nnx.recursive_map(lambda p, v: nnx.Dict() if isinstance(v, Child) else v, Parent())
    assert type(new.child) is nnx.Dict  # outside of the reference back, anything goes


def test_what_f_returns_becomes_an_attribute_as_in_an_assignment():
    changes = {
        ("size",): [nnx.Param(1.0)],
        ("pair",): nnx.data(7),
        ("array",): "none",
        ("items", 1): {"x": nnx.Param(2.0)},
        ("nested", 1, 0): 6,
    }
    model = example(nnx)
    new = nnx.recursive_map(lambda path, value: changes.get(path, value), model)
    assert type(new.size) is nnx.List and type(new.items[1]) is nnx.Dict
    assert nnx.state(new)["pair"] == 7 and "array" not in nnx.state(new)
    assert new.nested[1][0] == 6 and model.nested[1][0] == 5 and new.alias is new.weight
    new.size.append(nnx.Param(3.0))
    assert len(nnx.state(new)["size"]) == 2


def test_pytrees_arrays_and_variables_may_be_the_root():
    param = nnx.Param(1.0)
    shared = nnx.Dict(w=param)
    new = nnx.recursive_map(same, [shared, {"again": shared}, 3])
    assert new[0] is new[1]["again"] and new[0] is not shared and new[0].w is param and new[2] == 3
    assert nnx.recursive_map(lambda path, value: (path, value), param) == ((), param)
    assert nnx.recursive_map(lambda path, value: value + 1, 3) == 4


def test_the_new_graph_may_be_changed_and_compiled():
    new = nnx.recursive_map(same, mlp())
    new.extra = nnx.Param(jnp.ones(3))
    assert nnx.jit(lambda model, x: model(x) + model.extra)(new, jnp.ones((2, 3))).shape == (2, 3)

    @nnx.jit
    def total(model):
        doubled = nnx.recursive_map(
            lambda path, v: v.copy(v.value * 2) if isinstance(v, nnx.Variable) else v, model
        )
        return doubled.a.value.sum()

    assert total(Tied()) == 6.0


def test_an_error_of_f_leaves_the_model_as_it_was():
    model = mlp()
    with testing.assert_unchanged(model), pytest.raises(ZeroDivisionError):
        nnx.recursive_map(lambda path, value: 1 / 0 if path == () else value, model)


def test_annotations_are_kept_and_a_stale_list_is_an_error():
    model = nnx.Dict()
    model.inner = example(nnx)
    model.inner.count = nnx.data(0)
    new = nnx.recursive_map(same, model)
    assert nnx.state(new)["inner"]["count"] == 0
    plain = [1]
    model.items_ = plain
    plain.append(2)
    with pytest.raises(errors.StructureError, match="through another reference"):
        nnx.recursive_map(same, model)
