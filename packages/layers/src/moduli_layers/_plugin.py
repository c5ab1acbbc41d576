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


@moduli.hookimpl
def moduli_variable_names() -> Mapping[str, type[moduli.Variable[Any]]]:
    """Names the kinds of Variable that layers have.

    Returns:
      Kinds by name.
    """
    from moduli_layers._lora import LoRAParam

    return {"lora_params": LoRAParam}
