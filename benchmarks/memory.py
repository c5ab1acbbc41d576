"""Memory of the compiled train step, with and without donation, relative to raw JAX."""

from __future__ import annotations

from typing import Any

from benchmarks.peers import RAW, jobs
from benchmarks.settings import Settings
from benchmarks.tables import table

SIZES = ("argument", "output", "alias", "temp")
LEFT_OUT = ("raw again",)  # the same program, and there is no noise in it


def measure(settings: Settings) -> dict[Any, Any]:
    """Returns "kept" or "donated" -> peer -> bytes of each kind; empty where XLA tells nothing."""
    made = jobs("train_step", settings.detail_depth, settings.only)
    found: dict[str, Any] = {}
    for state, donate in {"kept": False, "donated": True}.items():
        for name, job in made.items():
            assert job.lower is not None
            if name in LEFT_OUT:
                continue
            analysis = job.lower(donate).compile().memory_analysis()
            if analysis is None:
                return {}
            sizes = {size: getattr(analysis, f"{size}_size_in_bytes") for size in SIZES}
            found.setdefault(state, {})[name] = {**sizes, "total": total(sizes)}
    return {"depth": settings.detail_depth, **found}


def total(sizes: dict[str, int]) -> int:
    """Bytes that a call holds at once: outputs in donated buffers are counted once."""
    return sizes["argument"] + sizes["output"] + sizes["temp"] - sizes["alias"]


def report(found: dict[Any, Any]) -> list[str]:
    """Formats the table: bytes of raw JAX, and ratios to it."""
    if not found:
        return ["Memory: this backend gives no memory analysis.", ""]
    depth = found["depth"]
    by_state = {state: peers for state, peers in found.items() if state != "depth"}
    kinds = [*SIZES, "total"]
    rows = []
    for state, peers in by_state.items():
        raw = peers[RAW]
        rows.append([f"{RAW}, state {state}, KiB", *[f"{raw[kind] / 1024:.1f}" for kind in kinds]])
        for name, sizes in peers.items():
            if name != RAW:
                rows.append([f"{name}, state {state}", *[_ratio(sizes, raw, k) for k in kinds]])
    return [
        f"Memory of the compiled train step at depth {depth} (`compiled.memory_analysis()`), with",
        "the state's buffers kept or donated: bytes of raw JAX, and the others relative to it.",
        "",
        *table(["train step", *kinds], rows),
    ]


def _ratio(sizes: dict[str, int], raw: dict[str, int], kind: str) -> str:
    if not raw[kind]:
        return "0" if not sizes[kind] else f"{sizes[kind]} bytes"
    return f"{sizes[kind] / raw[kind]:.3f}"
