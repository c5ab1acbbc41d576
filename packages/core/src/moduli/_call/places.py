"""Which leaf of a call a value below one of its modules is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moduli._call.signature import Leaf
from moduli._graph.cache import flat_of
from moduli._graph.flat import Flat
from moduli._graph.holders import identity

__all__ = ["Places"]


class Places:
    """The leaves of a call, found by what holds their values.

    Args:
      flats: of the call's Binding.
    """

    def __init__(self, flats: Sequence[Flat]):
        self._leaves: dict[Any, Leaf] = {
            identity(holder): (number, index)
            for number, flat in enumerate(flats)
            for index, holder in enumerate(flat.holders)
        }

    def below(self, root: Any) -> list[Leaf]:
        """Returns the leaf of each value below a module or Variable of the call.

        They come in the order of the root's own leaves.
        """
        return [self._leaves[identity(holder)] for holder in flat_of(root).holders]
