"""``python -m benchmarks``: measure, print the tables, and write them where asked."""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Sequence

from benchmarks.measure import measure
from benchmarks.peers import PEERS
from benchmarks.report import markdown, plot


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--depth", type=int, nargs="+", default=[3, 20, 100])
    parser.add_argument("--rounds", type=int, default=41, help="turns of every peer")
    parser.add_argument("--budget", type=float, default=0.015, help="seconds of one turn")
    parser.add_argument("--calls", type=int, help="calls in one turn, in place of the budget")
    parser.add_argument("--only", nargs="+", default=[], choices=list(PEERS), metavar="PEER")
    parser.add_argument("--no-operations", action="store_true", help="leave out split, merge, ...")
    parser.add_argument("--json", type=pathlib.Path, help="write all numbers to this file")
    parser.add_argument("--markdown", type=pathlib.Path, help="write the tables to this file")
    parser.add_argument("--plot", type=pathlib.Path, help="write the plot to this file")
    options = parser.parse_args(argv)
    result = measure(
        depths=options.depth,
        rounds=options.rounds,
        budget_s=options.budget,
        repeats=options.calls,
        only=options.only,
        operations=not options.no_operations,
    )
    text = markdown(result)
    print(text)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2))
    if options.markdown:
        options.markdown.write_text(text + "\n")
    if options.plot:
        plot(result, options.plot)


if __name__ == "__main__":
    main()
