"""moduli: neural networks for JAX from a small core and plugins.

``import moduli as nnx`` gives Module, Variable, the graph functions and the transforms, and every
name that an installed extension package declares: ``nnx.Linear`` from moduli-layers,
``nnx.Optimizer`` from moduli-train, and so on.
"""

from typing import TYPE_CHECKING
from typing import Any as _Any

from moduli import errors as errors
from moduli import filterlib as filterlib
from moduli import plugins as plugins
from moduli._base.public_names import claim_public_names as _claim_public_names
from moduli._base.type_variables import A as A
from moduli._facade.flax_modes import set_graph_mode as set_graph_mode
from moduli._facade.flax_modes import set_graph_updates as set_graph_updates
from moduli._facade.flax_modes import take_modes as _take_modes
from moduli._graph.data import is_data as is_data
from moduli._graph.data import register_data_type as register_data_type
from moduli._graph.graphdef import GraphDef as GraphDef
from moduli._graph.split import clone as clone
from moduli._graph.split import flatten as flatten
from moduli._graph.split import graphdef as graphdef
from moduli._graph.split import map_graph as _map_graph
from moduli._graph.split import merge as merge
from moduli._graph.split import pop as pop
from moduli._graph.split import split as split
from moduli._graph.split import state as state
from moduli._graph.split import unflatten as unflatten
from moduli._graph.split import update as update
from moduli._graph.state import FlatState as FlatState
from moduli._graph.state import State as State
from moduli._graph.state import as_pure as as_pure
from moduli._graph.state import filter_state as filter_state
from moduli._graph.state import from_flat_state as from_flat_state
from moduli._graph.state import map_state as map_state
from moduli._graph.state import merge_state as merge_state
from moduli._graph.state import replace_by_pure_dict as replace_by_pure_dict
from moduli._graph.state import restore_int_paths as restore_int_paths
from moduli._graph.state import split_state as split_state
from moduli._graph.state import to_flat_state as to_flat_state
from moduli._graph.state import to_pure_dict as to_pure_dict
from moduli._module.containers import Dict as Dict
from moduli._module.containers import List as List
from moduli._module.field_markers import Data as Data
from moduli._module.field_markers import Static as Static
from moduli._module.field_markers import data as data
from moduli._module.field_markers import dataclass as dataclass
from moduli._module.field_markers import static as static
from moduli._module.module import Module as Module
from moduli._module.module import iter_children as iter_children
from moduli._module.module import iter_module_children as iter_module_children
from moduli._module.module import iter_modules as iter_modules
from moduli._module.module import view as view
from moduli._module.module import with_attributes as with_attributes
from moduli._module.pytree import Pytree as Pytree
from moduli._plugins import PluginWarning as PluginWarning
from moduli._plugins import Replace as Replace
from moduli._plugins import hookimpl as hookimpl
from moduli._plugins import hookspec as hookspec
from moduli._plugins import using as using
from moduli._rngs.streams import Rngs as Rngs
from moduli._rngs.streams import RngStream as RngStream
from moduli._variable.box import Variable as Variable
from moduli._variable.filters import All as All
from moduli._variable.filters import Any as Any
from moduli._variable.filters import Everything as Everything
from moduli._variable.filters import Not as Not
from moduli._variable.filters import Nothing as Nothing
from moduli._variable.filters import OfType as OfType
from moduli._variable.filters import PathContains as PathContains
from moduli._variable.filters import PathIn as PathIn
from moduli._variable.filters import WithTag as WithTag
from moduli._variable.kinds import BatchStat as BatchStat
from moduli._variable.kinds import Cache as Cache
from moduli._variable.kinds import Intermediate as Intermediate
from moduli._variable.kinds import Param as Param
from moduli._variable.kinds import Perturbation as Perturbation
from moduli._variable.kinds import RngCount as RngCount
from moduli._variable.kinds import RngKey as RngKey
from moduli._variable.kinds import RngState as RngState
from moduli._variable.metadata import VariableMetadata as VariableMetadata
from moduli._variable.names import register_variable_name as register_variable_name
from moduli._variable.names import variable_name_from_type as variable_name_from_type
from moduli._variable.names import variable_type_from_name as variable_type_from_name

__version__ = "0.1.0"

Object = Pytree
map = _map_graph
variables = state

_claim_public_names(globals())

if TYPE_CHECKING:
    from moduli import hookspecs as hookspecs
    from moduli import testing as testing
    from moduli._call.differentiated import DiffState as DiffState
    from moduli._call.partition_names import PARTITION_NAME as PARTITION_NAME
    from moduli._call.prefixes import Carry as Carry
    from moduli._call.prefixes import StateAxes as StateAxes
    from moduli._call.prefixes import StateSharding as StateSharding
    from moduli._call.prefixes import prefix as prefix
    from moduli._facade.extension_names import *  # noqa: F403 # pyright: ignore[reportWildcardImportFromLibrary]
    from moduli._graph.recursive_map import recursive_map as recursive_map
    from moduli._graph.trees import NodeStates as NodeStates
    from moduli._graph.trees import from_tree as from_tree
    from moduli._graph.trees import to_tree as to_tree
    from moduli._graph.walk import find_duplicates as find_duplicates
    from moduli._graph.walk import iter_graph as iter_graph
    from moduli._graph.walk import set_metadata as set_metadata
    from moduli._layout.create import create as create
    from moduli._layout.partition_specs import abstract_with_sharding as abstract_with_sharding
    from moduli._layout.partition_specs import get_abstract_model as get_abstract_model
    from moduli._layout.partition_specs import get_named_sharding as get_named_sharding
    from moduli._layout.partition_specs import get_partition_spec as get_partition_spec
    from moduli._layout.plan import shardings as shardings
    from moduli._layout.rules import fsdp as fsdp
    from moduli._layout.table import assert_sharded as assert_sharded
    from moduli._layout.table import show_layout as show_layout
    from moduli._rngs.functions import SplitBackups as SplitBackups
    from moduli._rngs.functions import fork_rngs as fork_rngs
    from moduli._rngs.functions import reseed as reseed
    from moduli._rngs.functions import restore_rngs as restore_rngs
    from moduli._rngs.functions import split_rngs as split_rngs
    from moduli._rngs.functions import with_rngs as with_rngs
    from moduli._transforms.abstract import eval_shape as eval_shape
    from moduli._transforms.abstract import make_jaxpr as make_jaxpr
    from moduli._transforms.checkify import checkify as checkify
    from moduli._transforms.control import cond as cond
    from moduli._transforms.control import switch as switch
    from moduli._transforms.custom_vjp import custom_vjp as custom_vjp
    from moduli._transforms.grad import grad as grad
    from moduli._transforms.grad import value_and_grad as value_and_grad
    from moduli._transforms.jit import cached_partial as cached_partial
    from moduli._transforms.jit import jit as jit
    from moduli._transforms.jit import jit_partial as jit_partial
    from moduli._transforms.loops import fori_loop as fori_loop
    from moduli._transforms.loops import while_loop as while_loop
    from moduli._transforms.pmap import pmap as pmap
    from moduli._transforms.remat import remat as remat
    from moduli._transforms.scan import scan as scan
    from moduli._transforms.shard_map import shard_map as shard_map
    from moduli._transforms.vjp import jvp as jvp
    from moduli._transforms.vjp import vjp as vjp
    from moduli._transforms.vmap import vmap as vmap
    from moduli._variable.axis_names import logical_axis_rules as logical_axis_rules
    from moduli._variable.axis_names import use_eager_sharding as use_eager_sharding
    from moduli._variable.axis_names import using_eager_sharding as using_eager_sharding
else:
    from moduli._base.lazy_names import lazy_names as _lazy_names
    from moduli._facade.submodules import install as _install

    _install()
    _take_modes(globals())
    del _install

    # Transforms are half of core's files; a program imports those that it names.
    _own_name, _, _OWN_NAMES = _lazy_names(
        "moduli",
        {
            "_call.differentiated": ["DiffState"],
            "_call.partition_names": ["PARTITION_NAME"],
            "_call.prefixes": ["Carry", "StateAxes", "StateSharding", "prefix"],
            "_graph.recursive_map": ["recursive_map"],
            "_graph.trees": ["NodeStates", "from_tree", "to_tree"],
            "_graph.walk": ["find_duplicates", "iter_graph", "set_metadata"],
            "_layout.create": ["create"],
            "_layout.partition_specs": [
                "abstract_with_sharding",
                "get_abstract_model",
                "get_named_sharding",
                "get_partition_spec",
            ],
            "_layout.plan": ["shardings"],
            "_layout.rules": ["fsdp"],
            "_layout.table": ["assert_sharded", "show_layout"],
            "_rngs.functions": [
                "SplitBackups",
                "fork_rngs",
                "reseed",
                "restore_rngs",
                "split_rngs",
                "with_rngs",
            ],
            "_transforms.abstract": ["eval_shape", "make_jaxpr"],
            "_transforms.checkify": ["checkify"],
            "_transforms.control": ["cond", "switch"],
            "_transforms.custom_vjp": ["custom_vjp"],
            "_transforms.grad": ["grad", "value_and_grad"],
            "_transforms.jit": ["cached_partial", "jit", "jit_partial"],
            "_transforms.loops": ["fori_loop", "while_loop"],
            "_transforms.pmap": ["pmap"],
            "_transforms.remat": ["remat"],
            "_transforms.scan": ["scan"],
            "_transforms.shard_map": ["shard_map"],
            "_transforms.vjp": ["jvp", "vjp"],
            "_transforms.vmap": ["vmap"],
            "_variable.axis_names": [
                "logical_axis_rules",
                "use_eager_sharding",
                "using_eager_sharding",
            ],
        },
    )

    def __getattr__(name: str) -> _Any:
        """Finds a transform, or a name that an installed extension package declares; keeps it."""
        if name in _OWN_NAMES:
            found = {"__name__": __name__, name: _own_name(name)}
            _claim_public_names(found)
            _take_modes(found)
            value = globals()[name] = found[name]
            return value
        if name == "__all__":  # what `from moduli import *` brings: core's own names
            own = {*globals(), *_OWN_NAMES} - {"TYPE_CHECKING"}
            return sorted(name for name in own if not name.startswith("_"))
        if name.startswith("_"):
            raise AttributeError(f"module 'moduli' has no attribute {name!r}")
        from moduli._facade.resolve import resolve

        value = globals()[name] = resolve(name)
        return value

    def __dir__() -> list[str]:
        from moduli._facade.resolve import names

        hidden = {"TYPE_CHECKING", "_Any", "_map_graph"}
        return sorted({*globals(), *_OWN_NAMES, *names()} - hidden)
