"""``profile``: times against a clock that the modules themselves move, bytes against NumPy."""

from __future__ import annotations

import io
import re
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from debug_models import INPUTS, Dense, Probed, Tower
from rich.console import Console

import moduli as nnx
from moduli import errors
from moduli_debug import _profile, capture, profile


class Clock:
    """A clock that stands still unless it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(_profile, "_clock", clock)
    return clock


class Takes(nnx.Module):
    """Takes a number of seconds, then calls its parts."""

    def __init__(self, clock: Clock, seconds: float, *parts: nnx.Module) -> None:
        self.clock, self.seconds, self.parts = nnx.static(clock), seconds, list(parts)

    def __call__(self, x: jax.Array) -> jax.Array:
        self.clock.now += self.seconds
        for part in self.parts:
            x = part(x)
        return x + 1


def times(found: _profile.Profile) -> dict[Any, tuple[int, float, float]]:
    return {row.path: (row.calls, row.total_seconds, row.own_seconds) for row in found.rows}


# -- times ---------------------------------------------------------------------------------------


def test_own_and_total_time_add_up(clock: Clock) -> None:
    leaf = Takes(clock, 2.0)
    model = Takes(clock, 1.0, Takes(clock, 0.5, leaf, leaf), Takes(clock, 0.25))
    y, found = profile(model)(jnp.zeros(2))
    assert y.tolist() == [5.0, 5.0]
    assert times(found) == {
        (): (1, 5.75, 1.0),
        ("parts", 0): (1, 4.5, 0.5),
        ("parts", 0, "parts", 0): (2, 4.0, 4.0),
        ("parts", 1): (1, 0.25, 0.25),
    }
    assert [row.path for row in found.rows] == list(times(found))
    assert found.seconds == 5.75


def test_what_stands_outside_of_modules_is_in_the_whole(clock: Clock) -> None:
    def run(model: Takes, x: jax.Array) -> jax.Array:
        clock.now += 3.0
        return model(model(x))

    _, found = profile(run)(Takes(clock, 1.0), jnp.zeros(2))
    assert found.seconds == 5.0
    assert times(found) == {(): (2, 2.0, 2.0)}
    assert "3,000.000 ms outside of modules" in " ".join(str(found).split())


def test_a_module_that_calls_itself_is_counted_once(clock: Clock) -> None:
    class Recursive(Takes):
        def __call__(self, x: jax.Array, depth: int = 2) -> jax.Array:
            self.clock.now += self.seconds
            return self(x, depth - 1) if depth else x

    _, found = profile(Recursive(clock, 1.0))(jnp.zeros(2))
    assert times(found) == {(): (3, 3.0, 3.0)}


def test_waits_for_inputs_outputs_and_what_is_written(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting takes a second for each array that was not waited for yet."""
    waited: dict[int, Any] = {}

    def wait(values: Any) -> None:
        for value in jax.tree.leaves(values):
            if waited.setdefault(id(value), value) is value and value is not None:
                clock.now += float(waited.pop(("new", id(value)), 0.0))

    def new(value: Any, seconds: float) -> Any:
        waited["new", id(value)] = seconds
        return value

    class Part(nnx.Module):
        def __init__(self) -> None:
            self.count = nnx.Variable(jnp.zeros(()))

        def __call__(self, x: jax.Array) -> jax.Array:
            self.count.value = new(self.count.value + 1, 10.0)
            return new(x + 1, 1.0)

    class Whole(nnx.Module):
        def __init__(self) -> None:
            self.part = Part()

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.part(new(x * 2, 100.0))

    monkeypatch.setattr(_profile.jax, "block_until_ready", wait)
    _, found = profile(Whole(), warmup=0)(jnp.ones(2))
    assert times(found) == {(): (1, 111.0, 100.0), ("part",): (1, 11.0, 11.0)}


def test_what_the_profiler_does_is_off_the_clock(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow() -> int:
        clock.now += 1000.0
        return 0

    monkeypatch.setattr(_profile, "_live_bytes", slow)
    _, found = profile(Takes(clock, 1.0, Takes(clock, 2.0)))(jnp.zeros(2))
    assert times(found) == {(): (1, 3.0, 1.0), ("parts", 0): (1, 2.0, 2.0)}
    assert found.seconds == 3.0


def test_real_times_are_positive_and_nest() -> None:
    _, found = profile(Tower())(INPUTS)
    rows = {row.path: row for row in found.rows}
    inner = [rows["blocks", number] for number in range(2)]
    assert all(row.own_seconds > 0 for row in found.rows)
    assert rows[()].total_seconds >= sum(row.total_seconds for row in inner)
    assert found.seconds >= sum(row.own_seconds for row in found.rows)


# -- bytes ---------------------------------------------------------------------------------------


def test_bytes_of_outputs_and_of_what_stays() -> None:
    class Keeps(nnx.Module):
        def __init__(self) -> None:
            self.cache = nnx.Cache(jnp.zeros((), jnp.float32))

        def __call__(self, x: jax.Array) -> dict[str, Any]:
            self.cache.value = jnp.ones((10, 10), jnp.float32)
            return {"half": x.astype(jnp.bfloat16), "host": np.zeros(3, np.float64), "text": "x"}

    x = jnp.ones((5, 2), jnp.float32)
    _, found = profile(Keeps())(x)
    (row,) = found.rows
    assert row.output_bytes == 5 * 2 * 2 + 3 * 8
    assert row.live_bytes == 10 * 10 * 4 - 4 + 5 * 2 * 2


def test_the_device_that_reports_no_peak_says_so() -> None:
    _, found = profile(Dense(3, 2, 0))(INPUTS)
    assert jax.local_devices()[0].memory_stats() is None
    assert not found.reports_peak
    assert found.rows[0].peak_bytes is None
    assert "does not report the peak" in str(found)
    assert "peak" not in str(found).splitlines()[1]


def test_the_peak_where_the_device_reports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = {"bytes_in_use": 1000, "peak_bytes_in_use": 5000}
    monkeypatch.setattr(_profile, "_memory", lambda: dict(memory))

    class Uses(nnx.Module):
        def __init__(self, needed: int) -> None:
            self.needed = needed

        def __call__(self, x: jax.Array) -> jax.Array:
            peak = memory["bytes_in_use"] + self.needed
            memory["peak_bytes_in_use"] = max(memory["peak_bytes_in_use"], peak)
            return x

    def run(models: list[Uses], x: jax.Array) -> None:
        for model in models:
            model(x)

    models = nnx.List([Uses(100), Uses(6000), Uses(7000)])
    _, found = profile(run, warmup=0)(models, INPUTS)
    assert [row.peak_bytes for row in found.rows] == [None, 6000, 7000]
    assert "6.8 KiB" in str(found)


# -- the run -------------------------------------------------------------------------------------


def test_the_result_and_the_model_are_those_of_one_run() -> None:
    def build() -> nnx.Module:
        rngs = nnx.Rngs(0)
        return nnx.Sequential(
            nnx.Linear(3, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
        )

    model, twin = build(), build()
    y, found = profile(model, warmup=2)(INPUTS)
    assert (y == twin(INPUTS)).all()
    assert nnx.state(model) == nnx.state(twin)
    assert nnx.graphdef(model) is nnx.graphdef(twin)
    assert [row.calls for row in found.rows] == [1, 1, 1, 1]


def test_methods_functions_and_keywords() -> None:
    class Methods(Probed):
        def twice(self, x: jax.Array, *, scale: float) -> jax.Array:
            return scale * self.second(jnp.tanh(self.first(x)))

    model = Methods()
    expected = model.twice(INPUTS, scale=2.0)
    for fn, args in [
        (model.twice, ()),
        (Methods.twice, (model,)),
        (lambda x, scale, model=model: model.twice(x, scale=scale), ()),
    ]:
        y, found = profile(fn)(*args, INPUTS, scale=2.0)
        assert jnp.allclose(y, expected)
        assert {row.module for row in found.rows} == {"Dense"}
    assert [row.path for row in profile(model.twice)(INPUTS, scale=2.0)[1].rows] == [
        ("first",),
        ("second",),
    ]


def test_a_transform_inside_belongs_to_the_module_that_calls_it() -> None:
    step = nnx.jit(lambda model, x: model(x))

    class Mixed(nnx.Module):
        def __init__(self) -> None:
            self.compiled, self.eager = Tower(), Dense(3, 2, 0)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.eager(step(self.compiled, x))

    _, found = profile(Mixed(), warmup=0)(INPUTS)
    assert [row.path for row in found.rows] == [(), ("eager",)]
    assert found.compiled[:2] == (("compiled",), ("compiled", "blocks", 0))
    assert "in the time of its caller: compiled." in " ".join(str(found).split())


@pytest.mark.parametrize(
    "run",
    [
        lambda model: profile(nnx.jit(lambda model, x: model(x)))(model, INPUTS),
        lambda model: nnx.jit(lambda model, x: profile(model)(x)[0])(model, INPUTS),
        lambda model: nnx.grad(lambda model, x: profile(model)(x)[0].sum())(model, INPUTS),
        lambda model: nnx.vmap(lambda model, x: profile(model)(x)[0], in_axes=(None, 0))(
            model, INPUTS
        ),
    ],
)
def test_inside_of_transforms_it_says_that_it_measures_eager_runs(run: Any) -> None:
    with pytest.raises(errors.TraceError, match=r"measures eager runs.*named_scopes"):
        run(Tower())


def test_exceptions_pass_and_a_caught_one_is_a_call(clock: Clock) -> None:
    class Fails(Takes):
        def __call__(self, x: jax.Array) -> jax.Array:
            super().__call__(x)
            raise KeyError("on purpose")

    class Catches(Takes):
        def __call__(self, x: jax.Array) -> jax.Array:
            try:
                return super().__call__(x)
            except KeyError:
                self.clock.now += 8.0
                return x

    with pytest.raises(KeyError, match="on purpose"):
        profile(Fails(clock, 1.0))(INPUTS)
    _, found = profile(Catches(clock, 1.0, Fails(clock, 2.0, Takes(clock, 4.0))))(INPUTS)
    assert times(found) == {
        (): (1, 15.0, 9.0),
        ("parts", 0): (1, 6.0, 2.0),
        ("parts", 0, "parts", 0): (1, 4.0, 4.0),
    }


def test_another_plugin_may_cut_a_call_short(clock: Clock) -> None:
    class Cuts:
        @nnx.hookimpl(tryfirst=True)
        def moduli_call_context(self, path: Any) -> None:
            if path == ("parts", 0, "parts", 0):
                raise KeyError("cut")

    class Catches(Takes):
        def __call__(self, x: jax.Array) -> jax.Array:
            try:
                return super().__call__(x)
            except KeyError:
                return x

    with nnx.using(Cuts()):
        model = Catches(clock, 1.0, Takes(clock, 2.0, Takes(clock, 4.0)))
        _, found = profile(model)(INPUTS)
    assert times(found) == {(): (1, 3.0, 1.0), ("parts", 0): (1, 2.0, 2.0)}


def test_other_threads_are_not_measured() -> None:
    other = Dense(3, 2, 0)

    class Starts(nnx.Module):
        def __call__(self, x: jax.Array) -> jax.Array:
            thread = threading.Thread(target=other, args=(x,))
            thread.start()
            thread.join()
            return x

    _, found = profile(Starts())(INPUTS)
    assert [row.path for row in found.rows] == [()]


def test_paths_begin_at_the_model_inside_of_a_capture() -> None:
    class Outer(nnx.Module):
        def __init__(self) -> None:
            self.inner = Probed()

        def __call__(self, x: jax.Array) -> Any:
            return profile(self.inner)(x)

    (_, found), _ = capture(Outer(), nnx.Intermediate)(INPUTS)
    assert [row.path for row in found.rows] == [(), ("first",), ("second",)]


# -- the table and errors ------------------------------------------------------------------------


def test_the_table(clock: Clock) -> None:
    model = nnx.Dict(layer=Takes(clock, 0.0015))
    _, found = profile(lambda model, x: model["layer"](x))(model, jnp.zeros((256, 4), jnp.float32))
    head, rule, row, *_ = [line for line in str(found).splitlines() if line.strip()]
    assert re.split("  +", head.strip()) == [
        "module", "class", "calls", "total ms", "own ms", "own", "output", "live",
    ]  # fmt: skip
    assert set(rule.strip()) == {"─"}
    assert re.split("  +", row.strip()) == [
        "layer", "Takes", "1", "1.500", "1.500", "100%", "4.0 KiB", "+4.0 KiB",
    ]  # fmt: skip
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(found)
    assert "layer" in console.export_text()


def test_wrong_arguments_are_named_errors() -> None:
    with pytest.raises(errors.VariableError, match="needs a Module, a method, a function; got 3"):
        profile(3)  # type: ignore[arg-type]
    for warmup in (-1, True, 1.5):
        with pytest.raises(errors.VariableError, match="warmup is a number of calls"):
            profile(Tower(), warmup=warmup)  # type: ignore[arg-type]
    with pytest.raises(errors.StructureError, match="called no module"):
        profile(lambda model, x: x)(Tower(), INPUTS)
