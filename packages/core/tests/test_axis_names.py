"""Names of axes: under a mesh a Variable is laid out when it is made, as in flax."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.layout import Format, Layout
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import moduli as nnx
from moduli import errors
from moduli._layout.fitted_names import fitted_names

KINDS = {
    "auto": (AxisType.Auto,) * 2,
    "explicit": (AxisType.Explicit,) * 2,
    "mixed": (AxisType.Explicit, AxisType.Auto),
}
MESHES = {kind: jax.make_mesh((2, 2), ("data", "model"), axis_types=KINDS[kind]) for kind in KINDS}
RULES = (("embed", None), ("heads", "model"), ("batch", ("data",)))


@pytest.fixture(params=["auto", "explicit"])
def mesh(request: pytest.FixtureRequest) -> Any:
    return MESHES[request.param]


@pytest.fixture
def flax_nnx() -> Any:
    pytest.importorskip("flax")
    import flax.nnx

    return flax.nnx


def value_of(variable: Any) -> Any:
    return variable.get_value() if hasattr(variable, "get_value") else variable


def layout(variable: Any) -> tuple[Any, ...]:
    """The spec of a Variable's array, with an entry for each axis."""
    array = value_of(variable)
    spec = tuple(array.sharding.spec)
    return spec + (None,) * (array.ndim - len(spec))


def eager(make: Callable[[], Any]) -> Any:
    return make()


def jitted(lib: Any) -> Callable[..., Any]:
    return lambda make: lib.jit(make)()


# -- as flax does it -------------------------------------------------------------------------------

DECLARED: dict[str, dict[str, Any]] = {
    "names": {"out_sharding": (None, "model")},
    "both on one axis": {"out_sharding": (("data", "model"),)},
    "fewer names": {"out_sharding": ("data",)},
    "spec": {"out_sharding": P("data", "model")},
    "own rules": {"out_sharding": ("batch", "heads"), "sharding_rules": RULES},
    "empty": {"out_sharding": ()},
    "none": {"out_sharding": None},
    "not eagerly": {"out_sharding": (None, "model"), "eager_sharding": False},
}


@pytest.mark.parametrize("where", ["eager", "jit", "vmap"])
@pytest.mark.parametrize("name", DECLARED)
def test_a_variable_is_laid_out_under_a_mesh_as_in_flax(name, where, mesh, flax_nnx):
    def made(lib: Any) -> tuple[Any, ...]:
        def make(x: Any = 1.0) -> Any:
            return lib.Dict(w=lib.Param(jnp.ones((4, 8)) * x, **DECLARED[name]))

        with jax.set_mesh(mesh):
            if where == "vmap":
                return layout(lib.jit(lib.vmap(make))(jnp.ones(3))["w"])
            return layout((lib.jit(make) if where == "jit" else make)()["w"])

    assert made(nnx) == made(flax_nnx)


def test_a_mesh_of_the_variables_own_counts_as_in_flax(mesh, flax_nnx):
    for lib in (nnx, flax_nnx):
        made = lib.Param(jnp.ones((4, 8)), out_sharding=(None, "model"), mesh=mesh)
        assert layout(made) == (None, "model")
        assert value_of(made).sharding.mesh == mesh


def test_rules_of_a_block_name_axes_as_in_flax(mesh, flax_nnx):
    for lib in (nnx, flax_nnx):
        with jax.set_mesh(mesh), lib.logical_axis_rules(RULES):
            w = lib.Param(jnp.ones((4, 8)), out_sharding=("batch", "heads"))
            assert layout(w) == ("data", "model")
            specs = lib.get_partition_spec(lib.State({"w": w}))
            assert tuple(value_of(specs["w"]))[1] == "model"
        assert w.out_sharding == ("batch", "heads")
        with jax.set_mesh(mesh), pytest.raises(ValueError):
            lib.Param(jnp.ones((4, 8)), out_sharding=("batch", "heads"))


def test_rules_that_contradict_each_other_are_refused_as_in_flax(flax_nnx):
    for lib in (nnx, flax_nnx):
        with lib.logical_axis_rules([("embed", "data")]), jax.set_mesh(MESHES["auto"]):
            with pytest.raises(ValueError, match="embed"):
                lib.Param(jnp.ones(4), out_sharding=("embed",), sharding_rules=RULES)


def test_eager_sharding_is_switched_as_in_flax(flax_nnx):
    for lib in (nnx, flax_nnx):
        with jax.set_mesh(MESHES["auto"]):
            assert lib.using_eager_sharding()
            with lib.use_eager_sharding(False):
                assert not lib.using_eager_sharding()
                assert layout(lib.Param(jnp.ones(4), out_sharding=("data",))) == (None,)
            assert lib.using_eager_sharding()
            lib.use_eager_sharding(False)
            assert not lib.using_eager_sharding()
            lib.use_eager_sharding(True)
            assert layout(lib.Param(jnp.ones(4), out_sharding=("data",))) == ("data",)


def test_abstract_models_are_laid_out_as_in_flax(mesh, flax_nnx):
    def shapes(lib: Any) -> Any:
        def make() -> Any:
            kernel = lib.Param(jnp.ones((4, 8)), out_sharding=(None, "model"))
            return lib.Dict(kernel=kernel, bias=lib.Param(jnp.zeros(8)))

        _, state = lib.get_abstract_model(make, mesh)
        with jax.set_mesh(mesh):
            abstract = lib.abstract_with_sharding(lib.eval_shape(make))
        assert tuple(value_of(abstract["kernel"]).sharding.spec) == (None, "model")
        return [
            (name, value_of(state[name]).shape, str(value_of(state[name]).sharding.spec))
            for name in ("kernel", "bias")
        ]

    ours = shapes(nnx)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of flax's own name for it
        assert ours == shapes(flax_nnx)


@pytest.mark.parametrize("name", DECLARED)
def test_the_specs_and_shardings_of_a_state_are_those_of_flax(name, mesh, flax_nnx):
    def read(lib: Any) -> Any:
        with lib.use_eager_sharding(False):
            state = lib.State({"w": lib.Param(jnp.ones((4, 8)), **DECLARED[name])})
        specs = lib.get_partition_spec(state)
        shardings = lib.get_named_sharding(state, mesh)
        placed = jax.device_put(state, shardings)
        mixed = lib.get_partition_spec({"a": jnp.ones(3), "b": 2})
        return value_of(specs["w"]), value_of(shardings["w"]), layout(placed["w"]), mixed

    assert read(nnx) == read(flax_nnx)


# -- and what flax refuses -------------------------------------------------------------------------


@pytest.mark.parametrize("metadata", [*DECLARED.values(), {"out_sharding": "any"}, {"mesh": None}])
def test_without_a_mesh_names_are_only_names(metadata):
    made = nnx.Param(jnp.ones((4, 8)), **metadata)
    assert isinstance(made.value.sharding, jax.sharding.SingleDeviceSharding)
    assert made.get_metadata() == metadata
    assert float(nnx.jit(lambda m: m["w"].sum())(nnx.Dict(w=made))) == 32


@pytest.mark.parametrize("run", [eager, jitted(nnx)], ids=["eager", "jit"])
@pytest.mark.parametrize("kind", KINDS)
def test_names_specs_shardings_and_formats_say_the_same(kind, run):
    mesh = MESHES[kind]
    sharding = NamedSharding(mesh, P(None, "model"))
    spellings = [(None, "model"), [None, "model"], P(None, "model"), (None, ["model"]), sharding]
    if run is eager and kind != "mixed":
        spellings.append(Format(Layout((0, 1)), sharding))
    for names in spellings:
        with jax.set_mesh(mesh):
            kept = tuple(names) if isinstance(names, list) else names
            if isinstance(kept, tuple) and run is not eager:
                kept = tuple(tuple(e) if isinstance(e, list) else e for e in kept)
            made = run(lambda: nnx.Dict(w=nnx.Param(jnp.ones((4, 8)), out_sharding=kept)))
        assert layout(made["w"]) == (None, "model") or layout(made["w"]) == (None, ("model",))
        np.testing.assert_array_equal(made["w"].value, np.ones((4, 8)))


@pytest.mark.parametrize("manual", [{"data", "model"}, {"data"}])
def test_names_of_axes_that_a_shard_map_has_divided_already_are_left_alone(manual):
    def body(x):
        return nnx.Param(x, out_sharding=("data", "model"))[...] * 2

    mesh = MESHES["auto"]
    spec = P("data")
    out = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=spec, out_specs=spec, axis_names=manual))(
        jnp.arange(16.0).reshape(4, 4)
    )
    np.testing.assert_array_equal(out, 2 * np.arange(16.0).reshape(4, 4))


@pytest.mark.parametrize("run", [eager, jitted(nnx)], ids=["eager", "jit"])
@pytest.mark.parametrize(
    ("shape", "names", "error", "text"),
    [
        ((4, 8), (None, "modle"), errors.StructureError, "no axis 'modle'; it has ['data', 'mo"),
        ((8,), (None, "model"), errors.ShapeError, "2 names of axes, "),
        ((), ("model",), errors.ShapeError, "for 0 axes"),
        ((4, 8), ("model", "model"), errors.StructureError, "'model' stands there twice"),
        ((4, 8), "model", errors.StructureError, "names no axes: write a tuple"),
    ],
)
def test_names_that_cannot_be_laid_out_are_told(shape, names, error, text, run):
    with jax.set_mesh(MESHES["auto"]), pytest.raises(error) as caught:
        run(lambda: nnx.Dict(w=nnx.Param(jnp.ones(shape), out_sharding=names)))
    assert text in str(caught.value)


def test_a_mesh_that_is_not_the_one_of_the_sharding_is_told():
    sharding = NamedSharding(MESHES["auto"], P("data"))
    with pytest.raises(errors.StructureError, match="leave out one of them"):
        nnx.Param(jnp.ones(4), out_sharding=sharding, mesh=MESHES["explicit"])


def test_copies_keep_the_layout_and_writing_a_value_takes_what_comes():
    with jax.set_mesh(MESHES["auto"]):
        w = nnx.Param(jnp.ones((4, 8)), out_sharding=(None, "model"))
        assert layout(w.copy()) == layout(nnx.clone(nnx.Dict(w=w))["w"]) == (None, "model")
        w.value = jnp.zeros((4, 8))
    assert layout(w) == (None, None)


# -- names for what belongs to a parameter ---------------------------------------------------------

SIZES = (3, 4, 5)
NAMES = ("a", None, "c")


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        ((3, 4, 5), ("a", None, "c")),
        ((10, 3, 4, 5), (None, "a", None, "c")),
        ((3, 4, 5, 7), ("a", None, "c", None)),
        ((4, 5), (None, "c")),
        ((3, 5), ("a", "c")),
        ((3, 4), ("a", None)),
        ((5,), ("c",)),
        ((1,), (None,)),
        ((), ()),
        ((5, 3), (None, None)),  # either may be the one that is meant
    ],
)
def test_an_axis_of_a_state_has_the_name_of_the_axis_of_its_size(shape, names):
    assert fitted_names(NAMES, SIZES, shape) == names


def test_where_two_axes_have_the_size_the_name_has_to_be_the_same():
    assert fitted_names((None, "model"), (4, 4), (4,)) == (None,)
    assert fitted_names(("model", None), (4, 4), (4, 4, 4)) == (None, "model", None)
    assert fitted_names(("x", "x"), (4, 4), (4,)) == ("x",)
