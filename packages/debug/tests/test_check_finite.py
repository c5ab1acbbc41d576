"""check_finite names planted faults, and nothing else."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli as nnx
from moduli import errors
from moduli.testing import assert_equal_graphs, assert_unchanged
from moduli_debug import check_finite
from moduli_debug.errors import NonFiniteError

WIDTH = 3
X = jnp.linspace(-1.0, 1.0, 2 * WIDTH, dtype=jnp.float32).reshape(2, WIDTH)


class Dense(nnx.Module):
    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.w = nnx.Param(jnp.asarray(rng.normal(size=(WIDTH, WIDTH)), jnp.float32))

    def __call__(self, x: Any) -> Any:
        return jnp.tanh(x @ self.w)


class Add(nnx.Module):
    """Adds fn(at) to its input: a fault where that is not finite, or its derivative is not."""

    def __init__(self, at: float, fn: Any) -> None:
        self.at, self.fn = nnx.BatchStat(jnp.float32(at)), fn

    def __call__(self, x: Any) -> Any:
        return x + self.fn(x * 0 + self.at)


def where_sqrt(z: Any) -> Any:
    return jnp.where(z > 0, jnp.sqrt(z), 0.0)


def masked_log(z: Any) -> Any:
    return jnp.where(z > 0, jnp.log(z - 1.0), 0.0)


class Block(nnx.Module):
    def __init__(self, seed: int, at: float, fn: Any) -> None:
        self.dense, self.add = Dense(seed), Add(at, fn)

    def __call__(self, x: Any) -> Any:
        return self.add(self.dense(x))


class Net(nnx.Module):
    """Blocks in a list, one for each value at which fn is taken, and a count of calls."""

    def __init__(self, *at: float, fn: Any = jnp.log) -> None:
        self.blocks = [Block(seed, value, fn) for seed, value in enumerate(at)]
        self.head = Dense(9)
        self.count = nnx.BatchStat(jnp.zeros(()))

    def __call__(self, x: Any) -> Any:
        self.count.value = self.count + 1
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Deep(nnx.Module):
    """The same blocks in a Stack."""

    def __init__(self, *at: float, fn: Any = jnp.log, **options: Any) -> None:
        self.stack = nnx.Stack.of([Block(n, v, fn) for n, v in enumerate(at)], **options)
        self.head = Dense(9)

    def __call__(self, x: Any) -> Any:
        return self.head(self.stack(x))


def loss(model: Any, x: Any) -> Any:
    return (model(x) ** 2).sum()


def caught(fn: Any, *args: Any, **kwargs: Any) -> NonFiniteError:
    with pytest.raises(NonFiniteError) as info:
        check_finite(fn)(*args, **kwargs)
    return info.value


def found(error: NonFiniteError) -> tuple[Any, ...]:
    return error.path, error.direction, error.where, error.step


# -- planted faults --------------------------------------------------------------------------------

TRANSFORMS = {
    "eager": lambda f: f,
    "jit": nnx.jit,
    "jit grad": lambda f: nnx.jit(nnx.value_and_grad(f)),
    "grad": nnx.grad,
    "jit grad remat": lambda f: nnx.jit(nnx.grad(nnx.remat(f))),
    "jit in grad": lambda f: nnx.grad(nnx.jit(f)),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("at", [0, 1])
def test_forward_fault_in_a_block(name: str, at: int) -> None:
    values = [1.0, 1.0]
    values[at] = -1.0
    error = caught(TRANSFORMS[name](loss), Net(*values), X)
    assert found(error) == (("blocks", at, "add"), "forward", "output", None)
    assert error.module_type is Add
    assert error.number == 0
    assert error.operation == "log"
    assert error.source is not None and "test_check_finite.py" in error.source


@pytest.mark.parametrize("name", [name for name in TRANSFORMS if "grad" in name])
@pytest.mark.parametrize("fn", [jnp.sqrt, where_sqrt])
def test_backward_fault_whose_forward_pass_is_finite(name: str, fn: Any) -> None:
    model = Net(1.0, 0.0, 1.0, fn=fn)
    check_finite(loss)(model, X)
    error = caught(TRANSFORMS[name](loss), model, X)
    assert found(error) == (("blocks", 1, "add"), "backward", "input", None)
    assert all(item.is_finite for item in (*error.inputs, *error.outputs, *error.output_gradients))
    assert any(not item.is_finite for item in error.input_gradients)


def test_of_several_faults_the_first_in_the_order_of_its_pass() -> None:
    both = caught(nnx.jit(nnx.value_and_grad(loss)), Net(-1.0, -1.0), X)
    assert both.path == ("blocks", 0, "add")
    backward = caught(nnx.jit(nnx.value_and_grad(loss)), Net(0.0, 0.0, fn=jnp.sqrt), X)
    assert backward.path == ("blocks", 1, "add")  # the backward pass comes there first


def test_infinity_and_statistics() -> None:
    model = Net(1.0, 100.0, fn=jnp.exp)
    error = caught(loss, model, X)
    assert found(error) == (("blocks", 1, "add"), "forward", "output", None)
    (given,), (made,) = error.inputs, error.outputs
    inner = np.asarray(model.blocks[1].dense(model.blocks[0](X)))
    assert (given.name, given.shape, given.dtype) == ("[0]", (2, WIDTH), np.float32)
    np.testing.assert_allclose([given.minimum, given.maximum], [inner.min(), inner.max()], 1e-6)
    assert (made.nans, made.infinities, made.minimum, made.maximum) == (0, 2 * WIDTH, None, None)
    assert error.operands[0].maximum == 100.0
    for part in ("6 inf of 6 values", "`blocks/1/add`, a Add", "exp", "the result"):
        assert part in str(error)


SQRT = [1.0, 0.0, 0.0, 1.0]
LOG = [1.0, 1.0, -1.0, 1.0]


@pytest.mark.parametrize("options", [{}, {"remat": True}, {"scan": False}])
def test_layer_of_a_stack(options: dict[str, Any]) -> None:
    step = nnx.jit(nnx.value_and_grad(loss))
    forward = caught(step, Deep(*LOG, **options), X)
    assert found(forward)[:3] == (("stack", "block", "add"), "forward", "output")
    backward = caught(step, Deep(*SQRT, fn=jnp.sqrt, **options), X)
    assert found(backward)[:3] == (("stack", "block", "add"), "backward", "input")
    if options.get("scan", True):
        assert (forward.step, backward.step) == (2, 2)


def run_in_time(model: Any, xs: Any) -> Any:
    @nnx.scan(in_axes=(nnx.Carry, None, 0), out_axes=(nnx.Carry, 0))
    def step(carry: Any, model: Any, x: Any) -> Any:
        carry = model(carry + x)
        return carry, carry.sum()

    return step(jnp.zeros((2, WIDTH)), model, xs)[1].sum()


def test_scan_inside_a_scan_under_jit_and_grad() -> None:
    xs = jnp.ones((3, 2, WIDTH))
    step = nnx.jit(nnx.value_and_grad(run_in_time))
    forward = caught(step, Deep(*LOG), xs)
    assert (forward.path, forward.steps) == (("stack", "block", "add"), (0, 2))
    backward = caught(step, Deep(*SQRT, fn=jnp.sqrt), xs)
    assert (backward.direction, backward.steps) == ("backward", (2, 2))


def test_step_of_a_scan_that_depends_on_what_it_reads() -> None:
    model = Block(0, 0.0, jnp.log)

    @nnx.scan(in_axes=(nnx.Carry, None, 0), out_axes=nnx.Carry)
    def run(carry: Any, model: Any, at: Any) -> Any:
        model.add.at.value = at
        return model(carry)

    ats = jnp.array([1.0, 2.0, 3.0, -1.0, 1.0, -1.0], jnp.float32)
    error = caught(nnx.jit(lambda model, ats: run(X, model, ats)), model, ats)
    assert (error.path, error.step) == (("add",), 3)


def test_long_scan_runs_its_clean_steps_as_a_whole() -> None:
    model = Net(1.0, 1.0, 1.0)

    @nnx.scan(in_axes=(nnx.Carry, None, 0), out_axes=nnx.Carry)
    def run(carry: Any, model: Any, at: Any) -> Any:
        model.blocks[1].add.at.value = at
        return model(carry)

    ats = jnp.ones(200, jnp.float32).at[150].set(-1.0)
    error = caught(nnx.jit(lambda model, ats: run(X, model, ats).sum()), model, ats)
    assert (error.path, error.step) == (("blocks", 1, "add"), 150)


@pytest.mark.parametrize("fn", [jnp.log, jnp.sqrt])
def test_branches(fn: Any) -> None:
    model = Block(0, 0.0, fn)

    def by_cond(model: Any, x: Any) -> Any:
        taken = nnx.cond(x[0, 0] < 0, lambda m, x: m(x), lambda m, x: x, model, x)
        return (taken**2).sum()

    def by_switch(model: Any, x: Any) -> Any:
        branches = [lambda m, x: x, lambda m, x: x, lambda m, x: m(x)]
        return (nnx.switch(2, branches, model, x) ** 2).sum()

    direction = "forward" if fn is jnp.log else "backward"
    for function in (by_cond, by_switch):
        error = caught(nnx.jit(nnx.value_and_grad(function)), model, X)
        assert (error.path, error.direction) == (("add",), direction)
    value, _ = check_finite(nnx.jit(nnx.value_and_grad(by_cond)))(model, -X)
    np.testing.assert_allclose(value, (X**2).sum(), 1e-6)


def test_while_loop_and_fori_loop() -> None:
    def by_while(model: Any, x: Any) -> Any:
        def body(carry: Any) -> Any:
            n, model, x = carry
            model.add.at.value = jnp.float32(2) - n
            return n + 1, model, model(x)

        return nnx.while_loop(lambda carry: carry[0] < 5.0, body, (jnp.float32(0), model, x))[2]

    def by_fori(model: Any, x: Any) -> Any:
        def body(n: Any, carry: Any) -> Any:
            model, x = carry
            model.add.at.value = jnp.float32(2) - n
            return model, model(x)

        return nnx.fori_loop(0, 4, body, (model, x))[1].sum()

    for function in (by_while, nnx.jit(by_while), by_fori, nnx.jit(nnx.value_and_grad(by_fori))):
        error = caught(function, Block(0, 0.0, jnp.log), X)
        assert found(error) == (("add",), "forward", "output", 2)


def test_while_loop_that_ends_at_different_steps_under_vmap() -> None:
    def count(model: Any, x: Any, stop: Any) -> Any:
        def body(carry: Any) -> Any:
            n, x = carry  # log of 3 - n, for those that go on so long
            return n + 1, x + model.fn(3.0 - n)

        return nnx.while_loop(lambda carry: carry[0] < stop, body, (jnp.float32(0), x))[1]

    run = nnx.jit(nnx.vmap(count, in_axes=(None, 0, 0)))
    stops = jnp.array([2.0, 3.0])
    wanted = X + np.log([[3.0 * 2.0], [3.0 * 2.0 * 1.0]])
    np.testing.assert_allclose(check_finite(run)(Add(1.0, jnp.log), X, stops), wanted, 1e-5)
    error = caught(run, Add(1.0, jnp.log), X, jnp.array([2.0, 5.0]))
    assert (error.path, error.operation, error.step) == (None, "log", 3)
    assert (error.results[0].infinities, error.results[0].nans) == (1, 0)


def test_vmap_in_grad_and_grad_in_vmap() -> None:
    def batched(model: Any, x: Any) -> Any:
        return nnx.vmap(loss, in_axes=(None, 0))(model, x).sum()

    model = Deep(*SQRT, fn=jnp.sqrt)
    per_example = nnx.jit(nnx.vmap(nnx.grad(loss), in_axes=(None, 0)))
    for function in (nnx.jit(nnx.grad(batched)), per_example):
        error = caught(function, model, X)
        assert found(error) == (("stack", "block", "add"), "backward", "input", 2)


def test_fault_of_a_parameter_alone() -> None:
    class Scale(nnx.Module):
        def __init__(self) -> None:
            self.scale = nnx.Param(jnp.zeros(WIDTH))

        def __call__(self, x: Any) -> Any:
            return x * jnp.sqrt(self.scale)

    class Model(nnx.Module):
        def __init__(self) -> None:
            self.dense, self.scale = Dense(0), Scale()

        def __call__(self, x: Any) -> Any:
            return self.scale(self.dense(x)) + 1.0

    error = caught(nnx.jit(nnx.grad(loss)), Model(), X)
    assert found(error) == (("scale",), "backward", "parameter", None)
    assert all(item.is_finite for item in error.input_gradients)
    assert error.reached == ("the result at `scale/scale`",)


def test_backward_rule_of_ones_own() -> None:
    @jax.custom_vjp
    def twice(x: Any) -> Any:
        return 2.0 * x

    twice.defvjp(lambda x: (2.0 * x, x), lambda x, g: (jnp.log(-1.0 - 0.0 * g),))
    error = caught(nnx.jit(nnx.grad(loss)), Net(1.0, 1.0, fn=twice), X)
    assert found(error) == (("blocks", 1, "add"), "backward", "input", None)


def test_code_of_the_parent_between_its_children() -> None:
    class Parent(nnx.Module):
        def __init__(self) -> None:
            self.first, self.second = Dense(0), Dense(1)

        def __call__(self, x: Any) -> Any:
            return self.second(jnp.log(self.first(x) * 0 - 1))

    class Root(nnx.Module):
        def __init__(self) -> None:
            self.parent = Parent()

        def __call__(self, x: Any) -> Any:
            return self.parent(x)

    error = caught(Root(), X)
    assert (error.path, error.module_type, error.argument) == (("parent",), Parent, "its module")


def test_later_call_of_a_shared_module() -> None:
    class Twice(nnx.Module):
        def __init__(self) -> None:
            self.add = Add(2.0, jnp.log)

        def __call__(self, x: Any) -> Any:
            first = self.add(x)
            self.add.at.value = self.add.at - 3.0
            return self.add(first)

    error = caught(nnx.jit(loss), Twice(), X)
    assert (error.path, error.number) == (("add",), 1)


def test_fault_outside_of_every_module() -> None:
    def log_loss(model: Any, x: Any) -> Any:
        return jnp.log(model(x).sum() * 0.0)

    def log_loss_alone(model: Any, x: Any) -> Any:
        return jnp.log(model(x).sum() * 0.0 - 1.0) ** 2

    cases = [log_loss, nnx.jit(nnx.value_and_grad(log_loss)), nnx.jit(nnx.grad(log_loss_alone))]
    for function in cases:
        error = caught(function, Net(1.0), X)
        assert found(error) == (None, "forward", "output", None)
        assert (error.module_type, error.number, error.operation) == (None, None, "log")
        assert "outside of every module" in str(error)


def test_what_was_not_finite_to_begin_with() -> None:
    step = nnx.jit(nnx.value_and_grad(loss))
    error = caught(step, Net(1.0), X.at[1, 0].set(jnp.nan))
    assert found(error) == ((), "forward", "input", None)
    assert (error.module_type, error.argument, error.inputs[0].nans) == (Net, "argument 1", 1)
    model = Net(1.0, 1.0)
    model.blocks[1].dense.w.value = model.blocks[1].dense.w.value.at[0, 0].set(jnp.inf)
    error = caught(step, model, X)
    assert found(error) == (("blocks", 1, "dense", "w"), "forward", "parameter", None)
    assert error.results[0].infinities == 1
    assert "`blocks/1/dense/w` of argument 0" in str(error)


# -- what does not count ---------------------------------------------------------------------------


def test_masked_values_do_not_count() -> None:
    model, plain = Net(2.0, 0.0, fn=masked_log), Net(2.0, 0.0, fn=lambda z: z * 0.0)
    value = check_finite(loss)(model, X)
    np.testing.assert_allclose(value, loss(plain, X), 1e-6)
    _, gradients = check_finite(nnx.jit(nnx.value_and_grad(loss)))(model, X)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_masked_fault_before_the_one_that_counts() -> None:
    class Both(nnx.Module):
        def __init__(self) -> None:
            self.masked, self.real = Net(0.0, fn=masked_log), Add(-1.0, jnp.log)

        def __call__(self, x: Any) -> Any:
            return self.real(self.masked(x))

    for function in (loss, nnx.jit(loss)):
        assert caught(function, Both(), X).path == ("real",)


def test_padding_that_is_masked_in_the_end() -> None:
    def masked_loss(model: Any, x: Any, mask: Any) -> Any:
        return jnp.where(mask[:, None], model(x), 0.0).sum()

    padded, mask = X.at[0].set(jnp.nan), jnp.array([False, True])
    value = check_finite(masked_loss)(Net(1.0), padded, mask)
    np.testing.assert_allclose(value, Net(1.0)(X)[1].sum(), 1e-6)
    # The fault is in the row that counts, and the NaN of the padding goes through the same place.
    error = caught(nnx.jit(masked_loss), Net(1.0, -1.0), padded, mask)
    assert found(error) == (("blocks", 1, "add"), "forward", "output", None)


def test_infinite_masks_of_attention() -> None:
    class Attend(nnx.Module):
        def __call__(self, x: Any, mask: Any) -> Any:
            scores = jnp.where(mask, x @ x.T, -jnp.inf)
            return jax.nn.softmax(scores) @ x

    class Model(nnx.Module):
        def __init__(self, at: float) -> None:
            self.layers, self.add = [Attend(), Attend()], Add(at, jnp.log)

        def __call__(self, x: Any, mask: Any) -> Any:
            for layer in self.layers:
                x = layer(x, mask)
            return self.layers[1](self.add(x), mask)

    causal = jnp.tril(jnp.ones((2, 2), bool))
    assert np.isfinite(check_finite(nnx.jit(Model(1.0)))(X, causal)).all()
    assert caught(nnx.jit(Model(-1.0)), X, causal).path == ("add",)
    error = caught(nnx.jit(Model(1.0)), X, jnp.array([[True, True], [False, False]]))
    assert (error.path, error.module_type) == (("layers", 0), Attend)


# -- good calls ------------------------------------------------------------------------------------


def test_good_call_gives_the_same_result_and_state_without_a_trace() -> None:
    traces = []

    def step(model: Any, x: Any) -> Any:
        traces.append(1)
        return loss(model, x)

    jitted = nnx.jit(nnx.value_and_grad(step))
    plain, model = Net(1.0, 2.0), Net(1.0, 2.0)
    checked = check_finite(jitted)
    for n in range(3):
        value, grads = checked(model, X)
        wanted, wanted_grads = jitted(plain, X)
        assert float(value) == float(wanted)
        assert_equal_graphs(model, plain)
        jax.tree.map(np.testing.assert_array_equal, grads, wanted_grads)
    assert len(traces) == 1
    bad = Net(1.0, -1.0)
    with pytest.raises(NonFiniteError):
        checked(bad, X)
    searched = len(traces)
    checked(model, X), jitted(plain, X)
    assert len(traces) == searched  # the program of before is still there


def test_off_costs_nothing() -> None:
    model = Net(1.0, -1.0)
    before = str(nnx.make_jaxpr(loss)(model, X))
    caught(nnx.jit(loss), model, X)
    assert str(nnx.make_jaxpr(loss)(model, X)) == before


def test_result_is_what_the_function_gave() -> None:
    model = Net(1.0)
    checked = check_finite(lambda model, x: {"model": model, "text": "a", "none": None, "n": 3})
    result = checked(model, X)
    assert result == {"model": model, "text": "a", "none": None, "n": 3}
    assert check_finite(lambda x: 2.0)(X) == 2.0
    assert caught(lambda x: float("nan"), X).reached == ("the result",)


def test_randomness_is_the_same_in_the_search() -> None:
    class Noise(nnx.Module):
        def __init__(self) -> None:
            self.rngs = nnx.Rngs(0)

        def __call__(self, x: Any) -> Any:
            return jnp.log(jax.random.normal(self.rngs.noise(), x.shape))

    model = Noise()
    nans = int(np.isnan(Noise()(X)).sum())
    assert nans
    assert caught(nnx.jit(lambda model, x: model(x)), model, X).results[0].nans == nans


@pytest.mark.parametrize("second", [False, True])
def test_donated_arguments(second: bool) -> None:
    step = nnx.jit(nnx.value_and_grad(loss), donate_argnums=0)
    checked = check_finite(step)
    model = Net(1.0, 1.0)
    if second:
        checked(model, X)
    model.blocks[1].add.at.value = jnp.float32(-1.0)
    before = jax.tree.map(np.array, nnx.to_tree(model))  # a clone would be donated with it
    with pytest.raises(NonFiniteError) as info:
        checked(model, X)
    assert info.value.path == ("blocks", 1, "add")
    jax.tree.map(np.testing.assert_array_equal, nnx.to_tree(model), before)


# -- afterwards ------------------------------------------------------------------------------------


def test_model_is_unchanged_after_the_error() -> None:
    model = Net(1.0, -1.0)
    before, kinds = nnx.clone(model), {k: dict(vars(k)) for k in (Net, Block, Add, Dense)}
    for function in (loss, nnx.jit(nnx.value_and_grad(loss))):
        with assert_unchanged(model):
            caught(function, model, X)
        assert_equal_graphs(model, before)
    assert kinds == {k: dict(vars(k)) for k in kinds}
    assert float(loss(Net(1.0, 1.0), X)) == float(check_finite(loss)(Net(1.0, 1.0), X))


def test_changes_of_structure_are_undone() -> None:
    def change(model: Any, x: Any) -> Any:
        model.blocks.append(Block(5, 1.0, jnp.log))
        model.extra = nnx.Intermediate(x)
        del model.head
        model.count.set_metadata(seen=True)
        return jnp.log(-x.max())

    model = Net(1.0)
    before, head = nnx.clone(model), model.head
    with assert_unchanged(model):
        caught(change, model, X)
    assert_equal_graphs(model, before)
    assert model.head is head
    assert not hasattr(model, "extra")


def test_error_can_be_caught_and_pickled() -> None:
    error = caught(loss, Net(-1.0), X)
    assert isinstance(error, FloatingPointError) and isinstance(error, errors.ModuliError)
    again = pickle.loads(pickle.dumps(error))
    assert (again.path, str(again)) == (error.path, str(error))


# -- forms of use ----------------------------------------------------------------------------------


def test_decorator_of_functions_and_methods() -> None:
    @check_finite
    def step(model: Any, x: Any) -> Any:
        """Steps."""
        return loss(model, x)

    assert (step.__name__, step.__doc__) == ("step", "Steps.")
    with pytest.raises(NonFiniteError):
        step(Net(-1.0), X)

    class Checked(nnx.Module):
        def __init__(self) -> None:
            self.inner = Dense(0)

        @check_finite
        def __call__(self, x: Any) -> Any:
            return jnp.log(self.inner(x) * 0 - 1)

        def other(self, x: Any) -> Any:
            return jnp.log(self.inner(x) * 0 - 2)

    with pytest.raises(NonFiniteError) as info:
        Checked()(X)
    assert (info.value.path, info.value.module_type) == ((), Checked)
    for method in (Checked().other, nnx.jit(Checked().other)):
        error = caught(method, X)
        assert (error.path, error.module_type) == ((), Checked)


def test_module_jitted_module_partial_and_keywords() -> None:
    model = Net(1.0, -1.0)
    step = functools.partial(nnx.jit(lambda scale, model, x: scale * loss(model, x)), 2.0)
    for error in (
        caught(model, X),
        caught(nnx.jit(model), X),
        caught(functools.partial(model, X)),
        caught(step, model, x=X),
        caught(step, x=X, model=model),
    ):
        assert found(error) == (("blocks", 1, "add"), "forward", "output", None)
    assert float(model.count.value) == 0


GLOBAL = Net(1.0, -1.0)


def test_modules_that_the_function_takes_from_around_it() -> None:
    model = Net(1.0, -1.0)

    def of_closure(x: Any, *, scale: float = 1.0) -> Any:
        return scale * loss(model, x)

    def of_global(x: Any) -> Any:
        return sum(loss(GLOBAL, x) for _ in range(2))

    for function, used, name in ((of_closure, model, "model"), (of_global, GLOBAL, "GLOBAL")):
        with assert_unchanged(used):
            error = caught(function, X)
        assert found(error) == (("blocks", 1, "add"), "forward", "output", None)
        assert error.argument == f"the variable `{name}`"
        assert f"`count` of the variable `{name}`" not in error.reached
    assert caught(nnx.jit(lambda x: model.blocks[1](x)), X).path[-1] == "add"
    model.blocks[1].add.at.value = jnp.float32(1.0)
    assert float(check_finite(of_closure)(X)) == float(loss(Net(1.0, 1.0), X))
    assert float(model.count.value) == 1.0


def test_raw_jit_that_was_compiled_before() -> None:
    @jax.jit
    def forward(model: Any, x: Any) -> Any:
        for block in model.blocks:
            x = block(x)
        return x

    model = Net(1.0, -1.0)
    forward(model, X)
    error = caught(forward, model, X)  # JAX's own jit gets copies, which stand in no model
    assert (error.path, error.module_type) == (("<Block>", "add"), Add)


def test_paths_in_two_models() -> None:
    def both(first: Any, second: Any, x: Any) -> Any:
        return second.blocks[0](first.blocks[0].dense(x))

    error = caught(both, Net(1.0), Net(-1.0), X)
    assert (error.path, error.argument) == (("blocks", 0, "add"), "argument 1")


# -- what cannot be done ---------------------------------------------------------------------------


def test_misuse_is_a_named_error() -> None:
    for wrong in (3, None, Net, Net(1.0).blocks):
        with pytest.raises(errors.VariableError, match="check_finite"):
            check_finite(wrong)
    with pytest.raises(errors.TraceError, match=r"check_finite\(moduli.jit"):
        nnx.jit(check_finite(loss))(Net(1.0), X)
    with pytest.raises(errors.TraceError, match="inside a JAX transform"):
        jax.vmap(check_finite(lambda x: x))(X)


class Eager(nnx.Module):
    """Looks at values in Python, which no trace can."""

    def __init__(self, *at: float) -> None:
        self.masked, self.net = Net(0.0, fn=masked_log), Net(*at)
        self.raw = Add(0.0, jnp.log)

    def __call__(self, x: Any) -> Any:
        if float(x.sum()) > 100:
            return x
        x = jnp.where(x < 10, x, self.raw(x))  # of which nothing is used
        return self.net(self.masked(x))


def test_function_that_cannot_be_traced() -> None:
    model = Eager(1.0, -1.0)
    for function in (Eager.__call__, lambda model, x: float(model(x).sum())):
        with assert_unchanged(model):
            error = caught(function, model, X)
        assert found(error) == (("net", "blocks", 1, "add"), "forward", "output", None)
        assert (error.module_type, error.number, error.operation) == (Add, 0, None)
        assert (error.inputs[0].is_finite, error.outputs[0].nans) == (True, 2 * WIDTH)
        assert "cannot be traced" in str(error)
    assert np.isfinite(check_finite(Eager(1.0, 1.0))(X)).all()


def test_function_that_cannot_be_traced_around_a_compiled_step() -> None:
    jitted = nnx.jit(loss, donate_argnums=0)

    def train(model: Any, x: Any) -> float:
        return float(jitted(model, x))

    model = Net(-1.0)
    before = jax.tree.map(np.array, nnx.to_tree(model))
    error = caught(train, model, X)
    jax.tree.map(np.testing.assert_array_equal, nnx.to_tree(model), before)
    assert (error.path, error.direction, error.where) == (None, None, None)
    assert error.reached == ("the result",)
    assert "Wrap the compiled function inside of it" in str(error)


def test_function_that_does_something_else_when_it_runs_again() -> None:
    values: Iterator[float] = iter([-1.0, 1.0])
    error = caught(lambda x: jnp.log(next(values) + 0 * x), X)
    assert error.path is None
    assert "finite values" in str(error)
