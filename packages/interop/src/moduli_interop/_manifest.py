"""The manifest: everything of a checkpoint but the arrays' bits, as JSON.

Arrays stand in it as records which name the member that holds their bits, so that any container
which can keep named arrays and one text can be a format. The JSON is::

    {"moduli_version": str,
     "metadata": {...},                      as the user gave it
     "leaves": [{"path": [KEY, ...],         KEY: str, int, or a list of KEYs for a tuple
                 "kind": str,                "Param", "BatchStat", ..., or "array"
                 "kind_name": str | null,    "params", "batch_stats", ...
                 "aliases": [path, ...],     other paths to the same Variable
                 "value": VALUE}, ...]}

and VALUE is an object with one entry, whose name says what it is::

    {"array": {"member": str, "dtype": str, "shape": [int, ...], "container": str,
               "weak_type": bool, "key_impl": str | null}}
    {"none": null}  {"bool": bool}  {"int": int}  {"str": str}
    {"float": "16 hex digits of the IEEE bits"}  {"complex": [hex, hex]}
    {"tuple": [VALUE, ...]}  {"list": [VALUE, ...]}  {"dict": [[KEY, VALUE], ...]}
    {"namedtuple": {"name": str, "fields": [str, ...], "items": [VALUE, ...]}}
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from moduli.errors import format_path
from moduli_interop._dtypes import dtype_from_name
from moduli_interop._errors import UnsupportedValueError
from moduli_interop._stored import Checkpoint, Leaf, Path, StoredArray, StoredNamedTuple

__all__ = ["Reader", "check_metadata", "decode_manifest", "decode_path", "encode_manifest"]

Reader = Callable[[str, StoredArray], Callable[[], np.ndarray]]
"""Takes the name of a member and what it should hold; returns the function that reads its bits."""

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\[\]]{0,199}")


def encode_manifest(checkpoint: Checkpoint) -> tuple[str, dict[str, StoredArray]]:
    """Formats a checkpoint as JSON.

    Args:
      checkpoint: the checkpoint.

    Returns:
      The JSON text, and the arrays by the names of their members, in the order of the leaves. A
      name is the path of its array where that is a plain name, and unique whatever the case.
    """
    encoder = _Encoder()
    leaves = [
        {
            "path": list(leaf.path),
            "kind": leaf.kind,
            "kind_name": leaf.kind_name,
            "aliases": [list(alias) for alias in leaf.aliases],
            "value": encoder.value(leaf.value, leaf.path),
        }
        for leaf in checkpoint.leaves
    ]
    manifest = {
        "moduli_version": checkpoint.moduli_version,
        "metadata": checkpoint.metadata,
        "leaves": leaves,
    }
    return json.dumps(manifest, indent=1), encoder.arrays


def check_metadata(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns the user's metadata as JSON gives it back.

    Args:
      metadata: a JSON-like dict, or None. Numbers may be numpy or JAX scalars.

    Raises:
      UnsupportedValueError: if JSON cannot hold it.
    """
    try:
        text = json.dumps(dict(metadata or {}), default=_number)
    except (TypeError, ValueError, RecursionError) as error:
        raise UnsupportedValueError(
            f"the metadata of a checkpoint is a JSON-like dict (str keys; numbers, str, bool, "
            f"None, lists and dicts), but: {error}. Put arrays into the model, or into a "
            "moduli.Variable of a dict that you save with it"
        ) from None
    return json.loads(text)


def _number(value: Any) -> Any:
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return value.item()
    raise TypeError(f"it holds a {type(value).__module__}.{type(value).__qualname__}")


class _Encoder:
    def __init__(self) -> None:
        self.arrays: dict[str, StoredArray] = {}
        self.taken: set[str] = set()

    def value(self, value: Any, path: tuple[Any, ...]) -> dict[str, Any]:
        if isinstance(value, StoredArray):
            return {"array": self.array(value, path)}
        if isinstance(value, StoredNamedTuple):
            pairs = zip(value.fields, value.items, strict=True)
            items = [self.value(item, (*path, field)) for field, item in pairs]
            return {"namedtuple": {"name": value.name, "fields": value.fields, "items": items}}
        if isinstance(value, (tuple, list)):
            items = [self.value(item, (*path, i)) for i, item in enumerate(value)]
            return {type(value).__name__: items}
        if isinstance(value, dict):
            return {"dict": [[key, self.value(item, (*path, key))] for key, item in value.items()]}
        if isinstance(value, float):
            return {"float": _hex(value)}
        if isinstance(value, complex):
            return {"complex": [_hex(value.real), _hex(value.imag)]}
        return {"none" if value is None else type(value).__name__: value}

    def array(self, array: StoredArray, path: tuple[Any, ...]) -> dict[str, Any]:
        name = format_path(path)
        if not _PLAIN_NAME.fullmatch(name) or name.lower() in self.taken:
            name = f"{len(self.arrays)}-array"
        self.taken.add(name.lower())
        self.arrays[name] = array
        return {
            "member": name,
            "dtype": array.dtype,
            "shape": array.shape,
            "container": array.container,
            "weak_type": array.weak_type,
            "key_impl": array.key_impl,
        }


def _hex(number: float) -> str:
    return struct.pack(">d", number).hex()


def decode_manifest(text: str | bytes, reader: Reader) -> Checkpoint:
    """Reads the JSON of a manifest.

    Args:
      text: the JSON.
      reader: gives the functions that read the bits of the arrays.

    Returns:
      The checkpoint.

    Raises:
      ValueError: if the text is not what :func:`encode_manifest` writes.
    """
    try:
        manifest = json.loads(text)
        leaves = tuple(_leaf(record, reader) for record in manifest["leaves"])
        metadata = manifest["metadata"]
        if not isinstance(metadata, dict):
            raise ValueError("the metadata is not a dict")
        return Checkpoint(leaves, metadata, str(manifest["moduli_version"]))
    except (LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"malformed manifest ({type(error).__name__}: {error})") from error


def _leaf(record: Any, reader: Reader) -> Leaf:
    kind, kind_name = record["kind"], record["kind_name"]
    if not isinstance(kind, str) or not isinstance(kind_name, (str, type(None))):
        raise ValueError("the kind of a leaf is not a name")
    value = _value(record["value"], reader)
    aliases = tuple(map(decode_path, record["aliases"]))
    return Leaf(decode_path(record["path"]), kind, kind_name, value, aliases)


def decode_path(parts: Any) -> Path:
    """Reads a path.

    Args:
      parts: the path in a manifest.

    Raises:
      ValueError: it is no list of str, int and such lists.
    """
    if not isinstance(parts, list):
        raise ValueError(f"not a path: {parts!r}")
    return tuple(part if type(part) in (str, int) else decode_path(part) for part in parts)


_SCALARS = {"none": type(None), "bool": bool, "int": int, "str": str}


def _value(record: Any, reader: Reader) -> Any:
    ((kind, item),) = record.items()
    if kind == "array":
        return _array(item, reader)
    if kind == "namedtuple":
        items = tuple(_value(child, reader) for child in item["items"])
        fields = tuple(map(str, item["fields"]))
        if len(fields) != len(items):
            raise ValueError("a named tuple has another number of fields than of items")
        return StoredNamedTuple(str(item["name"]), fields, items)
    if kind in ("tuple", "list"):
        items = [_value(child, reader) for child in item]
        return tuple(items) if kind == "tuple" else items
    if kind == "dict":
        return {decode_path([key])[0]: _value(child, reader) for key, child in item}
    if kind == "float":
        return _unhex(item)
    if kind == "complex":
        real, imaginary = item
        return complex(_unhex(real), _unhex(imaginary))
    if type(item) is not _SCALARS[kind]:
        raise ValueError(f"{item!r} is not of the type {kind}")
    return item


def _unhex(digits: str) -> float:
    data = bytes.fromhex(digits)
    if len(data) != 8:
        raise ValueError(f"{digits!r} is not a float of 64 bits")
    return struct.unpack(">d", data)[0]


def _array(record: Any, reader: Reader) -> StoredArray:
    shape = tuple(record["shape"])
    if any(type(size) is not int or size < 0 for size in shape):
        raise ValueError(f"not a shape: {shape!r}")
    dtype_from_name(record["dtype"])
    key_impl = record["key_impl"]
    if not isinstance(key_impl, (str, type(None))):
        raise ValueError(f"not a PRNG implementation: {key_impl!r}")
    array = StoredArray(
        record["dtype"], shape, str(record["container"]), bool(record["weak_type"]), key_impl
    )
    read = reader(record["member"], array)
    return StoredArray(array.dtype, shape, array.container, array.weak_type, key_impl, read)
