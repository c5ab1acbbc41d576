"""What a layer is called, and how its parameters are laid out, in another framework.

A layer says it once, as data, in a class attribute: ``torch_counterpart``. Bridges and tests read
it; a third party's layer that has one is bridged as ours are.

Example:
  >>> import moduli as nnx
  >>> from moduli_layers.counterparts import Counterpart, Tensor
  >>> class Affine(nnx.Module):
  ...     torch_counterpart = Counterpart(
  ...         "torch.nn.Linear",
  ...         {"weight": Tensor("kernel", "i o -> o i"), "bias": Tensor("bias")},
  ...         {"in_features": "in_features", "out_features": "out_features"},
  ...     )
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
import numpy as np

from moduli.errors import ShapeError, StructureError

__all__ = ["Counterpart", "Setting", "Tensor"]


def _nothing() -> Any:
    return dataclasses.field(default_factory=lambda: MappingProxyType({}))


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of the other framework, in terms of a layer's Variables.

    Attributes:
      of: path of the Variable from the layer, with dots (``"query.kernel"``), or several paths,
        whose arrays stand one after the other along ``axis`` of the tensor.
      layout: how the axes of our array become those of theirs, ``"i o -> o i"``. Axes in
        parentheses on the right are merged, ``"i h d -> (h d) i"``; ``...`` stands for the axes in
        between, in order. None if they are equal.
      axis: the tensor's axis along which several arrays are put together.
      flip: names of axes in ``layout`` whose order is reversed; ``"..."`` for those it stands for.
      zero: those of the paths for which the tensor holds zeros; what it holds there on the way back
        is added to the Variable (the second of two biases that are only ever summed).
      absent: takes the part out of the tensor for which the layer has no parameter; it has to be
        zero to come over. None if there is no such part.
    """

    of: str | tuple[str, ...]
    layout: str | None = None
    axis: int = 0
    flip: tuple[str, ...] = ()
    zero: tuple[str, ...] = ()
    absent: Callable[[np.ndarray], np.ndarray] | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        """The Variables' paths."""
        return (self.of,) if isinstance(self.of, str) else self.of

    def to_theirs(self, arrays: list[np.ndarray]) -> np.ndarray:
        """Makes the other framework's array.

        Args:
          arrays: the Variables' values, one for each path.

        Returns:
          One array, in the other framework's layout.
        """
        theirs = [
            np.zeros_like(self._forth(array)) if path in self.zero else self._forth(array)
            for path, array in zip(self.paths, map(np.asarray, arrays), strict=True)
        ]
        return theirs[0] if len(theirs) == 1 else np.concatenate(theirs, self.axis)

    def to_ours(self, array: np.ndarray, shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
        """Makes the Variables' values.

        Args:
          array: the other framework's array.
          shapes: the shapes of the Variables' values, one for each path.

        Returns:
          One array for each path.

        Raises:
          ShapeError: the array is not of the shape that belongs to these.
          StructureError: the array is not zero where the layer has no parameter.
        """
        array = np.asarray(array)
        expected = self.to_theirs([np.broadcast_to(0.0, shape) for shape in shapes]).shape
        if array.shape != expected:
            raise ShapeError(
                f"a tensor for {', '.join(self.paths)} has the shape {array.shape}, expected "
                f"{expected}, which belongs to {shapes[0] if len(shapes) == 1 else shapes}"
            )
        if self.absent is not None and np.any(self.absent(array)):
            raise StructureError(
                f"a tensor for {', '.join(self.paths)} has a part for which the layer has no "
                "parameter, and which is not zero; set it to zero there, or write a layer that "
                "has the parameter"
            )
        sizes = [self._forth(np.broadcast_to(0.0, shape)).shape[self.axis] for shape in shapes]
        parts = np.split(array, np.cumsum(sizes)[:-1], self.axis) if len(shapes) > 1 else [array]
        return [self._back(part, shape) for part, shape in zip(parts, shapes, strict=True)]

    def _plan(self, rank: int) -> tuple[list[str], list[list[str]]]:
        """Returns the names of our axes, and of theirs, each the list of those it merges."""
        if self.layout is None:
            names = [str(i) for i in range(rank)]
            return names, [[name] for name in names]
        left, right = (side.split() for side in _spaced(self.layout).split("->"))
        rest = [f"...{i}" for i in range(rank - len(left) + 1)] if "..." in left else []
        ours = [n for name in left for n in (rest if name == "..." else [name])]
        theirs: list[list[str]] = []
        group: list[str] | None = None
        for name in right:
            if name == "(":
                group = []
                theirs.append(group)
            elif name == ")":
                group = None
            else:
                for each in rest if name == "..." else [name]:
                    theirs.append([each]) if group is None else group.append(each)
        if len(ours) != rank or sorted(ours) != sorted(n for g in theirs for n in g):
            raise StructureError(
                f"the layout {self.layout!r} does not fit an array with {rank} axes; each name "
                "stands once on either side"
            )
        return ours, theirs

    def _flipped(self, array: np.ndarray, ours: list[str]) -> np.ndarray:
        axes = [
            i
            for i, name in enumerate(ours)
            if name in self.flip or ("..." in self.flip and name.startswith("..."))
        ]
        return np.flip(array, tuple(axes)) if axes else array

    def _forth(self, array: np.ndarray) -> np.ndarray:
        ours, theirs = self._plan(array.ndim)
        sizes = dict(zip(ours, array.shape, strict=True))
        order = [ours.index(name) for group in theirs for name in group]
        shape = [math.prod(sizes[name] for name in group) for group in theirs]
        return self._flipped(array, ours).transpose(order).reshape(shape)

    def _back(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        ours, theirs = self._plan(len(shape))
        sizes = dict(zip(ours, shape, strict=True))
        spread = [name for group in theirs for name in group]
        array = array.reshape([sizes[name] for name in spread])
        return self._flipped(array.transpose([spread.index(name) for name in ours]), ours)


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

        Args:
          layer: our layer.
          tensors: arrays by name. More names than :attr:`tensors` has are left alone.

        Raises:
          StructureError: a tensor is missing, or holds numbers for which the layer has no
            parameter.
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
        for path, array in written.items():
            variable = _variable(layer, path)
            variable.value = jnp.asarray(np.asarray(array, variable.dtype))


def _variable(layer: Any, path: str) -> Any:
    for name in path.split("."):
        layer = None if layer is None else getattr(layer, name)
    return layer


def _spaced(layout: str) -> str:
    return layout.replace("(", " ( ").replace(")", " ) ").replace("->", " -> ")
