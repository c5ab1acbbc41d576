"""Metrics give what numpy gives for all values at once, and what flax.nnx gives."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import moduli as nnx
from moduli.errors import PathError, ShapeError, VariableError

batches = st.lists(
    st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=5), min_size=1, max_size=4
)


@settings(deadline=None, max_examples=50)
@given(batches)
def test_average_and_welford_of_batches_are_those_of_all_values(values: list[Any]) -> None:
    average, welford = nnx.metrics.Average(), nnx.metrics.Welford()
    for batch in values:
        average.update(values=jnp.asarray(batch))
        welford.update(values=jnp.asarray(batch))
    everything = np.concatenate([np.asarray(batch, np.float64) for batch in values])
    statistics = welford.compute()
    np.testing.assert_allclose(average.compute(), everything.mean(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(statistics.mean, everything.mean(), rtol=1e-4, atol=1e-4)
    deviation = everything.std()
    np.testing.assert_allclose(statistics.standard_deviation, deviation, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(
        statistics.standard_error_of_mean, deviation / len(everything) ** 0.5, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("dtype", ["bool", "int8", "int32", "float16", "bfloat16", "float32"])
def test_average_sums_every_dtype_in_float32(dtype: str) -> None:
    metric = nnx.metrics.Average()
    metric.update(values=jnp.ones((300, 300)).astype(dtype))  # overflows int8 and float16
    assert float(metric.total) == 90_000.0
    assert float(metric.compute()) == 1.0


def test_average_of_numbers_and_of_nothing() -> None:
    metric = nnx.metrics.Average("loss")
    assert np.isnan(metric.compute())
    for value in (1, 2.0, True, np.float64(4.0)):
        metric.update(loss=value, other="ignored")
    assert float(metric.compute()) == 2.0
    metric.reset()
    assert np.isnan(metric.compute())
    assert (metric.total.value.dtype, metric.count.value.dtype) == (jnp.float32, jnp.int32)


@pytest.mark.parametrize("mask_dtype", [bool, np.int32, np.float32])
def test_masked_values_do_not_count_even_if_they_are_nan(mask_dtype: Any) -> None:
    metric = nnx.metrics.Average()
    values = jnp.array([[1.0, jnp.nan], [3.0, 5.0]])
    metric.update(values=values, mask=jnp.array([[1, 0], [1, 1]]).astype(mask_dtype))
    assert float(metric.compute()) == 3.0


def test_mask_broadcasts_and_counts_each_value() -> None:
    metric = nnx.metrics.Average()
    metric.update(values=jnp.array([[1.0, 2.0], [30.0, 40.0]]), mask=jnp.array([[True], [False]]))
    assert float(metric.compute()) == 1.5


def test_mask_of_another_shape() -> None:
    with pytest.raises(ShapeError, match=r"mask has shape \(3,\).*shape \(2,\) of the values"):
        nnx.metrics.Average().update(values=jnp.ones(2), mask=jnp.ones(3))


def test_missing_argument_is_named() -> None:
    with pytest.raises(VariableError, match=r"Average\.update needs the keyword argument `loss`"):
        nnx.metrics.Average("loss").update(values=1.0)
    with pytest.raises(TypeError, match=r"Welford\.update needs the keyword argument `values`"):
        nnx.metrics.Welford().update(loss=1.0)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "bool"])
def test_accuracy_of_several_classes(dtype: str) -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(3, 5, 2)).astype(np.float32), rng.integers(0, 2, (3, 5))
    metric = nnx.metrics.Accuracy()
    for batch, label in zip(logits, labels, strict=True):
        metric.update(logits=jnp.asarray(batch), labels=jnp.asarray(label.astype(dtype)))
    expected = np.mean(logits.argmax(-1) == labels)
    np.testing.assert_allclose(metric.compute(), expected, rtol=1e-6)


def test_accuracy_of_two_classes_with_a_threshold_and_mask() -> None:
    metric = nnx.metrics.Accuracy(threshold=0.5)
    logits, labels = jnp.array([0.2, 0.5, 0.9, 0.1]), jnp.array([0, 1, 0, 1])
    metric.update(logits=logits, labels=labels)
    assert float(metric.compute()) == 0.5
    metric.reset()
    metric.update(logits=logits, labels=labels, mask=jnp.array([True, True, True, False]))
    np.testing.assert_allclose(metric.compute(), 2 / 3, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "logits", "labels", "error", "reason"),
    [
        ({}, (4, 3), (3,), ShapeError, r"\(4, 3\) and the labels \(3,\); for several classes"),
        ({}, (4,), (4,), ShapeError, r"for two classes of equal shapes write"),
        ({"threshold": 0.5}, (4, 1), (4,), ShapeError, "with a threshold both have the same"),
    ],
)
def test_shapes_that_do_not_fit(
    arguments: Any, logits: Any, labels: Any, error: Any, reason: str
) -> None:
    metric = nnx.metrics.Accuracy(**arguments)
    with pytest.raises(error, match=reason):
        metric.update(logits=jnp.ones(logits), labels=jnp.ones(labels, jnp.int32))


def test_labels_that_are_no_classes() -> None:
    with pytest.raises(VariableError, match=r"labels of an Accuracy are ints; got float32"):
        nnx.metrics.Accuracy().update(
            logits=jnp.ones((2, 2), jnp.float32), labels=jnp.ones(2, jnp.float32)
        )
    with pytest.raises(VariableError, match=r"threshold=\.\.\.\) takes a float or None; got 1"):
        nnx.metrics.Accuracy(threshold=1)  # pyright: ignore[reportArgumentType]


def test_multi_metric_in_a_jitted_step() -> None:
    metrics = nnx.MultiMetric(accuracy=nnx.metrics.Accuracy(), loss=nnx.metrics.Average("loss"))
    traces = 0

    @nnx.jit
    def step(metrics: nnx.MultiMetric, logits: Any, labels: Any, loss: Any) -> None:
        nonlocal traces
        traces += 1
        metrics.update(logits=logits, labels=labels, loss=loss)

    labels = jnp.array([0, 1, 1])
    step(metrics, jnp.eye(3), labels, jnp.array(1.0))
    step(metrics, jnp.eye(3), labels, jnp.array(3.0))
    result = metrics.compute()
    assert list(result) == ["accuracy", "loss"]
    np.testing.assert_allclose(result["accuracy"], 2 / 3, rtol=1e-6)
    assert float(result["loss"]) == 2.0
    metrics.reset()
    step(metrics, jnp.eye(3), labels, jnp.array(7.0))
    assert float(metrics.compute()["loss"]) == 7.0
    assert traces == 1
    assert set(map(type, nnx.to_flat_state(nnx.state(metrics)).leaves)) == {nnx.MetricState}


def test_multi_metric_with_one_mask_or_one_for_each() -> None:
    metrics = nnx.MultiMetric(a=nnx.metrics.Average("x"), b=nnx.metrics.Average("x"))
    metrics.update(x=jnp.array([1.0, 3.0]), mask={"b": jnp.array([False, True])})
    assert {name: float(value) for name, value in metrics.compute().items()} == {"a": 2.0, "b": 3.0}
    metrics.reset()
    metrics.update(x=jnp.array([1.0, 3.0]), mask=jnp.array([True, False]))
    assert {name: float(value) for name, value in metrics.compute().items()} == {"a": 1.0, "b": 1.0}
    with pytest.raises(PathError, match=r"names the metrics \['c'\], which are not among"):
        metrics.update(x=jnp.ones(2), mask={"c": jnp.ones(2)})


@pytest.mark.parametrize("name", ["reset", "update", "compute", "split"])
def test_multi_metric_refuses_names_of_its_methods(name: str) -> None:
    with pytest.raises(VariableError, match=f"under the name '{name}', which is a method"):
        nnx.MultiMetric(**{name: nnx.metrics.Average()})


def test_multi_metric_refuses_what_is_no_metric() -> None:
    with pytest.raises(VariableError, match=r"\(loss=\.\.\.\) takes a Metric; got a float"):
        nnx.MultiMetric(loss=1.0)


def test_metric_must_be_complete() -> None:
    class Half(nnx.Metric):
        def reset(self) -> None: ...

    with pytest.raises(TypeError, match="abstract"):
        Half()


def test_metrics_split_merge_and_are_pytrees() -> None:
    metric = nnx.metrics.Average()
    metric.update(values=jnp.array([2.0, 4.0]))
    graphdef, state = metric.split()
    assert float(nnx.merge(graphdef, state).compute()) == 3.0
    doubled = jax.tree.map(lambda x: x * 2, metric)
    assert float(doubled.total) == 12.0
    assert float(metric.total) == 6.0


def test_same_as_flax() -> None:
    flax = pytest.importorskip("flax.nnx")
    results = []
    for nn in (flax, nnx):
        generator = np.random.default_rng(1)
        metrics = nn.MultiMetric(
            accuracy=nn.metrics.Accuracy(), loss=nn.metrics.Average(), spread=nn.metrics.Welford()
        )
        binary = nn.metrics.Accuracy(threshold=0.3)
        for _ in range(3):
            logits = jnp.asarray(generator.normal(size=(6, 4)), jnp.float32)
            labels = jnp.asarray(generator.integers(0, 4, 6), jnp.int32)
            values = jnp.asarray(generator.normal(size=7), jnp.float32)
            with jax.numpy_dtype_promotion("standard"):
                metrics.update(logits=logits, labels=labels, values=values)
                binary.update(logits=logits[:, 0], labels=labels)
        with jax.numpy_dtype_promotion("standard"):
            result = metrics.compute()
            results.append(
                {
                    "accuracy": result["accuracy"],
                    "loss": result["loss"],
                    **{
                        name: getattr(result["spread"], name)
                        for name in ("mean", "standard_error_of_mean", "standard_deviation")
                    },
                    "binary": binary.compute(),
                }
            )
    expected, got = results
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, err_msg=name)
