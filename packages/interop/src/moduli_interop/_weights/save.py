"""A model's weights out into files that other frameworks read."""

from __future__ import annotations

import difflib
import functools
import json
import os
import re
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.core
import numpy as np

from moduli.errors import ModuliError
from moduli_interop._atomic import atomic_write
from moduli_interop._errors import UnsupportedValueError
from moduli_interop._path_of import path_of
from moduli_interop._safetensors import Spec, write
from moduli_interop._weights.errors import NameMapError, WeightsMismatchError
from moduli_interop._weights.name_map import NameMap
from moduli_interop._weights.selection import selected
from moduli_interop._weights.targets import Target, targets
from moduli_interop._weights.templates import Template, parse_ours
from moduli_interop._weights.variables import shape_dtype

__all__ = ["save_weights"]

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20}
_INDEX = "model.safetensors.index.json"
_OURS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")


def save_weights(
    path: str | os.PathLike[str],
    model: Any,
    *,
    names: NameMap | Mapping[str, Any] | None = None,
    only: Any = None,
    max_shard_size: int | str = "5GB",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a model's weights as safetensors, named and laid out as PyTorch has them.

    The inverse of :func:`load_weights` with the same ``names``. A Variable that the model shares is
    written once, under the first of its names.

    Args:
      path: a file that ends in ``.safetensors``; or a folder, which is made, and gets
        ``model.safetensors``, or several and their index. What an earlier call left there is
        removed.
      model: the model.
      names: what its modules are called in the file.
      only: which Variables to write, as in :func:`load_weights`: ``LoRAParam`` for an adapter.
      max_shard_size: the most bytes of one file of a folder, as a number or ``"5GB"``.
      metadata: texts to keep in the file, besides ``{"format": "pt"}``.

    Warns:
      UserWarning: a rule of ``names`` names nothing, and something nearly of that name has none.

    Raises:
      NameMapError: if two Variables would have one name, or ``names`` is a function.
      UnsupportedValueError: if a Variable has no value that can be written.
      OSError: if a file cannot be written.

    Example:
      >>> import moduli as nnx, os, tempfile
      >>> from moduli_interop import read_tensors, save_weights
      >>> from moduli_layers import Linear
      >>> path = os.path.join(tempfile.mkdtemp(), "linear.safetensors")
      >>> save_weights(path, Linear(2, 3, rngs=nnx.Rngs(0)))
      >>> list(read_tensors(path).values())
      [StoredTensor('weight', float32[3,2]), StoredTensor('bias', float32[3])]
    """
    if callable(names) and not isinstance(names, NameMap):
        raise NameMapError(
            "names is a function, which cannot be turned round; write a NameMap of "
            "{their name: our path} to save"
        )
    file = path_of(path, "save_weights", "path, model", model)
    limit = _bytes(max_shard_size)
    mapping = NameMap(names or {})
    listed, _ = targets(model, mapping)
    _warn_of_idle_rules(mapping, listed)
    specs = _specs(selected(listed, only)[0])
    texts = {"format": "pt", **(metadata or {})}
    if file.endswith(".safetensors"):
        write(file, specs, texts)
    else:
        _write_folder(file, specs, texts, limit)


def _warn_of_idle_rules(mapping: NameMap, listed: list[Target]) -> None:
    """Warns of rules that name nothing, where something is called nearly so and has no rule.

    Other rules for nothing are for parts that this model lacks: the head of one with tied weights.
    """
    paths = {target.called for target in listed if target.called}
    paths |= {tuple(map(str, place.path)) for target in listed for place in target.places}
    idle = mapping.idle(paths)
    if not idle:
        return
    modules = {path[:n] for path in paths for n in range(1, len(path) + 1)}
    free = sorted(path for path in modules if not mapping.rename(path).specificity)
    for theirs, ours in idle:
        template = parse_ours(ours)
        meant = next((path for path in free if _is_near(template, path)), None)
        if meant is not None:
            warnings.warn(
                f"the model has nothing that the rule {theirs!r}: {ours!r} names; did you mean "
                f"{'.'.join(meant)!r}? That was written under the name that it has here",
                UserWarning,
                stacklevel=3,
            )


def _is_near(template: Template, path: tuple[str, ...]) -> bool:
    """Returns whether a path would be of a template, but for one part that is nearly the same."""
    if len(path) != len(template.parts):
        return False
    other = [
        (wanted, part)
        for wanted, pattern, part in zip(template.parts, template.patterns, path, strict=True)
        if not (wanted == part if pattern is None else pattern.fullmatch(part))
    ]
    return len(other) == 1 and bool(difflib.get_close_matches(other[0][0], [other[0][1]]))


def _bytes(size: int | str) -> int:
    if isinstance(size, str):
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", size.strip())
        units = {**_UNITS, "GIB": 2**30, "TB": 10**12, "TIB": 2**40}
        if found is not None and found[2].upper() in units:
            size = int(float(found[1]) * units[found[2].upper()])
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise UnsupportedValueError(
            f"max_shard_size={size!r} is no size; write a number of bytes, or one as '5GB'"
        )
    return size


def _specs(listed: list[Target]) -> list[Spec]:
    """Describes the tensors to write; each Variable once."""
    owners: dict[str, Target] = {}
    written: set[tuple[Any, ...]] = set()
    specs = []
    for target in listed:
        identity = tuple(id(place.value) for place in target.places)
        ends = target.names[0].rpartition(".")[2] if target.tensor.zero else target.tensor.part
        key = (identity, ends)
        if key in written:
            continue
        written.add(key)
        for number, name in enumerate(target.names):
            if name in owners:
                raise NameMapError(
                    f"{owners[name].ours} and {target.ours} would both be written as {name!r}; "
                    "write a rule for one of them"
                )
            owners[name] = target
            specs.append(_spec(target, number, name))
    return specs


def _spec(target: Target, number: int, name: str) -> Spec:
    dtypes = {shape_dtype(place.value)[1] for place in target.places}
    if len(dtypes) > 1:
        listed = ", ".join(sorted(dtype.name for dtype in dtypes))
        raise UnsupportedValueError(
            f"{target.ours} would be the tensor {name!r} and have different dtypes, {listed}; cast "
            "them to one"
        )
    for place in target.places:
        _check_readable(target, place.value.get_raw_value())
    try:
        shape = target.tensor.shape(target.shapes())
    except ModuliError as error:
        problem = f"{target.ours}: {error}"
        raise WeightsMismatchError(
            f"{problem}; nothing was written as {name!r}", (problem,)
        ) from error
    return Spec(name, dtypes.pop(), shape, functools.partial(_array, target, number))


def _check_readable(target: Target, value: Any) -> None:
    if isinstance(value, jax.ShapeDtypeStruct):
        raise UnsupportedValueError(
            f"{target.ours} is abstract, a shape and a dtype without numbers; load or initialise "
            "the model first"
        )
    if isinstance(value, jax.core.Tracer):
        raise UnsupportedValueError(
            f"{target.ours} is being traced and has no value yet; save outside of jit, grad and "
            "JAX's other transforms"
        )
    if isinstance(value, jax.Array) and not (
        value.is_fully_addressable or value.is_fully_replicated
    ):
        raise UnsupportedValueError(
            f"{target.ours} is spread over several hosts; gather it first with "
            "jax.experimental.multihost_utils.process_allgather"
        )


def _array(target: Target, number: int) -> np.ndarray:
    arrays = []
    for place in target.places:
        dtype = shape_dtype(place.value)[1]
        value = np.asarray(place.value.get_raw_value(), dtype)
        rank = len(target.blocks)
        if rank:
            value = value.reshape((-1, *value.shape[rank:]))[number]
        arrays.append(value)
    return target.tensor.to_theirs(arrays)


def _write_folder(folder: str, specs: list[Spec], texts: Mapping[str, str], limit: int) -> None:
    """Writes one file or several and their index, the index last."""
    os.makedirs(folder, exist_ok=True)
    shards: list[list[Spec]] = [[]]
    size = 0
    for spec in specs:
        if shards[-1] and size + spec.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(spec)
        size += spec.nbytes
    count = len(shards)
    files = [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    files = ["model.safetensors"] if count == 1 else files
    old = [name for name in os.listdir(folder) if _OURS.fullmatch(name)]
    if _INDEX in old:  # it would name files of which some are new and some are not
        os.unlink(os.path.join(folder, _INDEX))
    for name, shard in zip(files, shards, strict=True):
        write(os.path.join(folder, name), shard, texts)
    if count > 1:
        places = {s.name: name for name, shard in zip(files, shards, strict=True) for s in shard}
        total = sum(spec.nbytes for spec in specs)
        index = {"metadata": {"total_size": total}, "weight_map": places}
        with atomic_write(os.path.join(folder, _INDEX)) as file:
            file.write(json.dumps(index, indent=2, ensure_ascii=False).encode())
        files.append(_INDEX)
    for name in old:
        if name not in files and os.path.exists(os.path.join(folder, name)):
            os.unlink(os.path.join(folder, name))
