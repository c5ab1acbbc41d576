"""NameMap: what the modules of a model are called elsewhere, both ways."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from moduli_interop._weights.errors import NameMapError
from moduli_interop._weights.templates import INDEX, Template, dotted, parse, parse_ours, unify

__all__ = ["NameMap", "Renamed", "TensorRule"]


@dataclasses.dataclass(frozen=True)
class _Rule:
    """``theirs`` is called ``ours``; ``stacked`` is the field that our side lacks."""

    theirs: Template
    ours: Template
    stacked: str | None


@dataclasses.dataclass(frozen=True)
class TensorRule:
    """A tensor of theirs that is described in the map itself.

    Attributes:
      theirs: its name.
      tensor: how it is made of Variables; its paths are the templates of ``ours``.
      ours: the paths of the Variables.
      stacked: the field that our side lacks.
    """

    theirs: Template
    tensor: Any
    ours: tuple[Template, ...]
    stacked: str | None


@dataclasses.dataclass(frozen=True)
class Renamed:
    """What a name of ours becomes.

    Attributes:
      parts: the parts of their name.
      stacked: whether it is the name of one block of several that are one module here, without a
        number in our path.
      specificity: of the rule that was used; () without one.
      module: whether the rule names a module that holds the path, not all of it.
    """

    parts: tuple[str, ...]
    stacked: bool = False
    specificity: tuple[int, ...] = ()
    module: bool = False


class NameMap:
    """Says what the modules of a model are called elsewhere: ``{their name: our path}``.

    A rule renames a module, or a tensor; what stands below keeps its name, as layers say what their
    tensors are called and how they are laid out. Equal names need no rule, and the most specific
    rule wins. ``{n}`` stands for an integer and ``{t:s}`` for a piece of a name, the same ones on
    both sides; if ``{n}`` is missing on our side, the blocks are one module whose Variables have
    one more axis, the first (:class:`moduli_layers.Stack`). The empty name is the model itself.

    Our paths may have dots, as the names of tensors, or be written as everywhere else:
    ``layers/{n}/attention``.

    Our side may be a ``Tensor`` for what is laid out otherwise, or is fused or split in another
    way; its paths are then those of Variables.

    Args:
      rules: our paths, or Tensors, by their names.

    Raises:
      NameMapError: if the map cannot be turned round; the text names the two rules that do not go
        together.

    Example:
      >>> from moduli_interop import NameMap
      >>> names = NameMap({
      ...     "model.layers.{n}": "layers.{n}",
      ...     "model.layers.{n}.self_attn.q_proj": "layers.{n}.attention.query",
      ... })
      >>> names.theirs("layers.3.mlp.weight"), names.theirs("layers.3.attention.query.weight")
      ('model.layers.3.mlp.weight', 'model.layers.3.self_attn.q_proj.weight')
      >>> names.ours("model.layers.3.self_attn.q_proj.weight")
      'layers.3.attention.query.weight'
    """

    def __init__(self, rules: Mapping[str, Any] | NameMap = {}):  # noqa: B006
        if isinstance(rules, NameMap):
            rules = rules.rules
        if not isinstance(rules, Mapping):
            raise NameMapError(
                f"a NameMap is made of a dict {{their name: our path}}, got a "
                f"{type(rules).__name__}; a function goes into load_weights(names=...) as it is"
            )
        self.rules = dict(rules)
        self._renames: list[_Rule] = []
        self.tensors: list[TensorRule] = []
        for name, target in self.rules.items():
            self._add(name, target)
        self._check()
        self._renames.sort(key=lambda rule: rule.ours.specificity, reverse=True)

    def __repr__(self) -> str:
        return f"NameMap({self.rules!r})"

    def __or__(self, other: Mapping[str, Any] | NameMap) -> NameMap:
        """Returns the map with the rules of both; those of the second hold where both have one."""
        return NameMap({**self.rules, **NameMap(other).rules})

    def theirs(self, name: str) -> str:
        """Returns their name of a module or tensor.

        Args:
          name: our path, with dots or slashes.
        """
        parts = tuple(dotted(name).split(".")) if name else ()
        return ".".join(self.rename(parts).parts)

    def ours(self, name: str) -> str:
        """Returns our path of a module or tensor.

        Args:
          name: their name, with dots. Blocks that are one module here lose their number.
        """
        parts = tuple(name.split(".")) if name else ()
        best: tuple[tuple[int, int], tuple[str, ...]] | None = None
        for rule in self._renames:
            bound = rule.theirs.match(parts)
            if bound is not None and (best is None or rule.theirs.specificity > best[0]):
                rest = parts[len(rule.theirs.parts) :]
                best = rule.theirs.specificity, rule.ours.fill(bound) + rest
        return ".".join(parts if best is None else best[1])

    def rename(self, parts: Sequence[str], whole: bool = False) -> Renamed:
        """Applies the most specific rule to a path of ours.

        Args:
          parts: the parts of the path.
          whole: take only rules for all of it, not for a module that holds it.

        Returns:
          Their name. Without a rule it is the same.
        """
        for rule in self._renames:  # the most specific first
            for given, number, stacked in _without_number(rule.ours, rule.stacked, tuple(parts)):
                bound = rule.ours.match(given)
                if bound is None or (whole and len(rule.ours.parts) != len(given)):
                    continue
                if rule.stacked is not None:
                    bound[rule.stacked] = number
                rest = given[len(rule.ours.parts) :]
                name = rule.theirs.fill(bound) + rest
                return Renamed(name, stacked, rule.ours.specificity, bool(rest))
        return Renamed(tuple(parts))

    def idle(self, paths: Iterable[Sequence[str]]) -> list[tuple[str, str]]:
        """Returns the rules, as texts, whose paths of ours begin none of some paths.

        Args:
          paths: the paths of a model's Variables, as their layers call them and as they stand.
        """
        left = [(rule.theirs.text, (rule.ours,), rule.stacked) for rule in self._renames]
        left += [(rule.theirs.text, rule.ours, rule.stacked) for rule in self.tensors]
        for parts in paths:
            left = [rule for rule in left if not _names(*rule[1:], tuple(parts))]
        return [(theirs, ours[0].text) for theirs, ours, _ in left]

    def _add(self, name: str, target: Any) -> None:
        if not isinstance(name, str):
            raise NameMapError(f"their name is a text, got {name!r}")
        theirs = parse(name)
        paths = getattr(target, "paths", None)
        if isinstance(target, str):
            ours = parse_ours(target)
            self._renames.append(_Rule(theirs, ours, _stacked(theirs, ours)))
        elif paths is not None and hasattr(target, "to_ours"):
            templates = tuple(parse_ours(path) for path in paths)
            fields = {_stacked(theirs, template) for template in templates}
            if len(fields) != 1:
                raise NameMapError(f"the paths of the Tensor for {name!r} have different fields")
            self.tensors.append(TensorRule(theirs, target, templates, fields.pop()))
        else:
            raise NameMapError(
                f"the rule for {name!r} has a {type(target).__name__}; write our path as a text, "
                "or a Tensor"
            )

    def _check(self) -> None:
        """Raises if two things of ours would have one name, or one thing two."""
        for number, one in enumerate(self._renames):
            for other in self._renames[:number]:
                self._check_pair(one, other)
        for number, rule in enumerate(self.tensors):
            for other in self.tensors[:number]:
                if unify(rule.theirs, other.theirs) is not None:
                    raise _together(rule.theirs.text, other.theirs.text, "give one tensor twice")

    def _check_pair(self, one: _Rule, other: _Rule) -> None:
        shared = unify(one.ours, other.ours)
        if shared is not None and one.ours.specificity == other.ours.specificity:
            names = [_end(rule.theirs, rule, each) for rule, each in zip((one, other), shared)]
            if names[0] != names[1]:
                path = ".".join(_end(one.ours, one, shared[0]))
                raise _conflict(one, other, f"our path {path!r}", names)
        shared = unify(one.theirs, other.theirs)
        if shared is not None:
            paths = [_end(rule.ours, rule, each) for rule, each in zip((one, other), shared)]
            # a path that a more specific rule takes has another name
            kept = [self._rule_for(p) is rule for rule, p in zip((one, other), paths)]
            if paths[0] != paths[1] and all(kept):
                name = ".".join(_end(one.theirs, one, shared[0]))
                raise _conflict(one, other, f"their name {name!r}", paths)

    def _rule_for(self, parts: Sequence[str]) -> _Rule | None:
        fitting = [rule for rule in self._renames if rule.ours.match(parts) is not None]
        return max(fitting, key=lambda rule: rule.ours.specificity, default=None)


def _end(template: Template, rule: _Rule, bound: Mapping[str, str]) -> tuple[str, ...]:
    return template.fill({**({rule.stacked: "7"} if rule.stacked else {}), **bound})


def _conflict(one: _Rule, other: _Rule, what: str, ends: Sequence[Sequence[str]]) -> NameMapError:
    return _together(
        f"{one.theirs.text!r}: {one.ours.text!r}",
        f"{other.theirs.text!r}: {other.ours.text!r}",
        f"give {what} two names, {'.'.join(ends[0])!r} and {'.'.join(ends[1])!r}",
    )


def _without_number(
    ours: Template, missing: str | None, parts: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], str, bool]]:
    """Yields a path without the number of a block, for a rule whose side of ours lacks a field.

    Yields:
      The path, the mark of the number, and whether there is none in the path, as in a module whose
      Variables have an axis of blocks that nothing declares.
    """
    if missing is None:
        yield parts, "", False
        return
    for at, part in enumerate(parts[: len(ours.parts) + 1]):
        if INDEX.fullmatch(part):
            yield (*parts[:at], *parts[at + 1 :]), part, False
    level = sum(bool(INDEX.search(part)) for part in parts)
    yield parts, f"\0{level}\0", True


def _names(templates: Sequence[Template], missing: str | None, parts: tuple[str, ...]) -> bool:
    return any(
        ours.match(given) is not None
        for ours in templates
        for given, _, _ in _without_number(ours, missing, parts)
    )


def _stacked(theirs: Template, ours: Template) -> str | None:
    """Returns the field that only their side has; raises for other differences."""
    extra = set(ours.fields) - set(theirs.fields)
    missing = set(theirs.fields) - set(ours.fields)
    shared = set(ours.fields) & set(theirs.fields)
    if extra or any(ours.fields[name] != theirs.fields[name] for name in shared):
        raise NameMapError(
            f"the rule {theirs.text!r}: {ours.text!r} cannot be turned round: both sides have to "
            f"have the same fields, theirs has {sorted(theirs.fields)} and ours "
            f"{sorted(ours.fields)}"
        )
    if len(missing) > 1 or any(theirs.fields[name] != "n" for name in missing):
        raise NameMapError(
            f"the rule {theirs.text!r}: {ours.text!r} cannot be turned round: our side lacks "
            f"{', '.join('{' + name + '}' for name in sorted(missing))}; only one integer may be "
            "missing there, the number of blocks that are stacked"
        )
    return next(iter(missing), None)


def _together(one: str, other: str, why: str) -> NameMapError:
    return NameMapError(
        f"the map cannot be turned round: the rules {one} and {other} do not go together, they "
        f"{why}"
    )
