"""What pytest gets from moduli: fixtures for plugins' tests, diffs, and ``--moduli-as-flax``.

A package of its own that imports neither moduli nor JAX at first: pytest imports its plugins at
each start, before the user's conftest has set JAX's flags.
"""

from __future__ import annotations

from moduli_pytest._as_flax import pytest_addoption as pytest_addoption
from moduli_pytest._as_flax import pytest_load_initial_conftests as pytest_load_initial_conftests
from moduli_pytest._explained import pytest_assertrepr_compare as pytest_assertrepr_compare
from moduli_pytest._fixtures import moduli_compilations as moduli_compilations
from moduli_pytest._fixtures import moduli_distribution as moduli_distribution
from moduli_pytest._fixtures import moduli_fresh_plugins as moduli_fresh_plugins
