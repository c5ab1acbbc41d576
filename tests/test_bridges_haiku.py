"""from_haiku and to_haiku: the model as a whole, values and gradients as haiku's own."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bridge_checks import float64, same

import moduli
from moduli.errors import StructureError

hk = pytest.importorskip("haiku")
X = np.random.default_rng(0).normal(size=(5, 8, 8, 2))


def network(x: Any) -> Any:
    x = hk.Conv2D(3, 3)(x)
    x = hk.BatchNorm(True, True, 0.9)(x, is_training=True)
    x = hk.LayerNorm(-1, True, True)(jax.nn.relu(x))
    return hk.nets.MLP([6, 4])(x.mean((1, 2)))


@pytest.mark.parametrize("way", [lambda f: f, moduli.jit], ids=["eager", "jit"])
def test_a_transformed_function_with_state(way: Any) -> None:
    with float64():
        net = hk.transform_with_state(network)
        params, state = net.init(jax.random.key(0), X)
        model = moduli.from_haiku(net, params, state)
        assert type(model.params["linear" if "linear" in params else "mlp/~/linear_0"]["w"]) is (
            moduli.Param
        )

        def theirs(params: Any) -> Any:
            out, new = net.apply(params, state, None, X)
            return (out**2).sum(), (out, new)

        expected, (out, new) = jax.grad(theirs, has_aux=True)(params)

        def ours(model: Any) -> Any:
            out = model(X)
            return (out**2).sum(), out

        grads, mine = way(lambda model: moduli.grad(ours, has_aux=True)(model))(model)
        same(mine, out)
        for module, values in expected.items():
            for name, value in values.items():
                same(grads.params[module][name].value, value, 1e-7)
        same(model.values()[1], new)  # what the call changed is written
        assert jax.tree.structure(model.values()[0]) == jax.tree.structure(dict(params))


def test_a_transformed_function_without_state_and_with_keys() -> None:
    net = hk.transform(lambda x: hk.dropout(hk.next_rng_key(), 0.5, hk.Linear(64)(x)))
    params = net.init(jax.random.key(0), jnp.ones((1, 3)))
    model = moduli.from_haiku(net, params, rngs=moduli.Rngs(0))
    first, second = model(jnp.ones((1, 3))), model(jnp.ones((1, 3)))
    assert not np.array_equal(first, second) and np.any(first == 0)
    with pytest.raises(StructureError, match="takes no state"):
        moduli.from_haiku(net, params, {})
    with pytest.raises(StructureError, match=r"takes a state: write `from_haiku\("):
        moduli.from_haiku(hk.transform_with_state(network), params)


class Net(moduli.Module):
    def __init__(self, rngs: Any) -> None:
        self.layers = [moduli.Linear(3, 4, rngs=rngs), moduli.BatchNorm(4, rngs=rngs)]
        self.again = self.layers[0].kernel  # shared
        self.dropout = moduli.Dropout(0.5, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return self.dropout(x) + self.again.sum()


def test_a_model_of_ours_in_haiku() -> None:
    model = Net(moduli.Rngs(0))
    net, params, state = moduli.to_haiku(model)
    assert isinstance(net, hk.TransformedWithState)
    assert sum(len(values) for values in params.values()) == 4  # the shared one once
    x = np.random.default_rng(1).normal(size=(6, 3)).astype("f4")
    out, new = jax.jit(net.apply)(params, state, None, x)
    twin = moduli.clone(model)
    same(out, twin(x), 1e-5)
    same(new["layers/1"]["mean"], twin.layers[1].mean.value, 1e-5)
    same(state["layers/1"]["mean"], np.zeros(4))
    again, _ = net.apply(params, new, None, x)
    assert not np.array_equal(out, again)  # the stream of dropout goes on
    one, _ = net.apply(params, state, jax.random.key(7), x)
    two, _ = net.apply(params, new, jax.random.key(7), x)
    same(one == 0, two == 0)

    def loss(params: Any) -> Any:
        return (net.apply(params, state, None, x)[0] ** 2).sum()

    grads = jax.grad(loss)(params)
    expected = moduli.grad(lambda model: (model(x) ** 2).sum())(moduli.clone(model))
    flat = {
        ("/".join(map(str, path[:-1])) or "~", str(path[-1])): leaf.get_raw_value()
        for path, leaf in moduli.to_flat_state(expected)
    }
    assert len(flat) == 4
    for (module, name), value in flat.items():
        same(grads[module][name], value, 1e-4)
    same(net.init(None, x)[0], params)
