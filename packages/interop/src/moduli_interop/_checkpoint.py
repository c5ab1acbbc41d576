"""Save and load: a model's values to a file and back."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import moduli
from moduli.errors import PathError
from moduli.lowlevel import PathText
from moduli_interop._choose import choose_format, recognize_format
from moduli_interop._errors import CheckpointMismatchError
from moduli_interop._leaves import capture, check_savable
from moduli_interop._manifest import check_metadata
from moduli_interop._match import check_match, cut
from moduli_interop._parts import Bare, Parts
from moduli_interop._path_of import path_of
from moduli_interop._progress import Progress, reporter
from moduli_interop._quick import no_collection
from moduli_interop._restore import restore
from moduli_interop._stored import (
    Checkpoint,
    Leaf,
    Path,
    StoredArray,
    arrays_in,
    placed_arrays,
    replaced,
)

__all__ = ["described", "fill", "load", "load_state", "save", "write"]

M = TypeVar("M")


def save(
    path: str | os.PathLike[str],
    model: Any,
    *,
    metadata: Mapping[str, Any] | None = None,
    format: str | None = None,
    progress: Progress = None,
) -> None:
    """Saves the values of a model to a file: its Variables and arrays, not its code.

    The file replaces an older one at ``path`` in one step, when it is whole and on the disk; if
    anything fails before, the old file stays as it was. Nothing is pickled. A Variable that the
    model reaches by several paths is stored once.

    Args:
      path: the file. It is written under exactly this name.
      model: a Module, an Optimizer or another node, a State, or dicts, lists and tuples of these
        and of arrays, PRNG keys, numbers, str and None, such as
        ``{"model": model, "optimizer": optimizer, "step": 3}``.
      metadata: facts to keep with it, as in JSON: ``{"epoch": 3, "accuracy": 0.97}``. Read them
        with :func:`inspect_checkpoint`.
      format: name of the format; by default the suffix of ``path`` chooses it, and a suffix that
        no format claims means ``"safetensors"``. The suffixes of other libraries' files
        (``.pth``, ``.msgpack``, ``.h5``) need it.
      progress: a function of (bytes done, bytes in all); True or False for a line on stderr or
        none; by default there is one for files of a gigabyte or more, on a terminal.

    Raises:
      UnsupportedValueError: if the model or the metadata holds something that cannot be stored;
        the text names its path.
      CheckpointFormatError: if there is no such format.
      OSError: if the file cannot be written.

    Example:
      >>> import moduli as nnx, tempfile, os
      >>> from moduli_interop import load, save
      >>> path = os.path.join(tempfile.mkdtemp(), "model.safetensors")
      >>> save(path, nnx.Dict({"scale": nnx.Param(2.5)}), metadata={"epoch": 3})
      >>> load(path, nnx.Dict({"scale": nnx.Param(0.0)}))["scale"].value
      2.5
    """
    with no_collection():
        _save(path_of(path, "save", "path, model", model), model, metadata, format, progress)


def _save(
    file: str,
    model: Any,
    metadata: Mapping[str, Any] | None,
    format: str | None,
    progress: Progress,
) -> None:
    chosen = choose_format(file, format)
    checkpoint = described(model, metadata, shards=chosen.writes_shards)
    write(file, checkpoint, chosen.save, progress)


def described(model: Any, metadata: Mapping[str, Any] | None, *, shards: bool) -> Checkpoint:
    """Returns a model as a checkpoint whose arrays are read when they are asked for.

    Args:
      model: see :func:`save`.
      metadata: see :func:`save`.
      shards: whether arrays may be spread over several processes.

    Raises:
      UnsupportedValueError: as :func:`save` does.
    """
    leaves = capture(Parts(model))
    check_savable(leaves, shards=shards)
    return Checkpoint(tuple(leaves), check_metadata(metadata), moduli.__version__)


def write(
    file: str,
    checkpoint: Checkpoint,
    writer: Callable[[str, Checkpoint], None],
    progress: Progress,
) -> None:
    """Writes a checkpoint with a format's ``save``, and reports how far it is."""
    total = sum(array.nbytes for _, array in placed_arrays(checkpoint.leaves))
    add = reporter(progress, f"saving {file}", total)
    if add is not None:
        report = add

        def counting(array: StoredArray) -> StoredArray:
            def read() -> Any:
                assert array.read is not None
                bits = array.read()
                report(array.nbytes)
                return bits

            return dataclasses.replace(array, read=read)

        leaves = tuple(
            dataclasses.replace(leaf, value=replaced(leaf.value, counting))
            for leaf in checkpoint.leaves
        )
        checkpoint = dataclasses.replace(checkpoint, leaves=leaves)
    writer(file, checkpoint)


def load(
    path: str | os.PathLike[str],
    model: M,
    *,
    format: str | None = None,
    progress: Progress = None,
) -> M:
    """Fills a model with the values of a file, in place.

    First the file is compared with the model, and every array is read and verified; if anything is
    wrong, an error lists it and the model is as it was. Values come back bit by bit as they were
    saved. Arrays go where the model's own are, if these have a sharding; Variables keep their
    metadata. What becomes of the file afterwards changes nothing.

    Args:
      path: the file.
      model: what was given to :func:`save`, built anew. It may be abstract: arrays may be
        ``jax.ShapeDtypeStruct``, and then there is never a second copy of them in memory.
      format: name of the format; by default the content of the file tells it.
      progress: see :func:`save`.

    Returns:
      The same ``model``, with the same nodes, dicts and lists in it. Tuples that hold numbers or
      arrays cannot be filled, so what is returned has new ones.

    Raises:
      CheckpointMismatchError: if the values do not fit the model; a table of every missing and
        unexpected path and every other shape, dtype or kind.
      NotACheckpointError: if the file is something else.
      TruncatedCheckpointError: if it ends early.
      CorruptCheckpointError: if its bytes are not those that were written; names the array. The
        digests find damage; they are no protection from somebody who forges a file.
      CheckpointVersionError: if a later release wrote it in another format.
      OSError: if it cannot be opened.
    """
    file = path_of(path, "load", "path, model", model)
    with no_collection():
        return fill(model, recognize_format(file, format).load(file), file, progress)


def fill(model: M, checkpoint: Checkpoint, file: str, progress: Progress) -> M:
    """Fills a model with a checkpoint; see :func:`load`."""
    parts = Parts(model)
    leaves = capture(parts)
    pairs = check_match(checkpoint.leaves, leaves, file)
    values = [pairs[leaf.path].value for leaf in leaves]
    objects = [live for _, live in parts.live]
    new = _restored(checkpoint, values, list(map(_held, objects)), file, progress)
    return parts.fill(list(zip(objects, new, strict=True)))


def load_state(
    path: str | os.PathLike[str],
    *,
    only: str | Callable[[Path], bool] | None = None,
    format: str | None = None,
    progress: Progress = None,
) -> moduli.State:
    """Returns the values of a file as a State, without a model.

    Args:
      path: the file.
      only: the part to read: the path of a part of the model, such as ``"decoder"`` or
        ``"blocks/0"``, or a function that takes a path (a tuple) and returns whether to read what
        stands there. Nothing else is read, and what is read is verified.
      format: name of the format; by default the content of the file tells it.
      progress: see :func:`save`.

    Returns:
      The State that ``moduli.state(model)`` had when the model was saved. A kind of Variable that
      no loaded package names becomes a plain ``Variable``, a named tuple a plain tuple, and an
      array of 64 bits stays a numpy array unless ``jax_enable_x64`` is on.

    Raises:
      CheckpointMismatchError: if there is nothing in the part that was asked for.
      CheckpointError: as :func:`load` does.

    Example:
      >>> import moduli as nnx, tempfile, os
      >>> from moduli_interop import load_state, save
      >>> path = os.path.join(tempfile.mkdtemp(), "model.safetensors")
      >>> save(path, nnx.Dict({"layers": nnx.List([nnx.Param(2.5)])}))
      >>> load_state(path).layers[0]
      Param(2.5)
    """
    with no_collection():
        return _state_of(path_of(path, "load_state", "path"), only, format, progress)


def _state_of(
    file: str,
    only: str | Callable[[Path], bool] | None,
    format: str | None,
    progress: Progress,
) -> moduli.State:
    checkpoint = recognize_format(file, format).load(file)
    leaves = [leaf for leaf in checkpoint.leaves if _is_wanted(leaf, only)]
    if only is not None and not leaves:
        names = cut([f"`{leaf.name}`" for leaf in checkpoint.leaves])
        raise CheckpointMismatchError(f"{file} has nothing in the part {only!r}; it has {names}")
    chosen = dataclasses.replace(checkpoint, leaves=tuple(leaves))
    values = _restored(chosen, [leaf.value for leaf in leaves], None, file, progress)
    return moduli.from_flat_state(
        (leaf.path, _rebuilt(leaf, value)) for leaf, value in zip(leaves, values, strict=True)
    )


def _restored(
    checkpoint: Checkpoint, values: list[Any], likes: Any, file: str, progress: Progress
) -> list[Any]:
    total = sum(array.nbytes for value in values for array in arrays_in(value))
    add = reporter(progress, f"loading {file}", total)
    more = {} if add is None else {"done": add}
    return restore(values, likes, read_all=checkpoint.read_all, **more)


def _is_wanted(leaf: Leaf, only: str | Callable[[Path], bool] | None) -> bool:
    if only is None:
        return True
    if callable(only):
        return only(leaf.path)
    return PathText(only).begins(leaf.path)


def _held(leaf: Any) -> Any:
    if isinstance(leaf, Bare):
        return leaf.value
    return leaf.get_raw_value() if isinstance(leaf, moduli.Variable) else leaf


def _rebuilt(leaf: Leaf, value: Any) -> Any:
    return value if leaf.kind in ("array", "value") else _variable_type(leaf)(value)


def _variable_type(leaf: Leaf) -> type[moduli.Variable[Any]]:
    """Finds the class by its registered name; never by importing what the file says."""
    if leaf.kind_name is not None:
        try:
            return moduli.variable_type_from_name(leaf.kind_name)
        except PathError:
            pass
    return moduli.Variable
