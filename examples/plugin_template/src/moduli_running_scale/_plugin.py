"""What the package contributes to moduli's hooks."""

from __future__ import annotations

from typing import Any

import moduli


@moduli.hookimpl
def moduli_variable_names() -> dict[str, type[moduli.Variable]]:
    """Lets strings stand for the package's kind of Variable."""
    from moduli_running_scale._layer import RunningMax

    return {"running_maxima": RunningMax}


@moduli.hookimpl
def moduli_mode_attributes(mode: str) -> dict[str, Any]:
    """Says what ``train()`` and ``eval()`` set."""
    return {"use_running_max": mode == "eval"}
