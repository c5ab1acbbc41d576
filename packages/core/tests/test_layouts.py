"""Models made sharded, their shardings, and tables and checks of layouts, on four devices."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from layout_models import KINDS, MESH, MESHES, MLP, TENSOR_PARALLEL, pair, specs

import moduli as nnx
from moduli import errors

SHAPES = nnx.eval_shape(pair)

# -- create ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_and_its_optimizer_are_made_as_the_rules_say(kind):
    made = nnx.create(pair, MESHES[kind], TENSOR_PARALLEL)
    found = specs(made)
    for prefix in ("0", "1/trace"):
        assert found[f"{prefix}/layers/0/kernel"] == (None, "model")
        assert found[f"{prefix}/layers/0/bias"] == ("model",)
        assert found[f"{prefix}/layers/1/kernel"] == ("model",)
        assert found[f"{prefix}/layers/1/bias"] == ()
    assert found["1/rows/layers/0/kernel"] == ()
    assert found["1/columns/layers/0/kernel"] == ("model",)
    assert found["1/rows/layers/1/kernel"] == ("model",)
    assert found["1/columns/layers/1/kernel"] == ()
    assert found["1/last/layers/0/kernel"] == (None, None, "model")
    assert found["0/calls"] == found["0/table"] == ()
    for array in jax.tree.leaves([nnx.state(part) for part in made]):
        assert array.sharding.mesh == MESHES[kind]
    with jax.numpy_dtype_promotion("standard"):
        for one, other in zip(made, pair(), strict=True):
            flat = zip(jax.tree.leaves(nnx.state(one)), jax.tree.leaves(nnx.state(other)))
            for a, b in flat:
                if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
                    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert type(made[0]) is MLP and type(made[0].layers) is type(pair()[0].layers)


def test_names_lay_out_a_model_without_rules_and_rules_come_before_them():
    def make() -> Any:
        names = {"out_sharding": (None, "model")}
        return nnx.Dict(a=nnx.Param(jnp.ones((4, 4)), **names), b=nnx.Param(jnp.ones((4, 4))))

    with jax.set_mesh(MESH):
        assert specs(nnx.create(make)) == {"a": (None, "model"), "b": ()}
    assert specs(nnx.create(make, MESH, [("a", P("data"))])) == {"a": ("data",), "b": ()}
    both = nnx.create(make, MESH, nnx.fsdp("data", 1))
    assert specs(both) == {"a": ("data", "model"), "b": ("data",)}


@pytest.mark.parametrize(
    "spec",
    [
        P("data"),
        ("data", None),
        ["data"],
        "data",
        (("data",), None),
        NamedSharding(MESH, P("data")),
    ],
)
def test_a_spec_has_several_spellings(spec):
    found = specs_of(nnx.shardings(SHAPES[0], MESH, [("kernel", spec), ("bias", None)]))
    assert found["layers/0/kernel"] in (P("data"), P("data", None), P(("data",), None))
    assert found["layers/0/bias"] == P()


@pytest.mark.parametrize(
    ("selector", "paths"),
    [
        ("kernel", ["layers/0/kernel", "layers/1/kernel"]),
        ("layers/0", ["layers/0/bias", "layers/0/kernel"]),
        ("layers[0].kernel", ["layers/0/kernel"]),
        (("layers", 0, "kernel"), ["layers/0/kernel"]),
        ("layers/*/kernel", ["layers/0/kernel", "layers/1/kernel"]),
        ("0/kernel|bias", ["layers/0/bias", "layers/0/kernel"]),
        ("layers/**/kern?l", ["layers/0/kernel", "layers/1/kernel"]),
        (nnx.All(nnx.Param, nnx.PathContains(1)), ["layers/1/bias", "layers/1/kernel"]),
        ([nnx.Param], [f"layers/{n}/{name}" for n in (0, 1) for name in ("bias", "kernel")]),
        ("table", ["table"]),
    ],
)
def test_a_rule_selects_by_filter_or_path(selector, paths):
    found = specs_of(nnx.shardings(SHAPES[0], MESH, [(selector, P("data"))]))
    assert sorted(path for path, spec in found.items() if spec == P("data")) == sorted(paths)


@pytest.mark.parametrize("spelling", ["rule", "list", "of a filter", "mapping"])
def test_fsdp_divides_the_largest_axis_of_large_values(spelling):
    rule = nnx.fsdp("data", 100)
    rules = {
        "rule": rule,
        "list": [rule],
        "of a filter": [(nnx.Param, rule)],
        "mapping": {nnx.Param: rule},
    }[spelling]
    found = specs_of(nnx.shardings(SHAPES, MESH, rules))
    assert found["0/layers/0/kernel"] == found["1/trace/layers/0/kernel"] == P(None, "data")
    assert found["0/layers/1/kernel"] == P("data")
    assert found["1/columns/layers/0/kernel"] == P("data")  # as its parameter, though small
    assert found["0/layers/0/bias"] == P()


def test_fsdp_over_two_axes_and_sizes_that_do_not_divide():
    def make() -> Any:
        return nnx.Dict(a=nnx.Param(jnp.ones((6, 4))), b=nnx.Param(jnp.ones((3, 5))))

    layout = nnx.shardings(nnx.eval_shape(make), MESH, nnx.fsdp(("data", "model"), 1))
    assert specs_of(layout) == {"a": P(None, ("data", "model")), "b": P()}


@pytest.mark.parametrize(
    ("rules", "error", "text"),
    [
        ([("kernl", P("data"))], errors.StructureError, "did you mean 'layers/0/kernel', 'layer"),
        ([("layer/0/bias", P("data"))], errors.StructureError, "did you mean 'layers/0/bias'?"),
        ([("zzz", P("data"))], errors.StructureError, "the paths are 'calls'"),
        ([(nnx.BatchStat, P("data"))], errors.StructureError, "kinds Param, RngCount, RngKey, Va"),
        ([("kernel", P("dat"))], errors.StructureError, "no axis 'dat'; it has ['data', 'model']"),
        (nnx.fsdp("dta"), errors.StructureError, "no axis 'dta'"),
        ([("bias", P(None, "data"))], errors.ShapeError, "`layers/0/bias` has shape (16,)"),
        ([("calls", P("data"))], errors.ShapeError, "`calls` has shape ()"),
        ([("kernel",)], errors.StructureError, "rules are pairs of a filter or a path"),
        ("kernel", errors.StructureError, "rules are pairs of a filter or a path"),
        ([("kernel", 3)], errors.StructureError, "names no axes"),
    ],
)
def test_a_rule_that_is_wrong_is_told(rules, error, text):
    with pytest.raises(error) as caught:
        nnx.shardings(SHAPES[0], MESH, rules)
    assert text in str(caught.value)


def test_a_size_that_does_not_divide_is_told_with_its_path():
    with pytest.raises(errors.ShapeError, match=r"`layers/0/kernel` .*axis 0 of size 3 .*2 pa"):
        nnx.create(lambda: MLP(nnx.Rngs(0), 3), MESH, [("kernel", P("data"))])


def test_without_a_mesh_a_model_is_made_on_one_device_and_rules_are_refused():
    model = nnx.create(lambda: MLP(nnx.Rngs(0)))
    assert {row.devices for row in nnx.show_layout(model).rows} == {1}
    with pytest.raises(errors.StructureError, match="pass `mesh=`"):
        nnx.create(lambda: MLP(nnx.Rngs(0)), rules=TENSOR_PARALLEL)
    with pytest.raises(errors.StructureError, match="got a tuple as the mesh"):
        nnx.create(lambda: MLP(nnx.Rngs(0)), (2, 2))
    with pytest.raises(errors.TraceError, match=r"inside of that of moduli\.jit"):
        nnx.jit(lambda: nnx.create(lambda: MLP(nnx.Rngs(0)), MESH))()
    with pytest.raises(errors.StructureError, match="needs a callable"):
        nnx.create(MLP(nnx.Rngs(0)).layers, MESH)  # pyright: ignore[reportArgumentType]


def test_what_is_shared_stays_shared_and_an_error_of_make_comes_through():
    def make() -> Any:
        model = MLP(nnx.Rngs(0))
        return {"model": model, "again": (model, model.layers[0].kernel)}

    made = nnx.create(make, MESH, TENSOR_PARALLEL)
    assert made["again"][0] is made["model"]
    assert made["again"][1] is made["model"].layers[0].kernel
    with pytest.raises(KeyError, match="lost"):
        nnx.create(lambda: {}["lost"], MESHES["explicit"])


# -- shardings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("use", ["device_put", "in_shardings", "out_shardings", "raw jax"])
def test_shardings_are_a_prefix_wherever_one_is_taken(use):
    model = MLP(nnx.Rngs(0))
    layout = nnx.shardings(model, MESH, TENSOR_PARALLEL)
    state = nnx.state(model)
    if use == "device_put":
        nnx.update(model, jax.device_put(state, layout))
    elif use == "in_shardings":
        nnx.jit(lambda model: None, in_shardings=(layout,))(model)
    elif use == "out_shardings":
        model = nnx.jit(lambda model: nnx.clone(model), out_shardings=layout)(model)
    else:
        same = nnx.shardings(state, MESH, TENSOR_PARALLEL)
        nnx.update(model, jax.jit(lambda s: s, out_shardings=same)(state))
    assert specs(model) == specs(nnx.create(lambda: MLP(nnx.Rngs(0)), MESH, TENSOR_PARALLEL))
    assert layout["layers"][0]["kernel"] == NamedSharding(MESH, P(None, "model"))


def test_named_shardings_in_variables_are_a_prefix_of_jit_too():
    names = {"out_sharding": (None, "model")}
    model = nnx.Dict(a=nnx.Param(jnp.ones((4, 4)), **names))
    layout = nnx.get_named_sharding(nnx.state(model), MESH)
    nnx.jit(lambda model: None, in_shardings=(layout,))(model)
    assert specs(model) == {"a": (None, "model")}


def test_shardings_say_what_rules_arrays_names_and_parameters_say_in_this_order():
    model, momentum = nnx.create(pair, MESH, TENSOR_PARALLEL)
    assert specs_of(nnx.shardings(model)) == specs_of(nnx.shardings(model, MESH, TENSOR_PARALLEL))
    nnx.set_metadata(model, out_sharding=("data",), only=nnx.PathContains("bias"))
    found = specs_of(nnx.shardings((model, momentum)))
    assert found["0/layers/0/bias"] == P("model")  # it is divided
    assert found["0/layers/1/bias"] == P("data")  # it is whole, and has a name
    assert found["0/layers/1/kernel"] == P("model")
    fresh = pair()
    nnx.set_metadata(fresh[0], out_sharding=(None, "model"), only=nnx.PathContains("kernel"))
    found = specs_of(nnx.shardings(fresh, MESH))
    assert found["1/trace/layers/0/kernel"] == P(None, "model")
    assert found["1/columns/layers/0/kernel"] == P("model")
    assert found["1/rows/layers/0/kernel"] == P()


def test_without_a_mesh_everything_stays_where_it_is():
    model = MLP(nnx.Rngs(0))
    layout = nnx.shardings(model)
    assert {type(x) for x in jax.tree.leaves(layout)} == {jax.sharding.SingleDeviceSharding}
    jax.device_put(nnx.state(model), layout)
    assert nnx.shardings(nnx.eval_shape(MLP, nnx.Rngs(0)))["calls"].num_devices == 1


def specs_of(layout: Any) -> dict[str, P]:
    pairs, _ = jax.tree_util.tree_flatten_with_path(layout)
    found = {}
    for path, sharding in pairs:
        key = errors.format_path(tuple(getattr(k, "key", getattr(k, "idx", None)) for k in path))
        found[key] = sharding.spec
    return found


# -- tables and checks -----------------------------------------------------------------------------


def test_the_table_has_the_largest_first_and_the_bytes_of_a_device():
    model = nnx.create(lambda: MLP(nnx.Rngs(0)), MESH, TENSOR_PARALLEL)
    table = nnx.show_layout(model)
    rows = {row.path: row for row in table.rows}
    kernel = rows["layers/0/kernel"]
    assert kernel.bytes_per_device == 8 * 16 * 4 // 2
    assert (kernel.devices, kernel.copies, kernel.replicated) == (4, 2, ("data",))
    assert (rows["table"].copies, rows["table"].replicated) == (4, ("data", "model"))
    sizes = [row.bytes_per_device for row in table.rows]
    assert sizes == sorted(sizes, reverse=True)
    held = [
        array.addressable_shards[0].data.nbytes
        for array in jax.tree.leaves(nnx.state(model, nnx.Param))
    ]
    assert sum(r.bytes_per_device for r in table.rows if "layers" in r.path) == sum(held)
    lines = str(table).splitlines()
    assert lines[0].split() == "path shape dtype spec bytes a device replicated".split()
    assert lines[1].split()[0] == "layers/0/kernel"
    assert "2 copies over data" in lines[1]
    assert "whole, 4 copies over data, model" in str(table)
    assert repr(table) == str(table)


def test_the_table_of_abstract_values_and_of_one_device():
    _, state = nnx.get_abstract_model(lambda: nnx.Dict(w=nnx.Param(jnp.ones((2, 4)))), MESH)
    (row,) = nnx.show_layout(state).rows
    assert (row.bytes_per_device, row.spec) == (32, P())
    assert "one device" in nnx.show_layout(nnx.Dict(w=nnx.Param(jnp.ones((2, 4)))))


def test_assert_sharded_names_what_is_whole():
    whole = nnx.create(lambda: MLP(nnx.Rngs(0)), MESH)
    divided = nnx.create(lambda: MLP(nnx.Rngs(0)), MESH, TENSOR_PARALLEL)
    nnx.assert_sharded(divided)
    nnx.assert_sharded(divided, TENSOR_PARALLEL)
    for model in (whole, MLP(nnx.Rngs(0))):
        with pytest.raises(errors.LayoutError, match=r"layers/0/kernel of shape \(8, 16\) is"):
            nnx.assert_sharded(model)
    with pytest.raises(AssertionError, match=r"layers/1/bias of shape \(8,\)"):
        nnx.assert_sharded(divided, min_size=4)
    with pytest.raises(errors.LayoutError, match=r"it should be \(None, 'model'\)"):
        nnx.assert_sharded(whole, TENSOR_PARALLEL)
    nnx.assert_sharded(whole, min_size=1000)


def test_assert_sharded_sees_that_names_are_not_kept():
    with jax.set_mesh(MESH):
        model = nnx.Dict(b=nnx.Param(jnp.ones(4), out_sharding=("model",)))
        nnx.assert_sharded(model)
        model["b"].value = jnp.ones(4)
        with pytest.raises(errors.LayoutError, match="b of shape"):
            nnx.assert_sharded(model)
