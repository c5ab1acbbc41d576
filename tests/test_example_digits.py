"""examples/digits.py: what it learns, saves, sees inside the model and reports."""

import base64
import dataclasses
import re
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import moduli as nnx

EXAMPLES = Path(__file__).parents[1] / "examples"
SECTIONS = {
    "summary": "Summary",
    "curves": "Loss and accuracy",
    "confusion": "Confusion matrix",
    "mistakes": "Mistakes",
    "activations": "Activations",
    "gradients": "Gradients",
    "parameters": "Parameters and updates",
}


@pytest.fixture(scope="module")
def digits():
    """The example as a module; it imports its neighbour, as a script does.

    Its dtypes promote as users have it: optax's Adam does not run with strict promotion.
    """
    with jax.numpy_dtype_promotion("standard"), pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        import digits

        yield digits
        for name in ("digits", "digits_report"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def short(digits, tmp_path_factory):
    """A run of three epochs: its results and the folder with its files."""
    folder = tmp_path_factory.mktemp("digits")
    return digits.main(["--epochs", "3", "--out", str(folder)]), folder


@pytest.fixture(scope="module")
def test_data():
    """The held-out images as the example's documentation describes them, made without it."""
    data = load_digits()
    _, images, _, labels = train_test_split(
        data.images, data.target, test_size=0.2, stratify=data.target, random_state=42
    )
    return (images / 16)[..., None].astype(np.float32), labels


def softmax(logits):
    powers = np.exp(np.asarray(logits, np.float64) - np.max(logits, axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def paths_and_kinds(model):
    return [(path, type(value)) for path, value in nnx.to_flat_state(nnx.state(model))]


def test_three_epochs_are_far_above_chance_and_the_checkpoint_holds_what_they_learned(
    digits, short, test_data
):
    results, folder = short
    images, labels = test_data
    model = digits.CNN(rngs=nnx.Rngs(99))
    model.eval()
    untrained = np.mean(np.argmax(model(images), axis=-1) == labels)
    nnx.load(folder / "model.npz", model)
    logits = np.asarray(digits.predict(model, images))

    accuracy = np.mean(np.argmax(logits, axis=-1) == labels)
    assert accuracy >= 0.70  # chance is 0.10
    assert untrained < 0.40
    assert results.accuracy == pytest.approx(accuracy)
    assert results.mistakes == np.sum(np.argmax(logits, axis=-1) != labels)
    np.testing.assert_allclose(results.probabilities, softmax(logits), atol=1e-6)


def test_round_trip_gives_equal_predictions(short):
    trip = short[0].round_trip
    assert trip.largest_difference == 0.0
    assert trip.equal_after == 360
    assert trip.equal_before < 0.5 * 360  # or the comparison would show nothing


def test_loss_falls_and_kernels_move(short):
    history = short[0].history
    assert len(history) == 3
    for name in ("batch_loss", "train_loss", "test_loss"):
        values = [getattr(epoch, name) for epoch in history]
        assert values == sorted(values, reverse=True), name
    assert history[0].batch_accuracy < history[-1].batch_accuracy
    for epoch in history:
        assert set(epoch.moved) == {f"blocks/{n}/conv/kernel" for n in range(4)} | {"linear/kernel"}
        assert all(0 < change < 1 for change in epoch.moved.values())


def test_a_look_inside_gives_the_gradients_and_leaves_nothing(digits, test_data):
    images, labels = test_data
    model = digits.CNN(rngs=nnx.Rngs(5))
    model.eval()
    structure, contents = nnx.graphdef(model), paths_and_kinds(model)

    views = digits.look_inside(model, digits.Images(images, labels.astype(np.int32)))

    assert [view.name for view in views] == ["block 0", "block 1", "block 2", "block 3", "logits"]
    assert [view.activations.shape for view in views] == [
        (360, 8, 8, 32),
        (360, 8, 8, 32),
        (360, 4, 4, 64),
        (360, 4, 4, 64),
        (360, 10),
    ]
    logits = np.asarray(digits.predict(model, images))
    np.testing.assert_allclose(views[-1].activations, logits, atol=1e-5)
    # the cross-entropy's gradient for the logits has a closed form
    expected = softmax(logits) - np.eye(10)[labels]
    np.testing.assert_allclose(views[-1].gradients, expected, atol=1e-5)
    # max pooling passes the gradient of a 2x2 window to one of its pixels, so the window's sum is
    # what the linear layer passes back
    windows = views[-2].gradients.reshape(360, 2, 2, 2, 2, 64).sum(axis=(2, 4))
    back = expected @ np.asarray(model.linear.kernel.value).T
    np.testing.assert_allclose(windows.reshape(360, -1), back, atol=1e-5)

    assert nnx.graphdef(model) == structure
    assert paths_and_kinds(model) == contents
    assert not hasattr(model, "activation")
    assert not hasattr(model.blocks[0], "gradient")


def test_training_does_not_grow_the_model(digits, short, test_data):
    assert list(short[0].left_over) == []
    images, labels = test_data
    data = digits.Images(images, labels.astype(np.int32))
    model = digits.CNN(rngs=nnx.Rngs(0))
    contents = paths_and_kinds(model)
    digits.train(model, data, data, epochs=1, batch_size=180, seed=0)
    assert paths_and_kinds(model) == contents


def test_batches_are_images_shifted_by_at_most_one_pixel(digits):
    image = np.zeros((8, 8, 1), np.float32)
    image[3, 4] = 1.0
    data = digits.Images(np.stack([image] * 100), np.arange(100, dtype=np.int32))
    batches = list(digits.batches(data, 32, np.random.default_rng(0)))
    assert [len(batch) for batch in batches] == [32, 32, 32]  # all of one size
    seen = np.concatenate([batch.labels for batch in batches])
    assert len(set(seen.tolist())) == 96  # no image twice
    places = {
        tuple(int(where) for where in np.argwhere(image[..., 0])[0])
        for batch in batches
        for image in batch.images
    }
    assert places == {(row, column) for row in (2, 3, 4) for column in (3, 4, 5)}


def test_report_is_one_file_with_every_section(short):
    results, folder = short
    page = (folder / "report.html").read_text(encoding="utf-8")
    for name, title in SECTIONS.items():
        section = re.search(rf'<section id="{name}"><h2>(.*?)</h2>(.*?)</section>', page, re.DOTALL)
        assert section, name
        assert section[1] == title
        if name == "summary":
            assert f"{results.accuracy:.2%} ({results.mistakes} of 360 wrong)" in section[2]
            assert "360 of 360 predictions of a fresh model are equal" in section[2]
        else:
            assert "<img " in section[2], name
    pictures = re.findall(r'src="(.*?)"', page)
    assert len(pictures) == 6
    for picture in pictures:
        kind, _, data = picture.partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data, validate=True).startswith(b"\x89PNG\r\n\x1a\n")
    for row in results.parameters:
        assert f"<td>{row.name}</td>" in page
    assert "67,754" in page
    assert not re.search(r"https?://|<script|<link", page)  # nothing is loaded from elsewhere
    assert (folder / "overview.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_report_leads_to_what_happened_inside(short):
    _, folder = short
    assert '<a href="inside.html">' in (folder / "report.html").read_text(encoding="utf-8")
    page = (folder / "inside.html").read_text(encoding="utf-8")
    for title in ("Activations", "Dead units", "Gradients", "Histograms of the parameters"):
        assert f"<h2>{title}</h2>" in page
    assert "3 records, epoch 1 to 3." in page
    assert "All tensors at epoch 3" in page
    for path in ("blocks/3", "linear", "blocks/0/conv/kernel"):
        assert f'<th scope="row">{path}</th>' in page
    assert not re.search(r"https?://|<script|<link", page)


def test_report_of_a_run_without_mistakes_or_of_dead_layers_can_be_drawn(digits, short, tmp_path):
    results, _ = short
    dead = [
        dataclasses.replace(view, activations=0 * view.activations, gradients=0 * view.gradients)
        if view.name == "block 1"
        else view
        for view in results.after
    ]
    perfect = dataclasses.replace(
        results, probabilities=np.eye(10)[results.labels], before=dead, after=dead
    )
    page, overview = digits.digits_report.write_report(perfect, tmp_path / "new" / "folder")
    assert "100.0% of 360 test images are right" in page.read_text(encoding="utf-8")
    assert overview.stat().st_size > 10_000


@pytest.mark.parametrize(
    "arguments", [["--epochs", "0"], ["--batch-size", "0"], ["--batch-size", "1500"]]
)
def test_options_that_cannot_work_are_refused(digits, arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        digits.main(arguments)
    assert caught.value.code == 2
    assert "must be" in capsys.readouterr().err


@pytest.mark.slow
def test_as_a_program_it_reaches_97_percent_in_two_minutes(tmp_path):
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "digits.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < 120
    found = re.search(r"^test accuracy +([0-9.]+)%", done.stdout, re.MULTILINE)
    assert found
    assert float(found[1]) >= 97.0
    assert "epoch  30/30" in done.stdout  # progress is told without a terminal too
    assert "logits of the loaded model are equal: largest difference 0\n" in done.stdout
    assert "left in the model: nothing" in done.stdout
    folder = Path("out") / "digits"
    for name in ("report.html", "inside.html", "overview.png", "model.npz"):
        assert str(folder / name) in done.stdout
        assert (tmp_path / folder / name).is_file()
