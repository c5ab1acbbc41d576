"""The structure epoch: one number that moves when the structure of a cached graph may have changed.

It moves as well when other plugins come into force in the whole program (not in a block).

Lifted functions compare it with the number they saw last. While it stands still, nothing that
they have flattened can have another structure, and the whole check of a call is one comparison.
Writing *values* never moves it, nor does building objects that no cached flatten has met.
"""

from __future__ import annotations

__all__ = ["EPOCH"]

EPOCH: list[int] = [0, 0, 0]
"""The epoch, and how often metadata of Variables and how often States changed, which move it too.

A list (not module globals) so that readers may bind it once and index it."""
