"""What moduli-layers plugs into moduli's hooks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import moduli


@moduli.hookimpl
def moduli_mode_attributes(mode: Literal["train", "eval"]) -> Mapping[str, Any]:
    """Says which attributes ``train()`` and ``eval()`` set on layers.

    Args:
      mode: ``"train"`` or ``"eval"``.

    Returns:
      Values by attribute name.
    """
    evaluating = mode == "eval"
    return {"deterministic": evaluating, "use_running_average": evaluating}
