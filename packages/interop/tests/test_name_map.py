"""NameMap: both ways, the most specific rule, and what cannot be turned round."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moduli.errors import ModuliError
from moduli_interop import NameMap, NameMapError
from moduli_layers.counterparts import Tensor

LLAMA = NameMap(
    {
        "model.embed_tokens": "embed",
        "model.layers.{n}": "layers.{n}",
        "model.layers.{n}.self_attn.{t:s}_proj": "layers.{n}.attention.{t:s}",
        "model.layers.{n}.self_attn.o_proj.bias": "layers.{n}.attention.out.shift",
        "lm_head": "head",
    }
)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("embed.weight", "model.embed_tokens.weight"),
        ("layers.12.mlp.up.weight", "model.layers.12.mlp.up.weight"),
        ("layers.0.attention.query.weight", "model.layers.0.self_attn.query_proj.weight"),
        ("layers.0.attention.out.shift", "model.layers.0.self_attn.o_proj.bias"),
        ("head", "lm_head"),
        ("other.weight", "other.weight"),
        ("layers.x.weight", "layers.x.weight"),
        ("layers.01.weight", "layers.01.weight"),
        ("embedding.weight", "embedding.weight"),
    ],
)
def test_names_go_both_ways(ours, theirs):
    assert LLAMA.theirs(ours) == theirs
    assert LLAMA.ours(theirs) == ours


@given(st.integers(0, 10**6), st.from_regex(r"[a-z]\w{0,5}", fullmatch=True))
@settings(max_examples=30, deadline=None)
def test_fields_hold_any_number_and_piece(number, piece):
    ours = f"layers.{number}.attention.{piece}.weight"
    assert LLAMA.ours(LLAMA.theirs(ours)) == ours


def test_the_empty_name_is_the_model():
    inside = NameMap({"": "model"})
    assert inside.theirs("model.a.weight") == "a.weight"
    assert inside.ours("a.weight") == "model.a.weight"
    around = NameMap({"bert": ""})
    assert around.theirs("a.weight") == "bert.a.weight"
    assert around.ours("bert.a.weight") == "a.weight"


def test_maps_are_joined():
    joined = LLAMA | {"lm_head": "out"}
    assert joined.theirs("out.weight") == "lm_head.weight"
    assert NameMap(joined).rules == joined.rules
    assert eval(repr(NameMap({"a": "b"}))).rules == {"a": "b"}


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            {"a": "x", "b": "x"},
            r"'b': 'x' and 'a': 'x' do not go together.* our path 'x' two names",
        ),
        ({"{t:s}_proj": "{t:s}", "o_proj": "out"}, "their name 'o_proj' two names, 'out' and 'o'"),
        ({"a.{n}": "x.{n}", "a.0": "y"}, "their name 'a.0' two names, 'y' and 'x.0'"),
        ({"a.{n}.{m}": "x.{n}", "b": "y"}, r"our side lacks|cannot be turned round"),
        # b.1.23 and b.12.3 would both be a.123, and so on
        ({"a.{n}{m}": "b.{n}.{m}"}, r"'\{n\}\{m\}' of .* can be read in several ways"),
        ({"a.{n}0{m}": "b.{n}.{m}"}, "can be read in several ways"),
        ({"a.{t:s}{n}": "b.{t:s}.{n}"}, "can be read in several ways"),
        ({"a.{t:s}_{u:s}": "b.{t:s}.{u:s}"}, "can be read in several ways"),
        ({"b.{t:s}.{u:s}": "a.{t:s}_{u:s}"}, "can be read in several ways"),
        ({"a.{t:s}_{n}_{u:s}": "b.{t:s}.{n}.{u:s}"}, "can be read in several ways"),
        ({"a.{t:s}": "x"}, "our side lacks {t}; only one integer may be missing"),
        ({"a.{n}.{m}": "x"}, "our side lacks {m}, {n}"),
        ({"a": "x.{n}"}, "both sides have to have the same fields, theirs has \\[\\] and ours"),
        ({"a.{n}": "x.{n:s}"}, "both sides have to have the same fields"),
        ({"a.{n": "x"}, "cannot be read; write parts between dots"),
        ({"a..b": "x"}, "cannot be read"),
        ({"a.{n:z}": "x.{n:z}"}, "the field {n:z} of 'a.{n:z}' cannot be read"),
        ({"a.{1}": "x.{1}"}, "the field {1}"),
        ({"a": 3}, "the rule for 'a' has a int; write our path as a text, or a Tensor"),
        ({3: "a"}, "their name is a text, got 3"),
        ({"a": Tensor("x.w"), "{t:s}": Tensor("{t:s}.w")}, "give one tensor twice"),
    ],
)
def test_maps_that_cannot_be_turned_round(rules, message):
    if rules == {"a.{n}.{m}": "x.{n}", "b": "y"}:
        NameMap(rules)  # one integer may be missing: blocks are stacked
        return
    with pytest.raises(NameMapError, match=message):
        NameMap(rules)


def test_a_function_is_no_map():
    with pytest.raises(NameMapError, match=r"got a function; a function goes into load_weights"):
        NameMap(lambda name: name)
    assert issubclass(NameMapError, ModuliError)
    assert issubclass(NameMapError, ValueError)


def test_a_rule_for_all_names_gives_way_to_those_for_one():
    names = NameMap({"h.{n}.ln": "h.{n}.norm", "h.{n}.mlp.{t:s}_proj": "h.{n}.{t:s}"})
    assert names.theirs("h.3.norm.weight") == "h.3.ln.weight"
    assert names.theirs("h.3.up.weight") == "h.3.mlp.up_proj.weight"
    assert names.ours("h.3.mlp.up_proj.weight") == "h.3.up.weight"
    assert names.ours("h.3.ln.weight") == "h.3.norm.weight"


def test_rules_that_say_the_same_go_together():
    assert NameMap({"a.{n}": "x.{n}", "a.0": "x.0"}).theirs("x.0.w") == "a.0.w"


@given(
    st.sampled_from(["{n}_{m}", "{t:s}_l{n}", "{n}x{t:s}", "{n}_{t:s}_{m}", "{t:s}_{t:s}_1"]),
    st.fixed_dictionaries(
        {"n": st.integers(0, 120), "m": st.integers(0, 120), "t": st.text("_lx01", min_size=1)}
    ),
)
def test_several_fields_of_one_part_are_told_apart(part, values):
    fields = list(dict.fromkeys(re.findall(r"[{][^{}]*[}]", part)))
    names = NameMap({f"a.{part}": ".".join(["b", *fields])})
    ours, theirs = ".".join(["b", *fields]), f"a.{part}"
    for field in fields:
        ours = ours.replace(field, str(values[field[1]]))
        theirs = theirs.replace(field, str(values[field[1]]))
    assert names.theirs(f"{ours}.w") == f"{theirs}.w"
    assert names.ours(f"{theirs}.w") == f"{ours}.w"
