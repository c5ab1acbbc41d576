"""The table of layers: each row is one layer that every ``test_layer_*.py`` runs.

A new layer is one new row, in the file of its family under ``layer_rows``. The references are
NumPy, SciPy, PyTorch or flax in float64, and take the layer only to read its parameters. A function
(pooling, an activation) has a row by way of a small Module that calls it.
"""

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
