"""What moduli-debug reads of JAX's programs, on the JAX that is installed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moduli_debug._compat import bind_arguments, scan_sizes


def equation_of(function, *args, name: str):
    program = jax.make_jaxpr(function)(*args)
    (found,) = [eqn for eqn in program.jaxpr.eqns if eqn.primitive.name == name]
    return found


@pytest.mark.parametrize("constants", [0, 1, 2])
@pytest.mark.parametrize("carried", [1, 3])
def test_sizes_of_a_scan(constants, carried):
    weights = [jnp.ones(()) * n for n in range(constants)]

    def run(weights, xs):
        def step(carry, x):
            return [c * x["a"] + sum(weights) for c in carry], x["b"]

        return jax.lax.scan(step, [x.sum() for x in [xs["a"]] * carried], xs)

    slices = {"a": jnp.ones(4), "b": jnp.ones((4, 2))}
    equation = equation_of(run, weights, slices, name="scan")
    assert scan_sizes(equation.params) == (constants, carried)
    assert len(equation.invars) == constants + carried + len(slices)


def test_sizes_of_the_scan_of_a_gradient():
    def run(w, xs):
        return jax.lax.scan(lambda c, x: (jnp.sin(c * x * w), None), 1.0, xs)[0]

    program = jax.make_jaxpr(jax.grad(run))(2.0, jnp.ones(3))
    scans = [eqn for eqn in program.jaxpr.eqns if eqn.primitive.name == "scan"]
    assert len(scans) == 2
    for equation in scans:
        sizes = scan_sizes(equation.params)
        assert sizes is not None and sum(sizes) < len(equation.invars)


def test_parameters_that_are_not_known_give_none():
    assert scan_sizes({"length": 3}) is None
    assert scan_sizes({"ft_in": 3}) is None


def test_an_operation_is_bound_again():
    def run(x):
        return jax.lax.cumsum(x, axis=0)

    x = jnp.arange(4.0)
    equation = equation_of(run, x, name="cumsum")
    functions, params = bind_arguments(equation)
    again = equation.primitive.bind(*functions, x, **params)
    np.testing.assert_array_equal(again, np.cumsum(np.arange(4.0)))
