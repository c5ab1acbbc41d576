"""Convolutions against flax.nnx: the same parameters from the same seed, the same outputs."""

from __future__ import annotations

import itertools

import flax.nnx
import numpy as np
import pytest

import moduli

PADDINGS = ["SAME", "VALID", "CIRCULAR", 1, [(2, 0)]]
CASES = list(itertools.product([1, 2, 3, 4, 5], [1, 2, 3], [1, 2], PADDINGS, [False, True]))[::3]


@pytest.mark.parametrize(("size", "stride", "dilation", "padding", "transposed"), CASES)
def test_conv_transpose(size, stride, dilation, padding, transposed) -> None:
    options = {"padding": padding, "kernel_dilation": (dilation,), "transpose_kernel": transposed}
    theirs = flax.nnx.ConvTranspose(2, 3, (size,), (stride,), **options, rngs=flax.nnx.Rngs(0))
    ours = moduli.ConvTranspose(2, 3, (size,), (stride,), **options, rngs=moduli.Rngs(0))
    np.testing.assert_array_equal(ours.kernel, theirs.kernel[...])
    x = np.random.default_rng(0).normal(size=(2, 9, 2)).astype(np.float32)
    np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
