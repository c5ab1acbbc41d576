"""``python -m moduli inspect | verify | convert | diff``: files of weights, without a program.

Core's command line finds :data:`COMMANDS` here. Each command prints to stdout and returns its exit
status: 0, 1 if a file is damaged or two differ; errors go to stderr with the status 2.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator

from moduli.errors import ModuliError, format_path
from moduli_interop._choose import choose_format, recognize_format
from moduli_interop._dtypes import from_bits
from moduli_interop._errors import (
    CheckpointError,
    CheckpointFormatError,
    CheckpointNotFoundError,
    NotACheckpointError,
)
from moduli_interop._foreign_files import (
    convert_tensors,
    differences_of_tensors,
    how_far,
    tensors_or_none,
)
from moduli_interop._inspect import CheckpointInfo, inspect_checkpoint, verify_checkpoint
from moduli_interop._manager import CheckpointManager
from moduli_interop._markers import StepInfo, has_steps
from moduli_interop._match import paired
from moduli_interop._stored import Leaf, describe, named_arrays, replaced

__all__ = ["COMMANDS", "Command"]


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of ``python -m moduli``.

    Attributes:
      add_arguments: adds the command's arguments to a parser.
      run: takes the parsed arguments and returns the exit status.
    """

    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def _guarded(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    def guarded(options: argparse.Namespace) -> int:
        try:
            return run(options)
        except BrokenPipeError:  # of the output: the command line ends quietly
            raise
        except (ModuliError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2

    return guarded


# -- inspect ---------------------------------------------------------------------------------------


def _inspect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="a checkpoint, a folder of steps, or foreign weights")
    parser.add_argument("--format", help="name of the format; by default the content tells it")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _inspect(options: argparse.Namespace) -> int:
    if options.format is None and has_steps(options.path):
        return _inspect_steps(options)
    try:
        info = inspect_checkpoint(options.path, format=options.format, verify=False)
    except CheckpointError as error:
        text = _foreign(options.path) if options.format is None else None
        if text is None:
            raise
        if not isinstance(error, NotACheckpointError):
            print(f"note: {error}", file=sys.stderr)
        print(text)
        return 0
    print(json.dumps(_as_json(info), indent=2) if options.json else info)
    return 0


def _inspect_steps(options: argparse.Namespace) -> int:
    infos, damaged = _steps(options.path)
    if options.json:
        bad = [{"step": step, "error": str(error)} for step, error in damaged.items()]
        steps = [dataclasses.asdict(info) for info in infos.values()]
        print(json.dumps({"steps": steps, "damaged": bad}, indent=2))
        return 1 if damaged else 0
    count = f", {len(damaged)} of them damaged" if damaged else ""
    print(f"{options.path}: {len(infos) + len(damaged)} steps{count}")
    for step in sorted(infos.keys() | damaged.keys()):
        if step in damaged:
            print(f"{step:>10}  damaged: {damaged[step]}")
            continue
        info = infos[step]
        metrics = ", ".join(f"{name} {value:g}" for name, value in info.metrics.items())
        print(f"{step:>10}  {os.path.basename(info.path)}  {metrics}".rstrip())
    return 1 if damaged else 0


def _steps(folder: str) -> tuple[dict[int, StepInfo], dict[int, Exception]]:
    """Returns what the markers of a manager's folder say, and what is wrong with the others."""
    manager = CheckpointManager(folder)
    infos: dict[int, StepInfo] = {}
    damaged: dict[int, Exception] = {}
    for step in manager.steps():
        try:
            infos[step] = manager.info(step, present=True)
        except (CheckpointError, OSError) as error:
            damaged[step] = error
    return infos, damaged


def _as_json(info: CheckpointInfo) -> dict[str, object]:
    return {
        "path": info.path,
        "format": info.format,
        "moduli_version": info.moduli_version,
        "metadata": dict(info.metadata),
        "leaves": [
            {
                "path": format_path(leaf.path),
                "kind": leaf.kind,
                "type": leaf.type,
                "bytes": leaf.nbytes,
                "aliases": [format_path(alias) for alias in leaf.aliases],
            }
            for leaf in info.leaves
        ],
    }


def _foreign(path: str) -> str | None:
    """Lists the tensors of a file that is no checkpoint; None if it is no such file either."""
    tensors = tensors_or_none(path)
    if tensors is None:
        return None
    rows = [(name, str(t.dtype), str(list(t.shape))) for name, t in tensors.items()]
    widths = [max([len(row[i]) for row in rows], default=0) for i in range(2)]
    lines = [f"{name:{widths[0]}}  {dtype:{widths[1]}}  {shape}" for name, dtype, shape in rows]
    return "\n".join([f"{path}: {len(rows)} tensors, not written by moduli.save", *lines])


# -- verify ----------------------------------------------------------------------------------------


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", help="checkpoints, or folders of steps")
    parser.add_argument("--format", help="name of the format; by default the content tells it")


def _verify(options: argparse.Namespace) -> int:
    status = 0
    for path in options.paths:
        if options.format is not None or not has_steps(path):
            status = max(status, _verified(path, options.format))
            continue
        infos, damaged = _steps(path)
        for step in sorted(infos.keys() | damaged.keys()):
            if step in damaged:
                print(damaged[step])
                status = max(status, 1)
            else:
                status = max(status, _verified(infos[step].path, None))
    return status


def _verified(file: str, format: str | None) -> int:
    """Verifies one file and says how it is; what cannot be opened does not end the command."""
    try:
        verify_checkpoint(file, format=format)
    except CheckpointError as error:
        print(f"{file}: {error}")
        return 1
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{file}: whole")
    return 0


def _file_of(path: str) -> str:
    """Returns a checkpoint's path; of a folder of steps, that of the newest that verifies."""
    if not has_steps(path):
        return path
    manager = CheckpointManager(path)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        step = manager.latest()
    for warning in found:
        print(f"note: {warning.message}", file=sys.stderr)
    if step is None:
        raise CheckpointNotFoundError(f"{path} has no step that verifies")
    print(f"note: of {path}, step {step} is taken, the newest that verifies", file=sys.stderr)
    return manager.info(step).path


# -- convert ---------------------------------------------------------------------------------------


def _convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", help="the checkpoint to read, a folder of steps, or foreign weights"
    )
    parser.add_argument("target", help="the file to write; its suffix chooses the format")
    parser.add_argument("--from", dest="source_format", help="format of the source")
    parser.add_argument("--to", dest="target_format", help="format of the target")


def _convert(options: argparse.Namespace) -> int:
    target = choose_format(options.target, options.target_format)
    file = options.source if options.source_format else _file_of(options.source)
    try:
        source = recognize_format(file, options.source_format)
        verify_checkpoint(file, format=source.name)
    except (NotACheckpointError, CheckpointFormatError):
        tensors = None if options.source_format else tensors_or_none(file)
        if tensors is None:
            raise
        convert_tensors(tensors, options.target)
        print(f"{options.target}: {len(tensors)} tensors, with their names in {file}")
        return 0
    target.save(options.target, source.load(file))
    print(f"{options.target}: format {target.name}, as {file}")
    return 0


# -- diff ------------------------------------------------------------------------------------------


def _diff_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", help="a checkpoint, a folder of steps, or foreign weights")
    parser.add_argument("second", help="another one")


def _diff(options: argparse.Namespace) -> int:
    paths = (_file_of(options.first), _file_of(options.second))
    try:
        first, second = (recognize_format(path, None).load(path) for path in paths)
    except (NotACheckpointError, CheckpointFormatError):
        status = _diff_foreign(*paths)
        if status is None:
            raise
        return status
    differences = list(_differences(first.leaves, second.leaves))
    if dict(first.metadata) != dict(second.metadata):
        differences.append(f"metadata: {dict(first.metadata)} and {dict(second.metadata)}")
    for line in differences:
        print(line)
    if not differences:
        print(f"equal: {len(first.leaves)} leaves")
    return 1 if differences else 0


def _diff_foreign(first: str, second: str) -> int | None:
    """Compares two files of foreign weights; None if one of them is none."""
    found = [None if _is_checkpoint(path) else tensors_or_none(path) for path in (first, second)]
    one, other = found
    if one is None or other is None:
        return None
    equal = True
    for line in differences_of_tensors(one, other):
        equal = False
        print(line)
    if equal:
        print(f"equal: {len(one)} tensors")
    return 0 if equal else 1


def _is_checkpoint(path: str) -> bool:
    try:
        inspect_checkpoint(path, verify=False)
    except CheckpointError:
        return False
    return True


def _differences(first: tuple[Leaf, ...], second: tuple[Leaf, ...]) -> Iterator[str]:
    pairs = paired(second, first)
    for leaf in first:
        other = pairs.get(leaf.path)
        if other is None:
            yield f"only in the first: `{leaf.name}` ({leaf.kind} {describe(leaf.value)})"
            continue
        if (leaf.kind, describe(leaf.value)) != (other.kind, describe(other.value)):
            yield (
                f"`{leaf.name}`: {leaf.kind} {describe(leaf.value)} and {other.kind} "
                f"{describe(other.value)}"
            )
            continue
        if {leaf.path, *leaf.aliases} != {other.path, *other.aliases}:
            yield f"`{leaf.name}`: is the same Variable as other paths"
        yield from _value_differences(leaf, other)
    used = {other.path for other in pairs.values()}
    for leaf in (leaf for leaf in second if leaf.path not in used):
        yield f"only in the second: `{leaf.name}` ({leaf.kind} {describe(leaf.value)})"


def _value_differences(leaf: Leaf, other: Leaf) -> Iterator[str]:
    for (name, one), (_, two) in zip(named_arrays([leaf]), named_arrays([other]), strict=True):
        try:
            bits, other_bits = one.read_bits(), two.read_bits()
        except CheckpointError as error:
            yield f"`{name}` cannot be compared: {error}"
            continue
        if bits.tobytes() != other_bits.tobytes():
            here, there = (from_bits(x, one.dtype) for x in (bits, other_bits))
            yield f"`{name}`: {how_far(here, there)}"
    if _plain(leaf.value) != _plain(other.value):
        yield f"`{leaf.name}`: {leaf.value!r} and {other.value!r}"


def _plain(value: object) -> str:
    """Returns what a stored value is besides its arrays, to the bit of a float."""
    return repr(replaced(value, describe))


COMMANDS = {
    "inspect": Command(_inspect_arguments, _guarded(_inspect)),
    "verify": Command(_verify_arguments, _guarded(_verify)),
    "convert": Command(_convert_arguments, _guarded(_convert)),
    "diff": Command(_diff_arguments, _guarded(_diff)),
}
"""The commands by name."""
