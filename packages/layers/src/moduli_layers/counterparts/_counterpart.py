"""A layer of another framework that computes the same as one of ours."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moduli.errors import StructureError
from moduli_layers.counterparts._tensor import Tensor

__all__ = ["Counterpart", "Setting"]


def _nothing() -> Any:
    return dataclasses.field(default_factory=lambda: MappingProxyType({}))


@dataclasses.dataclass(frozen=True)
class Setting:
    """An argument of the other framework's constructor, in terms of a layer's attribute.

    Attributes:
      attribute: the layer's attribute, with dots.
      to_theirs: makes their argument of the attribute's value.
      to_ours: the inverse; None if there is none.

    Example:
      >>> from moduli_layers.counterparts import Setting
      >>> keep = Setting("momentum", lambda ours: 1 - ours, lambda theirs: 1 - theirs)
      >>> round(keep.to_theirs(0.9), 6)
      0.1
    """

    attribute: str
    to_theirs: Callable[[Any], Any]
    to_ours: Callable[[Any], Any] | None = None


@dataclasses.dataclass(frozen=True)
class Counterpart:
    """A layer of another framework that computes the same.

    Attributes:
      name: its qualified name, ``"torch.nn.Linear"``. ``{rank}`` in it stands for the number of
        spatial axes, where only the inputs tell it: see :meth:`name_for`.
      tensors: its parameters and buffers by name. One whose Variables are None in a layer (no bias)
        does not exist there either.
      settings: arguments of its constructor by name: an attribute of our layer, a
        :class:`Setting`, or a function of our layer (when it is made of more than one attribute).
      fixed: arguments of its constructor that are always the same.
      feature_axis: the axis of the features in its inputs and outputs, where ours is the last.
      output: takes what our layer returns out of what theirs returns, if that is more.
    """

    name: str
    tensors: Mapping[str, Tensor]
    settings: Mapping[str, str | Setting | Callable[[Any], Any]] = _nothing()
    fixed: Mapping[str, Any] = _nothing()
    feature_axis: int = -1
    output: Callable[[Any], Any] | None = None

    def name_for(self, inputs: Any) -> str:
        """Returns the qualified name of the class that takes such inputs.

        Args:
          inputs: an array of shape ``(batch, *spatial, features)``.

        Example:
          >>> import numpy as np
          >>> from moduli_layers.counterparts import Counterpart
          >>> Counterpart("torch.nn.BatchNorm{rank}d", {}).name_for(np.ones((2, 28, 28, 3)))
          'torch.nn.BatchNorm2d'
        """
        return self.name.replace("{rank}", str(max(np.ndim(inputs) - 2, 1)))

    def arguments(self, layer: Any) -> dict[str, Any]:
        """Makes the arguments with which to build the other layer.

        Args:
          layer: our layer.

        Returns:
          Keyword arguments of ``name``'s constructor.
        """
        found = dict(self.fixed)
        for name, setting in self.settings.items():
            if isinstance(setting, str):
                found[name] = operator.attrgetter(setting)(layer)
            elif isinstance(setting, Setting):
                found[name] = setting.to_theirs(operator.attrgetter(setting.attribute)(layer))
            else:
                found[name] = setting(layer)
        return found

    def to_theirs(self, layer: Any) -> dict[str, np.ndarray]:
        """Makes the other layer's tensors.

        Args:
          layer: our layer.

        Returns:
          Arrays by the tensors' names, as in ``state_dict()``.

        Example:
          >>> import moduli, numpy as np
          >>> from moduli_layers import Linear
          >>> layer = Linear(3, 4, rngs=moduli.Rngs(0))
          >>> layer.torch_counterpart.to_theirs(layer)["weight"].shape
          (4, 3)
        """
        found = {}
        for name, tensor in self.tensors.items():
            variables = [_variable(layer, path) for path in tensor.paths]
            if not any(variable is None for variable in variables):
                found[name] = tensor.to_theirs([np.asarray(v.value) for v in variables])
        return found

    def to_ours(self, layer: Any, tensors: Mapping[str, Any]) -> None:
        """Writes the other layer's tensors into our layer, all of them or none.

        They go where the layer's own arrays are.

        Args:
          layer: our layer.
          tensors: arrays by name. More names than :attr:`tensors` has are left alone.

        Raises:
          StructureError: a tensor is missing, holds numbers for which the layer has no parameter,
            or would be narrowed to the dtype of the layer.
          ShapeError: a tensor has another shape than the layer's.
        """
        written: dict[str, np.ndarray] = {}
        for name, tensor in self.tensors.items():
            variables = [_variable(layer, path) for path in tensor.paths]
            if any(variable is None for variable in variables):
                continue
            if name not in tensors:
                raise StructureError(
                    f"{self.name} has no tensor {name!r} for {type(layer).__name__}."
                    f"{tensor.paths[0]}; it has {', '.join(map(repr, tensors)) or 'none'}"
                )
            shapes = [variable.shape for variable in variables]
            arrays = tensor.to_ours(np.asarray(tensors[name]), shapes)
            for path, array in zip(tensor.paths, arrays, strict=True):
                written[path] = written[path] + array if path in written else array
        values = {path: self._fitting(layer, path, array) for path, array in written.items()}
        for path, value in values.items():
            _variable(layer, path).value = value

    def _fitting(self, layer: Any, path: str, array: np.ndarray) -> jax.Array:
        """Returns an array in a Variable's dtype and place; refuses to narrow it."""
        variable = _variable(layer, path)
        # as JAX takes every array: 64 bits are 32 unless jax_enable_x64 is on
        dtype = jax.dtypes.canonicalize_dtype(variable.dtype)
        given = jax.dtypes.canonicalize_dtype(array.dtype)
        if not _holds(dtype, given):
            raise StructureError(
                f"{self.name} has {given.name} for {type(layer).__name__}.{path}, which is "
                f"{dtype.name} and would round it; cast it first, or make the layer with "
                f"param_dtype=jnp.{given.name}"
            )
        old = variable.get_raw_value()
        value = np.asarray(array.astype(dtype), order="C")
        sharding = getattr(old, "sharding", None)
        if sharding is not None and getattr(old, "committed", True):
            return jax.device_put(value, sharding)
        return jnp.asarray(value)


def _holds(wide: np.dtype, narrow: np.dtype) -> bool:
    """Returns whether each number of one dtype is one of another."""
    if wide == narrow:
        return True
    if jnp.issubdtype(wide, np.floating) and jnp.issubdtype(narrow, np.floating):
        a, b = jnp.finfo(wide), jnp.finfo(narrow)
        return a.nmant >= b.nmant and a.maxexp >= b.maxexp and a.minexp <= b.minexp
    if jnp.issubdtype(wide, np.integer) and jnp.issubdtype(narrow, np.integer):
        a, b = jnp.iinfo(wide), jnp.iinfo(narrow)
        return a.min <= b.min and a.max >= b.max
    return False


def _variable(layer: Any, path: str) -> Any:
    for name in path.split("."):
        if layer is not None:
            layer = layer[int(name)] if name.isdigit() else getattr(layer, name)
    return layer
