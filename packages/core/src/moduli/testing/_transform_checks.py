"""The kit for transforms: what a function does to modules reaches the caller's modules."""

from __future__ import annotations

import dataclasses
import unittest
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import moduli
from moduli._base.hook_markers import hookimpl
from moduli._graph.split import clone
from moduli._module.module import Module
from moduli._variable.kinds import BatchStat, Param
from moduli.testing._compare import assert_equal_graphs, assert_unchanged
from moduli.testing._kit import Case, Check, run_checks
from moduli.testing._layer_checks import assert_close
from moduli.testing._left_behind import assert_leaves_nothing
from moduli.testing._threads import in_threads

__all__ = ["TransformCase", "check_transform"]


@dataclasses.dataclass(frozen=True, eq=False, init=False)
class TransformCase(Case):
    """A transform for :func:`check_transform` and :func:`parametrize_with_checks`.

    It takes the arguments of :func:`check_transform`.
    """

    transform: Callable[..., Any]
    reference: Callable[..., Any]
    keeps_programs: bool

    def __init__(
        self,
        transform: Callable[..., Any],
        reference: Callable[..., Any] | None = None,
        *,
        keeps_programs: bool = False,
        name: str = "",
        skip: Mapping[str, str] | None = None,
    ) -> None:
        reference = reference or (lambda f: f)
        values = {"transform": transform, "reference": reference, "keeps_programs": keeps_programs}
        self._hold(name=name, skip=skip, **values)

    def title(self) -> str:
        """Returns the transform's name."""
        return self.name or getattr(self.transform, "__name__", "transform")

    def checks(self) -> list[Check]:
        """Returns the checks."""
        return list(CHECKS)


def check_transform(
    transform: Callable[..., Any],
    reference: Callable[..., Any] | None = None,
    *,
    keeps_programs: bool = False,
    name: str = "",
    skip: Mapping[str, str] | None = None,
) -> None:
    """Checks that a transform treats modules as moduli's own do.

    Its results are those of the reference; what the function writes reaches the caller's objects,
    through shared references too; a function that raises has changed nothing; it takes methods,
    nests in jit and grad, lets plugins see calls, keeps no traced value, and runs in threads.

    Args:
      transform: takes a function of a model and an array, which returns a scalar, and returns a
        function of the same arguments.
      reference: the same for functions of arrays alone, such as JAX's own transform; by default
        the function as it is.
      keeps_programs: whether a second call of the same function traces nothing.
      name: how reports call it.
      skip: checks that do not fit it, and why.

    Raises:
      AssertionError: names every check that fails, and what to do.

    Example:
      >>> import jax, moduli as nnx
      >>> from moduli.testing import check_transform
      >>> check_transform(nnx.jit, jax.jit, keeps_programs=True)
    """
    options: dict[str, Any] = {"keeps_programs": keeps_programs, "name": name, "skip": skip}
    run_checks(TransformCase(transform, reference, **options))


class Counting(Module):
    """A model with a parameter in two places, and a count of its calls."""

    def __init__(self) -> None:
        self.w = Param(jnp.array(1.5))
        self.tied = [self.w]
        self.calls = BatchStat(jnp.zeros(()))

    def __call__(self, x: Any) -> jax.Array:
        self.calls.value = self.calls.value + 1
        return jnp.sin(self.w.value * x * self.tied[0].value).sum()


def _pure(w: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.sin(w * x * w).sum()


X = np.array([0.5, -1.0, 2.0])  # of NumPy, since an array of JAX starts its backend at import


def _call(model: Any, x: jax.Array) -> jax.Array:
    return model(x)


def gives_the_result(case: TransformCase) -> None:
    """Its result is that of the reference, for the function of the arrays."""
    expected = case.reference(_pure)(jnp.array(1.5), X)
    _assert_same(case.transform(_call)(Counting(), X), expected, "with modules and without")


def writes_reach_the_caller(case: TransformCase) -> None:
    """What the function writes stands in the caller's Variables, which stay the same objects."""
    model, eager = Counting(), Counting()
    before = (model.w, model.calls)
    run = case.transform(_call)
    for _ in range(2):
        run(model, X)
        eager(X)
    if model.w is not before[0] or model.calls is not before[1]:
        raise AssertionError("the caller's Variables are replaced; write into them: `call.apply`")
    if float(model.calls.value) != float(eager.calls.value):
        raise AssertionError(
            f"a count of calls is {float(model.calls.value)} after two calls, not "
            f"{float(eager.calls.value)}; apply what the function did: `call.apply(outputs)`"
        )


def keeps_shared_references(case: TransformCase) -> None:
    """A Variable in two places is one Variable inside too, and is written once."""
    model = Counting()

    def write(model: Any, x: jax.Array) -> jax.Array:
        model.w.value = 2 * model.w.value
        return model.tied[0].value * x.sum()

    with_modules = case.transform(write)(model, X)
    if model.w is not model.tied[0]:
        raise AssertionError("a Variable in two places is two after the call")
    if float(model.w.value) != 3.0:
        raise AssertionError(f"a Variable in two places is {float(model.w.value)}, not 3.0")
    expected = case.reference(lambda w, x: 2 * w * x.sum())(jnp.array(1.5), X)
    _assert_same(with_modules, expected, "with a Variable in two places and by arrays")


def changes_nothing_on_an_exception(case: TransformCase) -> None:
    """A function that raises has changed nothing, and its exception reaches the caller."""
    model = Counting()

    def fail(model: Any, x: jax.Array) -> jax.Array:
        model.calls.value = model.calls.value + 100
        model.other = Param(x)
        raise _Stop

    try:
        with assert_unchanged(model):
            try:
                case.transform(fail)(model, X)
            except _Stop:
                pass
            else:
                raise AssertionError("the function's exception does not reach the caller")
    except AssertionError as error:
        raise AssertionError(f"a function that raises has changed something: {error}") from error
    case.transform(_call)(model, X)  # and it works again


def takes_methods(case: TransformCase) -> None:
    """A bound method and a module itself are functions of that module."""
    model = Counting()
    of_both = case.reference(_pure)(jnp.array(1.5), X)
    of_x = case.reference(lambda x: _pure(jnp.array(1.5), x))(X)
    _assert_same(case.transform(Counting.__call__)(model, X), of_both, "of a method and a function")
    for bound in (model.__call__, model):
        _assert_same(case.transform(bound)(X), of_x, "of a bound method and a function")
    if float(model.calls.value) != 3.0:
        raise AssertionError("what a method writes does not reach its module: lowlevel.Function")


def nests_in_jit(case: TransformCase) -> None:
    """Inside of ``nnx.jit`` it does what it does outside."""
    model, other = Counting(), Counting()
    expected = case.transform(_call)(other, X)
    for _ in range(2):
        found = moduli.jit(lambda m, x: case.transform(_call)(m, x))(clone(model), X)
        assert_close(found, expected, "the results inside of jit and outside")
    moduli.jit(lambda m, x: case.transform(_call)(m, x))(model, X)
    assert_equal_graphs(model, other, rtol=1e-5)


def nests_in_grad(case: TransformCase) -> None:
    """``nnx.grad`` goes through it."""

    def loss(model: Any, x: Any) -> jax.Array:
        out = case.transform(_call)(model, x)
        return sum((jnp.sum(leaf) for leaf in jax.tree.leaves(out)), jnp.zeros(()))

    def pure(w: jax.Array, x: Any) -> jax.Array:
        out = case.reference(_pure)(w, x)
        return sum((jnp.sum(leaf) for leaf in jax.tree.leaves(out)), jnp.zeros(()))

    grads = jax.tree.leaves(moduli.grad(loss)(Counting(), X))
    assert_close(grads, [jax.grad(pure)(jnp.array(1.5), X)], "gradients")


def lets_plugins_see_calls(case: TransformCase) -> None:
    """A plugin on calls sees those inside, also after the function ran without it."""
    run, model = case.transform(_call), Counting()
    run(model, X)
    watch = _Watch()
    with moduli.using(watch):
        run(model, X)
    if not watch.seen:
        raise AssertionError(
            "a plugin that is turned on after the first call sees nothing: make "
            "`moduli.plugins.active().token` part of the key of kept programs"
        )


def traces_once(case: TransformCase) -> None:
    """If it keeps programs, a second call traces nothing, for another model of the structure."""
    if not case.keeps_programs:
        raise unittest.SkipTest("it traces at each call")
    traces: list[int] = []

    def count(model: Any, x: jax.Array) -> jax.Array:
        traces.append(1)
        return model(x)

    run = case.transform(count)
    run(Counting(), X)
    first = len(traces)
    run(Counting(), X + 1)
    if len(traces) > first:
        raise AssertionError("a second call traces again; keep a function for each signature")


def leaves_nothing(case: TransformCase) -> None:
    """No traced value outlives it."""

    def run() -> None:
        case.transform(lambda m, x: m(x))(Counting(), X)

    assert_leaves_nothing(run, [], "the transform")


def runs_in_threads(case: TransformCase) -> None:
    """In several threads at once it gives what it gives alone."""
    run = case.transform(_call)
    expected = [case.reference(_pure)(jnp.array(1.5), X * n) for n in range(4)]
    found: list[Any] = [None] * 4

    def work(number: int) -> None:
        found[number] = [run(Counting(), X * number) for _ in range(3)]

    in_threads(work, 4)
    for number, outs in enumerate(found):
        for out in outs:
            _assert_same(out, expected[number], "in threads and alone")


CHECKS = (
    *(gives_the_result, writes_reach_the_caller, keeps_shared_references),
    *(changes_nothing_on_an_exception, takes_methods, nests_in_jit, nests_in_grad),
    *(lets_plugins_see_calls, traces_once, leaves_nothing, runs_in_threads),
)


def _assert_same(found: Any, expected: Any, what: str) -> None:
    """Compares leaves: gradients come as a State where JAX gives an array."""
    assert_close(jax.tree.leaves(found), jax.tree.leaves(expected), f"the results {what}")


class _Stop(Exception):
    pass


class _Watch:
    def __init__(self) -> None:
        self.seen: list[str] = []

    @hookimpl
    def moduli_after_call(self, module: Any) -> None:
        """Notes the class that was called."""
        self.seen.append(type(module).__name__)
