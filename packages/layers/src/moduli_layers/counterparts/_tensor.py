"""How one tensor of another framework is made of a layer's Variables, and they of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from moduli.errors import ShapeError, StructureError

__all__ = ["Tensor"]

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of the other framework, in terms of a layer's Variables.

    Attributes:
      of: path of the Variable from the layer, with dots (``"query.kernel"``), or several paths,
        whose arrays stand one after the other along ``axis`` of the tensor.
      layout: how the axes of our array become those of theirs, ``"i o -> o i"``. Axes in
        parentheses on the right are merged, ``"i h d -> (h d) i"``; ``...`` stands for the axes in
        between, in order. None if they are equal.
      axis: the tensor's axis along which several arrays are put together, or one is in parts.
      flip: names of axes in ``layout`` whose order is reversed; ``"..."`` for those it stands for.
      zero: those of the paths for which the tensor holds zeros; what it holds there on the way back
        is added to the Variable (the second of two biases that are only ever summed).
      absent: takes the part out of the tensor for which the layer has no parameter; it has to be
        zero to come over. None if there is no such part.
      offset: what is added to their numbers to make ours: 1 for a norm whose scale is kept as its
        distance from one.
      rows: how many entries the tensor has along its first axis, where one of the two is padded (a
        vocabulary). If our array has more, the others are left out of the tensor, and are zero on
        the way back; if it has fewer, the tensor has zeros there, and they are dropped on the way
        back. None if both have as many.
      part: ``(index, number)`` if the tensor is one of several equal parts of our array, along
        ``axis`` of the tensor.
      optional: whether a file may lack the tensor, so that the Variable keeps its value.

    Example:
      >>> import numpy as np
      >>> from moduli_layers.counterparts import Tensor
      >>> tensor = Tensor("kernel", "i h d -> (h d) i")
      >>> tensor.to_theirs([np.ones((2, 3, 4))]).shape, tensor.shape([(2, 3, 4)])
      ((12, 2), (12, 2))
    """

    of: str | tuple[str, ...]
    layout: str | None = None
    axis: int = 0
    flip: tuple[str, ...] = ()
    zero: tuple[str, ...] = ()
    absent: Callable[[np.ndarray], np.ndarray] | None = None
    offset: float = 0.0
    rows: int | None = None
    part: tuple[int, int] | None = None
    optional: bool = False

    @property
    def paths(self) -> tuple[str, ...]:
        """The Variables' paths."""
        return (self.of,) if isinstance(self.of, str) else self.of

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        """Returns the shape of the other framework's array; no array is made.

        Args:
          shapes: the shapes of the Variables' values, one for each path.

        Raises:
          StructureError: the shapes do not fit the layout, or each other.
        """
        theirs = [list(self._moved(shape)) for shape in shapes]
        first = theirs[0]
        if len(theirs) > 1:
            axis = self.axis % max(len(first), 1)
            cut = [shape[:axis] + shape[axis + 1 :] for shape in theirs]
            if any(other != cut[0] for other in cut):
                raise StructureError(
                    f"arrays of the shapes {list(shapes)} cannot be put together along axis "
                    f"{self.axis} of the tensor for {', '.join(self.paths)}"
                )
            first[axis] = sum(shape[axis] for shape in theirs)
        if self.part is not None:
            number = self.part[1]
            if first[self.axis] % number:
                raise StructureError(
                    f"the axis {self.axis} of the array for {self.paths[0]} has "
                    f"{first[self.axis]} entries, which are no {number} equal parts"
                )
            first[self.axis] //= number
        if self.rows is not None:
            first[0] = self.rows
        return tuple(first)

    def along(self, of: str, axes: Sequence[int], rank: int) -> Tensor:
        """Makes the tensor of numbers that belong to some axes of our array.

        Args:
          of: path of the Variable with these numbers, one axis for each of ``axes``.
          axes: those axes of our array, which has ``rank``.
          rank: the number of its axes.

        Returns:
          A tensor with as many axes as this one; the others have the size 1.

        Example:
          >>> from moduli_layers.counterparts import Tensor
          >>> Tensor("kernel", "i o -> o i").along("scale", [1], 2).shape([(4,)])
          (4, 1)
        """
        ours, theirs = self._plan(rank)
        kept = [ours[axis] for axis in axes]
        groups = (" ".join(name for name in group if name in kept) for group in theirs)
        right = " ".join(f"({group})" for group in groups)
        return Tensor(of, f"{' '.join(kept)} -> {right}", flip=self.flip)

    def below(self, prefix: str) -> Tensor:
        """Makes the same tensor for a layer that holds this one's.

        Args:
          prefix: what stands before the paths, ``"cell."``.
        """
        return dataclasses.replace(
            self,
            of=tuple(prefix + path for path in self.paths),
            zero=tuple(prefix + path for path in self.zero),
        )

    def to_theirs(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
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
        whole = theirs[0] if len(theirs) == 1 else np.concatenate(theirs, self.axis)
        if self.part is not None:
            index, number = self.part
            whole = np.split(whole, number, self.axis)[index]
        if self.offset:
            wide = np.promote_types(np.float32, whole.dtype)
            whole = (whole.astype(wide) - wide.type(self.offset)).astype(whole.dtype)
        return whole if self.rows is None else _with_rows(whole, self.rows)

    def to_ours(self, array: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        """Makes the Variables' values.

        Args:
          array: the other framework's array; of a tensor that is a part, all parts put together.
          shapes: the shapes of the Variables' values, one for each path.

        Returns:
          One array for each path. With an ``offset`` they are float32 or wider.

        Raises:
          ShapeError: the array is not of the shape that belongs to these.
          StructureError: the array is not zero where the layer has no parameter.
        """
        array = np.asarray(array)
        whole = dataclasses.replace(self, part=None)
        expected = whole.shape(shapes)
        if array.shape != expected:
            raise ShapeError(
                f"a tensor for {', '.join(self.paths)} has the shape {array.shape}, expected "
                f"{expected}, which belongs to {shapes[0] if len(shapes) == 1 else list(shapes)}"
            )
        if self.absent is not None and np.any(self.absent(array)):
            raise StructureError(
                f"a tensor for {', '.join(self.paths)} has a part for which the layer has no "
                "parameter, and which is not zero; set it to zero there, or write a layer that "
                "has the parameter"
            )
        if self.rows is not None:
            padded = dataclasses.replace(whole, rows=None)
            array = _with_rows(array, padded.shape(shapes)[0])
        if self.offset:
            wide = np.promote_types(np.float32, array.dtype)
            array = array.astype(wide) + wide.type(self.offset)
        parts = [array]
        if len(shapes) > 1:
            sizes = [self._moved(shape)[self.axis] for shape in shapes]
            parts = np.split(array, np.cumsum(sizes)[:-1], self.axis)
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

    def _moved(self, shape: Shape) -> Shape:
        ours, theirs = self._plan(len(shape))
        sizes = dict(zip(ours, shape, strict=True))
        return tuple(math.prod(sizes[name] for name in group) for group in theirs)

    def _flipped(self, array: np.ndarray, ours: list[str]) -> np.ndarray:
        axes = [
            i
            for i, name in enumerate(ours)
            if name in self.flip or ("..." in self.flip and name.startswith("..."))
        ]
        return np.flip(array, tuple(axes)) if axes else array

    def _forth(self, array: np.ndarray) -> np.ndarray:
        ours, theirs = self._plan(array.ndim)
        order = [ours.index(name) for group in theirs for name in group]
        return self._flipped(array, ours).transpose(order).reshape(self._moved(array.shape))

    def _back(self, array: np.ndarray, shape: Shape) -> np.ndarray:
        ours, theirs = self._plan(len(shape))
        sizes = dict(zip(ours, shape, strict=True))
        spread = [name for group in theirs for name in group]
        array = array.reshape([sizes[name] for name in spread])
        return self._flipped(array.transpose([spread.index(name) for name in ours]), ours)


def _with_rows(array: np.ndarray, rows: int) -> Any:
    """Cuts or pads the first axis."""
    if len(array) >= rows:
        return array[:rows]
    padding = np.zeros((rows - len(array), *array.shape[1:]), array.dtype)
    return np.concatenate([array, padding])


def _spaced(layout: str) -> str:
    return layout.replace("(", " ( ").replace(")", " ) ").replace("->", " -> ")
