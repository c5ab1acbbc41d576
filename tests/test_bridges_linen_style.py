"""nnx.bridge.Module, compact and what stands beside them: as in flax.nnx.bridge."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli
from moduli.errors import StructureError

theirs = pytest.importorskip("flax.nnx")
linen = pytest.importorskip("flax.linen")

Program = Callable[[Any], Any]
PROGRAMS: dict[str, Program] = {}
X = np.random.default_rng(0).normal(size=(6, 3)).astype("f4")


def program(function: Program) -> Program:
    PROGRAMS[function.__name__] = function
    return function


def classes(nnx: Any) -> tuple[Any, Any, Any]:
    """Makes a layer, a model that is compact and one with ``setup``, as users write them."""
    bridge = nnx.bridge

    class Dense(bridge.Module):
        features: int
        use_bias: bool = True
        kernel_init: Any = nnx.initializers.lecun_normal()

        @bridge.compact
        def __call__(self, x: Any) -> Any:
            y = x @ self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
            if self.use_bias:
                y += self.param("bias", nnx.initializers.zeros_init(), (self.features,))
            return y

    class Counted(bridge.Module):
        width: int

        @bridge.compact
        def __call__(self, x: Any) -> Any:
            calls = self.variable("calls", "count", lambda: jnp.zeros((), jnp.int32))
            calls[...] += 1
            x = jax.nn.relu(Dense(self.width)(x))
            self.head = Dense(2, use_bias=False, name="top")
            return self.head(x) + Dense(2)(x)

        def first(self, x: Any) -> Any:
            return Dense(self.width, name="Dense_0")(x)

    class Set(bridge.Module):
        width: int = 4

        def setup(self) -> None:
            self.block = Dense(self.width)
            self.end = Dense(2)

        def __call__(self, x: Any) -> Any:
            return self.end(jax.nn.relu(self.block(x)))

        def ends(self, x: Any) -> Any:
            return self.end(x)

    return Dense, Counted, Set


def ran(module: Any, *args: Any) -> Any:
    out, variables = module.init_with_output(0, *args)
    again, after = module.apply(variables, *args, mutable=True)
    return out, variables, again, after, module.apply(variables, *args, mutable=False)


@program
def a_layer(nnx: Any) -> Any:
    return ran(classes(nnx)[0](4), X)


@program
def compact_names_submodules_by_class_and_number(nnx: Any) -> Any:
    return ran(classes(nnx)[1](4), X)


@program
def setup_names_submodules_by_attribute(nnx: Any) -> Any:
    return ran(classes(nnx)[2](), X)


@program
def other_methods(nnx: Any) -> Any:
    made = classes(nnx)[2]
    variables = made().init(1, X)
    hidden = X @ np.ones((3, 4), "f4")
    function = lambda module, x: module.end(x) * 2
    found = [made().apply(variables, hidden, method=m) for m in ("ends", function)]
    model = made()
    return found, model.apply(variables, hidden, method=model.ends), model.width


@program
def gradients_under_jit(nnx: Any) -> Any:
    model = classes(nnx)[1](4)
    variables = model.init(jax.random.key(0), X)

    @jax.jit
    def gradient(params: Any) -> Any:
        return jax.grad(lambda p: (model.apply({**variables, "params": p}, X) ** 2).sum())(params)

    return gradient(variables["params"])


@program
def streams(nnx: Any) -> Any:
    class Noise(nnx.bridge.Module):
        def __call__(self, x: Any) -> Any:
            return [jax.random.normal(self.make_rng(n), (2,)) for n in ("a", "a", "b", "default")]

    keys = {"a": jax.random.key(1), "default": jax.random.key(2)}
    given = (keys, nnx.Rngs(3, a=4), 5, jax.random.key(6))
    return [Noise().apply({}, X, rngs=rngs) for rngs in given]


@program
def contexts(nnx: Any) -> Any:
    bridge, seen = nnx.bridge, []

    def note(module: Any) -> None:
        entry = bridge.current_context()
        assert bridge.module.MODULE_CONTEXT.module_stack[-1] is entry
        seen.append((bridge.current_module() is module, entry.in_compact))
        seen.append((module.is_initializing(), module.scope.mutable))

    class Inner(bridge.Module):
        def setup(self) -> None:
            note(self)

        @bridge.compact
        def __call__(self) -> None:
            note(self)

    class Outer(bridge.Module):
        def __call__(self) -> None:
            note(self)
            self.inner = Inner()
            self.inner()
            note(self)

    model = Outer()
    model.init(0)
    model.apply({}, mutable=["a"])
    return seen, bridge.current_context(), bridge.current_module(), model.scope


@program
def parents(nnx: Any) -> Any:
    class Empty(nnx.bridge.Module):
        pass

    class Outer(nnx.bridge.Module):
        @nnx.bridge.compact
        def __call__(self) -> Any:
            scope = Empty().scope
            return Empty(parent=None).scope, scope.rngs.default(), scope.mutable

    return Outer().apply({}, rngs=1), Outer().init(0)


@program
def names_by_priority(nnx: Any) -> Any:
    dense = classes(nnx)[0]
    order = nnx.bridge.AttrPriority

    def model(priority: Any) -> Any:
        class Model(nnx.bridge.Module):
            def setup(self) -> None:
                self.a = self.b = dense(2)
                if priority is not None:
                    self.set_attr_priority("b", priority)

            def __call__(self, x: Any) -> Any:
                return self.a(x) + self.b(x)

        return Model()

    given = (None, order.HIGH, order.INIT_PARENT, order.LOW)
    found = [sorted(model(priority).init(0, X)["params"]) for priority in given]
    return found, [(item.name, item.value) for item in order]


@program
def metadata(nnx: Any) -> Any:
    with nnx.use_eager_sharding(False):
        return boxed(nnx)


def boxed(nnx: Any) -> Any:
    bridge = nnx.bridge

    class Layer(bridge.Module):
        @bridge.compact
        def __call__(self, x: Any) -> Any:
            init = nnx.initializers.lecun_normal()
            w = self.param("w", bridge.with_partitioning(init, ("in", "out")), (3, 2))
            v = self.param("v", nnx.with_metadata(init, tag="t"), (3, 2))
            return x @ w + x @ v

    variables = Layer().init(0, X)
    w, v = variables["params"]["w"], variables["params"]["v"]
    assert isinstance(v, bridge.NNXMeta) and issubclass(v.var_type, nnx.Param)
    variable = v.to_nnx_variable()
    spec = linen.get_partition_spec(variables)["params"]
    unboxed = linen.unbox(variables)
    doubled = jax.tree.map(lambda a: 2 * a, variables)
    return (
        (type(w), w.names, spec["w"], variable.tag, variable[...]),
        [Layer().apply(given, X) for given in (variables, unboxed, doubled)],
    )


@program
def our_modules_inside(nnx: Any) -> Any:
    bridge = nnx.bridge

    class Model(bridge.Module):
        rate: float = 0.5

        def setup(self) -> None:
            self.first = bridge.nnx_in_bridge_mdl(lambda r: nnx.Linear(3, 4, rngs=r))

        @bridge.compact
        def __call__(self, x: Any) -> Any:
            x = bridge.nnx_in_bridge_mdl(lambda r: nnx.BatchNorm(4, rngs=r), "norm")(self.first(x))
            x = bridge.nnx_in_bridge_mdl(lambda r: nnx.Linear(4, 2, rngs=r))(x)
            return bridge.nnx_in_bridge_mdl(lambda r: nnx.Dropout(self.rate, rngs=r))(x)

    variables = Model().init(nnx.Rngs(0, dropout=1), X)
    keys = {"dropout": jax.random.key(2), "params": jax.random.key(3)}
    out, after = Model().apply(variables, X, rngs=keys, mutable=True)
    still = Model(rate=0.0).apply(variables, X)
    return variables, out, after, still


@program
def linen_modules_inside(nnx: Any) -> Any:
    bridge = nnx.bridge

    class Model(bridge.Module):
        def setup(self) -> None:
            self.norm = bridge.linen_in_bridge_mdl(linen.BatchNorm(use_running_average=False))

        @bridge.compact
        def __call__(self, x: Any) -> Any:
            x = self.norm(bridge.linen_in_bridge_mdl(linen.Dense(4), name="first")(x))
            return bridge.linen_in_bridge_mdl(linen.Dense(2))(x)

    variables = Model().init(nnx.Rngs(0), X)
    return variables, Model().apply(variables, X, mutable=["batch_stats"])


@program
def inside_of_linen_and_of_ours(nnx: Any) -> Any:
    class Outer(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            return nnx.bridge.to_linen(nnx.BatchNorm, 3, name="norm")(x)

    variables = Outer().init(jax.random.key(0), X)
    out, after = Outer().apply(variables, X, mutable=["batch_stats"])
    counted = nnx.bridge.ToNNX(linen.BatchNorm(use_running_average=False), nnx.Rngs(0))
    counted = counted.lazy_init(X)
    counted(X, mutable=["batch_stats"])
    return variables, out, after, counted.mean[...]


@program
def collections_of_kinds_without_a_name(nnx: Any) -> Any:
    class Own(nnx.Variable):
        pass

    class Model(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.lora = nnx.LoRA(3, 2, 4, rngs=rngs)
            self.plain, self.own = nnx.Variable(jnp.ones(2)), Own(jnp.ones(3))

        def __call__(self, x: Any) -> Any:
            return self.lora(x)

    out, variables = nnx.bridge.to_linen(Model).init_with_output(jax.random.key(0), X)
    again = nnx.bridge.to_linen(Model).apply(variables, X)
    kinds = {c: type(nnx.bridge.variables.to_nnx_var(c, 1.0)).__name__ for c in variables}
    return out, variables, again, kinds


@program
def named_values_on_a_mesh(nnx: Any) -> Any:
    class Layer(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            init = linen.with_partitioning(linen.initializers.lecun_normal(), ("in", "out"))
            return x @ self.param("w", init, (3, 4))

    mesh = jax.make_mesh((1, 1), ("in", "out"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        model = nnx.jit(
            lambda x: nnx.bridge.ToNNX(Layer(), nnx.Rngs(0)).lazy_init(x),
        )(X)
        return model.w.get_metadata("out_sharding"), model.w.sharding.spec, model(X)


def plain(item: Any) -> Any:
    """Takes a result apart: arrays as numpy's, the collections' classes and key types aside."""
    if isinstance(item, (moduli.Variable, theirs.Variable)):
        return plain(item.get_value())
    if hasattr(item, "var_type"):  # NNXMeta
        return plain(item.value)
    if isinstance(item, linen.Partitioned):
        return {"names": item.names, "value": plain(item.value)}
    if isinstance(item, (dict, moduli.State)) or hasattr(item, "items"):
        return {str(key): plain(value) for key, value in item.items()}
    if isinstance(item, jax.sharding.PartitionSpec):
        return str(item)
    if isinstance(item, (list, tuple)):
        return [plain(value) for value in item]
    if isinstance(item, jax.Array) and jnp.issubdtype(item.dtype, jax.dtypes.prng_key):
        item = jax.random.key_data(item)
    return np.asarray(item) if isinstance(item, (jax.Array, np.ndarray)) else item


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_gives_the_same_in_both_libraries(name: str) -> None:
    ours, others = plain(PROGRAMS[name](moduli)), plain(PROGRAMS[name](theirs))
    assert jax.tree.structure(ours) == jax.tree.structure(others)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(others), strict=True):
        if isinstance(other, np.ndarray):
            np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-6)
        else:
            assert one == other


def test_every_public_name_of_flaxs_bridge_is_there() -> None:
    bridge, submodules = theirs.bridge, ("interop", "module", "variables", "wrappers")
    names = [name for name in dir(bridge) if not name.startswith("_")]
    assert [name for name in names if not hasattr(moduli.bridge, name)] == []
    assert [name for name in names if name not in dir(moduli.bridge)] == []
    for sub in submodules:  # what is defined there, not what is imported
        home = getattr(bridge, sub)
        kinds = (type, types.FunctionType)
        made = {n: v for n, v in vars(home).items() if isinstance(v, kinds) and n[0] != "_"}
        own = [name for name, item in made.items() if item.__module__ == home.__name__]
        lacks = [n for n in own if not hasattr(getattr(moduli.bridge, sub), n)]
        assert [n for n in lacks if n not in INSIDE] == []


INSIDE = (  # of flax's own files alone: types of theirs and helpers without documentation
    "ModuleBase ModuleContext ModuleMeta ModuleState current_linen_module get_col_name has_setup "
    "is_vanilla_variable linen_rngs_dict linen_vars_to_nnx_attrs sort_variable_types"
).split()


# -- what is said here ---------------------------------------------------------------------------


def test_transforms_inside_of_a_call_carry_the_scope() -> None:
    dense = classes(moduli)[0]

    class Model(moduli.bridge.Module):
        def setup(self) -> None:
            self.inner = dense(2)

        def __call__(self, x: Any, lifted: bool = True) -> Any:
            call = moduli.jit(lambda m, x: m(x)) if lifted else lambda m, x: m(x)
            return call(self.inner, x)

    out, variables = Model().init_with_output(0, X)
    assert sorted(variables["params"]["inner"]) == ["bias", "kernel"]
    for lifted in (True, False):
        np.testing.assert_allclose(Model().apply(variables, X, lifted), out, rtol=1e-6)


def test_variables_of_what_a_call_does_not_reach_are_kept() -> None:
    model = classes(moduli)[1](4)
    variables = model.init(0, X)
    _, after = model.apply(variables, X, method="first", mutable=True)
    assert jax.tree.structure(after) == jax.tree.structure(variables)


def listed(dense: Any) -> Any:
    class Model(moduli.bridge.Module):
        widths: tuple[int, ...] = (4, 2)

        def setup(self) -> None:
            self.blocks = [dense(width) for width in self.widths]

        def __call__(self, x: Any) -> Any:
            for block in self.blocks:
                x = block(x)
            return x

    return Model


def test_lists_of_submodules() -> None:  # an error in flax
    model = listed(classes(moduli)[0])()
    out, variables = model.init_with_output(0, X)
    first, second = (variables["params"]["blocks"][n] for n in range(2))
    expected = (X @ first["kernel"] + first["bias"]) @ second["kernel"] + second["bias"]
    np.testing.assert_allclose(out, expected, rtol=1e-5)
    np.testing.assert_allclose(model.apply(variables, X), expected, rtol=1e-5)


def test_streams_of_a_call_need_none_for_parameters() -> None:  # an error in flax
    class Model(moduli.bridge.Module):
        @moduli.bridge.compact
        def __call__(self, x: Any) -> Any:
            inside = moduli.bridge.nnx_in_bridge_mdl
            x = inside(lambda r: moduli.Linear(3, 4, rngs=r))(x)
            return inside(lambda r: moduli.Dropout(0.5, rngs=r))(x)

    variables = Model().init(0, X)
    one, other = (Model().apply(variables, X, rngs={"dropout": seed}) for seed in (1, 2))
    assert ((one == 0) != (other == 0)).any()
    np.testing.assert_array_equal(one, Model().apply(variables, X, rngs={"dropout": 1}))


def misuse_shape(dense: Any, made: Any) -> None:
    variables = dense(4).init(0, X)
    dense(5).apply(variables, X)


def misuse_unbound(dense: Any, made: Any) -> None:
    dense(4)(X)


def misuse_unknown(dense: Any, made: Any) -> None:
    variables = listed(dense)().init(0, X)
    variables["params"]["blocks"]["7"] = variables["params"]["blocks"][0]
    listed(dense)().apply(variables, X)


def misuse_parent(dense: Any, made: Any) -> None:
    class Model(moduli.bridge.Module):
        @moduli.bridge.compact
        def __call__(self, x: Any) -> Any:
            return dense(2, parent="me")(x)

    Model().init(0, X)


def misuse_name_in_setup(dense: Any, made: Any) -> None:
    class Model(moduli.bridge.Module):
        def setup(self) -> None:
            self.inner = dense(2, name="inner")

    Model().init(0, X, method=lambda module, x: x)


MISUSE = {
    misuse_shape: r"`kernel` of Dense was given with the shape \(3, 4\).*makes \(3, 5\)",
    misuse_unbound: "`param` of Dense works inside of a call",
    misuse_unknown: "which the List there has not",
    misuse_parent: "`parent` of Dense can be None alone",
    misuse_name_in_setup: "leave `name='inner'` out",
    lambda dense, made: dense(4).apply({}, X, method="nothing"): "has no method 'nothing'",
    lambda dense, made: moduli.bridge.compact(lambda self: 0)(3): "got a int",
    lambda dense, made: moduli.bridge.linen_in_bridge_mdl(linen.Dense(2)): "call it in `setup`",
}


@pytest.mark.parametrize("call", MISUSE, ids=lambda call: getattr(call, "__name__", "?"))
def test_misuse_says_what_to_write(call: Any) -> None:
    dense, _, made = classes(moduli)
    with pytest.raises(StructureError, match=MISUSE[call]):
        call(dense, made)
    assert moduli.bridge.current_context() is None
