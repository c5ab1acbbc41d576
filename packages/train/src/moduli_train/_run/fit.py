"""fit: the usual loop as a function."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from moduli.errors import VariableError
from moduli_train._run.arguments import whole
from moduli_train._run.run import Run

__all__ = ["fit"]


def fit(
    train_step: Callable[..., Any],
    nodes: Mapping[str, Any],
    data: Any,
    *,
    steps: int,
    folder: str | os.PathLike[str] | None = None,
    evaluate: Callable[..., Mapping[str, Any]] | None = None,
    evaluate_every: int | None = None,
    stop: Callable[[Mapping[str, Any]], bool] | int | None = None,
    **options: Any,
) -> Run:
    """Trains: the loop over :meth:`Run.steps`, with an evaluation now and then.

    Args:
      train_step: ``train_step(*nodes, batch)``, which returns the loss or numbers by name.
      nodes: what the step takes and changes, by name, in its order.
      data: as for :class:`Run`.
      steps: the number of the last step.
      folder: as for :class:`Run`.
      evaluate: takes a copy of the first node and returns numbers by name.
      evaluate_every: steps from one evaluation to the next; by default a tenth of all.
      stop: takes what ``evaluate`` returned, and returns whether to end; or a patience.
      **options: more arguments of :class:`Run`.

    Returns:
      The run, which is over.

    Example:
      >>> import moduli as nnx
      >>> model = nnx.Dict({"w": nnx.Param(4.0)})
      >>> def train_step(model, batch):
      ...     model["w"].value *= batch
      ...     return model["w"].value
      >>> nnx.fit(train_step, {"model": model}, [0.5], steps=3, progress=False).last
      {'loss': 0.5}
    """
    if not isinstance(nodes, Mapping):
        raise VariableError(
            f"fit takes nodes by name, in the order of the step's arguments: {{'model': model}}; "
            f"got a {type(nodes).__name__}"
        )
    steps = whole("steps=", steps, 0)
    patience = {} if stop is None or callable(stop) else {"patience": stop}
    every = max(1, steps // 10) if evaluate_every is None else evaluate_every
    with Run(folder, **nodes, data=data, **patience, **options) as run:
        for batch in run.steps(steps):
            found = train_step(*nodes.values(), batch)
            run.log(found if isinstance(found, Mapping) else {"loss": found})
            if evaluate is not None and (run.every(every) or run.step == steps):
                values = run.evaluate(evaluate)
                if callable(stop) and stop(values):
                    run.stop()
    return run
