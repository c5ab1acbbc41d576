"""What the table of layers cannot say about LinearGeneral, Einsum and Embed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli
from moduli.errors import ShapeError
from moduli_layers import Einsum, Embed, LinearGeneral
from moduli_layers.errors import ArgumentError

RNGS = moduli.Rngs(0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: LinearGeneral((2, 3), 4, rngs=RNGS),
            "LinearGeneral got in_features=(2, 3) and axis=(-1,); write one size for each "
            "contracted axis",
        ),
        (
            lambda: LinearGeneral(2, (4, 0), rngs=RNGS),
            "LinearGeneral got out_features=0; write a size of at least 1",
        ),
        (
            lambda: LinearGeneral(2, 4, batch_axis={1: 3}, rngs=RNGS),
            "LinearGeneral got batch_axis={1: 3}; batch axes stand first: write the axes 0, 1, ... "
            "without a gap, with their sizes",
        ),
        (
            lambda: Einsum("ab->ba", (2, 3), rngs=RNGS),
            "Einsum got the equation 'ab->ba'; write two operands, inputs and kernel, and an "
            "output, as 'nta,hab->nthb'",
        ),
        (
            lambda: Einsum("ab,bc->ac", (2, 3, 4), rngs=RNGS),
            "Einsum got the equation 'ab,bc->ac' and kernel_shape=(2, 3, 4); write one letter for "
            "each axis of the kernel",
        ),
        (lambda: Embed(0, 3, rngs=RNGS), "Embed got num_embeddings=0; write a size of at least 1"),
    ],
)
def test_wrong_arguments_are_refused(build, message) -> None:
    with pytest.raises(ArgumentError) as caught:
        build()
    assert str(caught.value) == message


def test_one_axis_cannot_be_contracted_twice() -> None:
    layer = LinearGeneral((3, 3), 4, axis=(0, -1), rngs=RNGS)
    with pytest.raises(ShapeError, match="where two of its axes are one; give inputs with more"):
        layer(jnp.ones(3))


def test_the_equation_stands_in_one_place() -> None:
    layer = Einsum(None, (3, 2), (2,), rngs=RNGS)
    assert layer(jnp.ones((5, 3)), "na,ab->nb").shape == (5, 2)
    with pytest.raises(ArgumentError, match="of the layer and the call neither has an equation"):
        layer(jnp.ones((5, 3)))
    layer = Einsum("na,ab->nb", (3, 2), rngs=RNGS)
    with pytest.raises(ArgumentError, match="of the layer and the call both have an equation"):
        layer(jnp.ones((5, 3)), "na,ab->nb")


def test_a_bias_that_fits_nowhere_is_refused() -> None:
    layer = Einsum("nta,hab->nthb", (4, 2, 3), (4,), rngs=RNGS)
    with pytest.raises(ShapeError) as caught:
        layer(jnp.ones((5, 6, 2)))
    assert str(caught.value) == (
        "Einsum('nta,hab->nthb') has a bias of shape (4,), but the output's axes that the kernel "
        "brings have the sizes (4, 3); write bias_shape=(4, 3)"
    )


def test_own_products_are_used() -> None:
    seen = []

    def product(*args, **kwargs):
        seen.append(kwargs["preferred_element_type"])
        return jnp.zeros((5, 4))

    made = LinearGeneral(3, 4, dot_general_cls=lambda: product, rngs=RNGS)
    assert not made(jnp.ones((5, 3))).any()
    given = LinearGeneral(3, 4, dot_general=product, preferred_element_type=jnp.float32, rngs=RNGS)
    assert not given(jnp.ones((5, 3))).any()
    assert seen == [None, jnp.float32]


def test_embed_outside_of_the_table_shows() -> None:
    layer = Embed(4, 2, rngs=RNGS)
    vectors = layer(jnp.array([3, 4, -1, -5]))
    assert np.isnan(vectors).all(axis=1).tolist() == [False, True, False, True]


def test_tied_embeddings_stay_one_parameter() -> None:
    class Model(moduli.Module):
        def __init__(self) -> None:
            self.embed = Embed(5, 3, rngs=RNGS)

        def __call__(self, tokens):
            return self.embed.attend(self.embed(tokens))

    model = Model()
    grads = moduli.grad(lambda m: m(jnp.array([1, 2])).sum())(model)
    table = np.asarray(model.embed.embedding.value)
    ones = np.ones((5, 1)) * (table[1] + table[2])
    ones[1] += table.sum(0)
    ones[2] += table.sum(0)
    np.testing.assert_allclose(grads.embed.embedding.value, ones, rtol=1e-5)


@pytest.mark.parametrize(
    ("equation", "kernel", "bias", "shape"),
    [
        ("d...ab,bc...->ad...c", (4, 5, 6, 7), (6, 7, 5), (8, 6, 7, 3, 4)),
        ("b...i,i...->b...", (3, 4), (4,), (2, 4, 3)),
        ("...i,...i->...", (4, 3), (4,), (2, 4, 3)),
        ("...i,...io->...o", (4, 3, 2), (4, 2), (5, 1, 3)),  # the inputs broadcast
        ("...i,...io->...o", (3, 2), (2,), (5, 1, 3)),
        ("ni,i...->n...", (3, 2, 2), None, (5, 3)),
    ],
)
def test_einsum_takes_an_ellipsis_in_the_kernel_as_flax(equation, kernel, bias, shape):
    flax = pytest.importorskip("flax.nnx")
    x = np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    options = {"bias_init": jax.nn.initializers.normal(1.0)}
    ours, theirs = (
        lib.Einsum(equation, kernel, bias, rngs=lib.Rngs(0), **options)(x) for lib in (moduli, flax)
    )
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_einsum_with_an_ellipsis_says_what_does_not_fit():
    layer = Einsum("b...i,i...->b...", (3, 4), rngs=RNGS)
    with pytest.raises(ShapeError, match=r"size 4 on axis 'A', got shape \(2, 5, 3\)"):
        layer(np.ones((2, 5, 3), np.float32))


def test_einsum_takes_one_size_as_a_shape():
    layer = Einsum("na,a->n", 3, kernel_init=jax.nn.initializers.ones, rngs=RNGS)
    assert layer.kernel.shape == (3,)
    layer = Einsum("na,ab->nb", (3, 2), 2, rngs=RNGS)
    assert layer.bias.shape == (2,)
    assert layer(np.ones((5, 3), np.float32)).shape == (5, 2)


def test_an_einsum_has_its_bias_on_axes_in_front_of_the_dots_too() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 3)), jnp.float32)
    layer = Einsum(
        "...a,hab->b...h",
        (4, 3, 6),
        (6, 4),
        bias_init=moduli.initializers.normal(1),
        rngs=moduli.Rngs(0),
    )
    kernel, bias = np.asarray(layer.kernel[...]), np.asarray(layer.bias[...])
    expected = np.einsum("xya,hab->bxyh", x, kernel) + bias[:, None, None, :]
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-5)
