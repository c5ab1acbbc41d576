"""What pyright sees of moduli in a user's project; run by nox's session ``types``."""

import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from checkers import MISTAKES, PROGRAM, ROOT, SOURCES, every_name, expected, pyright


def test_pyright_knows_the_types_and_finds_the_mistakes(tmp_path: Path) -> None:
    every_name(tmp_path)
    found = pyright(tmp_path, PROGRAM, MISTAKES)
    assert {place: found[place] for place in found.keys() - expected()} == {}
    assert expected() - found.keys() == set()


def test_a_new_plugin_is_clean_for_pyright_and_mypy(tmp_path: Path) -> None:
    parts = ["--layer", "--tool", "--format", "--bridge", "--transform"]
    new = [sys.executable, "-m", "moduli", "new-plugin", "moduli-shiny", *parts]
    subprocess.run([*new, "--into", str(tmp_path)], check=True)
    path = os.pathsep.join(["src", *SOURCES])
    environment = {**os.environ, "MYPYPATH": path, "PYTHONPATH": path}
    mypy = [sys.executable, "-m", "mypy", "--cache-dir", str(ROOT / ".mypy_cache")]
    for command in (["pyright", "--pythonpath", sys.executable], mypy):
        done = subprocess.run(
            command, cwd=tmp_path / "moduli-shiny", env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
