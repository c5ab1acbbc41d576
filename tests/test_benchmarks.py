"""The benchmarks run, peers compute the same, the report is well-formed. Nothing is timed."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import statistics

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def benchmarks_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("job", ["forward", "train_step"])
@pytest.mark.parametrize(
    ("peer", "library"),
    [
        ("moduli.jit", "moduli"),
        ("equinox.filter_jit", "equinox"),
        ("flax.nnx split/merge", "flax"),
        ("flax.nnx.jit", "flax"),
    ],
)
def test_peer_agrees_with_raw_jax(job, peer, library):
    pytest.importorskip(library)
    from benchmarks.measure import peers  # compares outputs, and raises where they differ

    assert set(peers(job, depth=2, only=[peer])) == {"raw jax.jit", peer}


@pytest.mark.parametrize("job", ["forward", "train_step"])
def test_raw_jax_agrees_with_numpy(job):
    import numpy as np
    from benchmarks import problem
    from benchmarks.peers import raw

    (block,), (x, y) = problem.blocks(1), map(np.float64, problem.data())
    before = x @ block.kernel
    mean, var = before.mean(axis=0), before.var(axis=0)
    expected = np.maximum((before - mean) / np.sqrt(var + problem.EPSILON), 0)
    made = getattr(raw, job)(1)
    result = np.asarray(made.call())
    wanted = expected if job == "forward" else ((expected - y) ** 2).mean()
    np.testing.assert_allclose(result, wanted, rtol=1e-4, atol=1e-5)
    (kernel, running_mean, running_var) = made.weights()[0]
    np.testing.assert_allclose(running_mean, 0.1 * mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(running_var, 0.9 + 0.1 * var, rtol=1e-4)
    moved = np.abs(np.asarray(kernel) - block.kernel)
    wanted = 0.0 if job == "forward" else problem.LEARNING_RATE  # Adam's first step: sign(gradient)
    assert abs(np.median(moved) - wanted) < 1e-5


@pytest.mark.parametrize("fault", ["output", "statistics"])
def test_a_peer_that_does_something_else_is_found(monkeypatch, fault):
    from benchmarks import measure
    from benchmarks.peers import load

    peer = load("moduli.jit")
    assert peer is not None
    good = peer.forward

    def wrong(depth):
        job = good(depth)
        if fault == "output":
            return dataclasses.replace(job, call=lambda: job.call() + 1)
        before = job.weights()  # as if nothing were ever written back
        return dataclasses.replace(job, weights=lambda: before)

    monkeypatch.setattr(peer, "forward", wrong)
    message = {"output": r"moduli\.jit, call 0", "statistics": r"moduli\.jit, running mean"}
    with pytest.raises(AssertionError, match=message[fault]):
        measure.peers("forward", depth=1, only=["moduli.jit"])


def test_a_missing_library_leaves_its_peers_out(monkeypatch):
    from benchmarks import peers

    monkeypatch.setitem(peers.LIBRARIES, "equinox_jit", "not_installed_anywhere")
    assert peers.load("equinox.filter_jit") is None
    assert peers.load("moduli.jit") is not None


def test_every_round_runs_every_peer_in_an_order_of_its_own():
    from benchmarks.timing import round_robin

    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}
    times = round_robin(calls, rounds=40, budget_s=1.0, repeats=1)
    turns = order[-240::2]  # each turn is one call that is not timed, and one that is
    assert turns == order[-239::2]
    found = ["".join(turns[start : start + 3]) for start in range(0, 120, 3)]
    assert set(found) == {"abc", "acb", "bac", "bca", "cab", "cba"}
    assert {name: len(values) for name, values in times.items()} == dict.fromkeys("abc", 40)


def test_ratios_are_taken_within_rounds():
    from benchmarks.timing import ratio

    # the machine is ten times slower in the second round; each round says 2
    assert ratio({"raw": [1.0, 10.0, 1.0], "peer": [2.0, 20.0, 2.0]}, "peer", "raw") == 2.0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_report(tmp_path, capsys):
    pytest.importorskip("flax")
    pytest.importorskip("matplotlib")
    from benchmarks.__main__ import main

    numbers, table, picture = (tmp_path / name for name in ("r.json", "r.md", "r.png"))
    files = ["--json", str(numbers), "--markdown", str(table), "--plot", str(picture)]
    main(["--depth", "1", "--rounds", "1", "--calls", "1", "--only", "moduli.jit", *files])
    text = table.read_text()
    assert capsys.readouterr().out.strip() == text.strip()
    result = json.loads(numbers.read_text())
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    for job in ("forward", "train_step"):
        times = result["jobs"][job]["1"]
        assert set(times) == {"raw jax.jit", "moduli.jit"}
        raw, ours = times["raw jax.jit"], times["moduli.jit"]
        assert ["1", f"{statistics.median(raw):.0f}", f"{ours[0] / raw[0]:.2f}"] in rows
    for operation, by_depth in result["operations"].items():
        times = by_depth["1"]
        # the operations have three rounds at least, so what is reported is a median
        found = [f / m for f, m in zip(times["flax.nnx"], times["moduli"], strict=True)]
        assert [operation, f"{statistics.median(found):.1f}"] in rows
    assert {"split + merge", "state", "update", "clone"} < set(result["operations"])
    for fact in ("jax", "flax", "python", "cores", "device", "width"):
        assert f"{fact} {result['environment'][fact]}" in text
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_quartiles_stand_beside_the_median():
    from benchmarks.report import markdown

    times = {"raw jax.jit": [10.0] * 5, "moduli.jit": [10.0, 11.0, 12.0, 13.0, 14.0]}
    text = markdown(
        {"environment": {}, "rounds": 5, "jobs": {"forward": {3: times}}, "operations": {}}
    )
    assert "| 3 | 10 | 1.20 (1.05-1.35) |" in text
