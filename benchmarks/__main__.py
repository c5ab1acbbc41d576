"""``python -m benchmarks``: measure, print the tables, and write them where asked."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.environment import environment
from benchmarks.peers import PEERS
from benchmarks.plot import plot
from benchmarks.report import markdown
from benchmarks.sections import SECTIONS
from benchmarks.settings import QUICK, Settings


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    options = _parser().parse_args(argv)
    settings = _settings(options)
    result: dict[str, Any] = {
        "environment": environment(),
        "rounds": settings.rounds,
        "settings": dataclasses.asdict(settings),
        "sections": {},
    }
    for name in [name for name in SECTIONS if name in options.sections]:
        start = time.perf_counter()
        print(f"{name}: {SECTIONS[name].title} ...", file=sys.stderr, flush=True)
        result["sections"][name] = SECTIONS[name].measure(settings)
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        if options.json:  # after every section, so that a run that is cut off leaves something
            options.json.write_text(json.dumps(result, indent=2))
    text = markdown(result)
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n")
    if options.plot and not plot(result, options.plot):
        print("no plot: none of these sections has one", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    titles = "; ".join(f"{name}: {section.title}" for name, section in SECTIONS.items())
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--sections",
        nargs="+",
        default=list(SECTIONS),
        choices=list(SECTIONS),
        metavar="SECTION",
        help=f"what to measure, by default everything. {titles}",
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does everything run?")
    parser.add_argument("--depth", type=int, nargs="+", help="numbers of blocks")
    parser.add_argument("--rounds", type=int, help="turns of every peer")
    parser.add_argument("--budget", type=float, help="seconds of one turn")
    parser.add_argument("--calls", type=int, help="calls in one turn, in place of the budget")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(PEERS),
        metavar="PEER",
        help=f"peers of calls, tracing and memory besides raw JAX: {', '.join(PEERS)}",
    )
    parser.add_argument("--json", type=pathlib.Path, help="write all numbers to this file")
    parser.add_argument("--markdown", type=pathlib.Path, help="write the tables to this file")
    parser.add_argument(
        "--plot", type=pathlib.Path, help="write the plot to this file, .png or .svg"
    )
    return parser


def _settings(options: argparse.Namespace) -> Settings:
    given = {
        "depths": options.depth and tuple(options.depth),
        "rounds": options.rounds,
        "budget_s": options.budget,
        "repeats": options.calls,
        "only": options.only and tuple(options.only),
    }
    start = QUICK if options.quick else Settings()
    return dataclasses.replace(start, **{n: v for n, v in given.items() if v is not None})


if __name__ == "__main__":
    main()
