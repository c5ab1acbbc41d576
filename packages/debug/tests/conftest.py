"""Lets the tests in this folder import the models that stand beside them (``debug_models``)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
