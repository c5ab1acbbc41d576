"""Lets the tests import ``moduli_matrix``, which nox's environment has and theirs need not."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))
