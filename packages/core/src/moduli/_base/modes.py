"""The type of flax.nnx's modes ``graph`` and ``graph_updates``, for those who check types.

A function that takes them says so as ``**_modes: Unpack[Modes]``. It never sees them: what they
change, and that nothing else is taken, is in one place, ``_facade/flax_modes.py``.
"""

from __future__ import annotations

from typing import TypedDict

__all__ = ["Modes"]


class Modes(TypedDict, total=False):
    """``graph=`` and ``graph_updates=``, as flax.nnx takes them; see ``docs/porting_from_flax.md``.

    Attributes:
      graph: accepted.
      graph_updates: accepted; False makes ``split_rngs`` and ``fork_rngs`` return a copy.
    """

    graph: bool | None
    graph_updates: bool | None
