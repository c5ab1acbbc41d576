"""A residual network on handwritten digits: stages of equal blocks, mixed precision if asked.

The data are those of ``digits.py``. What is new here:

- each stage is a ``Stack``: its blocks are traced and compiled once, however many there are, and
  each has its own parameters and BatchNorm statistics;
- ``--bfloat16`` computes in bfloat16 and keeps parameters in float32, by one statement about the
  whole model (``set_dtypes``) with an exception for its head.

Run it with ``python examples/residual.py``; ``--help`` lists the options.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from digits import Array, Images, batches, load_data, losses
from tqdm import tqdm

import moduli as nnx

# -- the model -------------------------------------------------------------------------------------


class ResidualBlock(nnx.Module):
    """Two normalised convolutions whose result is added to the input (pre-activation form)."""

    def __init__(self, width: int, *, rngs: nnx.Rngs) -> None:
        self.norm1 = nnx.BatchNorm(width, momentum=0.9, rngs=rngs)
        self.conv1 = nnx.Conv(width, width, (3, 3), use_bias=False, rngs=rngs)
        # With a scale of zero the block starts as the identity: depth does no harm at first.
        self.norm2 = nnx.BatchNorm(
            width, momentum=0.9, scale_init=nnx.initializers.zeros_init(), rngs=rngs
        )
        self.conv2 = nnx.Conv(width, width, (3, 3), use_bias=False, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        branch = self.conv1(nnx.relu(self.norm1(x)))
        branch = self.norm2(self.conv2(nnx.relu(branch)))
        return x + branch  # (batch, height, width, features), as it came


class ResNet(nnx.Module):
    """A stem, stages of residual blocks with half the image and twice the width each, a head."""

    def __init__(self, *, width: int = 16, depth: int = 2, stages: int = 2, rngs: nnx.Rngs) -> None:
        self.stem = nnx.Conv(1, width, (3, 3), rngs=rngs)
        self.stages, self.halvings, features = [], [], width
        for stage in range(stages):
            features = width * 2**stage
            if stage:
                self.halvings.append(
                    nnx.Conv(features // 2, features, (2, 2), strides=2, rngs=rngs)
                )
            self.stages.append(
                nnx.Stack(lambda rngs, n=features: ResidualBlock(n, rngs=rngs), depth, rngs=rngs)
            )
        self.norm = nnx.BatchNorm(features, momentum=0.9, rngs=rngs)
        self.head = nnx.Linear(features, 10, rngs=rngs)

    def __call__(self, images: Array) -> Array:
        """Gives the logits of images of shape (batch, 8, 8, 1)."""
        x = self.stem(images)
        for stage, blocks in enumerate(self.stages):
            x = blocks(self.halvings[stage - 1](x) if stage else x)
        x = nnx.relu(self.norm(x)).mean(axis=(1, 2))  # (batch, features)
        return self.head(x)


def use_bfloat16(model: ResNet) -> None:
    """Lets the model compute in bfloat16; parameters stay float32, and so does the head."""
    nnx.set_dtypes(
        model,
        nnx.DtypePolicy(
            param=jnp.float32, compute=jnp.bfloat16, accumulate=jnp.float32, norm=jnp.float32
        ),
        {nnx.PathContains("head"): nnx.DtypePolicy(compute=jnp.float32)},
    )


# -- training --------------------------------------------------------------------------------------


@nnx.jit
def train_step(model: ResNet, optimizer: nnx.Optimizer, images: Array, labels: Array) -> Array:
    """Changes ``model`` and ``optimizer`` in place; gives the batch's loss."""

    def loss_fn(model: ResNet) -> Array:
        return losses(model(images), labels).mean()

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss


@nnx.jit
def predict(model: ResNet, images: Array) -> Array:
    """Gives the logits."""
    return model(images)


def accuracy(model: ResNet, data: Images) -> float:
    """The share of images whose digit is recognised."""
    model.eval()
    return float(jnp.mean(predict(model, data.images).argmax(axis=-1) == data.labels))


@dataclasses.dataclass(frozen=True)
class Results:
    """What a run found: the mean loss of each epoch, and accuracies before and after."""

    losses: list[float]
    before: float
    after: float
    parameters: int
    checkpoint: Path


def run(
    *, width: int, depth: int, epochs: int, batch_size: int, bfloat16: bool, seed: int, out: Path
) -> Results:
    """Trains, evaluates and saves."""
    train_data, test_data = load_data()
    model = ResNet(width=width, depth=depth, rngs=nnx.Rngs(seed))
    if bfloat16:
        use_bfloat16(model)
    steps = epochs * (len(train_data) // batch_size)
    schedule = optax.cosine_onecycle_schedule(max(steps, 2), peak_value=5e-3)
    optimizer = nnx.Optimizer(model, optax.adamw(schedule, weight_decay=1e-3), wrt=nnx.Param)
    params = jax.tree.leaves(nnx.state(model, nnx.Param))
    before = accuracy(model, test_data)

    random = np.random.default_rng(seed)
    history: list[float] = []
    terminal = sys.stderr.isatty()
    with tqdm(total=steps, unit="step", disable=not terminal) as bar:
        for epoch in range(1, epochs + 1):
            model.train()
            seen = []
            for batch in batches(train_data, batch_size, random):
                seen.append(train_step(model, optimizer, batch.images, batch.labels))
                bar.update()
            history.append(float(np.mean(np.asarray(seen))))
            bar.set_postfix_str(f"epoch {epoch}/{epochs}  loss {history[-1]:.4f}")
            if not terminal and (epoch % max(epochs // 10, 1) == 0 or epoch == 1):
                print(f"  epoch {epoch:3}/{epochs}  loss {history[-1]:.4f}", flush=True)

    after = accuracy(model, test_data)
    out.mkdir(parents=True, exist_ok=True)
    nnx.save(out / "model.npz", model, metadata={"example": "residual", "seed": seed})
    return Results(history, before, after, sum(p.size for p in params), out / "model.npz")


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="Trains a residual network on digits.")
    parser.add_argument("--epochs", type=int, default=15, help="default: %(default)s")
    parser.add_argument("--width", type=int, default=16, help="features of the first stage")
    parser.add_argument("--depth", type=int, default=2, help="blocks of each stage")
    parser.add_argument("--batch-size", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--bfloat16", action="store_true", help="compute in bfloat16")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("out/residual"), help="folder")
    options = parser.parse_args(arguments)
    for name in ("epochs", "width", "depth", "batch_size"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    return options


def main(arguments: Sequence[str] | None = None) -> Results:
    """Runs the example with the arguments of a command line."""
    options = parse_options(arguments)
    start = time.perf_counter()
    results = run(**vars(options))
    print(f"parameters     {results.parameters:,}")
    first, last = results.losses[0], results.losses[-1]
    print(f"loss           {first:.4f} in the first epoch, {last:.4f} in the last")
    print(f"test accuracy  {results.after:.2%}, before training {results.before:.2%}")
    print(f"checkpoint     {results.checkpoint}")
    print(f"time           {time.perf_counter() - start:.1f} s")
    return results


if __name__ == "__main__":
    main()
