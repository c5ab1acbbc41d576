"""``capture`` of inputs, outputs and methods: what is selected, kept, refused, and left behind."""

from __future__ import annotations

import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from debug_models import INPUTS, Dense, Probed, Tower, arrays
from flax import nnx as flax_nnx

import moduli as nnx
from moduli import errors
from moduli_debug import capture, reducers
from moduli_debug.errors import UncapturedWarning


class Twice(nnx.Module):
    """Calls one layer twice, with another argument the second time."""

    def __init__(self) -> None:
        self.dense = Dense(3, 3, 0)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.dense(self.dense(x))


def by_hand(dense: Dense, x: Any) -> np.ndarray:
    return np.asarray(x) @ np.asarray(dense.kernel.value) + np.asarray(dense.bias.value)


def test_one_entry_for_each_call() -> None:
    model = Twice()
    y, seen = capture(model, outputs="dense")(INPUTS)
    first = by_hand(model.dense, INPUTS)
    np.testing.assert_allclose(seen.dense.outputs.value[0], first, rtol=1e-5)
    np.testing.assert_allclose(seen.dense.outputs.value[1], by_hand(model.dense, first), rtol=1e-4)
    np.testing.assert_array_equal(seen.dense.outputs.value[1], y)
    assert seen.dense.outputs.source.calls == (0, 1)


def test_calls_are_numbered_across_compiled_functions() -> None:
    run = nnx.jit(lambda model, x: model(x))

    def thrice(model: Twice, x: jax.Array) -> jax.Array:
        return run(model, run(model, model.dense(x)))

    _, seen = capture(thrice, outputs="dense")(Twice(), INPUTS)
    assert seen.dense.outputs.source.calls == (0, 1, 2, 3, 4)


def test_a_shared_module_has_one_place() -> None:
    class Tied(nnx.Module):
        def __init__(self) -> None:
            self.a = self.b = Dense(3, 3, 0)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.b(self.a(x))

    for pattern in ("a", "b"):
        run = capture(Tied(), outputs=pattern)
        if pattern == "a":
            assert len(run(INPUTS)[1].a.outputs.value) == 2


def test_inputs() -> None:
    class Scale(nnx.Module):
        def __call__(self, x: jax.Array, *, by: float = 1.0, name: str = "") -> jax.Array:
            return by * x

    class Model(nnx.Module):
        def __init__(self) -> None:
            self.scale = Scale()

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.scale(self.scale(x), by=3.0, name="second")

    y, seen = capture(Model(), inputs="scale", outputs="")(INPUTS)
    first, second = seen.scale.inputs.value
    np.testing.assert_array_equal(first, INPUTS)
    assert second[1] == {"by": 3.0, "name": None}
    np.testing.assert_array_equal(second[0][0], INPUTS)
    np.testing.assert_array_equal(seen.outputs.value[0], y)


@pytest.mark.parametrize(
    ("filter", "paths"),
    [
        ("blocks/*", ["blocks/0", "blocks/1", "blocks/2"]),
        ("blocks/1/**", ["blocks/1/dense", "blocks/1"]),
        (Dense, ["blocks/0/dense", "blocks/1/dense", "blocks/2/dense"]),
        (nnx.All(Dense, nnx.Not("blocks/0/*")), ["blocks/1/dense", "blocks/2/dense"]),
        (lambda path, module: path[-1:] == (2,), ["blocks/2"]),
        (("", "blocks/0"), ["blocks/0", ""]),
    ],
)
def test_filters(filter: Any, paths: list[str]) -> None:
    _, seen = capture(nnx.jit(lambda model, x: model(x)), outputs=filter)(Tower(3), INPUTS)
    flat = nnx.to_flat_state(seen).paths
    assert sorted("/".join(map(str, path[:-1])) for path in flat) == sorted(paths)


def test_captures_of_calls_are_traced_once_and_keep_nothing() -> None:
    traces = []

    @nnx.jit
    def forward(model: Tower, x: jax.Array) -> jax.Array:
        traces.append(1)
        return model(x)

    model = Tower()
    forward(model, INPUTS)
    for step in range(20):
        run = capture(forward, outputs="blocks/*")  # made anew each time: equal captures are one
        y, seen = run(model, step * INPUTS)
        np.testing.assert_array_equal(seen.blocks[1].outputs.value[0], y)
    nnx.pop(model, nnx.Any(nnx.Intermediate, nnx.Perturbation))
    assert len(traces) == 2
    forward(model, INPUTS)
    assert len(traces) == 2  # off again: the first program


def test_off_the_program_is_the_same_to_the_letter() -> None:
    model = nnx.eval_shape(lambda: Twice())
    before = str(nnx.make_jaxpr(lambda model, x: model(x))(model, INPUTS))
    capture(Twice(), outputs="**")(INPUTS)
    assert str(nnx.make_jaxpr(lambda model, x: model(x))(model, INPUTS)) == before


def test_two_threads_capture_one_model() -> None:
    model = Twice()
    inputs = arrays(3, *[(5, 3)] * 8)
    results: dict[int, Any] = {}
    barrier = threading.Barrier(4)

    def work(number: int) -> None:
        barrier.wait()
        for index in range(number, 8, 4):
            results[index] = capture(model, outputs="dense")(inputs[index])[1]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, x in enumerate(inputs):
        value = results[index].dense.outputs.value
        assert len(value) == 2
        np.testing.assert_allclose(value[0], by_hand(model.dense, x), rtol=1e-4, atol=1e-5)
    assert vars(model).keys() == {"_moduli", "dense"}


def test_inherited_calls_and_classes_stay_as_they_are() -> None:
    class Child(Twice):
        """Inherits its call."""

    before = [dict(vars(cls)) for cls in (Child, Twice, Dense)]
    with pytest.raises(TypeError):
        capture(Child(), outputs="**")(None)
    capture(Child(), outputs="**")(INPUTS)
    assert [dict(vars(cls)) for cls in (Child, Twice, Dense)] == before


# -- reducers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reduce", "expected"),
    [
        (reducers.mean, np.mean),
        (reducers.norm, np.linalg.norm),
        (reducers.top_k(2), lambda value: np.sort(value.ravel())[::-1][:2]),
        (
            reducers.histogram(4, range=(-1.0, 1.0)),
            lambda value: np.histogram(np.clip(value, -1, 1), 4, (-1.0, 1.0))[0],
        ),
        (jnp.max, np.max),
    ],
    ids=["mean", "norm", "top_k", "histogram", "a function"],
)
def test_reducers_run_where_the_value_is_captured(reduce: Any, expected: Any) -> None:
    model = Twice()
    run = capture(nnx.jit(lambda model, x: model(x)), outputs="dense", reduce=reduce)
    _, seen = run(model, INPUTS)
    value = by_hand(model.dense, INPUTS)
    np.testing.assert_allclose(seen.dense.outputs.value[0], expected(value), rtol=1e-4)


def test_the_last_call_and_every_other_one() -> None:
    class Many(nnx.Module):
        def __init__(self) -> None:
            self.dense = Dense(3, 3, 0)

        def __call__(self, x: jax.Array) -> jax.Array:
            for _ in range(5):
                x = self.dense(x)
            return x

    y, seen = capture(Many(), outputs="dense", reduce=reducers.last)(INPUTS)
    assert len(seen.dense.outputs.value) == 1
    np.testing.assert_array_equal(seen.dense.outputs.value[0], y)
    _, seen = capture(Many(), outputs="dense", reduce=reducers.every(2))(INPUTS)
    assert seen.dense.outputs.source.calls == (0, 2, 4)
    run = nnx.scan(
        lambda x, model: model(x), in_axes=(nnx.Carry, None), out_axes=nnx.Carry, length=4
    )
    _, seen = capture(lambda model, x: run(x, model), outputs="dense", reduce=reducers.last)(
        Twice(), INPUTS
    )
    assert [value.shape for value in seen.dense.outputs.value] == [(1, 5, 3)]
    assert seen.dense.outputs.source.axes == ((("scan", 1),),)


@pytest.mark.parametrize(
    ("reduce", "text"),
    [
        ("mean", r"reduce is a str \('mean'\); give one of moduli.reducers"),
        (reducers.top_k, "reduce=top_k needs its arguments"),
    ],
)
def test_no_reducer(reduce: Any, text: str) -> None:
    with pytest.raises(errors.VariableError, match=text):
        capture(Twice(), outputs="dense", reduce=reduce)


@pytest.mark.parametrize(
    "make",
    [
        lambda: reducers.every(0),
        lambda: reducers.top_k(0),
        lambda: reducers.histogram(0, range=(0, 1)),
        lambda: reducers.histogram(3, range=(1, 1)),
    ],
)
def test_reducers_of_nothing(make: Any) -> None:
    with pytest.raises(errors.StructureError, match=r"reducers\.\w+: got .*write"):
        make()


# -- sizes ---------------------------------------------------------------------------------------


def test_the_estimate_is_what_is_captured() -> None:
    model = Tower(2)
    run = capture(nnx.jit(lambda model, x: model(x)), nnx.Intermediate, outputs="blocks/*/dense")
    before = nnx.graphdef(model)
    sizes = run.estimate(model, INPUTS)
    _, *states = run(model, INPUTS)
    measured = {
        "/".join(map(str, path)): sum(leaf.nbytes for leaf in variable.value)
        for state in states
        for path, variable in nnx.to_flat_state(state).items()
    }
    assert sizes == measured and sum(sizes.values()) == 4 * 5 * 3 * 4
    assert nnx.graphdef(model) is before
    assert capture(model, outputs="").estimate(INPUTS) == {"outputs": 60}
    batch = jnp.stack([INPUTS] * 7)
    mapped = nnx.vmap(lambda model, x: model(x), in_axes=(None, 0))
    assert capture(mapped, outputs="").estimate(model, batch) == {"outputs": 7 * 60}


@pytest.mark.parametrize("transform", [lambda f: f, nnx.jit], ids=["eager", "jit"])
def test_more_bytes_than_allowed_is_an_error(transform: Any) -> None:
    run = transform(lambda model, x: model(x))
    assert capture(run, outputs="**", max_bytes=300)(Tower(2), INPUTS)
    with pytest.raises(
        errors.StructureError,
        match=r"more than max_bytes=299 bytes, 300 so far; the largest values are of 'blocks/0",
    ):
        capture(run, outputs="**", max_bytes=299)(Tower(2), INPUTS)


# -- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filter", "text"),
    [
        ("block/*", r"'block/\*' selects no module of Tower; .*did you mean 'blocks"),
        ("blocks/*/norm", r"selects no module of Tower; .*its modules are '' \(Tower\)"),
        (nnx.BatchNorm, "the filter BatchNorm selects no module of Tower"),
    ],
)
def test_a_filter_that_selects_nothing_is_an_error_with_near_misses(filter: Any, text: str) -> None:
    with pytest.raises(errors.PathError, match=text):
        capture(Tower(), outputs=filter)(INPUTS)


def test_a_module_that_is_never_called_is_an_error() -> None:
    class Unused(Twice):
        def __init__(self) -> None:
            super().__init__()
            self.other = Dense(3, 3, 1)

    with pytest.raises(
        errors.PathError, match=r"selects 'other' of Unused, and none .* was called"
    ):
        capture(Unused(), outputs="other")(INPUTS)


def test_a_filter_that_is_none() -> None:
    with pytest.raises(errors.VariableError, match="capture: outputs: 3 of type int is no filter"):
        capture(Tower(), outputs=3)


def test_in_strict_mode_a_sown_value_that_nobody_captures_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    capture(Probed(), nnx.Cache)(INPUTS)
    monkeypatch.setenv("MODULI_STRICT", "1")
    with pytest.warns(UncapturedWarning, match=r"`hidden` is of kind Intermediate.*captures Cache"):
        capture(Probed(), nnx.Cache)(INPUTS)


# -- methods, as flax.nnx has them ---------------------------------------------------------------


def model_of(lib: Any) -> Any:
    """One model for both libraries."""

    class Methods(lib.Module):
        def __init__(self) -> None:
            self.inner = Inner()

        def features(self, x: Any) -> Any:
            return self.inner(x) + 1

        def classify(self, x: Any) -> Any:
            self.sow(lib.Intermediate, "seen", x)
            return 2 * x

        def _private(self, x: Any) -> Any:
            return x

        def __call__(self, x: Any) -> Any:
            return self._private(self.classify(self.features(self.features(x))))

    class Inner(lib.Module):
        def __call__(self, x: Any) -> Any:
            return 3 * x

    return Methods()


@pytest.mark.parametrize("kinds", [0, 1])
def test_method_outputs_are_those_of_flax(kinds: int) -> None:
    x = jnp.arange(3.0)
    results = []
    for lib in (nnx, flax_nnx):
        wanted = (lib.Intermediate,) * kinds
        out = lib.capture(model_of(lib), *wanted, method_outputs=lib.Intermediate)(x)
        results.append(out if kinds else (out,))
    (ours, *our_states), (theirs, *their_states) = results
    np.testing.assert_array_equal(ours, theirs)
    assert len(our_states) == len(their_states) == kinds
    for state, other in zip(our_states, their_states, strict=True):
        one, two = nnx.to_pure_dict(state), flax_nnx.to_pure_dict(other)
        jax.tree.map(np.testing.assert_array_equal, one, two)


def test_method_outputs_under_jit() -> None:
    x = jnp.arange(3.0)
    model = model_of(nnx)
    run = nnx.jit(lambda model, x: model(x))
    _, seen = capture(run, nnx.Intermediate, method_outputs=nnx.Intermediate)(model, x)
    np.testing.assert_array_equal(seen.features.value[1], 3 * (3 * x + 1) + 1)
    np.testing.assert_array_equal(seen.inner["__call__"].value[0], 3 * x)
    assert vars(model).keys() == {"_moduli", "inner"}
