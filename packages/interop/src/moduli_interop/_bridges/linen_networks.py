"""flax.linen: layers that hold other layers, whose values stand below their own names."""

from __future__ import annotations

import dataclasses
from typing import Any

import moduli
from moduli_interop._bridges.arguments import parameters
from moduli_interop._bridges.bridge import Conversion
from moduli_interop._bridges.frameworks import import_framework
from moduli_interop._bridges.linen_places import below

__all__ = ["from_theirs", "to_theirs"]

_RUNS = ("time_major", "return_carry", "reverse", "keep_order", "unroll")
_BOTH = ("time_major", "return_carry")
_LIFTED = ("variable_axes", "variable_broadcast", "variable_carry", "split_rngs")


def from_theirs() -> dict[type, Any]:
    """Returns what makes our networks of linen's, by linen's class."""
    linen = import_framework("flax.linen", "flax")
    return {linen.RNN: _from_rnn, linen.Bidirectional: _from_bidirectional}


def to_theirs() -> dict[type, Any]:
    """Returns what makes linen's networks of ours, by our class."""
    return {moduli.RNN: _to_rnn, moduli.Bidirectional: _to_bidirectional}


def _settings(part: Any, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(part, name) for name in names}


def _from_rnn(part: Any, convert: Conversion) -> Any:
    defaults = {field.name: field.default for field in dataclasses.fields(part)}
    for name in _LIFTED:
        if getattr(part, name) != defaults[name]:
            convert.refuse(part, f"with a `{name}` of its own")
    return moduli.RNN(below(part.cell, convert, "cell"), **_settings(part, _RUNS))


def _to_rnn(part: Any, convert: Conversion) -> Any:
    linen = import_framework("flax.linen", "flax")
    for name in ("state_axes", "broadcast_rngs"):
        if getattr(part, name) is not None:
            convert.refuse(part, f"with {name}={getattr(part, name)!r}, which linen's has not")
    return linen.RNN(below(part.cell, convert, "cell"), **_settings(part, _RUNS))


def _from_bidirectional(part: Any, convert: Conversion) -> Any:
    if part.forward_rnn is part.backward_rnn:
        convert.refuse(part, "whose two networks are one, whose values stand in one place in linen")
    fields = {field.name: field.default for field in dataclasses.fields(part)}
    merge = {} if part.merge_fn is fields["merge_fn"] else {"merge_fn": part.merge_fn}
    return moduli.Bidirectional(*_networks(part, convert), **merge, **_settings(part, _BOTH))


def _to_bidirectional(part: Any, convert: Conversion) -> Any:
    linen = import_framework("flax.linen", "flax")
    default = parameters(moduli.Bidirectional)["merge_fn"].default
    merge = {} if part.merge_fn is default else {"merge_fn": part.merge_fn}
    return linen.Bidirectional(*_networks(part, convert), **merge, **_settings(part, _BOTH))


def _networks(part: Any, convert: Conversion) -> list[Any]:
    names = ("forward_rnn", "backward_rnn")
    return [below(getattr(part, name), convert, name) for name in names]
