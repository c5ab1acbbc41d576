"""The command line: ``python -m moduli plugins`` and ``python -m moduli doctor``.

Both print plain text, or with ``--json`` one JSON object with stable keys. Their exit status is 0,
1 if ``doctor`` finds problems, 2 for a wrong command line or choice of plugins.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from moduli import _plugins, errors
from moduli._facade import doctor

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
    return parser
