"""jit(keep_shardings=True): Variables come back as they were laid out, by one program."""

from __future__ import annotations

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from layout_models import MESH, MESHES, MLP, TENSOR_PARALLEL, Momentum, Trace, pair, step

import moduli as nnx
from moduli.testing import compilations


def layouts(optimizer: str) -> tuple[Any, ...]:
    """A model and its momentum, laid out; ZeRO-1 divides the momentum alone."""
    if optimizer == "eager":  # the momentum is on no device on purpose
        model = nnx.create(lambda: MLP(nnx.Rngs(0)), MESH, TENSOR_PARALLEL)
        return model, Momentum(model)
    if optimizer == "zero":
        return nnx.create(pair, MESH, [(Trace, nnx.fsdp("data", 1)), (nnx.Param, P())])
    return nnx.create(pair, MESH, {"tp": TENSOR_PARALLEL, "fsdp": nnx.fsdp("data", 1)}[optimizer])


@pytest.mark.parametrize("options", [{}, {"donate_argnums": (0, 1)}], ids=["", "donated"])
@pytest.mark.parametrize("optimizer", ["tp", "fsdp", "zero", "eager"])
def test_variables_come_back_as_they_were_laid_out_and_one_program_is_compiled(optimizer, options):
    x = jax.device_put(jnp.ones((4, 8)) / 3, NamedSharding(MESH, P("data")))
    made, one = layouts(optimizer), pair()
    before = {row.path: row.spec for row in nnx.show_layout(made).rows}
    fit, expected = nnx.jit(lambda *a: step(*a), keep_shardings=True, **options), nnx.jit(step)
    counts, losses = [], []
    for _ in range(4):
        counts.append(compilations(lambda: losses.append(fit(*made, x))))
    after = {row.path: row.spec for row in nnx.show_layout(made).rows}
    wanted = [expected(*one, jnp.ones((4, 8)) / 3) for _ in range(4)]
    np.testing.assert_allclose(losses, wanted, rtol=1e-5)
    assert counts == [1, 0, 0, 0]
    written = {path: spec for path, spec in before.items() if after[path] != spec}
    if optimizer == "eager":
        assert all(spec is None for spec in written.values())
    else:
        assert written == {}
    assert int(made[0].calls) == 4


def test_another_layout_is_another_program_and_shardings_of_arguments_come_first():
    def double(model: Any) -> Any:
        model["w"].value *= 2
        return model["w"].sum()

    fit = nnx.jit(double, keep_shardings=True)
    model = nnx.Dict(w=nnx.Param(jax.device_put(jnp.ones((4, 4)), NamedSharding(MESH, P("data")))))
    for spec in (P("data"), P(None, "model"), P("data", None), P()):
        model["w"].value = jax.device_put(jnp.ones((4, 4)), NamedSharding(MESH, spec))
        assert float(fit(model)) == 32
        assert model["w"].sharding == NamedSharding(MESH, spec)
    given = nnx.jit(double, keep_shardings=True, in_shardings=(NamedSharding(MESH, P("model")),))
    model["w"].value = jnp.ones((4, 4))
    given(model)
    assert model["w"].sharding.spec == P("model")


def test_what_is_made_removed_or_on_one_device_is_as_without_keep_shardings():
    def change(model: Any) -> Any:
        model.new = nnx.Param(model.a + 1)
        del model.b
        return model.a.sum()

    model = nnx.Module()
    model.a, model.b = nnx.Param(jnp.ones(3)), nnx.Param(jnp.ones(2))
    assert float(nnx.jit(change, keep_shardings=True)(model)) == 3
    assert model.new.value.tolist() == [2, 2, 2] and not hasattr(model, "b")

    @nnx.jit
    def outer(model: Any) -> Any:
        return nnx.jit(lambda m: m.a * 2, keep_shardings=True)(model)

    assert outer(model).tolist() == [2, 2, 2]


def test_lowered_programs_and_methods_keep_shardings_too():
    class Scaled(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jax.device_put(jnp.ones((4, 4)), NamedSharding(MESH, P())))

        @nnx.jit(keep_shardings=True)
        def scale(self, x: Any) -> None:
            self.w.value = self.w * x

    model = Scaled()
    x = jax.device_put(jnp.ones((4, 4)) * 2, NamedSharding(MESH, P("data", "model")))
    model.scale(x)
    assert model.w.sharding == NamedSharding(MESH, P())
    model.scale.lower(x).compile()(x)
    assert model.w.sharding == NamedSharding(MESH, P()) and float(model.w[0, 0]) == 4


@pytest.mark.parametrize("in_force", [True, False])
def test_on_an_explicit_mesh_a_value_is_put_there_only_if_the_mesh_is_in_force(in_force):
    seen = []

    def count(model: Any, x: jax.Array) -> jax.Array:
        seen.append(jax.typeof(model["calls"].value).sharding.mesh)
        model["calls"].value += 1
        model["w"].value = model["w"] * 2
        return x * model["calls"]

    mesh = MESHES["explicit"]
    on_mesh = NamedSharding(mesh, P("data"))
    model = nnx.Dict(
        w=nnx.Param(jax.device_put(jnp.ones((4, 4)), on_mesh)),
        calls=nnx.Variable(jnp.zeros(())),
    )
    fit = nnx.jit(count, keep_shardings=True)
    with jax.set_mesh(mesh) if in_force else contextlib.nullcontext():
        counts = [compilations(lambda: fit(model, model["w"].value)) for _ in range(3)]
    assert counts[0] == 1 and counts[2] == 0
    assert seen[0].empty != in_force
    assert model["w"].sharding == on_mesh
    assert float(model["calls"]) == 3
