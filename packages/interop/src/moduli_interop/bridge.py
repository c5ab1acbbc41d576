"""``moduli.bridge``: models of other frameworks, called as ours, and what bridges are made of.

The names of ``flax.nnx.bridge`` are here (:class:`ToNNX`, :class:`ToLinen`, :func:`to_linen`,
:func:`lazy_init`), the same for PyTorch (:class:`TorchModule`, :func:`JaxModule`), and what a
plugin needs for another framework: :class:`Bridge`, :class:`LayerRule`, :class:`Conversion`.
"""

from moduli_interop._bridges.bridge import Bridge as Bridge
from moduli_interop._bridges.bridge import Conversion as Conversion
from moduli_interop._bridges.bridge import LayerRule as LayerRule
from moduli_interop._bridges.conventions import ChannelsFirst as ChannelsFirst
from moduli_interop._bridges.frameworks import from_framework as from_framework
from moduli_interop._bridges.frameworks import to_framework as to_framework
from moduli_interop._bridges.torch_calls import JaxModule as JaxModule
from moduli_interop._bridges.torch_calls import TorchModule as TorchModule
