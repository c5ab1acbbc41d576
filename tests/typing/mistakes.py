"""A user's mistakes: type checkers find each line that says so, and no other."""

import jax
import jax.numpy as jnp
import optax

import moduli as nnx


class Model(nnx.Module):
    def __init__(self, size: int, *, rngs: nnx.Rngs) -> None:
        self.linear = nnx.Linear(size, size, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(size, size, rngs=rngs)])
        self.scale = nnx.Param(jax.random.normal(rngs.params(), (size,)))

    def __call__(self, x: jax.Array, *, times: int = 1) -> jax.Array:
        return self.linear(x) * times

    @nnx.jit
    def step(self, x: jax.Array) -> jax.Array:
        return self(x)


@nnx.dataclass
class Affine(nnx.Module):
    factor: nnx.Param[jax.Array]
    steps: int = nnx.static(default=0)


class Empty(nnx.Module):
    pass


def loss_fn(model: Model, x: jax.Array) -> jax.Array:
    return model(x).mean()


@nnx.jit(static_argnames="times")
def forward(model: Model, x: jax.Array, *, times: int = 1) -> jax.Array:
    return model(x, times=times)


rngs = nnx.Rngs(0)
x = rngs.normal((3,))
model = Model(3, rngs=rngs)

# modes
nnx.clone(model, graph="yes")  # error
nnx.jit(loss_fn, graphs=True)  # error

# constructors
nnx.Linear(3, "4", rngs=rngs)  # error
nnx.Linear(3, 4, rng=rngs)  # error
nnx.Linear(3, 4)  # error
nnx.Dropout("much", rngs=rngs)  # error
Model("3", rngs=rngs)  # error
Affine(3)  # error
Affine(nnx.Param(x), step=3)  # error
Empty(3)  # error
nnx.Rngs(0, 1)  # error

# calls and attributes
model(3)  # error
model(x, time=2)  # error
model.lineal  # error
model.linear.kernell  # error
model.linear.in_features.upper()  # error
model.blocks[0].kernell  # error
model.blocks.append(3)  # error
model.scale.value.shap  # error
model.step("x")  # error
rngs.normal("x", shape=3)  # error
model.extra = 3  # error
model.linear = model.scale  # error
jnp.sum(model.scale)  # error

# transforms
forward(model, 3)  # error
forward(model, x, time=3)  # error
nnx.jit(3)  # error
nnx.jit(forward, static_names="times")  # error
nnx.jit(model)(3)  # error
nnx.grad(loss_fn)(3, x)  # error
nnx.value_and_grad(loss_fn)(model)  # error
nnx.vmap(loss_fn)(model, "x")  # error
nnx.remat(loss_fn)(model)  # error
nnx.cond(True, loss_fn, loss_fn, model)  # error
nnx.clone(model).lineal  # error
nnx.merge(*nnx.split(model)).lineal  # error
nnx.eval_shape(lambda: Model(3, rngs=rngs)).lineal  # error

# training
optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
optimizer.update(rngs, nnx.grad(loss_fn)(model, x))  # error
optimizer.updates  # error
nnx.metrics.Average(3)  # error
