"""The models of flax.nnx's README, guides and examples, in our own words: only the import changes.

Each is a function of the library that builds a model, works with it and returns numbers. It runs
with moduli, where any warning is an error, and with flax.nnx; the numbers must be equal.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from programs import assert_same_numbers

import moduli

Example = Callable[[Any], Any]
EXAMPLES: dict[str, Example] = {}
X = np.linspace(-1.0, 1.0, 12, dtype=np.float32).reshape(4, 3)
Y = np.linspace(0.0, 1.0, 8, dtype=np.float32).reshape(4, 2)
TOKENS = np.arange(10).reshape(2, 5) % 7


def example(function: Example) -> Example:
    EXAMPLES[function.__name__] = function
    return function


@pytest.fixture(scope="module")
def flax_nnx() -> Any:
    return pytest.importorskip("flax.nnx")


# -- the first page: a network, and a step that trains it ------------------------------------------


def make_mlp(nnx: Any) -> Any:
    class MLP(nnx.Module):
        def __init__(self, din: int, dmid: int, dout: int, *, rngs: Any):
            self.linear1 = nnx.Linear(din, dmid, rngs=rngs)
            self.dropout = nnx.Dropout(0.2, rngs=rngs)
            self.norm = nnx.BatchNorm(dmid, rngs=rngs)
            self.linear2 = nnx.Linear(dmid, dout, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            x = nnx.gelu(self.dropout(self.norm(self.linear1(x))))
            return self.linear2(x)

    return MLP(3, 8, 2, rngs=nnx.Rngs(0))


@example
def readme_train_and_evaluate(nnx: Any) -> Any:
    model = make_mlp(nnx)
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    metrics = nnx.MultiMetric(loss=nnx.metrics.Average("loss"))

    @nnx.jit
    def train_step(model: Any, optimizer: Any, metrics: Any, x: Any, y: Any) -> Any:
        loss, grads = nnx.value_and_grad(lambda model: ((model(x) - y) ** 2).mean())(model)
        optimizer.update(model, grads)
        metrics.update(loss=loss)
        return loss

    model.train()
    losses = [train_step(model, optimizer, metrics, X, Y) for _ in range(3)]
    model.eval()
    return losses, metrics.compute()["loss"], model(X), model.norm.mean[...]


# -- basics: state of one's own, surgery, a stack of layers ----------------------------------------


@example
def basics_a_variable_of_ones_own_and_surgery(nnx: Any) -> Any:
    class Count(nnx.Variable):
        pass

    class Counting(nnx.Module):
        def __init__(self, inner: Any):
            self.inner, self.count = inner, Count(jnp.array(0))

        def __call__(self, x: Any) -> Any:
            self.count[...] += 1
            return self.inner(x)

    model = make_mlp(nnx)
    model.linear1 = nnx.LoRALinear(3, 8, lora_rank=2, rngs=nnx.Rngs(1))
    for path, module in list(nnx.iter_modules(model)):
        if isinstance(module, nnx.Linear) and path == ("linear2",):
            model.linear2 = Counting(module)
    model.eval()
    outputs = [nnx.jit(lambda model, x: model(x))(model, X) for _ in range(2)]
    graphdef, counts, lora, rest = nnx.split(model, Count, nnx.LoRAParam, ...)
    again = nnx.merge(graphdef, counts, lora, rest)
    return outputs, again(X), len(nnx.to_flat_state(lora)), counts["linear2"]["count"][...]


@example
def basics_a_scan_over_stacked_blocks(nnx: Any) -> Any:
    class Block(nnx.Module):
        def __init__(self, rngs: Any):
            self.linear = nnx.Linear(3, 3, rngs=rngs)
            self.norm = nnx.BatchNorm(3, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return jax.nn.gelu(self.dropout(self.norm(self.linear(x))))

    class Stacked(nnx.Module):
        def __init__(self, rngs: Any):
            @nnx.split_rngs(splits=4)
            @nnx.vmap(in_axes=(0,), out_axes=0)
            def make(rngs: Any) -> Any:
                return Block(rngs)

            self.blocks = make(rngs)

        def __call__(self, x: Any) -> Any:
            @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
            def forward(x: Any, block: Any) -> Any:
                return block(x)

            return forward(x, self.blocks)

    model = Stacked(nnx.Rngs(0))
    return model.blocks.linear.kernel[...], model(X).shape, model.blocks.norm.mean[...].shape


# -- transforms ------------------------------------------------------------------------------------


@example
def transforms_an_ensemble_by_state_axes(nnx: Any) -> Any:
    axes = nnx.StateAxes({(nnx.Param, nnx.RngState): 0, nnx.BatchStat: None})

    @nnx.vmap(in_axes=0, out_axes=axes)
    def make(rngs: Any) -> Any:
        return make_small(nnx, rngs)

    models = make(nnx.Rngs(0).split(3))

    @nnx.vmap(in_axes=(axes, None), out_axes=0)
    def forward(model: Any, x: Any) -> Any:
        return model.linear(x) * model.scale

    @nnx.jit
    @functools.partial(nnx.grad, argnums=nnx.DiffState(0, nnx.PathContains("kernel")))
    def gradient(models: Any, x: Any) -> Any:
        return (forward(models, x) ** 2).mean()

    grads = gradient(models, X)
    return forward(models, X), nnx.to_pure_dict(grads)["linear"]["kernel"]


def make_small(nnx: Any, rngs: Any) -> Any:
    class Small(nnx.Module):
        def __init__(self, rngs: Any):
            self.linear = nnx.Linear(3, 2, rngs=rngs)
            self.scale = nnx.BatchStat(jnp.ones(()))

    return Small(rngs)


# -- surgery ---------------------------------------------------------------------------------------


@example
def surgery_pretrained_parts_without_making_them_twice(nnx: Any) -> Any:
    pretrained = nnx.to_pure_dict(nnx.state(make_mlp(nnx).linear1))
    abstract = nnx.eval_shape(lambda: make_mlp(nnx))
    graphdef, state = nnx.split(abstract)
    fresh = nnx.state(make_mlp(nnx))
    nnx.replace_by_pure_dict(state, nnx.to_pure_dict(fresh))
    model = nnx.merge(graphdef, state)
    scaled = jax.tree.map(lambda x: x * 2, pretrained)
    nnx.update(model.linear1, nnx.State({k: nnx.Param(v) for k, v in scaled.items()}))
    model.head = nnx.Linear(2, 1, rngs=nnx.Rngs(5))
    model.tied = model.linear2
    model.eval()
    del model.dropout
    model.dropout = lambda x: x
    assert nnx.find_duplicates(model) == [[("linear2",), ("tied",)]]
    return model.head(model(X)), model.tied(model.linear1(X))


# -- randomness ------------------------------------------------------------------------------------


@example
def randomness_of_streams(nnx: Any) -> Any:
    rngs = nnx.Rngs(0, noise=1)
    model = nnx.Dropout(0.5, rngs=rngs)
    first = model(jnp.ones((2, 3)))
    nnx.reseed(model, default=7)
    second = model(jnp.ones((2, 3)))
    kept = nnx.split(rngs, nnx.RngKey, nnx.RngCount)[2]
    drawn = rngs.noise.uniform((2,)), rngs.params.normal((2,)), rngs.randint((3,), 0, 9)

    @nnx.vmap(in_axes=(nnx.StateAxes({"noise": 0, ...: None}), 0))
    def draw(rngs: Any, x: Any) -> Any:
        return rngs.noise.normal(()) + x

    with nnx.split_rngs(rngs, splits=4, only="noise"):
        mapped = draw(rngs, jnp.zeros(4))
    return first, second, drawn, mapped, len(nnx.to_flat_state(kept))


# -- performance -----------------------------------------------------------------------------------


@example
def performance_without_taking_the_model_apart_at_each_step(nnx: Any) -> Any:
    def step(model: Any, optimizer: Any, x: Any, y: Any) -> Any:
        loss, grads = nnx.value_and_grad(lambda model: ((model(x) - y) ** 2).mean())(model)
        optimizer.update(model, grads)
        return loss

    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    cached = nnx.cached_partial(nnx.jit(step), model, optimizer)
    found = [cached(X, Y), cached(X, Y)]
    graphdef, state = nnx.split((model, optimizer))

    @jax.jit
    def functional(state: Any, x: Any, y: Any) -> Any:
        model, optimizer = nnx.merge(graphdef, state)
        loss = step(model, optimizer, x, y)
        return loss, nnx.state((model, optimizer))

    for _ in range(2):
        loss, state = functional(state, X, Y)
        found.append(loss)
    nnx.update((model, optimizer), state)
    return found, model.kernel[...], optimizer.step[...]


# -- a decoder with grouped heads, rotary positions and a cache of its own -------------------------


def rotate(x: Any, positions: Any) -> Any:
    frequencies = 10_000.0 ** -(jnp.arange(0, x.shape[-1] // 2) / (x.shape[-1] // 2))
    angles = positions[..., None, None] * frequencies
    first, second = jnp.split(x, 2, axis=-1)
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def make_gemma(nnx: Any) -> Any:
    class Embedder(nnx.Module):
        def __init__(self, rngs: Any):
            self.table = nnx.Param(nnx.initializers.normal()(rngs.params(), (7, 8)))

        def encode(self, tokens: Any) -> Any:
            return self.table[...][(tokens,)] * jnp.sqrt(8.0)

        def decode(self, x: Any) -> Any:
            return x @ self.table.T

    class Attention(nnx.Module):
        def __init__(self, rngs: Any):
            self.q = nnx.Einsum("BTD,NDH->BTNH", (4, 8, 4), rngs=rngs)
            self.kv = nnx.Einsum("BSD,CKDH->CBSKH", (2, 2, 8, 4), rngs=rngs)
            self.out = nnx.Einsum("BTNH,NHD->BTD", (4, 4, 8), rngs=rngs)

        def __call__(self, x: Any, positions: Any, cache: Any, mask: Any) -> Any:
            query = rotate(self.q(x), positions)
            key, value = self.kv(x)
            key = rotate(key, positions)
            if cache is not None:
                at = (0, cache["end"], 0, 0)
                key = jax.lax.dynamic_update_slice(cache["k"], key, at)
                value = jax.lax.dynamic_update_slice(cache["v"], value, at)
                cache = {"k": key, "v": value, "end": cache["end"] + x.shape[1]}
            query = query.reshape(*query.shape[:2], 2, 2, 4)  # (B, T, K, G, H)
            logits = jnp.einsum("BTKGH,BSKH->BTKGS", query, key) / 2.0
            self.sow(nnx.Intermediate, "largest", jnp.abs(logits).max())
            logits = jnp.where(mask[:, :, None, None, :], logits, -1e30)
            mixed = jnp.einsum("BTKGS,BSKH->BTKGH", jax.nn.softmax(logits), value)
            return self.out(mixed.reshape(*mixed.shape[:2], 4, 4)), cache

    class Block(nnx.Module):
        def __init__(self, rngs: Any):
            self.before, self.after = (nnx.RMSNorm(8, rngs=rngs) for _ in range(2))
            self.attention = Attention(rngs)
            self.gate, self.up = (nnx.Linear(8, 16, use_bias=False, rngs=rngs) for _ in range(2))
            self.down = nnx.Linear(16, 8, use_bias=False, rngs=rngs)

        def __call__(self, x: Any, *args: Any) -> Any:
            mixed, cache = self.attention(self.before(x), *args)
            x = x + mixed
            y = self.after(x)
            return x + self.down(nnx.gelu(self.gate(y)) * self.up(y)), cache

    class Decoder(nnx.Module):
        def __init__(self, rngs: Any):
            self.embedder = Embedder(rngs)
            self.layers = nnx.List([Block(rngs) for _ in range(2)])
            self.norm = nnx.RMSNorm(8, rngs=rngs)

        def __call__(self, tokens: Any, positions: Any, caches: Any, mask: Any) -> Any:
            x, new = self.embedder.encode(tokens), []
            for layer, cache in zip(self.layers, caches, strict=True):
                x, cache = layer(x, positions, cache, mask)
                new.append(cache)
            return self.embedder.decode(self.norm(x)), new

    return Decoder(nnx.Rngs(params=0))


@example
def gemma_a_cache_decodes_what_one_call_gives(nnx: Any) -> Any:
    model = make_gemma(nnx)
    length = TOKENS.shape[1]
    positions = jnp.broadcast_to(jnp.arange(length), TOKENS.shape)
    causal = jnp.tril(jnp.ones((1, length, length), bool))
    forward = nnx.capture(model, nnx.Intermediate)
    (whole, _), seen = forward(TOKENS, positions, [None, None], causal)

    @nnx.jit
    def step(model: Any, token: Any, position: Any, caches: Any) -> Any:
        mask = jnp.arange(length) <= position[:, :, None]
        return model(token, position, caches, mask)

    empty = jnp.zeros((2, length, 2, 4))
    caches = [{"k": empty, "v": empty, "end": 0} for _ in range(2)]
    logits = []
    graphdef, state = nnx.split(nnx.clone(model))
    for i in range(length):
        model = nnx.merge(graphdef, state)
        found, caches = plain_step(nnx, step, model, i, caches)
        logits.append(found)
    stepped = jnp.concatenate(logits, axis=1)
    np.testing.assert_allclose(stepped, whole, atol=1e-4)
    largest = jax.tree.leaves(nnx.to_pure_dict(seen))
    return whole, stepped, sorted(float(value) for value in largest)


def plain_step(nnx: Any, step: Any, model: Any, i: int, caches: Any) -> Any:
    out = nnx.capture(lambda model, *args: step(model, *args), nnx.Intermediate)(
        model, TOKENS[:, i : i + 1], jnp.full((2, 1), i), caches
    )
    return out[0]


# -- a language model with names of axes and decoding ----------------------------------------------


def make_lm(nnx: Any, decode: bool) -> Any:
    def named(names: tuple[Any, ...]) -> Any:
        return nnx.with_partitioning(nnx.initializers.xavier_uniform(), names)

    class Block(nnx.Module):
        def __init__(self, rngs: Any):
            self.norm, self.norm2 = nnx.LayerNorm(8, rngs=rngs), nnx.LayerNorm(8, rngs=rngs)
            self.attention = nnx.MultiHeadAttention(
                2, 8, kernel_init=named(("embed", None, "heads")), use_bias=False,
                dropout_rate=0.1, decode=decode, rngs=rngs, keep_rngs=False,
                out_kernel_init=nnx.initializers.xavier_uniform(),
            )  # fmt: skip
            self.wi = nnx.Linear(8, 16, kernel_init=named(("embed", "mlp")), rngs=rngs)
            self.wo = nnx.Linear(16, 8, kernel_init=named(("mlp", "embed")), rngs=rngs)

        def __call__(self, x: Any, mask: Any) -> Any:
            y = self.attention(self.norm(x), mask=mask, deterministic=True)
            x = x + y
            return x + self.wo(nnx.relu(self.wi(self.norm2(x))))

    class LM(nnx.Module):
        def __init__(self, rngs: Any):
            init = nnx.initializers.normal(stddev=1.0)
            self.embed = nnx.Embed(7, 8, embedding_init=init, rngs=rngs)
            for i in range(2):
                setattr(self, f"block_{i}", Block(rngs))
            self.norm = nnx.LayerNorm(8, rngs=rngs)

        def __call__(self, tokens: Any, mask: Any = None) -> Any:
            x = self.embed(tokens)
            for i in range(2):
                x = getattr(self, f"block_{i}")(x, mask)
            return self.embed.attend(self.norm(x)) / jnp.sqrt(8.0)

        def init_cache(self, shape: tuple[int, ...]) -> None:
            for _, module in nnx.iter_modules(self):
                if isinstance(module, nnx.MultiHeadAttention):
                    module.init_cache((*shape, 8))

    return LM(nnx.Rngs(0))


@example
def lm1b_trains_laid_out_and_decodes(nnx: Any) -> Any:
    mesh = jax.make_mesh((1, 1), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    rules = (("embed", None), ("mlp", "model"), ("heads", "model"))
    mask = nnx.combine_masks(
        nnx.make_attention_mask(TOKENS > 0, TOKENS > 0), nnx.make_causal_mask(TOKENS)
    )
    with jax.set_mesh(mesh), nnx.logical_axis_rules(rules):
        model = make_lm(nnx, decode=False)
        specs = nnx.get_partition_spec(nnx.state(model, nnx.Param))
        optimizer = nnx.Optimizer(model, optax.adamw(1e-2, b2=0.98), wrt=nnx.Param)

        @nnx.jit
        def train_step(model: Any, optimizer: Any, tokens: Any) -> Any:
            def loss_of(model: Any) -> Any:
                logits = model(tokens, mask)
                soft = optax.smooth_labels(jax.nn.one_hot(tokens, 7), 0.1)
                weights = tokens > 0
                losses = optax.softmax_cross_entropy(logits, soft)
                return (losses * weights).sum() / weights.sum()

            loss, grads = nnx.value_and_grad(loss_of)(model)
            optimizer.update(model, grads)
            return loss

        losses = [train_step(model, optimizer, TOKENS) for _ in range(3)]
        decoder = make_lm(nnx, decode=True)
        nnx.update(decoder, nnx.state(model, nnx.Param))
        decoder.init_cache(TOKENS.shape)
        step = nnx.jit(lambda decoder, token: decoder(token))
        stepped = jnp.concatenate([step(decoder, TOKENS[:, i : i + 1]) for i in range(5)], axis=1)
        whole = model(TOKENS, nnx.make_causal_mask(TOKENS))
    np.testing.assert_allclose(stepped, whole, atol=1e-4)
    spec = specs["block_0"]["wi"]["kernel"].get_value()
    assert tuple(spec) == (None, "model")
    return losses, whole


# -- the tests -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXAMPLES)
def test_runs_with_moduli_and_warns_of_nothing(name: str) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        EXAMPLES[name](moduli)
    assert [str(warning.message) for warning in seen] == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", EXAMPLES)
def test_flax_gives_the_same_numbers(name: str, flax_nnx: Any) -> None:
    ours, theirs = EXAMPLES[name](moduli), EXAMPLES[name](flax_nnx)
    assert_same_numbers(ours, theirs, rtol=1e-4, atol=1e-5)
