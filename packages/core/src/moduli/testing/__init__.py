"""Tools for testing modules and plugins: comparisons of graphs, and random graphs.

Nothing here is imported by ``import moduli``. :func:`graphs` needs hypothesis.
"""

from moduli.testing._bridge_checks import BridgeCase as BridgeCase
from moduli.testing._bridge_checks import check_bridge as check_bridge
from moduli.testing._compare import assert_equal_graphs as assert_equal_graphs
from moduli.testing._compare import assert_unchanged as assert_unchanged
from moduli.testing._compilations import compilations as compilations
from moduli.testing._format_checks import FormatCase as FormatCase
from moduli.testing._format_checks import check_format as check_format
from moduli.testing._fresh_plugins import forget_plugins as forget_plugins
from moduli.testing._kit import Case as Case
from moduli.testing._kit import Check as Check
from moduli.testing._kit import parametrize_with_checks as parametrize_with_checks
from moduli.testing._layer_checks import LayerCase as LayerCase
from moduli.testing._layer_checks import check_layer as check_layer
from moduli.testing._plugin_checks import PluginCase as PluginCase
from moduli.testing._plugin_checks import check_plugin as check_plugin
from moduli.testing._strategies import RandomModule as RandomModule
from moduli.testing._strategies import graphs as graphs
from moduli.testing._transform_checks import TransformCase as TransformCase
from moduli.testing._transform_checks import check_transform as check_transform
