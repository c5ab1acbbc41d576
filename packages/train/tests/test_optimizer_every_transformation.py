"""Each transformation of optax: the numbers of raw optax, donated, and bit-equal when resumed.

With ``EVERY_ROW`` (nox -s long) all of them run, eagerly and jitted too; else those that differ
in kind.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib as contrib
import pytest
from optimizer_models import INPUTS, TARGETS, Model, loss

import moduli as nnx

pytestmark = pytest.mark.usefixtures("standard_promotion")

SGD = optax.sgd(0.1)

TRANSFORMATIONS: dict[str, Callable[[], Any]] = {
    "adabelief": lambda: optax.adabelief(1e-2),
    "adadelta": lambda: optax.adadelta(1e-2),
    "adafactor": lambda: optax.adafactor(1e-2, min_dim_size_to_factor=2),
    "adagrad": lambda: optax.adagrad(1e-2),
    "adam": lambda: optax.adam(1e-2),
    "adamax": lambda: optax.adamax(1e-2),
    "adamaxw": lambda: optax.adamaxw(1e-2),
    "adamw": lambda: optax.adamw(optax.cosine_decay_schedule(1e-2, 3)),
    "adan": lambda: optax.adan(1e-2),
    "amsgrad": lambda: optax.amsgrad(1e-2),
    "fromage": lambda: optax.fromage(1e-2),
    "lamb": lambda: optax.lamb(1e-2),
    "lars": lambda: optax.lars(1e-2),
    "lbfgs": lambda: optax.lbfgs(memory_size=3),
    "lion": lambda: optax.lion(1e-2),
    "nadam": lambda: optax.nadam(1e-2),
    "nadamw": lambda: optax.nadamw(1e-2),
    "noisy_sgd": lambda: optax.noisy_sgd(1e-2, key=0),
    "novograd": lambda: optax.novograd(1e-2),
    "optimistic_adam_v2": lambda: optax.optimistic_adam_v2(1e-2),
    "optimistic_gradient_descent": lambda: optax.optimistic_gradient_descent(1e-2),
    "polyak_sgd": lambda: optax.polyak_sgd(0.5),
    "radam": lambda: optax.radam(1e-2),
    "rmsprop": lambda: optax.rmsprop(1e-2, momentum=0.9),
    "rprop": lambda: optax.rprop(1e-2),
    "sgd": lambda: optax.sgd(1e-2, momentum=0.9, nesterov=True),
    "sign_sgd": lambda: optax.sign_sgd(1e-2),
    "sm3": lambda: optax.sm3(1e-2),
    "yogi": lambda: optax.yogi(1e-2),
    "acprop": lambda: contrib.acprop(1e-2),
    "ademamix": lambda: contrib.ademamix(1e-2),
    "adopt": lambda: contrib.adopt(1e-2),
    "cocob": lambda: contrib.cocob(),
    "dadapt_adamw": lambda: contrib.dadapt_adamw(),
    "dog": lambda: contrib.dog(1.0),
    "dowg": lambda: contrib.dowg(1.0),
    "galore": lambda: optax.chain(contrib.scale_by_galore(rank=2), optax.sgd(1e-2)),
    "madgrad": lambda: contrib.madgrad(1e-2),
    "mechanize": lambda: contrib.mechanize(optax.adam(1e-2)),
    "momo": lambda: contrib.momo(),
    "momo_adam": lambda: contrib.momo_adam(),
    "muon": lambda: contrib.muon(1e-2),
    "prodigy": lambda: contrib.prodigy(),
    "reduce_on_plateau": lambda: optax.chain(SGD, contrib.reduce_on_plateau(patience=1)),
    "sam": lambda: contrib.sam(SGD, optax.chain(contrib.normalize(), SGD), sync_period=2),
    "schedule_free_adamw": lambda: contrib.schedule_free_adamw(1e-2),
    "schedule_free_sgd": lambda: contrib.schedule_free_sgd(1e-2),
    "simplified_ademamix": lambda: contrib.simplified_ademamix(1e-2),
    "sophia": lambda: contrib.sophia(1e-2, update_interval=2),
    "MultiSteps": lambda: optax.MultiSteps(optax.adam(1e-2), 3).gradient_transformation(),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.adam(1e-2), 3),
    "backtracking": lambda: optax.chain(SGD, optax.scale_by_backtracking_linesearch(5)),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adamw)(
        optax.cosine_decay_schedule(1e-2, 3)
    ),
    "masked": lambda: optax.masked(optax.adam(1e-2), is_matrix),
    "partition": lambda: optax.partition(
        {"m": optax.adam(1e-2), "v": SGD}, lambda p: jax.tree.map(lambda p: "vm"[p.ndim > 1], p)
    ),
    "clipped and averaged": lambda: optax.chain(
        optax.clip_by_global_norm(0.1), optax.zero_nans(), optax.adam(1e-2), optax.ema(0.9)
    ),
}
TAKES = {
    "lbfgs": ("value", "grad", "value_fn"),
    "backtracking": ("value", "grad", "value_fn"),
    "polyak_sgd": ("value",),
    "momo": ("value",),
    "momo_adam": ("value",),
    "reduce_on_plateau": ("value",),
    "sophia": ("obj_fn",),
}
SHORT = ("noisy_sgd", "sam", "sophia", "MultiSteps", "partition")
LONG = bool(os.environ.get("EVERY_ROW"))
STEPS = 4


def is_matrix(params: Any) -> Any:
    return jax.tree.map(lambda p: p.ndim > 1, params)


def loss_by_hand(params: Any) -> Any:
    first, second = params["layers"][0], params["layers"][1]
    hidden = jnp.tanh(INPUTS @ first["kernel"] + first["bias"])
    return ((hidden @ second["kernel"] + second["bias"] - TARGETS) ** 2).mean()


def by_hand(name: str) -> Any:
    tx = TRANSFORMATIONS[name]()
    params = nnx.to_pure_dict(nnx.state(Model(), nnx.Param))
    params = jax.tree.map(jnp.asarray, params)
    state = tx.init(params)

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        value, grad = jax.value_and_grad(loss_by_hand)(params)
        more = {"value": value, "grad": grad, "value_fn": loss_by_hand, "obj_fn": loss_by_hand}
        more = {key: more[key] for key in TAKES.get(name, ())}
        updates, state = tx.update(grad, state, params, **more)
        return optax.apply_updates(params, updates), state

    for _ in range(STEPS):
        params, state = step(params, state)
    return params, state


def make(tx: Any) -> tuple[Model, nnx.Optimizer[Model]]:
    model = Model()
    return model, nnx.Optimizer(model, tx, wrt=nnx.Param)


def bits(*nodes: Any) -> list[np.ndarray]:
    leaves = jax.tree.leaves([nnx.state(node) for node in nodes])
    is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return [np.asarray(jax.random.key_data(v) if is_key(v) else v) for v in leaves]


@pytest.mark.parametrize("mode", ["eager", "jit", "donated"] if LONG else ["donated"])
@pytest.mark.parametrize("name", TRANSFORMATIONS if LONG else SHORT)
def test_as_raw_optax_and_resumed(name: str, mode: str, tmp_path: Any) -> None:
    if name == "sophia" and jax.config.read("jax_enable_x64"):
        pytest.skip("optax's sophia takes only parameters of JAX's default float; ours are float32")
    tx = TRANSFORMATIONS[name]()

    def step(model: Model, optimizer: nnx.Optimizer[Model]) -> None:
        value, grad = nnx.value_and_grad(loss)(model)
        of_model = nnx.of_model(loss)
        more = {"value": value, "grad": grad, "value_fn": of_model, "obj_fn": of_model}
        optimizer.update(model, grad, **{key: more[key] for key in TAKES.get(name, ())})

    options: Any = {"donate_argnums": (0, 1)} if mode == "donated" else {}
    run = step if mode == "eager" else nnx.jit(step, **options)
    model, optimizer = make(tx)
    for number in range(STEPS):
        if number == 2:
            nnx.save(tmp_path / "a.npz", {"model": model, "optimizer": optimizer})
        run(model, optimizer)
    fresh, other = make(tx)
    nnx.load(tmp_path / "a.npz", {"model": fresh, "optimizer": other})
    for _ in range(2, STEPS):
        run(fresh, other)
    for one, two in zip(bits(model, optimizer), bits(fresh, other), strict=True):
        np.testing.assert_array_equal(one, two)
    assert int(model.calls) == int(optimizer.step) == STEPS
    expected, state = by_hand(name)
    got = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    for one, two in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-4)
    assert len(jax.tree.leaves(state)) == len(jax.tree.leaves(optimizer.opt_state))
