"""A small GPT that learns to write Python's documentation, one character at a time.

The text is that of Python's own help topics (``pydoc_data``, in the standard library; nothing is
downloaded). The model is a modern transformer: pre-normalisation with RMSNorm, rotary positions,
grouped-query attention, a gated MLP, the output layer tied to the embedding. What to look at:

- the blocks are one ``Stack``: traced and compiled once, whatever the depth;
- sampling uses a cache of keys and values, so that each new character costs one step, and the whole
  loop over characters is one compiled program;
- killed and started again it goes on from its last checkpoint, and ends with the same numbers;
- ``--bfloat16`` computes in bfloat16, ``--remat`` trades time for memory.

Run it with ``python examples/char_gpt.py``; ``--help`` lists the options.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from pydoc_data.topics import topics

import jax
import jax.numpy as jnp
import numpy as np
import optax

import moduli as nnx

Array = jax.Array | np.ndarray  # JAX takes numpy's arrays as well as its own

# -- the text --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Text:
    """A text as numbers: each character is its index in ``alphabet``."""

    alphabet: str
    train: np.ndarray
    test: np.ndarray

    def encode(self, text: str) -> np.ndarray:
        """Writes characters as numbers; raises ValueError for one that the text does not have."""
        unknown = sorted(set(text) - set(self.alphabet))
        if unknown:
            raise ValueError(f"the text has no {unknown}; it has {self.alphabet!r}")
        return np.array([self.alphabet.index(character) for character in text], np.int32)

    def decode(self, numbers: Array) -> str:
        """Writes numbers as characters."""
        return "".join(self.alphabet[number] for number in np.asarray(numbers))


def load_text(characters: int | None = None) -> Text:
    """Gives the help topics in the order of their names; every tenth topic is for testing.

    Args:
      characters: at most so many of the training text; all by default.
    """
    pages = [text for _, text in sorted(topics.items())]
    train = "".join(page for number, page in enumerate(pages) if number % 10)[:characters]
    test = "".join(pages[::10])
    alphabet = "".join(sorted(set(train)))
    known = {character: number for number, character in enumerate(alphabet)}

    def encode(text: str) -> np.ndarray:
        return np.array([known[c] for c in text if c in known], np.int32)

    return Text(alphabet, encode(train), encode(test))


def batches(
    data: np.ndarray, size: int, length: int, random: np.random.Generator
) -> Iterator[np.ndarray]:
    """Gives pieces of the text for ever, from random places, of shape (size, length + 1)."""
    while True:
        starts = random.integers(0, len(data) - length, size)
        yield np.stack([data[start : start + length + 1] for start in starts])


# -- the model -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the model.

    Attributes:
      alphabet: how many characters there are.
      width: features of a position.
      depth: number of blocks.
      heads: attention heads.
      key_heads: heads of keys and values, each shared by ``heads / key_heads`` queries.
      length: how many characters attention looks back at, and a training piece has.
    """

    alphabet: int
    width: int = 128
    depth: int = 4
    heads: int = 4
    key_heads: int = 2
    length: int = 128


class GatedMLP(nnx.Module):
    """Two maps up, one of which is the other's gate, and one down."""

    def __init__(self, width: int, hidden: int, *, rngs: nnx.Rngs) -> None:
        self.gate = nnx.Linear(width, hidden, use_bias=False, rngs=rngs)
        self.up = nnx.Linear(width, hidden, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(hidden, width, use_bias=False, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.down(nnx.silu(self.gate(x)) * self.up(x))


class Block(nnx.Module):
    """Attention and an MLP, each of a normalised input and added to what came in."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs) -> None:
        self.attention_norm = nnx.RMSNorm(config.width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            config.heads,
            config.width,
            num_kv_heads=config.key_heads,
            use_bias=False,
            decode=False,
            rotary=nnx.rotary_embedding,
            window=config.length,  # texts may be longer: no distance is new in writing
            rngs=rngs,
        )
        self.mlp_norm = nnx.RMSNorm(config.width, rngs=rngs)
        self.mlp = GatedMLP(config.width, 3 * config.width, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        x = x + self.attention(self.attention_norm(x), is_causal=True)
        return x + self.mlp(self.mlp_norm(x))


class GPT(nnx.Module):
    """Scores for the next character at every position."""

    def __init__(self, config: Config, *, remat: bool = False, rngs: nnx.Rngs) -> None:
        self.config = config
        self.embed = nnx.Embed(config.alphabet, config.width, rngs=rngs)
        self.blocks = nnx.Stack(
            lambda rngs: Block(config, rngs=rngs), config.depth, remat=remat, rngs=rngs
        )
        self.norm = nnx.RMSNorm(config.width, rngs=rngs)

    def __call__(self, characters: Array) -> Array:
        """Maps (batch, length) to scores of shape (batch, length, alphabet)."""
        x = self.norm(self.blocks(self.embed(characters)))
        return self.embed.attend(x).astype(jnp.float32)


def use_bfloat16(model: GPT) -> None:
    """Lets the model compute in bfloat16, with parameters and sums in float32."""
    nnx.set_dtypes(
        model, nnx.DtypePolicy(param=jnp.float32, compute=jnp.bfloat16, accumulate=jnp.float32)
    )


# -- training --------------------------------------------------------------------------------------


def loss_fn(model: GPT, pieces: Array) -> Array:
    """The mean cross-entropy of each next character, in nats."""
    scores = model(pieces[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(scores, pieces[:, 1:]).mean()


@nnx.jit
def train_step(model: GPT, optimizer: nnx.Optimizer, pieces: Array) -> Array:
    """Changes ``model`` and ``optimizer`` in place; gives the loss."""
    loss, grads = nnx.value_and_grad(loss_fn)(model, pieces)
    optimizer.update(model, grads)
    return loss


loss_of_batch = nnx.jit(loss_fn)


def evaluate(model: GPT, data: np.ndarray, *, size: int = 32, count: int = 4) -> float:
    """Gives the loss on the same few batches of a text each time."""
    pieces = batches(data, size, model.config.length, np.random.default_rng(0))
    return float(np.mean([loss_of_batch(model, next(pieces)) for _ in range(count)]))


def train(
    model: GPT, text: Text, *, steps: int, batch_size: int, seed: int, folder: Path
) -> list[float]:
    """Trains ``model``, or goes on if ``folder`` has a part of it; gives the loss of each step."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, 3e-3, warmup_steps=min(50, steps // 4), decay_steps=max(steps, 2), end_value=3e-4
    )
    chain = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.01))
    optimizer = nnx.Optimizer(model, chain, wrt=nnx.Param)
    pieces = np.lib.stride_tricks.sliding_window_view(text.train, model.config.length + 1)
    data = nnx.Batches(pieces, batch_size, seed=seed, drop_last=True)
    tenth = max(steps // 10, 1)
    with nnx.Run(
        folder, model=model, optimizer=optimizer, data=data, save_every=tenth, log_every=tenth
    ) as run:
        for batch in run.steps(steps):  # started again, it goes on where it was
            loss = train_step(model, optimizer, batch)
            run.log(loss=loss)
            if run.every(tenth):  # reading a loss waits for it
                print(f"  step {run.step:5}/{steps}  loss {float(loss):.3f}", flush=True)
    with open(folder / "log.csv", newline="") as log:
        return [float(row["loss"]) for row in csv.DictReader(log)]


# -- writing ---------------------------------------------------------------------------------------


def with_cache(model: GPT, batch_size: int, length: int) -> GPT:
    """Gives a copy of the model that reads one character a call and remembers the earlier ones.

    The copy shares the parameters. Every block of the stack gets a cache of its own.
    """
    writer = nnx.view(model, decode=True, only=nnx.MultiHeadAttention)

    @nnx.vmap
    def add_cache(block: Block) -> None:
        shape = (batch_size, length, model.config.width)
        block.attention.init_cache(shape, block.attention.dtype or jnp.float32)

    add_cache(writer.blocks.block)
    return writer


@nnx.jit(static_argnames=("length",))
def write(model: GPT, prompt: Array, key: jax.Array, temperature: Array, *, length: int) -> Array:
    """Continues texts; the loop over characters is part of the program.

    Args:
      model: a model without a cache.
      prompt: how the texts begin, of shape (batch, characters), at least one character.
      key: a random key; each text draws from it.
      temperature: what the scores are divided by: small is likely, large is wild.
      length: how many characters to add.

    Returns:
      The texts, of shape (batch, characters + length).
    """
    batch_size, given = prompt.shape
    writer = with_cache(model, batch_size, given + length - 1)

    def step(character: Array, writer: GPT, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        key, forced = inputs
        scores = writer(character[:, None])[:, 0]
        drawn = jax.random.categorical(key, scores / temperature).astype(character.dtype)
        character = jnp.where(forced >= 0, forced, drawn)  # the prompt is not drawn
        return character, character

    run = nnx.scan(step, in_axes=(nnx.Carry, None, 0), out_axes=(nnx.Carry, 0))
    steps = given + length - 1
    forced = jnp.full((steps, batch_size), -1, prompt.dtype).at[: given - 1].set(prompt[:, 1:].T)
    _, written = run(prompt[:, 0], writer, (jax.random.split(key, steps), forced))
    return jnp.concatenate([prompt[:, :1], written.T], axis=1)


# -- the program -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Results:
    """What a run found; losses are in nats per character."""

    losses: list[float]
    before: float
    after: float
    unigram: float
    sample: str
    model: GPT
    text: Text


def unigram_loss(text: Text) -> float:
    """The loss on the test text of knowing nothing but how often each character is."""
    counts = np.bincount(text.train, minlength=len(text.alphabet)) + 1.0
    return float(-np.log(counts / counts.sum())[text.test].mean())


def run(options: argparse.Namespace) -> Results:
    """Does everything, and says how far it is."""
    text = load_text(options.characters)
    prompt = text.encode(options.prompt)[None]  # complains before the training, not after it
    config = Config(
        alphabet=len(text.alphabet),
        width=options.width,
        depth=options.depth,
        heads=options.heads,
        key_heads=options.heads // 2 if options.heads % 2 == 0 else options.heads,
        length=options.length,
    )
    model = GPT(config, remat=options.remat, rngs=nnx.Rngs(options.seed))
    if options.bfloat16:
        use_bfloat16(model)
    count = sum(value.size for value in jax.tree.leaves(nnx.state(model, nnx.Param)))
    print(f"text: {len(text.train):,} characters to train with, {len(text.test):,} to test with")
    print(f"model: {config.depth} blocks, {count:,} parameters; seed {options.seed}")

    before = evaluate(model, text.test)
    losses = train(
        model,
        text,
        steps=options.steps,
        batch_size=options.batch_size,
        seed=options.seed,
        folder=options.out / "run",
    )
    after = evaluate(model, text.test)
    key, temperature = jax.random.key(options.seed), jnp.float32(options.temperature)
    written = write(model, prompt, key, temperature, length=options.write)
    return Results(losses, before, after, unigram_loss(text), text.decode(written[0]), model, text)


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="Trains a small GPT on Python's help topics.")
    parser.add_argument("--steps", type=int, default=500, help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=16, help="default: %(default)s")
    parser.add_argument("--length", type=int, default=128, help="characters looked back at")
    parser.add_argument("--width", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--depth", type=int, default=4, help="blocks, default: %(default)s")
    parser.add_argument("--heads", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--characters", type=int, help="use only so many of the text")
    parser.add_argument("--prompt", default="The ", help="how the sample begins")
    parser.add_argument("--write", type=int, default=400, help="characters to write at the end")
    parser.add_argument("--temperature", type=float, default=0.6, help="default: %(default)s")
    parser.add_argument("--bfloat16", action="store_true", help="compute in bfloat16")
    parser.add_argument("--remat", action="store_true", help="less memory, more time")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("out/char_gpt"), help="folder")
    options = parser.parse_args(arguments)
    for name in ("steps", "batch_size", "length", "width", "depth", "heads", "write"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if options.characters is not None and options.characters <= options.length:
        parser.error(f"--characters must be above --length, which is {options.length}")
    if not options.prompt or options.temperature <= 0:
        parser.error("--prompt must not be empty, --temperature must be above 0")
    return options


def main(arguments: Sequence[str] | None = None) -> Results:
    """Runs the example with the arguments of a command line."""
    options = parse_options(arguments)
    start = time.perf_counter()
    results = run(options)
    options.out.mkdir(parents=True, exist_ok=True)
    nnx.save(options.out / "model.npz", results.model, metadata={"example": "char_gpt"})
    bits = np.log(2)
    print(f"\n{results.sample}\n")
    print(f"test loss      {results.after:.3f} nats a character ({results.after / bits:.2f} bits)")
    print(f"before         {results.before:.3f}")
    print(f"letter counts  {results.unigram:.3f}, if one knows nothing else")
    print(f"checkpoint     {options.out / 'model.npz'}")
    print(f"time           {time.perf_counter() - start:.1f} s")
    return results


if __name__ == "__main__":
    main()
