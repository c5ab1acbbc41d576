"""examples/char_gpt.py at a tiny size: it learns, and draws with its cache what it does without."""

import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli as nnx

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def gpt():
    """The example as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        import char_gpt

        yield char_gpt
        sys.modules.pop("char_gpt", None)


SIZES = ["--width", "16", "--depth", "2", "--heads", "2", "--length", "16"]
TINY = [*SIZES, "--steps", "40", "--batch-size", "8", "--characters", "5000", "--write", "24"]


def small(gpt, seed: int = 0, **options):
    """A fresh model over 11 characters, whose attention looks back 6 of them."""
    config = gpt.Config(alphabet=11, width=16, depth=3, heads=4, key_heads=2, length=6)
    return gpt.GPT(config, rngs=nnx.Rngs(seed), **options)


def some(batch: int, length: int) -> jax.Array:
    return jax.random.randint(jax.random.key(3), (batch, length), 0, 11)


def test_it_learns_writes_and_saves(gpt, tmp_path, capsys) -> None:
    results = gpt.main([*TINY, "--out", str(tmp_path)])
    assert np.mean(results.losses[-5:]) < 0.8 * np.mean(results.losses[:5])
    assert results.after < 0.8 * results.before
    assert results.sample.startswith("The ")
    assert len(results.sample) == len("The ") + 24
    printed = capsys.readouterr().out
    assert len(re.findall(r"step +\d+/40  loss \d\.\d{3}", printed)) == 10
    assert results.sample in printed

    again = gpt.GPT(results.model.config, rngs=nnx.Rngs(7))
    nnx.load(tmp_path / "model.npz", again)
    assert gpt.evaluate(again, results.text.test) == pytest.approx(results.after, rel=1e-5)


def test_stopped_and_started_again_it_ends_with_the_same_figures(
    gpt, tmp_path, monkeypatch
) -> None:
    whole = gpt.main([*TINY, "--out", str(tmp_path / "whole")])
    train_step, count = gpt.train_step, iter(range(99))

    def stops(*arguments):
        if next(count) == 22:
            raise InterruptedError  # nothing is saved then: it goes on after step 20
        return train_step(*arguments)

    monkeypatch.setattr(gpt, "train_step", stops)
    with pytest.raises(InterruptedError):
        gpt.main([*TINY, "--out", str(tmp_path / "stopped")])
    again = gpt.main([*TINY, "--out", str(tmp_path / "stopped")])
    assert next(count) == 23 + 20
    assert again.losses == whole.losses and again.sample == whole.sample
    assert (again.before, again.after) == (whole.before, whole.after)


def test_bfloat16_learns_and_writes(gpt, tmp_path) -> None:
    results = gpt.main([*TINY, "--bfloat16", "--remat", "--out", str(tmp_path)])
    assert np.mean(results.losses[-5:]) < 0.8 * np.mean(results.losses[:5])
    assert {p.dtype.name for p in jax.tree.leaves(nnx.state(results.model))} == {"float32"}
    writer = gpt.with_cache(results.model, 1, 8)
    assert writer.blocks.block.attention.cached_key.dtype == jnp.bfloat16


def test_bfloat16_is_in_every_layer(gpt) -> None:
    model = small(gpt)
    exact = model(some(2, 9))
    gpt.use_bfloat16(model)
    seen = set()

    class Watch:
        @nnx.hookimpl
        def moduli_after_call(self, module, output) -> None:
            seen.add((type(module).__name__, output.dtype.name))

    with nnx.using(Watch()):
        scores = model(some(2, 9))
    assert seen - {("GPT", "float32")} == {
        (name, "bfloat16")
        for name in (
            "Embed",
            "Stack",
            "Block",
            "RMSNorm",
            "MultiHeadAttention",
            "LinearGeneral",
            "GatedMLP",
            "Linear",
        )
    }
    np.testing.assert_allclose(scores, exact, atol=0.1)


def test_the_text_drawn_with_the_cache_is_the_one_drawn_without(gpt) -> None:
    """Longer than what attention looks back at, for two texts at once, character by character."""
    model, prompt, temperature = small(gpt), some(2, 3), 0.7
    written = gpt.write(model, prompt, jax.random.key(5), jnp.float32(temperature), length=9)

    keys = jax.random.split(jax.random.key(5), 11)
    whole = nnx.jit(lambda model, text: model(text))
    padded = jnp.zeros((2, 12), prompt.dtype).at[:, :3].set(prompt)  # one shape: compiled once
    for place in range(3, 12):
        scores = whole(model, padded)[:, place - 1]  # what comes later is not seen
        drawn = jax.random.categorical(keys[place - 1], scores / temperature)
        padded = padded.at[:, place].set(drawn)
    np.testing.assert_array_equal(written, padded)


def test_scores_with_the_cache_are_those_without(gpt) -> None:
    model, text = small(gpt), some(2, 10)
    writer = gpt.with_cache(model, 2, 10)
    steps = [writer(text[:, i : i + 1]) for i in range(10)]
    np.testing.assert_allclose(jnp.concatenate(steps, 1), model(text), rtol=1e-4, atol=1e-5)
    assert writer.embed.embedding is model.embed.embedding
    assert model.blocks.block.attention.cached_key is None  # the cache is the copy's alone


def test_attention_looks_back_as_far_as_it_says(gpt) -> None:
    model = small(gpt)
    model.blocks = nnx.Stack.of([model.blocks[0]])  # deeper, each block looks back on the one below
    text = some(1, 10)
    changed = text.at[0, 2].add(1) % 11
    differs = jnp.any(jnp.abs(model(text) - model(changed)) > 1e-6, axis=-1)[0]
    np.testing.assert_array_equal(differs, [False] * 2 + [True] * 6 + [False] * 2)


@pytest.mark.parametrize("change", ["remat", "loop"])
def test_remat_and_a_plain_loop_give_the_same_loss_and_gradients(gpt, change) -> None:
    model, other = small(gpt), small(gpt, remat=change == "remat")
    other.blocks.scan = change != "loop"
    for a, b in zip(
        *(jax.tree.leaves(nnx.value_and_grad(gpt.loss_fn)(m, some(2, 9))) for m in (model, other)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_the_text_is_pythons_and_comes_back_from_numbers(gpt) -> None:
    text = gpt.load_text(2000)
    assert len(text.train) == 2000
    assert text.decode(text.encode("assert")) == "assert"
    assert text.train.max() < len(text.alphabet)
    assert "".join(text.alphabet[i] for i in text.train[:50]) in "".join(gpt.topics.values())
    piece = next(gpt.batches(text.train, 4, 10, np.random.default_rng(0)))
    assert piece.shape == (4, 11)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--depth", "0"], "--depth must be at least 1"),
        (["--prompt", ""], "--prompt must not be empty"),
        (["--temperature", "0"], "--temperature must be above 0"),
        (["--characters", "100"], "--characters must be above --length, which is 128"),
    ],
)
def test_wrong_options_are_refused(gpt, capsys, arguments, message) -> None:
    with pytest.raises(SystemExit):
        gpt.parse_options(arguments)
    assert message in capsys.readouterr().err


def test_a_prompt_of_unknown_characters_is_refused_before_the_training(gpt, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"the text has no \['文'\]"):
        gpt.main([*TINY, "--prompt", "文", "--out", str(tmp_path)])
