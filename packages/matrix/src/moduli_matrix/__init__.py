"""The matrix: tests on each Python, JAX and backend that moduli supports.

A whole ``noxfile.py``::

    import moduli_matrix

    moduli_matrix.sessions(".[test]", run="pytest")

Nothing here imports JAX: a noxfile runs in nox's own environment, which has none.
"""

from moduli_matrix.cell import Cell as Cell
from moduli_matrix.noxfile import cells as cells
from moduli_matrix.noxfile import sessions as sessions
from moduli_matrix.supported import BACKENDS as BACKENDS
from moduli_matrix.supported import JAX as JAX
from moduli_matrix.supported import PYTHONS as PYTHONS
from moduli_matrix.supported import Backend as Backend
from moduli_matrix.supported import table as table
from moduli_matrix.supported import with_cpu_devices as with_cpu_devices

__version__ = "0.1.0"
