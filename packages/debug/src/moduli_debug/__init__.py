"""Looking inside moduli models: what each name is, and the file that holds it.

``Module.sow`` and ``Module.perturb`` reach this package through the hooks in ``_plugin``.
"""

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

__version__ = "0.1.0"
