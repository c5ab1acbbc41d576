"""What suggest_names prints: rules for what can be nothing else, comments for the rest."""

from __future__ import annotations

import functools

import numpy as np
import pytest

import moduli as nnx
from moduli_interop import NameMap, load_weights, suggest_names
from moduli_layers import Conv, Embed, LayerNorm, Linear, MultiHeadAttention, RMSNorm

RNGS = nnx.Rngs(0)
linear = functools.partial(Linear, use_bias=False, rngs=RNGS)


def suggested(tensors, model, capsys):
    """Returns the rules, the comments, and what a load by these rules would leave out."""
    source = {name: np.zeros(shape, np.float32) for name, shape in tensors.items()}
    names = suggest_names(source, model)
    text = capsys.readouterr().out
    printed = eval(text.removeprefix("names = "), {"nnx": nnx})
    assert printed.rules == names.rules == NameMap(names.rules).rules
    comments = [line.strip("# ") for line in text.splitlines() if line.startswith("    #")]
    report = load_weights(source, model, names=names, dry_run=True)
    return names.rules, comments, report


def blocks(count, **parts):
    """Returns names of blocks by those of one."""
    return {f"{name.format(n)}": shape for n in range(count) for name, shape in parts.items()}


def test_words_below_other_modules(capsys):
    """A Llama whose MLP is part of the block, with norms of queries and keys."""

    class Block(nnx.Module):
        def __init__(self):
            make = functools.partial(MultiHeadAttention, 2, 4, normalize_qk=True, rngs=RNGS)
            self.attention = make(use_bias=False)
            self.attention.query_ln = RMSNorm(2, rngs=RNGS)
            self.attention.key_ln = RMSNorm(2, rngs=RNGS)
            self.attention_norm, self.mlp_norm = (RMSNorm(4, rngs=RNGS) for _ in range(2))
            self.gate, self.up, self.down = linear(4, 6), linear(4, 6), linear(6, 4)

    model = nnx.Dict(
        embed=Embed(9, 4, rngs=RNGS), layers=nnx.List([Block() for _ in range(3)]),
        norm=RMSNorm(4, rngs=RNGS), head=linear(4, 9),
    )  # fmt: skip
    start = "model.layers.{}."
    one = {f"{start}self_attn.{x}_proj.weight": (4, 4) for x in "qkvo"}
    one |= {f"{start}self_attn.{x}_norm.weight": (2,) for x in "qk"}
    one |= {f"{start}mlp.{x}_proj.weight": (6, 4) for x in ("gate", "up")}
    one |= {f"{start}mlp.down_proj.weight": (4, 6)}
    one |= {f"{start}{x}_layernorm.weight": (4,) for x in ("input", "post_attention")}
    whole = {
        "model.embed_tokens.weight": (9, 4),
        "model.norm.weight": (4,),
        "lm_head.weight": (9, 4),
    }
    rules, comments, report = suggested({**blocks(3, **one), **whole}, model, capsys)
    assert (report.problems, comments) == ((), [])
    assert rules["model.layers.{n}.self_attn.q_norm"] == "layers.{n}.attention.query_ln"
    assert rules["model.layers.{n}.post_attention_layernorm"] == "layers.{n}.mlp_norm"
    assert len(report.loaded) == 3 * len(one) + 3


@pytest.mark.parametrize("fused", [True, False])
def test_the_way_of_naming_is_that_of_the_source(fused, capsys):
    """A ViT: attention in parts or fused, tensors of their own, biases with their weights."""

    class Block(nnx.Module):
        def __init__(self):
            self.norm1, self.norm2 = (LayerNorm(4, rngs=RNGS) for _ in range(2))
            self.attn = MultiHeadAttention(2, 4, rngs=RNGS)
            self.fc1, self.fc2 = Linear(4, 6, rngs=RNGS), Linear(6, 4, rngs=RNGS)

    model = nnx.Dict(
        cls=nnx.Param(np.zeros((1, 1, 4), np.float32)),
        pos=nnx.Param(np.zeros((1, 5, 4), np.float32)),
        patch=Conv(3, 4, (2, 2), rngs=RNGS), blocks=nnx.List([Block() for _ in range(2)]),
    )  # fmt: skip
    start = "vit.encoder.layer.{}."
    modules = {"layernorm_before": (4,), "layernorm_after": (4,)}
    modules |= {"intermediate.dense": (6, 4), "output.dense": (4, 6)}
    one = {}
    if fused:
        one |= {
            f"{start}attention.in_proj_{x}": s for x, s in dict(weight=(12, 4), bias=(12,)).items()
        }
        modules["attention.out_proj"] = (4, 4)
    else:
        modules |= {f"attention.attention.{x}": (4, 4) for x in ("query", "key", "value")}
        modules["attention.output.dense"] = (4, 4)
    for name, shape in modules.items():
        one |= {f"{start}{name}.weight": shape, f"{start}{name}.bias": shape[:1]}
    whole = {
        "vit.embeddings.cls_token": (1, 1, 4),
        "vit.embeddings.position_embeddings": (1, 5, 4),
        "vit.embeddings.patch_embeddings.projection.weight": (4, 3, 2, 2),
        "vit.embeddings.patch_embeddings.projection.bias": (4,),
    }
    rules, comments, report = suggested({**blocks(2, **one), **whole}, model, capsys)
    assert (report.problems, comments) == ((), [])
    assert len(rules) <= len(modules) + 4
    assert rules["vit.encoder.layer.{n}.layernorm_after"] == "blocks.{n}.norm2"


def test_numbers_that_count_no_blocks(capsys):
    """A T5, whose blocks have the parts 0, 1, 2; and what is the same in them is ambiguous."""

    class Attention(nnx.Module):
        def __init__(self, first=False):
            self.q, self.k, self.v, self.o = (linear(4, 4) for _ in range(4))
            if first:
                self.relative = Embed(3, 2, rngs=RNGS)

    class Block(nnx.Module):
        def __init__(self, first):
            self.attention, self.cross = Attention(first), Attention()
            self.norm, self.ff_norm = RMSNorm(4, rngs=RNGS), RMSNorm(4, rngs=RNGS)
            self.wi, self.wo = linear(4, 6), linear(6, 4)

    model = nnx.Dict(blocks=nnx.List([Block(i == 0) for i in range(2)]))
    one = {f"block.{{}}.layer.0.SelfAttention.{x}.weight": (4, 4) for x in "qkvo"}
    one |= {f"block.{{}}.layer.1.EncDecAttention.{x}.weight": (4, 4) for x in "qkvo"}
    one |= {f"block.{{}}.layer.{i}.layer_norm.weight": (4,) for i in (0, 2)}
    one |= {
        "block.{}.layer.2.DenseReluDense.wi.weight": (6, 4),
        "block.{}.layer.2.DenseReluDense.wo.weight": (4, 6),
    }
    only = {"block.0.layer.0.SelfAttention.relative_attention_bias.weight": (3, 2)}
    rules, comments, report = suggested({**blocks(2, **one), **only}, model, capsys)
    assert rules["block.{n}.layer.0.SelfAttention"] == "blocks.{n}.attention"
    assert rules["block.{n}.layer.1.EncDecAttention"] == "blocks.{n}.cross"
    assert {tuple(row.ours.split("/")[2:4]) for row in report.loaded if "relative" in row.ours} == {
        ("attention", "relative")
    }
    either = "block.{n}.layer.0.layer_norm.weight or block.{n}.layer.2.layer_norm.weight"
    assert f"blocks.{{n}}.norm.weight could be {either}" in comments
    assert {path.split("/")[2] for path in report.missing} == {"norm", "ff_norm"}


def test_the_same_numbers_of_modules_that_differ_are_a_field(capsys):
    sizes = [(3, 4), (4, 5), (5, 6)]
    model = nnx.Dict(tower=nnx.List([nnx.Dict(fc=linear(i, o)) for i, o in sizes]))
    tensors = {f"net.{n}.dense.weight": (o, i) for n, (i, o) in enumerate(sizes)}
    rules, comments, report = suggested(tensors, model, capsys)
    assert (rules, comments) == ({"net.{n}.dense": "tower.{n}.fc"}, [])
    assert len(report.loaded) == 3


def test_stages_that_are_counted_from_one(capsys):
    """A convolutional net: only the first layers of its stages can be nothing else."""
    block = lambda i, o: nnx.Dict(conv1=linear(i, o), conv2=linear(o, o))
    sizes = [(3, 4), (4, 4), (4, 6), (6, 6), (6, 6), (6, 9)]
    stages = [[0, 1], [2, 3, 4], [5]]
    model = nnx.Dict(
        stages=nnx.List([nnx.List([block(*sizes[k]) for k in stage]) for stage in stages])
    )
    tensors = {}
    for n, stage in enumerate(stages, 1):
        for m, k in enumerate(stage):
            i, o = sizes[k]
            tensors |= {
                f"body.layer{n}.{m}.c1.weight": (o, i),
                f"body.layer{n}.{m}.c2.weight": (o, o),
            }
    rules, comments, report = suggested(tensors, model, capsys)
    assert comments == []
    assert rules["body.layer2.{n}.c2"] == "stages.1.{n}.conv2"
    assert len(rules) <= 6
    for row in report.loaded:
        _, layer, block_of, conv, _ = row.name.split(".")
        expected = f"stages/{int(layer[-1]) - 1}/{block_of}/conv{conv[-1]}/kernel"
        assert row.ours == expected
    assert len(report.loaded) == len(tensors)


def test_two_modules_of_theirs_for_one_of_ours(capsys):
    """A short rule that most follow, and one for the others."""
    model = nnx.Dict(net=nnx.Dict(a=linear(2, 3), b=linear(3, 4), c=linear(4, 5)))
    tensors = {"p.a.weight": (3, 2), "p.b.weight": (4, 3), "q.c.weight": (5, 4)}
    rules, _, report = suggested(tensors, model, capsys)
    assert (rules, report.problems) == ({"p": "net", "q.c": "net.c"}, ())


def test_what_is_ambiguous_is_a_comment(capsys):
    model = nnx.Dict(one=Linear(2, 2, rngs=RNGS), two=Linear(3, 3, rngs=RNGS))
    tensors = {f"{name}.weight": (2, 2) for name in "xy"} | {f"{name}.bias": (2,) for name in "xy"}
    tensors["z.weight"] = (7, 7)
    rules, comments, _ = suggested(tensors, model, capsys)
    assert rules == {}
    assert comments == [
        "one could be x or y",
        "two: nothing like it in the source",
        "z.weight (of the source) (7, 7): nothing like it in the model",
    ]


def test_names_that_say_another_order_are_not_swapped(capsys):
    """Norms before and after, of equal shapes: their names decide, or nothing does."""
    norm = functools.partial(LayerNorm, 4, use_bias=False, rngs=RNGS)
    model = nnx.Dict(last=norm(), first=norm())
    rules, comments, _ = suggested({"one.weight": (4,), "two.weight": (4,)}, model, capsys)
    assert rules == {}
    assert len(comments) == 2
    rules, _, _ = suggested({"n.last.weight": (4,), "m.first.weight": (4,)}, model, capsys)
    assert rules == {"n": "", "m.first": "first"} or rules == {"m": "", "n.last": "last"}
