"""The file of weights beside an exported program, in the format of safetensors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from moduli_interop._errors import UnsupportedValueError
from moduli_interop._safetensors import Spec, write
from moduli_interop._safetensors.dtypes import tag_of

__all__ = ["write_weights"]


def write_weights(path: str, weights: Mapping[str, np.ndarray]) -> None:
    """Writes arrays by name; the file appears whole or not at all.

    Args:
      path: the file.
      weights: arrays by name.

    Raises:
      UnsupportedValueError: an array's dtype is none of the format's.
    """
    specs = []
    for name, array in weights.items():
        if tag_of(array.dtype) is None:
            raise UnsupportedValueError(
                f"the weight {name!r} is of dtype {array.dtype.name}, which safetensors lacks; "
                'write weights="inside"'
            )
        specs.append(Spec(name, array.dtype, array.shape, lambda array=array: array))
    write(path, specs, {"format": "moduli.export"})
