"""moduli_running_scale: an example plugin for moduli."""

from moduli_running_scale._layer import RunningMax as RunningMax
from moduli_running_scale._layer import RunningScale as RunningScale
from moduli_running_scale._ranges import output_ranges as output_ranges
