"""Arrays of JAX as tensors of PyTorch and back, without a copy where both can share memory."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from moduli_interop._bridges.errors import BridgeError
from moduli_interop._bridges.frameworks import import_framework

__all__ = ["as_array", "as_numpy", "as_tensor"]

_BITS = {  # dtypes that NumPy has not: of torch and of ml_dtypes, and the integer of their width
    "bfloat16": (ml_dtypes.bfloat16, "int16"),
    "float8_e4m3fn": (ml_dtypes.float8_e4m3fn, "uint8"),
    "float8_e5m2": (ml_dtypes.float8_e5m2, "uint8"),
    "float8_e4m3fnuz": (ml_dtypes.float8_e4m3fnuz, "uint8"),
    "float8_e5m2fnuz": (ml_dtypes.float8_e5m2fnuz, "uint8"),
}
_WIDE = {"int64": np.int32, "uint64": np.uint32}  # what JAX makes of them without x64


def as_tensor(array: Any) -> Any:
    """Makes a tensor of an array.

    It shares the array's memory where PyTorch has the dtype (DLPack); writing into it would change
    the array. Otherwise it is a copy: small integers become int8 or uint8, small floats of which
    PyTorch has no kind float32, typed keys of random numbers their data.

    Args:
      array: an array of JAX or NumPy.

    Returns:
      A ``torch.Tensor`` on the array's device.
    """
    torch = import_framework("torch", "torch")
    if isinstance(array, jax.Array):
        if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            array = jax.random.key_data(array)
        try:
            return torch.from_dlpack(array)
        except (BufferError, RuntimeError, TypeError, ValueError, NotImplementedError):
            pass  # no such dtype there, or laid out over devices
    array = np.array(array)  # a copy: PyTorch may write into it
    name = array.dtype.name
    if name in _BITS:
        bits = torch.from_numpy(np.atleast_1d(array).view(_BITS[name][1]))
        return bits.view(getattr(torch, name)).reshape(array.shape)
    if array.dtype.kind == "V" or (name.startswith("float") and array.dtype.itemsize == 1):
        small = {"int4": np.int8, "int2": np.int8, "uint4": np.uint8, "uint2": np.uint8}
        array = array.astype(small.get(name, np.float32))
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))


def as_numpy(tensor: Any) -> np.ndarray:
    """Makes a NumPy array of a tensor, of its memory where that is possible.

    Args:
      tensor: a ``torch.Tensor`` of any dtype, layout and device.
    """
    import torch

    tensor = tensor.detach()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    tensor = tensor.resolve_conj().resolve_neg().cpu()
    name = str(tensor.dtype).removeprefix("torch.")
    if name in _BITS:
        dtype, bits = _BITS[name]
        flat = tensor.contiguous().reshape(-1).view(getattr(torch, bits)).numpy()
        return flat.view(dtype).reshape(tuple(tensor.shape))
    return tensor.numpy()


def as_array(tensor: Any) -> jax.Array:
    """Makes an array of a tensor.

    It shares the tensor's memory where the tensor is contiguous and JAX has the dtype (DLPack): a
    later write into the tensor would change the array. Otherwise it is a copy. Without
    ``jax_enable_x64`` 64-bit numbers become 32-bit ones, as everywhere in JAX.

    Args:
      tensor: a ``torch.Tensor``.

    Returns:
      The array, on the tensor's device.

    Raises:
      BridgeError: 64-bit integers do not fit into 32 bits.
    """
    import_framework("torch", "torch")
    name = str(tensor.dtype).removeprefix("torch.")
    wide = name in ("int64", "uint64", "float64", "complex128")
    if not wide or jax.config.read("jax_enable_x64"):
        plain = tensor.detach()
        try:
            if plain.is_contiguous():
                return jnp.from_dlpack(plain)
        except (BufferError, RuntimeError, TypeError, ValueError, NotImplementedError):
            pass  # no such dtype there, another layout, or a device that JAX does not know
    array = as_numpy(tensor)
    if name in _WIDE and not jax.config.read("jax_enable_x64") and array.size:
        limits = np.iinfo(_WIDE[name])
        if array.min() < limits.min or array.max() > limits.max:
            raise BridgeError(
                f"a tensor of {name} holds {array.max()}, which does not fit into 32 bits; set "
                "jax_enable_x64"
            )
    return jnp.array(array)
