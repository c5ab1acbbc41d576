"""The benchmarks run, peers compute the same, the report is well-formed. Nothing is timed."""

from __future__ import annotations

import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def benchmarks_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("job", ["forward", "train_step"])
def test_every_installed_peer_agrees_with_raw_jax(job):
    from benchmarks.measure import peers  # compares outputs, and raises where they differ

    calls = peers(job, depth=2)
    assert {"raw jax.jit", "moduli.jit"} <= set(calls)
    if "flax" in sys.modules:
        assert "flax.nnx.jit" in calls


def test_a_peer_that_computes_something_else_is_found(monkeypatch):
    from benchmarks import measure
    from benchmarks.peers import load

    wrong = load("moduli.jit")
    real = wrong.forward
    monkeypatch.setattr(
        wrong, "forward", lambda depth: (lambda call: lambda: call() + 1)(real(depth))
    )
    with pytest.raises(AssertionError, match=r"moduli\.jit, call 0"):
        measure.peers("forward", depth=1, only=["moduli.jit"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_report(tmp_path, capsys):
    import json

    from benchmarks.__main__ import main

    numbers, table, picture = (tmp_path / name for name in ("r.json", "r.md", "r.png"))
    files = ["--json", str(numbers), "--markdown", str(table), "--plot", str(picture)]
    main(["--depth", "1", "2", "--rounds", "1", "--budget", "0.001", *files])
    text = table.read_text()
    assert capsys.readouterr().out.strip() == text.strip()
    result = json.loads(numbers.read_text())
    for job in ("forward", "train_step"):
        times = result["jobs"][job]["2"]
        ratio = times["moduli.jit"] / times["raw jax.jit"]
        row = next(
            line
            for line in text.splitlines()
            if line.startswith("| 2 |") and f"{ratio:.2f}" in line
        )
        assert f"{times['raw jax.jit']:.0f}" in row
    assert picture.read_bytes().startswith(b"\x89PNG")
