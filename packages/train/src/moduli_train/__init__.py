"""moduli_train: what training needs besides the model: optimizer, averages, metrics, the run."""

from typing import TYPE_CHECKING

from moduli.plugins import lazy_names as _lazy_names

__version__ = "0.1.0"

if TYPE_CHECKING:
    from moduli_train import metrics as metrics
    from moduli_train._accumulate import accumulate as accumulate
    from moduli_train._data.batches import Batches as Batches
    from moduli_train._ema import EMA as EMA
    from moduli_train._errors import BatchShapeWarning as BatchShapeWarning
    from moduli_train._errors import DataEndedError as DataEndedError
    from moduli_train._errors import DataPositionWarning as DataPositionWarning
    from moduli_train._errors import NonFiniteLossError as NonFiniteLossError
    from moduli_train._errors import NonFiniteLossWarning as NonFiniteLossWarning
    from moduli_train._errors import NotSavedError as NotSavedError
    from moduli_train._errors import RunError as RunError
    from moduli_train._loss_scale import LossScale as LossScale
    from moduli_train._metrics.metric import Metric as Metric
    from moduli_train._metrics.multi_metric import MultiMetric as MultiMetric
    from moduli_train._of_model import of_model as of_model
    from moduli_train._optimizer import ModelAndOptimizer as ModelAndOptimizer
    from moduli_train._optimizer import Optimizer as Optimizer
    from moduli_train._run.fit import fit as fit
    from moduli_train._run.run import Run as Run
    from moduli_train._train_state import TrainState as TrainState
    from moduli_train._variables import MetricState as MetricState
    from moduli_train._variables import OptArray as OptArray
    from moduli_train._variables import OptState as OptState
    from moduli_train._variables import OptVariable as OptVariable
else:  # the same names; tests/test_package_maps.py compares the two
    __getattr__, __dir__, __all__ = _lazy_names(
        __name__,
        {
            "_accumulate": ["accumulate"],
            "_ema": ["EMA"],
            "_loss_scale": ["LossScale"],
            "_metrics.metric": ["Metric"],
            "_metrics.multi_metric": ["MultiMetric"],
            "_of_model": ["of_model"],
            "_optimizer": ["ModelAndOptimizer", "Optimizer"],
            "_data.batches": ["Batches"],
            "_errors": [
                "BatchShapeWarning",
                "DataEndedError",
                "DataPositionWarning",
                "NonFiniteLossError",
                "NonFiniteLossWarning",
                "NotSavedError",
                "RunError",
            ],
            "_run.fit": ["fit"],
            "_run.run": ["Run"],
            "_train_state": ["TrainState"],
            "_variables": ["MetricState", "OptArray", "OptState", "OptVariable"],
        },
        submodules=["metrics"],
    )
