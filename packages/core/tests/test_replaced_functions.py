"""Functions put in the place of JAX's for a while are seen by every eager call, and only then."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import moduli as nnx

X = jnp.linspace(-1.0, 1.0, 4)


class Product(nnx.Module):
    def __init__(self) -> None:
        self.weight = nnx.Param(jnp.arange(16.0).reshape(4, 4))

    def __call__(self, x: Any) -> Any:
        return lax.dot_general(x, self.weight[...], (((0,), (0,)), ((), ())))


def product(model: Any, x: Any) -> Any:
    return model(x)


def step(x: Any, model: Any) -> Any:
    return model(x)


def again(carry: Any) -> Any:
    return carry[0], carry[0](carry[1]), carry[2] + 1


EAGER: dict[str, Callable[[Any], Any]] = {
    "remat": lambda model: nnx.remat(product)(model, X),
    "cond": lambda model: nnx.cond(True, product, product, model, X),
    "switch": lambda model: nnx.switch(1, [product, product], model, X),
    "scan": lambda model: nnx.scan(lambda x, m: m(x), in_axes=(nnx.Carry, None), out_axes=nnx.Carry,
                                   length=1)(X, model),
    "while_loop": lambda model: nnx.while_loop(lambda c: c[2] < 1, again, (model, X, 0))[1],
    "fori_loop": lambda model: nnx.fori_loop(0, 1, lambda i, c: (c[0], c[0](c[1])), (model, X))[1],
}  # fmt: skip


def by_attribute(patch: pytest.MonkeyPatch) -> None:
    own = lax.dot_general
    patch.setattr(lax, "dot_general", lambda *args, **kwargs: 2 * own(*args, **kwargs))


def by_code(patch: pytest.MonkeyPatch) -> None:
    """Every alias of the function is another then."""
    own = type(lax.dot_general)(
        lax.dot_general.__code__, lax.dot_general.__globals__, "own", lax.dot_general.__defaults__
    )
    own.__kwdefaults__ = lax.dot_general.__kwdefaults__
    patch.setitem(lax.dot_general.__globals__, "_own_dot_general", own)
    patch.setattr(lax.dot_general, "__code__", _doubled.__code__)


def _doubled(*args: Any, **kwargs: Any) -> Any:
    return 2 * _own_dot_general(*args, **kwargs)  # type: ignore[name-defined] # noqa: F821


@pytest.mark.parametrize("replace", [by_attribute, by_code])
@pytest.mark.parametrize("transform", EAGER)
def test_each_eager_call_computes_with_what_stands_there(
    transform: str, replace: Callable[[pytest.MonkeyPatch], None]
) -> None:
    run, model = EAGER[transform], Product()
    plain = np.asarray(run(model))
    for _ in range(2):
        with pytest.MonkeyPatch.context() as patch:
            replace(patch)
            for _ in range(2):
                np.testing.assert_allclose(run(model), 2 * plain)
        np.testing.assert_allclose(run(model), plain)


def test_what_such_a_call_did_to_its_model_is_not_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A quantizer puts another value in the place of the weight that it finds."""
    own = lax.dot_general
    plain = np.asarray(nnx.remat(product)(Product(), X))

    def quantize(lhs: Any, rhs: Any, *args: Any, **kwargs: Any) -> Any:
        module = sys._getframe(1).f_locals["self"]
        module.scale = nnx.Param(jnp.max(jnp.abs(rhs)))
        return own(lhs, rhs, *args, **kwargs)

    model, later = Product(), Product()
    monkeypatch.setattr(lax, "dot_general", quantize)
    nnx.remat(product)(model, X)
    monkeypatch.undo()
    np.testing.assert_allclose(model.scale.value, 15.0)
    np.testing.assert_allclose(nnx.remat(product)(later, X), plain)
    assert not hasattr(later, "scale")


def test_a_new_name_in_jax_replaces_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Product()
    nnx.remat(product)(model, X)
    monkeypatch.setattr(jax.numpy, "a_name_of_nobody", 1, raising=False)
    traces: list[Any] = []

    def counted(model: Any, x: Any) -> Any:
        traces.append(x)
        return model(x)

    for _ in range(3):
        nnx.remat(counted)(model, X)
    monkeypatch.undo()
    nnx.remat(counted)(model, X)
    assert len(traces) == 1
