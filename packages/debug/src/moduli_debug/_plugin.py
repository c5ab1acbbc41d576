"""What moduli-debug plugs into moduli's hooks; light, because the first module loads it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import moduli
from moduli_debug._perturb import perturb as perturb
from moduli_debug._sow import sow as sow

if TYPE_CHECKING:
    from moduli_debug._summary.columns import Column
    from moduli_debug._summary.rows import Row


@moduli.hookimpl(tryfirst=True)
def moduli_summary_columns(rows: Sequence[Row]) -> Iterable[Column]:
    """Returns the standard columns of a summary, which stand before those of other plugins."""
    from moduli_debug._summary.columns import standard_columns  # the summary's files cost much

    return standard_columns(rows)
