"""Looking inside moduli models: what each name is, and the file that holds it.

``Module.sow`` and ``Module.perturb`` reach this package through the hooks in ``_plugin``.
"""

from typing import TYPE_CHECKING

from moduli.plugins import lazy_names as _lazy_names

__version__ = "0.1.0"

if TYPE_CHECKING:
    from moduli_debug import errors as errors
    from moduli_debug import reducers as reducers
    from moduli_debug._assemble import Source as Source
    from moduli_debug._capture import capture as capture
    from moduli_debug._capture_grads import capture_grads as capture_grads
    from moduli_debug._check_finite import check_finite as check_finite
    from moduli_debug._display import display as display
    from moduli_debug._intervene import intervene as intervene
    from moduli_debug._intervene import intervening as intervening
    from moduli_debug._named_scopes import named_scopes as named_scopes
    from moduli_debug._profile import ModuleProfile as ModuleProfile
    from moduli_debug._profile import Profile as Profile
    from moduli_debug._profile import profile as profile
    from moduli_debug._report.measurements import Measurements as Measurements
    from moduli_debug._report.training_report import TrainingReport as TrainingReport
    from moduli_debug._summary.columns import Column as Column
    from moduli_debug._summary.result import Summary as Summary
    from moduli_debug._summary.rows import Row as Row
    from moduli_debug._summary.sizes import Size as Size
    from moduli_debug._tabulate import tabulate as tabulate
else:  # the same names; tests/test_package_maps.py compares the two
    __getattr__, __dir__, __all__ = _lazy_names(
        __name__,
        {
            "_assemble": ["Source"],
            "_capture": ["capture"],
            "_capture_grads": ["capture_grads"],
            "_check_finite": ["check_finite"],
            "_display": ["display"],
            "_intervene": ["intervene", "intervening"],
            "_named_scopes": ["named_scopes"],
            "_profile": ["ModuleProfile", "Profile", "profile"],
            "_report.measurements": ["Measurements"],
            "_report.training_report": ["TrainingReport"],
            "_summary.columns": ["Column"],
            "_summary.result": ["Summary"],
            "_summary.rows": ["Row"],
            "_summary.sizes": ["Size"],
            "_tabulate": ["tabulate"],
        },
        submodules=["errors", "reducers"],
    )
