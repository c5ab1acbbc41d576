"""Rows of the recurrent layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import moduli
import moduli_layers as layers
from layer_rows.by_torch import by_torch, torch_module
from layer_rows.row import Bad, Row, value
from moduli.errors import ShapeError
from moduli_layers.errors import DtypeError

Step = Callable[[Any, Any, np.ndarray], Any]


def sigmoid(x: np.ndarray) -> np.ndarray:
    """The logistic function."""
    return 1 / (1 + np.exp(-x))


def simple(cell: Any, h: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Elman's step: (h, x) -> h."""
    total = x @ value(cell.dense_i.kernel) + value(cell.dense_i.bias)
    total = total + h @ value(cell.dense_h.kernel)
    return np.tanh(total + h if cell.residual else total)


def gru(cell: Any, h: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The step of a gated recurrent unit, gate by gate: (h, x) -> h."""
    size = cell.hidden_features
    of_gate = [slice(n * size, (n + 1) * size) for n in range(3)]
    kernel, bias = value(cell.dense_i.kernel), value(cell.dense_i.bias)
    recurrent = value(cell.dense_h.kernel)
    of_x = [x @ kernel[:, part] + bias[part] for part in of_gate]
    of_h = [h @ recurrent[:, part] for part in of_gate]
    r, z = sigmoid(of_x[0] + of_h[0]), sigmoid(of_x[1] + of_h[1])
    return (1 - z) * np.tanh(of_x[2] + r * of_h[2]) + z * h


def lstm(cell: Any, carry: Any, x: np.ndarray) -> Any:
    """The step of an LSTM, gate by gate: ((c, h), x) -> (c, h)."""
    (c, h), size = carry, cell.hidden_features
    kernel, recurrent = value(cell.dense_i.kernel), value(cell.dense_h.kernel)
    bias = value(cell.dense_h.bias)
    parts = [slice(n * size, (n + 1) * size) for n in range(4)]
    i, f, g, o = (x @ kernel[:, p] + h @ recurrent[:, p] + bias[p] for p in parts)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return c, sigmoid(o) * np.tanh(c)


def run(step: Step, cell: Any, x: np.ndarray) -> tuple[Any, np.ndarray]:
    """Runs one sequence (time, features) from a carry of zeros: (carry, outputs)."""
    zeros = np.zeros(cell.hidden_features)
    carry: Any = (zeros, zeros) if step is lstm else zeros
    outputs = []
    for now in np.asarray(x, np.float64):
        carry = step(cell, carry, now)
        outputs.append(carry[1] if step is lstm else carry)
    return carry, np.array(outputs).reshape((-1, cell.hidden_features))


def each(step: Step, order: Callable[[np.ndarray], np.ndarray], back: Any = lambda y: y) -> Any:
    """Makes the reference of a RNN: every sequence alone, in an order."""

    def reference(layer: Any, x: Any) -> np.ndarray:
        x = np.asarray(x)
        flat = x.reshape((-1, *x.shape[-2:]))
        outputs = [back(run(step, layer.cell, order(sequence))[1]) for sequence in flat]
        return np.stack(outputs).reshape((*x.shape[:-1], -1))

    return reference


class WithLengths(moduli.Module):
    """Outputs up to each sequence's end, and the last carry, as one array."""

    def __init__(self, rnn: Any) -> None:
        self.rnn = rnn

    def __call__(self, x: Any, lengths: Any) -> Any:
        """Runs the network; the carry's arrays stand behind the last step."""
        carry, y = self.rnn(x, seq_lengths=lengths, return_carry=True)
        counts = jnp.arange(x.shape[1], dtype=lengths.dtype)[None] < lengths[:, None]
        y = jnp.where(counts[..., None], y, 0)
        last = jnp.stack(carry if isinstance(carry, tuple) else [carry], 1)
        return jnp.concatenate([y, last.astype(y.dtype)], 1)


def with_lengths(step: Step, order: Any = lambda x: x, back: Any = lambda y: y) -> Any:
    """Makes the reference of :class:`WithLengths`: every sequence cut off at its end."""

    def reference(layer: Any, x: Any, lengths: Any) -> np.ndarray:
        rows = []
        for sequence, length in zip(np.asarray(x), np.asarray(lengths), strict=True):
            carry, y = run(step, layer.rnn.cell, order(sequence[:length]))
            padding = np.zeros((len(sequence) - length, y.shape[-1]))
            last = carry if isinstance(carry, tuple) else (carry,)
            rows.append(np.concatenate([back(y), padding, last]))
        return np.stack(rows)

    return reference


class OneStep(moduli.Module):
    """A cell's call with given carries, as a layer: the outputs next to the new carry."""

    def __init__(self, cell: Any) -> None:
        self.cell = cell

    def __call__(self, x: Any, *carry: Any) -> Any:
        """Makes one step."""
        new, y = self.cell(carry if len(carry) > 1 else carry[0], x)
        arrays = new if isinstance(new, tuple) else (new,)
        return jnp.concatenate([y, *(array.astype(y.dtype) for array in arrays)], -1)


def step_by_torch(layer: Any, x: Any, *carry: Any) -> np.ndarray:
    """The same by PyTorch's cell, whose carry is (h, c) and whose output is h."""
    torch = pytest.importorskip("torch")

    x, *arrays = (torch.tensor(np.asarray(array, np.float64)) for array in (x, *carry))
    module = torch_module(layer.cell)
    with torch.no_grad():
        if len(arrays) == 1:
            h = module(x, arrays[0])
            return torch.cat([h, h], -1).numpy()
        h, c = module(x, (arrays[1], arrays[0]))
    return torch.cat([h, c, h], -1).numpy()


def _lengths(*values: int) -> Callable[[np.random.Generator], np.ndarray]:
    return lambda rng: np.array(values, np.int32)


def _rnn(name: str, kind: Any, reference: Any = by_torch, **kwargs: Any) -> Row:
    options = ("activation_fn", "residual", "use_hidden_bias")
    of_cell = {key: kwargs.pop(key) for key in options if key in kwargs}

    def build(rngs: moduli.Rngs) -> Any:
        return layers.RNN(kind(3, 4, **of_cell, rngs=rngs), **kwargs)

    time_major = kwargs.get("time_major", False)
    shape = (5, 2) if time_major else (2, 5)
    bad = Bad(((3,),), ShapeError, r"^RNN\(\w+\) expects inputs of shape \(.*\) with 1 axis of")
    return Row(
        f"rnn-{name}",
        build,
        ((*shape, 3),),
        (*shape, 4),
        reference,
        batched=not time_major,
        bad=(bad,),
        torch="residual" not in of_cell,
    )


def _lengths_row(name: str, kind: Any, step: Step, flips: tuple[Any, ...], **kwargs: Any) -> Row:
    arrays = 2 if step is lstm else 1
    x = (3, 5, 3)
    return Row(
        f"rnn-lengths-{name}",
        lambda rngs: WithLengths(layers.RNN(kind(3, 4, rngs=rngs), **kwargs)),
        (x, _lengths(5, 2, 0)),
        (3, 5 + arrays, 4),
        with_lengths(step, *flips),
        bad=(
            Bad((x, _lengths(5, 2)), ShapeError, r"^RNN expects seq_lengths of .* shape \(3,\), g"),
            Bad((x, (3,)), DtypeError, r"^RNN expects seq_lengths of integers, got float32; write"),
        ),
    )


def _bidirectional(name: str, kind: Any, time_major: bool = False) -> Row:
    def build(rngs: moduli.Rngs) -> Any:
        rnns = [layers.RNN(kind(3, 4, rngs=rngs)) for _ in range(2)]
        return layers.Bidirectional(*rnns, time_major=time_major)

    shape = (5, 2) if time_major else (2, 5)
    return Row(
        f"bidirectional-{name}",
        build,
        ((*shape, 3),),
        (*shape, 8),
        by_torch,
        batched=not time_major,
    )


def _cell(name: str, kind: Any, init: dict[str, float], **kwargs: Any) -> Row:
    h = (2, 4)
    carries = (h, h) if "LSTM" in kind.__name__ else (h,)
    wrong = ((2, 5),) * len(carries)
    return Row(
        f"cell-{name}",
        lambda rngs: OneStep(kind(3, 4, **kwargs, rngs=rngs)),
        ((2, 3), *carries),
        (2, 4 * (1 + len(carries))),
        step_by_torch,
        bad=(
            Bad(((2, 3), *wrong), ShapeError, r"expects [ch] of shape \(2, 4\) in the carry, got"),
        ),
        init=(lambda rngs: kind(64, 100, rngs=rngs), init),
    )


def _turned(array: np.ndarray) -> np.ndarray:
    return array[::-1]


def _same(array: np.ndarray) -> np.ndarray:
    return array


def _gates(kernel: str, recurrent: str, names: str) -> dict[str, float]:
    return {
        **{f"{kernel}{n}/kernel": 1 / 8 for n in names.split()},
        **{f"{recurrent}{n}/kernel": 1 / 10 for n in names.replace("_", "").split()},
        **{f"{recurrent}{n}/bias": 0 for n in names.replace("_", "").split()},
    }


_FUSED_LSTM = {"dense_i/kernel": 1 / 8, "dense_h/kernel": 1 / 20, "dense_h/bias": 0.0}
_GRU = {"dense_i/kernel": 1 / 8, "dense_h/kernel": 300**-0.5, "dense_i/bias": 0.0}
_SIMPLE = {"dense_i/kernel": 1 / 8, "dense_h/kernel": 1 / 10, "dense_i/bias": 0.0}

ROWS: list[Row] = [
    _cell("simple", layers.SimpleCell, _SIMPLE),
    _cell("gru", layers.GRUCell, _GRU),
    _cell("lstm", layers.LSTMCell, _gates("i", "h", "i f_ g o")),
    _cell("lstm-optimized", layers.OptimizedLSTMCell, _FUSED_LSTM),
    _rnn("simple", layers.SimpleCell),
    _rnn("simple-residual", layers.SimpleCell, each(simple, _same), residual=True),
    _rnn("gru", layers.GRUCell),
    _rnn("gru-hidden-bias", layers.GRUCell, use_hidden_bias=True),
    _rnn("gru-definition", layers.GRUCell, each(gru, _same)),
    _rnn("lstm", layers.LSTMCell),
    _rnn("lstm-optimized", layers.OptimizedLSTMCell),
    _rnn("lstm-definition", layers.OptimizedLSTMCell, each(lstm, _same)),
    _rnn("time-major", layers.GRUCell, time_major=True),
    _rnn("unroll", layers.GRUCell, unroll=2),
    _rnn("ahead", layers.GRUCell, project_ahead=True),
    _rnn("ahead-lstm", layers.LSTMCell, project_ahead=True, time_major=True),
    _rnn("reverse", layers.GRUCell, each(gru, _turned), reverse=True),
    _rnn(
        "reverse-keep-order",
        layers.OptimizedLSTMCell,
        each(lstm, _turned, _turned),
        reverse=True,
        keep_order=True,
    ),
    _lengths_row("lstm", layers.OptimizedLSTMCell, lstm, ()),
    _lengths_row("gru-ahead", layers.GRUCell, gru, (), project_ahead=True),
    _lengths_row("reverse", layers.GRUCell, gru, (_turned,), reverse=True),
    _lengths_row(
        "reverse-keep-order",
        layers.SimpleCell,
        simple,
        (_turned, _turned),
        reverse=True,
        keep_order=True,
    ),
    Row(
        "rnn-no-batch",
        lambda rngs: layers.RNN(layers.GRUCell(3, 4, rngs=rngs)),
        ((5, 3),),
        (5, 4),
        by_torch,
        batched=False,
    ),
    Row(
        "rnn-two-batch-axes",
        lambda rngs: layers.RNN(layers.GRUCell(3, 4, rngs=rngs)),
        ((2, 3, 5, 3),),
        (2, 3, 5, 4),
        each(gru, _same),
        torch=False,
    ),
    _bidirectional("lstm", layers.OptimizedLSTMCell),
    _bidirectional("gru", layers.GRUCell, time_major=True),
]
