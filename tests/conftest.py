"""Lets the tests in this folder import the tables that stand beside them (``layer_table``)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
