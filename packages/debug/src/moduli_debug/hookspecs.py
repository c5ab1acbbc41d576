"""The hooks that moduli-debug adds to moduli's: what a plugin for its tools implements.

Core finds this file by the entry point group ``moduli.hookspecs``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from moduli import hookspec

if TYPE_CHECKING:
    from moduli_debug import Column, Row


@hookspec
def moduli_summary_columns(rows: Sequence[Row]) -> Iterable[Column]:  # type: ignore[empty-body]
    """Returns columns of the table that ``tabulate`` makes.

    Called once for each summary. The standard columns come through this hook too, and before those
    of other plugins. An observing hook.

    Args:
      rows: the rows of the whole model, itself first; what the columns are may depend on them.

    Returns:
      The columns. Two columns of one name are an error that names both plugins.

    Example:
      >>> import jax.numpy as jnp, moduli
      >>> from moduli_debug import Column, tabulate
      >>> class Frozen:
      ...     @moduli.hookimpl
      ...     def moduli_summary_columns(self):
      ...         return [Column("frozen", lambda row, module: getattr(module, "frozen", None))]
      >>> model = moduli.Linear(2, 3, rngs=moduli.Rngs(0))
      >>> model.frozen = True
      >>> with moduli.using(Frozen()):
      ...     tabulate(model, jnp.ones((1, 2))).column("frozen")
      [True]
    """
