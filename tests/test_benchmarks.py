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
    from benchmarks.agreement import agreeing_jobs  # raises where outputs or weights differ

    jobs = agreeing_jobs(job, depth=2, only=[peer])
    assert set(jobs) == {"raw jax.jit", peer}


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


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_eager_computations_agree_with_raw_jax():
    import numpy as np
    from benchmarks import eager

    for name, case in eager.CASES.items():
        results = {peer: np.asarray(call()) for peer, call in eager.peers(case).items()}
        raw = results.pop("raw")
        for peer, result in results.items():
            assert result.shape == raw.shape, (name, peer)
            if not name.startswith("RNN"):  # it has weights of its own
                np.testing.assert_allclose(result, raw, rtol=1e-4, atol=1e-6, err_msg=name + peer)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["tiny ResNet", "tiny GPT", "tiny LSTM"])
def test_first_models_are_the_same_in_every_library(name):
    import jax
    from benchmarks.first_models import TINY_MODELS
    from benchmarks.libraries import libraries

    case, shapes = TINY_MODELS[name], {}
    for library, nnx in libraries().items():
        model = nnx.eval_shape(lambda nnx=nnx: case.build(nnx))
        x, y = case.batch()
        out = nnx.eval_shape(lambda model, x: model(x), model, x)
        assert out.shape[: y.ndim] == y.shape
        leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
        shapes[library] = sorted(leaf.shape for leaf in leaves), out.shape, out.dtype
    assert len({str(found) for found in shapes.values()}) == 1, shapes


@pytest.mark.parametrize("fault", ["output", "statistics"])
def test_a_peer_that_does_something_else_is_found(monkeypatch, fault):
    from benchmarks import agreement
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
        agreement.agreeing_jobs("forward", depth=1, only=["moduli.jit"])


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
    from benchmarks.timing import ratios

    # the machine is ten times slower in the second round; each round says 2
    times = {"raw": [1.0, 10.0, 1.0], "peer": [2.0, 20.0, 2.0]}
    assert ratios(times, "peer", "raw") == [2.0, 2.0, 2.0]


def test_work_from_cold_is_timed_in_stages():
    from benchmarks.timing import from_cold

    done: list[str] = []
    calls = {name: (lambda name=name: done.append(name) or name) for name in "ab"}
    stages = {"first": lambda call: call() + "1", "second": lambda got: done.append(got)}
    times = from_cold(calls, rounds=2, stages=stages)
    assert done[:2] == ["a", "b"]  # what Python does once
    assert sorted(done[2:]) == ["a", "a", "a1", "a1", "b", "b", "b1", "b1"]
    assert all(after == before + "1" for before, after in zip(done[2::2], done[3::2], strict=True))
    assert {s: {n: len(t) for n, t in by.items()} for s, by in times.items()} == {
        "first": {"a": 2, "b": 2},
        "second": {"a": 2, "b": 2},
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("donate", [False, True])
def test_lowering_starts_anew_each_time(donate):
    from benchmarks.peers import PEERS, load

    for name in PEERS:
        peer = load(name)
        if peer is not None:
            job = peer.train_step(1)
            first, second = job.lower(donate), job.lower(donate)
            assert first is not second
            assert first.as_text() == second.as_text()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_report(tmp_path, capsys):
    pytest.importorskip("flax")
    pytest.importorskip("equinox")
    pytest.importorskip("matplotlib")
    from benchmarks.__main__ import main
    from benchmarks.peers import PEERS
    from benchmarks.sections import SECTIONS
    from benchmarks.settings import QUICK
    from benchmarks.stress_cases import CASES

    numbers, table, picture = (tmp_path / name for name in ("r.json", "r.md", "r.png"))
    files = ["--json", str(numbers), "--markdown", str(table), "--plot", str(picture)]
    main(["--quick", *files])
    text = table.read_text()
    assert capsys.readouterr().out.strip() == text.strip()
    result = json.loads(numbers.read_text())
    found = result["sections"]
    assert set(found) == set(SECTIONS)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]

    def check_row(label, times):
        raw = times["raw jax.jit"]
        cells = [
            f"{statistics.median(a / b for a, b in zip(values, raw, strict=True)):.2f}"
            for name, values in times.items()
            if name != "raw jax.jit"
        ]
        assert [label, *cells] in [[*row[:1], *row[2:]] for row in rows]

    depths = list(map(str, QUICK.depths))
    for by_depth in (found["calls"]["forward"], found["calls"]["train_step"], found["tracing"]):
        assert list(by_depth) == depths
        for depth, times in by_depth.items():
            assert list(times) == list(PEERS)
            check_row(depth, times)
    assert set(found["stress"]["cases"]) == set(CASES)
    for case, times in found["stress"]["cases"].items():
        assert set(times) == {"raw jax.jit", "raw again", "moduli.jit", "flax.nnx.jit"}
        check_row(case, times)
    assert {"split + merge", "state", "update", "clone"} < set(found["operations"])
    for operation, by_depth in found["operations"].items():
        faster = [
            statistics.median(f / m for f, m in zip(t["flax.nnx"], t["moduli"], strict=True))
            for t in by_depth.values()
        ]
        assert [operation, *[f"{value:.1f}" for value in faster]] in rows
    for state, sizes in {s: found["memory"][s] for s in ("kept", "donated")}.items():
        # the state is donated, all of it, where that is asked for, and nowhere else
        assert set(sizes) == {name for name in PEERS if name != "raw again"}
        assert (sizes["raw jax.jit"]["alias"] > 0) is (state == "donated")
        for of_peer in sizes.values():
            for kind in ("argument", "alias"):
                more = of_peer[kind] - sizes["raw jax.jit"][kind]
                assert more in (0, 4)  # nnx's optimizers count their steps as well
    assert all(counts["moduli"] == 0 for counts in found["eager"]["compilations"].values())
    assert set(found["layers"]["times"]) == set(QUICK.layers)
    (first,) = found["first_use"]["models"].values()
    for parts in first.values():  # building is a part of the way to the first step
        assert all(b < s for b, s in zip(parts["built"], parts["stepped"], strict=True))
    for fact in ("jax", "flax", "python", "cores", "device", "width"):
        assert f"{fact} {result['environment'][fact]}" in text
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_sections_can_be_chosen(tmp_path, capsys):
    from benchmarks.__main__ import main

    numbers, picture = tmp_path / "r.json", tmp_path / "r.png"
    main(["--quick", "--sections", "building", "--json", str(numbers), "--plot", str(picture)])
    assert set(json.loads(numbers.read_text())["sections"]) == {"building"}
    assert "random keys" in capsys.readouterr().out
    assert not picture.exists()  # building has no panel


def test_ratios_of_memory():
    from benchmarks import memory

    raw = {"argument": 1000, "output": 1000, "alias": 0, "temp": 2048}
    ours = {"argument": 1000, "output": 1050, "alias": 0, "temp": 1024}
    kept = {"raw jax.jit": raw, "moduli.jit": ours}
    for sizes in kept.values():
        sizes["total"] = memory.total(sizes)
    text = "\n".join(memory.report({"depth": 20, "kept": kept}))
    assert "| moduli.jit, state kept | 1.000 | 1.050 | 0 | 0.500 | 0.759 |" in text
    assert memory.total({**raw, "alias": 900}) == 1000 + 1000 + 2048 - 900
    assert "no memory analysis" in "\n".join(memory.report({}))


def test_the_parts_of_building_add_up():
    from benchmarks.building import parts

    times = {"whole": [9e3], "ready arrays": [6e3], "keys": [4e3]}
    assert list(parts(times).values()) == [3.0, 4.0, 2.0]


def test_ready_arrays_take_the_place_of_the_initializers():
    import jax.numpy as jnp
    from benchmarks.peers import _nnx_models

    import moduli

    calls = []

    def ones(key, shape, dtype):
        calls.append(shape)
        return jnp.ones(shape, dtype)

    made = _nnx_models.model_class(moduli, 2, kernel=ones, bias=ones, scale=ones)(moduli.Rngs(0))
    assert len(calls) == 2 * 4
    assert float(made.linears[1].kernel[...].min()) == 1.0


def test_a_stack_that_is_missing_is_said(monkeypatch):
    from benchmarks import stack_models, stacking
    from benchmarks.settings import QUICK

    def missing(depth):
        raise stack_models.StackMissing("moduli has no Stack yet")

    models = {"raw loop": stack_models.looped_by_hand, "moduli Stack": missing}
    monkeypatch.setattr(stack_models, "MODELS", models)
    found = stacking.measure(QUICK)
    assert "Left out: moduli Stack (moduli has no Stack yet)." in stacking.report(found)
    assert set(found["times"]["compile"][1]) == {"raw loop"}


@pytest.mark.parametrize("model", ["raw loop", "raw lax.scan", "moduli loop", "moduli Stack"])
def test_deep_models_lower_forward_and_backward(model):
    from benchmarks import stack_models

    try:
        lower = stack_models.MODELS[model](3)
    except stack_models.StackMissing as missing:
        pytest.skip(str(missing))
    text = lower().as_text()
    scans = model in ("raw lax.scan", "moduli Stack")
    assert ("stablehlo.while" in text) is scans
    products = text.count("stablehlo.dot_general")
    # a block: two products forward; backward two for the kernels, and two for the inputs, of which
    # the first block needs one
    assert products == 6 if scans else products >= 3 * 6 - 1


def test_the_plot_has_a_panel_for_what_was_measured(tmp_path):
    pytest.importorskip("matplotlib")
    from benchmarks.plot import plot

    times = {"raw jax.jit": [1.0] * 5, "moduli.jit": [1.0, 1.1, 1.2, 1.3, 1.4]}
    by_depth = {"3": times, "20": times}
    stages = {"trace": by_depth, "compile": by_depth}
    sections = {
        "calls": {"forward": by_depth},
        "tracing": by_depth,
        "stacking": {"times": stages, "notes": {}},
    }
    path = tmp_path / "all.svg"
    assert plot({"sections": sections}, path)
    found = path.read_text()
    assert found.count('id="axes_') == 4  # two of ratios, two of times
    assert plot({"sections": {"calls": {"forward": by_depth}}}, path)
    assert not plot({"sections": {"building": {}}}, tmp_path / "none.svg")


def test_quartiles_stand_beside_the_median():
    from benchmarks.report import markdown

    times = {"raw jax.jit": [10.0] * 5, "moduli.jit": [10.0, 11.0, 12.0, 13.0, 14.0]}
    sections = {"calls": {"forward": {3: times}}}
    text = markdown({"environment": {}, "rounds": 5, "sections": sections})
    assert "| 3 | 10 µs | 1.20 (1.05-1.35) |" in text


def layer_names():
    import sys

    sys.path.insert(0, str(ROOT))
    from benchmarks.layer_cases import CASES

    sys.path.remove(str(ROOT))
    return list(CASES)


@pytest.mark.parametrize("name", layer_names())
def test_a_layer_agrees_with_its_maths_by_hand(name):
    import jax
    import numpy as np
    from benchmarks import layer_calls
    from benchmarks.layer_cases import CASES

    case = dataclasses.replace(CASES[name], inputs=(2, *CASES[name].inputs[1:]))
    by_hand, ours = layer_calls.by_hand(case), layer_calls.lifted(case, layer_calls.moduli)
    for _ in range(2):  # the second time with the state of the first
        (value, grads), (expected, raw) = ours(), by_hand()
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        mine = [*jax.tree.leaves(grads[0]), *grads[1:]]
        for grad, other in zip(mine, jax.tree.leaves(raw), strict=True):
            np.testing.assert_allclose(grad, other, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", layer_names())
def test_a_layers_program_does_no_more_work_than_its_maths_by_hand(name):
    from benchmarks import layer_calls
    from benchmarks.layer_cases import CASES

    case = dataclasses.replace(CASES[name], inputs=(2, *CASES[name].inputs[1:]))
    counts = layer_calls.work(case)
    by_hand, ours = counts[layer_calls.RAW], counts[layer_calls.OURS]
    assert by_hand["bytes"] > 0
    for kind, count in by_hand.items():
        assert ours[kind] <= 1.05 * count + 1024, kind  # a KiB: alignment of small buffers
