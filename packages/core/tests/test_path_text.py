"""Paths as text: what is written is read as that path alone; the other notation is understood."""

import enum
import itertools

import jax
import jax.numpy as jnp
import pytest

import moduli as nnx
from moduli.errors import format_path
from moduli.lowlevel import PathText, parse_path


class Color(enum.Enum):
    RED = 1


PARTS = [
    *("a", "b.c", "0", "-3", "a/b", "True", "it's", '"q"', "[x]", "c[0]", "", "x\ny", "x y", "*"),
    *("the model itself", "a']['b", "\\", "ü", 0, -3, (1, "x/y"), True, None, 2.5, Color.RED),
]
PATHS = [path for n in (1, 2) for path in itertools.product(PARTS, repeat=n)]


def test_every_path_has_a_text_of_its_own_which_is_read_back():
    texts = [format_path(path) for path in PATHS]
    assert len(set(texts)) == len(texts)
    for path, text in zip(PATHS, texts, strict=True):
        assert PathText(text).is_whole(path), text


@pytest.mark.parametrize(
    ("path", "slashes", "others"),
    [
        (("blocks", 0, "kernel"), "blocks/0/kernel", ["blocks[0].kernel", ".blocks[0].kernel"]),
        (("blocks", 0), "blocks/0", ["blocks[0]", "blocks.0", "['blocks'][0]"]),
        (("table", "a/b", "w"), "table/'a/b'/w", ["table['a/b'].w"]),
        (("table", (1, "x")), "table/[(1, 'x')]", ["table[(1, 'x')]"]),
        ((), "the model itself", ["<root>", ""]),
    ],
)
def test_both_notations_are_understood(path, slashes, others):
    assert format_path(path) == slashes
    for text in (slashes, *others):
        assert PathText(text).is_whole(path) and PathText(text).begins((*path, "more")), text
        assert not path or not PathText(text).is_whole(path[:-1])
        assert [part.text for part in parse_path(text)] == [p.text for p in parse_path(slashes)]


def test_quotes_mean_the_string_and_digits_mean_both():
    assert PathText("x/0").is_whole(("x", 0)) and PathText("x/0").is_whole(("x", "0"))
    assert PathText("x/'0'").is_whole(("x", "0")) and not PathText("x/'0'").is_whole(("x", 0))


def test_key_entries_of_jax_are_parts():
    [(path, _)] = jax.tree_util.tree_flatten_with_path({"a": [nnx.Param(1.0)]})[0]
    assert format_path(path).startswith("a/0")


@pytest.mark.parametrize("text", ["layers/0/kernel", "layers[0].kernel", "layers.0.kernel"])
def test_filters_and_rules_take_either(text):
    model = nnx.Dict(layers=nnx.List([nnx.Dict(kernel=nnx.Param(jnp.ones(2))) for _ in "ab"]))
    for filter in (nnx.PathIn(text), nnx.PathContains(text), nnx.PathContains(text[:-4], False)):
        assert nnx.to_flat_state(nnx.state(model, filter)).paths == (("layers", 0, "kernel"),)
    mesh = jax.make_mesh((1,), ("data",))
    specs = nnx.shardings(model, mesh, {text: "data"})
    assert specs["layers"][0]["kernel"].spec == jax.P("data")
    assert specs["layers"][1]["kernel"].spec == jax.P()
