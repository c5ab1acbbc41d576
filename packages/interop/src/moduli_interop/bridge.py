"""``moduli.bridge``: models of other frameworks, called as ours, and what bridges are made of.

The names of ``flax.nnx.bridge`` are here (:class:`ToNNX`, :class:`ToLinen`, :func:`to_linen`,
:func:`lazy_init`; :class:`Module` and :func:`compact` for modules in linen's style), the same for
PyTorch (:class:`TorchModule`, :func:`JaxModule`), and what a plugin needs for another framework:
:class:`Bridge`, :class:`LayerRule`, :class:`Conversion`.
"""

from moduli_interop._bridges.bridge import Bridge as Bridge
from moduli_interop._bridges.bridge import Conversion as Conversion
from moduli_interop._bridges.bridge import LayerRule as LayerRule
from moduli_interop._bridges.conventions import ChannelsFirst as ChannelsFirst
from moduli_interop._bridges.conventions import HaikuCore as HaikuCore
from moduli_interop._bridges.conventions import JoinedAxes as JoinedAxes
from moduli_interop._bridges.conventions import OneExample as OneExample
from moduli_interop._bridges.conventions import PaddingEmbed as PaddingEmbed
from moduli_interop._bridges.conventions import TorchCell as TorchCell
from moduli_interop._bridges.equinox import EquinoxModule as EquinoxModule
from moduli_interop._bridges.frameworks import from_framework as from_framework
from moduli_interop._bridges.frameworks import to_framework as to_framework
from moduli_interop._bridges.haiku import HaikuModule as HaikuModule
from moduli_interop._bridges.haiku_layers import as_haiku_layers as as_haiku_layers
from moduli_interop._bridges.haiku_layers import from_haiku_layers as from_haiku_layers
from moduli_interop._bridges.in_linen_style import linen_in_bridge_mdl as linen_in_bridge_mdl
from moduli_interop._bridges.in_linen_style import nnx_in_bridge_mdl as nnx_in_bridge_mdl
from moduli_interop._bridges.linen_layers import as_linen as as_linen
from moduli_interop._bridges.linen_layers import from_linen as from_linen
from moduli_interop._bridges.linen_style import MODULE_CONTEXT as MODULE_CONTEXT
from moduli_interop._bridges.linen_style import AttrPriority as AttrPriority
from moduli_interop._bridges.linen_style import Module as Module
from moduli_interop._bridges.linen_style import ModuleStackEntry as ModuleStackEntry
from moduli_interop._bridges.linen_style import Scope as Scope
from moduli_interop._bridges.linen_style import compact as compact
from moduli_interop._bridges.linen_style import current_context as current_context
from moduli_interop._bridges.linen_style import current_module as current_module
from moduli_interop._bridges.linen_variables import (
    nnx_attrs_to_linen_vars as nnx_attrs_to_linen_vars,
)
from moduli_interop._bridges.linen_variables import to_linen_var as to_linen_var
from moduli_interop._bridges.linen_variables import to_nnx_var as to_nnx_var
from moduli_interop._bridges.linen_variables import with_partitioning as with_partitioning
from moduli_interop._bridges.linen_wrappers import Functional as Functional
from moduli_interop._bridges.linen_wrappers import ToNNX as ToNNX
from moduli_interop._bridges.linen_wrappers import functional as functional
from moduli_interop._bridges.linen_wrappers import lazy_init as lazy_init
from moduli_interop._bridges.linen_wrappers import to_linen as to_linen
from moduli_interop._bridges.linen_wrappers import to_linen_class as to_linen_class
from moduli_interop._bridges.torch_calls import JaxModule as JaxModule
from moduli_interop._bridges.torch_calls import TorchModule as TorchModule


def __getattr__(name: str) -> object:
    """Makes ``ToLinen`` and ``NNXMeta``, classes of flax's, when they are asked for."""
    if name == "ToLinen":
        from moduli_interop._bridges.linen_wrappers import linen_class

        return linen_class()
    if name == "NNXMeta":
        from moduli_interop._bridges.linen_variables import nnx_meta_class

        return nnx_meta_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
