"""Containers that the user gave stay the user's own, and what is changed in them is never old."""

import collections
import dataclasses
import types
from collections.abc import MutableMapping, MutableSequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core_models import Linear

import moduli as nnx

X = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)


class MyDict(dict):
    """A subclass with an attribute of its own."""

    note = None


class MyList(list):
    pass


class MyOrderedDict(collections.OrderedDict):
    pass


class Mapping(MutableMapping):
    def __init__(self, items):
        self._held = dict(items)

    def __getitem__(self, key):
        return self._held[key]

    def __setitem__(self, key, value):
        self._held[key] = value

    def __delitem__(self, key):
        del self._held[key]

    def __iter__(self):
        return iter(self._held)

    def __len__(self):
        return len(self._held)


class Sequence(MutableSequence):
    def __init__(self, items):
        self._held = list(items)

    def __getitem__(self, index):
        return self._held[index]

    def __setitem__(self, index, value):
        self._held[index] = value

    def __delitem__(self, index):
        del self._held[index]

    def __len__(self):
        return len(self._held)

    def insert(self, index, value):
        self._held.insert(index, value)


@jax.tree_util.register_pytree_with_keys_class
class Registered(Mapping):
    """A class that JAX knows."""

    def tree_flatten_with_keys(self):
        return [(jax.tree_util.DictKey(k), v) for k, v in self._held.items()], tuple(self._held)

    @classmethod
    def tree_unflatten(cls, keys, children):
        return cls(zip(keys, children, strict=True))


def _default(items):
    found = collections.defaultdict(list)
    found.update(items)
    return found


MAPPINGS = {
    "dict": dict,
    "OrderedDict": collections.OrderedDict,
    "defaultdict": _default,
    "UserDict": collections.UserDict,
    "dict subclass": MyDict,
    "OrderedDict subclass": MyOrderedDict,
    "MutableMapping": Mapping,
    "registered class": Registered,
}
SEQUENCES = {
    "list": list,
    "list subclass": MyList,
    "UserList": collections.UserList,
    "deque": lambda items: collections.deque(items, maxlen=7),
    "MutableSequence": Sequence,
}
ALL = {**MAPPINGS, **SEQUENCES}


def linear(seed):
    return Linear(3, 3, rngs=nnx.Rngs(seed))


def make(name):
    # not in the order of the names, which JAX would use
    items = {"z": linear(0), "a": linear(1)}
    return MAPPINGS[name](items) if name in MAPPINGS else SEQUENCES[name](items.values())


def parts(container):
    return list(container.values() if hasattr(container, "values") else container)


class Net(nnx.Module):
    def __init__(self, held):
        self.held = held

    def __call__(self, x):
        for layer in parts(self.held):
            x = jnp.tanh(layer(x))
        return x


class Marked(Net):
    def __init__(self, held):
        self.held = nnx.data(held)


class InTuple(Net):
    """Inside of a tuple, which is no node."""

    def __init__(self, held):
        self.pair = (held, None)

    @property
    def held(self):
        return self.pair[0]


class InNamedTuple(InTuple):
    def __init__(self, held):
        self.pair = nnx.data(Pair(held, None))


Pair = collections.namedtuple("Pair", "held rest")


def expected(container):
    """The same in numpy, from what the container holds now."""
    x = X
    for layer in parts(container):
        x = np.tanh(x @ np.asarray(layer.kernel.value) + np.asarray(layer.bias.value))
    return x


def check(net, run):
    np.testing.assert_allclose(run(net, X), expected(net.held), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(nnx.clone(net)(X), expected(net.held), rtol=1e-5, atol=1e-6)


def check_all(net, run):
    check(net, run)
    want = expected(net.held)
    results = {
        "eager": net(X),
        "merge": nnx.merge(*nnx.split(net))(X),
        "jax.jit": jax.jit(lambda net, x: net(x))(net, X),
        "tree.map": jax.tree.map(lambda leaf: leaf, net)(X),
        "vmap": nnx.vmap(lambda net, x: net(x), in_axes=(None, 0))(net, X),
        "remat": nnx.remat(lambda net, x: net(x))(net, X),
    }
    for name, got in results.items():
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6, err_msg=name)
    count = 2 * len(parts(net.held))
    grads = jax.tree.leaves(nnx.grad(lambda net: net(X).sum())(net))
    assert len(grads) == count and all(float(jnp.abs(grad).sum()) > 0 for grad in grads)
    assert len(jax.tree.leaves(nnx.state(net))) == count
    assert type(nnx.clone(net).held) is type(net.held)


@pytest.mark.parametrize("kind", [Net, InNamedTuple])
@pytest.mark.parametrize("name", ALL)
def test_what_is_replaced_added_or_deleted_is_seen(name, kind):
    given = make(name)
    net, run = kind(given), nnx.jit(lambda net, x: net(x))
    if type(given) not in (list, dict):
        assert net.held is given
    held = net.held
    check(net, run)
    if name in MAPPINGS:
        held["a"] = linear(2)
        check(net, run)
        held["b"] = linear(3)
        check(net, run)
        del held["z"]
    else:
        held[1] = linear(2)
        check(net, run)
        held.append(linear(3))
        check(net, run)
        del held[0]
    check(net, run)
    if hasattr(held, "move_to_end"):
        held.move_to_end("a")
        check(net, run)
    if hasattr(held, "rotate"):
        held.rotate(1)
        assert nnx.clone(net).held.maxlen == 7
        check(net, run)
    check_all(net, run)


@pytest.mark.parametrize("kind", [Net, InNamedTuple])
@pytest.mark.parametrize("name", ALL)
def test_what_a_transform_does_arrives_in_the_same_objects(name, kind):
    net = kind(make(name))
    held = net.held
    first, second = ("z", "a") if name in MAPPINGS else (0, 1)
    old, other = held[first], held[second]
    before = np.asarray(old.bias.value)

    @nnx.jit
    def write(net):
        net.held[first].bias.value += 1.0

    write(net)
    assert net.held is held and held[first] is old and held[second] is other
    np.testing.assert_allclose(old.bias.value, before + 1)

    @nnx.jit
    def replace(net):
        net.held[first] = linear(7)
        if name in MAPPINGS:
            net.held["more"] = net.held[second]
        else:
            net.held.append(net.held[second])

    replace(net)
    assert net.held is held and held[second] is other
    assert held[first] is not old
    assert parts(held)[-1] is other
    np.testing.assert_array_equal(held[first].kernel.value, linear(7).kernel.value)
    np.testing.assert_allclose(net(X), expected(held), rtol=1e-5, atol=1e-6)
    run = nnx.jit(lambda net, x: net(x))
    np.testing.assert_allclose(run(net, X), expected(held), rtol=1e-5, atol=1e-6)


class Scale(nnx.Module):
    def __init__(self, held):
        self.held = held

    def __call__(self):
        *_, last = parts(self.held)
        return last * jnp.ones(())


@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_bare_values_are_read_and_written_in_place(name, marked):
    values = {"z": jnp.array(1.0), "a": jnp.array(2.0)}
    given = MAPPINGS[name](values) if name in MAPPINGS else SEQUENCES[name](values.values())
    net = Scale(nnx.data(given) if marked else given)
    held, key = net.held, "a" if name in MAPPINGS else 1
    run = nnx.jit(lambda net: net())
    for value in (jnp.array(2.0), 3.0, 4.0, jnp.array(5.0), 3):
        held[key] = value
        assert float(run(net)) == float(value)
        assert float(run(net)) == float(value)

    @nnx.jit
    def double(net):
        net.held[key] = net.held[key] * 2

    held[key] = jnp.array(2.0)
    double(net)
    double(net)
    assert net.held is held and float(held[key]) == 8.0


@dataclasses.dataclass
class Record:
    first: object
    last: object

    def values(self):
        return [self.first, self.last]


@dataclasses.dataclass(frozen=True)
class Frozen:
    first: object
    last: object

    def values(self):
        return [self.first, self.last]


@dataclasses.dataclass(slots=True)
class Slotted:
    first: object
    last: object

    def values(self):
        return [self.first, self.last]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Known:
    first: object
    last: object

    def values(self):
        return [self.first, self.last]


class Namespace(types.SimpleNamespace):
    def values(self):
        return [self.first, self.last]


@pytest.mark.parametrize("kind", [Net, Marked, InTuple])
@pytest.mark.parametrize("cls", [Record, Slotted, Known, Namespace, Frozen])
def test_records_of_modules_are_part_of_the_model(cls, kind):
    given = cls(first=linear(0), last=linear(1))
    net, run = kind(given), nnx.jit(lambda net, x: net(x))
    check(net, run)
    assert net.held is given
    given.first.bias.value += 1.0
    check(net, run)
    if cls is not Frozen:
        given.last = linear(5)
    check_all(net, run)


def test_a_mapping_that_cannot_be_written_is_read_anew():
    inside = {"z": linear(0), "a": linear(1)}
    net, run = Net(types.MappingProxyType(inside)), nnx.jit(lambda net, x: net(x))
    check(net, run)
    inside["a"] = linear(2)
    check(net, run)


def test_nested_containers_are_watched_at_every_level():
    net = Net(collections.OrderedDict(a=linear(0)))
    net.more = collections.OrderedDict(x=[collections.deque([jnp.array(1.0)]), (MyDict(),)])
    run = nnx.jit(
        lambda net: sum(
            jax.tree.leaves([list(net.more["x"][0]), list(net.more["x"][1][0].values())])
        )
    )
    assert float(run(net)) == 1.0
    net.more["x"][0].append(jnp.array(2.0))
    assert float(run(net)) == 3.0
    net.more["x"][1][0]["k"] = jnp.array(3.0)
    assert float(run(net)) == 6.0


def test_states_as_attributes_are_watched():
    net = Scale(nnx.state(nnx.Dict(a=nnx.Dict(b=nnx.Param(2.0)))))
    run = nnx.jit(lambda net: net.held["a"]["b"][...] * 2)
    assert float(run(net)) == 4.0
    net.held["a"]["b"] = nnx.Param(5.0)
    assert float(run(net)) == 10.0
    net.held.a.b = nnx.Param(6.0)
    assert float(run(net)) == 12.0


def test_equal_containers_are_one_structure():
    structures = {
        id(nnx.graphdef(Net(collections.UserDict(z=linear(seed), a=linear(seed)))))
        for seed in range(2)
    }
    assert len(structures) == 1
