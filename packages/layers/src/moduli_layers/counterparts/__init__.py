"""What a layer is called, and how its parameters are laid out, in another framework.

A layer says it once, as data, in a class attribute: ``torch_counterpart``. Bridges and tests read
it; a third party's layer that has one is bridged as ours are.

Example:
  >>> import moduli as nnx
  >>> from moduli_layers.counterparts import Counterpart, Tensor
  >>> class Affine(nnx.Module):
  ...     torch_counterpart = Counterpart(
  ...         "torch.nn.Linear",
  ...         {"weight": Tensor("kernel", "i o -> o i"), "bias": Tensor("bias")},
  ...         {"in_features": "in_features", "out_features": "out_features"},
  ...     )
"""

from moduli_layers.counterparts._counterpart import Counterpart as Counterpart
from moduli_layers.counterparts._counterpart import Setting as Setting
from moduli_layers.counterparts._names import TensorNames as TensorNames
from moduli_layers.counterparts._names import names_of as names_of
from moduli_layers.counterparts._tensor import Tensor as Tensor

__all__ = ["Counterpart", "Setting", "Tensor", "TensorNames", "names_of"]
