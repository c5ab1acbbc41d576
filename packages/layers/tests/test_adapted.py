"""What the table of layers cannot say about PReLU, LoRA, LoRALinear and MLP."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli
from moduli.errors import RngError, ShapeError
from moduli_layers import (
    MLP,
    BatchNorm,
    Dropout,
    LayerNorm,
    Linear,
    LoRA,
    LoRALinear,
    LoRAParam,
    PReLU,
)
from moduli_layers.errors import ArgumentError

RNGS = moduli.Rngs(0)
X = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: LoRA(3, 0, 4, rngs=RNGS),
            "LoRA got lora_rank=0; write a size of at least 1",
        ),
        (
            lambda: LoRALinear(3, 4, lora_rank=0, rngs=RNGS),
            "LoRALinear got lora_rank=0; write a size of at least 1",
        ),
        (
            lambda: LoRA(3, 2, 4, base_module=3, rngs=RNGS),  # pyright: ignore[reportArgumentType]
            "LoRA got base_module of type int, which cannot be called; write a module with a "
            "__call__, or None",
        ),
        (lambda: MLP(3, (2, 0), 4, rngs=RNGS), "MLP got hidden_features=0; write a size of at "),
        (
            lambda: MLP(3, 2, 4, activation="relu", rngs=RNGS),  # pyright: ignore[reportArgumentType]
            "MLP got activation='relu', which cannot be called; write a function such as "
            "moduli.relu",
        ),
        (
            lambda: MLP(3, 2, 4, norm=True, rngs=RNGS),  # pyright: ignore[reportArgumentType]
            "MLP got norm=True, which cannot be called; write a class such as moduli.LayerNorm",
        ),
        (
            lambda: MLP(3, 2, 4, dropout_rate=1.5, rngs=RNGS),
            "MLP got dropout_rate=1.5; write the probability to drop an entry, in [0, 1]",
        ),
    ],
)
def test_wrong_arguments_are_refused(build, message) -> None:
    with pytest.raises(ArgumentError) as caught:
        build()
    assert str(caught.value).startswith(message)


# -- PReLU ---------------------------------------------------------------------------------------


def test_prelu_computes_in_the_inputs_dtype_unless_told_otherwise() -> None:
    with jax.numpy_dtype_promotion("strict"):
        half = PReLU(0.25)(jnp.array([-4.0, 2.0], jnp.bfloat16))
        told = PReLU(0.25, dtype=jnp.float32)(jnp.array([-4, 2]))
    assert half.dtype == jnp.bfloat16 and half.tolist() == [-1, 2]
    assert told.dtype == jnp.float32 and told.tolist() == [-1, 2]


def test_prelu_trains_its_slope_by_the_negative_inputs() -> None:
    grads = moduli.grad(lambda layer: layer(jnp.array([-2.0, -3.0, 0.0, 5.0])).sum())(PReLU())
    assert grads.negative_slope.value == -5


# -- LoRA ----------------------------------------------------------------------------------------


def test_only_the_adaptation_is_trained_when_asked() -> None:
    layer = LoRALinear(3, 4, lora_rank=2, rngs=moduli.Rngs(0))
    wrt = moduli.DiffState(0, LoRAParam)
    grads = moduli.grad(lambda layer: (layer(X) ** 2).sum(), argnums=wrt)(layer)
    assert list(moduli.to_pure_dict(grads)) == ["lora"]
    assert np.any(grads["lora"]["lora_b"].value)
    assert not np.any(grads["lora"]["lora_a"].value)  # b is zero at first


def test_the_kind_has_a_name() -> None:
    assert moduli.variable_type_from_name("lora_params") is LoRAParam
    assert moduli.variable_name_from_type(LoRAParam) == "lora_params"
    assert moduli.variable_name_from_type(moduli.Param) == "params"


def test_a_linears_state_loads_into_a_lora_linear() -> None:
    linear = Linear(3, 4, rngs=moduli.Rngs(5))
    layer = LoRALinear(3, 4, lora_rank=2, rngs=moduli.Rngs(0))
    moduli.update(layer, moduli.state(linear))
    np.testing.assert_allclose(layer(X), linear(X), rtol=1e-6)


def test_a_lora_linear_is_not_taken_for_pytorchs_linear() -> None:
    assert Linear(3, 4, rngs=RNGS).torch_counterpart is not None
    assert LoRALinear(3, 4, lora_rank=2, rngs=RNGS).torch_counterpart is None


def test_wrapping_shares_the_module_and_passes_keywords_on() -> None:
    base = Dropout(0.5, rngs=moduli.Rngs(0))
    layer = LoRA(3, 2, 3, base_module=base, rngs=moduli.Rngs(1))
    assert layer.base_module is base
    np.testing.assert_array_equal(layer(X, deterministic=True), X)
    np.testing.assert_array_equal(layer(X, rngs=jax.random.key(0)), base(X, rngs=jax.random.key(0)))
    with pytest.raises(ArgumentError, match="LoRA has no base_module to pass deterministic on to"):
        LoRA(3, 2, 3, rngs=RNGS)(X, deterministic=True)


def test_the_sum_keeps_the_dtype_of_what_is_adapted() -> None:
    layer = LoRALinear(
        3, 4, lora_rank=2, dtype=jnp.bfloat16, lora_dtype=jnp.float32, rngs=moduli.Rngs(0)
    )
    with jax.numpy_dtype_promotion("strict"):
        assert layer(X).dtype == jnp.bfloat16
        wrapped = LoRA(
            3, 2, 4, base_module=Linear(3, 4, rngs=RNGS), dtype=jnp.bfloat16, rngs=moduli.Rngs(0)
        )
        assert wrapped(X).dtype == jnp.float32
        np.testing.assert_array_equal(wrapped(X), wrapped.base_module(X))  # of X as it is


def test_another_kind_of_variable() -> None:
    layer = LoRA(3, 2, 4, lora_param_type=moduli.Param, a_metadata={"tag": "a"}, rngs=RNGS)
    assert type(layer.lora_a) is moduli.Param
    assert layer.lora_a.tag == "a"


# -- MLP -----------------------------------------------------------------------------------------


def test_norms_get_dtypes_and_streams() -> None:
    norm = functools.partial(BatchNorm, momentum=0.5)
    model = MLP(3, (6, 5), 4, norm=norm, dtype=jnp.bfloat16, rngs=moduli.Rngs(0))
    assert [n.momentum for n in model.norms] == [0.5, 0.5]
    with jax.numpy_dtype_promotion("strict"):
        assert model(X).dtype == jnp.bfloat16
    final = MLP(3, (), 4, norm=LayerNorm, activate_final=True, rngs=moduli.Rngs(0))
    assert len(final.norms) == 1
    assert model.dropouts is None


def test_dropout_between_the_layers_only_in_training() -> None:
    model = MLP(3, (60, 50), 4, activation=jnp.ones_like, dropout_rate=0.5, rngs=moduli.Rngs(0))
    assert len(model.dropouts) == 2
    model.layers[2].kernel.value = jnp.ones((50, 4)) / 50
    dropped = np.asarray(model(X))  # a mean of 50 zeros and twos, not dropped again
    assert 0 < np.std(dropped[:, 0]) and abs(dropped.mean() - 1) < 0.2
    assert (dropped == dropped[:, :1]).all()
    np.testing.assert_allclose(model(X, deterministic=True), np.ones((5, 4)), rtol=1e-6)
    again = [model(X, rngs=moduli.Rngs(dropout=1)) for _ in range(2)]
    np.testing.assert_array_equal(*again)
    model.eval()
    np.testing.assert_allclose(model(X), np.ones((5, 4)), rtol=1e-6)


def test_each_dropout_has_a_mask_of_its_own() -> None:
    model = MLP(3, (50, 50), 4, dropout_rate=0.5, rngs=moduli.Rngs(0))
    ones = jnp.ones(50)
    for rngs in (None, moduli.Rngs(1)):
        first, second = (drop(ones, rngs=rngs) for drop in model.dropouts)
        assert (first != second).any()
    with pytest.raises(RngError, match=r"MLP got one key for 2 Dropouts.*write rngs=moduli.Rngs"):
        model(X, rngs=jax.random.key(0))
    single = MLP(3, 50, 4, dropout_rate=0.5, rngs=moduli.Rngs(0))
    key: Any = jax.random.key(0)
    np.testing.assert_array_equal(single(X, rngs=key), single(X, rngs=key))


def test_an_activation_with_parameters_is_one_for_all_layers() -> None:
    model = MLP(3, (6, 5), 4, activation=PReLU(0.1), rngs=moduli.Rngs(0))
    grads = moduli.grad(lambda model: model(X).sum())(model)
    assert grads.activation.negative_slope.value != 0


def test_an_error_names_the_layer_inside() -> None:
    model = MLP(3, (6, 5), 4, rngs=moduli.Rngs(0))
    with pytest.raises(ShapeError, match=r"layers/0"):
        model(jnp.ones((5, 2)))
