"""Rows of the dense layers."""

from __future__ import annotations

from typing import Any

import numpy as np

import moduli
import moduli_layers as layers
from layer_rows.row import Bad, Row, value
from moduli.errors import ShapeError
from moduli_layers.errors import DtypeError


def linear(layer: Any, x: Any) -> np.ndarray:
    """``x @ kernel + bias``."""
    return np.asarray(x, np.float64) @ value(layer.kernel) + value(layer.bias)


def linear_general(layer: Any, x: Any) -> np.ndarray:
    """The contraction of one axis after the other, by sums over indices."""
    x, kernel = np.asarray(x, np.float64), value(layer.kernel)
    batch = len(layer.batch_axis)
    axes = [axis % x.ndim for axis in layer.axis]
    x = np.moveaxis(x, axes, range(-len(axes), 0))
    rest = x.shape[batch : -len(axes)]
    outs = kernel.shape[batch + len(axes) :]
    out = np.zeros((*x.shape[:batch], *rest, *outs))
    for b in np.ndindex(*x.shape[:batch]):
        matrix = kernel[b].reshape((-1, int(np.prod(outs))))
        out[b] = (x[b].reshape((-1, matrix.shape[0])) @ matrix).reshape((*rest, *outs))
    if layer.bias is None:
        return out
    bias = value(layer.bias)
    return out + bias.reshape((*bias.shape[:batch], *[1] * len(rest), *bias.shape[batch:]))


def einsum(layer: Any, x: Any) -> np.ndarray:
    """NumPy's einsum, and the bias on the axes whose letters the kernel has."""
    out = np.einsum(layer.einsum_str, np.asarray(x, np.float64), value(layer.kernel))
    if layer.bias is None:
        return out
    second, output = layer.einsum_str.split(",")[1].split("->")
    letters = output.split("...")[-1]
    return out + value(layer.bias).reshape(
        [n if c in second else 1 for c, n in zip(letters, out.shape[-len(letters) :], strict=True)]
    )


def embed(layer: Any, x: Any) -> np.ndarray:
    """Rows of the table."""
    return value(layer.embedding)[np.asarray(x)]


class Attend(moduli.Module):
    """Makes a layer of ``Embed.attend``."""

    def __init__(self, embed: Any) -> None:
        self.embed = embed

    def __call__(self, x: Any) -> Any:
        """Scores."""
        return self.embed.attend(x)


def _general(
    name: str,
    in_features: Any,
    out_features: Any,
    shape: Any,
    out: Any,
    batched: bool = True,
    checks_features: bool = True,
    **kwargs: Any,
) -> Row:
    def build(rngs: moduli.Rngs) -> Any:
        return layers.LinearGeneral(in_features, out_features, **kwargs, rngs=rngs)

    def large(rngs: moduli.Rngs) -> Any:
        return layers.LinearGeneral((5, 20), (10, 20), axis=(-2, -1), rngs=rngs)

    return Row(
        f"linear_general-{name}",
        build,
        (shape,),
        out,
        linear_general,
        batched=batched,
        checks_features=checks_features,
        bad=(Bad(((2,),), ShapeError, r"expects inputs with size \d on axis -?\d, got shape"),),
        init=(large, {"kernel": 0.1, "bias": 0}),
    )


ROWS: list[Row] = [
    Row(
        "linear",
        lambda r: layers.Linear(3, 4, rngs=r),
        ((5, 3),),
        (5, 4),
        linear,
        bad=(Bad(((),), ShapeError, r"expects inputs of shape \(\.\.\., 3\), got shape \(\)"),),
        init=(lambda r: layers.Linear(100, 200, rngs=r), {"kernel": 0.1, "bias": 0}),
    ),
    Row(
        "linear-vector", lambda r: layers.Linear(3, 4, rngs=r), ((3,),), (4,), linear, batched=False
    ),
    Row("linear-batches", lambda r: layers.Linear(3, 1, rngs=r), ((2, 5, 3),), (2, 5, 1), linear),
    Row(
        "linear-no-bias",
        lambda r: layers.Linear(3, 4, use_bias=False, rngs=r),
        ((5, 3),),
        (5, 4),
        linear,
    ),
    _general("heads", 3, (2, 4), (5, 3), (5, 2, 4)),
    _general("out", (2, 4), 3, (5, 2, 4), (5, 3), axis=(-2, -1)),
    _general(
        "axes", (2, 3), (4, 5), (6, 2, 7, 3), (6, 7, 4, 5), axis=(1, 3), checks_features=False
    ),
    _general("order", (3, 2), 4, (6, 2, 7, 3), (6, 7, 4), axis=(-1, 1), checks_features=False),
    _general("no-bias", 3, (2, 4), (5, 3), (5, 2, 4), use_bias=False),
    _general("batch", 3, 4, (2, 5, 3), (2, 5, 4), batch_axis={0: 2}, batched=False),
    Row(
        "einsum",
        lambda r: layers.Einsum("nta,hab->nthb", (4, 2, 3), (4, 3), rngs=r),
        ((5, 6, 2),),
        (5, 6, 4, 3),
        einsum,
        bad=(Bad(((5, 2),), ShapeError, r"expects inputs with 3 axes, got shape \(5, 2\)"),),
        init=(
            lambda r: layers.Einsum("...a,ab->...b", (100, 200), (200,), rngs=r),
            {"kernel": 0.1, "bias": 0},
        ),
    ),
    Row(
        "einsum-dots",
        lambda r: layers.Einsum("...a,ab->...b", (2, 3), (3,), rngs=r),
        ((5, 6, 2),),
        (5, 6, 3),
        einsum,
    ),
    Row(
        "einsum-no-bias",
        lambda r: layers.Einsum("nab, bc -> cna", (2, 3), rngs=r),
        ((5, 6, 2),),
        (3, 5, 6),
        einsum,
        batched=False,
    ),
    Row(
        "embed",
        lambda r: layers.Embed(7, 3, rngs=r),
        (lambda rng: rng.integers(0, 7, (5, 2)),),
        (5, 2, 3),
        embed,
        bad=(Bad(((5, 2),), DtypeError, r"looks up integers, got float32; write inputs.astype"),),
        init=(lambda r: layers.Embed(1000, 100, rngs=r), {"embedding": 0.1}),
        checks_features=False,
    ),
    Row(
        "embed-attend",
        lambda r: Attend(layers.Embed(7, 3, rngs=r)),
        ((5, 2, 3),),
        (5, 2, 7),
        lambda layer, x: np.asarray(x, np.float64) @ value(layer.embed.embedding).T,
    ),
]
