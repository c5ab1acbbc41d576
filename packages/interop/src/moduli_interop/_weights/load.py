"""Foreign weights into a model."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

import moduli
from moduli.errors import ModuliError, VariableError, format_path
from moduli_interop._placement import declared_sharding, sharding_of
from moduli_interop._tensors.read import read_tensors
from moduli_interop._tensors.stored import Tensors
from moduli_interop._weights.dtypes import rounded
from moduli_interop._weights.errors import WeightsMismatchError
from moduli_interop._weights.groups import cut
from moduli_interop._weights.name_map import NameMap
from moduli_interop._weights.plan import Plan, make_plan
from moduli_interop._weights.report import LoadReport
from moduli_interop._weights.selection import Selection
from moduli_interop._weights.targets import Target
from moduli_interop._weights.variables import Place, shape_dtype

__all__ = ["load_weights"]


def load_weights(
    source: str | os.PathLike[str] | Mapping[Any, Any],
    model: Any,
    *,
    names: NameMap | Mapping[str, Any] | Callable[[str], str | None] | None = None,
    prefix: str = "",
    only: Any = None,
    ignore: str | Iterable[str] | Callable[[str], bool] = (),
    strict: bool = True,
    cast: bool = False,
    dry_run: bool = False,
) -> LoadReport:
    """Fills a model with the tensors of another framework's file.

    First all names, shapes and dtypes are compared; if anything does not fit, an error lists all of
    it and the model is as it was. How a tensor is laid out, the layers declare; nothing is guessed
    from a shape. Tensors are read one at a time, and go where the model's own arrays are; a model
    from :func:`moduli.eval_shape` needs no memory before.

    A Variable that the model shares is filled by any of its names; if the source has several, they
    have to be equal. What the source shares is not shared here. Numbers of a narrower dtype are
    widened, which changes none; the report lists them.

    Args:
      source: what :func:`read_tensors` takes.
      model: the model; its Variables are written.
      names: what its modules are called in the source: a :class:`NameMap`, or the dict of one; or a
        function that gives our name for each of theirs, or None to pass one over.
      prefix: what all names of interest begin with, ``"module."`` or ``"state_dict."``; other
        tensors are left out.
      only: which Variables to fill: a path, several, patterns with ``*``, or a filter as of
        :func:`moduli.state`. The others are left as they are. Each path has to be there.
      ignore: names of tensors to pass over, patterns with ``*``, or a function of a name. Buffers
        without weights are always passed over: ``num_batches_tracked``, ``position_ids``,
        ``rotary_emb.inv_freq``. A pattern of no tensor is in the report as ``idle``; with
        ``strict=False``, where nothing else would show it, it is an error.
      strict: whether every Variable has to be filled and every tensor used. Shapes and dtypes have
        to fit in any case, and something has to match.
      cast: whether numbers may be rounded to the dtype of the model. One that is larger than any
        of that, or complex where the model is real, is an error all the same.
      dry_run: only compare, and say in the report what is wrong.

    Returns:
      What was done.

    Raises:
      WeightsMismatchError: if tensors and model do not fit.
      ModuliError: if ``only`` selects nothing, or a function of names returns no text.
      TensorFileError: if the source is damaged.
      NameMapError: if the names are no map that can be turned round.

    Example:
      >>> import moduli as nnx, numpy as np
      >>> from moduli_interop import load_weights
      >>> from moduli_layers import Linear
      >>> model = nnx.Dict(out=Linear(2, 3, rngs=nnx.Rngs(0)))
      >>> tensors = {"fc.weight": np.ones((3, 2), np.float16), "fc.bias": np.zeros(3, np.float32)}
      >>> print(load_weights(tensors, model, names={"fc": "out"}))
      loaded 2 tensors of the dict
        fc.bias -> out/bias: float32[3]
        fc.weight -> out/kernel: float16[3, 2], widened to float32
    """
    if isinstance(model, (str, os.PathLike)):
        raise VariableError(
            f"load_weights got a {type(source).__name__} as the source and a path as the model: "
            "swapped; write `load_weights(source, model)`"
        )
    tensors = read_tensors(source)
    mapping = NameMap(names) if isinstance(names, Mapping) else names
    plan = make_plan(tensors, model, mapping, Selection(prefix, only, ignore, strict, cast))
    report = LoadReport(
        tensors.source,
        tuple(sorted(plan.loaded, key=lambda row: row.ours)),
        tuple(plan.missing),
        tuple(plan.unexpected),
        tuple(plan.ignored),
        tuple(plan.left),
        idle=(*plan.idle_ignore, *(f"the rule {text}" for text in plan.idle)),
        kept=plan.kept,
        problems=tuple(plan.problems),
        dry_run=dry_run,
    )
    if dry_run:
        return report
    if plan.problems:
        raise _mismatch(tensors, plan)
    values = _read(plan)
    new = [(path, place.value.replace(value)) for path, (place, value) in values.items()]
    moduli.update(model, moduli.from_flat_state(new))
    return dataclasses.replace(report, abstract=_abstract(model))


def _abstract(model: Any) -> tuple[str, ...]:
    """Returns the paths of Variables that are still shapes without numbers."""
    state = moduli.to_flat_state(moduli.state(model))
    return tuple(
        format_path(path)
        for path, leaf in state.items()
        if isinstance(leaf, moduli.Variable)
        and isinstance(leaf.get_raw_value(), jax.ShapeDtypeStruct)
    )


def _mismatch(tensors: Tensors, plan: Plan) -> WeightsMismatchError:
    lines = [f"  {line}" for line in cut(plan.problems, "problems")]
    if plan.idle:
        rules = "; ".join(plan.idle[:5]) + ("; ..." if len(plan.idle) > 5 else "")
        lines.append(f"the model has nothing that these rules name: {rules}")
    if plan.idle_ignore and not any(line.startswith("ignore") for line in plan.problems):
        lines.append(f"the source has nothing that these name: {'; '.join(plan.idle_ignore[:5])}")
    if plan.hint is not None:
        lines.append(plan.hint)
    elif not plan.loaded and not any(line.startswith("unreadable") for line in plan.problems):
        lines.append(
            "no tensor matched; names={their name: our path} says what modules are called there, "
            "and suggest_names(source, model) prints a map to begin with"
        )
    elif any(line.startswith(("missing", "unexpected")) for line in plan.problems):
        lines.append(
            "write names={their name: our path} for what is called otherwise, ignore=... for "
            "tensors without a place, only=... or strict=False to fill a part of the model"
        )
    count = len(plan.problems)
    return WeightsMismatchError(
        f"{tensors.source} does not fit the model ({count} problem{'s' if count > 1 else ''}); "
        "nothing was loaded:\n" + "\n".join(lines),
        tuple(plan.problems),
    )


def _read(plan: Plan) -> dict[tuple[Any, ...], tuple[Place, Any]]:
    """Reads the tensors, one at a time, and makes the Variables' values.

    Returns:
      By the first path of each Variable its place and value.
    """
    done: dict[int, tuple[Place, Any]] = {}
    sums: dict[tuple[Any, ...], np.ndarray] = {}
    left = dict(plan.fills)
    for group in plan.groups:
        arrays = _arrays(group, plan)
        for place, array in zip(group[0].places, arrays, strict=True):
            left[place.path] -= 1
            if place.path in sums:
                array = sums.pop(place.path) + array
            if left[place.path]:
                sums[place.path] = array
                continue
            first = done.get(id(place.value))
            try:
                array = rounded(array, shape_dtype(place.value)[1])
            except ValueError as error:  # a number that its dtype has not
                raise WeightsMismatchError(
                    f"the source does not fit {format_path(place.path)}; nothing was loaded: "
                    f"{error}",
                    (f"dtype: {format_path(place.path)}: {error}",),
                ) from None
            value = _value(place, array)
            if first is None:
                done[id(place.value)] = place, value
            elif np.asarray(value).tobytes() != np.asarray(first[1]).tobytes():
                one, other = format_path(first[0].path), format_path(place.path)
                raise WeightsMismatchError(
                    f"{one} and {other} are one Variable of the model, and the source has other "
                    f"numbers for each of them; nothing was loaded. Give the model two Variables, "
                    f"or pass one of the tensors over with ignore=",
                    (f"shared: {one} and {other} differ",),
                )
    return {place.path: (place, value) for place, value in done.values()}


def _arrays(group: list[Target], plan: Plan) -> list[np.ndarray]:
    """Makes the arrays of a group of tensors, one for each Variable."""
    target = group[0]
    shapes = target.shapes()
    found = []
    for number in range(len(target.names)):
        parts = [plan.tensors[one.names[number]].read() for one in group]
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts, target.tensor.axis)
        del parts
        try:
            found.append(target.tensor.to_ours(whole, shapes))
        except ModuliError as error:
            tensor = plan.tensors[target.names[number]]
            raise WeightsMismatchError(
                f"the tensor {tensor.name!r} of {tensor.file} does not fit {target.ours}; nothing "
                f"was loaded: {error}",
                (str(error),),
            ) from error
    if not target.blocks:
        return found[0]
    return [
        np.stack(each).reshape((*target.blocks, *each[0].shape))
        for each in zip(*found, strict=True)
    ]


def _value(place: Place, array: np.ndarray) -> Any:
    """Returns an array of a Variable's dtype as its value, where its own one is."""
    old = place.value.get_raw_value()
    array = array.reshape(shape_dtype(place.value)[0])
    if isinstance(old, np.ndarray):
        return array if array.base is None else array.copy()
    sharding = sharding_of(old)
    if sharding is None and isinstance(old, jax.ShapeDtypeStruct):
        sharding = declared_sharding(place.value)
    if sharding is not None:
        return jax.device_put(array, sharding)
    return jax.numpy.asarray(array)
