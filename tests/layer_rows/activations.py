"""Rows of the activations, each with PyTorch's function in float64 as the reference.

Closed forms of the same functions stand in ``packages/layers/tests/test_activations.py``. No input
comes near a kink (they are all at integers), so that finite differences make sense for every
function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import moduli
import moduli_layers as layers
from layer_rows.row import Reference, Row


class Activation(moduli.Module):
    """Makes a layer of a function, so that it has a row."""

    def __init__(self, function: Callable[..., Any], **options: Any) -> None:
        self.function, self.options = function, tuple(options.items())

    def __call__(self, x: Any) -> Any:
        """Calls the function with its options."""
        return self.function(x, **dict(self.options))


class OneHot(Activation):
    """The function that takes integers, and so has to be told the dtype of its result."""

    def __init__(self, function: Callable[..., Any], classes: int) -> None:
        super().__init__(function)
        self.classes, self.dtype, self.param_dtype = classes, None, jnp.float32

    def __call__(self, x: Any) -> Any:
        """Encodes the integers."""
        dtype = self.param_dtype if self.dtype is None else self.dtype
        return self.function(x, self.classes, dtype=dtype)


def between_integers(rng: np.random.Generator) -> np.ndarray:
    """Makes numbers from -7.8 to 7.8, one between each two neighbouring integers."""
    numbers = np.arange(-7.5, 8) + rng.uniform(-0.3, 0.3, 16)
    return rng.permutation(numbers).reshape(4, 4)


def torchs(name: str, **options: Any) -> Reference:
    """Returns a function of ``torch.nn.functional`` as a reference."""

    def reference(layer: Any, x: Any) -> np.ndarray:
        torch = pytest.importorskip("torch")
        function = getattr(torch.nn.functional, name, None) or getattr(torch, name)
        return function(torch.tensor(np.asarray(x, np.float64)), **options).numpy()

    return reference


def identity(layer: Any, x: Any) -> np.ndarray:
    """The inputs."""
    return np.asarray(x, np.float64)


def squareplus(layer: Any, x: Any) -> np.ndarray:
    """``(x + sqrt(x² + b)) / 2``, the positive root of ``y² - x y - b / 4``."""
    b = dict(layer.options).get("b", 4)
    return np.array([max(np.roots([1, -v, -b / 4])) for v in np.ravel(x)]).reshape(np.shape(x))


def one_hot(layer: Any, x: Any) -> np.ndarray:
    """Rows of the identity matrix; zeros for what is no class."""
    rows = np.concatenate([np.eye(layer.classes), np.zeros((1, layer.classes))])
    x = np.asarray(x)
    return rows[np.where((x >= 0) & (x < layer.classes), x, layer.classes)]


def _row(
    name: str,
    reference: Reference,
    shape: tuple[int, ...] = (4, 4),
    batched: bool = True,
    **options: Any,
) -> Row:
    function = getattr(layers, name.partition("-")[0])
    return Row(
        name,
        lambda rngs: Activation(function, **options),
        (between_integers,),
        shape,
        reference,
        bfloat16=0.008,
        batched=batched,
        checks_features=False,
        needs_rngs=False,
    )


ROWS: list[Row] = [
    _row("celu", torchs("celu")),
    _row("celu-alpha", torchs("celu", alpha=0.4), alpha=0.4),
    _row("elu", torchs("elu")),
    _row("elu-alpha", torchs("elu", alpha=0.4), alpha=0.4),
    _row("gelu", torchs("gelu", approximate="tanh")),
    _row("gelu-exact", torchs("gelu"), approximate=False),
    _row("glu", torchs("glu"), (4, 2)),
    _row("glu-axis", torchs("glu", dim=0), (2, 4), batched=False, axis=0),
    _row("hard_sigmoid", torchs("hardsigmoid")),
    _row("hard_silu", torchs("hardswish")),
    _row("hard_swish", torchs("hardswish")),
    _row("hard_tanh", torchs("hardtanh")),
    _row("identity", identity),
    _row("leaky_relu", torchs("leaky_relu")),
    _row("leaky_relu-steep", torchs("leaky_relu", negative_slope=0.3), negative_slope=0.3),
    _row("log_sigmoid", torchs("logsigmoid")),
    _row("log_softmax", torchs("log_softmax", dim=-1)),
    _row("log_softmax-axis", torchs("log_softmax", dim=0), batched=False, axis=0),
    _row("logsumexp", torchs("logsumexp", dim=-1), (4,), axis=-1),
    _row("mish", torchs("mish")),
    Row(
        "one_hot",
        lambda rngs: OneHot(layers.one_hot, 5),
        (lambda rng: rng.permutation(np.arange(-1, 7)).reshape(4, 2),),
        (4, 2, 5),
        one_hot,
        checks_features=False,
        needs_rngs=False,
        smooth=False,
    ),
    _row("relu", torchs("relu")),
    _row("relu6", torchs("relu6")),
    _row("selu", torchs("selu")),
    _row("sigmoid", torchs("sigmoid")),
    _row("silu", torchs("silu")),
    _row("soft_sign", torchs("softsign")),
    _row("softmax", torchs("softmax", dim=-1)),
    _row("softmax-axis", torchs("softmax", dim=0), batched=False, axis=0),
    _row("softplus", torchs("softplus")),
    _row("squareplus", squareplus),
    _row("squareplus-b", squareplus, b=0.5),
    _row("standardize", torchs("layer_norm", normalized_shape=(4,))),
    _row("swish", torchs("silu")),
    _row("tanh", torchs("tanh")),
]
