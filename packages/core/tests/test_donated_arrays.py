"""Arrays that an earlier call took: the error says where they are, and what took them."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli as nnx
from moduli.errors import DonatedError, ModuliError


class Dense(nnx.Module):
    def __init__(self):
        self.kernel = nnx.Param(jnp.ones((2, 2)))

    def __call__(self, x):
        return x @ self.kernel.value


class Net(nnx.Module):
    def __init__(self):
        self.blocks, self.calls = [Dense(), Dense()], nnx.Variable({"n": jnp.zeros(())})

    def total(self, x):
        return (x @ self.blocks[0].kernel.value).sum()

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return x + self.calls.value["n"]


def train(model):
    for block in model.blocks:
        block.kernel.value = block.kernel.value + 1
    model.calls.value = {"n": model.calls.value["n"] + 1}


def evaluate(model, x):
    return model(x).sum()


def first(models, x):
    return models["ema"][0](x).sum()


X = np.ones((1, 2), np.float32)
CALLS = {
    "jit": (lambda m: nnx.jit(evaluate)(m, X), "model/", "evaluate"),
    "keyword": (lambda m: nnx.jit(evaluate)(model=m, x=X), "model/", "evaluate"),
    "container": (lambda m: nnx.jit(first)({"ema": [m]}, X), "models['ema'][0]/", "first"),
    "eager container": (lambda m: nnx.grad(first)({"ema": [m]}, X), "models['ema'][0]/", "first"),
    "grad": (lambda m: nnx.grad(evaluate)(m, X), "model/", "evaluate"),
    "remat": (lambda m: nnx.remat(evaluate)(m, X), "model/", "evaluate"),
    "scan": (
        lambda m: nnx.scan(evaluate, in_axes=(None, 0), out_axes=0)(m, X),
        "model/",
        "evaluate",
    ),
    "compiled": (
        lambda m: nnx.jit(evaluate).lower(Net(), X).compile()(m, X),
        "model/",
        "evaluate",
    ),
    "module": (lambda m: m(X), "", "a Net"),
    "method": (lambda m: m.total(x=X), "self/", "total"),
    "inner": (lambda m: m.blocks[0](X), "", "a Net"),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_error_names_path_program_and_cure(name):
    call, top, called = CALLS[name]
    model = Net()
    twin = nnx.clone(model)
    nnx.jit(train, donate_argnums=0)(model)
    unrelated = nnx.jit(lambda x: x + 1, donate_argnums=0)
    unrelated(jnp.ones(3))
    with pytest.raises(DonatedError) as caught:
        call(twin)
    text = str(caught.value)
    assert text.startswith(f"{called} was called") and f"`{top}blocks/0/kernel`" in text, text
    assert f"train at {__file__}" in text or f"train at {os.path.abspath(__file__)}" in text, text
    assert "lambda" not in text and "jax.tree.map(jnp.copy, model)" in text, text
    assert isinstance(caught.value.__cause__, (RuntimeError, ValueError))
    assert isinstance(caught.value, ModuliError)
    assert float(nnx.jit(evaluate)(model, X)) == 2 * (16 + 1)  # what was donated goes on


def test_the_cure_cures():
    model = Net()
    kept = jax.tree.map(jnp.copy, model)
    nnx.jit(train, donate_argnums=0)(model)
    assert evaluate(kept, X) == 8


@pytest.mark.parametrize("donated", [0, (0, 1)])
def test_one_array_in_two_places(donated):
    model = Net()
    both = nnx.jit(lambda a, b: (train(a), b(X)), donate_argnums=donated)
    with pytest.raises(DonatedError, match=r"`a/blocks/0/kernel` and `b/blocks/0/kernel`"):
        both(model, nnx.clone(model))


def test_without_a_program_it_says_so():
    x = jnp.ones(3)
    x.delete()
    with pytest.raises(DonatedError, match="Deleted: `x`; "):
        nnx.jit(lambda x: x + 1)(x)


@pytest.mark.parametrize("text", ["a row was deleted", "refusing to donate"])
def test_errors_of_the_user_stay(text):
    def raises(model):
        raise RuntimeError(text)

    for call in (nnx.jit(raises), nnx.jit(raises, donate_argnums=0), nnx.grad(raises)):
        with pytest.raises(RuntimeError, match=text) as caught:
            call(Net())
        assert type(caught.value) is RuntimeError
