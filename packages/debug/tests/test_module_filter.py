"""Filters of modules: what each kind selects, and what is said when one selects nothing."""

from __future__ import annotations

import re
from typing import Any

import pytest

import moduli as nnx
from moduli import errors
from moduli_debug._module_filter import PathPattern, module_predicate, path_text, select_modules


class Attention(nnx.Module):
    pass


class CrossAttention(Attention):
    pass


class Linear(nnx.Module):
    pass


class Block(nnx.Module):
    def __init__(self, attention: type[Attention]) -> None:
        self.attention = attention()
        self.mlp = [Linear(), Linear()]


class Chain(nnx.List):
    def __call__(self, x: Any) -> Any:
        return x


class Model(nnx.Module):
    def __init__(self) -> None:
        self.blocks = [Block(Attention), Block(CrossAttention)]
        self.head = Linear()
        self.chain = Chain([Linear()])


def selected(filter: Any, model: Any = None) -> list[str]:
    found = select_modules(Model() if model is None else model, filter, "capture")
    return [path_text(path) for path, _ in found]


ALL = [
    "blocks/0/attention",
    "blocks/0/mlp/0",
    "blocks/0/mlp/1",
    "blocks/0",
    "blocks/1/attention",
    "blocks/1/mlp/0",
    "blocks/1/mlp/1",
    "blocks/1",
    "chain/0",
    "chain",
    "head",
    "",
]


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        ("", [""]),
        ("head", ["head"]),
        ("*", ["chain", "head"]),
        ("**", ALL),
        ("blocks/*", ["blocks/0", "blocks/1"]),
        ("blocks/1/attention", ["blocks/1/attention"]),
        ("blocks/*/attention", ["blocks/0/attention", "blocks/1/attention"]),
        ("**/attention", ["blocks/0/attention", "blocks/1/attention"]),
        ("**/mlp/1", ["blocks/0/mlp/1", "blocks/1/mlp/1"]),
        ("blocks/**/0", ["blocks/0/mlp/0", "blocks/0", "blocks/1/mlp/0"]),
        ("*/0", ["blocks/0", "chain/0"]),
        ("blocks/0/att*", ["blocks/0/attention"]),
        ("blocks[0].attention", ["blocks/0/attention"]),
        ("blocks.0.mlp.1", ["blocks/0/mlp/1"]),
        ("blocks[*].att*", ["blocks/0/attention", "blocks/1/attention"]),
        ("h*d", ["head"]),
        (CrossAttention, ["blocks/1/attention"]),
        (Attention, ["blocks/0/attention", "blocks/1/attention"]),
        (nnx.Module, ALL),
        (lambda path, module: path[-1:] == (1,), ["blocks/0/mlp/1", "blocks/1/mlp/1", "blocks/1"]),
        (nnx.PathContains("head"), ["head"]),
        (nnx.PathIn(("blocks", 0), ("head",)), ["blocks/0", "head"]),
        (..., ALL),
        (True, ALL),
        (False, []),
        (None, []),
        (("head", CrossAttention), ["blocks/1/attention", "head"]),
        (["head", ["chain"]], ["chain", "head"]),
        (nnx.Any("head", CrossAttention), ["blocks/1/attention", "head"]),
        (nnx.All("blocks/0/**", Linear), ["blocks/0/mlp/0", "blocks/0/mlp/1"]),
        (nnx.All(Linear, nnx.Not("blocks/**")), ["chain/0", "head"]),
        (nnx.Not(nnx.Any(Linear, Attention, "")), ["blocks/0", "blocks/1", "chain"]),
        (nnx.Any(nnx.All("**/mlp/*", nnx.Not("**/0")), "head"), [ALL[2], ALL[6], "head"]),
    ],
)
def test_each_kind_of_filter_selects(filter: Any, expected: list[str]) -> None:
    assert selected(filter) == expected


@pytest.mark.parametrize("pattern", ["*", "**", "*/**", "**/b", "a/**/b", "a*/*", "**/a/**", "a/b"])
def test_patterns_agree_with_a_regular_expression(pattern: str) -> None:
    parts = []
    for part in pattern.split("/"):
        parts.append("(?:[^/]+/)*" if part == "**" else part.replace("*", "[^/]*") + "/")
    reference = re.compile("".join(parts))
    paths = [(), ("a",), ("b",), ("a", "b"), ("ab", 0), ("a", 0, "b"), ("a", "a", 1, "b"), (0, "a")]
    for path in paths:
        text = "".join(f"{part}/" for part in path)
        assert PathPattern(pattern)(path, None) == (reference.fullmatch(text) is not None), path


def test_a_part_of_a_path_is_no_regular_expression() -> None:
    model = nnx.Dict({"a.b": Linear(), "axb": Linear(), "c[0]": Linear()})
    assert selected("a.b", model) == ["a.b"]
    assert selected("c[0]", model) == ["c[0]"]


def test_what_is_selected_is_the_models_own_module() -> None:
    model = Model()
    [(path, module)] = select_modules(model, "blocks/1/attention", "capture")
    assert path == ("blocks", 1, "attention")
    assert module is model.blocks[1].attention


def test_a_shared_module_is_found_by_each_of_its_paths_and_selected_once() -> None:
    model = Model()
    model.twin = model.blocks[0]
    model.blocks[0].same = model.blocks[0].attention
    assert selected("twin", model) == ["blocks/0"]
    assert selected("twin/attention", model) == ["blocks/0/attention"]
    assert selected("twin/same", model) == ["blocks/0/attention"]
    assert selected("blocks/0/same", model) == ["blocks/0/attention"]
    assert selected("**/attention", model) == ["blocks/0/attention", "blocks/1/attention"]


def test_a_cycle_has_an_end() -> None:
    model = nnx.Dict(child=Block(Attention))
    model.child.parent = model
    assert selected("child/attention", model) == ["child/attention"]


def test_equal_filters_give_equal_predicates() -> None:
    def build() -> Any:
        return module_predicate(("blocks/*", nnx.All(Linear, nnx.Not("head"))))

    assert build() == build() and hash(build()) == hash(build())
    assert build() != module_predicate(("blocks/*", nnx.All(Linear, nnx.Not("chain"))))


@pytest.mark.parametrize(
    ("filter", "hint"),
    [
        ("heda", "did you mean 'head'?"),
        ("blocks/2", "did you mean 'blocks/0' or 'blocks/1'?"),
        ("blocks/0/atention", "did you mean 'blocks/0/attention'"),
        ("block/*/attention", "did you mean 'blocks/*/attention'?"),
        ("attention", "did you mean '**/attention'?"),
        ("blocks", "'blocks' is a List, which is never called: write 'blocks/*'"),
        ("Linear", "for modules of a class, write the class Linear"),
        ("Atention", "did you mean the class Attention?"),
        (("heda", "blocks/0/mlp"), "did you mean 'head'?"),
        (("heda", "blocks/0/mlp"), "write 'blocks/0/mlp/*'"),
        (nnx.All("heda", Linear), "did you mean 'head'?"),
    ],
)
def test_a_filter_that_selects_nothing_says_what_may_be_meant(filter: Any, hint: str) -> None:
    with pytest.raises(errors.PathError) as caught:
        select_modules(Model(), filter, "intervene")
    message = str(caught.value)
    assert hint in message
    assert message.startswith("intervene: the filter ")
    assert "its modules are '' (Model), 'chain' (Chain), 'head' (Linear), 'blocks/0' (" in message
    assert "and 4 more" in message


def test_a_class_that_selects_nothing_has_near_misses_too() -> None:
    other = type("Linear", (nnx.Module,), {"__module__": "elsewhere"})
    with pytest.raises(errors.PathError, match=r"another class than elsewhere\.Linear"):
        selected(other)
    near = type("Attentions", (nnx.Module,), {})
    with pytest.raises(errors.PathError, match=r"did you mean the class Attention\?"):
        selected(near)


@pytest.mark.parametrize("filter", [(), [], nnx.Any(), lambda path, module: False])
def test_a_filter_that_happens_to_be_empty_is_an_error(filter: Any) -> None:
    with pytest.raises(errors.PathError, match="selects no module of Model; its modules are ''"):
        selected(filter)


def test_a_model_of_containers_alone() -> None:
    with pytest.raises(errors.PathError, match="no modules but Lists and Dicts"):
        selected(..., nnx.Dict(a=nnx.List()))


@pytest.mark.parametrize(
    ("filter", "error", "message"),
    [
        (3, errors.VariableError, "capture: 3 of type int is no filter; write a path pattern"),
        ({"head"}, errors.VariableError, "of type set is no filter"),
        (nnx.Param, errors.VariableError, "Param is a kind of Variable"),
        (nnx.Any(nnx.Param, "head"), errors.VariableError, "Param is a kind of Variable"),
        (Linear(), errors.VariableError, "a Linear object is no filter"),
        (Chain(), errors.VariableError, "a Chain object is no filter"),
        (("blocks", 0), errors.VariableError, "Write the path as a string, 'blocks/0'"),
        (("head", 2.5), errors.VariableError, "2.5 of type float is no filter"),
        (lambda module: True, errors.VariableError, "write `lambda path, module: ...`"),
        ("blocks//0", errors.StructureError, "has an empty part; write 'blocks/0'"),
        ("/head", errors.StructureError, "has an empty part; write 'head'"),
    ],
)
def test_what_is_no_filter(filter: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)) as caught:
        select_modules(Model(), filter, "capture")
    assert str(caught.value).startswith("capture: ")


def test_selecting_leaves_the_model_as_it_was() -> None:
    model = Model()
    before = nnx.graphdef(model), dict(vars(model))
    select_modules(model, ("blocks/*", Linear), "capture")
    assert nnx.graphdef(model) is before[0]
    assert vars(model) == before[1]
