"""What several bridges need: modules with another framework's order of axes, checks, parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

import moduli
from moduli.errors import ShapeError, format_path
from moduli_interop._bridges.arguments import parameters
from moduli_interop._bridges.bridge import Conversion

__all__ = [
    "ChannelsFirst",
    "HaikuCore",
    "JoinedAxes",
    "OneExample",
    "PaddingEmbed",
    "TorchCell",
    "check_once",
    "check_plain",
    "mlp_parts",
    "transposed_tensors",
]


def _names_of_part(attribute: str) -> tuple[Any, ...]:
    """Returns the names of a part without its attribute's, and with it."""
    names = moduli.counterparts.TensorNames
    return names(children={attribute: ""}), names()


def transposed_tensors(groups: int, prefix: str = "") -> dict[str, Any]:
    """Returns how PyTorch has a transposed convolution in groups, of which only Conv knows here.

    Args:
      groups: their number.
      prefix: what stands before the paths of the Conv's Variables.
    """
    layout = "... i (g o) -> (g i) o ..."
    kernel = moduli.Tensor(f"{prefix}kernel", layout, flip=("...",), sizes={"g": groups})
    return {"weight": kernel, "bias": moduli.Tensor(f"{prefix}bias")}


class ChannelsFirst(moduli.Module):
    """Calls a layer whose features are last with arrays whose features stand before the others.

    Bridges wrap convolutions and norms of PyTorch and equinox in it, so that what stands between
    the layers (a reshape, a flatten, a concatenation) means the same as it did there.

    Attributes:
      layer: the layer.

    Args:
      layer: the layer.
      axis: the axis of the features in inputs and outputs: 1 after one batch axis, 0 without.
      rank: the number of axes behind it, where only a class of PyTorch says it.
      transposed: whether the layer, a Conv, stands for a transposed convolution in groups, as whose
        its kernel is laid out in PyTorch.

    Example:
      >>> import jax.numpy as jnp, moduli as nnx
      >>> conv = nnx.bridge.ChannelsFirst(nnx.Conv(3, 8, (5, 5), rngs=nnx.Rngs(0)))
      >>> conv(jnp.ones((2, 3, 16, 16))).shape
      (2, 8, 16, 16)
    """

    __module__ = "moduli_interop.bridge"

    def __init__(
        self, layer: Any, axis: int = 1, rank: int | None = None, transposed: bool = False
    ) -> None:
        self.layer = layer
        self.axis = axis
        self.rank = rank
        self.transposed = transposed

    @property
    def torch_names(self) -> tuple[Any, ...]:
        """Those of the layer, which PyTorch has without anything around it."""
        if not self.transposed:
            return _names_of_part("layer")
        tensors = transposed_tensors(self.layer.feature_group_count, "layer.")
        return moduli.counterparts.TensorNames(tensors), moduli.counterparts.TensorNames()

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer.

        Args:
          inputs: array with the features on ``axis``.
          *args: further arguments of the layer.
          **kwargs: likewise.

        Returns:
          What the layer returns, with the features on ``axis``.
        """
        last = jnp.moveaxis(jnp.asarray(inputs), self.axis, -1)
        return jnp.moveaxis(self.layer(last, *args, **kwargs), -1, self.axis)


class OneExample(moduli.Module):
    """Calls a layer that has a batch with one example.

    Attributes:
      layer: the layer.

    Args:
      layer: the layer.

    Example:
      >>> import jax.numpy as jnp, moduli as nnx
      >>> norm = nnx.bridge.OneExample(nnx.GroupNorm(4, 2, rngs=nnx.Rngs(0)))
      >>> norm(jnp.ones((5, 4))).shape
      (5, 4)
    """

    __module__ = "moduli_interop.bridge"

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    @property
    def torch_names(self) -> tuple[Any, ...]:
        """Those of the layer."""
        return _names_of_part("layer")

    def __call__(self, inputs: Any) -> Any:
        """Calls the layer.

        Args:
          inputs: array without an axis for the batch.
        """
        return self.layer(jnp.asarray(inputs)[None])[0]


class JoinedAxes(moduli.Module):
    """Calls a layer of one axis of features with arrays whose last axes are features.

    Attributes:
      layer: the layer.

    Args:
      layer: the layer.
      shape: the sizes of the axes that are one for the layer.

    Example:
      >>> import jax.numpy as jnp, moduli as nnx
      >>> norm = nnx.bridge.JoinedAxes(nnx.LayerNorm(6, rngs=nnx.Rngs(0)), (2, 3))
      >>> norm(jnp.ones((5, 2, 3))).shape
      (5, 2, 3)
    """

    __module__ = "moduli_interop.bridge"

    def __init__(self, layer: Any, shape: Sequence[int]) -> None:
        self.layer = layer
        self.shape = tuple(shape)

    @property
    def torch_names(self) -> tuple[Any, ...]:
        """Those of the layer, whose tensors have all axes of features in PyTorch."""
        axes = [f"a{n}" for n in range(len(self.shape))]
        layout = f"({' '.join(axes)}) -> {' '.join(axes)}"
        sizes = dict(zip(axes[:-1], self.shape[:-1], strict=True))
        tensors = {
            name: dataclasses.replace(tensor, layout=layout, sizes=sizes).below("layer.")
            for way in moduli.counterparts.names_of(self.layer)[:1]
            for name, tensor in way.tensors.items()
        }
        return moduli.counterparts.TensorNames(tensors), moduli.counterparts.TensorNames()

    def __call__(self, inputs: Any) -> Any:
        """Calls the layer.

        Args:
          inputs: array of shape ``(..., *shape)``.

        Returns:
          What the layer returns, in the shape of the inputs.

        Raises:
          ShapeError: the inputs' last axes have other sizes.
        """
        inputs = jnp.asarray(inputs)
        rank = len(self.shape)
        if inputs.shape[-rank:] != self.shape:
            raise ShapeError(
                f"{type(self).__name__}({type(self.layer).__name__}) expects inputs of shape "
                f"(..., {', '.join(map(str, self.shape))}), got shape {inputs.shape}"
            )
        return self.layer(inputs.reshape((*inputs.shape[:-rank], -1))).reshape(inputs.shape)


class PaddingEmbed(moduli.Module):
    """Looks vectors up as an Embed, one of whose vectors is not trained: that of the padding.

    Attributes:
      layer: the Embed.

    Args:
      layer: the Embed.
      padding_idx: the number whose vector gets no gradient, as in ``torch.nn.Embedding``.

    Example:
      >>> import jax.numpy as jnp, moduli as nnx
      >>> embed = nnx.bridge.PaddingEmbed(nnx.Embed(3, 2, rngs=nnx.Rngs(0)), padding_idx=0)
      >>> grads = nnx.grad(lambda embed: embed(jnp.array([0, 1])).sum())(embed)
      >>> grads.layer.embedding.value
      Array([[0., 0.],
             [1., 1.],
             [0., 0.]], dtype=float32)
    """

    __module__ = "moduli_interop.bridge"

    def __init__(self, layer: Any, padding_idx: int) -> None:
        self.layer = layer
        self.padding_idx = padding_idx

    @property
    def torch_names(self) -> tuple[Any, ...]:
        """Those of the layer."""
        return _names_of_part("layer")

    def __call__(self, inputs: Any) -> Any:
        """Looks vectors up.

        Args:
          inputs: integers, an array of any shape.

        Returns:
          Array of shape (..., features).
        """
        vectors = self.layer(inputs)
        padding = (jnp.asarray(inputs) == self.padding_idx)[..., None]
        return jnp.where(padding, jax.lax.stop_gradient(vectors), vectors)


class TorchCell(moduli.Module):
    """Calls a recurrent cell as those of PyTorch: ``(inputs, state) -> state``.

    The state of an LSTM is ``(h, c)``, as there, where our cells' carry is ``(c, h)``.

    Attributes:
      cell: the cell.

    Args:
      cell: an LSTMCell, OptimizedLSTMCell, GRUCell or SimpleCell.

    Example:
      >>> import jax.numpy as jnp, moduli as nnx
      >>> cell = nnx.bridge.TorchCell(nnx.OptimizedLSTMCell(3, 4, rngs=nnx.Rngs(0)))
      >>> h, c = cell(jnp.ones((2, 3)))
      >>> h, c = cell(jnp.ones((2, 3)), (h, c))
      >>> h.shape
      (2, 4)
    """

    __module__ = "moduli_interop.bridge"

    def __init__(self, cell: Any) -> None:
        self.cell = cell

    @property
    def torch_names(self) -> tuple[Any, ...]:
        """Those of the cell."""
        return _names_of_part("cell")

    def __call__(self, inputs: Any, state: Any = None) -> Any:
        """Makes one step.

        Args:
          inputs: array of shape (..., in_features).
          state: the state before it, h or (h, c); zeros by default.

        Returns:
          The state after it.
        """
        inputs = jnp.asarray(inputs)
        two = len(self.cell.carry_names) == 2
        if state is None:
            carry = self.cell.initialize_carry(inputs.shape)
        else:
            carry = (state[1], state[0]) if two else state
        carry, _ = self.cell(carry, inputs)
        return (carry[1], carry[0]) if two else carry


class HaikuCore(moduli.Module):
    """Calls a recurrent cell as the cores of haiku: ``(inputs, state) -> (outputs, state)``.

    The state of an LSTM is ``(hidden, cell)``, as there, where our cells' carry is ``(c, h)``.

    Attributes:
      cell: the cell.

    Args:
      cell: an OptimizedLSTMCell, LSTMCell or SimpleCell.

    Example:
      >>> import jax.numpy as jnp, moduli as nnx
      >>> core = nnx.bridge.HaikuCore(nnx.OptimizedLSTMCell(3, 4, rngs=nnx.Rngs(0)))
      >>> outputs, (hidden, cell) = core(jnp.ones((2, 3)), core.initial_state(2))
      >>> outputs.shape
      (2, 4)
    """

    __module__ = "moduli_interop.bridge"

    def __init__(self, cell: Any) -> None:
        self.cell = cell

    @property
    def torch_names(self) -> tuple[Any, ...]:
        """Those of the cell."""
        return _names_of_part("cell")

    def initial_state(self, batch_size: int | None) -> Any:
        """Returns the first state, for a batch or, with None, for one example."""
        batch = () if batch_size is None else (batch_size,)
        carry = self.cell.initialize_carry((*batch, self.cell.in_features))
        return (carry[1], carry[0]) if len(self.cell.carry_names) == 2 else carry

    def __call__(self, inputs: Any, prev_state: Any) -> Any:
        """Makes one step.

        Args:
          inputs: array of shape (in_features,) or (batch, in_features).
          prev_state: the state before it; an ``hk.LSTMState`` remains one.

        Returns:
          The outputs, and the state after it.
        """
        if len(self.cell.carry_names) != 2:
            carry, outputs = self.cell(prev_state, jnp.asarray(inputs))
            return outputs, carry
        carry = (prev_state[1], prev_state[0])
        (cell, hidden), outputs = self.cell(carry, jnp.asarray(inputs))
        named = hasattr(prev_state, "_fields")
        return outputs, type(prev_state)(hidden, cell) if named else (hidden, cell)


_OWN = (  # settings for which other frameworks' layers have no place
    "attention_fn",
    "axis_index_groups",
    "axis_name",
    "broadcast_rngs",
    "carry_init",
    "conv_general_dilated",
    "dot_general",
    "dot_general_cls",
    "preferred_element_type",
    "promote_dtype",
    "return_carry",
    "state_axes",
    "window",
)


def check_plain(layer: Any, convert: Conversion, but: Sequence[str] = ()) -> None:
    """Raises if a layer of ours, or one inside of it, computes what only ours do.

    That is in another dtype than that of its parameters, or with functions of the user's.

    Args:
      layer: the layer.
      convert: the conversion to a framework whose layers compute in the dtype of their parameters.
      but: settings that the framework has.
    """
    for _, part in moduli.iter_graph(layer):
        if not isinstance(part, moduli.Module):
            continue
        _check_dtype(part, convert)
        known = parameters(type(part))
        for name in _OWN:
            if name not in known or name in but or not hasattr(part, name):
                continue
            value = getattr(part, name)
            if value is not known[name].default and value != known[name].default:
                convert.refuse(part, f"whose `{name}` the other framework's layer has not")


def check_once(variable: Any, convert: Conversion, hint: str = "") -> None:
    """Raises if a Variable was met before in a walk: the other framework would make two of it.

    Args:
      variable: the Variable.
      convert: the conversion.
      hint: what the message says at its end.
    """
    met = convert.kept.setdefault("met", {})
    if id(variable) in met:
        convert.refuse(
            variable,
            f"which also stands at `{format_path(met[id(variable)][1])}`; what stands in two "
            f"places would be two arrays in {convert.framework}{hint}",
        )
    met[id(variable)] = (variable, convert.path)  # it is kept, so that its id stays its own


def mlp_parts(part: Any, convert: Conversion) -> list[Any]:
    """Converts what an MLP of ours calls, in the order in which it does.

    Args:
      part: the MLP.
      convert: the conversion.
    """
    made: list[Any] = []
    norms, dropouts = list(part.norms or ()), list(part.dropouts or ())
    for n, layer in enumerate(part.layers):
        made.append(convert(layer, "layers", n))
        if n < len(part.layers) - 1 or part.activate_final:
            made += [convert(norms[n], "norms", n)] if n < len(norms) else []
            made.append(convert(part.activation, "activation"))
            made += [convert(dropouts[n], "dropouts", n)] if n < len(dropouts) else []
    return made


def _check_dtype(layer: Any, convert: Conversion) -> None:
    dtype, of_params = getattr(layer, "dtype", None), getattr(layer, "param_dtype", None)
    if dtype is not None and of_params is not None and jnp.dtype(dtype) != jnp.dtype(of_params):
        convert.refuse(
            layer,
            f"which computes in {jnp.dtype(dtype).name} and keeps its parameters in "
            f"{jnp.dtype(of_params).name}, while the other framework's has one dtype (set "
            "`layer.dtype = None`)",
        )
