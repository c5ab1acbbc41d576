"""Recurrent cells: one step of a recurrent network.

A step is told in two halves, because the first does not need the step before: ``input_layers``
names the layers that see the inputs, and ``step`` goes on from what these returned. So :class:`RNN`
can call the input layers once for all steps, in one large product, and leave one to the loop.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

import moduli
from moduli.counterparts import Counterpart, Tensor
from moduli.errors import RngError, ShapeError, StructureError
from moduli_layers import initializers
from moduli_layers._activations import relu, sigmoid, tanh
from moduli_layers._arguments import checked
from moduli_layers._broadcasts import at_end
from moduli_layers._checks import check_features, check_positive, check_rngs, shape_text
from moduli_layers._dtypes import PromoteDtype, promote_dtype, wider
from moduli_layers._linear import Linear
from moduli_layers._remembered import default_kernel_init, fill, remembered
from moduli_layers.errors import ArgumentError, DtypeError

__all__ = [
    "CheckedCell",
    "GRUCell",
    "LSTMCell",
    "OptimizedLSTMCell",
    "RNNCellBase",
    "SimpleCell",
    "default_recurrent_kernel_init",
]

Streams = moduli.Rngs | moduli.RngStream
Carry = Any

_NO_METADATA: Mapping[str, Any] = MappingProxyType({})
_orthogonal = initializers.orthogonal()


@functools.partial(remembered, static_argnums=(1, 2))
def default_recurrent_kernel_init(
    key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
) -> jax.Array:
    """An orthogonal matrix; in half precision one made in float32, for which JAX can make it."""
    made_in = jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype
    return _orthogonal(key, shape, made_in).astype(dtype)


class RNNCellBase(moduli.Module):
    """Base of recurrent cells: ``(carry, inputs) -> (carry, outputs)``, for one step.

    A cell of your own overrides :meth:`initialize_carry`, :attr:`num_feature_axes`, and either

    - ``__call__``, which :class:`RNN` then calls in every step, or
    - :meth:`step` and ``input_layers``: the names of the attributes that hold the layers that see
      the inputs. :class:`RNN` may then call these once for all steps (``project_ahead``).

    Attributes:
      input_layers: names of the layers that see the inputs; a class attribute.

    Example:
      >>> import jax.numpy as jnp, moduli
      >>> from moduli_layers import RNN, Linear, RNNCellBase
      >>> class Leaky(RNNCellBase):
      ...     input_layers = ("dense",)
      ...     def __init__(self, in_features, hidden_features, *, rngs):
      ...         self.dense = Linear(in_features, hidden_features, rngs=rngs)
      ...     def step(self, carry, projected):
      ...         carry = 0.9 * carry + 0.1 * projected
      ...         return carry, carry
      ...     def initialize_carry(self, input_shape, rngs=None, carry_init=None):
      ...         return jnp.zeros((*input_shape[:-1], self.dense.out_features))
      ...     @property
      ...     def num_feature_axes(self):
      ...         return 1
      >>> RNN(Leaky(3, 4, rngs=moduli.Rngs(0)))(jnp.ones((2, 5, 3))).shape
      (2, 5, 4)
    """

    __module__ = "moduli_layers"

    input_layers: ClassVar[tuple[str, ...]] = ()

    def __call__(self, carry: Carry, inputs: Any) -> tuple[Carry, Any]:
        """Makes one step.

        Args:
          carry: what the step before left, or :meth:`initialize_carry` made.
          inputs: array of shape (..., in_features); or the tuple that :meth:`project` made of it.

        Returns:
          The new carry and the outputs.
        """
        projected = inputs if isinstance(inputs, tuple) else self.project(inputs)
        return self.step(carry, *projected)

    def project(self, inputs: ArrayLike) -> tuple[Any, ...]:
        """Calls the input layers.

        Args:
          inputs: array of shape (..., in_features), of one step or of many.

        Returns:
          What each of ``input_layers`` returned.
        """
        return tuple(getattr(self, name)(inputs) for name in self.input_layers)

    def step(self, carry: Carry, *projected: Any) -> tuple[Carry, Any]:
        """The rest of a step.

        Args:
          carry: what the step before left.
          *projected: what each of ``input_layers`` returned for this step.

        Returns:
          The new carry and the outputs.
        """
        raise NotImplementedError(f"{type(self).__name__} defines neither __call__ nor step")

    def initialize_carry(
        self,
        input_shape: tuple[int, ...],
        rngs: Streams | None = None,
        carry_init: initializers.Initializer | None = None,
    ) -> Carry:
        """Makes the carry of the first step.

        Args:
          input_shape: shape of the inputs of one step.
          rngs: where random keys come from (stream ``carry``).
          carry_init: initializer of each array of the carry.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define initialize_carry")

    @property
    def num_feature_axes(self) -> int:
        """How many of the last axes of the inputs are no batch axes."""
        raise NotImplementedError(f"{type(self).__name__} does not define num_feature_axes")


class CheckedCell(RNNCellBase):
    """What our cells share: sizes, the first carry, and checks of a given one.

    Attributes:
      carry_names: what the arrays of the carry are called; a carry of one is the array itself.
    """

    carry_names: ClassVar[tuple[str, ...]] = ("h",)

    in_features: int
    hidden_features: int
    param_dtype: DTypeLike
    carry_init: initializers.Initializer | None
    rngs: moduli.RngStream | None

    def _keep(
        self,
        in_features: int,
        hidden_features: int,
        activation_fn: Callable[..., Any],
        dtype: DTypeLike | None,
        param_dtype: DTypeLike,
        carry_init: initializers.Initializer | None,
        promote_dtype: PromoteDtype,
        keep_rngs: bool,
        rngs: moduli.Rngs,
    ) -> None:
        """Checks and stores the constructor's arguments that all cells have."""
        check_positive(self, in_features=in_features, hidden_features=hidden_features)
        check_rngs(self, rngs)
        self.in_features = in_features
        self.hidden_features = hidden_features
        self.activation_fn = activation_fn
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.promote_dtype = promote_dtype
        self.carry_init = carry_init
        self.rngs = rngs["carry"].fork() if keep_rngs else None

    def project(self, inputs: ArrayLike) -> tuple[Any, ...]:
        """Calls the input layers; see :class:`RNNCellBase`.

        Raises:
          ShapeError: the inputs' last axis does not have ``in_features`` entries.
        """
        check_features(self, inputs, -1, self.in_features, "in_features")
        return super().project(inputs)

    def initialize_carry(
        self,
        input_shape: tuple[int, ...],
        rngs: Streams | None = None,
        carry_init: initializers.Initializer | None = None,
    ) -> Carry:
        """Makes the carry of the first step, in ``param_dtype``.

        Args:
          input_shape: shape of the inputs of one step, (..., in_features).
          rngs: where random keys come from (stream ``carry``), one for each array; zeros, the
            default, need none.
          carry_init: initializer of each array; the layer's own by default, else zeros.

        Returns:
          Arrays of shape (..., hidden_features), as the class says.

        Raises:
          RngError: an initializer is given, but no streams.
        """
        init = carry_init or self.carry_init
        source = self.rngs if rngs is None else rngs
        if isinstance(source, moduli.Rngs):
            source = source["carry"]
        if source is not None and not isinstance(source, moduli.RngStream):
            raise RngError(
                f"{type(self).__name__}.initialize_carry got rngs of type {type(source).__name__}; "
                f"write rngs=moduli.Rngs(0) or a stream of one"
            )
        if source is None and init is not None and init is not initializers.zeros:
            raise RngError(
                f"{type(self).__name__}.initialize_carry has a carry_init and got no rngs to draw "
                f"from; write initialize_carry(shape, rngs=moduli.Rngs(0)), or without a "
                f"carry_init for zeros"
            )
        shape = (*input_shape[:-1], self.hidden_features)
        make: Any = initializers.zeros if init is None else init
        try:
            parts: tuple[Any, ...] = tuple(
                fill(make, None if source is None else source(), shape, self.param_dtype)
                for _ in self.carry_names
            )
        except ArgumentError as error:
            reason = getattr(error, "reason", error)
            raise ArgumentError(f"{type(self).__name__} got carry_init={reason}") from None
        return parts[0] if len(parts) == 1 else parts

    @property
    def num_feature_axes(self) -> int:
        """One: inputs are (..., in_features)."""
        return 1

    @property
    def needs_carry_rngs(self) -> bool:
        """Whether the first carry is random."""
        return self.carry_init is not None and self.carry_init is not initializers.zeros

    def carry_arrays(self, carry: Carry, batch: tuple[int, ...]) -> tuple[jax.Array, ...]:
        """Returns the arrays of a carry, checked.

        Args:
          carry: what the caller passed.
          batch: the inputs' axes before the features; the carry's may broadcast to them.

        Raises:
          ArgumentError: it is not made of as many arrays as ``carry_names`` has.
          ShapeError: an array has not the shape (*batch, hidden_features).
          DtypeError: an array holds no floating-point numbers.
        """
        arrays = self._unpacked(carry)
        for name, array in zip(self.carry_names, arrays, strict=True):
            fits = array.ndim and array.shape[-1] == self.hidden_features
            if not fits or not _broadcasts(array.shape[:-1], batch):
                raise self.wrong_carry_shape(name, array, batch)
            if not jnp.issubdtype(array.dtype, jnp.inexact):
                raise DtypeError(
                    f"{type(self).__name__} expects a carry of floating-point numbers, got {name} "
                    f"of dtype {array.dtype.name}; write {name}.astype(jnp.float32)"
                )
        return tuple(at_end(array, len(batch) + 1) for array in arrays)

    def wrong_carry_shape(self, name: str, array: Any, batch: tuple[int, ...]) -> ShapeError:
        """Makes the error that tells which shape a carry should have."""
        kind = type(self).__name__
        expected = (*batch, self.hidden_features)
        return ShapeError(
            f"{kind}(hidden_features={self.hidden_features}) expects {name} of shape {expected} "
            f"in the carry, got shape {shape_text(array)}; write "
            f"cell.initialize_carry({(*batch, self.in_features)})"
        )

    def _unpacked(self, carry: Carry) -> tuple[jax.Array, ...]:
        names = self.carry_names
        several = isinstance(carry, (tuple, list))
        arrays = tuple(carry) if several else (carry,)
        all_arrays = all(hasattr(array, "shape") for array in arrays)
        if all_arrays and several is (len(names) > 1) and len(arrays) == len(names):
            return tuple(map(jnp.asarray, arrays))
        expected = f"the carry ({', '.join(names)}), a tuple of {len(names)} arrays"
        if len(names) == 1:
            expected = f"the carry {names[0]}, one array"
        kinds = [type(array).__name__ for array in arrays]
        got = "one array" if all_arrays else kinds[0]
        if several:
            got = f"a {type(carry).__name__} of {len(carry)}"
            got += "" if all_arrays else f" ({', '.join(kinds)})"
        raise ArgumentError(
            f"{type(self).__name__} expects {expected}, got {got}; write "
            f"cell.initialize_carry(inputs.shape) for the first step"
        )


def _broadcasts(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    try:
        return jnp.broadcast_shapes(shape, target) == target
    except ValueError:
        return False


def _lstm_update(
    cell: Any, c: jax.Array, h_dtype: DTypeLike, i: Any, f: Any, g: Any, o: Any
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """The end of an LSTM's step, from the sums at the four gates.

    The arrays of the carry keep their dtypes, outputs have the gates'.
    """
    dtype = wider(f.dtype, c.dtype)
    i, f, o = (cell.gate_fn(gate).astype(dtype) for gate in (i, f, o))
    outputs_dtype = g.dtype
    g = cell.activation_fn(g).astype(dtype)
    c_new = f * c.astype(dtype) + i * g
    h_new = o * cell.activation_fn(c_new)
    return (c_new.astype(c.dtype), h_new.astype(h_dtype)), h_new.astype(outputs_dtype)


def _torch_size(cell: Any) -> int:
    """``hidden_size`` for torch, whose LSTM and GRU have fixed functions at their gates."""
    if cell.gate_fn is not sigmoid or cell.activation_fn is not tanh:
        raise StructureError(
            "torch's recurrent layers have the functions sigmoid and tanh, and none to choose; "
            f"got gate_fn={cell.gate_fn!r} and activation_fn={cell.activation_fn!r}"
        )
    return cell.hidden_features


def _torch_nonlinearity(cell: Any) -> str:
    """``nonlinearity`` for ``torch.nn.RNN``."""
    name = {tanh: "tanh", relu: "relu"}.get(cell.activation_fn)
    if name is None or cell.residual:
        raise StructureError(
            "torch.nn.RNN has the functions tanh and relu and no residual; got "
            f"activation_fn={cell.activation_fn!r} and residual={cell.residual}"
        )
    return name


class LSTMCell(CheckedCell):
    r"""A cell with long short-term memory, whose gates are eight layers of their own.

    .. math::

        i &= \sigma(W_{ii} x + W_{hi} h + b_i) \qquad f = \sigma(W_{if} x + W_{hf} h + b_f) \\
        g &= \tanh(W_{ig} x + W_{hg} h + b_g) \qquad o = \sigma(W_{io} x + W_{ho} h + b_o) \\
        c' &= f c + i g \qquad h' = o \tanh(c')

    :class:`OptimizedLSTMCell` computes the same with one product in the place of four.

    The carry is the tuple (c, h) of arrays of shape (..., hidden_features), which keep their dtypes
    from step to step; outputs are h' in the dtype of the computation.

    Attributes:
      ii: the Linear without bias that gives the inputs to the gate i; ``if_``, ``ig`` and ``io``
        are those of the others.
      hi: the Linear that gives h to the gate i; ``hf``, ``hg`` and ``ho`` are those of the others.

    Args:
      in_features: size of the inputs' last axis.
      hidden_features: size of the last axis of c, h and the outputs.
      gate_fn: the function at the gates i, f and o.
      activation_fn: the function at g and c'.
      kernel_init: initializer of the inputs' kernels.
      recurrent_kernel_init: initializer of the kernels of h; default: orthogonal.
      bias_init: initializer of the biases.
      dtype: dtype of the computation; None takes the one to which inputs and parameters promote.
      param_dtype: dtype in which the parameters are stored, and of the first carry.
      carry_init: initializer of the first carry's arrays; default: zeros.
      promote_dtype: function that casts arrays to ``dtype``, see :class:`Linear`.
      keep_rngs: whether to keep a fork of the stream ``carry``, for a random first carry.
      rngs: where the parameters' keys come from (stream ``params``).
      kernel_metadata: metadata of the Params of the inputs' kernels.
      recurrent_kernel_metadata: metadata of the Params of the kernels of h.
      bias_metadata: metadata of the biases' Params.

    Raises:
      ArgumentError: a size is below 1; (in the call) the carry is not two arrays.
      RngError: ``rngs`` is not a :class:`moduli.Rngs`.
      ShapeError: (in the call) inputs or carry do not have the layer's sizes.
      DtypeError: (in the call) the carry holds integers, or there is no common dtype.

    Example:
      >>> import jax.numpy as jnp, moduli
      >>> from moduli_layers import LSTMCell
      >>> cell = LSTMCell(3, 4, rngs=moduli.Rngs(0))
      >>> x = jnp.ones((2, 3))
      >>> (c, h), y = cell(cell.initialize_carry(x.shape), x)
      >>> c.shape, h.shape, y.shape
      ((2, 4), (2, 4), (2, 4))

    Reference:
      Hochreiter and Schmidhuber, Long Short-Term Memory, 1997,
      https://doi.org/10.1162/neco.1997.9.8.1735
    """

    __module__ = "moduli_layers"

    input_layers: ClassVar[tuple[str, ...]] = ("ii", "if_", "ig", "io")
    carry_names: ClassVar[tuple[str, ...]] = ("c", "h")

    torch_counterpart: ClassVar[Counterpart] = Counterpart(
        "torch.nn.LSTMCell",
        {
            "weight_ih": Tensor(
                ("ii.kernel", "if_.kernel", "ig.kernel", "io.kernel"), "i o -> o i"
            ),
            "weight_hh": Tensor(("hi.kernel", "hf.kernel", "hg.kernel", "ho.kernel"), "i o -> o i"),
            "bias_ih": Tensor(
                ("hi.bias", "hf.bias", "hg.bias", "ho.bias"),
                zero=("hi.bias", "hf.bias", "hg.bias", "ho.bias"),
            ),
            "bias_hh": Tensor(("hi.bias", "hf.bias", "hg.bias", "ho.bias")),
        },
        {"input_size": "in_features", "hidden_size": _torch_size},
    )

    @checked
    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        gate_fn: Callable[..., Any] = sigmoid,
        activation_fn: Callable[..., Any] = tanh,
        kernel_init: initializers.Initializer = default_kernel_init,
        recurrent_kernel_init: initializers.Initializer = default_recurrent_kernel_init,
        bias_init: initializers.Initializer = initializers.zeros,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        carry_init: initializers.Initializer | None = None,
        promote_dtype: PromoteDtype = promote_dtype,
        keep_rngs: bool = False,
        rngs: moduli.Rngs,
        kernel_metadata: Mapping[str, Any] = _NO_METADATA,
        recurrent_kernel_metadata: Mapping[str, Any] = _NO_METADATA,
        bias_metadata: Mapping[str, Any] = _NO_METADATA,
    ) -> None:
        self._keep(
            in_features,
            hidden_features,
            activation_fn,
            dtype,
            param_dtype,
            carry_init,
            promote_dtype,
            keep_rngs,
            rngs,
        )
        self.gate_fn = gate_fn
        linear = functools.partial(
            Linear, dtype=dtype, param_dtype=param_dtype, promote_dtype=promote_dtype, rngs=rngs
        )
        for_inputs = functools.partial(
            linear,
            in_features,
            hidden_features,
            use_bias=False,
            kernel_init=kernel_init,
            kernel_metadata=kernel_metadata,
        )
        for_hidden = functools.partial(
            linear,
            hidden_features,
            hidden_features,
            kernel_init=recurrent_kernel_init,
            bias_init=bias_init,
            kernel_metadata=recurrent_kernel_metadata,
            bias_metadata=bias_metadata,
        )
        self.ii = for_inputs()
        self.if_ = for_inputs()
        self.ig = for_inputs()
        self.io = for_inputs()
        self.hi = for_hidden()
        self.hf = for_hidden()
        self.hg = for_hidden()
        self.ho = for_hidden()

    def step(
        self, carry: Carry, *projected: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        """The step after the input layers.

        Args:
          carry: the tuple (c, h).
          *projected: what ``ii``, ``if_``, ``ig`` and ``io`` returned.

        Returns:
          The new carry, and h' in the dtype of the computation.
        """
        i, f, g, o = projected
        c, h = self.carry_arrays(carry, i.shape[:-1])
        gates = (i + self.hi(h), f + self.hf(h), g + self.hg(h), o + self.ho(h))
        return _lstm_update(self, c, h.dtype, *gates)


class OptimizedLSTMCell(CheckedCell):
    """An :class:`LSTMCell` that computes its four gates with one product of inputs and one of h.

    The gates stand in the order i, f, g, o along the last axes of kernels and bias. The carry is
    the tuple (c, h), as of :class:`LSTMCell`.

    Attributes:
      dense_i: Linear without bias for the inputs; its kernel is (in_features, 4 hidden_features).
      dense_h: Linear for h; its kernel is (hidden_features, 4 hidden_features).

    Args:
      in_features: size of the inputs' last axis.
      hidden_features: size of the last axis of c, h and the outputs.
      gate_fn: the function at the gates i, f and o.
      activation_fn: the function at g and c'.
      kernel_init: initializer of the inputs' kernel.
      recurrent_kernel_init: initializer of the kernel of h; default: orthogonal.
      bias_init: initializer of the bias.
      dtype: dtype of the computation; None takes the one to which inputs and parameters promote.
      param_dtype: dtype in which the parameters are stored, and of the first carry.
      carry_init: initializer of the first carry's arrays; default: zeros.
      promote_dtype: function that casts arrays to ``dtype``, see :class:`Linear`.
      keep_rngs: whether to keep a fork of the stream ``carry``, for a random first carry.
      rngs: where the parameters' keys come from (stream ``params``).
      kernel_metadata: metadata of the Param of the inputs' kernel.
      recurrent_kernel_metadata: metadata of the Param of the kernel of h.
      bias_metadata: metadata of the bias's Param.

    Raises:
      ArgumentError: a size is below 1; (in the call) the carry is not two arrays.
      RngError: ``rngs`` is not a :class:`moduli.Rngs`.
      ShapeError: (in the call) inputs or carry do not have the layer's sizes.
      DtypeError: (in the call) the carry holds integers, or there is no common dtype.

    Example:
      >>> import jax.numpy as jnp, moduli
      >>> from moduli_layers import OptimizedLSTMCell
      >>> cell = OptimizedLSTMCell(3, 4, rngs=moduli.Rngs(0))
      >>> cell.dense_i.kernel.shape, cell.dense_h.kernel.shape
      ((3, 16), (4, 16))
      >>> x = jnp.ones((2, 3))
      >>> (c, h), y = cell(cell.initialize_carry(x.shape), x)
      >>> y.shape
      (2, 4)
    """

    __module__ = "moduli_layers"

    input_layers: ClassVar[tuple[str, ...]] = ("dense_i",)
    carry_names: ClassVar[tuple[str, ...]] = ("c", "h")

    torch_counterpart: ClassVar[Counterpart] = Counterpart(
        "torch.nn.LSTMCell",
        {
            "weight_ih": Tensor("dense_i.kernel", "i o -> o i"),
            "weight_hh": Tensor("dense_h.kernel", "i o -> o i"),
            "bias_ih": Tensor("dense_h.bias", zero=("dense_h.bias",)),
            "bias_hh": Tensor("dense_h.bias"),
        },
        {"input_size": "in_features", "hidden_size": _torch_size},
    )

    @checked
    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        gate_fn: Callable[..., Any] = sigmoid,
        activation_fn: Callable[..., Any] = tanh,
        kernel_init: initializers.Initializer = default_kernel_init,
        recurrent_kernel_init: initializers.Initializer = default_recurrent_kernel_init,
        bias_init: initializers.Initializer = initializers.zeros,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        carry_init: initializers.Initializer | None = None,
        promote_dtype: PromoteDtype = promote_dtype,
        keep_rngs: bool = False,
        rngs: moduli.Rngs,
        kernel_metadata: Mapping[str, Any] = _NO_METADATA,
        recurrent_kernel_metadata: Mapping[str, Any] = _NO_METADATA,
        bias_metadata: Mapping[str, Any] = _NO_METADATA,
    ) -> None:
        self._keep(
            in_features,
            hidden_features,
            activation_fn,
            dtype,
            param_dtype,
            carry_init,
            promote_dtype,
            keep_rngs,
            rngs,
        )
        self.gate_fn = gate_fn
        linear = functools.partial(
            Linear, dtype=dtype, param_dtype=param_dtype, promote_dtype=promote_dtype, rngs=rngs
        )
        self.dense_i = linear(
            in_features,
            4 * hidden_features,
            use_bias=False,
            kernel_init=kernel_init,
            kernel_metadata=kernel_metadata,
        )
        self.dense_h = linear(
            hidden_features,
            4 * hidden_features,
            kernel_init=recurrent_kernel_init,
            bias_init=bias_init,
            kernel_metadata=recurrent_kernel_metadata,
            bias_metadata=bias_metadata,
        )

    def step(
        self, carry: Carry, *projected: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        """The step after the input layer.

        Args:
          carry: the tuple (c, h).
          *projected: what ``dense_i`` returned.

        Returns:
          The new carry, and h' in the dtype of the computation.
        """
        (x,) = projected
        c, h = self.carry_arrays(carry, x.shape[:-1])
        gates = jnp.split(x + self.dense_h(h), 4, axis=-1)
        return _lstm_update(self, c, h.dtype, *gates)


class SimpleCell(CheckedCell):
    r"""The cell of Elman's network: ``h' = tanh(W_i x + b + W_h h)``.

    The carry is h, an array of shape (..., hidden_features), which keeps its dtype from step to
    step; outputs are h' in the dtype of the computation.

    Attributes:
      dense_i: Linear for the inputs; its kernel is (in_features, hidden_features).
      dense_h: Linear without bias for h; its kernel is (hidden_features, hidden_features).

    Args:
      in_features: size of the inputs' last axis.
      hidden_features: size of the last axis of h and the outputs.
      dtype: dtype of the computation; None takes the one to which inputs and parameters promote.
      param_dtype: dtype in which the parameters are stored, and of the first carry.
      carry_init: initializer of the first carry; default: zeros.
      residual: whether to add h inside of the function: ``h' = tanh(W_i x + b + W_h h + h)``.
      activation_fn: the function, in the place of tanh.
      kernel_init: initializer of the inputs' kernel.
      recurrent_kernel_init: initializer of the kernel of h; default: orthogonal.
      bias_init: initializer of the bias.
      promote_dtype: function that casts arrays to ``dtype``, see :class:`Linear`.
      keep_rngs: whether to keep a fork of the stream ``carry``, for a random first carry.
      rngs: where the parameters' keys come from (stream ``params``).
      kernel_metadata: metadata of the Param of the inputs' kernel.
      recurrent_kernel_metadata: metadata of the Param of the kernel of h.
      bias_metadata: metadata of the bias's Param.

    Raises:
      ArgumentError: a size is below 1; (in the call) the carry is not one array.
      RngError: ``rngs`` is not a :class:`moduli.Rngs`.
      ShapeError: (in the call) inputs or carry do not have the layer's sizes.
      DtypeError: (in the call) the carry holds integers, or there is no common dtype.

    Example:
      >>> import jax.numpy as jnp, moduli
      >>> from moduli_layers import SimpleCell
      >>> cell = SimpleCell(3, 4, rngs=moduli.Rngs(0))
      >>> x = jnp.ones((2, 3))
      >>> h, y = cell(cell.initialize_carry(x.shape), x)
      >>> h.shape, y.shape
      ((2, 4), (2, 4))

    Reference:
      Elman, Finding Structure in Time, 1990, https://doi.org/10.1207/s15516709cog1402_1
    """

    __module__ = "moduli_layers"

    input_layers: ClassVar[tuple[str, ...]] = ("dense_i",)

    torch_counterpart: ClassVar[Counterpart] = Counterpart(
        "torch.nn.RNNCell",
        {
            "weight_ih": Tensor("dense_i.kernel", "i o -> o i"),
            "weight_hh": Tensor("dense_h.kernel", "i o -> o i"),
            "bias_ih": Tensor("dense_i.bias"),
            "bias_hh": Tensor("dense_i.bias", zero=("dense_i.bias",)),
        },
        {
            "input_size": "in_features",
            "hidden_size": "hidden_features",
            "nonlinearity": _torch_nonlinearity,
        },
    )

    @checked
    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        dtype: DTypeLike | None = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        carry_init: initializers.Initializer | None = None,
        residual: bool = False,
        activation_fn: Callable[..., Any] = tanh,
        kernel_init: initializers.Initializer = default_kernel_init,
        recurrent_kernel_init: initializers.Initializer = default_recurrent_kernel_init,
        bias_init: initializers.Initializer = initializers.zeros,
        promote_dtype: PromoteDtype = promote_dtype,
        keep_rngs: bool = False,
        rngs: moduli.Rngs,
        kernel_metadata: Mapping[str, Any] = _NO_METADATA,
        recurrent_kernel_metadata: Mapping[str, Any] = _NO_METADATA,
        bias_metadata: Mapping[str, Any] = _NO_METADATA,
    ) -> None:
        self._keep(
            in_features,
            hidden_features,
            activation_fn,
            dtype,
            param_dtype,
            carry_init,
            promote_dtype,
            keep_rngs,
            rngs,
        )
        self.residual = residual
        linear = functools.partial(
            Linear, dtype=dtype, param_dtype=param_dtype, promote_dtype=promote_dtype, rngs=rngs
        )
        self.dense_h = linear(
            hidden_features,
            hidden_features,
            use_bias=False,
            kernel_init=recurrent_kernel_init,
            kernel_metadata=recurrent_kernel_metadata,
        )
        self.dense_i = linear(
            in_features,
            hidden_features,
            kernel_init=kernel_init,
            bias_init=bias_init,
            kernel_metadata=kernel_metadata,
            bias_metadata=bias_metadata,
        )

    def step(self, carry: Carry, *projected: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The step after the input layer.

        Args:
          carry: h.
          *projected: what ``dense_i`` returned.

        Returns:
          The new carry, and h' in the dtype of the computation.
        """
        (x,) = projected
        (h,) = self.carry_arrays(carry, x.shape[:-1])
        total = x + self.dense_h(h)
        if self.residual:
            total = total + h.astype(total.dtype)
        outputs = self.activation_fn(total)
        return outputs.astype(h.dtype), outputs


class GRUCell(CheckedCell):
    r"""A gated recurrent unit.

    .. math::

        r &= \sigma(W_{ir} x + b_r + W_{hr} h) \qquad z = \sigma(W_{iz} x + b_z + W_{hz} h) \\
        n &= \tanh(W_{in} x + b_n + r (W_{hn} h)) \\
        h' &= (1 - z) n + z h

    The gates stand in the order r, z, n along the last axes of kernels and bias. (PyTorch's GRU has
    one more bias, inside of the factor of r; its parameters come over if that one is zero.)

    The carry is h, an array of shape (..., hidden_features), which keeps its dtype from step to
    step; outputs are h' in the dtype of the computation.

    Attributes:
      dense_i: Linear for the inputs; its kernel is (in_features, 3 hidden_features).
      dense_h: Linear without bias for h; its kernel is (hidden_features, 3 hidden_features).

    Args:
      in_features: size of the inputs' last axis.
      hidden_features: size of the last axis of h and the outputs.
      gate_fn: the function at the gates r and z.
      activation_fn: the function at n.
      kernel_init: initializer of the inputs' kernel.
      recurrent_kernel_init: initializer of the kernel of h; default: orthogonal.
      bias_init: initializer of the bias.
      dtype: dtype of the computation; None takes the one to which inputs and parameters promote.
      param_dtype: dtype in which the parameters are stored, and of the first carry.
      carry_init: initializer of the first carry; default: zeros.
      promote_dtype: function that casts arrays to ``dtype``, see :class:`Linear`.
      keep_rngs: whether to keep a fork of the stream ``carry``, for a random first carry.
      rngs: where the parameters' keys come from (stream ``params``).
      kernel_metadata: metadata of the Param of the inputs' kernel.
      recurrent_kernel_metadata: metadata of the Param of the kernel of h.
      bias_metadata: metadata of the bias's Param.

    Raises:
      ArgumentError: a size is below 1; (in the call) the carry is not one array.
      RngError: ``rngs`` is not a :class:`moduli.Rngs`.
      ShapeError: (in the call) inputs or carry do not have the layer's sizes.
      DtypeError: (in the call) the carry holds integers, or there is no common dtype.

    Example:
      >>> import jax.numpy as jnp, moduli
      >>> from moduli_layers import GRUCell
      >>> cell = GRUCell(3, 4, rngs=moduli.Rngs(0))
      >>> x = jnp.ones((2, 3))
      >>> h, y = cell(cell.initialize_carry(x.shape), x)
      >>> h.shape, y.shape
      ((2, 4), (2, 4))

    Reference:
      Cho et al., Learning Phrase Representations using RNN Encoder-Decoder, 2014,
      https://arxiv.org/abs/1406.1078
    """

    __module__ = "moduli_layers"

    input_layers: ClassVar[tuple[str, ...]] = ("dense_i",)

    torch_counterpart: ClassVar[Counterpart] = Counterpart(
        "torch.nn.GRUCell",
        {
            "weight_ih": Tensor("dense_i.kernel", "i o -> o i"),
            "weight_hh": Tensor("dense_h.kernel", "i o -> o i"),
            "bias_ih": Tensor("dense_i.bias"),
            "bias_hh": Tensor(
                "dense_i.bias",
                zero=("dense_i.bias",),
                absent=lambda bias: bias[2 * (len(bias) // 3) :],  # of the gate n
            ),
        },
        {"input_size": "in_features", "hidden_size": _torch_size},
    )

    @checked
    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        gate_fn: Callable[..., Any] = sigmoid,
        activation_fn: Callable[..., Any] = tanh,
        kernel_init: initializers.Initializer = default_kernel_init,
        recurrent_kernel_init: initializers.Initializer = default_recurrent_kernel_init,
        bias_init: initializers.Initializer = initializers.zeros,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        carry_init: initializers.Initializer | None = None,
        promote_dtype: PromoteDtype = promote_dtype,
        keep_rngs: bool = False,
        rngs: moduli.Rngs,
        kernel_metadata: Mapping[str, Any] = _NO_METADATA,
        recurrent_kernel_metadata: Mapping[str, Any] = _NO_METADATA,
        bias_metadata: Mapping[str, Any] = _NO_METADATA,
    ) -> None:
        self._keep(
            in_features,
            hidden_features,
            activation_fn,
            dtype,
            param_dtype,
            carry_init,
            promote_dtype,
            keep_rngs,
            rngs,
        )
        self.gate_fn = gate_fn
        linear = functools.partial(
            Linear, dtype=dtype, param_dtype=param_dtype, promote_dtype=promote_dtype, rngs=rngs
        )
        self.dense_i = linear(
            in_features,
            3 * hidden_features,
            kernel_init=kernel_init,
            bias_init=bias_init,
            kernel_metadata=kernel_metadata,
            bias_metadata=bias_metadata,
        )
        self.dense_h = linear(
            hidden_features,
            3 * hidden_features,
            use_bias=False,
            kernel_init=recurrent_kernel_init,
            kernel_metadata=recurrent_kernel_metadata,
        )

    def step(self, carry: Carry, *projected: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The step after the input layer.

        Args:
          carry: h.
          *projected: what ``dense_i`` returned.

        Returns:
          The new carry, and h' in the dtype of the computation.
        """
        (x,) = projected
        (h,) = self.carry_arrays(carry, x.shape[:-1])
        x_r, x_z, x_n = jnp.split(x, 3, axis=-1)
        h_r, h_z, h_n = jnp.split(self.dense_h(h), 3, axis=-1)
        r = self.gate_fn(x_r + h_r)
        z = self.gate_fn(x_z + h_z)
        n = self.activation_fn(x_n + r * h_n)
        dtype = wider(n.dtype, h.dtype)
        z, new = z.astype(dtype), n.astype(dtype)
        h_new = (1 - z) * new + z * h.astype(dtype)
        return h_new.astype(h.dtype), h_new.astype(n.dtype)
