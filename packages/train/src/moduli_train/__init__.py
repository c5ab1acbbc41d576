"""moduli_train: what training needs besides the model: an optimizer over optax, and metrics."""

from moduli_train import metrics as metrics
from moduli_train._metrics.metric import Metric as Metric
from moduli_train._metrics.multi_metric import MultiMetric as MultiMetric
from moduli_train._optimizer import ModelAndOptimizer as ModelAndOptimizer
from moduli_train._optimizer import Optimizer as Optimizer
from moduli_train._variables import MetricState as MetricState
from moduli_train._variables import OptArray as OptArray
from moduli_train._variables import OptState as OptState
from moduli_train._variables import OptVariable as OptVariable

__version__ = "0.1.0"
