"""Shardings of a jitted function: of its arguments, of what it writes, and of its result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec, Sharding

from moduli._call.bind import Binding
from moduli._call.call import Call, Labels
from moduli._call.frame import Frame
from moduli._call.function import Function
from moduli._call.kept_shardings import Kept, placed
from moduli._call.misfit_texts import (
    check_inputs,
    check_layouts,
    check_names,
    check_outputs,
)
from moduli._call.outputs import Outputs
from moduli._call.prefixes import labels_in
from moduli._call.signature import Leaf
from moduli._call.writeback import Packed

__all__ = ["Layout"]


class _Anything:
    """Equal to any static part of a pytree: what the result is like is not known before."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    def __hash__(self) -> int:
        return 0


class Layout:
    """The shardings of one program.

    Args:
      function: the user's function.
      args: the positional arguments of the first call.
      kwargs: its keyword arguments; they take what comes.
      count: how many positional arguments the function has with the static ones.
      positions: which of these the arguments are.
      in_shardings: the prefix of the positional arguments.
      out_shardings: the prefix of the result.
      binding: the arguments, as they are bound.
      kept: the shardings that the values keep; None if they take what comes.

    Attributes:
      inputs: the shardings of (values, plain).
    """

    def __init__(
        self,
        function: Function,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        count: int,
        positions: list[int],
        in_shardings: Any,
        out_shardings: Any,
        binding: Binding,
        kept: Kept | None = None,
    ):
        shardings = in_shardings
        if isinstance(shardings, (tuple, list)) and len(shardings) == count != len(args):
            shardings = tuple(shardings[n] for n in positions)
        labels = Labels(
            "in_shardings",
            shardings,
            lambda label: label is None or isinstance(label, (PartitionSpec, Sharding)),
            "a jax.sharding.NamedSharding, a PartitionSpec, or None",
        )
        name = function.name
        call = Call("jit", args, kwargs, function=name, labels=labels, binding=binding)
        plain = jax.tree.unflatten(call.treedef, call.leaf_labels)
        self.inputs = (call.value_labels, plain)
        self._given, self._kept = call.value_labels, kept
        if kept is not None:
            call.value_labels = _filled(call.value_labels, kept)
        self._call, self._out_shardings = call.detached(), out_shardings
        labels = [None, *call.all_labels(), *call.prefix_labels(), *labels_in(out_shardings)]
        self._labels = list(dict.fromkeys(labels))

    def placed(self, values: Any) -> Any:
        """Returns the values of a call, brought to where they are kept."""
        return values if self._kept is None else placed(values, self._kept)

    def options(self, inputs: Any) -> dict[str, Any]:
        """The arguments of ``jax.jit``."""
        outputs = Packed(_Anything(), self._labels)
        return {"in_shardings": inputs, "out_shardings": outputs}

    def check(self, values: list[Any], plain: list[Any]) -> None:
        """Raises for the first value which its sharding does not fit, of a call that JAX refused.

        Raises:
          StructureError: see ``misfits.check_inputs`` and ``check_layouts``.
          ShapeError: see there.
        """
        every = [value for group in values for value in group] + jax.tree.leaves(plain)
        check_inputs(self._call, every)
        for label in self._call.prefix_labels():
            check_names("jit: in_shardings has", label)
        for label in labels_in(self._out_shardings):
            check_names("jit: out_shardings has", label)
        check_layouts(self._call, every)

    def pack(self, frame: Frame, out: Any, keep: Callable[..., bool] | None) -> Packed:
        """Groups what the function did by sharding."""

        def keep_sharded(leaf: Leaf) -> bool:
            given = self._given[leaf[0]][leaf[1]]
            return given is not None or (keep is not None and keep(leaf))

        outputs = Outputs(
            self._call, frame, out, self._out_shardings, "jit: out_shardings", keep=keep_sharded
        )
        check_outputs(outputs, "jit: out_shardings")
        groups = outputs.grouped(self._labels)
        outputs.values = []  # tracers
        return Packed(outputs, groups)

    def unpack(self, packed: Packed) -> tuple[Any, Any, Any]:
        """Returns (effects, out, outputs)."""
        outputs = packed.effects
        out, new = outputs.rebuild(outputs.ungrouped(self._labels, packed.parts))
        return outputs.effects, out, new


def _filled(labels: list[list[Any]], kept: Kept) -> list[list[Any]]:
    """Returns the labels, with the sharding that is kept in the place of None."""
    return [
        [sharding if label is None else label for label, sharding in zip(group, own, strict=True)]
        for group, own in zip(labels, kept, strict=True)
    ]
