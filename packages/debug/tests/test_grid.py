"""The grid: every tool under every transform, against the computation by hand."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import grid
import jax.numpy as jnp
import numpy as np
import pytest
from debug_models import Probed, arrays, nothing_sown

import moduli as nnx
from moduli import errors
from moduli_debug import capture, capture_grads, check_finite, intervene
from moduli_debug.errors import NonFiniteError

BATCH, OTHER = arrays(5, (2, 5, 3), (2, 5, 3))
PAGE = pathlib.Path(__file__).parents[3] / "docs" / "debugging.md"
UNSTACKED = "while_loop"
CLOSE: dict[str, Any] = {"rtol": 2e-4, "atol": 1e-5}

each_run = pytest.mark.parametrize("name", grid.RUNS)
stacks = [name for name in grid.RUNS if UNSTACKED not in name]
each_run_that_stacks = pytest.mark.parametrize("name", stacks)


def checked(model: Probed, call: Any) -> Any:
    """Calls, and sees to it that the model is as before."""
    before = (nnx.graphdef(model), [id(leaf) for leaf in nnx.state(model).flat_state().leaves])
    classes = [dict(vars(type(module))) for _, module in nnx.iter_modules(model)]
    try:
        return call()
    finally:
        after = (nnx.graphdef(model), [id(leaf) for leaf in nnx.state(model).flat_state().leaves])
        assert before == after
        assert classes == [dict(vars(type(module))) for _, module in nnx.iter_modules(model)]


@each_run_that_stacks
def test_sow(name: str) -> None:
    model = Probed()
    run = capture(grid.RUNS[name], nnx.Intermediate)
    value, seen = checked(model, lambda: run(model, BATCH))
    expected = grid.reference(model, BATCH)
    np.testing.assert_allclose(value, expected["loss"], rtol=1e-4)
    np.testing.assert_allclose(grid.in_a_row(seen.hidden.value), expected["hidden"], **CLOSE)


@each_run_that_stacks
def test_capture(name: str) -> None:
    model = Probed()
    run = capture(grid.RUNS[name], outputs="first")
    value, seen = checked(model, lambda: run(model, BATCH))
    expected = grid.reference(model, BATCH)
    np.testing.assert_allclose(value, expected["loss"], rtol=1e-4)
    outputs = seen.first.outputs
    np.testing.assert_allclose(grid.in_a_row(outputs.value), expected["first"], **CLOSE)
    source = outputs.source
    assert (source.plugin, source.path, source.name) == ("capture", ("first",), "outputs")
    for value, axes in zip(outputs.value, source.axes, strict=True):
        assert value.shape == (*[size for _, size in axes], 5, 4)


@each_run_that_stacks
def test_perturb(name: str) -> None:
    model = Probed()
    run = capture_grads(grid.RUNS[name])
    value, seen, grads = checked(model, lambda: run(model, BATCH))
    expected = grid.reference(model, BATCH)
    np.testing.assert_allclose(value, expected["loss"], rtol=1e-4)
    np.testing.assert_allclose(grid.in_a_row(seen.hidden_grad.value), expected["hidden"], **CLOSE)
    taken = [
        gradient
        for gradient, activation in zip(
            grads.hidden_grad.value, seen.hidden_grad.value, strict=True
        )
        if not np.isnan(activation).any()
    ]
    np.testing.assert_allclose(grid.in_a_row(taken), expected["gradient"], **CLOSE)


@pytest.mark.parametrize("name", ["jit", "vmap", "scan", "cond", "jit(grad(scan(vmap(remat))))"])
def test_perturbations_of_an_earlier_capture(name: str) -> None:
    model, run = Probed(), grid.RUNS[name]
    _, zeros = checked(model, lambda: capture(run, nnx.Perturbation)(model, BATCH))
    given = nnx.grad(lambda model, zeros: capture(run, init=zeros)(model, BATCH), argnums=1)
    grads = checked(model, lambda: given(model, zeros))
    gradient = np.asarray(grads.hidden_grad.value).reshape(-1, 5, 4)
    expected = grid.reference(model, BATCH)["gradient"]
    if len(gradient) == 1:  # both calls are perturbed by one Variable
        expected = expected.sum(axis=0, keepdims=True)
    np.testing.assert_allclose(gradient, expected, **CLOSE)


@each_run
def test_intervene(name: str) -> None:
    model = Probed()
    run = intervene(grid.RUNS[name], {"first": lambda value: 2 * value})
    with nnx.using(nothing_sown):
        value = checked(model, lambda: run(model, BATCH))
    np.testing.assert_allclose(value, grid.reference(model, BATCH, 2.0)["loss"], rtol=1e-4)


class Logarithm(nnx.Module):
    """Makes NaN of everything."""

    def __call__(self, x: Any) -> Any:
        return jnp.log(-jnp.abs(x))


@each_run
def test_finite_check(name: str) -> None:
    model, faulty = Probed(), Probed()
    faulty.second = Logarithm()
    run = check_finite(grid.RUNS[name])
    with nnx.using(nothing_sown):
        value = checked(model, lambda: run(model, BATCH))
        np.testing.assert_allclose(value, grid.reference(model, BATCH)["loss"], rtol=1e-4)
        with pytest.raises(NonFiniteError) as caught:
            checked(faulty, lambda: run(faulty, BATCH))
    error = caught.value
    assert (error.path, error.module_type, error.direction) == (("second",), Logarithm, "forward")
    assert (error.operation, error.number) == ("log", 0)


@each_run_that_stacks
def test_patching_everything_from_another_run_gives_its_result(name: str) -> None:
    model, run = Probed(), grid.RUNS[name]
    with nnx.using(nothing_sown):
        _, other = checked(model, lambda: capture(run, outputs="first")(model, OTHER))
        value = checked(model, lambda: intervene(run, {"first": other})(model, BATCH))
    np.testing.assert_allclose(value, grid.reference(model, OTHER)["loss"], rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in grid.RUNS if UNSTACKED in name])
@pytest.mark.parametrize(
    "tool",
    [
        lambda run: capture(run, nnx.Intermediate),
        lambda run: capture(run, outputs="first"),
        lambda run: capture_grads(run),
        lambda run: capture_grads(run, "first"),
    ],
    ids=["sow", "capture", "perturb", "capture_grads"],
)
def test_what_cannot_be_stacked_is_a_named_error(name: str, tool: Any) -> None:
    model = Probed()
    with pytest.raises(
        errors.StructureError, match=r"while_loop: what is recorded of .*use moduli\.scan"
    ):
        checked(model, lambda: tool(grid.RUNS[name])(model, BATCH))


def test_the_page_shows_the_grid() -> None:
    rows = re.findall(r"^\| `([\w()]+)` \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    shown = {name: [cell.strip() for cell in cells.split(" | ")] for name, cells in rows}
    assert list(shown) == list(grid.RUNS)
    for name, cells in shown.items():
        assert len(cells) == 5
        cannot = [cell == "error" for cell in cells]
        assert cannot == ([True, True, True, False, False] if UNSTACKED in name else [False] * 5)
