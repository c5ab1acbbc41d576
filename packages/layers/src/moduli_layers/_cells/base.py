"""Recurrent cells: one step of a recurrent network.

A step is told in two halves, because the first does not need the step before: ``input_layers``
names the layers that see the inputs, and ``step`` goes on from what these returned. So :class:`RNN`
can call the input layers once for all steps, in one large product, and leave one to the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

import moduli
from moduli.errors import RngError, ShapeError, StructureError
from moduli_layers import initializers
from moduli_layers._activations import relu, sigmoid, tanh
from moduli_layers._broadcasts import at_end
from moduli_layers._checks import check_features, check_positive, check_rngs, shape_text
from moduli_layers._dtypes import PromoteDtype
from moduli_layers._initial_values import fill
from moduli_layers._traced_once import traced_once
from moduli_layers.errors import ArgumentError, DtypeError

__all__ = [
    "Carry",
    "CheckedCell",
    "RNNCellBase",
    "Streams",
    "broadcasts",
    "default_recurrent_kernel_init",
    "torch_nonlinearity",
    "torch_size",
]

Streams = moduli.Rngs | moduli.RngStream
Carry = Any

_orthogonal = initializers.orthogonal()


@traced_once(static_argnums=(1, 2))
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
            if not fits or not broadcasts(array.shape[:-1], batch):
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


def broadcasts(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    try:
        return jnp.broadcast_shapes(shape, target) == target
    except ValueError:
        return False


def torch_size(cell: Any) -> int:
    """``hidden_size`` for torch, whose LSTM and GRU have fixed functions at their gates."""
    if cell.gate_fn is not sigmoid or cell.activation_fn is not tanh:
        raise StructureError(
            "torch's recurrent layers have the functions sigmoid and tanh, and none to choose; "
            f"got gate_fn={cell.gate_fn!r} and activation_fn={cell.activation_fn!r}"
        )
    return cell.hidden_features


def torch_nonlinearity(cell: Any) -> str:
    """``nonlinearity`` for ``torch.nn.RNN``."""
    name = {tanh: "tanh", relu: "relu"}.get(cell.activation_fn)
    if name is None or cell.residual:
        raise StructureError(
            "torch.nn.RNN has the functions tanh and relu and no residual; got "
            f"activation_fn={cell.activation_fn!r} and residual={cell.residual}"
        )
    return name
