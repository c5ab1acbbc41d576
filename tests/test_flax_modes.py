"""``graph=`` and ``graph_updates=``: taken wherever flax takes them; where they tell, they tell."""

from __future__ import annotations

import inspect
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli
from moduli._facade.flax_modes import METHODS, TAKING

nnx = pytest.importorskip("flax.nnx")
MODES = [{"graph": g, "graph_updates": u} for g in (True, False) for u in (True, False, None)]
X = jnp.ones((3, 2))


def takes(function: Any) -> bool:
    try:
        names = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
    return "graph" in names or "graph_updates" in names


def test_every_function_and_constructor_of_flax_that_takes_a_mode_does_so_here() -> None:
    theirs = {name: getattr(nnx, name) for name in dir(nnx) if not name.startswith("_")}
    functions = [n for n, f in theirs.items() if inspect.isfunction(f) and takes(f)]
    assert len(functions) > 40
    taking = {getattr(moduli, n) for n in TAKING.split()}
    ours = {n: getattr(moduli, n) for n in functions}
    assert [n for n, f in ours.items() if f not in taking and not takes(f)] == []
    classes = [n for n, c in theirs.items() if inspect.isclass(c) and takes(c.__init__)]
    assert {"EMA", "Optimizer"} <= set(classes)
    assert [n for n in classes if not takes(getattr(moduli, n).__init__)] == []
    methods = {
        method
        for name, cls in theirs.items()
        if inspect.isclass(cls) and name != "GraphDef"
        for method, function in inspect.getmembers(cls, inspect.isfunction)
        if not method.startswith("_") and takes(function)
    }
    assert methods == {name for names in METHODS.values() for name in names}


def layer() -> Any:
    return moduli.Linear(2, 2, rngs=moduli.Rngs(0))


FORMS = {
    "jit": lambda m: moduli.jit(lambda model, x: model(x), **m)(layer(), X),
    "vmap": lambda m: moduli.vmap(lambda x: layer()(x), **m)(X),
    "vmap decorator": lambda m: moduli.vmap(in_axes=0, **m)(lambda x: layer()(x))(X),
    "scan": lambda m: moduli.scan(lambda c, x: (c, c + x), **m)(jnp.ones(2), X),
    "grad": lambda m: moduli.state(moduli.grad(lambda n, x: n(x).sum(), **m)(layer(), X)),
    "remat": lambda m: moduli.remat(lambda model, x: model(x), **m)(layer(), X),
    "cond": lambda m: moduli.cond(True, lambda n: n(X), lambda n: n(X) * 2, layer(), **m),
    "split": lambda m: moduli.split(layer(), **m)[1],
    "clone": lambda m: moduli.state(moduli.clone(layer(), **m)),
    "reseed": lambda m: moduli.reseed(moduli.Dropout(0.5, rngs=moduli.Rngs(0)), default=1, **m),
    "iter_graph": lambda m: [path for path, _ in moduli.iter_graph(layer(), **m)],
    "set_attributes": lambda m: layer().set_attributes(use_bias=False, **m),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_mode_changes_no_result(form: str) -> None:
    results = [jax.tree.leaves(FORMS[form](modes)) for modes in ({}, *MODES)]
    for result in results[1:]:
        assert len(result) == len(results[0])
        for one, other in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(one, other)


def key(stream: Any) -> Any:
    return jax.random.key_data(stream.key.get_value()).tolist()


@pytest.mark.parametrize("name", ["split_rngs", "fork_rngs"])
@pytest.mark.parametrize("how", ["argument", "block", "function", "setting"])
def test_streams_are_split_in_a_copy_without_graph_updates(name: str, how: str) -> None:
    def run(library: Any) -> Any:
        change = getattr(library, name)
        options = {"splits": 2} if name == "split_rngs" else {"split": 2}
        model = library.Dict(
            rngs=library.Rngs(0), dropout=library.Dropout(0.5, rngs=library.Rngs(1))
        )
        found = []
        for _ in range(2):  # each time other keys
            if how == "argument":
                new = change(model, **options, graph_updates=False)
            elif how == "block":
                with library.set_graph_updates(False):
                    new = change(model, **options)
            elif how == "setting":
                library.set_graph_updates(False)
                try:
                    new = change(model, **options)
                finally:
                    library.set_graph_updates(True)
            else:
                new = library.set_graph_updates(False)(change)(model, **options)
            assert new is not model and library.set_graph_updates.current_value()
            found += [
                key(new["rngs"].default),
                key(new["dropout"].rngs),
                key(model["rngs"].default),
            ]
        assert found[:2] != found[3:5]
        return found

    assert run(moduli) == run(nnx)


def test_a_setting_holds_in_its_thread_alone() -> None:
    seen = []
    with moduli.set_graph_mode(False), moduli.set_graph_updates(False):
        thread = threading.Thread(
            target=lambda: seen.append(moduli.set_graph_updates.current_value())
        )
        thread.start()
        thread.join()
        assert not moduli.set_graph_mode.current_value()
    assert seen == [True] and moduli.set_graph_mode.current_value()


@pytest.mark.parametrize("form", ["decorator", "call", "setting"])
@pytest.mark.parametrize("updates", [False, True])
def test_a_backward_rule_gets_the_bare_cotangent(form: str, updates: bool) -> None:
    def run(library: Any) -> Any:
        def double(weight: Any, x: Any) -> Any:
            weight[...] *= 1.0
            return weight[...] * x

        if form == "decorator":
            rule = library.custom_vjp(graph=True, graph_updates=False)(double)
        elif form == "call":
            rule = library.custom_vjp(double, graph=False)
        else:
            with library.set_graph_updates(False):
                rule = library.custom_vjp(double)

        def backward(residuals: Any, g: Any) -> Any:
            weight, x = residuals
            weight_g = library.clone(weight)
            weight_g[...] = 10 * g * x
            return weight_g, g * weight[...]

        def backward_with_updates(residuals: Any, g: Any, *, updates_g: Any) -> Any:
            assert updates_g is not None
            return backward(residuals, g)

        rule.defvjp(
            lambda weight, x: (rule(weight, x), (weight, x)),
            backward_with_updates if updates else backward,
        )
        grads = library.grad(rule, argnums=(0, 1), graph=True, graph_updates=False)
        weight_g, x_g = grads(library.Param(jnp.array(3.0)), 5.0)
        return float(weight_g.get_value()), float(x_g)

    assert run(moduli) == run(nnx) == (50.0, 3.0)
