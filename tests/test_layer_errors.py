"""What a layer refuses, it refuses by name: class, place in the model, expected and given."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_table import TABLE, Bad, Row, make_inputs

import moduli
from moduli.errors import RngError, ShapeError

PLACE = r"\(in `blocks/0/0(/[\w/]+)?` of Outer\)"
REFUSED = [(row, bad) for row in TABLE for bad in row.bad]
KNOWING = [row for row in TABLE if row.checks_features]


def refused(model: moduli.Module, inputs: tuple[jax.Array, ...], error: type[Exception]) -> str:
    """Returns the message, the same eagerly and under jit; nothing in the model has changed."""
    before = jax.tree.leaves(moduli.state(model))
    with pytest.raises(error) as caught:
        model(*inputs)  # pyright: ignore[reportCallIssue]
    with pytest.raises(error) as compiled:
        moduli.jit(lambda model, *args: model(*args))(model, *inputs)
    assert str(compiled.value) == str(caught.value)
    assert all(a is b for a, b in zip(before, jax.tree.leaves(moduli.state(model)), strict=True))
    return str(caught.value)


@pytest.mark.parametrize("row", KNOWING, ids=lambda row: row.name)
def test_another_number_of_features_is_refused_with_class_place_and_shapes(row: Row) -> None:
    model, inputs = row.nested(), row.arrays()
    wrong = jnp.concatenate([inputs[0], inputs[0][..., :1]], axis=-1)
    text = refused(model, (wrong, *inputs[1:]), ShapeError)
    assert re.search(PLACE, text), text
    assert re.match(r"[A-Z]\w+", text), text
    assert str(wrong.shape[-1]) in text
    assert str(inputs[0].shape[-1]) in text


@pytest.mark.parametrize(
    ("row", "bad"), REFUSED, ids=[f"{row.name}-{bad.match[:30]}" for row, bad in REFUSED]
)
def test_bad_calls_are_refused(row: Row, bad: Bad) -> None:
    text = refused(row.nested(), make_inputs(bad.inputs), bad.error)
    assert re.search(bad.match, text), text
    assert re.search(PLACE, text), text


@pytest.mark.parametrize("row", [row for row in TABLE if row.needs_rngs], ids=lambda row: row.name)
def test_missing_streams_are_refused(row: Row) -> None:
    with pytest.raises(RngError, match=r"^[A-Z]\w+ got rngs of type NoneType; write rngs=moduli"):
        row.build(None)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("row", [row for row in TABLE if row.batched], ids=lambda row: row.name)
def test_no_examples_give_no_outputs_in_evaluation(row: Row) -> None:
    model = row.model()
    model.eval()
    outputs = model(*(x[:0] for x in row.arrays()))
    assert outputs.shape == (0, *row.shape[1:])
    assert outputs.dtype == np.float32
