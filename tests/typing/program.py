"""A user's program: type checkers in strict mode find nothing wrong here, and know these types."""

import abc
from typing import Any, Protocol, assert_type

import jax
import jax.numpy as jnp
import optax

import moduli as nnx


class Block(nnx.Module):
    def __init__(self, size: int, *, rngs: nnx.Rngs) -> None:
        self.w = nnx.Param(jax.random.normal(rngs.params(), (size, size)))
        self.scale = nnx.Param(rngs.params.normal((size,)))
        self.calls = nnx.Variable(0)
        assert_type(self.calls.value, int)
        self.linear = nnx.Linear(size, size, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: jax.Array, *, scale: float = 1.0) -> jax.Array:
        self.calls += 1  # (under jit it becomes an array)
        assert_type(x @ self.w, jax.Array)
        assert_type(self.w * 2, jax.Array)
        assert_type(2 * self.w, jax.Array)
        assert_type(-self.w, jax.Array)
        assert_type(self.w.value, jax.Array)
        assert_type(self.w[...], jax.Array)
        assert_type(self.w.get_value(), jax.Array)
        assert_type(x + self.w[0] - 1, jax.Array)
        assert_type(self.w / self.scale, jax.Array)
        assert_type(self.w > 0, jax.Array)
        assert_type(self.w.shape, tuple[int, ...])
        self.w.value = self.w * 0.9
        self.w[0] = 1.0
        norm = jnp.sum(self.w[...]) + jnp.mean(self.w.value)
        return self.linear(x @ self.w + self.scale) * scale / norm

    @nnx.jit
    def step(self, x: jax.Array) -> jax.Array:
        return self(x)

    @nnx.jit(static_argnames="times")
    def repeated(self, x: jax.Array, times: int = 2) -> jax.Array:
        return self(x) * times

    @nnx.remat
    def rematted(self, x: jax.Array) -> jax.Array:
        return self(x)


class Model(nnx.Module):
    def __init__(self, size: int, *, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(10, size, rngs=rngs)
        self.blocks = nnx.List([Block(size, rngs=rngs) for _ in range(2)])
        self.heads = nnx.Dict({"a": nnx.Linear(size, 2, rngs=rngs)})
        self.norm = nnx.LayerNorm(size, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embed(tokens)
        for block in self.blocks:
            assert_type(block, Block)
            x = block(x)
        return self.heads["a"](self.norm(x))


class Positive(nnx.Param[jax.Array]):
    """A kind of Variable with a value of its own."""

    def get_value(self, **index: Any) -> Any:
        return jnp.exp(super().get_value(**index))


class Calls(Protocol):
    def __call__(self, x: jax.Array, /) -> jax.Array: ...


class Encoder(nnx.Module, abc.ABC):
    @abc.abstractmethod
    def encode(self, x: jax.Array) -> jax.Array: ...

    def __call__(self, x: jax.Array, /) -> jax.Array:
        return self.encode(x)


class Doubling(Encoder):
    def __init__(self, inner: Calls, head: nnx.Linear | None = None) -> None:
        self.inner = inner
        self.head = head

    def encode(self, x: jax.Array) -> jax.Array:
        return 2 * self.inner(x) if self.head is None else self.head(x)


@nnx.dataclass
class Affine(nnx.Module):
    factor: nnx.Param[jax.Array]
    offset: nnx.Param
    steps: int = nnx.static(default=0)
    count: int = nnx.data(default=1)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.factor + self.offset


model = Model(8, rngs=nnx.Rngs(0, dropout=1))
x = jax.random.normal(jax.random.key(0), (8,))
tokens = jax.random.randint(jax.random.key(0), (2, 3), 0, 10)
affine = Affine(nnx.Param(x), nnx.Param(0.0), steps=2)
assert_type(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.Linear)
assert_type(affine, Affine)
assert_type(affine.factor.value, jax.Array)
assert_type(affine.steps, int)
assert_type(model(tokens), jax.Array)
assert_type(model.blocks[0].linear.kernel.value, jax.Array)
assert_type(model.blocks[0].linear.in_features, int)
assert_type(model.blocks[0].step(x), jax.Array)
assert_type(model.blocks[0].repeated(x, times=3), jax.Array)
assert_type(model.blocks[0].rematted(x), jax.Array)
assert_type(nnx.Rngs(0).params(), jax.Array)
assert_type(nnx.Rngs(0).normal((3,)), jax.Array)
chain = nnx.Sequential(nnx.Linear(8, 4, rngs=nnx.Rngs(0)), nnx.relu)
chain(x)
blocks: nnx.List[Block] = nnx.List([])
blocks.append(model.blocks[0])


stacked = nnx.Stack(lambda rngs: Block(8, rngs=rngs), 2, rngs=nnx.Rngs(0))
assert_type(stacked[0].linear, nnx.Linear)
assert_type(stacked(x), jax.Array)
assert_type(Positive(x) * 2, jax.Array)
doubling = Doubling(Doubling(nnx.Linear(8, 8, rngs=nnx.Rngs(0))))
assert_type(doubling(x), jax.Array)
nnx.Linear(2, 3, kernel_init=nnx.initializers.he_normal(), rngs=nnx.Rngs(0, params=1))


# -- graphs ------------------------------------------------------------------------------------

assert_type(nnx.clone(model), Model)
assert_type(nnx.state(model), nnx.State)
assert_type(nnx.state(model, nnx.Param), nnx.State)
graphdef, params, rest = nnx.split(model, nnx.Param, ...)
assert_type(graphdef, nnx.GraphDef[Model])
assert_type(params, nnx.State)
assert_type(nnx.merge(graphdef, params, rest), Model)
both_def, both_state = nnx.split((model, affine))
assert_type(nnx.merge(both_def, both_state), tuple[Model, Affine])
assert_type(nnx.clone(model, graph=True), Model)
assert_type(nnx.state(model, nnx.Param, graph=False), nnx.State)
assert_type(nnx.split(model, graph=True), tuple[nnx.GraphDef[Model], nnx.State])
nnx.update(model, params)
assert_type(nnx.view(model, deterministic=True), Model)
model.train()
with model.eval_mode() as evaluated:
    assert_type(evaluated, Model)


# -- transforms --------------------------------------------------------------------------------


def loss_fn(model: Model, tokens: jax.Array) -> jax.Array:
    return model(tokens).mean()


def loss_and_logits(model: Model, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    logits = model(tokens)
    return logits.mean(), logits


@nnx.jit
def train_step(
    model: Model, optimizer: nnx.Optimizer[Model], metrics: nnx.MultiMetric, tokens: jax.Array
) -> jax.Array:
    loss, grads = nnx.value_and_grad(loss_fn)(model, tokens)
    assert_type(loss, jax.Array)
    optimizer.update(model, grads)
    metrics.update(loss=loss)
    return loss


optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
assert_type(optimizer, nnx.Optimizer[Model])
metrics = nnx.MultiMetric(loss=nnx.metrics.Average("loss"))
assert_type(train_step(model, optimizer, metrics, tokens), jax.Array)

trainer = nnx.ModelAndOptimizer(model, optax.sgd(1e-3))
assert_type(trainer.model, Model)


def count(optimizer: nnx.Optimizer, states: nnx.List) -> int:
    return int(optimizer.step) + len(states)


nnx.grad(loss_fn)(model, tokens)
(value, logits), gradients = nnx.value_and_grad(loss_and_logits, has_aux=True)(model, tokens)
assert_type(value, jax.Array)
assert_type(logits, jax.Array)
only, logits = nnx.grad(loss_and_logits, argnums=nnx.DiffState(0, nnx.Param), has_aux=True)(
    model, tokens
)
assert_type(logits, jax.Array)

graphless = nnx.value_and_grad(loss_and_logits, has_aux=True, graph=False, graph_updates=False)
(value, logits), gradients = graphless(model, tokens)
assert_type(value, jax.Array)
assert_type(nnx.jit(loss_fn, graph=False)(model, tokens), jax.Array)
assert_type(nnx.vmap(loss_fn, in_axes=(None, 0), graph=True)(model, tokens[None]), jax.Array)


@nnx.jit(donate_argnums=0)
def forward(model: Model, tokens: jax.Array, *, times: int = 1) -> jax.Array:
    return model(tokens) * times


@nnx.vmap(in_axes=(None, 0))
def batched(model: Model, tokens: jax.Array) -> jax.Array:
    return model(tokens)


@nnx.split_rngs(splits=3)
@nnx.vmap
def make_blocks(rngs: nnx.Rngs) -> Block:
    return Block(8, rngs=rngs)


@nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
def scanned(block: Block, x: jax.Array) -> jax.Array:
    return block(x)


@nnx.custom_vjp
def clipped(model: Model, x: jax.Array) -> jax.Array:
    return x


def clipped_forward(model: Model, x: jax.Array) -> tuple[jax.Array, Model]:
    return clipped(model, x), model


def clipped_backward(model: Model, g: tuple[object, jax.Array]) -> tuple[None, jax.Array]:
    return None, g[1]


clipped.defvjp(clipped_forward, clipped_backward)
assert_type(forward(model, tokens, times=2), jax.Array)
forward.lower(model, tokens)
assert_type(batched(model, tokens), jax.Array)
assert_type(make_blocks(nnx.Rngs(0)), Block)
assert_type(scanned(make_blocks(nnx.Rngs(0)), x), jax.Array)
assert_type(clipped(model, x), jax.Array)
assert_type(nnx.jit(model)(tokens), jax.Array)
assert_type(nnx.jit(model.__call__)(tokens), jax.Array)
assert_type(nnx.vmap(model)(tokens), jax.Array)
assert_type(nnx.pmap(loss_fn, in_axes=(None, 0))(model, tokens[:1]), jax.Array)
assert_type(nnx.remat(loss_fn)(model, tokens), jax.Array)
assert_type(nnx.remat(policy=None)(loss_fn)(model, tokens), jax.Array)
assert_type(nnx.eval_shape(lambda: Model(8, rngs=nnx.Rngs(0))), Model)
assert_type(nnx.cond(x.any(), loss_fn, loss_fn, model, tokens), jax.Array)
assert_type(nnx.switch(0, [loss_fn, loss_fn], model, tokens), jax.Array)


def grow(model: Model) -> Model:
    return model


def unfinished(model: Model) -> jax.Array:
    return jax.random.bernoulli(jax.random.key(0))


def body(i: jax.Array, model: Model) -> Model:
    return model


assert_type(nnx.while_loop(unfinished, grow, model), Model)
assert_type(nnx.fori_loop(0, 3, body, model), Model)
assert_type(nnx.cached_partial(nnx.jit(loss_fn), model)(tokens), jax.Array)
assert_type(nnx.jit_partial(loss_fn, model)(tokens), jax.Array)
assert_type(nnx.filter_state(params, nnx.Param), nnx.State)
output, pullback = nnx.vjp(loss_fn, model, tokens)
assert_type(output, jax.Array)


# -- code that takes any module ------------------------------------------------------------------


def evaluate(model: nnx.Module, x: jax.Array) -> float:
    return float(model(x).mean())


for path, module in nnx.iter_modules(model):
    assert_type(module, nnx.Module)
nnx.tabulate(model, tokens)
