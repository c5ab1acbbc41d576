"""What moduli-train contributes through moduli's hooks. Light to import: optax is not needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moduli import Variable, hookimpl
from moduli_train._variables import MetricState, OptArray, OptState, OptVariable


@hookimpl
def moduli_variable_names() -> Mapping[str, type[Variable[Any]]]:
    """Names the kinds of Variable of this package."""
    return {
        "opt_state": OptState,
        "opt_array": OptArray,
        "opt_variable": OptVariable,
        "metric_state": MetricState,
    }
