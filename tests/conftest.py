"""Lets the tests in this folder import the tables that stand beside them (``layer_table``)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
# moduli-matrix is installed where nox is, not where tests run; its names stand in the API too
sys.path.insert(0, str(Path(__file__).parent.parent / "packages" / "matrix" / "src"))
