"""The kit for layers: what every layer does, whatever it computes."""

from __future__ import annotations

import copy
import dataclasses
import os
import pickle
import tempfile
import unittest
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import moduli
from moduli._base.compat import is_key_array
from moduli._graph.split import clone, graphdef, merge, split, state
from moduli._graph.walk import find_duplicates, iter_graph
from moduli._module.module import Module
from moduli._rngs.streams import Rngs
from moduli._variable.kinds import Param
from moduli.testing._compare import assert_equal_graphs, assert_unchanged
from moduli.testing._kit import Case, Check, run_checks
from moduli.testing._left_behind import assert_leaves_nothing, modules_of
from moduli.testing._threads import in_threads

__all__ = ["LayerCase", "assert_close", "check_layer"]

_THREADS = 4


@dataclasses.dataclass(frozen=True, eq=False, init=False)
class LayerCase(Case):
    """A layer for :func:`check_layer` and :func:`parametrize_with_checks`.

    It takes the arguments of :func:`check_layer`.
    """

    build: Callable[..., Any]
    inputs: tuple[Any, ...]
    kwargs: dict[str, Any]
    rtol: float
    atol: float

    def __init__(
        self,
        build: Any,
        *inputs: Any,
        kwargs: dict[str, Any] | None = None,
        name: str = "",
        skip: dict[str, str] | None = None,
        rtol: float = 1e-4,
        atol: float = 1e-5,
    ) -> None:
        values = {"build": build, "inputs": inputs, "kwargs": kwargs or {}}
        self._hold(name=name, skip=skip, rtol=rtol, atol=atol, **values)

    def make(self, seed: int = 0) -> Any:
        """Returns a new layer."""
        if isinstance(self.build, Module):
            return clone(self.build)
        return self.build(*([Rngs(seed)] if _takes_rngs(self.build) else []))

    def call(self, model: Any, *inputs: Any) -> Any:
        """Calls the layer."""
        return model(*inputs, **self.kwargs)

    def loss(self, model: Any, *inputs: Any) -> Any:
        """Returns the sum of the floating-point outputs' cosines: no gradient of it is trivial."""
        leaves = jax.tree.leaves(self.call(model, *inputs))
        sums = [jnp.cos(x).sum().astype(float) for x in leaves if _is_floating(x)]
        return sum(sums[1:], sums[0]) if sums else jnp.zeros(())

    def close(self, actual: Any, expected: Any, what: str) -> None:
        """Asserts that two computations agree."""
        assert_close(actual, expected, what, rtol=self.rtol, atol=self.atol)

    def equal(self, actual: Any, expected: Any) -> None:
        """Asserts that two models agree."""
        assert_equal_graphs(actual, expected, rtol=self.rtol, atol=self.atol)

    def title(self) -> str:
        """Returns the layer's name."""
        if self.name:
            return self.name
        made = self.build if isinstance(self.build, Module) else _made(self)
        return type(made).__name__

    def checks(self) -> list[Check]:
        """Returns the checks."""
        return list(CHECKS)


def check_layer(
    build: Any,
    *inputs: Any,
    kwargs: dict[str, Any] | None = None,
    name: str = "",
    skip: dict[str, str] | None = None,
    rtol: float = 1e-4,
    atol: float = 1e-5,
) -> None:
    """Checks that a layer works wherever a model may put it.

    It is built twice alike, without arrays, called eagerly and under jit, vmap, grad, scan and
    remat; copied, pickled, split and merged, saved and loaded; switched between training and
    evaluation; called in threads. It may not compile again for what is alike, nor leave anything
    behind but what its Variables hold.

    Args:
      build: makes the layer, from an ``Rngs`` or from nothing; or a layer, which is copied.
      *inputs: the positional inputs of a call.
      kwargs: keyword inputs.
      name: how reports call it; by default the layer's class.
      skip: checks that do not fit it, and why.
      rtol: relative tolerance where one computation is done in two ways.
      atol: absolute tolerance there.

    Raises:
      AssertionError: names every check that fails, and what to do.

    Example:
      >>> import jax.numpy as jnp, moduli as nnx
      >>> from moduli.testing import check_layer
      >>> check_layer(lambda rngs: nnx.Linear(2, 3, rngs=rngs), jnp.ones((4, 2)))
    """
    options: dict[str, Any] = {"rtol": rtol, "atol": atol}
    run_checks(LayerCase(build, *inputs, kwargs=kwargs, name=name, skip=skip, **options))


def builds_alike(case: LayerCase) -> None:
    """Two layers from one seed are equal, and share nothing."""
    one, other = case.make(), case.make()
    assert_equal_graphs(one, other)
    if isinstance(case.build, Module):
        return
    shared = {id(x) for _, x in iter_graph(one)} & {id(x) for _, x in iter_graph(other)}
    nodes = [x for _, x in iter_graph(one) if id(x) in shared and isinstance(x, _NODES)]
    if nodes:
        raise AssertionError(
            f"two layers share one {type(nodes[0]).__name__}; make it in `__init__`, not in the "
            "class or as a default argument"
        )


def builds_without_arrays(case: LayerCase) -> None:
    """``nnx.eval_shape`` gives the structure, shapes and dtypes of layer and outputs."""
    model = case.make()
    abstract = moduli.eval_shape(case.make)
    if graphdef(abstract) is not graphdef(model):
        raise AssertionError(
            "`moduli.eval_shape(build)` has another structure than the layer:\n"
            f"{graphdef(abstract)!r}\n{graphdef(model)!r}"
        )
    _assert_alike(jax.tree.leaves(state(abstract)), jax.tree.leaves(state(model)), "the layer")
    out = moduli.eval_shape(lambda m, x: case.call(m, *x), model, case.inputs)
    made = jax.tree.leaves(case.call(case.make(), *case.inputs))
    _assert_alike(jax.tree.leaves(out), made, "the output")


def returns_arrays(case: LayerCase) -> None:
    """A call returns JAX arrays, in tuples, lists and dicts."""
    for leaf in jax.tree.leaves(case.call(case.make(), *case.inputs)):
        if not isinstance(leaf, jax.Array | moduli.Variable):
            raise AssertionError(
                f"a call returns a {type(leaf).__name__}, {leaf!r}, which is no JAX array; "
                "compute with jax.numpy"
            )


def jits(case: LayerCase) -> None:
    """A call under ``nnx.jit`` gives the same output, and writes the same values."""
    model = case.make()
    eager = clone(model)
    out = moduli.jit(case.call)(model, *case.inputs)
    case.close(out, case.call(eager, *case.inputs), "outputs under jit and without it")
    case.equal(model, eager)


def vmaps(case: LayerCase) -> None:
    """``nnx.vmap`` over layers and inputs gives what each layer gives by itself."""
    models = [case.make(seed) for seed in (0, 1)]
    stacked = _stacked(models)
    inputs = jax.tree.map(lambda x: jnp.stack([jnp.asarray(x)] * 2), case.inputs)
    out = moduli.vmap(case.call)(stacked, *inputs)
    parts = [case.call(model, *case.inputs) for model in models]
    expected = jax.tree.map(lambda *x: jnp.stack(x), *parts)
    case.close(out, expected, "outputs under vmap and of each layer")
    case.equal(stacked, _stacked(models))


def grads(case: LayerCase) -> None:
    """``nnx.grad`` gives finite gradients, those of ``jax.grad`` of the split layer."""
    model = case.make()
    definition, params, rest = split(model, Param, ...)
    numbers = [n for n, x in enumerate(case.inputs) if all(map(_is_floating, jax.tree.leaves(x)))]
    if not jax.tree.leaves(params) and not numbers:
        raise unittest.SkipTest("it has neither parameters nor floating-point inputs")

    @jax.jit  # what the layer writes belongs to this trace
    def pure(rest: Any, params: Any, *inputs: Any) -> Any:
        return case.loss(merge(definition, params, rest), *inputs)

    argnums = tuple(n + 1 for n in numbers)
    if jax.tree.leaves(params):
        argnums = (0, *argnums)
    expected = jax.grad(pure, tuple(n + 1 for n in argnums))(rest, params, *case.inputs)
    found = moduli.grad(case.loss, argnums=argnums)(clone(model), *case.inputs)
    case.close(_leaves(found), _leaves(expected), "gradients of moduli.grad and jax.grad")
    for leaf in _leaves(found):
        if not bool(jnp.isfinite(leaf).all()):
            raise AssertionError("a gradient is not finite; use `jnp.where` on the inputs, too")


def scans(case: LayerCase) -> None:
    """The layer as the carry of ``nnx.scan`` gives what a loop gives."""
    model = case.make()
    looped = clone(model)
    inputs = jax.tree.map(lambda x: jnp.stack([jnp.asarray(x)] * 2), case.inputs)
    carry = moduli.Carry
    run = moduli.scan(lambda m, x: (m, case.call(m, *x)), in_axes=(carry, 0), out_axes=(carry, 0))
    _, out = run(model, inputs)
    parts = [case.call(looped, *case.inputs) for _ in range(2)]
    case.close(out, jax.tree.map(lambda *x: jnp.stack(x), *parts), "outputs in scan and in a loop")
    case.equal(model, looped)


def remats(case: LayerCase) -> None:
    """``nnx.remat`` changes neither outputs, nor gradients, nor what is written."""
    model = case.make()
    plain = clone(model)

    def loss(model: Any, *inputs: Any) -> Any:
        return moduli.remat(case.loss)(model, *inputs)

    if not jax.tree.leaves(_params(model)):
        case.close(loss(model, *case.inputs), case.loss(plain, *case.inputs), "outputs")
    else:
        found = moduli.grad(loss)(model, *case.inputs)
        expected = moduli.grad(case.loss)(plain, *case.inputs)
        case.close(_leaves(found), _leaves(expected), "gradients with remat and without it")
    case.equal(model, plain)


def is_a_pytree(case: LayerCase) -> None:
    """``jax.tree.flatten`` and back give the same layer, and so does ``jax.tree.map``."""
    model = case.make()
    if find_duplicates(model):
        raise unittest.SkipTest("parts of it stand in two places, which JAX's trees cannot say")
    leaves, definition = jax.tree.flatten(model)
    if any(leaf is model for leaf in leaves):
        raise AssertionError("JAX takes the layer for one leaf; leave out `pytree=False`")
    assert_equal_graphs(jax.tree.unflatten(definition, leaves), model)
    assert_equal_graphs(jax.tree.map(lambda x: x, model), model)


def splits_and_merges(case: LayerCase) -> None:
    """``nnx.merge`` of ``nnx.split`` is the same layer, also after a call; looking changes none."""
    for model in (case.make(), _called(case)):
        with assert_unchanged(model):
            definition, values = split(model)
            repr(model)
            state(model)
        expected = case.call(clone(model), *case.inputs)
        merged = merge(definition, values)  # it has the model's own Variables
        assert_equal_graphs(merged, model)
        case.close(case.call(merged, *case.inputs), expected, "outputs after split and merge")


def copies(case: LayerCase) -> None:
    """``copy.deepcopy`` and ``nnx.clone`` give an equal layer that shares no Variable with it."""
    for duplicate in (copy.deepcopy, clone):
        model = _called(case)
        other = duplicate(model)
        assert_equal_graphs(other, model)
        mine = {id(x) for _, x in iter_graph(model) if isinstance(x, moduli.Variable)}
        if any(id(x) in mine for _, x in iter_graph(other)):
            raise AssertionError(f"{duplicate.__name__} of the layer shares a Variable with it")
        kept = clone(model)
        case.call(other, *case.inputs)
        assert_equal_graphs(model, kept)


def pickles(case: LayerCase) -> None:
    """``pickle`` gives an equal layer with the same outputs."""
    model = _called(case)
    other = pickle.loads(pickle.dumps(model))
    assert_equal_graphs(other, model)
    out = case.call(other, *case.inputs)
    case.close(out, case.call(model, *case.inputs), "outputs of a layer and of its pickled copy")


def saves_and_loads(case: LayerCase) -> None:
    """``nnx.save`` and ``nnx.load`` into a layer of another seed give an equal layer."""
    if not hasattr(moduli, "save"):
        raise unittest.SkipTest("moduli-interop, which has checkpoints, is not installed")
    model, other = _called(case), case.make(1)
    _settled(case, other)
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "layer.safetensors")
        moduli.save(file, model)
        moduli.load(file, other)
    assert_equal_graphs(other, model)
    out = case.call(other, *case.inputs)
    case.close(out, case.call(model, *case.inputs), "outputs of a layer and of the loaded one")


def switches_modes(case: LayerCase) -> None:
    """``eval()`` and ``train()`` set the same whenever they are called, and go both ways."""
    model = case.make()
    model.train()
    training = graphdef(model)
    model.eval()
    evaluating = graphdef(model)
    model.eval()
    if graphdef(model) is not evaluating:
        raise AssertionError("`eval()` a second time changes the layer again")
    case.close(
        moduli.jit(case.call)(clone(model), *case.inputs),
        case.call(clone(model), *case.inputs),
        "outputs in evaluation under jit and without it",
    )
    model.train()
    if graphdef(model) is not training:
        raise AssertionError(
            "`train()` after `eval()` does not give the layer back as it was; the hook "
            "moduli_mode_attributes must give a value for both modes"
        )


def traces_once(case: LayerCase) -> None:
    """A second call under jit, also of another layer of this structure, traces nothing again."""
    traces: list[int] = []

    @moduli.jit
    def run(model: Any, inputs: Any) -> Any:
        traces.append(1)
        return case.call(model, *inputs)

    model = _settled(case, case.make())
    run(model, case.inputs)
    count = len(traces)
    run(model, case.inputs)
    if len(traces) > count:
        raise AssertionError(
            "a second call of the same layer compiles again: the first one changed its structure. "
            "What changes from call to call belongs into a Variable, not into an attribute"
        )
    run(_settled(case, case.make(1)), case.inputs)
    if len(traces) > count:
        raise AssertionError(
            "a layer of another seed compiles again: an attribute has no equal of its own, such as "
            "a lambda made in `__init__` or an object without `__eq__`"
        )


def leaves_nothing(case: LayerCase) -> None:
    """No traced value outlives a transform, and no global or class attribute grows."""
    model = _settled(case, case.make())

    def run() -> None:
        # made anew, so that it is traced each time
        moduli.grad(lambda m, x: case.loss(m, *x))(model, case.inputs)
        moduli.jit(lambda m, x: case.call(m, *x))(model, case.inputs)

    classes = {type(x) for _, x in iter_graph(model) if isinstance(x, _NODES)}
    strangers = [c for c in classes if not c.__module__.startswith("moduli.")]
    assert_leaves_nothing(run, modules_of(strangers), "the layer")


def runs_in_threads(case: LayerCase) -> None:
    """Layers that are called at once in several threads give what each gives by itself."""
    jitted = moduli.jit(case.call)
    inputs = [jax.tree.map(lambda x, n=n: _scaled(x, n), case.inputs) for n in range(_THREADS)]
    expected = [case.call(case.make(n), *inputs[n]) for n in range(_THREADS)]
    models = [[case.make(n) for _ in range(3)] for n in range(_THREADS)]
    found: list[list[Any]] = [[] for _ in range(_THREADS)]

    def work(number: int) -> None:
        for turn, model in enumerate(models[number]):
            run = jitted if turn == 2 else case.call
            found[number].append(run(model, *inputs[number]))

    in_threads(work, _THREADS)
    for number, outputs in enumerate(found):
        for out in outputs:
            case.close(out, expected[number], "outputs in threads and alone")


CHECKS = (
    *(builds_alike, builds_without_arrays, returns_arrays, jits, vmaps, grads, scans, remats),
    *(is_a_pytree, splits_and_merges, copies, pickles, saves_and_loads, switches_modes),
    *(traces_once, leaves_nothing, runs_in_threads),
)

_NODES = (moduli.Pytree, moduli.Variable)


def assert_close(
    actual: Any, expected: Any, what: str, *, rtol: float = 1e-4, atol: float = 1e-5
) -> None:
    """Asserts that two trees of arrays have one structure, and equal dtypes and values.

    Raises:
      AssertionError: begins with what they are.
    """
    if jax.tree.structure(actual) != jax.tree.structure(expected):
        raise AssertionError(f"{what} differ in structure: {actual!r}, {expected!r}")
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        if is_key_array(x) and is_key_array(y):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        x, y = jnp.asarray(x), jnp.asarray(y)
        if x.dtype != y.dtype or x.shape != y.shape:
            raise AssertionError(f"{what} differ: {x.dtype}{x.shape}, {y.dtype}{y.shape}")
        loose = 1.0
        if jnp.issubdtype(x.dtype, jnp.inexact):
            loose = max(1.0, float(jnp.finfo(x.dtype).eps) / float(jnp.finfo(jnp.float32).eps))
        wide = np.complex128 if jnp.iscomplexobj(x) else np.float64
        np.testing.assert_allclose(
            np.asarray(x).astype(wide),
            np.asarray(y).astype(wide),
            rtol=rtol * loose,
            atol=atol * loose,
            err_msg=f"{what} differ",
        )


def _assert_alike(actual: list[Any], expected: list[Any], what: str) -> None:
    kinds = [
        [(getattr(x, "shape", None), getattr(x, "dtype", None)) for x in leaves]
        for leaves in (actual, expected)
    ]
    if kinds[0] != kinds[1]:
        raise AssertionError(
            f"`moduli.eval_shape` gives {what} other shapes or dtypes: {kinds[0]}, {kinds[1]}"
        )


def _made(case: LayerCase) -> Any:
    try:
        return case.make()
    except Exception:  # reported by the checks; a name is found all the same
        return case.build


def _params(model: Any) -> Any:
    return split(model, Param, ...)[1]


def _leaves(grads: Any) -> list[Any]:
    return jax.tree.leaves(grads)


def _takes_rngs(build: Callable[..., Any]) -> bool:
    import inspect

    try:
        parameters = inspect.signature(build).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)


def _is_floating(x: Any) -> bool:
    dtype = getattr(x, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating)


def _scaled(x: Any, number: int) -> Any:
    return x * jnp.asarray(1 + number, x.dtype) if _is_floating(x) else x


def _called(case: LayerCase) -> Any:
    model = case.make()
    case.call(model, *case.inputs)
    return model


def _settled(case: LayerCase, model: Any) -> Any:
    """Calls a layer once, so that what its first call makes is there."""
    case.call(model, *case.inputs)
    return model


def _stacked(models: list[Any]) -> Any:
    definitions = {id(graphdef(model)) for model in models}
    if len(definitions) > 1:
        raise AssertionError("two layers from one builder differ in structure")

    def stack(*leaves: Any) -> Any:
        is_array = isinstance(leaves[0], jax.Array | np.ndarray)
        return jnp.stack(leaves) if is_array else leaves[0]

    values = jax.tree.map(stack, *(state(model) for model in models))
    return merge(graphdef(models[0]), values)
