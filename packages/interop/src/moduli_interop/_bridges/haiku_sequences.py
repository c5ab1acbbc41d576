"""Cores, recurrent networks and attention of haiku."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

import moduli
from moduli_interop._bridges.arguments import build, fill
from moduli_interop._bridges.bridge import Conversion, LayerRule
from moduli_interop._bridges.conventions import HaikuCore, check_plain
from moduli_interop._bridges.haiku_values import read, write

__all__ = ["sequence_rules"]

_GRU = (
    "which haiku computes otherwise: there the reset gate multiplies the state before the product "
    "with the candidate's kernel, here what comes out of it"
)


def sequence_rules() -> list[LayerRule]:
    """Returns the rules of cores, recurrent networks and attention."""
    import haiku as hk

    def no_gru(part: Any, convert: Conversion) -> Any:
        convert.refuse(part, _GRU)

    return [
        LayerRule(moduli.Module, hk.LSTM, _from_lstm),
        LayerRule(moduli.Module, hk.VanillaRNN, _from_vanilla),
        LayerRule(moduli.GRUCell, hk.GRU, no_gru, no_gru),
        LayerRule(HaikuCore, hk.RNNCore, None, lambda part, convert: _core(part.cell, convert)),
        LayerRule(moduli.OptimizedLSTMCell, _CarryFirst, _from_carry_first, _to_carry_first),
        LayerRule(moduli.LSTMCell, _CarryFirst, None, _to_carry_first),
        LayerRule(moduli.SimpleCell, _CarryFirst, None, _to_carry_first),
        LayerRule(moduli.RNN, _Unrolled, _from_unrolled, _to_unrolled),
        LayerRule(moduli.Bidirectional, _BothWays, _from_both_ways, _to_both_ways),
        LayerRule(moduli.Module, hk.MultiHeadAttention, _from_attention),
        LayerRule(
            moduli.MultiHeadAttention,
            _SelfAttention,
            lambda part, convert: convert(part.layer, "layer"),
            lambda part, convert: _SelfAttention(_to_attention(part, convert)),
        ),
    ]


# -- cores ---------------------------------------------------------------------------------------


def _gates(array: Any, swap: int) -> list[Any]:
    """Returns an array's four gates, with the second and third in the other library's order."""
    i, second, third, o = jnp.split(array, 4, axis=-1)
    return [i, third, second, o] if swap else [i, second, third, o]


def _from_lstm(part: Any, convert: Conversion) -> Any:
    held = read(part, convert, "/linear")
    size = part.hidden_size
    kernel = jnp.concatenate(_gates(held["w"], True), axis=-1)
    i, f, g, o = _gates(held["b"], True)
    inputs = kernel.shape[0] - size
    cell = build(moduli.OptimizedLSTMCell, inputs, size, param_dtype=kernel.dtype)
    values = {
        "dense_i.kernel": kernel[:inputs],
        "dense_h.kernel": kernel[inputs:],
        "dense_h.bias": jnp.concatenate([i, f + 1, g, o]),  # haiku adds one in the call
    }
    return HaikuCore(fill(cell, values))


def _from_vanilla(part: Any, convert: Conversion) -> Any:
    first, second = read(part, convert, "/linear"), read(part, convert, "/linear_1")
    inputs = first["w"].shape[0]
    cell = build(
        moduli.SimpleCell,
        inputs,
        part.hidden_size,
        dtype=None,
        activation_fn=moduli.relu,
        param_dtype=first["w"].dtype,
    )
    bias = first["b"] + second["b"] if part.double_bias else first["b"]
    values = {"dense_i.kernel": first["w"], "dense_h.kernel": second["w"], "dense_i.bias": bias}
    return HaikuCore(fill(cell, values))


def _core(cell: Any, convert: Conversion) -> Any:
    """Makes haiku's core of a cell of ours."""
    import haiku as hk

    check_plain(cell, convert)
    if type(cell) is moduli.GRUCell:
        convert.refuse(cell, _GRU)
    if type(cell) is moduli.SimpleCell:
        if cell.activation_fn not in (moduli.relu, jax.nn.relu) or cell.residual:
            convert.refuse(cell, "whose activation_fn is not relu, or which is residual")
        core = hk.VanillaRNN(cell.hidden_features, double_bias=False)
        write(core, convert, {"w": cell.dense_i.kernel, "b": cell.dense_i.bias}, "/linear")
        write(core, convert, {"w": cell.dense_h.kernel}, "/linear_1")
        return core
    if type(cell) not in (moduli.OptimizedLSTMCell, moduli.LSTMCell):
        convert.refuse(cell, "of which haiku has no core")
    if cell.gate_fn is not moduli.sigmoid or cell.activation_fn is not moduli.tanh:
        convert.refuse(cell, "with a gate_fn or activation_fn of its own")
    core = hk.LSTM(cell.hidden_features)

    def kernel() -> Any:
        if type(cell) is moduli.LSTMCell:
            layers = [(cell.ii, cell.ig, cell.if_, cell.io), (cell.hi, cell.hg, cell.hf, cell.ho)]
            rows = [jnp.concatenate([x.kernel.value for x in four], axis=-1) for four in layers]
        else:
            both = (cell.dense_i.kernel, cell.dense_h.kernel)
            rows = [jnp.concatenate(_gates(x.value, True), axis=-1) for x in both]
        return jnp.concatenate(rows)

    def bias() -> Any:
        if type(cell) is moduli.LSTMCell:
            four: list[Any] = [cell.hi, cell.hg, cell.hf, cell.ho]
            i, g, f, o = (x.bias.value for x in four)
        else:
            i, g, f, o = _gates(cell.dense_h.bias.value, True)
        return jnp.concatenate([i, g, f - 1, o])

    write(core, convert, {"w": kernel, "b": bias}, "/linear")
    return core


class _CarryFirst:
    """Calls a core of haiku as our cells are: ``(carry, inputs) -> (carry, outputs)``.

    Args:
      core: the core.
    """

    def __init__(self, core: Any) -> None:
        self.core = core

    def __call__(self, carry: Any, inputs: Any) -> Any:
        """Makes one step."""
        import haiku as hk

        if not isinstance(self.core, hk.LSTM):
            outputs, carry = self.core(inputs, carry)
            return carry, outputs
        outputs, state = self.core(inputs, hk.LSTMState(carry[1], carry[0]))
        return (state.cell, state.hidden), outputs


def _from_carry_first(part: Any, convert: Conversion) -> Any:
    return convert(part.core, "cell").cell


def _to_carry_first(part: Any, convert: Conversion) -> Any:
    return _CarryFirst(_core(part, convert))


class _Unrolled:
    """Runs a core of haiku over sequences, as our RNN does.

    Args:
      core: the core.
      time_major: whether the first axis of the inputs is time; else the second.
      reverse: whether it begins at the end.
      keep_order: whether the outputs stand in the order of the inputs then.
    """

    def __init__(self, core: Any, time_major: bool, reverse: bool, keep_order: bool) -> None:
        self.core, self.time_major = core, time_major
        self.reverse, self.keep_order = reverse, keep_order

    def __call__(self, inputs: Any) -> Any:
        """Returns the outputs of every step."""
        import haiku as hk

        inputs = jnp.asarray(inputs)
        time = 0 if self.time_major or inputs.ndim == 2 else 1
        state = self.core.initial_state(None if inputs.ndim == 2 else inputs.shape[1 - time])
        state = jax.tree.map(lambda x: x.astype(inputs.dtype), state)
        outputs: Any = hk.dynamic_unroll(
            self.core, inputs, state, time_major=time == 0, reverse=self.reverse
        )[0]
        return jnp.flip(outputs, time) if self.reverse and not self.keep_order else outputs


def _from_unrolled(part: Any, convert: Conversion) -> Any:
    return moduli.RNN(
        convert(part.core, "cell").cell,
        time_major=part.time_major,
        reverse=part.reverse,
        keep_order=part.keep_order,
        rngs=False,
    )


def _to_unrolled(part: Any, convert: Conversion) -> Any:
    check_plain(part, convert)
    before, convert.path = convert.path, (*convert.path, "cell")
    core = _core(part.cell, convert)
    convert.path = before
    return _Unrolled(core, part.time_major, part.reverse, part.keep_order)


class _BothWays:
    """Runs two networks over sequences, the second one from the end, as our Bidirectional does.

    Args:
      forward: the first.
      backward: the second.
      merge: makes one array of their outputs.
    """

    def __init__(self, forward: _Unrolled, backward: _Unrolled, merge: Any) -> None:
        self.forward, self.backward, self.merge = forward, backward, merge

    def __call__(self, inputs: Any) -> Any:
        """Returns the merged outputs of every step."""
        return self.merge(self.forward(inputs), self.backward(inputs))


def _to_both_ways(part: Any, convert: Conversion) -> Any:
    check_plain(part, convert)
    made = []
    for name in ("forward_rnn", "backward_rnn"):
        network = convert(getattr(part, name), name)
        if not isinstance(network, _Unrolled) or network.reverse:
            convert.refuse(part, "around other networks than two RNNs that run ahead")
        network.time_major = part.time_major
        made.append(network)
    backward = _Unrolled(made[1].core, part.time_major, True, True)
    return _BothWays(made[0], backward, part.merge_fn)


def _from_both_ways(part: Any, convert: Conversion) -> Any:
    major = part.forward.time_major
    networks = [
        moduli.RNN(convert(rnn.core, name).cell, time_major=major, rngs=False)
        for name, rnn in (("forward_rnn", part.forward), ("backward_rnn", part.backward))
    ]
    return moduli.Bidirectional(*networks, merge_fn=part.merge, time_major=major, rngs=False)


# -- attention -----------------------------------------------------------------------------------


def _from_attention(part: Any, convert: Conversion) -> Any:
    held = {name: read(part, convert, f"/{name}") for name in ("query", "key", "value", "linear")}
    inputs = {name: values["w"].shape[0] for name, values in held.items()}
    if part.value_size != part.key_size or inputs["key"] != inputs["value"]:
        convert.refuse(part, "whose keys and values have sizes of their own")
    layer = build(
        moduli.MultiHeadAttention,
        part.num_heads,
        inputs["query"],
        part.num_heads * part.key_size,
        part.model_size,
        in_kv_features=inputs["key"],
        use_bias=part.with_bias,
        decode=False,
        param_dtype=held["query"]["w"].dtype,
    )
    for name, values in held.items():
        inner = layer.out if name == "linear" else getattr(layer, name)
        bias = values["b"].reshape(inner.bias.shape) if part.with_bias else None
        fill(inner, {"kernel": values["w"].reshape(inner.kernel.shape), "bias": bias})
    return layer


class _SelfAttention:
    """Calls haiku's attention as ours is, with the queries alone or with keys and values.

    Args:
      layer: the ``hk.MultiHeadAttention``.
    """

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def __call__(self, query: Any, key: Any = None, value: Any = None, mask: Any = None) -> Any:
        """Calls the layer."""
        key = query if key is None else key
        return self.layer(query, key, key if value is None else value, mask)


def _to_attention(layer: Any, convert: Conversion) -> Any:
    import haiku as hk

    check_plain(layer, convert)
    odd = ("rotary", "normalize_qk", "decode", "dropout_rate", "window")
    used = [name for name in odd if getattr(layer, name, None)]
    used += ["num_kv_heads"] if layer.num_kv_heads != layer.num_heads else []
    used += ["several out_features"] if not isinstance(layer.out_features, int) else []
    if used:
        convert.refuse(layer, f"with {', '.join(used)}")
    made = hk.MultiHeadAttention(
        layer.num_heads,
        layer.head_dim,
        w_init=hk.initializers.VarianceScaling(),
        with_bias=layer.use_bias,
        model_size=layer.out_features,
    )
    for name in ("query", "key", "value", "linear"):
        inner = layer.out if name == "linear" else getattr(layer, name)
        columns = layer.out_features if name == "linear" else layer.num_heads * layer.head_dim
        write(
            made, convert, {"w": inner.kernel}, f"/{name}",
            make=lambda kernel, columns=columns: kernel.reshape((-1, columns)),
        )  # fmt: skip
        if inner.bias is not None:
            write(made, convert, {"b": inner.bias}, f"/{name}", make=lambda b: b.reshape(-1))
    return made
