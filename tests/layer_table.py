"""The table of layers: each row is one layer that every ``test_layer_*.py`` runs.

A new layer is one new row, in the file of its family under ``layer_rows``. The references are
NumPy, SciPy, PyTorch or flax in float64, and take the layer only to read its parameters. A function
(pooling, an activation) has a row by way of a small Module that calls it.

Values, gradients, dtypes, errors and tracing without arrays are tested on every row of ``TABLE``:
they are what a layer's own code decides. Copies, files, splitting, modes and transforms see a model
as Variables, Modules, containers and static values, and are tested on ``STRUCTURES``.
"""

from __future__ import annotations

import os
from typing import Any

from layer_rows import (
    activations,
    adapted,
    attention,
    containers,
    conv,
    dropout,
    linear,
    norm,
    pooling,
    recurrent,
    weight_norms,
)
from layer_rows.row import Bad as Bad
from layer_rows.row import Row as Row
from layer_rows.row import make_inputs as make_inputs

import moduli

FAMILIES = (
    linear,
    adapted,
    activations,
    attention,
    conv,
    norm,
    dropout,
    pooling,
    containers,
    recurrent,
    weight_norms,
)

TABLE: list[Row] = [row for family in FAMILIES for row in family.ROWS]

assert len({row.name for row in TABLE}) == len(TABLE), "two rows of the table have one name"

# One row for each structure that occurs in the table; where a layer runs other transforms inside,
# one for each of its ways. ``test_layer_table.py`` names what is missing.
REPRESENTATIVES = """
    celu adaptive_avg_pool-2x8x3 avg_pool one_hot
    rope rope-table
    prelu embed embed-attend
    linear linear-no-bias linear_general-heads einsum
    lora lora-wraps lora_linear
    mlp mlp-batch-norm sequential sequential-conv-norm sequential-shared
    stack stack-looped stack-remat
    conv-1d conv-pad-int conv-mask
    conv_transpose-same conv_transpose-pad-int conv_transpose-mask
    batch_norm-vector-features
    layer_norm-features layer_norm-no-parameters layer_norm-all-but-batch
    rms_norm-features rms_norm-no-scale rms_norm-several-feature-axes
    group_norm-vectors group_norm-no-parameters group_norm-last-axis-only
    instance_norm-sequences instance_norm-no-parameters instance_norm-two-feature-axes
    dropout-half stochastic_depth-row
    spectral_norm-converged spectral_norm-conv
    weight_norm-linear weight_norm-no-scale weight_norm-one-length weight_norm-conv
    attention-self attention-causal attention-mask attention-cache
    attention-dropout attention-normalize-qk
    cell-simple cell-gru cell-lstm cell-lstm-optimized
    rnn-simple rnn-gru rnn-lstm rnn-lstm-optimized rnn-ahead
    rnn-lengths-lstm rnn-lengths-gru-ahead rnn-lengths-reverse-keep-order
    bidirectional-lstm bidirectional-gru
""".split()

EVERY = bool(os.environ.get("EVERY_ROW"))  # set by `nox -s long`
STRUCTURES: list[Row] = [row for row in TABLE if EVERY or row.name in REPRESENTATIVES]


def structure(row: Row) -> frozenset[Any]:
    """Returns what the graph sees of a layer: what kinds of things it is made of.

    Those are the types of its Modules, containers, Variables and static values, which hooks and
    other metadata its Variables have, whether an object stands in two places, whether a call draws
    random numbers, and whether evaluation is another computation.
    """
    model = moduli.eval_shape(lambda: row.build(moduli.Rngs(0)))
    kinds: set[Any] = {("random", row.random), ("modes", row.reference_eval is not None)}
    held: list[Any] = []
    for _, node in moduli.iter_graph(model):
        is_function = callable(node) and not isinstance(node, moduli.Module)
        kinds.add("function" if is_function else type(node))
        if isinstance(node, moduli.Variable):
            kinds.add((type(node), *sorted(node.get_metadata())))
        elif isinstance(node, moduli.Module):
            held += node if isinstance(node, moduli.List) else vars(node).values()
    seen: set[int] = set()
    for thing in held:
        if isinstance(thing, (moduli.Variable, moduli.Module)):
            if id(thing) in seen:
                kinds.add(("in two places", type(thing)))
            seen.add(id(thing))
    return frozenset(kinds)
