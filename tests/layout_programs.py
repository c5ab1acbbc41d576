"""What a layout over devices costs, on eight of them; run by ``test_layouts.py`` in a process.

Each check raises if what it found is not as it should be.
"""

from __future__ import annotations

import collections
import os
import re
import sys
from pathlib import Path
from typing import Any

import jax

if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)

import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import moduli as nnx
from moduli.testing import compilations

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import char_gpt

CONFIG = char_gpt.Config(alphabet=16, width=16, depth=2, heads=8, key_heads=8, length=8)
TENSOR_PARALLEL = [
    ("query|key|value|gate|up", P(None, None, "model")),
    ("out|down", P(None, "model")),
]
EVERY = bool(os.environ.get("EVERY_ROW"))  # set by `nox -s long`
SIZES = {"float32": 4, "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8, "pred": 1}


def mesh_of(*sizes: int) -> Any:
    names = ("data", "model")[: len(sizes)]
    kinds = (AxisType.Auto,) * len(sizes)
    count = int(np.prod(sizes))
    return jax.make_mesh(sizes, names, axis_types=kinds, devices=jax.devices()[:count])


def on(mesh: Any, *names: Any) -> NamedSharding:
    return NamedSharding(mesh, P(*names))


def make_gpt() -> Any:
    model = char_gpt.GPT(CONFIG, rngs=nnx.Rngs(0))
    return model, nnx.Optimizer(model, optax.adamw(1e-2), wrt=nnx.Param)


def check_char_gpt(count: int) -> None:
    """char_gpt as TP, DP and FSDP: the losses of one device, and one program for four steps."""
    step = char_gpt.train_step.__wrapped__
    data = np.random.default_rng(0).integers(0, 16, (4, count, 9)).astype(np.int32)

    made, fit = make_gpt(), nnx.jit(lambda *args: step(*args))
    one = [float(fit(*made, x)) for x in data]
    layouts: list[tuple[Any, Any]] = [(mesh_of(2, count // 2), TENSOR_PARALLEL)]
    if EVERY:  # the page docs/layouts.md has all three with a smaller model
        layouts += [(mesh_of(count), None), (mesh_of(count), nnx.fsdp("data", 64))]
    for mesh, rules in layouts:
        made = nnx.create(make_gpt, mesh, rules)
        before = nnx.show_layout(made)
        fit = nnx.jit(lambda *args: step(*args), keep_shardings=True)
        losses: list[Any] = []
        counts = []
        for x in data:
            batch = jax.device_put(x, on(mesh, "data"))
            counts.append(compilations(lambda: losses.append(fit(*made, batch))))
        assert counts == [1, 0, 0, 0], counts
        np.testing.assert_allclose(losses, one, rtol=0, atol=1e-5)
        assert nnx.show_layout(made) == before


class Large(nnx.Module):
    """32 MB of parameters."""

    def __init__(self, rngs: nnx.Rngs):
        self.layers = [nnx.Linear(1024, 1024, use_bias=False, rngs=rngs) for _ in range(8)]


def check_memory(count: int, kind: AxisType) -> None:
    """A large model is made in parts: none of its arrays, nor what they are made of, is whole."""
    mesh = jax.make_mesh((count,), ("data",), axis_types=(kind,))
    compiled: list[Any] = []
    compile_ = jax.stages.Lowered.compile

    def noting(self: Any, *args: Any, **kwargs: Any) -> Any:
        compiled.append(compile_(self, *args, **kwargs))
        return compiled[-1]

    jax.stages.Lowered.compile = noting
    try:
        model = nnx.create(lambda: Large(nnx.Rngs(0)), mesh, nnx.fsdp("data"))
    finally:
        jax.stages.Lowered.compile = compile_
    held: collections.Counter[Any] = collections.Counter()
    for array in jax.tree.leaves(nnx.state(model)):
        assert array.sharding.mesh == mesh
        for shard in array.addressable_shards:
            held[shard.device] += shard.data.nbytes
    assert len(held) == count
    for size in held.values():
        assert abs(size / 2**20 - 32 / count) < 0.01 * 32 / count, held
    (program,) = compiled
    memory = program.memory_analysis()
    total = memory.output_size_in_bytes + memory.temp_size_in_bytes
    assert total < 16 * 2**20, total


class Mlp(nnx.Module):
    def __init__(self) -> None:
        self.up = nnx.Param(jnp.ones((16, 32)) / 16)
        self.down = nnx.Param(jnp.ones((32, 16)) / 32)


def collectives(text: str) -> tuple[collections.Counter[str], int]:
    """The collectives of a program: how many of each kind, and the bytes of their results."""
    kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
    found: collections.Counter[str] = collections.Counter()
    size = 0
    for line in text.splitlines():
        match = re.search(rf"= (.*?) ({kinds})(-start)?\(", line)
        if match:
            found[match[2]] += 1
            for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", match[1]):
                size += SIZES[dtype] * int(np.prod([int(d) for d in dims.split(",") if d] or [1]))
    return found, size


def check_collectives(count: int) -> None:
    """A step communicates what the same step in raw JAX does: as often, and as much."""

    def loss(up: Any, down: Any, x: Any) -> Any:
        return jnp.mean((jnp.tanh(x @ up) @ down - 1) ** 2)

    def raw_step(params: Any, x: Any) -> Any:
        value, grads = jax.value_and_grad(lambda p: loss(p["up"], p["down"], x))(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value

    def step(model: Any, x: Any) -> Any:
        value, grads = nnx.value_and_grad(lambda m: loss(m.up.value, m.down.value, x))(model)
        model.up.value = model.up.value - 0.1 * grads.up.value
        model.down.value = model.down.value - 0.1 * grads.down.value
        return value

    for mesh, rules in [
        (mesh_of(count), None),
        (mesh_of(count), nnx.fsdp("data", 1)),
        (mesh_of(1, count), [("up", P(None, "model")), ("down", P("model"))]),
    ]:
        model = nnx.create(Mlp, mesh, rules)
        x = jax.device_put(jnp.ones((8, 16)), on(mesh, "data"))
        params = {"up": model.up.value, "down": model.down.value}
        layout = {name: array.sharding for name, array in params.items()}
        raw = jax.jit(raw_step, out_shardings=(layout, None)).lower(params, x).compile().as_text()
        ours = nnx.jit(step, keep_shardings=True).lower(model, x).compile().as_text()
        assert collectives(ours) == collectives(raw), (collectives(ours), collectives(raw))
        assert sum(collectives(ours)[0].values()) > 0


def main() -> None:
    check_memory(8, AxisType.Auto)
    check_memory(8, AxisType.Explicit)
    for count in (2, 4, 8):
        check_collectives(count)
    check_char_gpt(8)


if __name__ == "__main__":
    main()
