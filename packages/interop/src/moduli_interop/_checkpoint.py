"""Save and load: a model's values to a file and back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypeVar

import moduli
from moduli.errors import PathError
from moduli_interop._choose import choose_format
from moduli_interop._errors import UnsupportedValueError
from moduli_interop._leaves import capture, live_leaves, root_of
from moduli_interop._manifest import check_metadata
from moduli_interop._match import check_match
from moduli_interop._restore import restore
from moduli_interop._stored import Checkpoint, Leaf, arrays_in

__all__ = ["load", "load_state", "save"]

M = TypeVar("M")


def save(
    path: str | os.PathLike[str],
    model: Any,
    *,
    metadata: Mapping[str, Any] | None = None,
    format: str | None = None,
) -> None:
    """Saves the values of a model to a file: its Variables and arrays, not its code.

    The file replaces an older one at ``path`` in one step, when it is whole and on the disk; if
    anything fails before, the old file stays as it was. Nothing is pickled. A Variable that the
    model reaches by several paths is stored once.

    Args:
      path: the file. It is written under exactly this name.
      model: a Module, an Optimizer or another node, a State, or a dict of nodes such as
        ``{"model": model, "optimizer": optimizer}``.
      metadata: facts to keep with it, as in JSON: ``{"epoch": 3, "accuracy": 0.97}``. Read them
        with :func:`inspect_checkpoint`.
      format: name of the format; by default the suffix of ``path`` chooses it, and a suffix that
        no format claims means the built-in one, ``"npz"``, which ``numpy.load`` opens as well.

    Raises:
      UnsupportedValueError: if the model or the metadata holds something that cannot be stored;
        the text names its path.
      CheckpointFormatError: if there is no such format.
      OSError: if the file cannot be written.

    Example:
      >>> import moduli as nnx, tempfile, os
      >>> from moduli_interop import load, save
      >>> path = os.path.join(tempfile.mkdtemp(), "model.npz")
      >>> save(path, nnx.Dict({"scale": nnx.Param(2.5)}), metadata={"epoch": 3})
      >>> load(path, nnx.Dict({"scale": nnx.Param(0.0)}))["scale"].value
      2.5
    """
    file = os.fspath(path)
    chosen = choose_format(file, format)
    root = root_of(model)
    leaves = capture(root, live_leaves(root))
    for leaf in leaves:
        _check_concrete(leaf)
    chosen.save(file, Checkpoint(tuple(leaves), check_metadata(metadata), moduli.__version__))


def load(path: str | os.PathLike[str], model: M, *, format: str | None = None) -> M:
    """Fills a model with the values of a file, in place.

    First the whole file is read and verified and compared with the model; if anything is wrong, an
    error lists all of it and the model is as it was. Values come back bit by bit as they were
    saved. Arrays go where the model's own are, if these have a sharding; Variables keep their
    metadata.

    Args:
      path: the file.
      model: what was given to :func:`save`, built anew. It may be abstract: arrays may be
        ``jax.ShapeDtypeStruct``.
      format: name of the format; by default the suffix of ``path`` chooses it.

    Returns:
      The same ``model``.

    Raises:
      CheckpointMismatchError: if the values do not fit the model; lists every missing and
        unexpected path and every other shape, dtype or kind.
      NotACheckpointError: if the file is something else.
      TruncatedCheckpointError: if it ends early.
      CorruptCheckpointError: if its bytes are not those that were written.
      CheckpointVersionError: if a later release wrote it in another format.
      OSError: if it cannot be opened.
    """
    file = os.fspath(path)
    checkpoint = choose_format(file, format).load(file)
    root = root_of(model)
    live = live_leaves(root)
    check_match(checkpoint.leaves, capture(root, live), file)
    stored = {leaf.path: leaf.value for leaf in checkpoint.leaves}
    new = [(path, leaf, _new_value(leaf, stored[path])) for path, leaf in live]
    if isinstance(root, moduli.State):
        _fill_state(root, new)
    else:
        values = [(path, _boxed(leaf, value)) for path, leaf, value in new]
        moduli.update(root, moduli.from_flat_state(values))
    return model


def load_state(path: str | os.PathLike[str], *, format: str | None = None) -> moduli.State:
    """Returns the values of a file as a State, without a model.

    Args:
      path: the file.
      format: name of the format; by default the suffix of ``path`` chooses it.

    Returns:
      The State that ``moduli.state(model)`` had when the model was saved. A kind of Variable that
      no loaded package names becomes a plain ``Variable``, a named tuple a plain tuple, and an
      array of 64 bits stays a numpy array unless ``jax_enable_x64`` is on.

    Raises:
      CheckpointError: as :func:`load` does.

    Example:
      >>> import moduli as nnx, tempfile, os
      >>> from moduli_interop import load_state, save
      >>> path = os.path.join(tempfile.mkdtemp(), "model.npz")
      >>> save(path, nnx.Dict({"layers": nnx.List([nnx.Param(2.5)])}))
      >>> load_state(path).layers[0]
      Param(2.5)
    """
    file = os.fspath(path)
    checkpoint = choose_format(file, format).load(file)
    return moduli.from_flat_state((leaf.path, _rebuilt(leaf)) for leaf in checkpoint.leaves)


def _check_concrete(leaf: Leaf) -> None:
    if any(array.read is None for array in arrays_in(leaf.value)):
        raise UnsupportedValueError(
            f"`{leaf.name}` holds a jax.ShapeDtypeStruct, the shape and dtype of an array without "
            "its values, so there is nothing to save; build the model outside of eval_shape"
        )


def _new_value(leaf: Any, stored: Any) -> Any:
    like = leaf.get_raw_value() if isinstance(leaf, moduli.Variable) else leaf
    return restore(stored, like)


def _boxed(leaf: Any, value: Any) -> Any:
    return leaf.replace(value) if isinstance(leaf, moduli.Variable) else value


def _fill_state(state: moduli.State, new: list[tuple[Any, Any, Any]]) -> None:
    for path, leaf, value in new:
        if isinstance(leaf, moduli.Variable):
            leaf.set_raw_value(value)
            continue
        holder: Any = state
        for part in path[:-1]:
            holder = holder[part]
        holder[path[-1]] = value


def _rebuilt(leaf: Leaf) -> Any:
    value = restore(leaf.value)
    return value if leaf.kind == "array" else _variable_type(leaf)(value)


def _variable_type(leaf: Leaf) -> type[moduli.Variable[Any]]:
    """Finds the class by its registered name; never by importing what the file says."""
    if leaf.kind_name is not None:
        try:
            return moduli.variable_type_from_name(leaf.kind_name)
        except PathError:
            pass
    return moduli.Variable
