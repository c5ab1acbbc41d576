"""The package is found through entry points, names its kinds, and is light until it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import moduli as nnx
import moduli_train


@pytest.mark.parametrize(
    "name",
    [
        "Batches",
        "EMA",
        "LossScale",
        "Metric",
        "MetricState",
        "ModelAndOptimizer",
        "MultiMetric",
        "OptArray",
        "OptState",
        "OptVariable",
        "Optimizer",
        "Run",
        "TrainState",
        "accumulate",
        "fit",
        "metrics",
        "of_model",
    ],
)
def test_public_names_are_reached_through_moduli(name: str) -> None:
    assert getattr(nnx, name) is getattr(moduli_train, name)
    assert name in dir(nnx)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("opt_state", "OptState"),
        ("opt_array", "OptArray"),
        ("opt_variable", "OptVariable"),
        ("metric_state", "MetricState"),
    ],
)
def test_kinds_have_names(name: str, kind: str) -> None:
    assert nnx.variable_type_from_name(name) is getattr(moduli_train, kind)
    assert nnx.variable_name_from_type(getattr(moduli_train, kind)) == name


def test_plugin_does_not_import_optax() -> None:
    program = (
        "import sys, moduli\n"
        "moduli.variable_type_from_name('opt_state')\n"
        "assert 'moduli_train._plugin' in sys.modules\n"
        "assert 'optax' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
