"""moduli_running_scale: a plugin for moduli."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what type checkers read
    from moduli_running_scale._bridge import (
        RunningScaleScale as RunningScaleScale,
    )
    from moduli_running_scale._layer import (
        RunningScale as RunningScale,
    )
    from moduli_running_scale._layer import (
        RunningScaleMax as RunningScaleMax,
    )
    from moduli_running_scale._tool import (
        running_scale_ranges as running_scale_ranges,
    )
    from moduli_running_scale._transform import (
        running_scale_linearize as running_scale_linearize,
    )
else:  # each file is imported when one of its names is asked for
    from moduli.plugins import lazy_names

    _FILES = {
        "_bridge": ["RunningScaleScale"],
        "_layer": ["RunningScale", "RunningScaleMax"],
        "_tool": ["running_scale_ranges"],
        "_transform": ["running_scale_linearize"],
    }
    __getattr__, __dir__, __all__ = lazy_names(__name__, _FILES)
