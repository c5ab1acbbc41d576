"""The command line: ``python -m moduli plugins``, ``doctor``, ``new-plugin``, and others.

``plugins order HOOK`` says who runs in a hook, ``plugins trace -- SCRIPT`` who did what in one run
of a program. The reports are plain text, or with ``--json`` one JSON object with stable keys. Their
exit status is 0, 1 if ``doctor`` finds problems, 2 for a wrong command line or choice of plugins.
What runs a program has its exit status. The commands of a package of ours are listed here, so that
one that is not installed can say so; the package's ``command_line`` holds them.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import moduli
from moduli import _plugins, errors
from moduli._base.install_hint import install_hint
from moduli._facade import doctor, plugin_commands, run_program
from moduli._facade.resolve import resolve

__all__ = ["main"]

_EXTENSIONS = {
    "inspect": ("interop", "list what a checkpoint holds; reads headers only"),
    "verify": ("interop", "read every byte of checkpoints; says which arrays are damaged"),
    "convert": ("interop", "write a checkpoint in another format"),
    "diff": ("interop", "compare two checkpoints"),
}

_PARTS = {
    "layer": "a layer that has a kind of Variable and a mode of its own",
    "tool": "a tool that records under every transform",
    "format": "a file format for checkpoints",
    "bridge": "layers from and to another framework",
    "transform": "a transform of JAX's for functions of modules",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      argv: the arguments; by default those of the program.

    Returns:
      The exit status.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:3] == ["plugins", "trace", "--"]:  # what argparse does with -- varies
            del arguments[2]
        options = _parser(arguments).parse_args(arguments)
    except errors.MissingPluginError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.chosen is not None:
        _plugins.select(options.chosen.removeprefix("="))
    if options.command == "as-flax":
        return _as_flax(options)
    if options.command in _EXTENSIONS:
        try:
            status = options.run(options)
            sys.stdout.flush()
        except BrokenPipeError:  # as in _print
            _discard_output()
            return 128 + 13  # what a shell reports of a program that SIGPIPE ended
        return status
    if options.command == "new-plugin":
        return _new_plugin(options)
    action = getattr(options, "action", None)
    if action == "trace":
        plugin_commands.trace(options.target, options.arguments, as_module=options.as_module)
        return 0
    make, render = {
        "order": (lambda: plugin_commands.order(options.hook), plugin_commands.text_of_order),
        "plugins": (doctor.plugins, doctor.text_of_plugins),
        "doctor": (doctor.doctor, doctor.text_of_doctor),
    }[action or options.command]
    try:
        with _plugins.reporting_only():  # the report says what failed
            report = make()
    except errors.PluginError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    _print(json.dumps(report, indent=2) if options.json else render(report))
    return 1 if report.get("problems") else 0


def _as_flax(options: argparse.Namespace) -> int:
    try:
        resolve("as_flax")()
    except errors.ModuliError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    run_program.run(options.target, options.arguments, as_module=options.as_module)
    return 0


def _new_plugin(options: argparse.Namespace) -> int:
    from moduli._facade.new_plugin import generate  # needed here alone

    try:
        folder = generate(options.name, options.parts or (), options.into)
    except (errors.PluginError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    _print(
        f"made {folder}; its README.md says what is where. Next:\n\n"
        f'  cd {folder}\n  pip install -e ".[test,lint]"\n  pytest'
    )
    return 0


def _print(text: str) -> None:
    """Prints a report; whoever reads only its beginning (``| head``) gets that."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        _discard_output()


def _discard_output() -> None:
    """Writes what is printed from now on nowhere; Python would try again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
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
    parser.add_argument("--version", action="version", version=f"moduli {moduli.__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("plugins", "list the installed plugins: state, hooks, order, load time"),
        ("doctor", "list versions, devices, plugins and problems"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--json", action="store_true", help="print one JSON object")
        if name == "plugins":
            _add_actions(command)
    text = "run a program written for flax.nnx on moduli"
    command = commands.add_parser("as-flax", help=text, description=text)
    command.add_argument("-m", action="store_true", dest="as_module", help="target is a module")
    command.add_argument("target", metavar="SCRIPT_OR_MODULE", help="train.py, or a module's name")
    command.add_argument("arguments", nargs=argparse.REMAINDER, help="the program's own arguments")
    _add_new_plugin(commands)
    for name, (package, text) in _EXTENSIONS.items():
        command = commands.add_parser(name, help=text, description=text)
        if name in arguments:  # the others stay untouched
            extension = _extension(name, package)
            extension.add_arguments(command)
            command.set_defaults(run=extension.run)
    return parser


def _add_new_plugin(commands: Any) -> None:
    text = "make a package that is a tested plugin from the start"
    command = commands.add_parser(
        "new-plugin", help=text, description=f"{text}; by default with --layer and --tool"
    )
    command.add_argument("name", metavar="NAME", help="as pip will know it: moduli-shiny")
    for part, what in _PARTS.items():
        command.add_argument(
            f"--{part}", dest="parts", action="append_const", const=part, help=f"with {what}"
        )
    command.add_argument(
        "--into", metavar="FOLDER", default=".", help="where to make it; by default here"
    )


def _add_actions(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(dest="action")
    text = "show who implements a hook, in the order in which they run"
    action = actions.add_parser("order", help=text, description=text)
    action.add_argument("hook", help="such as moduli_after_call, or after_call")
    action.add_argument("--json", action="store_true", default=argparse.SUPPRESS)
    text = "run a program, then show what each plugin did and changed in it"
    action = actions.add_parser("trace", help=text, description=text)
    action.add_argument("-m", action="store_true", dest="as_module", help="target is a module")
    action.add_argument("target", metavar="SCRIPT_OR_MODULE", help="train.py, or a module's name")
    action.add_argument("arguments", nargs=argparse.REMAINDER, help="the program's own arguments")


def _extension(name: str, package: str) -> Any:
    module = f"moduli_{package}.command_line"
    try:
        return importlib.import_module(module).COMMANDS[name]
    except ModuleNotFoundError as error:
        if error.name not in (module, module.partition(".")[0]):
            raise
        raise errors.MissingPluginError(
            f"`python -m moduli {name}` is in the package moduli-{package}: {install_hint(package)}"
        ) from None
