"""Rules: which values of a model are divided along which axes, without touching the model."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jax.sharding import NamedSharding, PartitionSpec

from moduli import errors
from moduli._base.path_text import PathPart, PathText
from moduli._variable.axis_names import axes_of_entry, resolved
from moduli._variable.box import Variable
from moduli._variable.filters import to_predicate

__all__ = ["Fsdp", "Path", "Rule", "check_all_match", "fsdp", "read_rules", "trimmed"]

Path = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Fsdp:
    """Divides each large value along one axis of the mesh; made by :func:`fsdp`.

    Attributes:
      axis: the axis of the mesh, or several of them.
      min_size: how many elements a value has at least that is divided.
    """

    axis: str | tuple[str, ...]
    min_size: int

    def spec(self, shape: Sequence[int], given: Sequence[Any], mesh: Any) -> PartitionSpec:
        """Returns the spec of one value.

        Args:
          shape: its shape.
          given: its names of axes so far; these stay.
          mesh: the mesh.
        """
        axes = axes_of_entry(self.axis)
        given = [*given, *[None] * (len(shape) - len(given))]
        taken = {name for entry in given for name in axes_of_entry(entry)}
        parts = math.prod(mesh.shape.get(axis, 1) for axis in axes)
        free = [
            place
            for place, (size, entry) in enumerate(zip(shape, given, strict=True))
            if entry is None and size and size % parts == 0
        ]
        if math.prod(shape) < self.min_size or not free or not taken.isdisjoint(axes):
            return trimmed(given)
        largest = max(free, key=lambda place: shape[place])
        given[largest] = self.axis
        return trimmed(given)


def trimmed(entries: Sequence[Any]) -> PartitionSpec:
    """Returns the PartitionSpec of entries, without None at the end."""
    count = max((n for n, entry in enumerate(entries, 1) if entry is not None), default=0)
    return PartitionSpec(*entries[:count])


def fsdp(axis: str | Sequence[str], min_size: int = 1024) -> Fsdp:
    """Returns the rule of fully sharded data parallelism: every large value is divided.

    Each value is divided along the largest of its axes that the devices divide evenly; axes that
    have a name already keep it, so tensor parallelism may be added by names. The same axis of the
    mesh divides the batch.

    Args:
      axis: the axis of the mesh, or several of them.
      min_size: values of fewer elements stay whole on every device.

    Returns:
      A rule for :func:`create` and :func:`shardings`: all of the rules, one of them, or what a
      filter selects, as ``[(nnx.Param, nnx.fsdp("data"))]``.

    Example:
      >>> import moduli as nnx, jax, jax.numpy as jnp
      >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
      >>> make = lambda: nnx.Dict(w=nnx.Param(jnp.ones((8, 256))), b=nnx.Param(jnp.ones(256)))
      >>> model = nnx.create(make, mesh, nnx.fsdp("data"))
      >>> model["w"].sharding.spec == jax.P(None, "data"), model["b"].sharding.spec == jax.P()
      (True, True)
    """
    return Fsdp(axis if isinstance(axis, str) else tuple(axis), min_size)


@dataclasses.dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
      selector: the filter or path as the user wrote it.
      selects: whether it selects a value: ``(path, leaf) -> bool``.
      spec: a PartitionSpec, a Fsdp, or a NamedSharding.
    """

    selector: Any
    selects: Callable[[Path, Any], bool]
    spec: Any


def read_rules(rules: Any) -> list[Rule]:
    """Reads what users write for rules.

    Raises:
      StructureError: if it is none.
    """
    if rules is None:
        return []
    if isinstance(rules, Fsdp):
        rules = [rules]
    if isinstance(rules, Mapping):
        rules = rules.items()
    if not isinstance(rules, Iterable) or isinstance(rules, str):
        raise _no_rule(rules)
    return [_read_rule(rule) for rule in rules]


def _read_rule(rule: Any) -> Rule:
    if isinstance(rule, Fsdp):
        return Rule(..., to_predicate(...), rule)
    if not isinstance(rule, (tuple, list)) or len(rule) != 2:
        raise _no_rule(rule)
    selector, spec = rule
    if spec is None or isinstance(spec, str):
        spec = PartitionSpec(*axes_of_entry(spec))
    if not isinstance(spec, Fsdp):
        spec = resolved(spec)
    if not isinstance(spec, (Fsdp, PartitionSpec, NamedSharding)):
        raise _no_rule(rule)
    return Rule(selector, _selects(selector), spec)


def _no_rule(rule: Any) -> errors.StructureError:
    return errors.StructureError(
        f"rules got {rule!r}; rules are pairs of a filter or a path and a spec, as "
        "`[('attention/query', jax.P(None, 'model')), (nnx.Param, nnx.fsdp('data'))]`, or "
        "`nnx.fsdp('data')`"
    )


def _selects(selector: Any) -> Callable[[Path, Any], bool]:
    readings = _path_parts(selector)
    if readings is None:
        return to_predicate(selector)
    # a slash may stand within a part, so parts are separated by what no text has
    inner = "|".join("\0".join(map(_part_pattern, parts)) for parts in readings)
    pattern = re.compile(f"(?:^|\0)(?:{inner})(?:\0|$)", re.DOTALL)
    return lambda path, leaf: pattern.search("\0".join(map(str, path))) is not None


def _path_parts(selector: Any) -> tuple[tuple[PathPart, ...], ...] | None:
    """The parts of a path, as ``"blocks/0/kernel"``, ``"blocks[0].kernel"`` or a tuple of them."""
    if isinstance(selector, str):
        return PathText(selector).readings
    if (
        isinstance(selector, (tuple, list))
        and selector
        and all(isinstance(part, (str, int)) and not isinstance(part, bool) for part in selector)
    ):
        return (tuple(PathPart(str(part)) for part in selector),)
    return None


def _part_pattern(part: PathPart) -> str:
    if part.kind != "name":
        return re.escape(part.text)
    if part.text == "**":
        return ".*"
    return "(?:" + "|".join(map(_glob, part.text.split("|"))) + ")"


def _glob(text: str) -> str:
    return "".join({"*": "[^\0]*", "?": "[^\0]"}.get(sign, re.escape(sign)) for sign in text)


def check_all_match(rules: Sequence[Rule], leaves: Sequence[tuple[Path, Any]]) -> None:
    """Raises if a rule selects none of the values.

    Args:
      rules: the rules.
      leaves: (path, leaf) of every value.

    Raises:
      StructureError: with names near to the one that was meant.
    """
    for rule in rules:
        if any(rule.selects(path, leaf) for path, leaf in leaves):
            continue
        raise errors.StructureError(
            f"the rule ({rule.selector!r}, {rule.spec!r}) selects no value; {_near(rule, leaves)}"
        )


def _near(rule: Rule, leaves: Sequence[tuple[Path, Any]]) -> str:
    readings = _path_parts(rule.selector)
    if readings is None:
        kinds = sorted({_kind(leaf) for _, leaf in leaves})
        return f"there are values of the kinds {', '.join(kinds) or 'none'}"
    parts = [part.text for part in readings[0]]
    paths = [errors.format_path(path) for path, _ in leaves]
    known = sorted({part for path, _ in leaves for part in map(str, path)})
    wrong = [part for part in parts if part not in known and not set(part) & set("*?|")]
    near = {part: difflib.get_close_matches(part, known, n=3) for part in wrong}
    guess = "/".join(near[part][0] if near.get(part) else part for part in parts)
    selects = _selects(guess)
    meant = [text for (path, leaf), text in zip(leaves, paths, strict=True) if selects(path, leaf)]
    meant = meant or difflib.get_close_matches("/".join(parts), paths, n=3, cutoff=0.4)
    if meant:
        return f"did you mean {_some(meant)}?"
    return f"the paths are {_some(paths)}"


def _kind(leaf: Any) -> str:
    return type(leaf).__name__ if isinstance(leaf, Variable) else "array"


def _some(texts: Sequence[str]) -> str:
    listed = ", ".join(map(repr, texts[:4]))
    return listed + (f" and {len(texts) - 4} more" if len(texts) > 4 else "")
