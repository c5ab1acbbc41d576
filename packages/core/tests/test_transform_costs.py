"""What a lifted transform hands to JAX is what one would write by hand: no value too many."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import moduli as nnx


class Model(nnx.Module):
    def __init__(self):
        self.w, self.b = nnx.Param(jnp.ones((3, 3))), nnx.Param(jnp.zeros(3))
        self.mean = nnx.BatchStat(jnp.zeros(3))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = jnp.tanh(x @ self.w.value + self.b.value)
        self.mean.value = 0.9 * self.mean.value + 0.1 * y
        return y


def pure(w, b, mean, x):
    y = jnp.tanh(x @ w + b)
    return y, 0.9 * mean + 0.1 * y


X = jnp.ones(3)
REMAT = jax.make_jaxpr(jax.checkpoint(jnp.sin))(1.0).eqns[0].primitive.name
VALUES = (jnp.ones((3, 3)), jnp.zeros(3), jnp.zeros(3))


def equation(jaxpr: Any, name: str) -> Any:
    """The only equation of this primitive, wherever it stands."""
    found = []

    def visit(jaxpr: Any) -> None:
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == name:
                found.append(eqn)
            for value in eqn.params.values():
                inner = getattr(value, "jaxpr", None)
                if inner is not None and hasattr(inner, "eqns"):
                    visit(inner)

    visit(jaxpr.jaxpr)
    assert len(found) == 1
    return found[0]


def size(jaxpr: Any) -> int:
    return len(jaxpr.jaxpr.eqns)


def test_a_scan_carries_only_what_changes():
    def lifted(model, x):
        return nnx.scan(
            lambda x, model: model(x), in_axes=(nnx.Carry, None), out_axes=nnx.Carry, length=4
        )(x, model)

    def by_hand(w, b, mean, x):
        def step(carry, _):
            y, mean = pure(w, b, carry[1], carry[0])
            return (y, mean), None

        return jax.lax.scan(step, (x, mean), None, length=4)[0]

    ours = equation(nnx.make_jaxpr(lifted)(Model(), X), "scan")
    theirs = equation(jax.make_jaxpr(by_hand)(*VALUES, X), "scan")
    assert len(ours.outvars) == len(theirs.outvars) == 2
    assert size(ours.params["jaxpr"]) == size(theirs.params["jaxpr"])


def test_a_scan_over_layers_stacks_only_what_is_written():
    def lifted(model, x):
        return nnx.scan(lambda x, model: model(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(
            x, model
        )

    models = nnx.vmap(Model, axis_size=4)()
    eqn = equation(nnx.make_jaxpr(lifted)(models, X), "scan")
    assert [v.aval.shape for v in eqn.outvars] == [(3,), (4, 3)]


@pytest.mark.parametrize("loop", ["while_loop", "fori_loop"])
def test_a_loop_carries_only_what_changes(loop):
    def body(carry):
        model, x, n = carry
        return model, model(x), n + 1

    def lifted(model, x):
        if loop == "while_loop":
            return nnx.while_loop(lambda carry: carry[2] < 3, body, (model, x, 0))[1]
        upper = jnp.array(3)  # a traced bound, or it is a scan
        return nnx.fori_loop(0, upper, lambda i, carry: body(carry), (model, x, 0))[1]

    eqn = equation(nnx.make_jaxpr(lifted)(Model(), X), "while")
    shapes = sorted(v.aval.shape for v in eqn.outvars)
    counters = [()] if loop == "while_loop" else [(), ()]
    if len(shapes) > 2 + len(counters):  # fori_loop keeps its bound in the carry
        counters.append(())
    assert shapes == [*counters, (3,), (3,)]


def test_a_cond_returns_only_what_some_branch_writes():
    def lifted(p, model, x):
        return nnx.cond(p, lambda m, x: m(x), lambda m, x: x + m.b.value, model, x)

    eqn = equation(nnx.make_jaxpr(lifted)(True, Model(), X), "cond")
    assert [v.aval.shape for v in eqn.outvars] == [(3,), (3,)]


def test_vmap_and_remat_add_nothing():
    def lifted(model, x):
        return nnx.vmap(nnx.remat(lambda m, x: m.w.value @ x), in_axes=(None, 0))(model, x)

    def by_hand(w, b, mean, x):
        return jax.vmap(jax.checkpoint(lambda w, x: w @ x), in_axes=(None, 0))(w, x)

    x = jnp.ones((5, 3))
    ours = equation(nnx.make_jaxpr(lifted)(Model(), x), REMAT)
    theirs = equation(jax.make_jaxpr(by_hand)(*VALUES, x), REMAT)
    assert len(ours.outvars) == len(theirs.outvars) == 1
    assert len(ours.params["jaxpr"].eqns) == len(theirs.params["jaxpr"].eqns)


def test_grad_adds_nothing():
    def loss(model, x):
        return model(x).sum()

    def by_hand(w, b, mean, x):
        def loss(params):
            y, new_mean = pure(*params, mean, x)
            return y.sum(), new_mean

        return jax.value_and_grad(loss, has_aux=True)((w, b))

    ours = nnx.make_jaxpr(lambda m, x: nnx.value_and_grad(loss)(m, x)[0])(Model(), X)
    theirs = jax.make_jaxpr(lambda *a: by_hand(*a)[0])(*VALUES, X)
    assert size(ours) == size(theirs)
