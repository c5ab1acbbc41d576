"""``model.__class__ = Other``: seen by every function of structure, in and out of transforms."""

import copy
import pickle

import jax
import jax.numpy as jnp
import pytest

import moduli as nnx
from moduli import errors


class One(nnx.Module):
    factor = 1

    def __init__(self):
        self.scale = nnx.Param(jnp.array(3.0))
        self.flag = False

    def __call__(self, x):
        return self.factor * self.scale * x


class Two(One):
    factor = 2


class Model(nnx.Module):
    def __init__(self):
        self.part = One()
        self.parts = [One()]
        self.held = (One(),)

    def __call__(self, x):
        return self.part(x) + self.parts[0](x) + self.held[0](x)


class Kind(nnx.Param):
    pass


PLACES = {
    "root": lambda model: model.part,
    "in a list": lambda model: model.parts[0],
    "in a tuple": lambda model: model.held[0],
}


def forward(model, x):
    return model(x)


TRANSFORMS = {
    "eager": forward,
    "jit": nnx.jit(forward),
    "value_and_grad": lambda model, x: nnx.value_and_grad(forward)(model, x)[0],
    "vmap": lambda model, x: nnx.vmap(forward, in_axes=(None, 0))(model, x[None])[0],
    "remat": nnx.remat(forward),
    "split": lambda model, x: nnx.merge(*nnx.split(model))(x),
    "tree": lambda model, x: jax.tree.map(lambda v: v, model)(x),
    "raw jit": lambda model, x: RAW(model, x),
}
RAW = jax.jit(forward)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("place", PLACES)
def test_the_next_call_is_that_of_the_new_class(place, transform):
    model, call = Model(), TRANSFORMS[transform]
    part, x = PLACES[place](model), jnp.array(1.0)
    assert call(model, x) == 9.0
    for cls, expected in ((Two, 12.0), (One, 9.0), (Two, 12.0)):
        part.__class__ = cls
        part.flag = not part.flag  # a static attribute with it: the quick revision of a structure
        assert call(model, x) == expected
        assert type(part) is cls and part.scale.value == 3.0


def test_a_structure_with_the_old_class_is_found_again():
    model = Model()
    before = nnx.graphdef(model)
    model.part.__class__ = Two
    assert nnx.graphdef(model) is not before
    assert type(nnx.merge(nnx.graphdef(model), nnx.state(model)).part) is Two
    model.part.__class__ = One
    assert nnx.graphdef(model) is before


def test_a_class_changed_in_a_compiled_function_is_changed_outside():
    @nnx.jit
    def change(model):
        model.part.__class__ = Two
        return model(jnp.array(1.0))

    model = Model()
    part = model.part
    assert change(model) == 12.0 and model.part is part and type(part) is Two
    assert change(Model()) == 12.0 and forward(model, 1.0) == 12.0


def test_train_and_eval_find_what_the_class_now_has():
    class Switched(One):
        deterministic = False

    model = Model()
    nnx.jit(forward)(model, 1.0)
    model.eval()
    model.part.__class__ = Switched
    model.eval(deterministic=True)
    assert model.part.deterministic is True


@pytest.mark.parametrize("container", [nnx.List, nnx.Dict])
def test_a_container_gets_a_subclass(container):
    sub = type("Sub", (container,), {"__call__": lambda self, x: len(self) * x})
    node = container([("a", nnx.Param(1.0))] if container is nnx.Dict else [nnx.Param(1.0)])
    nnx.jit(lambda node: 0)(node)
    node.__class__ = sub
    assert nnx.jit(forward)(node, 3) == 3 and type(nnx.clone(node)) is sub
    assert "__class__" not in list(node)


def test_a_variable_gets_another_kind():
    model = Model()
    count = nnx.jit(lambda model: len(nnx.state(model, Kind)))
    assert count(model) == 0
    model.part.scale.__class__ = Kind
    assert count(model) == 1 and list(nnx.state(model, Kind)) == ["part"]
    assert type(nnx.clone(model).part.scale) is Kind

    @nnx.jit
    def change(model):
        model.parts[0].scale.__class__ = Kind

    change(model)
    assert type(model.parts[0].scale) is Kind and count(model) == 2


@pytest.mark.parametrize(
    ("cls", "error"), [(int, TypeError), (nnx.List, TypeError), ("Two", TypeError)]
)
def test_a_class_that_cannot_be_is_refused(cls, error):
    model = Model()
    with pytest.raises(error):
        model.part.__class__ = cls
    with pytest.raises(errors.VariableError, match="kinds are subclasses"):
        model.part.scale.__class__ = One
    assert type(model.part) is One and model(1.0) == 9.0
    assert nnx.jit(forward)(model, 1.0) == 9.0


def test_a_captured_module_keeps_its_class():
    model = Model()
    with pytest.raises(errors.TraceError, match="change the class"):
        nnx.jit(lambda x: setattr(model.part, "__class__", Two))(1.0)
    assert type(model.part) is One


def test_a_loop_says_that_the_class_changed():
    def step(_, model):
        model.part.__class__ = Two
        return model

    with pytest.raises(errors.StructureError, match="a Two"):
        nnx.fori_loop(0, 3, step, Model())


def test_copies_and_pickles_have_the_class():
    model = Model()
    model.part.__class__ = Two
    for again in (copy.copy(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(again.part) is Two and again(1.0) == 12.0
