"""Dense layers against flax.nnx: the same parameters from the same seed, the same outputs."""

from __future__ import annotations

import inspect

import flax.nnx
import jax.numpy as jnp
import numpy as np
import pytest

import moduli

X = np.random.default_rng(0).normal(size=(4, 2, 3)).astype(np.float32)

CASES = {
    "linear": lambda nnx, r: nnx.Linear(3, 5, rngs=r),
    "general": lambda nnx, r: nnx.LinearGeneral(3, (5, 2), rngs=r),
    "general-two-axes": lambda nnx, r: nnx.LinearGeneral((2, 3), (5, 2), axis=(1, -1), rngs=r),
    "general-batch": lambda nnx, r: nnx.LinearGeneral(3, (5, 2), batch_axis={0: 4, 1: 2}, rngs=r),
    "general-precision": lambda nnx, r: nnx.LinearGeneral(
        (2, 3), 5, axis=(-2, -1), dtype=jnp.bfloat16, rngs=r
    ),
    "einsum": lambda nnx, r: nnx.Einsum("nta,hab->nthb", (5, 3, 2), (5, 2), rngs=r),
    "einsum-dots": lambda nnx, r: nnx.Einsum("...a,ab->...b", (3, 2), (2,), rngs=r),
}


@pytest.mark.parametrize("build", CASES.values(), ids=CASES)
def test_same_seed_same_layer(build) -> None:
    theirs, ours = build(flax.nnx, flax.nnx.Rngs(3)), build(moduli, moduli.Rngs(3))
    np.testing.assert_array_equal(ours.kernel, theirs.kernel[...])
    assert ours.bias.shape == theirs.bias.shape
    ours.bias.value = jnp.arange(ours.bias.size, dtype=float).reshape(ours.bias.shape)
    theirs.bias.set_value(ours.bias.value)
    assert ours(X).dtype == theirs(X).dtype
    np.testing.assert_allclose(ours(X), theirs(X), rtol=1e-6)


def test_embed() -> None:
    theirs = flax.nnx.Embed(7, 4, rngs=flax.nnx.Rngs(3))
    ours = moduli.Embed(7, 4, rngs=moduli.Rngs(3))
    np.testing.assert_array_equal(ours.embedding, theirs.embedding[...])
    index = jnp.array([[0, 6, 3], [-1, -7, 7]])
    np.testing.assert_array_equal(ours(index), theirs(index))  # NaN for 7 in both
    np.testing.assert_allclose(ours.attend(ours(index[0])), theirs.attend(theirs(index[0])))


ADAPTED = {
    "lora": lambda nnx, r: nnx.LoRA(3, 2, 5, rngs=r),
    "lora-wraps": lambda nnx, r: nnx.LoRA(3, 2, 5, base_module=nnx.Linear(3, 5, rngs=r), rngs=r),
    "lora-dtype": lambda nnx, r: nnx.LoRA(3, 2, 5, dtype=jnp.bfloat16, rngs=r),
    "lora_linear": lambda nnx, r: nnx.LoRALinear(3, 5, lora_rank=2, rngs=r),
    "lora_linear-initializers": lambda nnx, r: nnx.LoRALinear(
        3,
        5,
        lora_rank=2,
        use_bias=False,
        a_initializer=nnx.initializers.normal(),
        b_initializer=nnx.initializers.ones_init(),
        b_metadata={"tag": "b"},
        rngs=r,
    ),
    "prelu": lambda nnx, r: nnx.PReLU(),
    "prelu-init": lambda nnx, r: nnx.PReLU(0.3, dtype=jnp.bfloat16),
    "metadata": lambda nnx, r: nnx.LinearGeneral(
        3, (5, 2), kernel_init=nnx.with_metadata(nnx.initializers.normal(), tag="k"), rngs=r
    ),
}


@pytest.mark.parametrize("build", ADAPTED.values(), ids=ADAPTED)
def test_adapted_layers(build) -> None:
    theirs, ours = build(flax.nnx, flax.nnx.Rngs(3)), build(moduli, moduli.Rngs(3))
    params = dict(moduli.to_flat_state(moduli.state(ours, moduli.Param)))
    expected = dict(flax.nnx.to_flat_state(flax.nnx.state(theirs, flax.nnx.Param)))
    assert set(params) == set(expected)
    for path, param in params.items():
        np.testing.assert_array_equal(param.value, expected[path][...])
        assert param.get_metadata("tag", None) == expected[path].get_metadata().get("tag")
        assert type(param).__name__ == type(expected[path]).__name__
    for path, param in moduli.iter_graph(ours):
        if path and path[-1] == "lora_b":
            param.value = param + 1.0
    for path, param in flax.nnx.iter_graph(theirs):
        if path and path[-1] == "lora_b":
            param.set_value(param[...] + 1.0)
    assert ours(X).dtype == theirs(X).dtype
    np.testing.assert_allclose(
        np.asarray(ours(X), float), np.asarray(theirs(X), float), rtol=1e-5, atol=1e-6
    )


def test_every_name_of_this_family_takes_flaxs_arguments() -> None:
    names = ["Linear", "LinearGeneral", "Einsum", "Embed", "LoRA", "LoRALinear", "PReLU"]
    for name in names:
        theirs = inspect.signature(getattr(flax.nnx, name).__init__).parameters
        ours = inspect.signature(getattr(moduli, name).__init__).parameters
        assert set(theirs) <= set(ours), name
        for key, parameter in theirs.items():
            assert ours[key].kind == parameter.kind, (name, key)
            if isinstance(parameter.default, (int, float, str, type(None))):
                assert ours[key].default == parameter.default, (name, key)
