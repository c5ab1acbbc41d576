"""The command line: ``python -m moduli plugins``, ``doctor`` and ``as-flax``.

The first two print plain text, or with ``--json`` one JSON object with stable keys. Their exit
status is 0, 1 if ``doctor`` finds problems, 2 for a wrong command line or choice of plugins. The
third runs a program, whose exit status it has.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from moduli import _plugins, errors
from moduli._facade import doctor, run_program
from moduli._facade.resolve import resolve

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      argv: the arguments; by default those of the program.

    Returns:
      The exit status.
    """
    options = _parser().parse_args(argv)
    if options.chosen is not None:
        _plugins.select(options.chosen.removeprefix("="))
    if options.command == "as-flax":
        return _as_flax(options)
    make, render = {
        "plugins": (doctor.plugins, doctor.text_of_plugins),
        "doctor": (doctor.doctor, doctor.text_of_doctor),
    }[options.command]
    try:
        with _plugins.reporting_only():  # the report says what failed
            report = make()
    except errors.PluginError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(report, indent=2) if options.json else render(report))
    return 1 if report.get("problems") else 0


def _as_flax(options: argparse.Namespace) -> int:
    try:
        resolve("as_flax")()
    except errors.ModuliError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    run_program.run(options.target, options.arguments, as_module=options.as_module)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m moduli", description="What is installed, and whether it fits together."
    )
    parser.add_argument(
        "-p",
        "--plugins",
        metavar="NAMES",
        dest="chosen",
        help="choose plugins as MODULI_PLUGINS does: 'a,b', 'none' or '-c' (write -p=-c)",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("plugins", "list the installed plugins: state, hooks, order, load time"),
        ("doctor", "list versions, devices, plugins and problems"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--json", action="store_true", help="print one JSON object")
    text = "run a program written for flax.nnx on moduli"
    command = commands.add_parser("as-flax", help=text, description=text)
    command.add_argument("-m", action="store_true", dest="as_module", help="target is a module")
    command.add_argument("target", metavar="SCRIPT_OR_MODULE", help="train.py, or a module's name")
    command.add_argument("arguments", nargs=argparse.REMAINDER, help="the program's own arguments")
    return parser
