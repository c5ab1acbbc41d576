"""Recurrent networks: a cell over all steps of a sequence, in one direction or in both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

import moduli
from moduli.errors import RngError, ShapeError
from moduli.lowlevel import key_for
from moduli_layers._arguments import checked
from moduli_layers._cells.base import Carry, CheckedCell, RNNCellBase, Streams
from moduli_layers._cells.gru import GRUCell
from moduli_layers._cells.lstm import LSTMCell, OptimizedLSTMCell
from moduli_layers._cells.simple import SimpleCell
from moduli_layers._checks import shape_text
from moduli_layers._laid_out import laid_out_as
from moduli_layers.counterparts import Counterpart, Tensor, TensorNames
from moduli_layers.errors import ArgumentError, DtypeError

__all__ = ["RNN", "Bidirectional", "flip_sequences"]

_TORCH_LAYERS = {
    LSTMCell: "torch.nn.LSTM",
    OptimizedLSTMCell: "torch.nn.LSTM",
    GRUCell: "torch.nn.GRU",
    SimpleCell: "torch.nn.RNN",
}


Network = Callable[..., Any]
"""What runs along a sequence: an RNN, or anything that is called as one."""


class RNN(moduli.Module):
    """Runs a recurrent cell over a sequence, in a compiled loop.

    What a cell writes (random streams, statistics) is carried from step to step and seen outside.

    Attributes:
      cell: the cell.
      rngs: the stream from which a random first carry is drawn, or None.

    Args:
      cell: a :class:`RNNCellBase`, or a Module that has its methods.
      time_major: whether inputs and outputs are (time, ..., features); else (..., time, features).
      return_carry: whether to return (carry, outputs); else outputs.
      reverse: start at the end of the sequence.
      keep_order: with ``reverse``, return the outputs in the order of the inputs; else in the order
        in which they were computed, the last step's first.
      unroll: how many steps to write out in one round of the compiled loop.
      state_axes: filters over the cell's Variables, and what the loop does with each kind:
        :class:`moduli.Carry` carries it, an int slices it along that axis, so that each step has
        its own. By default everything is carried.
      broadcast_rngs: filter over the cell's random streams (as the name ``"dropout"``) that give
        all steps of a call the same keys, as variational dropout needs; the next call gets others.
      rngs: where keys for a random first carry come from, if the cell has a ``carry_init``: True
        makes a stream of its own from the seed 0, a :class:`moduli.Rngs` or stream gives a fork of
        its stream ``carry``, False is none.
      project_ahead: call the cell's layers for the inputs once, on all steps together, before the
        loop: one large product in the place of many small ones, and half of the products of the
        backward loop. It takes memory for what these layers return for all steps (an LSTM's four
        gates). Where it pays depends on machine and sizes: on a CPU it does for few, wide sequences
        (batch 8, width 512) and does not for many (batch 32, width 256).

    Raises:
      ArgumentError: ``cell`` is no cell; (in the call) it has nothing to project ahead.
      RngError: ``rngs`` is none of these.

    Example:
      >>> import jax.numpy as jnp, moduli
      >>> from moduli_layers import RNN, OptimizedLSTMCell
      >>> rnn = RNN(OptimizedLSTMCell(3, 4, rngs=moduli.Rngs(0)))
      >>> x = jnp.ones((2, 5, 3), jnp.float32)  # (batch, time, features)
      >>> rnn(x).shape
      (2, 5, 4)
      >>> (c, h), outputs = rnn(x, seq_lengths=jnp.array([5, 3]), return_carry=True)
      >>> bool((h[1] == outputs[1, 2]).all())
      True
    """

    __module__ = "moduli_layers"

    @checked
    def __init__(
        self,
        cell: RNNCellBase,
        *,
        time_major: bool = False,
        return_carry: bool = False,
        reverse: bool = False,
        keep_order: bool = False,
        unroll: int | bool = 1,
        state_axes: Mapping[Any, Any] | None = None,
        broadcast_rngs: Any = None,
        rngs: Streams | bool = True,
        project_ahead: bool = False,
    ) -> None:
        if not callable(cell) or not hasattr(cell, "initialize_carry") or isinstance(cell, type):
            got = cell.__name__ if isinstance(cell, type) else type(cell).__name__
            raise ArgumentError(
                f"{type(self).__name__} expects a recurrent cell, got "
                f"{'the class ' if isinstance(cell, type) else 'a '}{got}; write "
                f"{type(self).__name__}(moduli_layers.OptimizedLSTMCell(3, 4, rngs=rngs))"
            )
        self.cell = cell
        self.time_major = time_major
        self.return_carry = return_carry
        self.reverse = reverse
        self.keep_order = keep_order
        self.unroll = unroll
        self.state_axes = moduli.StateAxes(state_axes) if state_axes else None
        self.broadcast_rngs = broadcast_rngs
        self.project_ahead = project_ahead
        self.rngs = _own_stream(self, rngs)

    @property
    def torch_names(self) -> tuple[TensorNames, ...]:
        """Those of PyTorch's layer with this cell, in either direction; or the cell's."""
        cell = TensorNames()
        theirs = _tensors_of(self.cell)
        return (TensorNames(_below("cell.", theirs, "_l0")), cell) if theirs else (cell,)

    @property
    def torch_counterpart(self) -> Counterpart:
        """The layer of PyTorch that computes the same; its cell decides which."""
        name = _TORCH_LAYERS.get(type(self.cell))
        if name is None or self.reverse:
            raise AttributeError(
                f"torch has no counterpart of {type(self).__name__} with this cell"
            )
        theirs: Counterpart = self.cell.torch_counterpart  # type: ignore[attr-defined]
        return Counterpart(
            name,
            _below("cell.", theirs.tensors, "_l0"),
            {**_settings_below("cell", theirs), "batch_first": lambda rnn: not rnn.time_major},
            output=_first,
        )

    def __call__(
        self,
        inputs: ArrayLike,
        *,
        initial_carry: Carry | None = None,
        seq_lengths: ArrayLike | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        rngs: Streams | None = None,
    ) -> Any:
        """Runs the cell over the sequence.

        Args:
          inputs: array of shape (..., time, features), or (time, ..., features) if time_major.
          initial_carry: the carry of the first step; by default what the cell's
            ``initialize_carry`` makes.
          seq_lengths: integers of the shape of the batch: how many steps of each sequence count,
            from its start (0 to time). The returned carry is that after the last step that counts,
            and ``reverse`` turns round only those steps. Outputs behind them have no meaning. One
            number holds for all of them.
          return_carry: in the place of the attribute.
          time_major: in the place of the attribute.
          reverse: in the place of the attribute.
          keep_order: in the place of the attribute.
          rngs: where keys for a random first carry come from, in the place of the layer's stream.

        Returns:
          The cell's outputs of all steps, the time on the axis on which the inputs have it; with
          ``return_carry`` the tuple (carry, outputs).

        Raises:
          ShapeError: inputs, carry or lengths have a shape that does not fit.
          DtypeError: the lengths are no integers, or the carry holds integers.
        """
        return_carry = bool(self.return_carry if return_carry is None else return_carry)
        time_major = bool(self.time_major if time_major is None else time_major)
        reverse = bool(self.reverse if reverse is None else reverse)
        keep_order = bool(self.keep_order if keep_order is None else keep_order)

        inputs = jnp.asarray(inputs)
        time_axis = self._time_axis(inputs, time_major)
        steps = jnp.moveaxis(inputs, time_axis, 0)  # (time, *batch, *features)
        batch = steps.shape[1 : steps.ndim - self.cell.num_feature_axes]
        lengths = None if seq_lengths is None else self._lengths(seq_lengths, batch, steps.shape[0])
        if initial_carry is None:
            carry = self.cell.initialize_carry(steps.shape[1:], self._carry_rngs(rngs, steps))
        else:
            carry = self._checked_carry(initial_carry, batch)

        carry = laid_out_as(carry, steps, range(1, 1 + len(batch)))
        # a loop that runs backwards needs no flips; with lengths each sequence has its own end, and
        # sliced state belongs to the first, second, ... step that runs
        flipped = reverse and (lengths is not None or self.state_axes is not None)
        if flipped:
            steps = flip_sequences(steps, lengths, len(batch), time_major=True)
        carry, outputs = self._loop(
            carry, steps, lengths if return_carry else None, reverse and not flipped
        )
        if reverse and flipped == keep_order:
            outputs = jax.tree.map(
                lambda y: flip_sequences(y, lengths, len(batch), time_major=True), outputs
            )
        outputs = jax.tree.map(lambda y: jnp.moveaxis(y, 0, time_axis), outputs)
        return (carry, outputs) if return_carry else outputs

    def _loop(
        self, carry: Carry, steps: jax.Array, lengths: jax.Array | None, reverse: bool
    ) -> tuple[Carry, Any]:
        """Runs the cell along the first axis; the carry is the one after each sequence's end."""
        xs: Any = self._projected(steps) if self.project_ahead else steps
        axes, only = None, None
        if self.broadcast_rngs is not None:
            only = moduli.All(moduli.RngState, self.broadcast_rngs)
            axes = moduli.StateAxes({only: None, **(self.state_axes or {...: moduli.Carry})})
        elif self.state_axes is not None:
            axes = self.state_axes
        run: Callable[..., Any] = moduli.scan(
            _step if lengths is None else _step_until_end,
            in_axes=(axes, moduli.Carry, 0) if lengths is None else (axes, moduli.Carry, 0, None),
            out_axes=(moduli.Carry, 0),
            length=steps.shape[0],
            reverse=reverse,
            unroll=self.unroll,
        )
        if only is not None:  # the keys of a call differ from those of the next
            run = moduli.split_rngs(splits=1, only=only, squeeze=True)(run)
        if lengths is None:
            return run(self.cell, carry, xs)
        times = jnp.arange(steps.shape[0])
        lengths = lengths.astype(times.dtype)  # they differ with 64 bits enabled
        (_, last), outputs = run(self.cell, (carry, carry), (times, xs), lengths)
        return last, outputs

    def _projected(self, steps: jax.Array) -> tuple[Any, ...]:
        """Calls the cell's layers for the inputs, on all steps."""
        kind = type(self.cell)
        splits = bool(getattr(kind, "input_layers", ())) and kind.__call__ is RNNCellBase.__call__
        if not splits or self.state_axes is not None:
            why = f"{kind.__name__} does not say which of its layers see the inputs"
            if splits:
                why = "state_axes gives each step its own layers"
            name = type(self).__name__
            raise ArgumentError(
                f"{name}(project_ahead=True) has nothing to compute ahead, because {why}; write "
                f"{name}(cell) without it, or a cell with input_layers and step"
            )
        return self.cell.project(steps)

    def _time_axis(self, inputs: jax.Array, time_major: bool) -> int:
        features = self.cell.num_feature_axes
        if inputs.ndim <= features:
            shape = "(time, ..., features)" if time_major else "(..., time, features)"
            axes = "axis" if features == 1 else "axes"
            write = "inputs[None]" if features == 1 else "inputs with an axis for the time"
            raise ShapeError(
                f"{type(self).__name__}({type(self.cell).__name__}) expects inputs of shape "
                f"{shape} with {features} {axes} of features, got shape {shape_text(inputs)}; "
                f"write {write} for a sequence of one step, or call the cell"
            )
        return 0 if time_major else inputs.ndim - features - 1

    def _lengths(self, given: ArrayLike, batch: tuple[int, ...], time: int) -> jax.Array:
        lengths = jnp.asarray(given)
        lengths = jnp.broadcast_to(lengths, batch) if lengths.ndim == 0 else lengths
        name = type(self).__name__
        if not jnp.issubdtype(lengths.dtype, jnp.integer):
            raise DtypeError(
                f"{name} expects seq_lengths of integers, got {lengths.dtype.name}; write "
                + (
                    "seq_lengths=mask.sum(-1) for a mask of the steps that count"
                    if lengths.dtype == jnp.bool_
                    else "seq_lengths.astype(jnp.int32)"
                )
            )
        if lengths.shape != batch:
            raise ShapeError(
                f"{name} expects seq_lengths of the batch's shape {batch}, got shape "
                f"{shape_text(lengths)}; write one length for each sequence, "
                f"as jnp.full({batch}, {time})"
            )
        return lengths

    def _checked_carry(self, carry: Carry, batch: tuple[int, ...]) -> Carry:
        """Returns the first carry, which has no axes to broadcast as it meets all later ones."""
        cell = self.cell
        if not isinstance(cell, CheckedCell):
            return carry
        arrays = cell.carry_arrays(carry, batch)
        for name, array, given in zip(
            cell.carry_names, arrays, jax.tree.leaves(carry), strict=True
        ):
            if array.shape[:-1] != batch:
                raise cell.wrong_carry_shape(name, given, batch)
        return arrays[0] if len(arrays) == 1 else arrays

    @property
    def needs_carry_rngs(self) -> bool:
        """Whether the first carry is random, as far as the cell says."""
        return getattr(self.cell, "needs_carry_rngs", True)

    def _carry_rngs(self, given: Streams | None, steps: jax.Array) -> moduli.RngStream | None:
        if isinstance(given, moduli.Rngs):
            stream = given["carry"].fork()
            stream.key.value = key_for(stream.key.value, steps)
            return stream
        if given is None and self.needs_carry_rngs:
            return self.rngs
        return given


def flip_sequences(
    inputs: ArrayLike,
    seq_lengths: ArrayLike | None,
    num_batch_dims: int,
    time_major: bool,
) -> jax.Array:
    """Turns sequences round in time, each up to its own length.

    What stands behind a sequence's end stays behind it.

    Args:
      inputs: array of shape ``(*batch, time, ...)``, or ``(time, *batch, ...)`` if time_major.
      seq_lengths: integers of shape ``(*batch)``, 0 to time; None if all steps count.
      num_batch_dims: how many axes the batch has.
      time_major: which of the two.

    Returns:
      Array of the shape of the inputs.

    Example:
      >>> import jax.numpy as jnp
      >>> from moduli_layers import flip_sequences
      >>> x = jnp.array([[1, 2, 3], [4, 5, 0]])
      >>> print(flip_sequences(x, jnp.array([3, 2]), num_batch_dims=1, time_major=False))
      [[3 2 1]
       [5 4 0]]
    """
    inputs = jnp.asarray(inputs)
    time_axis = 0 if time_major else num_batch_dims
    if seq_lengths is None:
        return jnp.flip(inputs, time_axis)
    ends = jnp.expand_dims(jnp.asarray(seq_lengths), time_axis)
    shape = [1] * (num_batch_dims + 1)
    shape[time_axis] = time = inputs.shape[time_axis]
    if time == 0:
        return inputs
    places = (ends - 1 - jnp.arange(time, dtype=ends.dtype).reshape(shape)) % time
    places = places.reshape(places.shape + (1,) * (inputs.ndim - places.ndim))
    return jnp.take_along_axis(inputs, places, time_axis)


def _concatenate(one: jax.Array, other: jax.Array) -> jax.Array:
    return jnp.concatenate([one, other], axis=-1)


class Bidirectional(moduli.Module):
    """Runs one recurrent network forwards and one backwards, and merges what they return.

    Attributes:
      forward_rnn: the network that runs from start to end.
      backward_rnn: the one from end to start.
      rngs: the stream from which random first carries are drawn, or None.

    Args:
      forward_rnn: a :class:`RNN`, or a Module that is called like one.
      backward_rnn: another one. (The same object shares its parameters.)
      merge_fn: makes one output of the two, both in the order of the inputs; default:
        concatenates features.
      time_major: whether inputs and outputs are (time, ..., features); else (..., time, features).
        It holds for both networks, whatever their own attributes say, as does ``return_carry``.
      return_carry: whether to return ((forward carry, backward carry), outputs); else outputs.
      rngs: see :class:`RNN`; for the first carries of both networks.

    Raises:
      RngError: ``rngs`` is no bool, Rngs or stream.

    Example:
      >>> import jax.numpy as jnp, moduli
      >>> from moduli_layers import RNN, Bidirectional, GRUCell
      >>> rngs = moduli.Rngs(0)
      >>> model = Bidirectional(RNN(GRUCell(3, 4, rngs=rngs)), RNN(GRUCell(3, 4, rngs=rngs)))
      >>> model(jnp.ones((2, 5, 3))).shape
      (2, 5, 8)

    Reference:
      Schuster and Paliwal, Bidirectional Recurrent Neural Networks, 1997,
      https://doi.org/10.1109/78.650093
    """

    __module__ = "moduli_layers"

    @checked
    def __init__(
        self,
        forward_rnn: Network,
        backward_rnn: Network,
        *,
        merge_fn: Callable[[Any, Any], Any] = _concatenate,
        time_major: bool = False,
        return_carry: bool = False,
        rngs: Streams | bool = True,
    ) -> None:
        self.forward_rnn = forward_rnn
        self.backward_rnn = backward_rnn
        self.merge_fn = merge_fn
        self.time_major = time_major
        self.return_carry = return_carry
        self.rngs = rngs if isinstance(rngs, moduli.RngStream) else _own_stream(self, rngs)

    @property
    def torch_names(self) -> tuple[TensorNames, ...]:
        """Those of PyTorch's layer with such cells, however outputs are merged; or the parts'."""
        parts = TensorNames()
        names = ("forward_rnn", "backward_rnn")
        cells = [_tensors_of(getattr(getattr(self, name), "cell", None)) for name in names]
        if not all(cells):
            return (parts,)
        tensors = {
            **_below("forward_rnn.cell.", cells[0], "_l0"),
            **_below("backward_rnn.cell.", cells[1], "_l0_reverse"),
        }
        return TensorNames(tensors), parts

    @property
    def torch_counterpart(self) -> Counterpart:
        """The layer of PyTorch that computes the same, if both networks have equal cells."""
        rnns = (self.forward_rnn, self.backward_rnn)
        cells = [getattr(rnn, "cell", None) for rnn in rnns]
        name = _TORCH_LAYERS.get(type(cells[0]))  # type: ignore[arg-type]
        equal = all(type(rnn) is RNN for rnn in rnns) and (
            moduli.graphdef(cells[0]) == moduli.graphdef(cells[1])
        )
        if name is None or not equal or cells[0] is cells[1] or self.merge_fn is not _concatenate:
            raise AttributeError(f"torch has no counterpart of this {type(self).__name__}")
        theirs: Counterpart = cells[0].torch_counterpart  # type: ignore[union-attr]
        return Counterpart(
            name,
            {
                **_below("forward_rnn.cell.", theirs.tensors, "_l0"),
                **_below("backward_rnn.cell.", theirs.tensors, "_l0_reverse"),
            },
            {
                **_settings_below("forward_rnn.cell", theirs),
                "batch_first": lambda model: not model.time_major,
            },
            {"bidirectional": True},
            output=_first,
        )

    def __call__(
        self,
        inputs: ArrayLike,
        *,
        initial_carry: tuple[Carry, Carry] | None = None,
        rngs: Streams | None = None,
        seq_lengths: ArrayLike | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
    ) -> Any:
        """Runs both networks.

        Args:
          inputs: see :class:`RNN`.
          initial_carry: the first carries of the forward and the backward network.
          rngs: see :class:`RNN`.
          seq_lengths: see :class:`RNN`; the backward network starts at each sequence's own end.
          return_carry: in the place of the attribute.
          time_major: in the place of the attribute.
          reverse: has no effect (both directions run); here so that a Bidirectional may stand where
            a :class:`RNN` does.
          keep_order: has no effect; outputs are in the order of the inputs.

        Returns:
          The merged outputs; with ``return_carry`` ((forward carry, backward carry), outputs).

        Raises:
          ArgumentError: ``initial_carry`` is not a pair.
          ShapeError: inputs, carry or lengths have a shape that does not fit.
          DtypeError: the lengths are no integers, or a carry holds integers.
        """
        del reverse, keep_order
        return_carry = self.return_carry if return_carry is None else return_carry
        carries = (None, None) if initial_carry is None else initial_carry
        if not isinstance(carries, (tuple, list)) or len(carries) != 2:
            raise ArgumentError(
                f"{type(self).__name__} expects initial_carry=(forward carry, backward carry), got "
                f"{type(carries).__name__}; write one for each direction"
            )
        shared = {
            "rngs": self._carry_rngs(rngs),
            "seq_lengths": seq_lengths,
            "return_carry": True,
            "time_major": self.time_major if time_major is None else time_major,
        }
        forward, ahead = self.forward_rnn(inputs, initial_carry=carries[0], reverse=False, **shared)
        backward, back = self.backward_rnn(
            inputs, initial_carry=carries[1], reverse=True, keep_order=True, **shared
        )
        outputs = jax.tree.map(self.merge_fn, ahead, back)
        return ((forward, backward), outputs) if return_carry else outputs

    @property
    def needs_carry_rngs(self) -> bool:
        """Whether a first carry is random, as far as the networks say."""
        return any(
            getattr(rnn, "needs_carry_rngs", True) for rnn in (self.forward_rnn, self.backward_rnn)
        )

    def _carry_rngs(self, given: Streams | None) -> moduli.RngStream | None:
        if isinstance(given, moduli.Rngs):
            return given["carry"]
        if given is None and self.needs_carry_rngs:
            return self.rngs
        return given


def _own_stream(layer: object, rngs: Streams | bool) -> moduli.RngStream | None:
    """Makes the stream that a layer keeps for first carries."""
    if rngs is True:
        return moduli.RngStream(0, tag="carry")
    if rngs is False:
        return None
    if isinstance(rngs, moduli.Rngs):
        return rngs["carry"].fork()
    if isinstance(rngs, moduli.RngStream):
        return rngs.fork()
    raise RngError(
        f"{type(layer).__name__} got rngs of type {type(rngs).__name__}; write rngs=True for a "
        f"stream of its own, rngs=moduli.Rngs(0), or rngs=False for none"
    )


# one function each for all calls: JAX compiles a loop for the function that it is given


def _step(cell: Any, carry: Carry, x: Any) -> tuple[Carry, Any]:
    return cell(carry, x)


def _step_until_end(cell: Any, carries: Any, x: Any, lengths: jax.Array) -> tuple[Any, Any]:
    (carry, last), (time, x) = carries, x
    carry, outputs = cell(carry, x)
    return (carry, _where(time < lengths, carry, last)), outputs


def _where(condition: jax.Array, chosen: Any, other: Any) -> Any:
    """Selects whole entries of the batch."""

    def select(one: jax.Array, another: jax.Array) -> jax.Array:
        shape = condition.shape + (1,) * (one.ndim - condition.ndim)
        return jnp.where(condition.reshape(shape), one, another)

    return jax.tree.map(select, chosen, other)


def _tensors_of(cell: Any) -> Mapping[str, Tensor]:
    """Returns the tensors of a cell's counterpart; none if PyTorch has no layer with such cells."""
    return cell.torch_counterpart.tensors if type(cell) in _TORCH_LAYERS else {}


def _below(prefix: str, tensors: Mapping[str, Tensor], suffix: str) -> dict[str, Tensor]:
    """The tensors of a cell, for a layer that holds the cell."""
    return {name + suffix: tensor.below(prefix) for name, tensor in tensors.items()}


def _settings_below(path: str, counterpart: Counterpart) -> dict[str, Any]:
    """The constructor's arguments of a cell's counterpart, for a layer that holds the cell."""

    def cell_of(layer: Any) -> Any:
        for name in path.split("."):
            layer = getattr(layer, name)
        return layer

    def below(setting: Any) -> Any:
        if isinstance(setting, str):
            return f"{path}.{setting}"
        return lambda layer: setting(cell_of(layer))

    return {name: below(setting) for name, setting in counterpart.settings.items()}


def _first(outputs: Any) -> Any:
    return outputs[0]
