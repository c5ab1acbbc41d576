"""What the pickle of a torch file describes, and our functions for the names that it uses."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from moduli_interop._tensors.torch.unpickle import PickleError, Record

__all__ = ["TABLE", "OtherTensor", "Storage", "TensorView", "children", "storage_dtype"]

SPARE = 64 * 2**20
"""Bytes that a tensor may take beyond those of its storage, as an expanded one does."""


@dataclasses.dataclass(frozen=True)
class Storage:
    """A run of bytes in the file.

    Attributes:
      key: its name there.
      dtype: the dtype of its numbers; None if they are bytes, and each tensor has its own.
      size: how many there are.
      base: the number with which it begins, for a part of another storage.
    """

    key: str
    dtype: np.dtype | None
    size: int
    base: int = 0


@dataclasses.dataclass(frozen=True)
class TensorView:
    """A tensor: a storage, and how its entries stand in it.

    Attributes:
      storage: the storage.
      offset: the entry with which it begins.
      shape: its shape.
      strides: the steps of its axes, in entries.
      dtype: its dtype; None if this reader does not know it.
      dtype_name: torch's name of it.
      conjugate: whether the entries are the conjugates of those in the storage.
      negative: whether they are the negatives.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype | None
    dtype_name: str
    conjugate: bool = False
    negative: bool = False

    @property
    def span(self) -> tuple[int, int]:
        """The first entry of the storage that it needs, and the one behind the last."""
        if 0 in self.shape:
            return 0, 0
        reach = sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        return self.storage.base + self.offset, self.storage.base + self.offset + reach + 1


@dataclasses.dataclass(frozen=True)
class OtherTensor:
    """A tensor that is not a plain array: sparse, quantised, nested, or without numbers.

    Attributes:
      name: what torch makes it with.
    """

    name: str


_TYPED = {
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
    "ComplexDouble": "complex128",
    "ComplexFloat": "complex64",
    "QInt8": "int8",  # storages of quantised tensors, which are refused when they are read
    "QUInt8": "uint8",
    "QInt32": "int32",
    "QUInt4x2": "uint8",
    "QUInt2x4": "uint8",
}

_DTYPES: dict[str, np.dtype] = {
    **{name: np.dtype(name) for name in _TYPED.values() if name != "bfloat16"},
    **{name: np.dtype(name) for name in ("uint16", "uint32", "uint64")},
    **{
        name: np.dtype(getattr(ml_dtypes, name))
        for name in ("bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2")
    },
    **{name: np.dtype(getattr(ml_dtypes, name)) for name in ("float8_e5m2fnuz", "float8_e8m0fnu")},
    "double": np.dtype("float64"),
    "float": np.dtype("float32"),
    "half": np.dtype("float16"),
    "long": np.dtype("int64"),
    "int": np.dtype("int32"),
    "short": np.dtype("int16"),
    "cfloat": np.dtype("complex64"),
    "cdouble": np.dtype("complex128"),
}


@dataclasses.dataclass(frozen=True)
class _Dtype:
    """A dtype of torch's, ``torch.float32``."""

    name: str


def storage_dtype(kind: Any) -> np.dtype | None:
    """Returns the dtype of a storage class's numbers; None for a storage of bytes.

    Args:
      kind: what the pickle names as the storage's class.

    Raises:
      PickleError: if no such class is known.
    """
    name = kind.name if isinstance(kind, Record) else ""
    last = name.rpartition(".")[2]
    if name.startswith("torch.") and last == "UntypedStorage":
        return None
    typed = _TYPED.get(last.removesuffix("Storage")) if last.endswith("Storage") else None
    if not name.startswith("torch.") or typed is None:
        raise PickleError(f"the storage class {name[:100] or kind!r} is not known")
    return _DTYPES[typed]


def _view(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    dtype: _Dtype | None = None,
    metadata: Any = None,
) -> TensorView:
    if not isinstance(storage, Storage) or not _sizes((offset,)):
        raise PickleError("a tensor has no storage")
    if not _sizes(shape) or not _sizes(strides) or len(shape) != len(strides) or len(shape) > 64:
        raise PickleError("a tensor's shape and strides are no sizes")
    if dtype is None:
        name = "uint8" if storage.dtype is None else storage.dtype.name
        found: np.dtype | None = storage.dtype or _DTYPES["uint8"]
    else:
        name, found = dtype.name, _DTYPES.get(dtype.name)
    flags = metadata if isinstance(metadata, dict) else {}
    view = TensorView(
        storage,
        offset,
        tuple(shape),
        tuple(strides),
        found,
        name,
        flags.get("conj") is True,
        flags.get("neg") is True,
    )
    itemsize = 1 if found is None else found.itemsize
    held = storage.size * (1 if storage.dtype is None else storage.dtype.itemsize)
    if (view.span[1] - storage.base) * itemsize > held:
        raise PickleError(
            f"a tensor of shape {list(shape)} reaches beyond the end of its storage of {held} bytes"
        )
    if math.prod(shape) * itemsize > held + SPARE:
        raise PickleError(f"a tensor of shape {list(shape)} is expanded from {held} bytes")
    if math.prod(max(n, 1) for n in shape) >= 2**60:
        raise PickleError("a tensor has a shape that no array has")
    return view


def _sizes(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and all(
        type(n) is int and 0 <= n < 2**62 for n in value
    )


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> TensorView:
    return _view(storage, offset, shape, strides)


def _rebuild_tensor_v2(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    requires_grad: Any = None,
    hooks: Any = None,
    metadata: Any = None,
) -> TensorView:
    return _view(storage, offset, shape, strides, metadata=metadata)


def _rebuild_tensor_v3(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    requires_grad: Any,
    hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> TensorView:
    if not isinstance(dtype, _Dtype):
        raise PickleError("a tensor's dtype is not known")
    return _view(storage, offset, shape, strides, dtype, metadata)


def _first(value: Any, *rest: Any) -> Any:
    """A parameter is its tensor."""
    return value


def _from_type(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """A subclass of Tensor is the tensor."""
    name = function.name if isinstance(function, Record) else ""
    module, _, last = name.rpartition(".")
    known = TABLE.get(f"{module} {last}")
    if not callable(known) or not isinstance(arguments, tuple):
        return Record(name or "unknown", arguments)
    return known(*arguments)


def _ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
    if not isinstance(pairs, (list, tuple)):
        raise PickleError("an OrderedDict is made of pairs")
    return {key if isinstance(key, (str, int)) else Record("key", key): v for key, v in pairs}


def _empty_dict(*_: Any) -> dict[Any, Any]:
    return {}


def _size(shape: Any = ()) -> tuple[Any, ...]:
    return tuple(shape) if isinstance(shape, (list, tuple)) else ()


_OTHERS = (
    *("_rebuild_sparse_tensor", "_rebuild_qtensor", "_rebuild_meta_tensor_no_storage"),
    *("_rebuild_nested_tensor", "_rebuild_device_tensor_from_numpy", "_rebuild_xla_tensor"),
    *("_rebuild_sparse_csr_tensor", "_rebuild_wrapper_subclass"),
)


def _other(name: str) -> Any:
    def make(*_: Any) -> OtherTensor:
        return OtherTensor(name)

    return make


TABLE: Mapping[str, Any] = {
    **{f"torch._utils {name}": _other(name) for name in _OTHERS},
    "torch._utils _rebuild_tensor": _rebuild_tensor,
    "torch._utils _rebuild_tensor_v2": _rebuild_tensor_v2,
    "torch._utils _rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils _rebuild_parameter": _first,
    "torch._utils _rebuild_parameter_with_state": _first,
    "torch._tensor _rebuild_from_type_v2": _from_type,
    "torch Size": _size,
    "collections OrderedDict": _ordered_dict,
    "collections defaultdict": _empty_dict,
    **{f"torch {name}": _Dtype(name) for name in _DTYPES},
    **{
        f"torch {name}": _Dtype(name)
        for name in ("float4_e2m1fn_x2", "bits8", "quint8", "qint8", "qint32", "complex32")
    },
}
"""What stands for the names of torch's pickles; every other name is a :class:`Record`."""


def children(value: Any) -> Iterator[tuple[Any, Any]] | None:
    """Gives what stands in an object of a class that is not known here.

    A whole pickled ``torch.nn.Module`` gives the names that its ``state_dict`` has.
    """
    if not isinstance(value, Record):
        return None
    if isinstance(value.state, dict) and "_parameters" in value.state and "_modules" in value.state:
        parts = (value.state.get(n) for n in ("_parameters", "_buffers", "_modules"))
        return ((k, v) for part in parts if isinstance(part, dict) for k, v in part.items())
    state = value.state if isinstance(value.state, dict) else {}
    return iter([*value.items.items(), *enumerate(value.elements), *state.items()])
