"""Modules of PyTorch that call a layer of ``torch.nn`` as ours are called."""

from __future__ import annotations

import functools
from typing import Any

from moduli_interop._bridges.frameworks import import_framework

__all__ = ["carry_first_class", "channels_last_class", "first_output_class", "joined_axes_class"]


@functools.cache
def channels_last_class() -> Any:
    torch: Any = import_framework("torch", "torch")

    class ChannelsLast(torch.nn.Module):
        """Calls a layer of ``torch.nn`` with arrays whose features are last, as ours are.

        Args:
          layer: the layer, whose features are on axis 1.
          rank: the number of spatial axes of its inputs; None lets one axis stand for all of them,
            ``"batch"`` lets the batch do so.
        """

        def __init__(self, layer: Any, rank: Any) -> None:
            super().__init__()
            self.layer, self.rank = layer, rank

        def forward(self, x: Any) -> Any:
            """Calls the layer."""
            shape = x.shape
            if self.rank == "batch":  # statistics over all axes but the features'
                return self.layer(x.reshape(-1, shape[-1])).reshape(shape)
            if self.rank is None:
                x = x.reshape(shape[0], -1, shape[-1])
                return self.layer(x.movedim(-1, 1)).movedim(1, -1).reshape(shape)
            batch = shape[: -self.rank - 1]
            x = x.reshape(-1, *shape[len(batch) :]).movedim(-1, 1)
            out = self.layer(x).movedim(1, -1)
            return out.reshape(*batch, *out.shape[1:])

    return ChannelsLast


@functools.cache
def first_output_class() -> Any:
    torch: Any = import_framework("torch", "torch")

    class FirstOutput(torch.nn.Module):
        """Calls a layer that returns more than ours does, and returns the first of it."""

        def __init__(self, layer: Any) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            """Calls the layer."""
            if isinstance(self.layer, torch.nn.MultiheadAttention) and len(args) == 1:
                args = args * 3
            return self.layer(*args, **kwargs)[0]

    return FirstOutput


@functools.cache
def joined_axes_class() -> Any:
    torch: Any = import_framework("torch", "torch")

    class JoinedLastAxes(torch.nn.Module):
        """Calls a layer of one axis of features with the last ``number`` axes as one."""

        def __init__(self, layer: Any, number: int) -> None:
            super().__init__()
            self.layer, self.number = layer, number

        def forward(self, x: Any) -> Any:
            """Calls the layer."""
            return self.layer(x.flatten(-self.number)).reshape(x.shape)

    return JoinedLastAxes


@functools.cache
def carry_first_class() -> Any:
    torch: Any = import_framework("torch", "torch")

    class CarryFirst(torch.nn.Module):
        """Calls a cell of ``torch.nn`` as ours are: (carry, inputs) -> (carry, outputs)."""

        def __init__(self, layer: Any) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, carry: Any, x: Any) -> Any:
            """Makes one step."""
            if isinstance(self.layer, torch.nn.LSTMCell):
                h, c = self.layer(x, (carry[1], carry[0]))
                return (c, h), h
            h = self.layer(x, carry)
            return h, h

    return CarryFirst
