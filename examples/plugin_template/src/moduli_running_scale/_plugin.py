"""The hooks. Imported with every first module: what is heavy is imported inside of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import moduli

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moduli_interop import Format
    from moduli_interop.bridge import Bridge

moduli_hook_version: Any = (1, 0)  # of moduli's hooks, for which this was written


@moduli.hookimpl
def moduli_variable_names() -> Mapping[str, type[moduli.Variable[Any]]]:
    """Names the kind of Variable, for checkpoints and ``sow``; filters take its class."""
    from moduli_running_scale._layer import RunningScaleMax

    return {"running_scale_maxima": RunningScaleMax}


@moduli.hookimpl
def moduli_mode_attributes(mode: str) -> Mapping[str, Any]:
    """Returns what ``train()`` and ``eval()`` set, where a module has it."""
    return {"use_running_scale_max": mode == "eval"}


@moduli.hookimpl
def moduli_checkpoint_formats() -> list[Format]:
    """Returns the format for ``moduli.save`` and ``moduli.load``."""
    from moduli_running_scale._format import FORMAT

    return [FORMAT]


@moduli.hookimpl
def moduli_bridges() -> list[Bridge]:
    """Returns the bridge to the other framework."""
    from moduli_running_scale._bridge import BRIDGE

    return [BRIDGE]
