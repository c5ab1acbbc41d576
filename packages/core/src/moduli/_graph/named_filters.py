"""Filters that are names: a name is a tag, and one that selects nothing is often a kind's name.

``nnx.state(model, "params")`` asks for values with the tag "params", not for Params. Where nothing
has the tag, the answer would be an empty State, which looks like an answer.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from moduli import errors
from moduli._base.type_variables import Path
from moduli._variable.filters import All, Not, WithTag
from moduli._variable.filters import Any as AnyOf
from moduli._variable.names import contributed

__all__ = ["check_names", "names_in"]


def check_names(
    pairs: Sequence[tuple[Path, Any]], filters: Iterable[Any], caller: str, *, any_name: bool
) -> None:
    """Raises if a filter is a name that selects nothing and cannot have been meant.

    Args:
      pairs: paths and values.
      filters: as the user gave them.
      caller: the function that got them.
      any_name: whether every name has to select something. Otherwise that is asked of the names of
        kinds alone: a tag may be one that only other models have.

    Raises:
      StructureError: with what to write.
    """
    for filter in filters:
        for name in names_in(filter):
            tagged = WithTag(name)
            if any(tagged(path, value) for path, value in pairs):
                continue
            kinds = contributed().values
            near = difflib.get_close_matches(name, kinds, n=1, cutoff=0.8)
            if near:
                kind = kinds[near[0]]
                home = kind.__module__.partition(".")[0].replace("moduli_layers", "moduli")
                hint = f"the kind {near[0]!r} is selected by its class, as {home}.{kind.__name__}"
            elif any_name and isinstance(filter, str):
                tags = sorted({tag for _, value in pairs if isinstance(tag := _tag(value), str)})
                close = difflib.get_close_matches(name, tags, n=1)
                hint = (
                    f"did you mean {close[0]!r}?"
                    if close
                    else f"tags in it are {', '.join(map(repr, tags[:8])) or 'none'}; a kind is "
                    "selected by its class, as moduli.Param, and a place by moduli.PathContains"
                )
            else:
                continue
            raise errors.StructureError(
                f"{caller} got the filter {name!r}: a name selects the values with that tag in "
                f"their metadata, and none of the {len(pairs)} here has it; {hint}"
            )


def names_in(filter: Any) -> Iterator[str]:
    """Yields the names that a filter is made of, those inside of others too."""
    if isinstance(filter, str):
        yield filter
    elif isinstance(filter, WithTag):
        yield filter.tag
    elif isinstance(filter, (list, tuple)):
        for item in filter:
            yield from names_in(item)
    elif isinstance(filter, (AnyOf, All)):
        for item in filter.predicates:
            yield from names_in(item)
    elif isinstance(filter, Not):
        yield from names_in(filter.predicate)


def _tag(value: Any) -> Any:
    metadata = getattr(value, "_metadata", None)
    return metadata.get("tag") if metadata is not None else getattr(value, "tag", None)
