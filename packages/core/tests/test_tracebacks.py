"""What a user sees of moduli in a traceback: one frame for each call of a module or transform."""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import moduli as nnx

X = jnp.ones(3)


class Leaf(nnx.Module):
    def __init__(self, fails: Callable[[jax.Array], jax.Array]):
        self.w, self.fails = nnx.Param(jnp.ones(3)), fails

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fails(x * self.w)


class Block(nnx.Module):
    def __init__(self, inner: nnx.Module):
        self.inner = inner

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.inner(x)


class Remat(Block):
    @nnx.remat
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.inner(x)


def fails_in_python(x: jax.Array) -> jax.Array:
    raise RuntimeError("the user's own")


def fails_in_jax(x: jax.Array) -> jax.Array:
    return x @ jnp.ones(4)


def call(model: nnx.Module, x: jax.Array) -> jax.Array:
    return model(x)


def summed(model: nnx.Module, x: jax.Array) -> jax.Array:
    return model(x).sum()


def scanned(model: nnx.Module, x: jax.Array) -> jax.Array:
    def step(x: jax.Array, model: nnx.Module) -> jax.Array:
        return model(x)

    return nnx.scan(step, in_axes=(nnx.Carry, None), out_axes=nnx.Carry, length=2)(x, model).sum()


def ruled(model: nnx.Module, x: jax.Array) -> jax.Array:
    rule = nnx.custom_vjp(call)
    rule.defvjp(lambda model, x: (model(x), None), lambda residuals, g: (None, None))
    return rule(model, x).sum()


RUNS: dict[str, Callable[[Any, jax.Array], Any]] = {
    "eager": call,
    "jit": nnx.jit(call),
    "jit donated": nnx.jit(call, donate_argnums=0),
    "jit of a model": lambda model, x: nnx.jit(model)(x),
    "grad": nnx.grad(summed),
    "grad of scan": nnx.grad(scanned),
    "jit of grad of scan": nnx.jit(nnx.grad(scanned)),
    "scan": scanned,
    "vmap": lambda model, x: nnx.vmap(call, in_axes=(None, 0))(model, x[None]),
    "pmap": lambda model, x: nnx.pmap(call, in_axes=(None, 0))(model, x[None]),
    "remat": nnx.remat(call),
    "remat of a method": lambda model, x: Remat(model)(x),
    "cond": lambda model, x: nnx.cond(True, call, lambda model, x: x, model, x),
    "switch": lambda model, x: nnx.switch(0, [call], model, x),
    "while_loop": lambda model, x: nnx.while_loop(
        lambda c: True, lambda c: (c[0], c[0](c[1])), (model, x)
    ),
    "fori_loop": lambda model, x: nnx.fori_loop(0, 2, lambda i, c: (c[0], c[0](c[1])), (model, x)),
    "vjp": lambda model, x: nnx.vjp(call, model, x),
    "jvp": lambda model, x: nnx.jvp(call, (model, x), (None, x)),
    "custom_vjp": nnx.grad(ruled),
    "eval_shape": lambda model, x: nnx.eval_shape(call, model, x),
    "make_jaxpr": nnx.make_jaxpr(call),
    "checkify": lambda model, x: nnx.checkify(call)(model, x),
}


class Watches:
    """A plugin that takes part in every call."""

    @nnx.hookimpl
    def moduli_before_call(self, module: Any) -> None:
        """Changes nothing."""


def packages(error: BaseException) -> list[str]:
    """The package of each frame, JAX's left out."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    found = [str(frame.f_globals["__name__"]).partition(".")[0] for frame in frames]
    return [name for name in found if name not in ("jax", "jaxlib")]


def doubled(names: list[str]) -> int:
    return sum(one == other == "moduli" for one, other in itertools.pairwise(names))


def check(name: str, fails: Callable[[jax.Array], jax.Array]) -> None:
    with pytest.raises((RuntimeError, TypeError)) as caught:
        RUNS[name](Block(Block(Leaf(fails))), X)
    names = packages(caught.value)
    assert names.count("moduli") >= 3  # one for each module
    assert doubled(names) == 0, names
    assert names[-1] != "moduli"


@pytest.mark.parametrize("name", RUNS)
def test_each_call_shows_one_frame(name: str):
    check(name, fails_in_python)


@pytest.mark.parametrize("name", ["eager", "jit", "grad of scan"])
def test_each_call_shows_one_frame_under_plugins_and_around_jaxs_errors(name: str):
    check(name, fails_in_jax)
    with nnx.using(Watches()):
        check(name, fails_in_python)
        check(name, fails_in_jax)


@pytest.mark.parametrize("name", ["jit", "grad of scan"])
def test_all_frames_are_shown_if_jax_shows_all_of_its_own(name: str):
    before = jax.config.jax_traceback_filtering
    jax.config.update("jax_traceback_filtering", "off")
    try:
        with pytest.raises(RuntimeError) as caught:
            RUNS[name](Block(Leaf(fails_in_python)), X)
    finally:
        jax.config.update("jax_traceback_filtering", before)
    assert doubled(packages(caught.value)) > 1


def test_the_place_at_which_moduli_refuses_is_shown():
    with pytest.raises(nnx.errors.StructureError) as caught:
        nnx.vmap(call, in_axes=("wrong", None))(Leaf(fails_in_python), X)
    assert doubled(packages(caught.value)) > 1


def shown(error: BaseException) -> list[str]:
    """The package of each frame that pytest and IPython show, JAX's left out."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    seen = [frame for frame in frames if "__tracebackhide__" not in frame.f_locals]
    found = [str(frame.f_globals["__name__"]).partition(".")[0] for frame in seen]
    return [name for name in found if name not in ("jax", "jaxlib")]


REFUSED = {
    "state": lambda: nnx.state(Leaf(fails_in_python), "weights"),
    "vmap": lambda: nnx.vmap(call, in_axes=("wrong", None))(Leaf(fails_in_python), X),
    "grad in a module": lambda: call(Leaf(lambda x: nnx.grad(lambda x: (x, x))(x)), X),
}


@pytest.mark.parametrize("name", REFUSED)
def test_pytest_and_notebooks_show_the_users_lines_alone_where_moduli_refuses(name: str):
    with pytest.raises(nnx.errors.ModuliError) as caught:
        REFUSED[name]()
    assert set(shown(caught.value)) == {__name__.partition(".")[0]}


@pytest.mark.parametrize("name", ["eager", "jit", "grad of scan"])
def test_pytest_and_notebooks_show_no_calls_of_modules_between_the_users_lines(name: str):
    with pytest.raises(RuntimeError) as caught:
        RUNS[name](Block(Leaf(fails_in_python)), X)
    assert set(shown(caught.value)) == {__name__.partition(".")[0]}


def test_where_an_error_that_is_not_modulis_was_raised_is_shown():
    with pytest.raises(TypeError) as caught:
        nnx.state(Leaf(fails_in_python), wrong=1)
    assert shown(caught.value)[-1] == "moduli"
