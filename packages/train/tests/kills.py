"""Runs that are killed at random moments, or in the middle of a save, and started again.

``python packages/train/tests/kills.py`` (``nox -s kills``) does all of it and prints figures;
``test_run_kills.py`` does a little. What ends otherwise than a run never killed is an
AssertionError. Nothing starts a backend of JAX here before the fork, so each life costs little.
"""

from __future__ import annotations

import argparse
import builtins
import csv
import hashlib
import itertools
import os
import pathlib
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import moduli as nnx

OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "adamw": lambda: optax.adamw(optax.cosine_decay_schedule(1e-2, 60)),
    "multi_steps": lambda: optax.MultiSteps(optax.adam(1e-2), every_k_schedule=3),
    "schedule_free": lambda: optax.contrib.schedule_free_adamw(1e-2, warmup_steps=5),
}
ROWS = np.random.default_rng(0).standard_normal((48, 4)).astype(np.float32)
PARTS = ROWS[:42].reshape(7, 6, 4)


class Cursor:
    """An endless iterator with get_state and set_state."""

    def __init__(self) -> None:
        self.rng, self.count = np.random.default_rng(5), 0

    def __iter__(self) -> Cursor:
        return self

    def __next__(self) -> Any:
        self.count += 1
        return ROWS[self.rng.permutation(48)[:6]]

    def get_state(self) -> Any:
        return {"rng": self.rng.bit_generator.state, "count": (self.count, b"bytes")}

    def set_state(self, state: Any) -> None:
        self.rng.bit_generator.state = state["rng"]
        self.count = state["count"][0]


DATA: dict[str, Callable[[], Any]] = {
    "batches": lambda: nnx.Batches(ROWS, 6, seed=3),
    "callable": lambda: (
        lambda epoch: iter(ROWS[np.random.default_rng(epoch).permutation(48)[:42]].reshape(7, 6, 4))
    ),
    "cursor": Cursor,
}


class Model(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first, self.norm = nnx.Linear(4, 8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs)
        self.dropout, self.last = nnx.Dropout(0.3, rngs=rngs), nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.last(self.dropout(nnx.relu(self.norm(self.first(x)))))


@nnx.jit(donate_argnums=(0, 1, 2))
def train_step(model: Any, optimizer: Any, metrics: Any, rngs: Any, x: Any) -> Any:
    noise = rngs.noise.normal(x.shape)

    def loss_fn(model: Any) -> Any:
        return jnp.mean((model(x + 0.1 * noise) - x) ** 2)

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    metrics.update(values=loss)
    return loss


def train(folder: str, optimizer_name: str, data_name: str, prefetch: int, wait: bool) -> str:
    """Trains to the end; returns the digest of everything."""
    model = Model(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, OPTIMIZERS[optimizer_name](), wrt=nnx.Param)
    metrics, rngs = nnx.metrics.Average(), nnx.Rngs(7)
    with nnx.Run(
        folder, model=model, optimizer=optimizer, metrics=metrics, rngs=rngs,
        data=DATA[data_name](), save_every=4, best=("test", "max"), log_every=5, prefetch=prefetch,
        progress=False, asynchronous=not wait,
    ) as run:  # fmt: skip
        for batch in run.steps(26):
            run.log(loss=train_step(model, optimizer, metrics, rngs, batch))
            time.sleep(0.003)
            if run.every(6):
                run.log(test=jnp.abs(model.last.kernel.value).sum(), average=metrics.compute())
                metrics.reset()
    return digest([model, optimizer, metrics, rngs])


def digest(nodes: Any) -> str:
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(nodes):
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()


def log_of(folder: str) -> Any:
    """log.csv without the times."""
    with open(f"{folder}/log.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def life(folder: str, case: tuple[Any, ...], before: Callable[[], None] = lambda: None) -> int:
    """Forks a process that trains and writes its digest beside the folder; returns its id."""
    child = os.fork()
    if child:
        return child
    try:
        before()
        pathlib.Path(f"{folder}.digest").write_text(train(folder, *case))
        code = 0
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 99
    sys.stderr.flush()
    os._exit(code)


def wait_for(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def outcome(folder: str) -> tuple[str, Any]:
    return pathlib.Path(f"{folder}.digest").read_text(), log_of(folder)


def kill_at_call(number: int, after: bool) -> Callable[[], None]:
    """Kills the process at the so-manieth call that touches files, once a save begins."""

    def install() -> None:
        count = itertools.count()

        def wrapped(function: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                here = not str(args[:1]).endswith(("/proc", "/sys")) and next(count) == number
                if here and not after:
                    os.kill(os.getpid(), signal.SIGKILL)
                result = function(*args, **kwargs)
                if here:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            return call

        class Starts:
            @nnx.hookimpl
            def moduli_run_state(self) -> None:  # a save of a step begins
                if os.open is original:
                    for name in ("open", "write", "fsync", "replace", "unlink"):
                        setattr(os, name, wrapped(getattr(os, name)))
                    builtins.open = wrapped(builtins.open)

        original = os.open
        block = nnx.using(Starts())
        block.__enter__()
        kept.append(block)

    kept: list[Any] = []
    return install


def campaign(
    folder: pathlib.Path, case: tuple[Any, ...], rng: Any, kills: int, terms: int, calls: int
) -> dict[str, Any]:
    """Kills one kind of run again and again; returns what happened."""
    whole = str(folder / "whole")
    start = time.perf_counter()
    assert wait_for(life(whole, case)) == 0
    wait_for(life(str(folder / "warm"), case))  # its programs are in the cache by now
    start, _ = time.perf_counter(), start
    assert wait_for(life(str(folder / "timed"), case)) == 0
    lasts = time.perf_counter() - start
    expected = outcome(whole)
    assert outcome(str(folder / "timed")) == expected, "two runs that nobody killed differ"

    killed, at = str(folder / "killed"), []
    for number in range(kills):
        child = life(killed, case)
        sleep_until(killed, child, rng.random() if number % 2 else None, lasts, rng)
        os.kill(child, signal.SIGKILL)
        if wait_for(child) == 0:  # it had ended: begin anew, so that the next kill hits something
            assert outcome(killed) == expected, (case, at)
            killed = str(folder / f"killed{len(at)}")
        at.append(newest(killed))
    assert wait_for(life(killed, case)) == 0
    assert outcome(killed) == expected, (case, at)

    saved = []
    stopped = str(folder / "terms")
    for _ in range(terms):
        child = life(stopped, case)
        sleep_until(stopped, child, rng.random(), lasts, rng)
        os.kill(child, signal.SIGTERM)
        code = wait_for(child)
        assert code in (0, 143, -signal.SIGTERM), code
        saved.append((code, newest(stopped)))
    if terms:
        assert wait_for(life(stopped, case)) == 0
        assert outcome(stopped) == expected, (case, saved)

    hits = 0
    for number, after in itertools.product(range(calls), (False, True)):
        inside = str(folder / f"call{number}{after}")
        if wait_for(life(inside, case, kill_at_call(number, after))) == -signal.SIGKILL:
            hits += 1
        assert wait_for(life(inside, case)) == 0
        assert outcome(inside) == expected, (case, number, after)
    return {"seconds": round(lasts, 2), "after kills at": at, "SIGTERM": saved, "in calls": hits}


def sleep_until(folder: str, child: int, share: float | None, lasts: float, rng: Any) -> None:
    """Waits for a random moment: of the process's whole life, or of its steps."""
    if share is None:
        time.sleep(rng.uniform(0.0, 1.0) * lasts)
        return
    resumed, start = newest(folder), time.perf_counter()
    while time.perf_counter() - start < 20:
        if os.path.exists(f"{folder}/log.csv"):
            steps = [int(row["step"] or 0) for row in log_of(folder)]
            if max(steps, default=0) > resumed:  # the loop runs
                break
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return
        time.sleep(0.002)
    time.sleep(share * 0.15)


def newest(folder: str) -> int:
    steps = [int(path.stem[5:]) for path in pathlib.Path(folder).glob("step_*.json")]
    return max(steps, default=0)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Kills runs and compares how they end.")
    parser.add_argument("--kills", type=int, default=40, help="SIGKILLs in all, default: 40")
    parser.add_argument("--terms", type=int, default=20, help="SIGTERMs in all, default: 20")
    parser.add_argument("--calls", type=int, default=12, help="calls of one save, default: 12")
    parser.add_argument("--cases", type=int, default=6, help="kinds of run, default: 6")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    rng = random.Random(options.seed)
    pairs = itertools.product(OPTIMIZERS, DATA)
    cases = [(o, d, 2 * (i % 2), i % 3 == 0) for i, (o, d) in enumerate(pairs)]
    rng.shuffle(cases)
    cases = cases[: options.cases]
    start = time.perf_counter()
    for index, case in enumerate(cases):
        share: list[int] = [
            n // len(cases) + (index < n % len(cases)) for n in (options.kills, options.terms)
        ]
        with tempfile.TemporaryDirectory() as folder:
            calls = options.calls if index == 0 else 0
            print(
                case,
                campaign(pathlib.Path(folder), case, rng, share[0], share[1], calls),
                flush=True,
            )
    print(f"all equal, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
