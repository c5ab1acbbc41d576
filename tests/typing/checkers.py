"""Runs type checkers on the programs in this folder, in the strict mode of a user's project."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PROGRAM, MISTAKES = HERE / "program.py", HERE / "mistakes.py"
SOURCES = sorted(map(str, ROOT.glob("packages/*/src")))

MYPY = """
[mypy]
strict = True
follow_imports = silent
[mypy-optax.*]
ignore_missing_imports = True
"""  # optax says nothing of its types

PYRIGHT = {
    "typeCheckingMode": "strict",
    "pythonVersion": f"{sys.version_info.major}.{sys.version_info.minor}",
    "reportMissingTypeStubs": False,  # optax has none
}

Found = dict[tuple[str, int], str]
"""What a checker found: its message, by the name of the file and the line."""


def expected() -> set[tuple[str, int]]:
    """Returns the lines of ``mistakes.py`` that are marked as wrong."""
    lines = MISTAKES.read_text().splitlines()
    return {(MISTAKES.name, n) for n, line in enumerate(lines, 1) if line.endswith("# error")}


def mypy(folder: Path, *programs: Path) -> Found:
    """Runs mypy; its configuration stands in ``folder``."""
    configuration = folder / "mypy.ini"
    configuration.write_text(MYPY)
    options = ["--config-file", str(configuration), "--cache-dir", str(ROOT / ".mypy_cache")]
    ran = subprocess.run(
        [sys.executable, "-m", "mypy", *options, *map(str, programs)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "MYPYPATH": os.pathsep.join(SOURCES)},
    )
    assert ran.returncode in (0, 1), ran.stdout + ran.stderr
    found = re.findall(r"^(.+?):(\d+): error: (.*)$", ran.stdout, re.MULTILINE)
    assert found or ran.returncode == 0, ran.stdout + ran.stderr
    return {(Path(path).name, int(line)): message for path, line, message in found}


def pyright(folder: Path, *programs: Path) -> Found:
    """Runs pyright, with a configuration and copies of the programs in ``folder``."""
    (folder / "pyrightconfig.json").write_text(json.dumps({**PYRIGHT, "extraPaths": SOURCES}))
    for program in programs:
        (folder / program.name).write_text(program.read_text())
    command = ["pyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(folder)]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode in (0, 1), ran.stdout + ran.stderr
    return {
        (Path(item["file"]).name, item["range"]["start"]["line"] + 1): item["message"]
        for item in json.loads(ran.stdout)["generalDiagnostics"]
        if item["severity"] == "error"
    }


def every_name(folder: Path) -> Path:
    """Writes a program that reads each public name of ``moduli``, those of extensions included."""
    import moduli as nnx
    from moduli._facade.resolve import names

    program = folder / "names.py"
    hidden = {"TYPE_CHECKING", "lowlevel"}  # (the latter is there once it was imported)
    public = [name for name in {*vars(nnx), *names()} - hidden if not name.startswith("_")]
    listed = [f"print(nnx.{name})\n" for name in sorted(public)]
    program.write_text("".join(["import moduli as nnx\n\n", *listed]))
    return program
