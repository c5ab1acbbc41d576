"""Handwritten digits: train a convolutional network, save it, load it, and look inside it.

The whole way through a small project on real data, scikit-learn's 1,797 scanned digits of 8x8
pixels (they come with scikit-learn, nothing is downloaded):

1. split the images and train a network with BatchNorm and Dropout;
2. save a checkpoint and load it into a freshly built model, whose predictions must be equal;
3. collect what every layer computes (``sow``) and the gradient that reaches it (``perturb``);
4. write a report: ``report.html`` with all figures inside, ``overview.png``, and ``inside.html``,
   what happened in every layer from epoch to epoch (``TrainingReport``).

Run it with ``python examples/digits.py``; ``--help`` lists the options.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import digits_report
import jax
import jax.numpy as jnp
import numpy as np
import optax
from digits_report import Epoch, LayerView, ParameterRow, Results, RoundTrip
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import moduli as nnx

Array = jax.Array | np.ndarray  # JAX takes numpy's arrays as well as its own

# -- the model -------------------------------------------------------------------------------------


def watched(module: nnx.Module, x: Array) -> Array:
    """Makes ``module`` keep ``x`` and, once a gradient is taken, the gradient that reaches it.

    ``sow`` stores the value in an attribute of the module. ``perturb`` adds zeros that live in a
    Variable of the module: whatever is the gradient for those zeros is the gradient for ``x``.
    """
    module.sow(nnx.Intermediate, "activation", x)
    return module.perturb("gradient", x)


class ConvBlock(nnx.Module):
    """Convolution, batch normalisation, ReLU, and if asked a 2x2 max pooling."""

    def __init__(self, inputs: int, outputs: int, *, pool: bool, rngs: nnx.Rngs) -> None:
        # No bias: the normalisation that follows subtracts the mean, and has a bias of its own.
        self.conv = nnx.Conv(inputs, outputs, kernel_size=(3, 3), use_bias=False, rngs=rngs)
        # A run has a few hundred steps, so the running statistics must follow faster than with
        # the default momentum of 0.99.
        self.norm = nnx.BatchNorm(outputs, momentum=0.9, rngs=rngs)
        self.pool = pool

    def __call__(self, x: Array, *, watch: bool = False) -> Array:
        x = nnx.relu(self.norm(self.conv(x)))  # (batch, height, width, outputs)
        if watch:
            x = watched(self, x)
        if self.pool:
            x = nnx.max_pool(x, window_shape=(2, 2), strides=(2, 2))
        return x


class CNN(nnx.Module):
    """A stack of convolution blocks, then Dropout and a Linear layer which gives ten logits."""

    def __init__(self, channels: Sequence[int] = (32, 32, 64, 64), *, rngs: nnx.Rngs) -> None:
        self.blocks = []  # a plain list: its modules are part of the model
        inputs = 1
        for number, outputs in enumerate(channels):
            # Every second block halves the image: 8x8 -> 4x4 -> 2x2.
            self.blocks.append(ConvBlock(inputs, outputs, pool=number % 2 == 1, rngs=rngs))
            inputs = outputs
        self.dropout = nnx.Dropout(0.4, rngs=rngs)
        self.linear = nnx.Linear(2 * 2 * inputs, 10, rngs=rngs)

    def __call__(self, images: Array, *, watch: bool = False) -> Array:
        """Gives the logits of images of shape (batch, 8, 8, 1).

        ``watch`` makes every layer keep its output and gradient. It is off while training: a
        training step should neither store nor compute what nobody looks at.
        """
        x = images
        for block in self.blocks:
            x = block(x, watch=watch)
        x = x.reshape(x.shape[0], -1)  # (batch, 2, 2, channels) -> (batch, 4 * channels)
        logits = self.linear(self.dropout(x))
        return watched(self, logits) if watch else logits


# -- the data --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Images:
    """Images of shape (count, 8, 8, 1) with values from 0 to 1, and the digit each one shows."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def load_data() -> tuple[Images, Images]:
    """Gives the training images and the held-out test images, a fifth of all.

    The split has its own fixed seed, so that runs with different ``--seed`` are measured on the
    same test images; each digit has the same share in both parts.
    """
    pixels, digits = load_digits(return_X_y=True)
    images = np.asarray(pixels, np.float32).reshape(-1, 8, 8, 1) / 16
    labels = np.asarray(digits, np.int32)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=42
    )
    return Images(images[train], labels[train]), Images(images[test], labels[test])


def randomly_shifted(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Moves each image by up to one pixel in each direction; empty pixels come in at the border.

    A digit means the same wherever it stands. Showing the network that makes up for the small
    number of images.
    """
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    corners = random.integers(0, 3, size=(len(images), 2))
    return np.stack(
        [
            image[row : row + 8, column : column + 8]
            for image, (row, column) in zip(padded, corners, strict=True)
        ]
    )


def batches(data: Images, size: int, random: np.random.Generator) -> Iterator[Images]:
    """Gives one epoch of shuffled, shifted batches.

    All have the same size, because every new size would be compiled anew. The few images that are
    left over take their turn in another epoch.
    """
    order = random.permutation(len(data))
    shifted = randomly_shifted(data.images, random)
    for start in range(0, len(data) - size + 1, size):
        chosen = order[start : start + size]
        yield Images(shifted[chosen], data.labels[chosen])


# -- training --------------------------------------------------------------------------------------


def losses(logits: Array, labels: Array) -> Array:
    """The cross-entropy of each image."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


@nnx.jit
def train_step(
    model: CNN, optimizer: nnx.Optimizer, images: Array, labels: Array
) -> tuple[Array, Array]:
    """Changes ``model`` and ``optimizer`` in place; gives the batch's loss and accuracy."""

    def loss_fn(model: CNN) -> tuple[Array, Array]:
        logits = model(images)
        return losses(logits, labels).mean(), logits

    (loss, logits), grads = nnx.value_and_grad(loss_fn, has_aux=True)(model)
    optimizer.update(model, grads)
    return loss, jnp.mean(logits.argmax(axis=-1) == labels)


@nnx.jit
def predict(model: CNN, images: Array) -> Array:
    """Gives the logits."""
    return model(images)


def evaluate(model: CNN, data: Images) -> tuple[float, float]:
    """Gives loss and accuracy."""
    model.eval()  # dropout off, and BatchNorm uses its running statistics
    logits = predict(model, data.images)
    accuracy = jnp.mean(logits.argmax(axis=-1) == data.labels)
    return float(losses(logits, data.labels).mean()), float(accuracy)


@nnx.jit
def gradients_and_outputs(model: CNN, images: Array, labels: Array) -> tuple[nnx.State, nnx.State]:
    """Gives the gradients for all parameters, and what every layer puts out."""

    def loss_fn(model: CNN) -> tuple[Array, nnx.State]:
        logits, outputs = nnx.capture(model, outputs=(ConvBlock, nnx.Linear))(images)
        return losses(logits, labels).mean(), outputs

    return nnx.grad(loss_fn, has_aux=True)(model)


def parameters(model: CNN) -> dict[str, np.ndarray]:
    """Gives the present values of all parameters by their path, like ``blocks/0/conv/kernel``."""
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {"/".join(map(str, path)): np.asarray(param.value) for path, param in flat}


def train(
    model: CNN,
    train_data: Images,
    test_data: Images,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    inside: nnx.TrainingReport | None = None,
) -> list[Epoch]:
    """Trains ``model`` and gives the history, one entry an epoch.

    ``inside`` gets statistics of all layers after each epoch.
    """
    steps_per_epoch = len(train_data) // batch_size
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=3e-3,
        warmup_steps=steps_per_epoch,
        decay_steps=max(epochs * steps_per_epoch, steps_per_epoch + 1),
    )
    optimizer = nnx.Optimizer(model, optax.adamw(schedule, weight_decay=1e-3), wrt=nnx.Param)
    random = np.random.default_rng(seed)
    history: list[Epoch] = []
    before = parameters(model)

    # A bar that moves is for terminals. Elsewhere, as in CI, a line now and then says the same.
    terminal = sys.stderr.isatty()
    bar = tqdm(total=epochs * steps_per_epoch, unit="step", disable=not terminal)
    with bar:
        for epoch in range(1, epochs + 1):
            model.train()  # dropout on, and BatchNorm uses the statistics of the batch
            # The numbers of a step are read when the epoch is over: until then JAX computes while
            # Python already prepares what comes next.
            steps = []
            for batch in batches(train_data, batch_size, random):
                steps.append(train_step(model, optimizer, batch.images, batch.labels))
                bar.update()
            batch_loss, batch_accuracy = np.mean(np.asarray(steps), axis=0)
            train_loss, train_accuracy = evaluate(model, train_data)
            # Only for the curves: nothing is chosen by the test images.
            test_loss, test_accuracy = evaluate(model, test_data)
            if inside is not None:
                grads, outputs = gradients_and_outputs(model, test_data.images, test_data.labels)
                accuracies = {"batch accuracy": batch_accuracy, "test accuracy": test_accuracy}
                inside.record(
                    epoch, model=model, grads=grads, activations=outputs, metrics=accuracies
                )
            after = parameters(model)
            history.append(
                Epoch(
                    batch_loss=float(batch_loss),
                    batch_accuracy=float(batch_accuracy),
                    train_loss=train_loss,
                    train_accuracy=train_accuracy,
                    test_loss=test_loss,
                    test_accuracy=test_accuracy,
                    moved={
                        name: relative_change(before[name], after[name])
                        for name in after
                        if name.endswith("kernel")
                    },
                )
            )
            before = after
            text = f"loss {batch_loss:.4f}  accuracy {batch_accuracy:.1%}  test {test_accuracy:.1%}"
            bar.set_postfix_str(f"epoch {epoch}/{epochs}  {text}")
            if not terminal and (epoch % max(epochs // 10, 1) == 0 or epoch == 1):
                print(f"  epoch {epoch:3}/{epochs}  {text}", flush=True)
    return history


def relative_change(before: np.ndarray, after: np.ndarray) -> float:
    """The norm of the change over the norm before."""
    norm = float(np.linalg.norm(before))
    return float(np.linalg.norm(after - before)) / norm if norm else float("inf")


def rms(values: np.ndarray) -> float:
    """The root mean square."""
    return float(np.sqrt(np.mean(np.square(values))))


# -- the checkpoint --------------------------------------------------------------------------------


def check_round_trip(model: CNN, path: Path, test_data: Images, *, seed: int) -> RoundTrip:
    """Saves ``model``, loads the file into a model with other parameters, compares predictions."""
    model.eval()
    nnx.save(path, model, metadata={"example": "digits", "seed": seed})
    expected = predict(model, test_data.images)

    fresh = CNN(rngs=nnx.Rngs(seed + 1))
    fresh.eval()  # a checkpoint holds values; the mode belongs to the program
    untrained = predict(fresh, test_data.images)
    nnx.load(path, fresh)
    loaded = predict(fresh, test_data.images)

    def equal(logits: Array) -> int:
        return int(jnp.sum(logits.argmax(axis=-1) == expected.argmax(axis=-1)))

    return RoundTrip(
        path=path,
        equal_before=equal(untrained),
        equal_after=equal(loaded),
        largest_difference=float(jnp.abs(loaded - expected).max()),
    )


# -- a look inside ---------------------------------------------------------------------------------

WATCHED = nnx.Any(nnx.Intermediate, nnx.Perturbation)


@nnx.jit
def gradients_inside(model: CNN, images: Array, labels: Array) -> nnx.State:
    """Gives the gradients for all parameters and for all values that ``perturb`` saw."""

    def loss_fn(model: CNN) -> Array:
        # The sum, not the mean: in evaluation mode images do not influence each other, so this
        # gives the gradient of each image's own loss, whatever the number of images.
        return losses(model(images, watch=True), labels).sum()

    wanted = nnx.DiffState(0, nnx.Any(nnx.Param, nnx.Perturbation))
    return nnx.grad(loss_fn, argnums=wanted)(model)


def look_inside(model: CNN, data: Images) -> list[LayerView]:
    """Gives each layer's output and gradient, and leaves the model as it was."""
    model.eval()
    model(data.images, watch=True)  # the first run creates the perturbations, all zero
    grads = gradients_inside(model, data.images, data.labels)
    seen = nnx.pop(model, WATCHED)  # takes what sow and perturb made out of the model

    layers = [
        (f"block {number}", seen.blocks[number], grads.blocks[number])
        for number in range(len(model.blocks))
    ]
    layers.append(("logits", seen, grads))
    return [
        LayerView(
            name=name,
            # sow keeps a tuple, one entry a run: the last is from the run with the gradient.
            activations=np.asarray(values.activation.value[-1]),
            gradients=np.asarray(slopes.gradient.value),
        )
        for name, values, slopes in layers
    ]


# -- the program -----------------------------------------------------------------------------------


def run(
    *, epochs: int, batch_size: int, seed: int, out: Path, inside: nnx.TrainingReport
) -> Results:
    """Does everything but the report, says how far it is, and gives what the report shows."""
    start = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    train_data, test_data = load_data()
    print(f"digits: {len(train_data):,} images to train with, {len(test_data)} to test with")

    model = CNN(rngs=nnx.Rngs(seed))
    first = parameters(model)
    count = sum(values.size for values in first.values())
    print(f"model: {len(model.blocks)} blocks, {count:,} parameters; seed {seed}")
    before = look_inside(model, test_data)

    train_start = time.perf_counter()
    history = train(
        model,
        train_data,
        test_data,
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        inside=inside,
    )
    train_seconds = time.perf_counter() - train_start

    round_trip = check_round_trip(model, out / "model.npz", test_data, seed=seed)
    after = look_inside(model, test_data)
    left_over = nnx.to_flat_state(nnx.state(model, WATCHED))
    probabilities = np.asarray(nnx.softmax(predict(model, test_data.images)))

    return Results(
        settings={
            "Epochs": str(epochs),
            "Batch size": str(batch_size),
            "Seed": str(seed),
            "Images": f"{len(train_data):,} for training, {len(test_data)} for testing",
        },
        environment={
            "moduli, JAX": f"{nnx.__version__}, {jax.__version__}",
            "Python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
            "Device": f"{jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores",
        },
        seconds={
            "training (compilation included)": train_seconds,
            "all but this report": time.perf_counter() - start,
        },
        history=history,
        images=test_data.images[..., 0],
        labels=test_data.labels,
        probabilities=probabilities,
        before=before,
        after=after,
        parameters=[
            ParameterRow(
                name=name,
                shape=values.shape,
                rms_before=rms(first[name]),
                rms_after=rms(values),
                moved=relative_change(first[name], values),
            )
            for name, values in parameters(model).items()
        ],
        round_trip=round_trip,
        left_over=["/".join(map(str, path)) for path, _ in left_over],
    )


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description="Trains a network on handwritten digits and writes a report about it."
    )
    parser.add_argument("--epochs", type=int, help="default: 30, with --quick 2")
    parser.add_argument("--batch-size", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument(
        "--out", type=Path, default=Path("out/digits"), help="folder, default: %(default)s"
    )
    parser.add_argument("--quick", action="store_true", help="just see that everything works")
    options = parser.parse_args(arguments)
    if options.epochs is None:
        options.epochs = 2 if options.quick else 30
    if options.epochs < 1 or not 1 <= options.batch_size <= 1024:
        parser.error("--epochs must be at least 1, --batch-size from 1 to 1024")
    return options


def main(arguments: Sequence[str] | None = None) -> Results:
    """Runs the example with the arguments of a command line."""
    options = parse_options(arguments)
    start = time.perf_counter()
    inside = nnx.TrainingReport("Inside the network, epoch by epoch", step_name="epoch")
    results = run(
        epochs=options.epochs,
        batch_size=options.batch_size,
        seed=options.seed,
        out=options.out,
        inside=inside,
    )
    more = inside.save(options.out / "inside.html")
    page, overview = digits_report.write_report(results, options.out, {more.name: inside.title})

    trip = results.round_trip
    count = len(results.labels)
    equal = "equal" if trip.largest_difference == 0.0 else "NOT equal"
    left_over = ", ".join(results.left_over) or "nothing"
    print()
    print(f"test accuracy  {results.accuracy:.2%} ({results.mistakes} of {count} wrong)")
    print(
        f"checkpoint     {trip.path}\n"
        f"               logits of the loaded model are {equal}: largest difference "
        f"{trip.largest_difference:g}\n"
        f"               same digit for {trip.equal_after} of {count} images, for "
        f"{trip.equal_before} before loading"
    )
    print(f"looked inside  {len(results.after)} layers; left in the model: {left_over}")
    print(f"report         {page}\n               {overview}\n               {more}")
    training = results.seconds["training (compilation included)"]
    print(f"time           {time.perf_counter() - start:.1f} s, of which training {training:.1f} s")
    return results


if __name__ == "__main__":
    main()
