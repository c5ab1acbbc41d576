"""``python -m benchmarks.first_use_program LIBRARY MODEL``: one process, one train step.

Prints JSON: the seconds from the start of the process until the library is imported, the model is
built, and the first train step has ended.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time


def main(library: str, name: str) -> None:
    """Builds the model, takes a train step, prints the times."""
    started = float(os.environ["FIRST_USE_STARTED"])  # time.time() of the parent, before the start
    nnx = importlib.import_module(library)
    import jax
    import optax

    from benchmarks import first_models

    imported = time.time() - started
    case = (first_models.MODELS | first_models.TINY_MODELS)[name]
    x, y = case.batch()
    model = case.build(nnx)
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    jax.block_until_ready(nnx.state(model))
    built = time.time() - started

    @nnx.jit
    def train_step(model, optimizer, x, y):
        def loss_of(model):
            return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

        loss, gradients = nnx.value_and_grad(loss_of)(model)
        optimizer.update(model, gradients)
        return loss

    loss = train_step(model, optimizer, x, y)
    loss.block_until_ready()
    print(
        json.dumps(
            {
                "imported": imported,
                "built": built,
                "stepped": time.time() - started,
                "loss": float(loss),
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
