"""``check_transform``: each check passes on good transforms and fails on one broken in its way."""

from __future__ import annotations

import functools
import time

import jax
import jax.numpy as jnp
import pytest

import moduli as nnx
from moduli import lowlevel
from moduli.testing import TransformCase, check_transform, parametrize_with_checks

SEEN: list = []
HERE: dict = {}


def linearized(f):
    """The example of docs/lowlevel.md, without its linear map."""

    def call(*args):
        function = lowlevel.Function(f)
        arguments, kwargs = function.complete(args, {})
        taken = lowlevel.Call("linearize", arguments, kwargs)

        def pure(values):
            frame = taken.make_frame(values)
            out = frame.run("linearize", function.name, function.call)
            return out, taken.finish(frame, None)

        out, _, outputs = jax.linearize(taken.named(pure, function), taken.dynamic, has_aux=True)
        taken.apply(outputs)
        return out

    return call


def doubles(f):
    return lambda *args: 2 * f(*args)


def forgets_writes(f):
    return lambda model, *args: f(nnx.clone(model), *args)


def makes_other_variables(f):
    def call(model, x):
        copy = nnx.clone(model)
        out = f(copy, x)
        model.w, model.calls = copy.w, copy.calls
        return out

    return call


def loses_sharing(f):
    def call(model, x):
        definition, values = nnx.split(model)
        copy = nnx.merge(definition, jax.tree.map(lambda x: x, values))
        copy.tied = [nnx.Param(copy.w.value)]
        out = f(copy, x)
        nnx.update(model, nnx.state({"w": copy.w, "calls": copy.calls}))
        return out

    return call


def writes_before_it_raises(f):
    def call(model, x):
        return f(model, x)  # in place

    return call


def takes_functions_alone(f):
    @nnx.jit
    def call(model, x):
        return f(model, x)

    return lambda model, x: call(model, x)


def looks_at_values(f):
    def call(model, x):
        out = f(model, x)
        float(out)
        return out

    return call


def stops_gradients(f):
    return lambda *args: jax.lax.stop_gradient(linearized(f)(*args))


def without_plugins_in_its_key(f):
    programs: dict = {}

    def call(*args):
        binding = lowlevel.bind(args, {})
        if binding.signature not in programs:
            signature = lowlevel.Signature(binding)

            def pure(values, plain):
                frame = lowlevel.Frame(signature, values, plain)
                return lowlevel.Packed(*frame.finish(frame.run("mine", "f", f)))

            programs[binding.signature] = jax.jit(pure)
        values = binding.values()
        packed = programs[binding.signature](values, binding.plain)
        return packed.effects.apply(binding.flats, values, *packed.parts)

    return call


def traces_each_time(f):
    return lambda *args: nnx.jit(lambda *inner: f(*inner))(*args)


def keeps_tracers(f):
    def kept(model, x):
        SEEN.append(x)
        return f(model, x)

    return lambda model, x: nnx.jit(kept)(model, x)


def races(f):
    @functools.wraps(f)
    def call(model, x):
        HERE["x"] = x
        if not isinstance(x, jax.core.Tracer):
            time.sleep(0.002)
        return f(model, HERE["x"])

    return call


BROKEN = [
    ("gives_the_result", TransformCase(doubles)),
    ("writes_reach_the_caller", TransformCase(forgets_writes)),
    ("writes_reach_the_caller", TransformCase(makes_other_variables)),
    ("keeps_shared_references", TransformCase(loses_sharing)),
    ("changes_nothing_on_an_exception", TransformCase(writes_before_it_raises)),
    ("takes_methods", TransformCase(takes_functions_alone)),
    ("nests_in_jit", TransformCase(looks_at_values)),
    ("nests_in_grad", TransformCase(stops_gradients)),
    ("lets_plugins_see_calls", TransformCase(without_plugins_in_its_key)),
    ("traces_once", TransformCase(traces_each_time, keeps_programs=True)),
    ("leaves_nothing", TransformCase(keeps_tracers)),
    ("runs_in_threads", TransformCase(races)),
]


@parametrize_with_checks(
    [
        TransformCase(linearized),
        TransformCase(nnx.jit, jax.jit, keeps_programs=True),
        TransformCase(nnx.value_and_grad, jax.value_and_grad),
    ]
)
def test_a_good_transform_passes(case, check):
    check(case)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("name", "case"), BROKEN, ids=[f"{case.title()}-{name}" for name, case in BROKEN]
)
def test_each_check_fails_on_what_it_is_for(name, case):
    (check,) = (check for check in case.checks() if check.__name__ == name)
    with pytest.raises(Exception) as caught:
        check(case)
    assert not isinstance(caught.value, pytest.skip.Exception)
    del SEEN[:]


def test_every_check_has_a_broken_transform():
    names = {check.__name__ for check in TransformCase(nnx.jit).checks()}
    assert names == {name for name, _ in BROKEN}


def test_all_that_fails_is_listed():
    with pytest.raises(AssertionError, match=r"forgets_writes fails \d of 11 checks:\n- writes_re"):
        check_transform(forgets_writes)
    assert jnp.ones(()) == 1
