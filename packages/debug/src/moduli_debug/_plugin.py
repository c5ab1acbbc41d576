"""What moduli-debug plugs into moduli's hooks; light, because every sow loads it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import moduli
from moduli_debug._perturb import perturb
from moduli_debug._sow import sow

if TYPE_CHECKING:
    from moduli_debug._summary.columns import Column
    from moduli_debug._summary.rows import Row


@moduli.hookimpl
def moduli_sow(
    module: moduli.Module,
    variable_type: type[moduli.Variable[Any]],
    name: str,
    value: Any,
    reduce_fn: Callable[[Any, Any], Any],
    init_fn: Callable[[], Any],
) -> bool:
    """Stores a value in an attribute of the module, or in the capture that is running.

    Returns:
      Whether the value was stored.
    """
    return sow(module, variable_type, name, value, reduce_fn, init_fn)


@moduli.hookimpl
def moduli_perturb(
    module: moduli.Module,
    name: str,
    value: Any,
    variable_type: type[moduli.Variable[Any]],
) -> Any:
    """Adds the module's perturbation, zeros at first, to a value.

    Returns:
      The sum.
    """
    return perturb(module, name, value, variable_type)


@moduli.hookimpl(tryfirst=True)
def moduli_summary_columns(rows: Sequence[Row]) -> Iterable[Column]:
    """Returns the standard columns of a summary, which stand before those of other plugins."""
    from moduli_debug._summary.columns import standard_columns

    return standard_columns(rows)
