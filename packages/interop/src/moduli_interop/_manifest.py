"""The manifest: everything of a checkpoint but the arrays' bits, as JSON.

Arrays stand in it as records which name the member that holds their bits, so that any container
which can keep named arrays and one text can be a format. The JSON is::

    {"moduli_version": str,
     "metadata": {...},                      as the user gave it
     "leaves": [{"path": [KEY, ...],         KEY: str, int, or a list of KEYs for a tuple
                 "kind": str,                "Param", "BatchStat", ...; "array" or "value" outside
                 "kind_name": str | null,    "params", "batch_stats", ...
                 "aliases": [path, ...],     other paths to the same Variable
                 "value": VALUE}, ...]}

and VALUE is an object with one entry, whose name says what it is::

    {"array": {"member": str, "dtype": str, "shape": [int, ...], "container": str,
               "weak_type": bool, "key_impl": str | null}}
    {"none": null}  {"bool": bool}  {"int": int}  {"str": str}
    {"integer": "hexadecimal digits"}        an int of more than 64 bits
    {"float": "16 hex digits of the IEEE bits"}  {"complex": [hex, hex]}
    {"tuple": [VALUE, ...]}  {"list": [VALUE, ...]}  {"dict": [[KEY, VALUE], ...]}
    {"namedtuple": {"name": str, "fields": [str, ...], "items": [VALUE, ...]}}

No path stands twice in it, and none runs through another.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from moduli.errors import format_path
from moduli_interop._dtypes import dtype_from_name
from moduli_interop._errors import UnsupportedValueError
from moduli_interop._stored import Checkpoint, Leaf, Path, StoredArray, StoredNamedTuple

__all__ = [
    "Reader",
    "check_metadata",
    "check_size",
    "decode_manifest",
    "decode_path",
    "encode_manifest",
]

Reader = Callable[[str, StoredArray], Callable[[], np.ndarray]]
"""Takes the name of a member and what it should hold; returns the function that reads its bits."""

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\[\]]{0,199}")
# in an archive a slash may stand between two names, none of which is made of dots
_NESTED_NAME = re.compile(r"(?=.{1,200}\Z)[A-Za-z0-9_]+(?:/[A-Za-z0-9_]+)*")
_MADE_NAME = re.compile(r"[0-9]+-array")
_CONTAINERS = frozenset(("jax", "numpy", "numpy scalar"))
_MOST_DIMENSIONS = 32
_FREE = 1 << 26  # bytes of memory that any manifest may take


def encode_manifest(
    checkpoint: Checkpoint, *, name: Callable[[Path], str] | None = None, nested: bool = False
) -> tuple[str, dict[str, StoredArray]]:
    """Formats a checkpoint as JSON.

    Args:
      checkpoint: the checkpoint.
      name: gives the name of a member by the path of its array; by default the parts of the path
        with dots between them.
      nested: whether names may have slashes too, as those of a zip archive.

    Returns:
      The JSON text, and the arrays by the names of their members, in the order of the leaves. A
      name is the path of its array where that is a plain name: it begins with a letter, a digit or
      ``_`` and has no separator in it, so it may be that of a file. It is unique whatever the case.

    Example:
      >>> from moduli_interop import Checkpoint, Leaf, encode_manifest
      >>> leaf = Leaf(("scale",), "Param", "params", 2.5)
      >>> text, arrays = encode_manifest(Checkpoint((leaf,), {}, "0.1.0"))
      >>> arrays
      {}
    """
    encoder = _Encoder(name or _dotted, nested)
    leaves = ",".join(map(encoder.leaf, checkpoint.leaves))
    version, metadata = _json(checkpoint.moduli_version), _json(checkpoint.metadata)
    text = f'{{"moduli_version":{version},"metadata":{metadata},"leaves":[{leaves}]}}'
    return text, encoder.arrays


def check_metadata(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns the user's metadata as JSON gives it back.

    Args:
      metadata: a JSON-like dict, or None. Numbers may be numpy or JAX scalars.

    Raises:
      UnsupportedValueError: if JSON cannot hold it.
    """
    try:
        facts = dict(metadata or {})
        _check_keys(facts)
        text = json.dumps(facts, default=_number)
    except (TypeError, ValueError, RecursionError) as error:
        raise UnsupportedValueError(
            f"the metadata of a checkpoint is a JSON-like dict (str keys; numbers, str, bool, "
            f"None, lists and dicts), but: {error}. Put arrays into the model, or into a "
            "moduli.Variable of a dict that you save with it"
        ) from None
    return json.loads(text)


def _check_keys(value: Any) -> None:
    """Refuses keys that JSON would turn into texts, as it does with numbers."""
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"it has the key {key!r} of the type {type(key).__name__}")
    if isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            _check_keys(item)


def _number(value: Any) -> Any:
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return value.item()
    raise TypeError(f"it holds a {type(value).__module__}.{type(value).__qualname__}")


_json = json.JSONEncoder(separators=(",", ":")).encode
# what encode comes to for a text, without its detour
_quoted = json.encoder.encode_basestring_ascii


class _Encoder:
    """Makes the JSON of leaves, as text: objects for all of it would take most of a save's time."""

    def __init__(self, name: Callable[[Path], str], nested: bool):
        self.name, self.nested = name, nested
        self.arrays: dict[str, StoredArray] = {}
        self.taken: set[str] = set()
        self.kinds: dict[tuple[str, str | None], str] = {}
        self.descriptions: dict[tuple[Any, ...], str] = {}

    def leaf(self, leaf: Leaf) -> str:
        kind = self.kinds.get((leaf.kind, leaf.kind_name))
        if kind is None:
            kind = f'"kind":{_json(leaf.kind)},"kind_name":{_json(leaf.kind_name)}'
            self.kinds[leaf.kind, leaf.kind_name] = kind
        aliases = _json(leaf.aliases) if leaf.aliases else "[]"
        value = self.value(leaf.value, leaf.path)
        return f'{{"path":{_json_path(leaf.path)},{kind},"aliases":{aliases},"value":{value}}}'

    def value(self, value: Any, path: tuple[Any, ...]) -> str:
        if isinstance(value, StoredArray):
            return self.array(value, path)
        if isinstance(value, StoredNamedTuple):
            pairs = zip(value.fields, value.items, strict=True)
            items = ",".join([self.value(item, (*path, field)) for field, item in pairs])
            start = f'"name":{_json(value.name)},"fields":{_json(value.fields)}'
            return f'{{"namedtuple":{{{start},"items":[{items}]}}}}'
        if isinstance(value, (tuple, list)):
            items = ",".join([self.value(item, (*path, i)) for i, item in enumerate(value)])
            return f'{{"{type(value).__name__}":[{items}]}}'
        if isinstance(value, dict):
            items = ",".join(
                [f"[{_json(key)},{self.value(v, (*path, key))}]" for key, v in value.items()]
            )
            return f'{{"dict":[{items}]}}'
        if isinstance(value, float):
            return f'{{"float":"{_hex(value)}"}}'
        if isinstance(value, complex):
            return f'{{"complex":["{_hex(value.real)}","{_hex(value.imag)}"]}}'
        if type(value) is int and value.bit_length() > 63:
            return f'{{"integer":"{value:x}"}}'
        return f'{{"{"none" if value is None else type(value).__name__}":{_json(value)}}}'

    def array(self, array: StoredArray, path: tuple[Any, ...]) -> str:
        name = self.name(path)
        if not _is_plain(name, self.nested) or name.lower() in self.taken:
            name = f"{len(self.arrays)}-array"
        self.taken.add(name.lower())
        self.arrays[name] = array
        key = (array.dtype, array.shape, array.container, array.weak_type, array.key_impl)
        description = self.descriptions.get(key)
        if description is None:
            record = {
                "dtype": array.dtype,
                "shape": array.shape,
                "container": array.container,
                "weak_type": array.weak_type,
                "key_impl": array.key_impl,
            }
            description = self.descriptions[key] = _json(record)[1:]
        return f'{{"array":{{"member":{_quoted(name)},{description}}}'


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join([str(part) for part in path])


def _is_plain(name: str, nested: bool) -> bool:
    return bool(_PLAIN_NAME.fullmatch(name) or (nested and _NESTED_NAME.fullmatch(name)))


def _json_path(path: tuple[Any, ...]) -> str:
    return f"[{','.join([_quoted(p) if type(p) is str else _json_part(p) for p in path])}]"


def _json_part(part: Any) -> str:
    return _json_path(part) if type(part) is tuple else _json(part)


def _hex(number: float) -> str:
    return struct.pack(">d", number).hex()


def decode_manifest(
    text: str | bytes, reader: Reader, *, owned: bool = False, nested: bool = False
) -> Checkpoint:
    """Reads the JSON of a manifest.

    Args:
      text: the JSON.
      reader: gives the functions that read the bits of the arrays: ``reader(name, array)``, by the
        name of a member, plain as :func:`encode_manifest` makes it, and what it should hold.
      owned: whether these functions return new memory at each call; see :class:`StoredArray`.
      nested: as for :func:`encode_manifest`.

    Returns:
      The checkpoint.

    Raises:
      ValueError: if the text is not what :func:`encode_manifest` writes.

    Example:
      >>> from moduli_interop import Checkpoint, Leaf, decode_manifest, encode_manifest
      >>> checkpoint = Checkpoint((Leaf(("scale",), "Param", "params", 2.5),), {}, "0.1.0")
      >>> text, arrays = encode_manifest(checkpoint)
      >>> decode_manifest(text, lambda name, array: arrays[name].read) == checkpoint
      True
    """
    check_size(text)
    members: set[str] = set()
    decoder = _Decoder(reader, owned, members, nested)
    try:
        manifest = json.loads(text)
        leaves = tuple(map(decoder.leaf, manifest["leaves"]))
        metadata = manifest["metadata"]
        if not isinstance(metadata, dict):
            raise ValueError("the metadata is not a dict")
        _check_paths(leaves)
        return Checkpoint(leaves, metadata, str(manifest["moduli_version"]))
    except (LookupError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(f"malformed manifest ({type(error).__name__}: {error})") from error


def check_size(text: str | bytes) -> None:
    """Refuses a text of few bytes that would become very many objects."""
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    objects = len(data) - len(data.translate(None, b"[{,:"))
    if 64 * objects > _FREE + 8 * len(text):
        raise ValueError("the manifest has more objects than its length allows")


def _check_paths(leaves: tuple[Leaf, ...]) -> None:
    """Refuses paths that no model has: an empty one, one twice, one that runs through another."""
    ends = {leaf.path for leaf in leaves}
    if () in ends and len(leaves) > 1:
        raise ValueError("a leaf stands at the root, and others below it")
    if len(ends) < len(leaves):
        raise ValueError("a path stands twice in the manifest")
    inner = {leaf.path[:length] for leaf in leaves for length in range(1, len(leaf.path))}
    both = inner & ends
    if both:
        raise ValueError(f"a leaf stands below the leaf `{format_path(min(both, key=repr))}`")


def decode_path(parts: Any) -> Path:
    """Reads a path.

    Args:
      parts: the path in a manifest.

    Raises:
      ValueError: it is no list of str, int and such lists.
    """
    if not isinstance(parts, list):
        raise ValueError(f"not a path: {parts!r}")
    return tuple([part if type(part) in (str, int) else decode_path(part) for part in parts])


_SCALARS = {"none": type(None), "bool": bool, "int": int, "str": str}


_Description = tuple[str, tuple[int, ...], str, bool, str | None]


class _Decoder:
    def __init__(self, reader: Reader, owned: bool, members: set[str], nested: bool):
        self.reader = reader
        self.owned = owned
        self.members, self.nested = members, nested
        self.described: dict[_Description, _Description] = {}

    def leaf(self, record: Any) -> Leaf:
        kind, kind_name = record["kind"], record["kind_name"]
        if not isinstance(kind, str) or not isinstance(kind_name, (str, type(None))):
            raise ValueError("the kind of a leaf is not a name")
        path = decode_path(record["path"])
        if not path:
            raise ValueError("a leaf has an empty path")
        value, others = self.value(record["value"]), record["aliases"]
        aliases = tuple(map(decode_path, others)) if others else ()
        return Leaf(path, kind, kind_name, value, aliases)

    def value(self, record: Any) -> Any:
        ((kind, item),) = record.items()
        if kind == "array":
            return self.array(item)
        if kind == "namedtuple":
            items = tuple(map(self.value, item["items"]))
            fields = tuple(map(str, item["fields"]))
            if len(fields) != len(items):
                raise ValueError("a named tuple has another number of fields than of items")
            return StoredNamedTuple(str(item["name"]), fields, items)
        if kind in ("tuple", "list"):
            items = [self.value(child) for child in item]
            return tuple(items) if kind == "tuple" else items
        if kind == "dict":
            found = {decode_path([key])[0]: self.value(child) for key, child in item}
            if len(found) < len(item):
                raise ValueError("a dict has one key twice")
            return found
        if kind == "float":
            return _unhex(item)
        if kind == "complex":
            real, imaginary = item
            return complex(_unhex(real), _unhex(imaginary))
        if kind == "integer":
            return int(item, 16)
        if type(item) is not _SCALARS[kind]:
            raise ValueError(f"{item!r} is not of the type {kind}")
        return item

    def array(self, record: Any) -> StoredArray:
        description: _Description = (
            record["dtype"],
            tuple(record["shape"]),
            record["container"],
            record["weak_type"],
            record["key_impl"],
        )
        known = self.described.get(description)  # arrays of a model are of few kinds
        if known is None:
            _check_description(*description)
            known = self.described[description] = description
        member = record["member"]
        if type(member) is not str or not (
            _is_plain(member, self.nested) or _MADE_NAME.fullmatch(member)
        ):
            raise ValueError(f"no array has the name {str(member)[:200]!r}")
        if member in self.members:
            raise ValueError(f"the member {member!r} stands twice in the manifest")
        self.members.add(member)
        # of what is equal (1, 1.0 and true are), the one that was checked
        array = StoredArray(*known, None, self.owned)
        object.__setattr__(array, "read", self.reader(member, array))  # nobody has seen it yet
        return array


def _check_description(
    dtype: Any, shape: tuple[Any, ...], container: Any, weak_type: Any, key_impl: Any
) -> None:
    for size in shape:
        if type(size) is not int or size < 0:
            raise ValueError(f"not a shape: {str(shape)[:200]}")
    if len(shape) > _MOST_DIMENSIONS:
        raise ValueError(f"not a shape: {str(shape)[:200]}")
    if math.prod(max(size, 1) for size in shape) >= 2**56:
        raise ValueError(f"no array has the shape {str(shape)[:200]}")
    dtype_from_name(dtype)
    if container not in _CONTAINERS or (container == "numpy scalar" and shape):
        raise ValueError(f"an array cannot be a {str(container)[:100]!r}")
    if type(weak_type) is not bool or (weak_type and container != "jax"):
        raise ValueError("weak_type does not fit the array")
    if key_impl is not None and not (
        isinstance(key_impl, str) and dtype == "uint32" and container == "jax" and shape
    ):
        raise ValueError("an array that is not one of PRNG key data is marked as keys")


def _unhex(digits: str) -> float:
    data = bytes.fromhex(digits)
    if len(data) != 8:
        raise ValueError(f"{digits!r} is not a float of 64 bits")
    return struct.unpack(">d", data)[0]
