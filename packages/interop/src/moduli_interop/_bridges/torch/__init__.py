"""PyTorch: modules with the layers of ``torch.nn``, both ways.

What a layer is called there and how its tensors are laid out is said by the layers themselves
(``layer.torch_counterpart``, see :mod:`moduli_layers.counterparts`). This folder says which of our
layers a module of PyTorch becomes, and keeps the order of axes of either framework: what comes from
PyTorch has its features after the batch, in a :class:`ChannelsFirst`; what goes there keeps them
last.

- ``models``: ``from_torch`` and ``to_torch``.
- ``rules``: which function converts which class.
- ``from_theirs``, ``to_theirs``: these functions, one way each; ``functions``: activations, pools.
- ``classes``: modules of PyTorch that call a layer as ours are called.
- ``counterparts``, ``tensors``: what several layers are together, and how values go over.
"""

from moduli_interop._bridges.torch.models import from_torch as from_torch
from moduli_interop._bridges.torch.models import to_torch as to_torch
from moduli_interop._bridges.torch.rules import rules as rules
