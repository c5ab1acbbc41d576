"""Plain lists, dicts and tuples just work, and nothing that is done to them is lost."""

from __future__ import annotations

import copy
import pickle

import jax.numpy as jnp
import pytest
from core_models import Linear

import moduli as nnx
from moduli import errors


def linear(seed=0):
    return Linear(2, 2, rngs=nnx.Rngs(seed))


class Holder(nnx.Module):
    def __init__(self, value):
        self.parts = value

    def __call__(self, x):
        for part in self.parts:
            x = part(x)
        return x


def count(model):
    return len(nnx.to_flat_state(nnx.state(model)))


MUTATIONS = {
    "append": lambda parts: parts.append(linear(1)),
    "extend": lambda parts: parts.extend([linear(1), linear(2)]),
    "iadd": lambda parts: parts.__iadd__([linear(1)]),
    "insert": lambda parts: parts.insert(0, linear(1)),
    "pop": lambda parts: parts.pop(),
    "remove": lambda parts: parts.remove(parts[0]),
    "clear": lambda parts: parts.clear(),
    "reverse": lambda parts: parts.reverse(),
    "set": lambda parts: parts.__setitem__(0, linear(5)),
    "slice": lambda parts: parts.__setitem__(slice(0, 1), [linear(5), linear(6)]),
    "delete": lambda parts: parts.__delitem__(0),
    "imul": lambda parts: parts.__imul__(2),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_list_does_what_a_list_does_and_the_graph_sees_it(name):
    items = [linear(), linear(3)]
    model = Holder(list(items))
    nnx.split(model)  # the cache holds a flatten now
    called = nnx.jit(lambda m, x: m(x))
    x = jnp.ones((1, 2))
    called(model, x)
    MUTATIONS[name](model.parts)
    unique = {id(part): part for part in model.parts}
    assert count(model) == 2 * len(unique)
    assert len(nnx.state(model).get("parts", {})) == len(unique)
    assert jnp.allclose(called(model, x), model(x))


def test_a_list_is_a_list():
    parts = Holder([1, 2, 3]).parts
    assert isinstance(parts, list) and isinstance(parts, nnx.Module)
    assert parts == [1, 2, 3] and [*parts] == [1, 2, 3] and parts[1:] == [2, 3]
    assert 2 in parts and parts.index(3) == 2 and len(parts) == 3
    parts.name = "x"  # attributes as of any module
    assert parts.name == "x" and parts == [1, 2, 3] and nnx.clone(parts).name == "x"


def test_a_dict_is_a_dict_and_the_graph_sees_its_changes():
    model = Holder({"b": linear(), "a": linear(1)})
    parts = model.parts
    assert isinstance(parts, dict) and list(parts) == ["b", "a"]
    assert parts.b is parts["b"]
    nnx.split(model)
    parts["c"] = linear(2)
    parts.d = linear(3)
    assert count(model) == 8
    parts.update(e=linear(4))
    parts.pop("b")
    del parts["a"]
    parts |= {"f": linear(5)}
    assert set(nnx.state(model).parts) == {"c", "d", "e", "f"}
    assert parts.setdefault("c", None) is parts["c"]
    with pytest.raises(AttributeError, match="no entry or attribute 'zz'"):
        parts.zz


@pytest.mark.parametrize("key", ["self", "cls", "args", "kwargs"])
def test_any_word_is_a_key_of_a_dict(key):
    assert dict(nnx.Dict(**{key: nnx.Param(1.0)})) == {key: nnx.Param(1.0)}


def test_a_dict_keeps_its_order_through_merge_and_jit():
    model = Holder({"b": nnx.Param(1.0), "a": nnx.Param(2.0)})
    assert list(nnx.merge(*nnx.split(model)).parts) == ["b", "a"]
    assert nnx.jit(lambda m: tuple(v.value for v in m.parts.values()))(model) == (1.0, 2.0)


def test_nested_containers():
    model = Holder([[linear()], {"x": [linear(1)]}, (linear(2), [linear(3)])])
    model.parts[0].append(linear(4))
    model.parts[1]["x"].append(linear(5))
    model.parts[2][1].append(linear(6))
    assert count(model) == 2 * 7


@pytest.mark.parametrize("watch", ["iterate", "index", "length", "split", "jit", "append"])
def test_changing_the_plain_list_afterwards_is_an_error(watch):
    parts = [linear()]
    model = Holder(parts)
    nnx.split(model)
    parts.append(linear(1))
    actions = {
        "iterate": lambda: list(model.parts),
        "index": lambda: model.parts[0],
        "length": lambda: len(model.parts),
        "split": lambda: nnx.split(model),
        "jit": lambda: nnx.jit(lambda m: 0)(model),
        "append": lambda: model.parts.append(linear(2)),
    }
    with pytest.raises(errors.StructureError, match=r"`parts` of Holder.*held 1 items, now 2"):
        actions[watch]()


def test_changing_the_plain_list_is_an_error_on_a_compiled_path_too():
    parts = [linear()]
    model = Holder(parts)
    run = nnx.jit(lambda m, x: m(x))
    x = jnp.ones((1, 2))
    run(model, x)
    parts[0] = linear(1)
    with pytest.raises(errors.StructureError, match="another reference"):
        run(model, x)


def test_changing_the_plain_dict_afterwards_is_an_error():
    heads = {"a": linear()}
    model = Holder(heads)
    heads["b"] = linear(1)
    with pytest.raises(errors.StructureError, match="plain dict"):
        model.parts["a"]


def test_a_list_that_nobody_else_holds_is_not_watched_for_ever():
    model = Holder([linear()])
    nnx.split(model)
    assert model.parts._moduli.source is None


def test_one_plain_list_assigned_twice_is_one_list():
    class Two(nnx.Module):
        def __init__(self):
            parts = [linear()]
            self.a = parts
            self.b = parts

    model = Two()
    assert model.a is model.b
    model.a.append(linear(1))
    assert len(model.b) == 2


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_of_containers(how):
    for original in (nnx.List([1, nnx.Param(2.0)]), nnx.Dict(a=1, b=nnx.Param(2.0))):
        other = how(original)
        assert type(other) is type(original) and len(other) == 2 and other is not original
        other.clear()
        assert len(original) == 2


def test_annotated_elements_are_taken_as_they_are():
    model = nnx.List([nnx.data(jnp.ones(1)), nnx.static("x")])
    assert model[1] == "x" and list(nnx.state(model)) == [0]
