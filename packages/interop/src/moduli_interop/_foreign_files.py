"""The command line's dealings with weights that are no checkpoint of ours."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from moduli.errors import ModuliError
from moduli_interop._errors import CheckpointError, CheckpointFormatError
from moduli_interop._safetensors import Spec, write
from moduli_interop._tensors.read import read_tensors
from moduli_interop._tensors.stored import StoredTensor, Tensors

__all__ = ["convert_tensors", "differences_of_tensors", "how_far", "tensors_or_none"]


def tensors_or_none(path: str) -> Tensors | None:
    """Opens a file of foreign weights; None if it is no such file either."""
    try:
        return read_tensors(path)
    except (ModuliError, OSError):
        return None


def convert_tensors(source: Tensors, target: str) -> None:
    """Writes tensors as safetensors, one in memory at a time, under the names that they have.

    Args:
      source: the tensors.
      target: the file, which ends in ``.safetensors``.

    Raises:
      CheckpointFormatError: it ends otherwise.
      CheckpointError: a tensor is damaged, or of a dtype that the format lacks.
    """
    if not target.endswith(".safetensors"):
        raise CheckpointFormatError(
            f"{source.source} is no checkpoint of moduli.save, and foreign weights are converted "
            f"to .safetensors alone, not to {target}; moduli.load_weights takes them into a model"
        )
    specs = [Spec(name, t.dtype, t.shape, t.read) for name, t in source.items()]
    write(target, specs, {"format": "pt", **source.metadata})


def differences_of_tensors(first: Tensors, second: Tensors) -> Iterator[str]:
    """Yields what differs of two sources, tensor by tensor."""
    for name, one in first.items():
        other = second.get(name)
        if other is None:
            yield f"only in the first: `{name}` ({_described(one)})"
        elif (one.shape, one.dtype) != (other.shape, other.dtype):
            yield f"`{name}`: {_described(one)} and {_described(other)}"
        else:
            try:
                here, there = one.read(), other.read()
            except CheckpointError as error:
                yield f"`{name}` cannot be compared: {error}"
                continue
            if here.tobytes() != there.tobytes():
                yield f"`{name}`: {how_far(here, there)}"
    for name, other in second.items():
        if name not in first:
            yield f"only in the second: `{name}` ({_described(other)})"


def how_far(one: np.ndarray, two: np.ndarray) -> str:
    """Says how many numbers of two arrays, which are not equal bit for bit, differ by how much."""
    count = int((one != two).sum()) or "the sign of zeros or NaNs in some"
    try:
        wide = np.complex128 if one.dtype.kind == "c" else np.float64
        with np.errstate(all="ignore"):
            distance = float(np.nanmax(np.abs(one.astype(wide) - two.astype(wide))))
        return f"{count} of {one.size} numbers differ, by at most {distance:.3g}"
    except (TypeError, ValueError):
        return f"{count} of {one.size} numbers differ"


def _described(tensor: StoredTensor) -> str:
    return f"{tensor.dtype.name}[{','.join(map(str, tensor.shape))}]"
