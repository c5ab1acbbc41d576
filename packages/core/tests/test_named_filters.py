"""A filter that is a name: a tag. One that selects nothing and names a kind is a mistake."""

from __future__ import annotations

import pytest

import moduli as nnx
from moduli.errors import StructureError


class Model(nnx.Module):
    def __init__(self):
        self.w = nnx.Param(1.0, tag="slow")
        self.b = nnx.Param(2.0)


SELECT = {
    "state": nnx.state,
    "split": lambda model, *filters: nnx.split(model, *filters, ...),
    "split of a tuple": lambda model, *filters: nnx.split((model,), *filters, ...),
    "pop": nnx.pop,
    "filter_state": lambda model, *filters: nnx.filter_state(nnx.state(model), *filters),
    "State.split": lambda model, *filters: nnx.state(model).split(*filters, ...),
    "State.filter": lambda model, *filters: nnx.state(model).filter(*filters),
    "FlatState.filter": lambda model, *f: nnx.to_flat_state(nnx.state(model)).filter(*f),
    "FlatState.split": lambda model, *f: nnx.to_flat_state(nnx.state(model)).split(*f, ...),
}


def product(model):
    return model.w[...] * model.b[...]


def mapped(model, filter):
    axes = nnx.StateAxes({filter: 0, ...: None})
    return nnx.vmap(product, in_axes=axes)(model)


TRANSFORMS = {
    "grad": lambda model, filter: nnx.grad(product, argnums=nnx.DiffState(0, filter))(model),
    "jit of grad": lambda model, filter: nnx.jit(
        nnx.value_and_grad(product, argnums=[nnx.DiffState(0, filter)])
    )(model),
    "StateAxes": mapped,
}


@pytest.mark.parametrize(
    "select", [*SELECT.values(), *TRANSFORMS.values()], ids=[*SELECT, *TRANSFORMS]
)
@pytest.mark.parametrize(
    "filter",
    ["params", "param", ("params", nnx.BatchStat), nnx.WithTag("params"), nnx.Any("params")],
    ids=str,
)
def test_the_name_of_a_kind_is_an_error_that_says_the_class(select, filter):
    model = Model()
    with pytest.raises(StructureError, match=r"filter 'params?'.*moduli\.Param"):
        select(model, filter)
    assert hasattr(model, "w")


@pytest.mark.parametrize(("name", "kind"), [("batch_stats", "BatchStat"), ("rng_keys", "RngKey")])
def test_each_kind_is_named(name, kind):
    with pytest.raises(StructureError, match=rf"moduli\.{kind}"):
        nnx.state(Model(), nnx.Param, name)


@pytest.mark.parametrize(("name", "hint"), [("slo", "did you mean 'slow'"), ("xyz", "are 'slow'")])
def test_state_of_a_tag_that_nothing_has_says_which_there_are(name, hint):
    with pytest.raises(StructureError, match=hint):
        nnx.state(Model(), name)


@pytest.mark.parametrize("select", SELECT.values(), ids=SELECT)
@pytest.mark.parametrize(
    "filter", [nnx.BatchStat, nnx.PathContains("nothing"), lambda path, value: False, False, None]
)
def test_what_may_select_nothing_still_does(select, filter):
    found = select(Model(), filter)
    parts = found if isinstance(found, tuple) else (found,)
    assert any(not isinstance(part, nnx.GraphDef) and len(part) == 0 for part in parts)


def test_a_tag_that_other_models_have_selects_nothing_in_split():
    _, tagged, rest = nnx.split(Model(), "recurrent", ...)  # as a loop over any cell writes it
    assert not tagged and len(rest) == 2
    assert len(nnx.state(Model(), nnx.Not("recurrent"))) == 2


@pytest.mark.parametrize("name", ["slow", "params"])
def test_a_tag_that_is_there_counts_though_another_filter_took_it(name):
    model = Model()
    model.w.set_metadata(tag=name)
    assert list(nnx.state(model, name)) == ["w"]
    params, tagged = nnx.state(model, nnx.Param, name)
    assert len(params) == 2 and not tagged


class Nested(nnx.Module):
    def __init__(self):
        self.blocks = nnx.List([nnx.Dict(inner=Model()) for _ in range(11)])
        self.scales = nnx.Dict({"a.b": nnx.Param(0.0), "c/d": nnx.Param(0.0), "0": Model()})


def paths(filter):
    return set(nnx.to_flat_state(nnx.state(Nested(), filter)).paths)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("blocks/0/inner/w", ("blocks", 0, "inner", "w")),
        ("blocks[0].inner.w", ("blocks", 0, "inner", "w")),
        ("blocks[10].inner.b", ("blocks", 10, "inner", "b")),
        ("scales/a.b", ("scales", "a.b")),
        ("scales['a.b']", ("scales", "a.b")),
        ("scales['c/d']", ("scales", "c/d")),
        ('scales["0"].w', ("scales", "0", "w")),
    ],
)
def test_both_notations_of_a_path_are_understood(text, path):
    assert paths(nnx.PathIn(text)) == {path} == paths(nnx.PathIn(path))
    assert paths(nnx.PathContains(text)) == {path}
    assert paths(nnx.PathIn(text, ("blocks", 1, "inner", "w"))) == {
        path,
        ("blocks", 1, "inner", "w"),
    }


@pytest.mark.parametrize("text", ["blocks/1", "blocks[1]", "/blocks/1/", "blocks.1"])
def test_several_parts_are_contained_whole(text):
    assert paths(nnx.PathContains(text)) == {("blocks", 1, "inner", n) for n in "wb"}


@pytest.mark.parametrize(
    ("filter", "count"),
    [
        (nnx.PathContains("a.b"), 1),  # a key that is written so
        (nnx.PathContains("c/d"), 1),
        (nnx.PathContains("inner/w"), 11),
        (nnx.PathContains("blocks/1", exact=False), 4),  # 1 and 10
        (nnx.PathContains("block", exact=False), 22),
        (nnx.PathContains("block/1"), 0),
        (nnx.PathContains(0), 2),
        (nnx.PathContains("0"), 2),
        (nnx.PathIn("w"), 0),
    ],
)
def test_what_a_path_filter_selects(filter, count):
    assert len(paths(filter)) == count


ONLY_WHAT_IS_SELECTED = {
    name: SELECT.get(name, TRANSFORMS.get(name))
    for name in "state|pop|filter_state|State.filter|FlatState.filter|grad|jit of grad".split("|")
}


@pytest.mark.parametrize("select", ONLY_WHAT_IS_SELECTED.values(), ids=ONLY_WHAT_IS_SELECTED)
def test_a_tag_that_nothing_has_is_an_error_where_the_selection_is_the_answer(select):
    model = Model()
    with pytest.raises(StructureError, match=r"got the filter 'slwo'.* did you mean 'slow'"):
        select(model, "slwo")
    assert list(nnx.state(model, "slow")) == ["w"]


@pytest.mark.parametrize("split", [nnx.Rngs.fork, nnx.Rngs.broadcast], ids=["fork", "broadcast"])
def test_the_name_of_no_stream_is_an_error_of_rngs(split):
    rngs = nnx.Rngs(params=0, dropout=1)
    arguments = {"split": {"drpout": 2}} if split is nnx.Rngs.fork else {}
    with pytest.raises(nnx.errors.RngError, match=r"'drpout'; there are 'params', 'dropout'"):
        split(rngs, **arguments) if arguments else split(rngs, {"drpout": 2})
    assert int(rngs.dropout.count[...]) == 0
