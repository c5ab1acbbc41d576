"""Modules with other base classes: protocols, generics, abstract classes, other metaclasses."""

import abc
import dataclasses
import inspect
import itertools
import pickle
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli as nnx
from moduli import errors

T = typing.TypeVar("T")


@typing.runtime_checkable
class Forward(typing.Protocol):
    def forward(self, x): ...


class Generic(typing.Generic[T]):
    pass


class Abstract(abc.ABC):
    @abc.abstractmethod
    def forward(self, x): ...


class PlainMeta(type):
    def __call__(cls, *args, **kwargs):
        made = super().__call__(*args, **kwargs)
        made.noted = True
        return made


class Registered(metaclass=PlainMeta):
    pass


class AbstractMeta(abc.ABCMeta):
    pass


class OfAbstractMeta(metaclass=AbstractMeta):
    pass


class Mapped(type):
    """As EnumMeta: the class itself is a container."""

    @classmethod
    def __prepare__(mcs, name, bases, **kwargs):
        return {"prepared": True}

    def __len__(cls):
        return 3


class OfMapped(metaclass=Mapped):
    pass


class Mixin:
    def __init__(self, *args, extra="none", **kwargs):
        super().__init__(*args, **kwargs)
        self.extra = extra


BASES = [Forward, Generic, Abstract, Registered, OfAbstractMeta, OfMapped, Mixin]
x = jnp.ones(3)


def body(namespace):
    def __init__(self):
        super(namespace["cls"], self).__init__()
        self.w = nnx.Param(jnp.arange(3.0))

    def forward(self, x):
        return self.w * x

    return {"__init__": __init__, "forward": forward}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("kind", [nnx.Module, nnx.Pytree])
@pytest.mark.parametrize("first", [True, False])
def test_a_base_class_in_either_order(base, kind, first):
    namespace = {}
    bases = (base, kind) if first else (kind, base)
    meta = type(base) if base is not Mixin else type
    namespace["cls"] = cls = meta("Net", bases, body(namespace))
    model = cls()
    assert isinstance(model, base) and isinstance(model, kind) and isinstance(model, Forward)
    np.testing.assert_array_equal(nnx.jit(lambda m: m.forward(x))(model), np.arange(3.0))
    np.testing.assert_array_equal(jax.jit(lambda m: m.forward(x))(model), np.arange(3.0))
    grads = nnx.grad(lambda m: m.forward(x).sum())(model)
    np.testing.assert_array_equal(jax.tree.leaves(grads)[0], np.ones(3))
    assert type(nnx.clone(model)) is cls


PAIRS = list(itertools.permutations([Forward, Generic[int], Abstract, Mixin], 2))


@pytest.mark.parametrize("pair", PAIRS)
def test_several_base_classes(pair):
    class Net(nnx.Module, *pair):
        def __init__(self):
            self.w = nnx.Param(1.0)

        def forward(self, x):
            return self.w * x

    assert nnx.jit(lambda m: m.forward(x))(Net()).shape == (3,)


def test_a_metaclass_that_is_named():
    class Net(nnx.Module, metaclass=PlainMeta):
        def __init__(self, size):
            self.size, self.w = size, nnx.Param(1.0)

    assert Net(3).noted and nnx.clone(Net(3)).size == 3

    class Old(type(nnx.Module)):  # as one had to write it for a library with a metaclass
        pass

    class Other(nnx.Module, metaclass=Old):
        pass

    assert isinstance(Other(), nnx.Module)


def test_abstract_methods_hold_with_and_without_abc():
    for bases in ((nnx.Module,), (nnx.Module, abc.ABC), (abc.ABC, nnx.Module)):

        class Base(*bases):
            @abc.abstractmethod
            def __call__(self, x): ...

            @property
            @abc.abstractmethod
            def size(self): ...

        class Half(Base):
            def __call__(self, x):
                return x

        class Whole(Half):
            size = 3

        for cls in (Base, Half):
            with pytest.raises(TypeError, match=r"abstract class .*size"):
                cls()
        assert Whole().size == 3


def test_constructors_show_their_signature():
    class Net(nnx.Module):
        def __init__(self, size: int, *, rngs: nnx.Rngs):
            self.size = size

    assert list(inspect.signature(Net).parameters) == ["size", "rngs"]
    made = dataclasses.make_dataclass("Made", ["a"], bases=(nnx.Module,))
    assert list(inspect.signature(made).parameters) == ["a"] and made(3).a == 3
    assert list(inspect.signature(made).parameters) == ["a"]


def test_arguments_that_no_constructor_takes():
    class Empty(nnx.Module):
        pass

    with pytest.raises(TypeError, match=r"Empty\(\) takes no arguments"):
        Empty(3)

    class Both(nnx.Module, Mixin):
        pass

    assert Both(extra="some").extra == "some"


@dataclasses.dataclass
class Fields(nnx.Module):
    size: int = 3


class Derived(Fields):
    pass


class Calls(nnx.Module):
    def __init__(self, size=3):
        super().__init__()
        self.child, self.size = Fields(), size


class CallsTwice(Calls):
    def __init__(self):
        super().__init__()
        super().__init__(4)


@pytest.mark.parametrize("cls", [Fields, Derived, Calls, CallsTwice])
def test_a_plugin_sees_each_object_once_and_when_it_is_ready(cls):
    seen = []

    class Watch:
        @nnx.hookimpl
        def moduli_module_created(self, module):
            seen.append((type(module), module.size))

    before = dict(vars(cls))
    cls()
    with nnx.using(Watch()):
        model = cls()
    cls()
    assert seen[-1] == (cls, model.size)
    assert sum(kind is cls for kind, _ in seen) == 1
    nnx.clone(model)
    assert {**before, "__init__": None} == {**vars(cls), "__init__": None}
    assert isinstance(pickle.loads(pickle.dumps(model)), cls)


# -- defaults of dataclasses ----------------------------------------------------------------------


class Child(nnx.Module):
    def __init__(self):
        self.w = nnx.Param(jnp.ones(3))


DEFAULTS = [
    lambda: nnx.Param(jnp.ones(3)),
    lambda: Child(),
    lambda: nnx.Rngs(0),
    lambda: (nnx.Param(jnp.ones(3)), "a"),
]
defaults = pytest.mark.parametrize("make", DEFAULTS)


@defaults
def test_a_shared_default_is_refused(make):
    default = make()
    with pytest.raises(ValueError, match=r"field 'part' .*default_factory") as caught:

        @nnx.dataclass
        class Net(nnx.Module):
            size: int = 3
            part: typing.Any = default

    assert isinstance(caught.value, errors.ModuliError)


@defaults
def test_of_a_plain_dataclass_each_instance_has_its_own(make):
    default = make()

    @dataclasses.dataclass
    class Net(nnx.Module):
        size: int = 3
        part: typing.Any = default

    class Further(Net):
        pass

    models = [Net(), Net(), Further()]
    parts = [set(map(id, nnx.flatten(model)[1].leaves)) for model in models]
    assert len(set().union(*parts)) == sum(map(len, parts)) > 0
    assert len({nnx.graphdef(model) for model in models}) == 2
    own = make()
    assert Net(part=own).part is own or isinstance(own, tuple)

    @dataclasses.dataclass(frozen=True)
    class Frozen(nnx.Module):
        part: typing.Any = default

    for _ in range(2):
        with pytest.raises(ValueError, match="default_factory"):
            Frozen()


def test_a_factory_makes_one_for_each():
    for decorator, field in itertools.product(
        (nnx.dataclass, dataclasses.dataclass), (dataclasses.field, nnx.data)
    ):

        @decorator
        class Net(nnx.Module):
            part: nnx.Param = field(default_factory=lambda: nnx.Param(jnp.ones(3)))

        assert Net().part is not Net().part
