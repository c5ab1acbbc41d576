"""What people run into around a training loop, each with its text."""

from __future__ import annotations

import functools
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import moduli as nnx
from moduli.errors import MissingPluginError, ShapeError, VariableError
from moduli_train import (
    BatchShapeWarning,
    DataEndedError,
    NonFiniteLossError,
    NonFiniteLossWarning,
    NotSavedError,
    RunError,
)


def scalar(value: float = 0.0) -> nnx.Dict:
    return nnx.Dict({"w": nnx.Param(jnp.float32(value))})


def run_losses(folder: Any, losses: list[float], **options: Any) -> Any:
    model = scalar()
    with nnx.Run(folder, model=model, data=losses, progress=False, **options) as run:
        for loss in run.steps(len(losses)):
            model["w"].value += loss
            run.log(train_loss=jnp.float32(loss))
    return run


def test_data_that_ends_early_says_how_to_give_more(tmp_path: pathlib.Path) -> None:
    model = scalar()
    with (
        pytest.raises(
            DataEndedError,
            match=r"the data \(a generator\) ended after 3 batches, before the last step.*"
            r"a list or another iterable that can be read again.*`epoch -> iterable`.*fewer steps",
        ),
        nnx.Run(tmp_path, model=model, data=(x for x in range(3)), progress=False) as run,
    ):
        for _ in run.steps(5):
            model["w"].value += 1
    assert nnx.CheckpointManager(tmp_path).latest() == 3  # nothing is lost


@pytest.mark.parametrize("data", [[], lambda epoch: iter([1.0] if epoch == 0 else [])])
def test_an_epoch_without_batches_ends_no_loop_silently(data: Any) -> None:
    with (
        pytest.raises(DataEndedError, match=r"epoch \d of the data \(a \w+\) has no batch"),
        nnx.Run(data=data, progress=False) as run,
    ):
        assert len([*run.steps(5)]) == 5


@pytest.mark.parametrize("data", [3, {"x": np.zeros((4, 2))}, "rows"])
def test_what_is_no_data_is_refused(data: Any) -> None:
    text = r"data= is a (int|dict|str); it takes an iterable of batches.*nnx.Batches\(arrays, size"
    with pytest.raises(RunError, match=text):
        nnx.Run(data=data)


@pytest.mark.parametrize("data", [lambda: [1.0], lambda *, epoch: [1.0], lambda epoch, seed: [1.0]])
def test_a_function_of_the_data_takes_the_epoch(data: Any) -> None:
    with pytest.raises(RunError, match=r"called for each epoch with its number.*lambda epoch"):
        nnx.Run(None, model=scalar(), data=data)


@pytest.mark.parametrize("nodes", [nnx.Rngs(0), [scalar()]])
def test_fit_takes_nodes_by_name(nodes: Any) -> None:
    with pytest.raises(VariableError, match=r"nodes by name.*'model': model.*got a (Rngs|list)"):
        nnx.fit(lambda model, batch: 0.0, nodes, [1.0], steps=2)
    with pytest.raises(VariableError, match=r"steps= is a number of steps.*got '3'"):
        nnx.fit(lambda model, batch: 0.0, {"model": scalar()}, [1.0], steps="3")  # type: ignore[arg-type]


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"image": x, "label": x[:, 0]}])
def test_batches_of_other_shapes_are_named_once(wrap: Any) -> None:
    data = [wrap(np.zeros((n, 2))) for n in (4, 4, 3, 2)]
    with (
        pytest.warns(BatchShapeWarning, match=r"batch of step 3 has the shapes \[\(3,.*the first "
                     r"had \[\(4,.*drop_last=True") as caught,
        nnx.Run(data=data, progress=False) as run,
    ):  # fmt: skip
        for _ in run.steps(8):
            pass
    assert len(caught) == 1


def test_a_short_last_batch_of_batches_is_what_was_asked_for() -> None:
    with nnx.Run(data=nnx.Batches(np.zeros(5), 2), progress=False) as run:
        assert [len(batch) for batch in run.steps(4)] == [2, 2, 1, 2]


UNSAVED = nnx.Rngs(noise=0)


def draws(rngs: Any = UNSAVED) -> Any:
    return rngs.noise()


def by_name(rngs: nnx.Rngs) -> Any:
    return lambda: rngs.noise()  # a closure


def by_global() -> Any:
    return UNSAVED.noise()


@pytest.mark.parametrize("spelling", ["argument", "list", "closure", "global"])
def test_a_node_that_the_step_changes_and_no_checkpoint_holds(
    tmp_path: pathlib.Path, spelling: str
) -> None:
    model, streams = scalar(), nnx.Rngs(noise=0)
    nodes, step = [streams], by_name(streams)
    called = {
        "argument": lambda: draws(streams),
        "list": lambda: draws(nodes[0]),
        "closure": step,
        "global": by_global,
    }[spelling]
    name = {"global": "UNSAVED"}.get(spelling, "(rngs|streams|nodes)")
    text = rf"the step changed `{name}` \(its `.*`\), which is in no checkpoint.*Run\(folder, "
    with (
        pytest.raises(NotSavedError, match=text),
        nnx.Run(tmp_path, model=model, progress=False) as run,
    ):
        for _ in run.steps(5):
            called()
    assert nnx.CheckpointManager(tmp_path).steps() == []


class Trainer:
    def __init__(self) -> None:
        self.parts = {"rngs": nnx.Rngs(noise=0)}

    def step(self) -> Any:
        return self.parts["rngs"].noise()


HIDDEN: dict[str, Callable[[], Any]] = {
    "partial": lambda: functools.partial(draws, nnx.Rngs(noise=0)),
    "keyword": lambda: functools.partial(draws, rngs=nnx.Rngs(noise=0)),
    "method": lambda: Trainer().step,
    "jitted": lambda: functools.partial(nnx.jit(draws), nnx.Rngs(noise=0)),
    "object": Trainer,
}


@pytest.mark.parametrize("spelling", HIDDEN)
def test_nodes_that_an_object_or_a_partial_function_holds(
    tmp_path: pathlib.Path, spelling: str
) -> None:
    thing = HIDDEN[spelling]()
    with (
        pytest.raises(NotSavedError, match=r"the step changed `thing\.[\w.\[\]]+` \(its `"),
        nnx.Run(tmp_path, model=scalar(), progress=False) as run,
    ):
        for _ in run.steps(5):
            thing.step() if isinstance(thing, Trainer) else thing()


class Stream:
    """Data that keeps its own state, with streams in it."""

    def __init__(self) -> None:
        self.rngs = nnx.Rngs(noise=0)

    def __iter__(self) -> Any:
        return iter([self.rngs.noise() for _ in range(3)])


def test_what_the_data_draws_from_is_no_node_of_the_step(tmp_path: pathlib.Path) -> None:
    data = Stream()
    with nnx.Run(tmp_path, model=scalar(), data=data, progress=False) as run:
        for _ in run.steps(2):
            data.rngs.noise()


@pytest.mark.parametrize("how", ["saved", "unsaved", "no folder", "not changed"])
def test_what_is_saved_or_need_not_be_is_no_error(tmp_path: pathlib.Path, how: str) -> None:
    model, rngs = scalar(), nnx.Rngs(0)
    folder = None if how == "no folder" else tmp_path
    more: dict[str, Any] = {"rngs": rngs} if how == "saved" else {}
    if how == "unsaved":
        more = {"unsaved": ["rngs"]}
    with nnx.Run(folder, model={"a": model}, progress=False, **more) as run:
        for _ in run.steps(3):
            model["w"].value += 1
            if how != "not changed":
                rngs()


def test_another_model_in_the_folder_is_a_table_of_differences(tmp_path: pathlib.Path) -> None:
    run_losses(tmp_path, [1.0, 2.0])
    other = nnx.Dict({"w": nnx.Param(jnp.zeros(3)), "b": nnx.Param(0.0)})
    with pytest.raises(RunError, match="a run with another model") as caught:
        nnx.Run(tmp_path, model=other, data=[1.0], progress=False).__enter__()
    text = str(caught.value)
    assert "step 2" in text and "`model/w`" in text and "`model/b`" in text
    assert (other["w"].value == 0).all()
    with pytest.raises(RunError, match=r"(?s)or with other nodes.*`rngs"):
        nnx.Run(tmp_path, model=scalar(), rngs=nnx.Rngs(0), progress=False).__enter__()


def test_other_data_in_the_folder_is_named(tmp_path: pathlib.Path) -> None:
    def start(size: int) -> None:
        data = nnx.Batches(np.zeros(6), size)
        with nnx.Run(tmp_path, model=scalar(), data=data, progress=False) as run:
            for _ in run.steps(2):
                pass

    start(2)
    with pytest.raises(RunError, match=r"began with data of \{'length': 6, 'size': 2.*'size': 3"):
        start(3)


@pytest.mark.parametrize(
    ("before", "now", "text"),
    [
        ([1.0, 2.0, 3.0], [1.0, 2.0], r"data of \{'batches': 3\}, and is to go on with.*: 2\}"),
        ([1.0, 2.0], iter([1.0, 2.0]), r"data of \{'batches': 2\}, .* with another kind"),
        ((x for x in range(4)), np.zeros(4), r"data of another kind, .* with \{'batches': 4\}"),
        (None, [1.0], "began without data=, and is to go on with data="),
        ([1.0], None, "began with data=, and is to go on without data="),
    ],
)
def test_data_of_another_length_or_kind_is_no_silent_resume(
    tmp_path: pathlib.Path, before: Any, now: Any, text: str
) -> None:
    with nnx.Run(tmp_path, model=scalar(), data=before, progress=False) as run:
        assert len([*run.steps(2)]) == 2
    with pytest.raises(RunError, match=text):
        nnx.Run(tmp_path, model=scalar(), data=now, progress=False).__enter__()


def test_checkpoints_and_logs_of_others_are_not_touched(tmp_path: pathlib.Path) -> None:
    with nnx.CheckpointManager(tmp_path / "a") as manager:
        manager.save(3, {"model": scalar()})
    with pytest.raises(RunError, match="has checkpoints that no run wrote; give another folder"):
        run_losses(tmp_path / "a", [1.0])
    (tmp_path / "b").mkdir()
    (tmp_path / "b/log.csv").write_text("a,b\n1,2\n")
    with pytest.raises(RunError, match="is not the log of a run; give another folder"):
        run_losses(tmp_path / "b", [1.0])
    assert (tmp_path / "b/log.csv").read_text() == "a,b\n1,2\n"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(
    tmp_path: pathlib.Path, bad: float
) -> None:
    with pytest.raises(
        NonFiniteLossError,
        match=r"`train_loss` is (nan|inf) at step 5.*step 4 is the last good one.*check_finite",
    ):
        run_losses(tmp_path, [1.0, 1.0, 1.0, 1.0, bad, 1.0, 1.0], save_every=2, log_every=50)
    manager = nnx.CheckpointManager(tmp_path)
    assert manager.latest() == 4
    assert nnx.load_state(manager.info(4).path)["model"]["w"].value == 4.0


def test_a_loss_that_is_not_finite_may_be_warned_of_once(tmp_path: pathlib.Path) -> None:
    losses = [1.0, 1.0, math.nan, math.nan, math.nan, 1.0, 1.0, 1.0]
    with pytest.warns(NonFiniteLossWarning, match="No checkpoint is written now; step 2 is") as w:
        run_losses(tmp_path, losses, save_every=2, keep=None, on_nonfinite="warn")
    assert len(w) == 1
    assert nnx.CheckpointManager(tmp_path).steps() == [2, 6, 8]


def no_numbers() -> list[Any]:
    return [
        None, [1.0], 1j, np.complex64(1), np.str_("1"), np.zeros(1), np.array("1"),
        np.datetime64("2026-01-01"), jnp.zeros((1, 1)), jnp.complex64(1), jax.random.key(0),
        nnx.Param(jnp.zeros(2)),
    ]  # fmt: skip


def test_a_run_is_used_within_its_block(tmp_path: pathlib.Path) -> None:
    run = nnx.Run(tmp_path, model=scalar(), data=[1.0], progress=False)
    with pytest.raises(RunError, match=r"and run.log\(...\) within"):
        run.log(loss=1.0)
    with run:
        loop = run.steps(3)
        next(loop)
    for use in (
        lambda: run.log(loss=1.0), lambda: run.steps(9), lambda: next(loop),
        lambda: run.evaluate(lambda model: {}),
    ):  # fmt: skip
        with pytest.raises(RunError, match="the run is over; make another to go on"):
            use()


def test_a_logged_array_that_a_later_step_deletes_is_named() -> None:
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    with (
        pytest.raises(VariableError, match=r"run.log\(w=...\) of step 2: the array was donated"),
        nnx.Run(progress=False, log_every=2) as run,
    ):
        value = jnp.zeros(())
        for _ in run.steps(9):
            if run.step == 2:
                run.log(w=value)
            value = step(value)


@pytest.mark.parametrize("keyword", ["save_evry", "data_", "opt_state"])
def test_what_is_no_node_is_no_silent_option(keyword: str) -> None:
    given: dict[str, Any] = {
        "save_evry": 3,
        "data_": jnp.zeros(2),
        "opt_state": optax.adam(1.0).init(jnp.zeros(2)),
    }
    near = {"save_evry": "did you mean save_every=?", "data_": "did you mean data=?"}
    with pytest.raises(VariableError) as caught:
        nnx.Run(model=scalar(), **{keyword: given[keyword]})
    text = str(caught.value)
    assert text.startswith(f"{keyword}= is a ") and near.get(keyword, "stands in a dict") in text
    assert nnx.Run(model=(1, scalar()), more={"state": jnp.zeros(2)}).nodes


def test_a_best_metric_that_is_never_logged_is_named(tmp_path: pathlib.Path) -> None:
    with (
        pytest.warns(UserWarning, match="best='tset_loss': no such metric.*logged were train_loss"),
    ):
        run_losses(tmp_path, [1.0, 2.0], best="tset_loss")


def test_sys_exit_in_the_loop_keeps_the_log(tmp_path: pathlib.Path) -> None:
    with pytest.raises(SystemExit), nnx.Run(tmp_path, model=scalar(), progress=False) as run:
        for _ in run.steps(3):
            run.log(loss=1.0)
            raise SystemExit(3)
    assert "loss" in (tmp_path / "log.csv").read_text()


def test_what_a_log_does_not_take() -> None:
    with nnx.Run(data=[1.0], progress=False) as run:
        for _ in run.steps(1):
            with pytest.raises(VariableError, match=r"run.log\(loss=...\) takes one number; got a "
                               r"\w+ of shape \(3,\).*losses.mean"):  # fmt: skip
                run.log(loss=jnp.zeros(3))
            with pytest.raises(VariableError, match="got a str"):
                run.log(loss="low")
            for value in no_numbers():
                with pytest.raises(VariableError, match=r"run.log\(a=...\) takes one number; got"):
                    run.log(a=value)
            with pytest.raises(
                VariableError, match=r"Numbers by name are logged by `run.log\(\*\*"
            ):
                run.log(test={"loss": 1.0})
            with pytest.raises(VariableError, match="outside of jit: let the step return it"):
                jax.jit(lambda x: run.log(loss=x))(1.0)
            others: list[Any] = [0.5, [("loss", 0.5)]]
            for wrong in others:
                with pytest.raises(
                    VariableError, match=r"takes numbers by name; got a (float|list)"
                ):
                    run.log(wrong)
            with pytest.raises(VariableError, match="by name; 3 is no text"):
                run.log({3: 0.5})
            with pytest.raises(VariableError, match=r"returns numbers by name.*got a float"):
                run.evaluate(lambda: 3.0)
            with pytest.raises(VariableError, match="the log has a column 'step' already"):
                run.log(step=3)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"best": "fitness"}, r'a larger value better, or a smaller one\? Write best=.*"max"'),
        ({"best": ("loss", "least")}, 'write "min" or "max"'),
        ({"patience": 3}, 'patience= needs a metric: `best="loss"`'),
        ({"save_every": 0}, "save_every= is a number of steps, at least 1; got 0"),
        ({"log_every": 2.5}, "log_every= is a number of steps"),
        ({"on_nonfinite": "ignore"}, 'on_nonfinite= is "stop" or "warn"'),
        ({"keep": 0}, "keep= is a number of steps, at least 1"),
        ({"prefetch": "2"}, "prefetch= is a number of steps, at least 0; got '2'"),
        ({"prefetch": -1}, "prefetch= is a number of steps, at least 0"),
        ({"best": "loss", "patience": True}, "patience= is a number of steps, at least 1"),
        ({"best": 3}, 'write "min" or "max" with a name'),
        ({"best": ("loss",)}, 'write "min" or "max" with a name'),
    ],
)
def test_arguments_that_mean_nothing(options: Any, text: str) -> None:
    with pytest.raises(VariableError, match=text):
        nnx.Run(**options)


def test_a_folder_needs_something_to_save_and_a_run_its_block(tmp_path: pathlib.Path) -> None:
    with pytest.raises(VariableError, match="needs what to save"):
        nnx.Run(tmp_path)
    with pytest.raises(RunError, match=r"around `for batch in run\.steps"):
        nnx.Run(data=[1.0]).steps(3)
    with nnx.Run(data=[1.0], progress=False) as run:
        wrong: list[Any] = ["3", None, -1, True, 2.5]
        for total in wrong:
            with pytest.raises(VariableError, match=r"run.steps\(total\): total is a number of"):
                run.steps(total)
        with pytest.raises(VariableError, match="prefetch= is a number"):
            run.steps(2, prefetch=-2)
        assert [*run.steps(np.int64(1))] == [1.0]
        for steps in [0, *wrong]:
            with pytest.raises(VariableError, match=r"run.every\(steps\): steps is a number"):
                run.every(steps)
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"writes into a folder, and .*file is a file"):
        nnx.Run(tmp_path / "file", model=scalar()).__enter__()
    with nnx.Run(data=[1.0], progress=False) as run, pytest.raises(RunError, match="entered once"):
        run.__enter__()


def test_a_folder_needs_moduli_interop(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Without:
        def __getattr__(self, name: str) -> Any:
            raise MissingPluginError(name)

    monkeypatch.setattr("moduli_train._run.checkpoints.moduli", Without())
    with pytest.raises(RunError, match=r'pip install "moduli\[interop\]"`. Without a folder noth'):
        run_losses(tmp_path, [1.0])
    assert run_losses(None, [1.0]).step == 1


def test_tensorboard_is_an_extra(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", None)
    with pytest.raises(RunError, match=r'pip install "moduli-train\[tensorboard\]"'):
        run_losses(tmp_path, [1.0], tensorboard=True)
    with pytest.raises(RunError, match="tensorboard=True needs a folder"):
        run_losses(None, [1.0], tensorboard=True)


def test_what_batches_does_not_take() -> None:
    with pytest.raises(ShapeError, match=r"one length; got the lengths \{\"\['x'\]\": 3, .*: 4\}"):
        nnx.Batches({"x": np.zeros(3), "y": np.zeros(4)}, 2)
    with pytest.raises(ShapeError, match="no batch of 4 examples in arrays of length 3"):
        nnx.Batches(np.zeros(3), 4, drop_last=True)
    wrong: list[Any] = [1.5, "a", True, -1, 2**64]
    for value in wrong:
        with pytest.raises(VariableError, match=r"seed=...\) is a whole number from 0 to"):
            nnx.Batches(np.zeros(3), 2, seed=value)
    for value in [*wrong[:3], None]:
        with pytest.raises(VariableError, match=r"size=...\) is a whole number; got"):
            nnx.Batches(np.zeros(3), value)
    assert type(nnx.Batches(np.zeros(3), np.int64(2), seed=np.uint8(1)).facts()["seed"]) is int


def test_an_error_in_the_loop_saves_nothing_and_is_the_users(tmp_path: pathlib.Path) -> None:
    model = scalar()
    with (
        pytest.raises(ZeroDivisionError),
        nnx.Run(tmp_path, model=model, save_every=2, progress=False) as run,
    ):
        for index in run.steps(9):
            model["w"].value += 1
            run.log(loss=model["w"])
            1 // (3 - index)
    assert nnx.CheckpointManager(tmp_path).steps() == [2]
    assert (tmp_path / "log.csv").read_text().count("\n") == 5  # what is known of the failed step
