"""``TrainingReport``: statistics against NumPy, figures by what they show, the page's parts."""

from __future__ import annotations

import base64
import functools
import html.parser
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from debug_models import INPUTS, Dense, loss
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import moduli as nnx
from moduli import errors
from moduli_debug import TrainingReport, capture, capture_grads
from moduli_debug._report import statistics


class Chain(nnx.Module):
    """Layers in a list."""

    def __init__(self, depth: int = 2) -> None:
        self.blocks = [Dense(3, 3, seed) for seed in range(depth)]

    def __call__(self, x: jax.Array) -> jax.Array:
        for block in self.blocks:
            x = jnp.tanh(block(x))
        return x


def one(**given: Any) -> TrainingReport:
    """A report of a single step."""
    report = TrainingReport()
    report.record(0, **given)
    return report


def row(report: TrainingReport, kind: str, path: str, step: int | None = None) -> dict[str, Any]:
    (found,) = report.rows(kind, step=step, path=path)
    return found


# -- statistics ------------------------------------------------------------------------------------

VALUES = np.random.default_rng(0).normal(0.5, 2.0, (40, 5))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_statistics_are_those_of_numpy(dtype: str, scale: float) -> None:
    if dtype == "float16" and scale != 1.0:
        scale = 1e-4 if scale < 1 else 1e3
    array = jnp.asarray(VALUES * scale).astype(dtype)
    array = array.at[3].set(0.0)
    exact = np.asarray(array.astype(jnp.float32), np.float64)
    found = row(one(model={"w": array}), "parameters", "w")
    expected = {
        "mean": exact.mean(),
        "std": exact.std(),
        "min": exact.min(),
        "max": exact.max(),
        "norm": np.linalg.norm(exact),
        "zero_fraction": 5 / 200,
    }
    assert found["size"] == 200
    assert found["nonfinite_fraction"] == 0
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-5, err_msg=name)


def test_what_is_not_finite_is_counted_and_left_out() -> None:
    array = VALUES.astype(np.float32).copy()
    array[0, :3] = np.nan, np.inf, -np.inf
    rest = np.delete(array.ravel(), [0, 1, 2])
    found = row(one(model={"w": array}), "parameters", "w")
    assert found["nonfinite_fraction"] == pytest.approx(3 / 200)
    assert found["max"] == rest.max()
    np.testing.assert_allclose(found["std"], rest.std(), rtol=1e-5)
    counts, _ = one(model={"w": array}).histogram("parameters", "w")
    assert counts.sum() == 197


def test_nothing_finite_and_nothing_but_zero() -> None:
    report = one(
        model={"bad": np.full((2, 3), np.nan, np.float32), "zero": np.zeros(4, np.float32)}
    )
    bad, zero = row(report, "parameters", "bad"), row(report, "parameters", "zero")
    assert bad["nonfinite_fraction"] == 1
    assert np.isnan([bad[name] for name in ("mean", "std", "min", "max", "norm")]).all()
    assert [zero[name] for name in ("mean", "std", "norm", "zero_fraction")] == [0, 0, 0, 1]
    counts, edges = report.histogram("parameters", "zero")
    assert counts.sum() == 4 and edges[0] < 0 < edges[-1]


def test_linear_histogram_is_that_of_numpy() -> None:
    array = VALUES.astype(np.float32)
    array[0, 0] = 1000.0  # far outside
    counts, edges = one(model={"w": array}).histogram("parameters", "w")
    mean, std = array.mean(dtype=np.float64), array.std(dtype=np.float64)
    np.testing.assert_allclose(
        edges, np.linspace(array.min(), mean + 4 * std, 65), rtol=1e-4, atol=1e-4
    )
    expected, _ = np.histogram(np.clip(array, edges[0], edges[-1]), edges)
    assert np.abs(counts - expected).sum() <= 2  # a value on an edge may fall on either side
    assert counts.sum() == 200


def test_histogram_of_magnitudes_is_that_of_numpy() -> None:
    array = (VALUES * 10.0 ** np.linspace(-14, 6, 40)[:, None]).astype(np.float32)
    array[5] = 0.0
    counts, edges = one(grads={"w": array}).histogram("gradients", "w")
    np.testing.assert_allclose(edges, np.logspace(-12, 4, 65))
    magnitudes = np.abs(array[array != 0]).astype(np.float64)
    expected, _ = np.histogram(np.clip(magnitudes, edges[0], edges[-1]), edges)
    assert np.abs(counts - expected).sum() <= 2
    assert counts.sum() == 195


def test_dead_units_are_zero_everywhere() -> None:
    first, second = np.ones((2, 4, 3, 6), np.float32)
    first[..., 1:4] = 0
    second[..., 3:] = 0
    first[2, 1, 2] = 1.0  # alive at one place
    first[2, 1, 1] = 0.0
    report = one(
        activations={
            "once": first,
            "twice": {"outputs": nnx.Intermediate((jnp.asarray(first), jnp.asarray(second)))},
            "line": np.zeros(5, np.float32),
        }
    )
    once = row(report, "activations", "once")
    assert (once["units"], once["dead_units"]) == (6, int((first == 0).all(axis=(0, 1)).sum()))
    both = np.concatenate([first, second])
    twice = row(report, "activations", "twice")
    assert (twice["units"], twice["dead_units"]) == (6, int((both == 0).all(axis=(0, 1)).sum()))
    assert twice["size"] == both.size
    np.testing.assert_allclose(twice["mean"], both.mean(), rtol=1e-6)
    line = row(report, "activations", "line")
    assert (line["units"], line["dead_units"]) == (None, None)


def test_units_of_calls_of_different_widths_are_different_units() -> None:
    calls = (np.zeros((2, 3), np.float32), np.ones((2, 5), np.float32))
    found = row(one(activations={"a": {"outputs": calls}}), "activations", "a")
    assert (found["units"], found["dead_units"], found["size"]) == (8, 3, 16)


# -- what is measured ------------------------------------------------------------------------------


def test_a_model_its_gradients_and_captured_outputs() -> None:
    model = Chain()
    model.count = nnx.Variable(jnp.zeros(()))  # no Param
    grads = nnx.grad(loss)(model, INPUTS)
    y, seen = capture(model, outputs=("", "blocks/*"))(INPUTS)
    report = one(model=model, grads=grads, activations=seen)
    names = [(found["kind"], found["path"]) for found in report.rows()]
    params = [f"blocks/{number}/{name}" for number in range(2) for name in ("bias", "kernel")]
    assert sorted(names) == sorted(
        [("parameters", path) for path in params]
        + [("gradients", path) for path in params]
        + [("activations", path) for path in ("blocks/0", "blocks/1", "(root)")]
    )
    kernel = np.asarray(grads.blocks[1].kernel.value, np.float64)
    found = row(report, "gradients", "blocks/1/kernel")
    np.testing.assert_allclose(found["norm"], np.linalg.norm(kernel), rtol=1e-6)
    np.testing.assert_allclose(row(report, "activations", "(root)")["std"], np.std(y), rtol=1e-5)


def test_strict_promotion_and_double_precision() -> None:
    report, mixed = TrainingReport(), {"half": jnp.ones((3, 2), jnp.bfloat16), "w": jnp.ones(3)}
    with jax.numpy_dtype_promotion("strict"):
        report.record(0, model=mixed, activations={"a": {"outputs": (jnp.ones((2, 3)),)}})
        report.record(1, jax.jit(lambda w: report.measure(model=w))(mixed))
        with jax.enable_x64():
            report.record(2, model={"w": jnp.full(3, 1 + 1e-12, jnp.float64)})
    assert row(report, "parameters", "half", 1)["mean"] == 1
    assert row(report, "parameters", "w", 2)["mean"] == pytest.approx(1 + 1e-12, rel=1e-15)


def test_gradients_of_captured_outputs_stand_at_their_modules() -> None:
    model = Chain()
    _, activations, grads = capture_grads(loss, "blocks/*")(model, INPUTS)
    report = one(activations=activations, grads=grads)
    assert [found["path"] for found in report.rows()] == 2 * ["blocks/0", "blocks/1"]
    by_hand = jax.grad(lambda y: (jnp.tanh(y) ** 2).sum())(
        model.blocks[1](jnp.tanh(model.blocks[0](INPUTS)))
    )
    found = row(report, "gradients", "blocks/1")
    np.testing.assert_allclose(found["norm"], np.linalg.norm(by_hand), rtol=1e-5)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [PartitionSpec("d"), PartitionSpec(None, "d"), PartitionSpec()])
def test_arrays_on_several_devices(kind: AxisType, spec: PartitionSpec) -> None:
    mesh = jax.make_mesh((2,), ("d",), axis_types=(kind,))
    array = VALUES[:, :4].astype(np.float32)
    split = {"w": jax.device_put(array, NamedSharding(mesh, spec))}
    whole, report = one(model={"w": array}, grads={"w": array}), TrainingReport()
    report.record(0, model=split, grads=split)
    with jax.set_mesh(mesh):
        report.record(1, jax.jit(lambda w: report.measure(model=w, grads=w))(split))
    for step in (0, 1):
        for ours, theirs in zip(report.rows(step=step), whole.rows(), strict=True):
            np.testing.assert_allclose(ours["norm"], theirs["norm"], rtol=1e-6)
        for name in ("parameters", "gradients"):
            counts, edges = report.histogram(name, "w", step=step)
            expected, same_edges = whole.histogram(name, "w")
            np.testing.assert_allclose(edges, same_edges, rtol=1e-4, atol=1e-6)
            assert np.abs(counts - expected).sum() <= 2


def test_outputs_that_are_pytrees_and_what_is_no_float() -> None:
    value = {"state": np.ones((2, 3), np.float32), "index": np.arange(3), "none": None}
    report = one(activations={"cell": {"outputs": (value, value)}}, model={"w": np.ones(2, "f")})
    assert [found["path"] for found in report.rows("activations")] == ["cell['state']"]
    assert report.rows("activations")[0]["size"] == 12


def test_parameters_may_be_other_variables() -> None:
    model = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    report = TrainingReport(parameters=nnx.BatchStat)
    report.record(0, model=model)
    assert [found["path"] for found in report.rows()] == ["mean", "var"]


def test_update_ratio_from_updates_and_from_before() -> None:
    model = Dense(3, 2, 0)
    before = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    old = {name: np.asarray(value) for name, value in before.items()}
    model.kernel.value = model.kernel * 1.01
    model.bias.value = model.bias + 0.5
    new = {name: np.asarray(value) for name, value in nnx.state(model).to_pure_dict().items()}
    by_before = one(model=model, before=before)
    updates = {name: new[name] - old[name] for name in new}
    by_updates = one(model=old, updates=updates)
    for name in ("kernel", "bias"):
        expected = np.linalg.norm(new[name] - old[name]) / np.linalg.norm(old[name])
        for report in (by_before, by_updates):
            found = row(report, "updates", name)
            np.testing.assert_allclose(found["update_ratio"], expected, rtol=1e-5)
    np.testing.assert_allclose(
        row(by_before, "parameters", "kernel")["norm"], np.linalg.norm(old["kernel"]), rtol=1e-6
    )


def test_no_ratio_without_weights_or_for_weights_that_are_zero() -> None:
    updates = {"w": np.ones(3, np.float32)}
    assert row(one(updates=updates), "updates", "w")["update_ratio"] is None
    zero = one(model={"w": np.zeros(3, np.float32)}, updates=updates)
    assert row(zero, "updates", "w")["update_ratio"] is None


# -- over time -------------------------------------------------------------------------------------


def test_measure_in_a_jitted_step_and_record_outside() -> None:
    report, eager, traces = TrainingReport(), TrainingReport(), []

    @nnx.jit
    def step(model: Chain, x: jax.Array) -> Any:
        traces.append(None)
        grads = nnx.grad(loss)(model, x)
        return report.measure(model=model, grads=grads)

    model = Chain(3)
    for number in range(4):
        report.record(number, step(model, INPUTS))
        eager.record(number, model=model, grads=nnx.grad(loss)(model, INPUTS))
    assert len(traces) == 1
    assert [(r["kind"], r["path"]) for r in report.rows()] == [
        (r["kind"], r["path"]) for r in eager.rows()
    ]
    for ours, theirs in zip(report.rows(), eager.rows(), strict=True):
        np.testing.assert_allclose(ours["norm"], theirs["norm"], rtol=1e-5)
        np.testing.assert_allclose(ours["mean"], theirs["mean"], rtol=1e-4, atol=1e-6)


def test_many_steps_trace_once_keep_little_and_no_array_of_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    traces, bounds = [], statistics._bounds
    monkeypatch.setattr(statistics, "_bounds", lambda *a: traces.append(None) or bounds(*a))
    model, report = Dense(61, 67, 0), TrainingReport()  # sizes that no other test has
    for step in range(100):
        report.record(step, model=model)
    assert len(traces) == 2  # of the kernel's size and of the bias's
    report.rows()
    arrays = [array for record in report._records for array in (record.numbers, record.counts)]
    kept = [array for array in arrays if array is not None]
    assert all(isinstance(array, np.ndarray) for array in kept)
    assert sum(array.nbytes for array in kept) < 100 * 2 * 10 * 8 + 34 * 2 * 64 * 4
    with_histograms = [r.step for r in report._records if r.counts is not None]
    assert with_histograms == [*range(0, 97, 4), 99]
    report.histogram("parameters", "bias", step=96)
    with pytest.raises(errors.PathError, match=r"no histogram of parameters 'bias' at step 97"):
        report.histogram("parameters", "bias", step=97)


def test_record_does_not_wait_for_the_step() -> None:
    report = TrainingReport()
    for step in range(3):
        report.record(step, model={"w": jnp.ones(3)}, metrics={"loss": jnp.ones(())})
    assert [record.read for record in report._records] == [True, True, False]
    assert report.rows(step=2)[0]["mean"] == 1.0


def test_tensors_may_come_and_go() -> None:
    report = TrainingReport()
    report.record(0, metrics={"loss": 2.0})
    report.record(5, model={"a": np.ones(2, "f")}, metrics={"loss": 1.0, "accuracy": 0.5})
    report.record(9, model={"a": np.ones(2, "f"), "b": np.ones(2, "f")})
    assert report.steps == (0, 5, 9)
    assert [(found["step"], found["path"]) for found in report.rows()] == [
        (5, "a"),
        (9, "a"),
        (9, "b"),
    ]
    assert repr(report) == "TrainingReport('Training report', 3 records, steps 0 to 9)"
    assert report.available() == ("metrics", "parameters", "parameter_histograms")


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"model": 3}, errors.VariableError, "model is a int; give a Module"),
        ({"grads": [1.0]}, errors.VariableError, "grads is a list; give a State"),
        ({"activations": {"a": np.arange(3)}}, errors.StructureError, "nothing to measure"),
        ({}, errors.StructureError, "nothing to measure"),
        ({"before": {"w": np.ones(2, "f")}}, errors.StructureError, "given without model="),
        (
            {"model": {"w": np.ones(2, "f")}, "before": {}, "updates": {}},
            errors.StructureError,
            "together with updates=",
        ),
        (
            {"model": Dense(3, 2, 0), "before": {"kernel": np.ones((3, 2), "f")}},
            errors.StructureError,
            "same parameters; `bias` differ",
        ),
        (
            {"metrics": {"loss": np.ones(2)}},
            errors.VariableError,
            r"'loss' is a ndarray of shape \(2",
        ),
        ({"metrics": {"loss": "low"}}, errors.VariableError, "'loss' is a str"),
    ],
)
def test_wrong_arguments_are_named_errors(given: Any, error: Any, text: str) -> None:
    report = TrainingReport()
    with pytest.raises(error, match=text):
        report.record(0, **given)
    assert report.steps == ()


def test_before_may_not_share_the_variables_of_the_model() -> None:
    model = Dense(3, 2, 0)
    with pytest.raises(errors.StructureError, match="holds the Variables of the model itself"):
        one(model=model, before=nnx.state(model, nnx.Param))


def test_steps_go_up() -> None:
    report = TrainingReport()
    report.record(np.int64(3), metrics={"loss": 1.0})
    for step in (3, 2):
        with pytest.raises(errors.StructureError, match=f"step {step} does not come after step 3"):
            report.record(step, metrics={"loss": 1.0})
    with pytest.raises(errors.VariableError, match="step is a float"):
        report.record(4.5, metrics={"loss": 1.0})  # type: ignore[arg-type]
    with pytest.raises(errors.VariableError, match=r"second argument is a dict.*report.measure"):
        report.record(4, {"w": 1.0})  # type: ignore[arg-type]
    measured = report.measure(model={"w": np.ones(2, "f")})
    with pytest.raises(errors.StructureError, match="got measurements and model= too"):
        report.record(4, measured, model={"w": np.ones(2, "f")})


def test_recording_inside_of_a_transform_is_an_error() -> None:
    report = TrainingReport()
    with pytest.raises(errors.TraceError, match=r"inside of a transform.*report.measure"):
        nnx.jit(lambda model: report.record(0, model=model))(Dense(3, 2, 0))
    assert report.steps == ()


def test_measurements_under_vmap_are_an_error() -> None:
    report = TrainingReport()
    measured = jax.vmap(lambda w: report.measure(model={"w": w}))(jnp.ones((3, 4)))
    with pytest.raises(errors.ShapeError, match="called under vmap or scan; call it outside"):
        report.record(0, measured)


def test_names_that_do_not_exist() -> None:
    report = one(model={"kernel": np.ones(2, "f")})
    with pytest.raises(errors.PathError, match="no kind 'weights'; the kinds are parameters"):
        report.rows("weights")
    with pytest.raises(errors.PathError, match="did you mean 'kernel'"):
        report.histogram("parameters", "kernels")
    with pytest.raises(errors.PathError, match="did you mean 'activations'"):
        report.figure("activation")
    with pytest.raises(errors.PathError, match="nothing was recorded for the figure 'gradients'"):
        report.figure("gradients")
    with pytest.raises(errors.StructureError, match="nothing to show"):
        TrainingReport().save("report.html")


# -- figures ---------------------------------------------------------------------------------------


@functools.cache
def recorded(layers: int, times: int = 3) -> TrainingReport:
    """A report of made-up layers, with a dead layer, a NaN and a gradient that is zero."""
    report = TrainingReport(f"{layers} <layers>")
    rng = np.random.default_rng(0)
    for time in range(times):
        kernels = {number: rng.normal(size=(4, 6)).astype("f") for number in range(layers)}
        grads = {number: kernel * 10.0**-number for number, kernel in kernels.items()}
        grads[layers - 1] *= 0
        outputs = {number: np.maximum(kernel, 0) for number, kernel in kernels.items()}
        outputs[1] = np.zeros((4, 6), "f")
        if time == 2:
            outputs[0][0, 0] = np.nan
        report.record(
            10 * time,
            model={"layers": kernels},
            grads={"layers": grads},
            updates={"layers": {number: 0.01 * g for number, g in grads.items()}},
            activations={"layers": outputs},
            metrics={"loss": 10.0**-time, "accuracy": time / times},
        )
    return report


ALL = ("metrics", "activations", "dead_units", "gradients", "gradient_histograms", "updates",
       "parameters", "parameter_histograms")  # fmt: skip


@pytest.mark.parametrize("layers", [3, 12])
@pytest.mark.parametrize("name", ALL)
def test_every_figure_says_what_its_axes_are(name: str, layers: int) -> None:
    report = recorded(layers)
    assert report.available() == ALL
    figure = report.figure(name)
    assert figure.canvas.manager is None  # of no window
    if name.endswith("histograms"):
        assert figure.get_supxlabel() and figure.get_supylabel()
        titles = [axes.get_title(loc="left") for axes in figure.axes if axes.axison]
        assert titles == [f"layers/{number}" for number in range(layers)]
        return
    panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    assert all(axes.get_xlabel().startswith("step") for axes in panels)
    bars = [axes for axes in figure.axes if axes.get_label() == "<colorbar>"]
    lines = [axes for axes in panels if axes.lines]
    assert all(axes.get_ylabel() for axes in [*bars, *lines])
    assert len(bars) + len(lines) == len(panels)
    if name != "metrics":
        assert bool(bars) is (layers == 12)
    names = [
        text.get_text()
        for axes in panels
        for text in (axes.get_yticklabels() if layers == 12 else axes.get_legend().texts
                     if axes.get_legend() else [])
    ]  # fmt: skip
    if name not in ("metrics",):
        assert {f"layers/{number}" for number in range(layers)} <= set(names)


def test_lines_and_maps_show_the_recorded_values() -> None:
    lines = recorded(3).figure("gradients").axes[1]
    assert lines.get_yscale() == "log"
    drawn = np.asarray(lines.lines[1].get_ydata())
    expected = [found["norm"] for found in recorded(3).rows("gradients", path="layers/1")]
    np.testing.assert_allclose(drawn, expected)
    whole = recorded(3).figure("gradients").axes[0].lines[0].get_ydata()
    norms = [[r["norm"] for r in recorded(3).rows("gradients", step=s)] for s in (0, 10, 20)]
    np.testing.assert_allclose(whole, np.linalg.norm(norms, axis=1))
    dead = recorded(12).figure("dead_units").axes[0]
    shown = np.asarray(dead.collections[0].get_array()).reshape(12, 3)
    assert shown[1].tolist() == [1, 1, 1]
    expected = [found["dead_units"] / 6 for found in recorded(12).rows("activations", step=0)]
    np.testing.assert_allclose(shown[:, 0], expected)


def test_a_step_may_have_another_name() -> None:
    report = TrainingReport(step_name="epoch")
    for epoch in (1, 2):
        report.record(epoch, model={"w": np.ones((2, 2), "f")}, metrics={"loss": 1.0 / epoch})
    for name in ("metrics", "parameters"):
        assert {axes.get_xlabel() for axes in report.figure(name).axes} == {"epoch"}
    (legend,) = report.figure("parameter_histograms").legends
    assert [text.get_text() for text in legend.texts] == ["epoch 1", "epoch 2"]
    assert "epoch 1 to 2." in report.html()


def test_one_record_can_be_drawn() -> None:
    report = one(
        model={str(n): np.ones((2, 2), "f") for n in range(9)},
        grads={"zero": np.zeros(3, "f")},
        metrics={"loss": float("nan")},
    )
    for name in report.available():
        report.figure(name).canvas.draw()  # type: ignore[attr-defined]
    assert report.figure("metrics").axes[0].get_xticks().tolist() == [0]
    (panel,) = report.figure("gradient_histograms").axes
    assert [text.get_text() for text in panel.texts] == ["all zero"]


def test_long_names_are_shortened_but_stay_apart() -> None:
    from moduli_debug._report.figures import _short

    long = [f"encoder/layers/{n}/self_attention/query/kernel" for n in (3, 14)]
    assert _short([long[0], "b"]) == ["encoder/laye…ttention/query/kernel", "b"]
    assert len(_short([long[0], "b"])[0]) == 34
    assert _short(long) == long  # in the middle is what tells them apart


# -- the page --------------------------------------------------------------------------------------


class Elements(html.parser.HTMLParser):
    """Collects the elements of a page, and checks that they are closed."""

    VOID = ("meta", "img", "link", "br", "hr", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_one_file_that_asks_for_nothing(tmp_path: Path) -> None:
    report = recorded(3)
    path = report.save(tmp_path / "report.html")
    text = path.read_text(encoding="utf-8")
    elements = Elements(text).found
    images = [attributes["src"] or "" for tag, attributes in elements if tag == "img"]
    assert len(images) == len(ALL)
    for source in images:
        kind, _, data = source.partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data).startswith(b"\x89PNG")
    assert all(attributes.get("alt") for tag, attributes in elements if tag == "img")
    links = [attributes["href"] or "" for tag, attributes in elements if tag == "a"]
    targets = {f"#{attributes['id']}" for _, attributes in elements if "id" in attributes}
    assert set(links) == targets
    rest = re.sub(r'src="data:[^"]*"', "", text)
    assert not re.search(r"https?:|src=|@import|url\(|<script|<link", rest)
    assert "default-src 'none'" in text
    assert "<title>3 &lt;layers&gt;</title>" in text and "<layers>" not in text


def test_the_page_says_what_stands_out_and_has_every_tensor() -> None:
    text = recorded(3).html()
    assert "NaN or infinity in activations, first at step 20: layers/0" in text
    assert "Gradients zero throughout at the last step: layers/2" in text
    assert "dead at the last step: layers/1 (6 of 6)" in text
    rows = text.count('<th scope="row">')
    assert rows == len(recorded(3).rows(step=20)) == 12
    norm = row(recorded(3), "parameters", "layers/0", 20)["norm"]
    assert f"<td>{norm:.3g}</td>" in text
    fine = one(model={"w": np.ones(3, "f")}).html()
    assert "All recorded values are finite" in fine


def test_without_matplotlib_the_error_is_the_pip_command() -> None:
    code = (
        "import sys\n"
        "sys.modules['matplotlib'] = None\n"
        "import numpy as np, moduli\n"
        "from moduli_debug import TrainingReport\n"
        "report = TrainingReport()\n"
        "report.record(0, model={'w': np.ones(3, 'f')})\n"
        "print(report.rows()[0]['mean'], *report.available())\n"
        "for draw in (lambda: report.figure('parameters'), report.html):\n"
        "    try:\n"
        "        draw()\n"
        "    except moduli.errors.MissingPluginError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ}
    )
    first, *printed = done.stdout.splitlines()
    assert first == "1.0 parameters parameter_histograms"
    assert len(printed) == 2
    assert all('pip install "moduli-debug[matplotlib]"' in line for line in printed)


def test_importing_it_imports_no_matplotlib() -> None:
    code = "import sys, moduli_debug; print('matplotlib' in sys.modules, 'rich' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ}
    )
    assert done.stdout.split() == ["False", "False"]


def test_a_model_in_the_place_of_measurements_is_named() -> None:
    model = nnx.Dict(w=nnx.Param(jnp.ones(3)))
    with pytest.raises(nnx.errors.VariableError, match=r"second argument is a Dict; .* model="):
        TrainingReport().record(0, model, grads=nnx.state(model))  # type: ignore[arg-type]


def test_wide_figures_are_marked_for_a_phone() -> None:
    text = recorded(3).html()
    assert text.count('class="wide"') + text.count('class="narrow"') == text.count("<img ")
    assert 'class="wide"' in text
