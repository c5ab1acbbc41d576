"""What pyright sees of moduli in a user's project; run by nox's session ``types``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from checkers import MISTAKES, PROGRAM, every_name, expected, pyright


def test_pyright_knows_the_types_and_finds_the_mistakes(tmp_path: Path) -> None:
    every_name(tmp_path)
    found = pyright(tmp_path, PROGRAM, MISTAKES)
    assert {place: found[place] for place in found.keys() - expected()} == {}
    assert expected() - found.keys() == set()
