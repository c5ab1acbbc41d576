"""How one tensor of another framework is made of a layer's Variables, and they of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from moduli.errors import ShapeError, StructureError

__all__ = ["Tensor"]

Shape = tuple[int, ...]


def _dotted(path: str) -> str:
    if "/" not in path and "[" not in path:
        return path
    from moduli.lowlevel import parse_path

    return ".".join(part.text for part in parse_path(path))


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of the other framework, in terms of a layer's Variables.

    Attributes:
      of: path of the Variable from the layer, with dots (``"query.kernel"``; slashes become dots),
        or several paths, whose arrays stand one after the other along ``axis`` of the tensor.
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
      optional: whether a file may lack the tensor, so that the Variable keeps its value; and, in a
        map of names, whether a model may lack the Variable.
      sizes: sizes of axes in parentheses on the left of ``layout``, all but one of each pair of
        parentheses: ``Tensor("kernel", "i (g o) -> (g i) o", sizes={"g": 2})``.

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
    sizes: Mapping[str, int] = dataclasses.field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        of = tuple(map(_dotted, self.paths))
        object.__setattr__(self, "of", of[0] if isinstance(self.of, str) else of)
        object.__setattr__(self, "zero", tuple(map(_dotted, self.zero)))

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
        """Returns the names of our axes, and of theirs, each the list of those it merges.

        Of axes that are in parentheses on the left, each is an axis of its own here.
        """
        ours, theirs = self._sides(rank)
        return [name for group in ours for name in group], theirs

    def _sides(self, rank: int) -> tuple[list[list[str]], list[list[str]]]:
        """Returns for each axis of either array the names of those that it merges."""
        if self.layout is None:
            names = [[str(i)] for i in range(rank)]
            return names, names
        left, right = (_groups(side.split()) for side in _spaced(self.layout).split("->"))
        rest = [f"...{i}" for i in range(rank - len(left) + 1)] if ["..."] in left else []
        ours = [group for each in left for group in _filled_in(each, rest)]
        theirs = [group for each in right for group in _filled_in(each, rest)]
        names = sorted(name for group in ours for name in group)
        merged = any(len(group) > 1 for group in ours) or "(" in self.layout.split("->")[0]
        if (
            (merged and not self.sizes)
            or len(ours) != rank
            or names != sorted(name for group in theirs for name in group)
        ):
            raise StructureError(
                f"the layout {self.layout!r} does not fit an array with {rank} axes; each name "
                "stands once on either side"
            )
        return ours, theirs

    def _sized(self, shape: Shape) -> dict[str, int]:
        """Returns the size of each named axis of an array of ours."""
        found: dict[str, int] = {}
        for group, size in zip(self._sides(len(shape))[0], shape, strict=True):
            given = {name: self.sizes[name] for name in group if name in self.sizes}
            missing = [name for name in group if name not in given]
            rest, left = divmod(size, math.prod(given.values()) or 1)
            if left or len(missing) > 1 or (not missing and rest != 1):
                raise StructureError(
                    f"the layout {self.layout!r} with sizes={dict(self.sizes)} does not fit an "
                    f"array of shape {shape}"
                )
            found |= given | dict.fromkeys(missing, rest)
        return found

    def _moved(self, shape: Shape) -> Shape:
        _, theirs = self._plan(len(shape))
        sizes = self._sized(shape)
        return tuple(math.prod(sizes[name] for name in group) for group in theirs)

    def _flipped(self, array: np.ndarray, ours: list[str]) -> np.ndarray:
        axes = [
            i
            for i, name in enumerate(ours)
            if name in self.flip or ("..." in self.flip and name.startswith("..."))
        ]
        return np.flip(array, tuple(axes)) if axes else array

    def _forth(self, array: np.ndarray) -> np.ndarray:
        shape = array.shape
        ours, theirs = self._plan(array.ndim)
        order = [ours.index(name) for group in theirs for name in group]
        sizes = self._sized(shape)
        array = array.reshape([sizes[name] for name in ours])
        return self._flipped(array, ours).transpose(order).reshape(self._moved(shape))

    def _back(self, array: np.ndarray, shape: Shape) -> np.ndarray:
        ours, theirs = self._plan(len(shape))
        sizes = self._sized(shape)
        spread = [name for group in theirs for name in group]
        array = array.reshape([sizes[name] for name in spread])
        turned = array.transpose([spread.index(name) for name in ours])
        return self._flipped(turned, ours).reshape(shape)


def _groups(names: list[str]) -> list[list[str]]:
    """Returns the axes of one side of a layout, each the list of names in its parentheses."""
    found: list[list[str]] = []
    group: list[str] | None = None
    for name in names:
        if name == "(":
            group = []
            found.append(group)
        elif name == ")":
            group = None
        elif group is None:
            found.append([name])
        else:
            group.append(name)
    return found


def _filled_in(group: list[str], rest: list[str]) -> list[list[str]]:
    """Puts the axes for which ``...`` stands in its place: alone they stay axes of their own."""
    if group == ["..."]:
        return [[name] for name in rest]
    return [[name for each in group for name in (rest if each == "..." else [each])]]


def _with_rows(array: np.ndarray, rows: int) -> Any:
    """Cuts or pads the first axis."""
    if len(array) >= rows:
        return array[:rows]
    padding = np.zeros((rows - len(array), *array.shape[1:]), array.dtype)
    return np.concatenate([array, padding])


def _spaced(layout: str) -> str:
    return layout.replace("(", " ( ").replace(")", " ) ").replace("->", " -> ")
