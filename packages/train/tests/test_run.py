"""Run and fit: resuming, the data's position, logging, the best checkpoint, evaluation, hooks."""

from __future__ import annotations

import csv
import fractions
import itertools
import json
import math
import os
import pathlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli as nnx
from moduli.plugins import PluginWarning
from moduli_interop import DamagedCheckpointWarning
from moduli_train import DataPositionWarning, RunError
from moduli_train._data.encoding import decoded, encoded

ROWS = np.arange(14.0)


class Cursor:
    """An iterator in grain's manner: get_state and set_state."""

    def __init__(self) -> None:
        self.random = random.Random(4)
        self.bits = np.random.default_rng(3)

    def __iter__(self) -> Cursor:
        return self

    def __next__(self) -> Any:
        return ROWS[self.random.randrange(10)] + self.bits.random()

    def get_state(self) -> Any:
        return {"random": self.random.getstate(), "bits": self.bits.bit_generator.state}

    def set_state(self, state: Any) -> None:
        self.random.setstate(state["random"])
        self.bits.bit_generator.state = state["bits"]


class Loader:
    """A loader in torchdata's manner: state_dict and load_state_dict; epochs differ."""

    def __init__(self) -> None:
        self.epoch, self.at, self.loaded = -1, 0, False

    def __iter__(self) -> Iterator[Any]:
        if not self.loaded:
            self.epoch, self.at = self.epoch + 1, 0
        self.loaded = False
        while self.at < 5:
            self.at += 1
            yield ROWS[self.at] * (self.epoch + 1)

    def state_dict(self) -> Any:
        return {"epoch": self.epoch, "at": np.int64(self.at)}

    def load_state_dict(self, state: Any) -> None:
        self.epoch, self.at, self.loaded = state["epoch"], int(state["at"]), True


class Grain:
    """An iterable whose iterators say where they stand."""

    def __iter__(self) -> Any:
        class Places:
            at = 0

            def __iter__(self) -> Any:
                return self

            def __next__(self) -> Any:
                if self.at == 4:
                    raise StopIteration
                self.at += 1
                return ROWS[self.at]

            def get_state(self) -> bytes:
                return b"%d" % self.at

            def set_state(self, state: bytes) -> None:
                self.at = int(state)

        return Places()


class Counting:
    """An iterable that counts its epochs and says nothing."""

    epoch = 0

    def __iter__(self) -> Any:
        self.epoch += 1
        return iter(ROWS[:4] * self.epoch)


FREE: dict[str, Callable[[], Any]] = {
    "batches": lambda: nnx.Batches(ROWS, 3, seed=2),
    "list": lambda: [*ROWS[:5]],
    "array": lambda: ROWS[:6].reshape(3, 2),
    "callable": lambda: lambda epoch: iter(np.random.default_rng(epoch).permutation(ROWS)[:6]),
    "get_state": Cursor,
    "state_dict": Loader,
    "get_state of the iterator": Grain,
}
SKIPPED: dict[str, Callable[[], Any]] = {
    "generator": lambda: (row for row in itertools.cycle(ROWS)),
    "iterable": Counting,
}


def seen(folder: Any, data: Any, steps: int, stop: int | None = None, **options: Any) -> list[Any]:
    """Returns the batches of a run that is left in the body of step ``stop``, not saved there."""
    model, found = nnx.Dict({"sum": nnx.Param(jnp.zeros(()))}), []
    try:
        with nnx.Run(
            folder, model=model, data=data, save_every=2, progress=False, **options
        ) as run:
            for batch in run.steps(steps):
                if run.step == stop:
                    raise InterruptedError
                found.append(np.asarray(batch).tolist())
                model["sum"].value += np.sum(batch)
                run.log(sum=model["sum"].value, step_again=run.step)
    except InterruptedError:
        pass
    return found


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("kind", [*FREE, *SKIPPED])
def test_a_run_that_resumes_reads_the_batches_that_come_next(
    tmp_path: pathlib.Path, kind: str, prefetch: int, recwarn: pytest.WarningsRecorder
) -> None:
    make = (FREE | SKIPPED)[kind]
    whole = seen(None, make(), 17)
    for stop in (4, 6, 12):  # a save at 2, in mid-epoch, and on the epochs' boundaries
        folder = tmp_path / str(stop)
        seen(folder, make(), 17, stop, prefetch=prefetch)
        again = seen(folder, make(), 17, prefetch=prefetch)
        saved = (stop - 1) // 2 * 2
        assert again == whole[saved:], (kind, stop)
        with open(folder / "log.csv") as file:
            sums = [float(row["sum"]) for row in csv.DictReader(file)]
        np.testing.assert_allclose(sums, np.cumsum([np.sum(batch) for batch in whole]), rtol=1e-5)
    warned = [w for w in recwarn.list if w.category is DataPositionWarning]
    assert len(warned) == (3 if kind in SKIPPED else 0)
    if warned:
        text = str(warned[0].message)
        assert "cannot say where it stands" in text and "nnx.Batches" in text
    recwarn.clear()


def test_steps_may_read_ahead_too(tmp_path: pathlib.Path) -> None:
    model = nnx.Dict({"w": nnx.Param(jnp.zeros(()))})

    def batches(steps: int) -> list[Any]:
        with nnx.Run(tmp_path, model=model, data=Cursor(), progress=False) as run:
            return [*run.steps(steps, prefetch=2)]

    cursor = Cursor()
    assert batches(3) + batches(7) == [next(cursor) for _ in range(7)]


def test_batches_are_every_example_once_and_each_epoch_has_an_order_of_its_own() -> None:
    arrays = {"x": ROWS, "y": jnp.asarray(ROWS) * 2}
    batches = nnx.Batches(arrays, 4, seed=1)
    epochs = [list(batches.epoch(number)) for number in range(3)]
    orders = [np.concatenate([b["x"] for b in epoch]) for epoch in epochs]
    for epoch, order in zip(epochs, orders):
        assert [len(b["x"]) for b in epoch] == [4, 4, 4, 2]
        assert sorted(order) == [*ROWS]
        assert all((b["y"] == 2 * b["x"]).all() for b in epoch)
    assert not (orders[0] == orders[1]).all() and not (orders[1] == orders[2]).all()
    expected = np.random.Generator(np.random.Philox(key=np.array([1, 2], np.uint64)))
    assert (orders[2] == ROWS[expected.permutation(14)]).all()
    assert len(nnx.Batches(arrays, 4, drop_last=True)) == 3
    assert [b["x"].tolist() for b in batches.epoch(1, start=3)] == [epochs[1][3]["x"].tolist()]


def test_states_of_loaders_come_back_as_they_were() -> None:
    state = {
        "a": (1, [2.5, None, True], b"\x00\xff"),
        3: np.arange(6, dtype=np.int16).reshape(2, 3),
        "rng": np.random.default_rng(1).bit_generator.state,
        "python": random.Random(1).getstate(),
    }
    found = decoded(json.loads(json.dumps(encoded(state))))
    np.testing.assert_array_equal(found.pop(3), state.pop(3))
    assert found == state
    for scalar in (np.int8(3), np.bool_(True), np.uint64(2**64 - 1), np.float32(0.1)):
        found = decoded(json.loads(json.dumps(encoded(scalar))))
        assert type(found) is type(scalar) and found == scalar
    halves = np.asarray(jnp.arange(3, dtype=jnp.bfloat16))
    found = decoded(json.loads(json.dumps(encoded(halves))))
    assert found.dtype == halves.dtype and (found == halves).all()
    for kind, value in {"set": {1}, "PRNGKeyArray": jax.random.key(0), "object": object()}.items():
        with pytest.raises(RunError, match=f"holds a {kind}, which no checkpoint can keep"):
            encoded({"a": value})


def test_a_torch_tensor_in_a_state_comes_back() -> None:
    torch = pytest.importorskip("torch")
    state = {"generator": torch.random.get_rng_state()}
    found = decoded(json.loads(json.dumps(encoded(state))))
    assert torch.equal(found["generator"], state["generator"])


@pytest.mark.parametrize("kind", ["batches", "list"])
def test_batches_are_laid_out_over_devices(kind: str) -> None:
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    arrays = {"x": np.arange(16.0).reshape(8, 2), "y": np.arange(8)}
    data = nnx.Batches(arrays, 8, seed=None) if kind == "batches" else [arrays]
    for sharding in (rows, {"x": rows, "y": whole}):
        with nnx.Run(data=data, progress=False) as run:
            for batch in run.steps(2, batch_sharding=sharding):
                assert batch["x"].sharding == rows
                assert batch["y"].sharding == (rows if sharding is rows else whole)
                assert all((batch[name] == arrays[name]).all() for name in arrays)


# -- logging


class Reads:
    """Counts the arrays whose values are read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        kind = type(jnp.zeros(()))
        for name in ("__array__", "__float__", "__bool__", "item", "tolist", "block_until_ready"):
            original = getattr(kind, name)

            def wrapped(array: Any, *args: Any, original: Any = original, **kw: Any) -> Any:
                self.count += 1
                return original(array, *args, **kw)

            monkeypatch.setattr(kind, name, wrapped)
        value = kind._value  # what all of them end in, device_get too

        def counted(array: Any) -> Any:
            self.count += 1
            return value.__get__(array)

        monkeypatch.setattr(kind, "_value", property(counted))


def test_no_array_is_read_between_log_points(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = jax.jit(lambda x: x + 1)
    step(jnp.zeros(()))
    reads, at, value = Reads(monkeypatch), {}, jnp.zeros(())
    model = nnx.Dict({"w": nnx.Param(value)})
    with nnx.Run(tmp_path, model=model, save_every=20, log_every=10, progress=False) as run:
        for _ in run.steps(20):
            before = reads.count
            value = step(value)
            run.log(loss=value)
            assert reads.count == before
            at[run.step] = before
    changed = [s for s in range(2, 21) if at[s] != at[s - 1]]
    assert changed == [11]  # after step 10
    assert reads.count > at[20]  # the rest was read at the end, with the save


def test_the_log_may_get_columns_and_merges_what_one_step_logs(tmp_path: pathlib.Path) -> None:
    model = nnx.Dict({"w": nnx.Param(jnp.zeros(()))})
    with nnx.Run(tmp_path, model=model, log_every=2, progress=False) as run:
        run.log(before=True)
        for _ in run.steps(5):
            run.log(loss=jnp.float32(run.step) / 2)
            if run.every(4):
                run.log(**{"test, of all": np.int32(7)})
        run.log(end=model["w"])
    with open(tmp_path / "log.csv") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["step", "epoch", "seconds", "before", "loss", "test, of all", "end"]
    assert [[*row[:2], *row[3:]] for row in rows[1:]] == [
        ["0", "0", "True", "", "", ""],
        ["1", "0", "", "0.5", "", ""],
        ["2", "0", "", "1.0", "", ""],
        ["3", "0", "", "1.5", "", ""],
        ["4", "0", "", "2.0", "7", ""],
        ["5", "0", "", "2.5", "", "0.0"],
    ]
    assert run.last == {"before": True, "loss": 2.5, "test, of all": 7, "end": 0.0}


def test_a_log_takes_numbers_of_every_kind_as_they_are_at_that_moment(
    tmp_path: pathlib.Path,
) -> None:
    torch = pytest.importorskip("torch")
    model, host = nnx.Dict({"w": nnx.Param(jnp.zeros(())), "n": nnx.Variable(0)}), np.zeros(())
    step = nnx.jit(lambda model: model["w"].set_value(model["w"].value + 1), donate_argnums=0)
    kinds: dict[str, Callable[[], Any]] = {
        "array of numpy": lambda: host,
        "Variable": lambda: model["w"],  # its buffer is donated to the next step
        "Variable of an int": lambda: model["n"],
        "float32": lambda: np.float32(host),
        "int8": lambda: jnp.int8(host),
        "bfloat16": lambda: jnp.bfloat16(host),
        "of ml_dtypes": lambda: np.asarray(jnp.bfloat16(host)),
        "bool": lambda: bool(host >= 2),
        "bool array": lambda: jnp.array(host >= 2),
        "fraction": lambda: fractions.Fraction(int(host)),
        "tensor": lambda: torch.tensor(float(host)),
    }
    with nnx.Run(tmp_path, model=model, log_every=10, progress=False) as run:
        for _ in run.steps(3):
            host += 1
            model["n"].value += 1
            step(model)
            run.log({name: make() for name, make in kinds.items()}, more=run.step)
    for number, row in enumerate(logged(tmp_path), 1):
        for name in [*kinds, "more"]:
            expected = number >= 2 if name.startswith("bool") else number
            found = {"True": True, "False": False}.get(row[name], row[name])
            assert float(found) == expected, (name, number)


@pytest.mark.parametrize("save_every", [None, 5])
def test_patience_counts_a_metric_of_each_step_too(save_every: int | None) -> None:
    with nnx.Run(
        best="loss", patience=3, log_every=2, save_every=save_every, progress=False
    ) as run:
        for _ in run.steps(99):
            run.log(loss=float(max(1, 4 - run.step)))
    assert run.step == (10 if save_every is None else 20)  # at 4, 6, 8, 10 or at 5, 10, 15, 20
    assert run.best == ((4, 1.0) if save_every is None else (5, 1.0))


def test_run_json_says_with_what_and_how_often_the_run_was_started(tmp_path: pathlib.Path) -> None:
    seen(tmp_path, [1.0], 4, 4)
    seen(tmp_path, [1.0], 4)
    starts = json.loads((tmp_path / "run.json").read_text())["starts"]
    assert [start["step"] for start in starts] == [0, 2]
    assert starts[0]["versions"]["jax"] == jax.__version__
    assert starts[0]["devices"] == {jax.devices()[0].device_kind: jax.device_count()}
    assert starts[0]["command"] and "model" in starts[0]["layout"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"starts": 3}'])
def test_a_run_json_that_cannot_be_read_stops_no_run(tmp_path: pathlib.Path, text: str) -> None:
    seen(tmp_path, [1.0], 4, 4)
    (tmp_path / "run.json").write_text(text)
    seen(tmp_path, [1.0], 4)
    assert [s["step"] for s in json.loads((tmp_path / "run.json").read_text())["starts"]] == [2]


def test_without_a_terminal_there_are_plain_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moduli_train._run.progress._SECONDS", 0.0)
    with nnx.Run(data=[1.0], log_every=1) as run:
        for batch in run.steps(3):
            run.log(loss=batch)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4 and lines[-1].startswith("step 3/3  ") and "loss 1" in lines[-1]


def test_on_a_terminal_there_is_one_bar_with_the_last_values(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tqdm")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with nnx.Run(data=[0.25], log_every=1) as run:
        for batch in run.steps(3):
            run.log(loss=batch)
    assert "3/3" in (text := capsys.readouterr().err) and "loss=0.25" in text


def test_tensorboard_gets_what_is_logged(tmp_path: pathlib.Path) -> None:
    tensorboard = pytest.importorskip("tensorboardX")
    model = nnx.Dict({"w": nnx.Param(jnp.zeros(()))})
    with nnx.Run(tmp_path, model=model, data=[0.5], progress=False, tensorboard=True) as run:
        for batch in run.steps(3):
            run.log(loss=batch)
    (file,) = (tmp_path / "tensorboard").iterdir()
    reader = tensorboard.record_writer if hasattr(tensorboard, "record_writer") else None
    assert reader is not None and b"loss" in file.read_bytes()


def test_report_draws_what_was_logged(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("matplotlib")
    model = nnx.Dict({"w": nnx.Param(jnp.zeros(()))})
    with nnx.Run(tmp_path, model=model, data=[0.5], progress=False) as run:
        for batch in run.steps(3):
            run.log(loss=batch, good=True)
            if run.every(2):
                run.log(test=1.0)
        page = run.report()
    assert page == tmp_path / "report.html" and "data:image/png" in page.read_text()


def test_a_damaged_checkpoint_is_passed_over(tmp_path: pathlib.Path) -> None:
    whole = seen(tmp_path / "whole", [1.0, 2.0], 9)
    seen(tmp_path / "run", [1.0, 2.0], 9, 7)
    manager = nnx.CheckpointManager(tmp_path / "run")
    file = pathlib.Path(manager.info(6).path)
    file.write_bytes(file.read_bytes()[:-3] + b"???")
    with pytest.warns(DamagedCheckpointWarning, match="step 6 of .* is passed over"):
        assert seen(tmp_path / "run", [1.0, 2.0], 9) == whole[4:]
    assert logged(tmp_path / "run") == logged(tmp_path / "whole")


def logged(folder: pathlib.Path) -> Any:
    with open(folder / "log.csv") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def test_a_resume_cuts_rows_columns_and_half_a_line(tmp_path: pathlib.Path) -> None:
    def train(folder: pathlib.Path, stop: int | None) -> None:
        model = nnx.Dict({"w": nnx.Param(jnp.zeros(()))})
        try:
            with nnx.Run(folder, model=model, save_every=2, log_every=1, progress=False) as run:
                for _ in run.steps(6):
                    run.log(**{f"at {run.step}": run.step, "w": 0.5})
                    if run.step == stop:
                        raise InterruptedError
        except InterruptedError:
            with open(folder / "log.csv", "a") as file:
                file.write("6,0,0.1,5")  # the process was killed while it wrote

    train(tmp_path / "whole", None)
    for stop in (1, 4, 5, 6):
        train(tmp_path / str(stop), stop)
        train(tmp_path / str(stop), None)
        assert logged(tmp_path / str(stop)) == logged(tmp_path / "whole")
        header = (tmp_path / str(stop) / "log.csv").read_text().splitlines()[0]
        assert header == (tmp_path / "whole/log.csv").read_text().splitlines()[0]


@pytest.mark.parametrize("asynchronous", [True, False])
def test_each_save_is_the_state_of_its_step_though_steps_are_donated(
    tmp_path: pathlib.Path, asynchronous: bool
) -> None:
    model = nnx.Dict({"w": nnx.Param(jnp.zeros(100)), "seen": nnx.BatchStat(jnp.zeros(()))})

    @nnx.jit(donate_argnums=0)
    def step(model: Any) -> None:
        model["w"].value += 1
        model["seen"].value = model["w"].value.sum()

    with nnx.Run(tmp_path, model=model, save_every=1, keep=None, progress=False,
                 asynchronous=asynchronous) as run:  # fmt: skip
        for _ in run.steps(100):
            step(model)
    manager = nnx.CheckpointManager(tmp_path)
    assert manager.steps() == [*range(1, 101)]
    for number in manager.steps():
        state = nnx.load_state(manager.info(number).path)["model"]
        assert (state["w"].value == number).all() and state["seen"].value == 100 * number


# -- the best checkpoint, early stop, evaluation


def trained(folder: Any, values: list[float], steps: int, **options: Any) -> Any:
    model = nnx.Dict({"at": nnx.Param(jnp.float32(0))})
    with nnx.Run(folder, model=model, best="loss", progress=False, **options) as run:
        for index in run.steps(steps):
            model["at"].value = jnp.float32(run.step)
            if run.every(2):
                run.log(loss=values[index])
    return run, nnx.CheckpointManager(folder, keep_best=("loss", "min"))


def test_the_best_checkpoint_is_kept_also_between_saves(tmp_path: pathlib.Path) -> None:
    values = [9.0, 5.0, 9.0, 3.0, 9.0, 4.0, 9.0, 6.0, 9.0, 7.0, 9.0, 8.0]
    run, manager = trained(tmp_path, values, 12, save_every=5, keep=1)
    assert run.best == (4, 3.0)
    assert manager.steps() == [4, 12] and manager.best() == 4
    assert nnx.load_state(manager.info(4).path)["model"]["at"].value == 4


def test_patience_ends_a_run_for_good_and_survives_a_resume(tmp_path: pathlib.Path) -> None:
    values = [9.0, 5.0, 9.0, 6.0, 9.0, 7.0, 9.0, 8.0, 9.0, 1.0]
    for steps in (5, 7, 10, 10):  # the counter of what is no better is in the checkpoints
        run, manager = trained(tmp_path, values, steps, patience=3, save_every=1)
    assert run.step == 8 and manager.latest() == 8
    assert trained(tmp_path, values, 10, patience=4)[0].step == 10  # more patience goes on


def test_stop_ends_a_run_for_good(tmp_path: pathlib.Path) -> None:
    for _ in range(2):
        model = nnx.Dict({"at": nnx.Param(jnp.float32(0))})
        with nnx.Run(tmp_path, model=model, progress=False) as run:
            for _ in run.steps(9):
                if run.step == 3:
                    run.stop()
        assert run.step == 3


@pytest.mark.parametrize("ends", [[5, 7], [7, 7], [4, 5, 7, 3]])
def test_the_last_values_come_back_also_when_nothing_is_left_to_do(
    tmp_path: pathlib.Path, ends: list[int]
) -> None:
    """A program that prints ``run.last`` at its end prints the same however often it ran."""
    for end in ends:
        with nnx.Run(
            tmp_path, model=nnx.Dict({"w": nnx.Param(0.0)}), data=[1.0, 2.0], progress=False
        ) as run:
            for batch in run.steps(end):
                run.log(value=batch * run.step)
                if run.every(4):
                    run.log(rare=jnp.float32(0.1), ratio=math.nan, good=True)
    assert run.last.pop("ratio") != 0.0
    assert run.last == {"value": 7.0, "rare": float(np.float32(0.1)), "good": True}


def test_leaving_the_loop_saves_the_step(tmp_path: pathlib.Path) -> None:
    model = nnx.Dict({"at": nnx.Param(jnp.float32(0))})
    with nnx.Run(tmp_path, model=model, progress=False) as run:
        for _ in run.steps(9):
            model["at"].value += 1
            if run.step == 3:
                break
    assert nnx.CheckpointManager(tmp_path).latest() == 3
    with nnx.Run(tmp_path, model=model, progress=False) as run:
        assert (run.step, float(model["at"].value)) == (3, 3.0)


class Noisy(nnx.Module):
    def __init__(self) -> None:
        self.linear = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
        self.norm = nnx.BatchNorm(2, rngs=nnx.Rngs(0))
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(1))

    def __call__(self, x: Any) -> Any:
        return self.dropout(self.norm(self.linear(x)))


def noisy_step(model: Any, x: Any) -> Any:
    loss, grads = nnx.value_and_grad(lambda model: (model(x) ** 2).mean())(model)
    for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)).items():
        leaf.value = leaf.value - 0.1 * nnx.to_flat_state(grads)[path].value
    return loss


@pytest.mark.parametrize("evaluate", [None, lambda model: {"test": model(jnp.ones((4, 2))).sum()}])
def test_evaluation_leaves_training_alone(evaluate: Any) -> None:
    model, plain = Noisy(), Noisy()
    data = [np.arange(8.0, dtype=np.float32).reshape(4, 2)]
    nnx.fit(noisy_step, {"model": model}, data, steps=4, evaluate=evaluate, evaluate_every=1,
            progress=False)  # fmt: skip
    for _ in range(4):
        noisy_step(plain, data[0])
    for ours, theirs in zip(jax.tree.leaves(model), jax.tree.leaves(plain), strict=True):
        ours, theirs = (
            jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
            for x in (ours, theirs)
        )
        assert (ours == theirs).all()


def test_fit_is_the_loop_and_resumes(tmp_path: pathlib.Path) -> None:
    def total(steps: int, stop: Any = None) -> Any:
        model = nnx.Dict({"sum": nnx.Param(jnp.zeros(()))})

        def step(model: Any, batch: Any) -> Any:
            model["sum"].value += batch
            return {"loss": model["sum"].value}

        run = nnx.fit(
            step, {"model": model}, [1.0, 2.0], steps=steps, folder=tmp_path, progress=False,
            evaluate=lambda model: {"seen": model["sum"].value}, evaluate_every=2, stop=stop,
        )  # fmt: skip
        return run.step, float(model["sum"].value)

    assert total(3) == (3, 4.0)
    assert total(6, lambda values: values["seen"] > 5) == (4, 6.0)


# -- hooks


class Tracker:
    """What a tracker of experiments does, W&B's for one."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    @nnx.hookimpl
    def moduli_run_started(self, run: Any) -> None:
        self.events.append(("started", run.step))

    @nnx.hookimpl
    def moduli_run_logged(self, rows: Any) -> None:
        self.events += [("logged", step, dict(values)) for step, values in rows]

    @nnx.hookimpl
    def moduli_run_saved(self, step: int) -> None:
        self.events.append(("saved", step))

    @nnx.hookimpl
    def moduli_run_state(self) -> Any:
        return {"id": "a1b2"}

    @nnx.hookimpl
    def moduli_run_restored(self, states: Any) -> None:
        self.events.append(("restored", states["Tracker"]))

    @nnx.hookimpl
    def moduli_run_stopped(self, error: Any) -> None:
        self.events.append(("stopped", type(error).__name__))


def test_a_tracker_sees_what_happens_and_keeps_its_state(tmp_path: pathlib.Path) -> None:
    tracker = Tracker()
    with nnx.using(tracker):
        seen(tmp_path, [1.0], 3, 3)
        first, tracker.events = tracker.events, []
        seen(tmp_path, [1.0], 3)
    two = [("logged", s, {"sum": float(s), "step_again": s}) for s in (1, 2, 3)]
    assert first == [("started", 0), *two[:2], ("saved", 2), ("stopped", "InterruptedError")]
    assert tracker.events == [
        ("started", 2),
        ("restored", {"id": "a1b2"}),
        two[2],
        ("saved", 3),
        ("stopped", "NoneType"),
    ]


def test_a_hook_that_raises_is_switched_off_and_reported_once(tmp_path: pathlib.Path) -> None:
    class Bad:
        @nnx.hookimpl
        def moduli_run_logged(self) -> None:
            raise OSError("no network")

    with nnx.using(Bad()), pytest.warns(PluginWarning, match="no network") as caught:
        assert len(seen(tmp_path, [1.0], 9, log_every=2)) == 9
    assert len(caught) == 1


def test_a_plugins_state_that_is_no_json_costs_no_checkpoint(tmp_path: pathlib.Path) -> None:
    class Bad:
        @nnx.hookimpl
        def moduli_run_state(self) -> Any:
            return {"client": object()}

    with nnx.using(Bad(), tracker := Tracker()):
        with pytest.warns(PluginWarning, match="the plugin 'Bad' keeps with a run is no JSON"):
            seen(tmp_path, [1.0], 2)
        seen(tmp_path, [1.0], 2)
    assert ("restored", {"id": "a1b2"}) in tracker.events


@pytest.mark.parametrize("format", ["npz", "safetensors", "orbax"])
def test_checkpoints_are_of_any_format(tmp_path: pathlib.Path, format: str) -> None:
    if format == "orbax":
        pytest.importorskip("orbax.checkpoint")
    whole = seen(None, Cursor(), 6)
    seen(tmp_path, Cursor(), 6, 5, format=format)
    assert seen(tmp_path, Cursor(), 6, format=format) == whole[4:]
    assert nnx.CheckpointManager(tmp_path).info(6).format == format


def test_a_plugin_says_where_data_of_another_kind_stands(tmp_path: pathlib.Path) -> None:
    class Stream:
        at = 0

        def __iter__(self) -> Any:
            while True:
                self.at += 1
                yield float(self.at)

    class Streams:
        @nnx.hookimpl
        def moduli_data_state(self, data: Any) -> Any:
            if isinstance(data, Stream):
                return type("Place", (), {
                    "get_state": lambda self: data.at,
                    "set_state": lambda self, at: setattr(data, "at", at),
                })()  # fmt: skip

    with nnx.using(Streams()):
        assert seen(tmp_path, Stream(), 6, 4) == [1.0, 2.0, 3.0]
        assert seen(tmp_path, Stream(), 6) == [3.0, 4.0, 5.0, 6.0]


def test_without_a_folder_nothing_is_written(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert seen(None, [1.0], 3) == [1.0, 1.0, 1.0]
    assert os.listdir(tmp_path) == []


def test_a_run_shows_where_it_is(tmp_path: pathlib.Path) -> None:
    total = nnx.Dict({"value": nnx.Param(jnp.zeros(()))})
    with nnx.Run(tmp_path, model=total, data=[1.0, 2.0], log_every=1, progress=False) as run:
        assert repr(run) == f"Run({str(tmp_path)!r}, step=0, epoch=0)"
        for batch in run.steps(3):
            run.log(loss=batch)
    assert repr(run) == f"Run({str(tmp_path)!r}, step=3, epoch=1, loss=1)"
