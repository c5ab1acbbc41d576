"""Tools for testing modules and plugins: comparisons of graphs, and random graphs.

Nothing here is imported by ``import moduli``. :func:`graphs` needs hypothesis.
"""

from moduli.testing._compare import assert_equal_graphs as assert_equal_graphs
from moduli.testing._compare import assert_unchanged as assert_unchanged
from moduli.testing._compilations import compilations as compilations
from moduli.testing._fresh_plugins import forget_plugins as forget_plugins
from moduli.testing._strategies import RandomModule as RandomModule
from moduli.testing._strategies import graphs as graphs
