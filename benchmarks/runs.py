"""What ``moduli.Run`` adds to a training loop: by itself, with a log, and with checkpoints.

One model whose state with Adam's is about 20 MB; the loop is otherwise the same for all, and each
call of a peer is a whole run in a folder of its own.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import moduli as nnx
from benchmarks.settings import Settings
from benchmarks.tables import ratio_cell, table, time_text
from benchmarks.timing import round_robin

BARE, AGAIN = "bare loop", "bare loop again"
SAVE_EVERY, LOG_EVERY = 50, 20


def measure(settings: Settings) -> dict[Any, Any]:
    """Returns "bytes" of the state, and "times": steps -> peer -> microseconds of a whole run."""
    times, size = {}, 0
    for steps in settings.run_steps:
        training = Training(settings.run_width, steps)
        rounds = max(2, settings.some_rounds * settings.run_steps[0] // steps)
        times[steps] = round_robin(
            training.peers(), rounds=rounds, budget_s=settings.budget_s, repeats=1
        )
        leaves = jax.tree.leaves(nnx.state((training.model, training.optimizer)))
        size = sum(leaf.nbytes for leaf in leaves)
    return {"bytes": size, "times": times}


class Training:
    """The model, its data, and the loops around the same train step.

    Args:
      width: of the one layer.
      steps: of a run.
    """

    def __init__(self, width: int, steps: int):
        self.model = nnx.Linear(width, width, rngs=nnx.Rngs(0))
        self.optimizer = nnx.Optimizer(self.model, optax.adam(1e-3), wrt=nnx.Param)
        self.steps = steps
        x = np.random.default_rng(0).normal(size=(64, width)).astype(np.float32)
        self.batches = [x + step for step in range(4)]

        @nnx.jit
        def train_step(model: Any, optimizer: Any, x: jax.Array) -> jax.Array:
            loss, grads = nnx.value_and_grad(lambda model: jnp.mean((model(x) - x) ** 2))(model)
            optimizer.update(model, grads)
            return loss

        self.train_step = train_step

    def peers(self) -> dict[str, Callable[[], Any]]:
        """Returns for each peer a call that is a whole run."""
        return {
            BARE: self.bare,
            AGAIN: self.bare,
            "Run": lambda: self.run(None),
            f"Run with a log, read every {LOG_EVERY} steps": lambda: self.in_folder(None),
            f"the same, saved every {SAVE_EVERY} steps": lambda: self.in_folder(SAVE_EVERY),
        }

    def bare(self) -> jax.Array:
        """The loop as one writes it without moduli-train; the loss is read as often."""
        for step in range(self.steps):
            loss = self.train_step(self.model, self.optimizer, self.batches[step % 4])
            if step % LOG_EVERY == 0:
                float(loss)
        return loss

    def in_folder(self, save_every: int | None) -> jax.Array:
        """A run whose folder is removed at the end; removing it is a part of the time."""
        with tempfile.TemporaryDirectory() as folder:
            return self.run(folder, save_every)

    def run(self, folder: str | None, save_every: int | None = None) -> jax.Array:
        """The same loop with Run."""
        with nnx.Run(
            folder,
            model=self.model,
            optimizer=self.optimizer,
            data=self.batches,
            save_every=save_every,
            log_every=LOG_EVERY,
            progress=False,
        ) as run:
            for x in run.steps(self.steps):
                loss = self.train_step(self.model, self.optimizer, x)
                run.log(loss=loss)
        return loss


def report(found: dict[Any, Any]) -> list[str]:
    """Formats the table."""
    by_steps = found["times"]
    names = [peer for peer in next(iter(by_steps.values())) if peer != BARE]
    lengths = [
        f"{steps} steps of {time_text([statistics.median(times[BARE]) / int(steps)])}"
        for steps, times in by_steps.items()
    ]
    rows = [[peer, *[ratio_cell(t, peer, BARE) for t in by_steps.values()]] for peer in names]
    return [
        f"A loop over a state of {found['bytes'] / 1e6:.0f} MB, relative to the loop without Run;",
        "entering, ending, the last save and removing the folder are a part of it:",
        "",
        *table(["loop", *lengths], rows),
    ]
