"""The public home of metrics, ``moduli.metrics``."""

from moduli_train._metrics.accuracy import Accuracy as Accuracy
from moduli_train._metrics.average import Average as Average
from moduli_train._metrics.metric import Metric as Metric
from moduli_train._metrics.multi_metric import MultiMetric as MultiMetric
from moduli_train._metrics.welford import Statistics as Statistics
from moduli_train._metrics.welford import Welford as Welford
from moduli_train._variables import MetricState as MetricState
