"""pmap, shard_map and jit's shardings on four devices, against the same computation on one."""

from __future__ import annotations

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import moduli as nnx
from moduli import errors
from moduli.testing import assert_unchanged

AUTO = (jax.sharding.AxisType.Auto,) * 2
MESH = jax.make_mesh((2, 2), ("data", "model"), axis_types=AUTO)
X = jnp.sin(jnp.arange(24.0)).reshape(8, 3)
Y = jnp.cos(jnp.arange(32.0)).reshape(8, 4)


def on(*spec) -> NamedSharding:
    return NamedSharding(MESH, P(*spec))


class Net(nnx.Module):
    def __init__(self, scale: float | jax.Array = 1.0):
        self.kernel = nnx.Param(jnp.arange(12.0).reshape(3, 4) / 10 * scale)
        self.bias = nnx.Param(jnp.arange(4.0))
        self.calls = nnx.Variable(jnp.array(0, jnp.int32))

    def __call__(self, x: jax.Array) -> jax.Array:
        self.calls.value += 1
        return jnp.tanh(x @ self.kernel + self.bias)


class Momentum(nnx.Module):
    """What an optimizer keeps: for each Param of a model its running gradient."""

    def __init__(self, model: nnx.Module):
        params = nnx.state(model, nnx.Param)
        self.trace = nnx.Dict(
            {key: nnx.Variable(jnp.zeros_like(value[...])) for key, value in params.items()}
        )

    def update(self, model: nnx.Module, grads: nnx.State) -> None:
        for key, trace in self.trace.items():
            trace.value = 0.9 * trace + grads[key].value
            param = getattr(model, key)
            param.value = param - 0.1 * trace


def loss(model: Net, x: jax.Array, y: jax.Array) -> jax.Array:
    return ((model(x) - y) ** 2).mean()


def step(model: Net, momentum: Momentum, x: jax.Array, y: jax.Array) -> jax.Array:
    value, grads = nnx.value_and_grad(loss)(model, x, y)
    momentum.update(model, grads)
    return value


def pair() -> tuple[Net, Momentum]:
    model = Net()
    return model, Momentum(model)


def assert_close(one: nnx.Module, other: nnx.Module) -> None:
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        nnx.to_pure_dict(nnx.state(one)),
        nnx.to_pure_dict(nnx.state(other)),
    )


def has_layout(variable: nnx.Variable, sharding: NamedSharding) -> bool:
    return variable.value.sharding.is_equivalent_to(sharding, variable.ndim)


BY_COLUMNS = nnx.StateSharding({nnx.PathContains("kernel"): on(None, "model"), ...: on()})
SPECS = nnx.StateSharding({nnx.PathContains("kernel"): P(None, "model"), ...: P()})


# -- shard_map -------------------------------------------------------------------------------------


def test_a_data_parallel_step_of_shard_map_equals_the_step_on_one_device():
    @nnx.shard_map(
        mesh=MESH, in_specs=(P(), P(), P(("data", "model")), P(("data", "model"))), out_specs=P()
    )
    def parallel(model, momentum, x, y):
        def mean_loss(model):  # the gradient of the mean: shard_map sums it over the devices
            return jax.lax.pmean(loss(model, x, y), ("data", "model"))

        value, grads = nnx.value_and_grad(mean_loss)(model)
        momentum.update(model, grads)
        return value

    one, many = pair(), pair()
    for _ in range(3):
        np.testing.assert_allclose(parallel(*many, X, Y), step(*one, X, Y), rtol=1e-5)
    for a, b in zip(one, many, strict=True):
        assert_close(a, b)
    assert int(many[0].calls) == 3


def test_gradients_of_each_device_are_summed_by_psum():
    @nnx.shard_map(mesh=MESH, in_specs=(P(), P("data"), P("data")), out_specs=P(), check_vma=False)
    def gradients(model, x, y):
        grads = nnx.grad(lambda model: ((model(x) - y) ** 2).sum())(model)
        return jax.tree.map(lambda grad: jax.lax.psum(grad, "data"), nnx.to_pure_dict(grads))

    found = gradients(Net(), X, Y)
    expected = nnx.to_pure_dict(nnx.grad(lambda m: ((m(X) - Y) ** 2).sum())(Net()))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), found, expected)


def test_each_device_of_a_shard_map_holds_its_part_of_a_variable():
    seen = []

    def forward(model, x):
        seen.append((model.kernel.shape, model.bias.shape, x.shape))
        return x @ model.kernel

    out = nnx.shard_map(
        forward, mesh=MESH, in_specs=(SPECS, P("data")), out_specs=P("data", "model")
    )(Net(), X)
    assert seen[0] == ((3, 2), (4,), (4, 3))
    assert out.sharding == on("data", "model")
    np.testing.assert_allclose(out, X @ Net().kernel, rtol=1e-5)


@pytest.mark.parametrize("writes", [True, False], ids=["written", "not written"])
def test_a_variable_under_a_spec_that_shards_comes_back_sharded(writes):
    def double(model):
        if writes:
            model.kernel.value = 2 * model.kernel

    model = Net()
    nnx.shard_map(double, mesh=MESH, in_specs=(SPECS,), out_specs=P())(model)
    assert has_layout(model.kernel, on(None, "model"))
    np.testing.assert_array_equal(model.kernel.value, Net().kernel.value * (2 if writes else 1))


def test_prefix_gives_shard_map_the_spec_of_every_value():
    model = Net()
    specs = nnx.prefix(model, {nnx.PathContains("kernel"): P(None, "model"), ...: P()})
    out = nnx.shard_map(
        lambda m: m.kernel * 2, mesh=MESH, in_specs=(specs,), out_specs=P(None, "model")
    )(model)
    np.testing.assert_array_equal(out, 2 * model.kernel)


def test_structure_made_inside_a_shard_map_is_seen_outside_under_its_spec():
    def grow(model, x):
        model.seen = nnx.Cache(x)
        del model.calls
        return model

    model = Net()
    specs = nnx.StateSharding({nnx.Cache: P("data"), ...: P()})
    back = nnx.shard_map(grow, mesh=MESH, in_specs=(specs, P("data")), out_specs=P())(model, X)
    assert back is model and not hasattr(model, "calls")
    assert has_layout(model.seen, on("data"))
    np.testing.assert_array_equal(model.seen.value, X)


def test_a_shard_map_without_a_mesh_takes_the_one_of_set_mesh():
    forward = nnx.shard_map(lambda m, x: m(x), in_specs=(P(), P("data")), out_specs=P("data"))
    with jax.set_mesh(MESH):
        out = forward(Net(), X)
    np.testing.assert_allclose(out, Net()(X), rtol=1e-5)


def test_a_method_under_shard_map():
    class Rows(Net):
        @nnx.shard_map(mesh=MESH, in_specs=(P(), P("data")), out_specs=P("data"))
        def rows(self, x):
            return self(x)

    model = Rows()
    np.testing.assert_allclose(model.rows(X), Net()(X), rtol=1e-5)
    bound = nnx.shard_map(model.__call__, mesh=MESH, in_specs=P("data"), out_specs=P("data"))
    np.testing.assert_allclose(bound(X), Net()(X), rtol=1e-5)
    assert int(model.calls) == 2


def test_a_manual_axis_leaves_the_others_to_jit():
    forward = nnx.shard_map(
        lambda m, x: m(x),
        mesh=MESH,
        in_specs=(P(), P("data")),
        out_specs=P("data"),
        axis_names={"data"},
    )
    model = Net()
    out = nnx.jit(forward, in_shardings=(BY_COLUMNS, None))(model, X)
    np.testing.assert_allclose(out, Net()(X), rtol=1e-5)
    assert has_layout(model.kernel, on(None, "model"))


def test_a_shard_map_is_traced_once_for_each_structure():
    traces = []

    @nnx.shard_map(mesh=MESH, in_specs=(SPECS, P("data")), out_specs=P("data"))
    def forward(model, x):
        traces.append(1)
        model.calls.value += 1
        return x

    models = [Net(), Net()]
    for model in models * 2:
        forward(model, X)
    assert len(traces) <= 2  # once more when the arrays come back sharded
    assert [int(model.calls) for model in models] == [2, 2]


def test_an_exception_in_a_shard_map_leaves_everything_as_it_was():
    def fail(model, x):
        model.kernel.value = 2 * model.kernel
        model.new = nnx.Cache(x)
        raise RuntimeError("stop")

    model = Net()
    call = nnx.shard_map(fail, mesh=MESH, in_specs=(SPECS, P()), out_specs=P())
    with assert_unchanged(model), pytest.raises(RuntimeError, match="stop"):
        call(model, X)


# -- pmap ------------------------------------------------------------------------------------------


def test_a_data_parallel_step_of_pmap_equals_the_step_on_one_device():
    @nnx.pmap(axis_name="devices", in_axes=(None, None, 0, 0))
    def parallel(model, momentum, x, y):
        value, grads = nnx.value_and_grad(loss)(model, x, y)
        momentum.update(model, jax.tree.map(lambda g: jax.lax.pmean(g, "devices"), grads))
        return value

    one, many = pair(), pair()
    for _ in range(3):
        values = parallel(*many, X.reshape(4, 2, 3), Y.reshape(4, 2, 4))
        np.testing.assert_allclose(values.mean(), step(*one, X, Y), rtol=1e-5)
    for a, b in zip(one, many, strict=True):
        assert_close(a, b)
    assert int(many[0].calls) == 3


def test_pmap_gives_each_device_a_state_of_its_own():
    models = nnx.pmap(Net)(jnp.arange(4.0))
    assert models.kernel.shape == (4, 3, 4)
    assert len(models.kernel.value.sharding.device_set) == 4
    out = nnx.pmap(lambda m, x: m(x))(models, X.reshape(4, 2, 3))
    expected = jnp.stack([Net(float(n))(x) for n, x in enumerate(X.reshape(4, 2, 3))])
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    assert models.calls.value.tolist() == [1, 1, 1, 1]


def test_state_axes_say_what_the_devices_of_a_pmap_share():
    def move(model, x):
        model.kernel.value = model.kernel + jax.lax.axis_index("devices").astype(jnp.float32)
        model.bias.value = model.bias + jax.lax.pmean(x.sum(), "devices")
        return model(x)

    model = Net()
    model.kernel.value = jnp.stack([model.kernel.value] * 4)
    axes = nnx.StateAxes({nnx.PathContains("kernel"): 0, ...: None})
    x = X.reshape(4, 2, 3)
    out = nnx.pmap(move, axis_name="devices", in_axes=(axes, 0))(model, x)
    rises = (model.kernel.value - Net().kernel.value)[:, 0, 0]
    np.testing.assert_allclose(rises, [0.0, 1.0, 2.0, 3.0], atol=1e-5)
    np.testing.assert_allclose(model.bias.value, Net().bias.value + X.sum() / 4, rtol=1e-5)
    expected = [jnp.tanh(x[n] @ model.kernel.value[n] + model.bias) for n in range(4)]
    np.testing.assert_allclose(out, jnp.stack(expected), rtol=1e-5)
    assert int(model.calls) == 1


def test_each_device_of_a_pmap_draws_its_own_keys():
    class Noise(nnx.Module):
        def __init__(self):
            self.rngs = nnx.Rngs(0)

        def __call__(self, x):
            return x + jax.random.normal(self.rngs.noise())

    many, one = Noise(), Noise()
    out = nnx.pmap(many)(jnp.zeros(4))
    assert len(set(out.tolist())) == 4
    np.testing.assert_allclose(out, nnx.vmap(one)(jnp.zeros(4)), rtol=1e-6)
    assert int(many.rngs.default.count) == 1


def test_pmap_takes_static_arguments_and_devices():
    run = nnx.pmap(
        lambda m, x, power: m(x) ** power,
        in_axes=(None, 0, None),
        static_broadcasted_argnums=2,
        devices=jax.devices()[2:],
    )
    model = Net()
    out = run(model, X.reshape(2, 4, 3), 2)
    np.testing.assert_allclose(out.reshape(8, 4), Net()(X) ** 2, rtol=1e-5)
    assert {device.id for device in out.sharding.device_set} == {2, 3}


def test_structure_made_inside_a_pmap_is_seen_outside():
    def grow(model, x):
        model.seen = nnx.Cache(x)
        model.note = "grown"
        del model.bias

    models = nnx.pmap(Net)(jnp.arange(4.0))
    nnx.pmap(grow)(models, X.reshape(4, 2, 3))
    np.testing.assert_array_equal(models.seen.value, X.reshape(4, 2, 3))
    assert models.note == "grown" and not hasattr(models, "bias")


def test_a_pmap_is_traced_once_for_each_structure():
    traces = []

    @nnx.pmap(axis_name="devices")
    def forward(model, x):
        traces.append(1)
        return model(x)

    make = nnx.pmap(Net)
    for scale in range(3):
        forward(make(jnp.full(4, float(scale))), X.reshape(4, 2, 3))
    assert len(traces) == 1


def test_an_exception_in_a_pmap_leaves_everything_as_it_was():
    def fail(model):
        model.kernel.value = 2 * model.kernel
        raise RuntimeError("stop")

    models = nnx.pmap(Net)(jnp.arange(4.0))
    with assert_unchanged(models), pytest.raises(RuntimeError, match="stop"):
        nnx.pmap(fail)(models)


def test_partition_names_come_and_go_under_pmap():
    class Named(nnx.Module):
        def __init__(self, scale):
            self.w = nnx.Param(jnp.ones((3, 2)) * scale, out_sharding=("in", "out"))

    metadata = {nnx.PARTITION_NAME: "replica"}
    models = nnx.pmap(Named, transform_metadata=metadata)(jnp.arange(4.0))
    assert models.w.out_sharding == ("replica", "in", "out")
    seen = []

    def look(model):
        seen.append(model.w.out_sharding)
        model.w.value = model.w + 1

    nnx.pmap(look, transform_metadata=metadata)(models)
    assert seen[0] == ("in", "out") and models.w.out_sharding == ("replica", "in", "out")


# -- jit -------------------------------------------------------------------------------------------


def test_filters_lay_out_a_model_under_jit():
    model = Net()
    out = nnx.jit(
        lambda m, x: m(x), in_shardings=(BY_COLUMNS, on("data")), out_shardings=on("data", "model")
    )(model, X)
    assert out.sharding == on("data", "model")
    assert has_layout(model.kernel, on(None, "model"))
    assert has_layout(model.bias, on()) and has_layout(model.calls, on())
    assert model.kernel.value.addressable_shards[0].data.shape == (3, 2)
    np.testing.assert_allclose(out, Net()(X), rtol=1e-5)


def test_a_sharded_training_step_equals_the_step_on_one_device():
    sharded = nnx.jit(step, in_shardings=(BY_COLUMNS, BY_COLUMNS, on("data"), on("data")))
    one, many = pair(), pair()
    for _ in range(3):
        np.testing.assert_allclose(sharded(*many, X, Y), step(*one, X, Y), rtol=1e-5)
    for a, b in zip(one, many, strict=True):
        assert_close(a, b)
    for variable in (many[0].kernel, many[1].trace["kernel"]):
        assert has_layout(variable, on(None, "model"))
    for variable in (many[0].bias, many[1].trace["bias"], many[0].calls):
        assert has_layout(variable, on())


def test_a_model_is_born_sharded():
    model = nnx.jit(Net, out_shardings=BY_COLUMNS)(1.0)
    assert has_layout(model.kernel, on(None, "model")) and has_layout(model.bias, on())
    assert_close(model, Net())


def test_without_shardings_jit_keeps_those_that_the_arrays_have():
    model = nnx.jit(Net, out_shardings=BY_COLUMNS)(1.0)
    nnx.jit(step)(model, Momentum(model), X, Y)
    assert has_layout(model.kernel, on(None, "model"))


def test_partition_specs_are_shardings_under_set_mesh():
    with jax.set_mesh(MESH):
        model = nnx.jit(Net, out_shardings=SPECS)(1.0)
        x = jax.device_put(X, P("data"))
        out = nnx.jit(lambda m, x: m(x), in_shardings=(SPECS, P("data")))(model, x)
    assert has_layout(model.kernel, on(None, "model")) and has_layout(model.calls, on())
    np.testing.assert_allclose(out, Net()(X), rtol=1e-5)


def test_a_spread_sharding_stands_for_each_part_of_an_argument():
    run = nnx.jit(
        lambda pair, scale: pair["net"](pair["x"]) * scale,
        in_shardings=({"net": BY_COLUMNS, "x": on("data")}, None),
    )
    model = Net()
    np.testing.assert_allclose(run({"net": model, "x": X}, 2.0), 2 * Net()(X), rtol=1e-5)
    assert has_layout(model.kernel, on(None, "model"))


def test_new_variables_take_the_sharding_that_their_filter_gives():
    def grow(model, x):
        model.seen = nnx.Cache(x)
        model.kernel = nnx.Param(2 * model.kernel)
        del model.calls

    model = Net()
    shardings = nnx.StateSharding(
        {nnx.Cache: on("data"), nnx.PathContains("kernel"): on(None, "model"), ...: on()}
    )
    nnx.jit(grow, in_shardings=(shardings, None))(model, X)
    assert has_layout(model.seen, on("data")) and has_layout(model.kernel, on(None, "model"))
    assert not hasattr(model, "calls")


def test_a_tied_variable_has_one_sharding():
    class Tied(nnx.Module):
        def __init__(self):
            self.first = nnx.Param(jnp.ones((4, 4)))
            self.second = self.first

        def __call__(self, x):
            self.first.value = self.first + 1
            return x @ self.first @ self.second

    tied = Tied()
    out = nnx.jit(lambda m, x: m(x), in_shardings=(on("model"), None))(tied, jnp.ones((2, 4)))
    np.testing.assert_allclose(out, np.full((2, 4), 64.0))
    assert tied.first is tied.second and has_layout(tied.second, on("model"))


def test_a_lowered_program_lays_out_its_arguments():
    model = Net()
    run = nnx.jit(lambda m, x: m(x), in_shardings=(BY_COLUMNS, on("data")))
    compiled = run.lower(model, X).compile()
    np.testing.assert_allclose(compiled(model, X), Net()(X), rtol=1e-5)
    assert has_layout(model.kernel, on(None, "model")) and int(model.calls) == 1


def test_a_method_under_jit_with_shardings():
    class Rows(Net):
        @nnx.jit(in_shardings=(BY_COLUMNS, on("data")))
        def rows(self, x):
            return self(x)

    model = Rows()
    np.testing.assert_allclose(model.rows(X), Net()(X), rtol=1e-5)
    assert has_layout(model.kernel, on(None, "model"))
    assert nnx.jit(Net().__call__, in_shardings=(on("data"),))(X).sharding == on("data")


def test_an_exception_under_jit_with_shardings_leaves_everything_as_it_was():
    def fail(model):
        model.kernel.value = 2 * model.kernel
        raise RuntimeError("stop")

    model = Net()
    with assert_unchanged(model), pytest.raises(RuntimeError, match="stop"):
        nnx.jit(fail, in_shardings=(BY_COLUMNS,))(model)


def test_transforms_nest_in_a_sharded_jit():
    models = nnx.vmap(Net)(jnp.arange(4.0))
    each = nnx.vmap(lambda m, x: m(x), in_axes=(0, None))
    expected = each(nnx.clone(models), X)
    out = nnx.jit(each, in_shardings=(on("data"), None), out_shardings=on("data"))(models, X)
    np.testing.assert_allclose(out, expected, rtol=1e-5)
    assert has_layout(models.kernel, on("data")) and models.calls.value.tolist() == [1] * 4


# -- donation --------------------------------------------------------------------------------------


def test_a_donated_sharded_model_holds_new_buffers_with_its_shardings():
    sharded = nnx.jit(
        step, in_shardings=(BY_COLUMNS, BY_COLUMNS, on("data"), on("data")), donate_argnums=(0, 1)
    )
    one, many = pair(), pair()
    sharded(*many, X, Y)
    step(*one, X, Y)
    old = many[0].kernel.value, many[1].trace["kernel"].value
    sharded(*many, X, Y)
    step(*one, X, Y)
    assert [array.is_deleted() for array in old] == [True, True]
    assert has_layout(many[0].kernel, on(None, "model"))
    for a, b in zip(one, many, strict=True):
        assert_close(a, b)


def test_a_donated_model_that_is_only_read_keeps_its_values():
    model = nnx.jit(Net, out_shardings=BY_COLUMNS)(1.0)
    run = nnx.jit(lambda m, x: m(x), in_shardings=(BY_COLUMNS, None), donate_argnames="m")
    for _ in range(2):
        np.testing.assert_allclose(run(model, X), Net()(X), rtol=1e-5)
    assert has_layout(model.kernel, on(None, "model")) and int(model.calls) == 2


def test_a_donated_model_of_pmap_holds_new_buffers():
    models = nnx.pmap(Net)(jnp.arange(4.0))
    old = models.kernel.value
    before = np.asarray(old)

    def double(model):
        model.kernel.value = 2 * model.kernel

    nnx.pmap(double, donate_argnums=0)(models)
    assert old.is_deleted()
    np.testing.assert_array_equal(models.kernel.value, 2 * before)


def test_a_refused_call_deletes_no_donated_buffer():
    model = Net()
    run = nnx.jit(lambda m, x: m(x), in_shardings=(BY_COLUMNS, on("data")), donate_argnums=0)
    with assert_unchanged(model), pytest.raises(errors.ShapeError):
        run(model, X[:7])
    assert not model.kernel.value.is_deleted()


# -- errors ----------------------------------------------------------------------------------------


def error_of(call, kind=errors.StructureError):
    model = Net()
    with assert_unchanged(model), pytest.raises(kind) as caught:
        call(model)
    text = re.sub(r"made at [^()]*test_sharding", "made at test_sharding", str(caught.value))
    return text.replace("PartitionSpec(", "P(")  # its repr in jax 0.9


def made(name: str) -> int:
    lines, start = inspect.getsourcelines(Net.__init__)
    return start + next(n for n, text in enumerate(lines) if f"self.{name} =" in text)


def the(name: str) -> str:
    return f"the Param (made at test_sharding.py:{made(name)}) at `{name}` of argument 0"


def jitted(label, name="kernel", **options):
    shardings = nnx.StateSharding({nnx.PathContains(name): label, ...: None})
    return lambda model: nnx.jit(lambda m, x: m(x), in_shardings=(shardings, None), **options)(
        model, X
    )


def sharded(label, name="kernel", x=P(), out=P(), function=lambda m, x: m(x), **options):
    specs = nnx.StateSharding({nnx.PathContains(name): label, ...: None})
    return lambda model: nnx.shard_map(
        function, mesh=MESH, in_specs=(specs, x), out_specs=out, **options
    )(model, X)


def test_an_axis_that_the_mesh_does_not_have_is_named_by_shard_map():
    assert error_of(sharded(P(None, "modle"))) == (
        f"shard_map: in_specs gives P(None, 'modle') to {the('kernel')}, but the mesh has no axis "
        "'modle'; it has ['data', 'model']"
    )


def test_an_axis_that_is_not_manual_is_named_by_shard_map():
    assert error_of(sharded(P(None, "model"), axis_names={"data"})) == (
        f"shard_map: in_specs gives P(None, 'model') to {the('kernel')}, but axis_names has no "
        "axis 'model'; it has ['data']"
    )


def test_an_axis_that_the_mesh_of_set_mesh_does_not_have_is_named_by_jit():
    with jax.set_mesh(MESH):
        assert error_of(jitted(P(None, "modle"))) == (
            f"jit: in_shardings gives P(None, 'modle') to {the('kernel')}, but the mesh has no "
            "axis 'modle'; it has ['data', 'model']"
        )


@pytest.mark.parametrize(
    ("call", "prefix"),
    [
        (jitted(on("model", None)), "jit: in_shardings"),
        (sharded(P("model", None)), "shard_map: in_specs"),
    ],
    ids=["jit", "shard_map"],
)
def test_a_dimension_that_the_mesh_does_not_divide_is_named(call, prefix):
    assert error_of(call, errors.ShapeError) == (
        f"{prefix} gives P('model', None) to {the('kernel')}, but it has shape (3, 4), and its "
        "dimension 0 of size 3 does not divide into 2 parts, one for each device along 'model'; "
        "pad it, or write None there"
    )


@pytest.mark.parametrize(
    ("call", "prefix"),
    [
        (jitted(on(None, "model"), "bias"), "jit: in_shardings"),
        (sharded(P(None, "model"), "bias"), "shard_map: in_specs"),
    ],
    ids=["jit", "shard_map"],
)
def test_a_spec_for_more_dimensions_than_there_are_is_named(call, prefix):
    assert error_of(call, errors.ShapeError) == (
        f"{prefix} gives P(None, 'model') to {the('bias')}, but it has shape (4,), 1 dimensions "
        "for 2 entries; leave out the last ones, or give it another label (a part of a module by "
        "`moduli.StateSharding`)"
    )


def test_an_argument_that_the_mesh_does_not_divide_is_named():
    run = nnx.jit(lambda m, x: m(x), in_shardings=(None, on(("data", "model"))))
    assert error_of(lambda model: run(model, X[:6]), errors.ShapeError) == (
        "jit: in_shardings gives P(('data', 'model'),) to argument 1, but it has shape (6, 3), and "
        "its dimension 0 of size 6 does not divide into 4 parts, one for each device along 'data' "
        "and 'model'; pad it, or write None there"
    )


def test_a_result_that_the_mesh_does_not_divide_is_named():
    run = nnx.jit(lambda m, x: {"y": m(x)[:3]}, out_shardings=on("data"))
    assert error_of(lambda model: run(model, X), errors.ShapeError) == (
        "jit: out_shardings gives P('data',) to the result['y'], but it has shape (3, 4), and its "
        "dimension 0 of size 3 does not divide into 2 parts, one for each device along 'data'; "
        "pad it, or write None there"
    )


def test_an_unknown_axis_of_out_specs_is_named():
    assert error_of(sharded(P(), out=P("modle"))) == (
        "shard_map: out_specs has P('modle',), but the mesh has no axis 'modle'; it has "
        "['data', 'model']"
    )


def test_lowering_names_what_does_not_fit_too():
    run = nnx.jit(lambda m, x: m(x), in_shardings=(on("model"), None))
    with pytest.raises(errors.ShapeError, match=r"\('model',\) to the Variable .* at `calls`"):
        run.lower(Net(), X)


def test_a_model_that_is_laid_out_otherwise_is_named():
    model = nnx.jit(Net, out_shardings=on())(1.0)
    with assert_unchanged(model), pytest.raises(errors.StructureError) as caught:
        jitted(on(None, "model"))(model)
    text = str(caught.value).replace("PartitionSpec(", "P(")
    assert text.startswith("jit: in_shardings gives P(None, 'model') to the Param (made at ")
    assert text.endswith(
        "at `kernel` of argument 0, but its array is laid out as P(); bring it there first, with "
        "`jax.device_put(array, sharding)`, or write None to take what comes"
    )


def test_two_shardings_of_a_tied_variable_are_named():
    model = Net()
    tied = nnx.Dict(a=model.kernel, b=model.kernel)
    specs = nnx.StateSharding({nnx.PathContains("a"): P("data"), ...: P()})
    run = nnx.shard_map(lambda m: None, mesh=MESH, in_specs=(specs,), out_specs=P())
    assert error_of(lambda _: run(tied)) == (
        "shard_map: `a` of argument 0 and `b` of argument 0 are the same Param (made at "
        f"test_sharding.py:{made('kernel')}), but in_specs gives it P('data',) there and P() here; "
        "give both the same"
    )
    with pytest.raises(
        errors.StructureError,
        match=r"^jit: `kernel` of argument 0 and `the model itself` of argument 1",
    ):
        run = nnx.jit(lambda m, w: None, in_shardings=(on(), on("data")))
        run(model, model.kernel)


def test_a_variable_that_no_filter_selects_is_named():
    shardings = nnx.StateSharding({nnx.PathContains("kernel"): P()})
    run = nnx.shard_map(lambda m: m, mesh=MESH, in_specs=(shardings,), out_specs=P())
    assert error_of(run) == (
        f"shard_map: in_specs[0]: no filter of {shardings!r} selects `bias` (Param); add "
        "`...: None` (or another label) as the last one"
    ).replace("PartitionSpec(", "P(")


def test_a_variable_without_a_label_of_prefix_is_named():
    model = Net()
    labels = nnx.prefix(model, {...: on()})
    model.new = nnx.Param(jnp.ones(4))
    with pytest.raises(errors.StructureError) as caught:
        nnx.jit(lambda m: m, in_shardings=(labels,))(model)
    assert str(caught.value) == (
        "jit: in_shardings[0]: the labels from moduli.prefix have none for `new` (Param); make "
        "them from the very module that is passed"
    )


def test_a_label_that_is_no_sharding_is_named():
    assert error_of(lambda model: nnx.jit(lambda m: m, in_shardings=("data",))(model)) == (
        "jit: in_shardings gives `bias` of argument 0 the label 'data'; it must be a "
        "jax.sharding.NamedSharding, a PartitionSpec, or None"
    ).replace("PartitionSpec(", "P(")
    assert error_of(sharded(on())).endswith("it must be a jax.sharding.PartitionSpec or None")


def store(model, x):
    model.bias.value = model.bias + x.sum()


def test_a_value_that_differs_between_devices_under_a_shared_spec_is_named():
    assert error_of(sharded(P(), x=P("data"), function=store)) == (
        f"shard_map: {the('bias')} is under P(), the same for all devices along 'data' and "
        "'model', but got a value that may differ between them; name the axis in its spec (a part "
        "of a module's by `moduli.StateSharding`), or reduce the value, as with "
        "`jax.lax.pmean(value, axis_name)`"
    )


def test_a_result_that_differs_between_devices_under_a_shared_spec_is_named():
    text = error_of(sharded(P(), x=P("data"), out=(P("data"), P()), function=lambda m, x: (x, x)))
    assert text.startswith("shard_map: the result[1] is under P(), the same for all devices along")


def test_a_value_that_differs_between_the_devices_of_a_pmap_under_none_is_named():
    x = X.reshape(4, 2, 3)
    assert error_of(lambda model: nnx.pmap(store, in_axes=(None, 0))(model, x)) == (
        f"pmap: {the('bias')} is under the axis None, one for all elements, but got a value that "
        "differs between them; give it an axis (`moduli.StateAxes`), or reduce the value, as with "
        "`jax.lax.pmean(value, axis_name)`"
    )


def test_a_result_that_differs_between_the_devices_of_a_pmap_under_none_is_named():
    text = error_of(lambda _: nnx.pmap(lambda x: (x, x), out_axes=(0, None))(jnp.arange(4.0)))
    assert text.startswith("pmap: the result[1] is under the axis None, one for all elements")


def test_more_elements_than_devices_are_refused_by_pmap():
    def row(x):
        return x

    count = jax.device_count()
    many = jnp.zeros((count + 4, 3))
    text = error_of(lambda _: nnx.pmap(row)(many), errors.ShapeError)
    assert re.sub(r"of \S+row", "of row", text) == (
        f"pmap: the mapped axis of row has size {count + 4}, but there are {count} devices, one "
        "for each element; map over at most so many, and over the rest with `moduli.vmap` inside"
    )


def test_a_value_error_of_the_function_itself_comes_through():
    def fail(m, x):
        raise ValueError("mine")

    calls = (
        sharded(P(), function=fail),
        lambda model: nnx.pmap(fail, in_axes=(None, 0))(model, X[:4]),
        lambda model: nnx.jit(fail, in_shardings=on())(model, X),
    )
    for call in calls:
        with pytest.raises(ValueError, match="mine"):
            call(Net())


def test_writing_a_module_that_was_not_passed_to_a_shard_map_is_refused():
    model = Net()

    def store(x):
        model.bias.value = x

    with assert_unchanged(model), pytest.raises(errors.TraceError) as caught:
        nnx.shard_map(store, mesh=MESH, in_specs=P(), out_specs=P())(jnp.ones(4))
    assert f"test_sharding.py:{made('bias')}" in str(caught.value)
    assert "moduli.shard_map of test_writing_a_module" in str(caught.value)


def test_calls_that_differ_in_the_containers_of_arrays_have_programs_of_their_own():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("i",))
    spec = jax.sharding.PartitionSpec("i")

    def weighted(values):
        return 2 * values.get("a", 0) + 3 * values.get("b", 0)

    for run, x in (
        (nnx.pmap(weighted), jnp.ones((2, 1))),
        (nnx.shard_map(weighted, mesh=mesh, in_specs=spec, out_specs=spec), jnp.ones(2)),
    ):
        assert (run({"a": x}) == 2).all()
        assert (run({"b": x}) == 3).all()
