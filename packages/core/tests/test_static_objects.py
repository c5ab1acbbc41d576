"""Static values that Python cannot hash: equal ones share a program, a change is always seen."""

import argparse
import collections
import copy
import dataclasses
import pickle
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli as nnx
from moduli._base.static_keys import object_key, static_value


@dataclasses.dataclass
class Plain:
    width: object = 3
    names: list = dataclasses.field(default_factory=lambda: ["a"])


@dataclasses.dataclass(frozen=True)
class Frozen:
    width: object = 3
    table: dict = dataclasses.field(default_factory=lambda: {"a": [1]})


@dataclasses.dataclass(slots=True)
class Slotted:
    width: object = 3


class Library:
    """As transformers' configs: attributes, and == without a hash."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)

    def __eq__(self, other):
        return isinstance(other, Library) and self.__dict__ == other.__dict__


class Coarse(Library):
    """As pydantic's models: == leaves out how the object was made."""

    def __eq__(self, other):
        return self.width == other.width


class Faulty(Library):
    def __eq__(self, other):
        raise RuntimeError("cannot be compared")


class Elementwise(Library):
    def __eq__(self, other):
        return np.array([True, False])


def _set(name, value):
    return lambda config: setattr(config, name, value)


# how one is made, and how it is changed in place
OBJECTS = {
    "dataclass": (Plain, _set("width", 7)),
    "list in a dataclass": (Plain, lambda c: c.names.append("b")),
    "dict in a frozen dataclass": (Frozen, lambda c: c.table["a"].append(2)),
    "slots": (Slotted, _set("width", 7)),
    "namespace": (lambda: types.SimpleNamespace(width=3), _set("width", 7)),
    "argparse": (lambda: argparse.Namespace(width=3), _set("other", 1)),
    "nested": (lambda: Library(inner=Library(width=3)), lambda c: _set("width", 7)(c.inner)),
    "own ==": (lambda: Library(width=3), _set("width", True)),
    "coarse ==": (lambda: Coarse(width=3), _set("width", 7)),
    "faulty ==": (lambda: Faulty(width=3), _set("width", 7)),
    "elementwise ==": (lambda: Elementwise(width=3), _set("width", 7)),
    "set": (lambda: {1, 2}, lambda c: c.add(3)),
    "set in a tuple": (lambda: (1, {1, 2}), lambda c: c[1].add(3)),
    "deque": (lambda: collections.deque([1, [2]]), lambda c: c[1].append(3)),
    "bytearray": (lambda: bytearray(b"ab"), lambda c: c.extend(b"c")),
    "nan": (lambda: types.SimpleNamespace(width=float("nan")), _set("width", 0.0)),
}
objects = pytest.mark.parametrize(("make", "change"), OBJECTS.values(), ids=OBJECTS)


class Inner(nnx.Module):
    def __init__(self, config):
        self.config, self.scale = config, nnx.Param(jnp.ones(2))

    def __call__(self, x):
        return x * self.scale


class Net(nnx.Module):
    def __init__(self, config):
        self.config, self.inner = config, [Inner(config)]

    def __call__(self, x):
        return self.inner[0](x)


class Counted:
    """Transforms of a function that counts its traces."""

    def __init__(self, transform):
        self.traces = 0

        def function(net, x):
            self.traces += 1
            return net(x).sum()

        self.call = transform(function)

    def __call__(self, net):
        self.call(net, jnp.ones(2))
        return self.traces


TRANSFORMS = {
    "jit": nnx.jit,
    "jit of grad": lambda f: nnx.jit(nnx.grad(f)),
    "jit of vmap": lambda f: nnx.jit(nnx.vmap(f, in_axes=(None, 0))),
    "raw": jax.jit,
}
transforms = pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)


@objects
@transforms
def test_an_equal_one_compiles_nothing_and_a_changed_one_compiles_again(make, change, transform):
    run, config = Counted(transform), make()
    net = Net(config)
    assert run(net) == 1
    assert run(net) == run(Net(make())) == run(nnx.clone(net)) == 1
    assert net.config is config and net.inner[0].config is config
    change(config)
    assert run(net) == run(net) == 2, "a change in place was not seen"
    changed = make()
    change(changed)
    assert run(Net(changed)) == 2
    assert run(Net(make())) == 2, "the first program is still there"
    net.config = net.inner[0].config = make()
    assert run(net) == 2


@objects
def test_a_stored_structure_does_not_change(make, change):
    config = make()
    net = Net(config)
    graphdef, state = nnx.split(net)
    change(config)
    merged = nnx.merge(graphdef, state)
    assert object_key(merged.config) == object_key(make()) != object_key(config)
    assert merged.config is merged.inner[0].config, "one object stays one"
    change(merged.config)
    assert nnx.graphdef(merged) is nnx.graphdef(net) is not graphdef
    assert object_key(nnx.merge(graphdef, state).config) == object_key(make())
    assert graphdef is nnx.graphdef(Net(make()))


@objects
def test_keys_make_equal_objects_and_go_through_pickles(make, change):
    key = object_key(make())
    assert hash(key) == hash(object_key(make()))
    again = static_value(key)
    assert type(again) is type(make()) and object_key(again) == key
    graphdef = nnx.graphdef(Net(make()))
    assert pickle.loads(pickle.dumps(graphdef)) is graphdef
    copied = copy.deepcopy(Net(make()))
    assert nnx.graphdef(copied) is graphdef


@pytest.mark.parametrize("kind", [Plain, Frozen, Slotted, lambda width: Library(width=width)])
def test_equal_numbers_of_different_types_are_different(kind):
    keys = {nnx.graphdef(Net(kind(width))) for width in (1, True, 1.0)}
    assert len(keys) == 3
    assert Net(kind(1)) is not None and nnx.graphdef(Net(kind(1))) in keys


@dataclasses.dataclass(frozen=True)
class Hashed:
    width: object


def test_frozen_dataclasses_with_equal_numbers_of_different_types_are_different():
    assert len({nnx.graphdef(Net(Hashed(width))) for width in (1, True, 1.0)}) == 3


def test_own_equality_that_leaves_something_out_decides():
    run = Counted(nnx.jit)
    assert run(Net(Coarse(width=3, made=1))) == run(Net(Coarse(width=3, made=2))) == 1
    assert run(Net(Coarse(width=4, made=1))) == 2


def test_an_object_that_contains_itself():
    def make(width):
        config = types.SimpleNamespace(width=width)
        config.me = config
        return config

    run, net = Counted(nnx.jit), Net(make(3))
    assert run(net) == run(Net(make(3))) == 1
    net.config.width = 7
    assert run(net) == 2
    merged = nnx.merge(*nnx.split(net))
    assert merged.config.me is merged.config


def test_a_change_inside_of_a_transform_is_done_to_the_caller_s_object():
    def step(net):
        net.config.width += 1
        return net.config.width * jnp.ones(())

    for call in (nnx.jit(step), step):
        net = Net(Plain())
        for width in (4, 5):
            assert float(call(net)) == net.config.width == width
            assert net.inner[0].config is net.config


def test_a_structural_change_leaves_the_objects_what_they_are():
    @nnx.jit
    def grow(net):
        net.more = nnx.Param(jnp.ones(1))
        net.inner[0].more = nnx.Param(jnp.ones(1))

    config = Plain()
    net = Net(config)
    grow(net)
    assert net.more.shape == (1,)
    assert net.config is config and net.inner[0].config is config


def test_distinct_objects_stay_apart_though_they_are_equal():
    net = Net(Plain())
    net.inner[0].config = Plain()
    for other in (nnx.clone(net), nnx.merge(*nnx.split(net))):
        assert other.config == other.inner[0].config
        assert other.config is not other.inner[0].config
        assert other.config is not net.config


def test_in_loops():
    net = Net(Plain())
    net.count = nnx.Variable(jnp.zeros(()))

    def step(net, x):
        net.count += 1
        return net, net(x) * net.config.width

    for width in (3, 7):
        net.config.width = width
        _, out = nnx.scan(step, in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))(
            net, jnp.ones((4, 2))
        )
        np.testing.assert_array_equal(out, width * np.ones((4, 2)))
    assert float(net.count[...]) == 8


@pytest.mark.parametrize("make", [lambda: {1, 2}, lambda: ["a"], lambda: {"a": [1]}, Plain])
def test_metadata(make):
    run = Counted(nnx.jit)
    net = Net(None)
    net.inner[0].scale.set_metadata(tag=make())
    assert run(net) == run(net) == run(nnx.clone(net)) == 1
    graphdef, state = nnx.split(net)
    tag = net.inner[0].scale.tag
    {set: lambda: tag.add(3), list: lambda: tag.append("b"), dict: lambda: tag["a"].append(2)}.get(
        type(tag), lambda: tag.names.append("b")
    )()
    assert run(net) == run(net) == 2
    pure = nnx.to_pure_dict(state)
    assert nnx.merge(graphdef, pure).inner[0].scale.tag == make(), "the structure that was stored"


def test_arguments_of_jit_that_are_static_must_still_be_hashable():
    with pytest.raises(ValueError, match="hash"):
        nnx.jit(lambda config, x: x, static_argnums=0)(Plain(), jnp.ones(2))
