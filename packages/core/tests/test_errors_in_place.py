"""Errors that leave a module's call say where in the model the module stands."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import moduli
from moduli.errors import ShapeError


class Picky(moduli.Module):
    """Refuses, in one of several ways."""

    def __init__(self, error):
        self.error = error

    def __call__(self, x):
        raise self.error


class Block(moduli.Module):
    def __init__(self, layer):
        self.layer = layer

    def __call__(self, x):
        return self.layer(x)


class Net(moduli.Module):
    def __init__(self, error):
        self.blocks = [Block(lambda x: x), Block(Picky(error))]

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return x


RUNS = {
    "eager": lambda net, x: net(x),
    "jit": moduli.jit(lambda net, x: net(x)),
    "grad": moduli.grad(lambda net, x: net(x)),
    "scan of vmap": moduli.scan(
        moduli.vmap(lambda net, x: net(x), in_axes=(None, 0)), in_axes=(None, 0), out_axes=0
    ),
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_an_error_about_arguments_ends_with_the_place(run):
    with pytest.raises(ShapeError) as caught:
        run(Net(ShapeError("Picky wants more")), jnp.ones((2, 2)))
    assert str(caught.value) == "Picky wants more (in `blocks/1/layer` of Net)"


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_any_other_exception_gets_a_note(run):
    with pytest.raises(ZeroDivisionError) as caught:
        run(Net(ZeroDivisionError("nothing to divide")), jnp.ones((2, 2)))
    assert str(caught.value) == "nothing to divide"
    assert "raised in the call of `blocks/1/layer` of Net, a Picky" in caught.value.__notes__


def test_a_module_alone_has_no_place():
    with pytest.raises(ShapeError) as caught:
        Picky(ShapeError("Picky wants more"))(1)
    assert str(caught.value) == "Picky wants more"
    assert not hasattr(caught.value, "__notes__")


def test_an_error_of_jax_says_where():
    class Wrong(moduli.Module):
        def __call__(self, x):
            return x @ jnp.ones((3, 3))

    with pytest.raises(TypeError) as caught:
        jax.jit(Block(Wrong()))(jnp.ones((2, 2)))
    assert any("in the call of `layer` of Block" in note for note in caught.value.__notes__)


def test_an_exception_that_takes_no_note_is_raised_as_it_is():
    class Slotted(Exception):
        __slots__ = ()

        def __setattr__(self, name, value):
            raise AttributeError(name)

    with pytest.raises(Slotted):
        Net(Slotted())(1)


class Looping(moduli.Module):
    """Runs a part of itself under a transform."""

    def __init__(self, part):
        self.part = part

    def __call__(self, x):
        return moduli.jit(lambda part, x: part(x))(self.part, x)


def test_a_place_inside_of_a_transform_is_followed_by_that_outside():
    net = Block(Looping(Block(Picky(ShapeError("Picky wants more")))))
    with pytest.raises(ShapeError) as caught:
        net(jnp.ones(2))
    assert str(caught.value) == "Picky wants more (in `layer` of Block) (in `layer` of Block)"


def test_a_module_alone_inside_of_a_transform_has_the_place_of_the_module_outside():
    with pytest.raises(ShapeError) as caught:
        Block(Looping(Picky(ShapeError("Picky wants more"))))(jnp.ones(2))
    assert str(caught.value) == "Picky wants more (in `layer` of Block)"


class Proxy:
    """As lazy modules are: looking at what it is raises."""

    __slots__ = ("target",)

    @property
    def __class__(self):
        raise ImportError("not loaded")


def test_lazy_proxies_in_memory_are_left_alone():
    layer, proxy = Picky(ZeroDivisionError("from inside")), Proxy()
    proxy.target = layer  # met before the block: older objects come first
    block = Block(layer)
    with pytest.raises(ZeroDivisionError) as caught:
        block(jnp.ones(2))
    assert caught.value.__notes__ == ["raised in the call of `layer` of Block, a Picky"]
    del proxy
