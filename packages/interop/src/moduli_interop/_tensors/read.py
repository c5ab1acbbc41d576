"""Opens a source of tensors, whatever it is."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import Any

from moduli import plugins
from moduli_interop._tensors import arrays
from moduli_interop._tensors.errors import TensorFileError
from moduli_interop._tensors.folder import read_folder
from moduli_interop._tensors.source import Opened, TensorSource, start_of
from moduli_interop._tensors.stored import Tensors
from moduli_interop._tensors.zip import member_names

__all__ = ["read_file", "read_tensors"]

_OTHERS = {  # what stands in the place of a file of tensors, by how it begins
    b"\x89HDF\r\n\x1a\n": (
        "is an HDF5 file; read it with h5py and give the arrays as a dict: {name: dataset[()] ...}"
    ),
    b"version https://git-lfs": (
        "is a pointer of Git LFS and not the file itself; fetch that with `git lfs pull`"
    ),
    b"<": "is a web page or XML, as a failed download leaves it; download the file again",
    b"\x1f\x8b": "is compressed by gzip; unpack it first",
    b"\xfd7zXZ": "is compressed by xz; unpack it first",
    b"BZh": "is compressed by bzip2; unpack it first",
    b"\x28\xb5\x2f\xfd": "is compressed by zstd; unpack it first",
    b"GGUF": (
        "is a GGUF file; read it with the package gguf and give the arrays as a dict, or write a "
        "plugin with moduli_tensor_sources"
    ),
}


def read_tensors(
    source: str | os.PathLike[str] | Mapping[Any, Any], *, format: str | None = None
) -> Tensors:
    """Opens a file, a folder or a dict of tensors; none of them is read yet.

    What a file is, its content says, not the end of its name. Files of torch are read without
    torch. Nothing in a file is imported or run: an object in a checkpoint that is no tensor is
    passed over, whatever its class.

    Args:
      source: a safetensors file, a torch file (``.pt``, ``.pth``, ``.bin``, ``.ckpt``), an
        ``.npz``, one of flax's msgpack files, an ``.eqx`` of equinox's, a folder of one of these or
        with an index of several, that index, or a dict of arrays of any library, which may be
        nested. More kinds by the hook ``moduli_tensor_sources``.
      format: the name of the kind, where it is not to be found out.

    Returns:
      The tensors by name. Those of nested dicts and lists have names with dots,
      ``"state_dict.conv.weight"``.

    Raises:
      TensorFileError: if the source is damaged or of no kind that is known.
      OSError: if a file cannot be opened.

    Example:
      >>> import numpy as np, os, tempfile
      >>> from moduli_interop import read_tensors
      >>> path = os.path.join(tempfile.mkdtemp(), "weights")
      >>> with open(path, "wb") as file:
      ...     np.savez(file, bias=np.zeros(3, np.float16))
      >>> tensors = read_tensors(path)
      >>> tensors
      <1 tensors of ... (npz)>
      >>> tensors["bias"].shape, tensors["bias"].dtype
      ((3,), dtype('float16'))
    """
    if isinstance(source, Tensors):
        return source
    if isinstance(source, Mapping):
        return arrays.read(source)
    if not isinstance(source, (str, os.PathLike)):
        raise TensorFileError(
            f"a {type(source).__name__}", "is no source of tensors; give a path or a dict of arrays"
        )
    path = os.fspath(source)
    if os.path.isdir(path):
        return read_folder(path, functools.partial(read_file, format=format))
    return read_file(path, format)


def read_file(path: str, format: str | None = None) -> Tensors:
    """Opens one file; see :func:`read_tensors`."""
    start = start_of(path)
    members = member_names(path) if start.startswith(b"PK") else frozenset()
    opened = Opened(path, start, members)
    made = _sources()
    known = {name: source for name, source in made.values.items() if name not in made.clashes}
    if format in made.clashes:
        raise _clash(made, format)
    if format is not None:
        if format not in known:
            raise TensorFileError(
                path, f"there is no kind of source {format!r}; known are {', '.join(sorted(known))}"
            )
        return known[format].read(path)
    fitting = [source for source in known.values() if source.recognises(opened)]
    if len(fitting) == 1:
        return fitting[0].read(path)
    ours = [source for source in fitting if made.is_ours(source.name)]
    if len(ours) == 1 and all(made.is_installed(source.name) for source in fitting):
        return ours[0].read(path)  # an installed plugin does not take files of ours
    if fitting:
        names = [source.name for source in fitting]
        raise TensorFileError(
            path, f"could be {' and '.join(names)}; say which: format={names[0]!r}"
        )
    raise TensorFileError(path, _unknown(start, members, known))


def _sources() -> plugins.Contributions:
    made = plugins.contributions("source of tensors", "moduli_tensor_sources", plugins.by_attribute)
    for name in made.clashes:
        if not made.is_installed(name):
            raise _clash(made, name)
    return made


def _clash(made: plugins.Contributions, name: str) -> TensorFileError:
    owners = " and ".join(
        f"the {record.title}" for record in (made.owners[name], *made.clashes[name])
    )
    return TensorFileError(
        "moduli_tensor_sources",
        f"{owners} both have a source named {name!r}; switch one of them off with "
        f"MODULI_PLUGINS=-{made.clashes[name][0].name}",
    )


def _unknown(start: bytes, members: frozenset[str], known: Mapping[str, TensorSource]) -> str:
    kinds = ", ".join(sorted(known)) or "none, the plugin `interop` is switched off"
    if not start:
        return "the file is empty"
    for beginning, text in _OTHERS.items():
        if start.lstrip(b" \t\r\n").startswith(beginning):
            return text
    if start[257:262] == b"ustar":
        return "is a tar archive; unpack it first"
    if members:
        return (
            f"is a zip archive of no known kind (it has {sorted(members)[:3]}); known are {kinds}"
        )
    if start[:8].startswith(b"PK"):
        return "is a zip archive that is damaged or truncated"
    if start[:1] == b"\x80" and start[1:2] <= b"\x05":
        return (
            "is a bare pickle, which can hold anything; load it where it was made, and give the "
            "arrays as a dict"
        )
    return f"is of no kind that is known ({kinds}); it begins with {start[:8]!r}"
