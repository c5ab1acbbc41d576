"""What a new plugin may be named, and what its parts are called then."""

from __future__ import annotations

import dataclasses
import keyword
import re
import sys

from moduli import errors
from moduli._facade import claims
from moduli._plugins import OURS, canonical

__all__ = ["Names", "names_of"]

_PEP_508 = re.compile(r"[A-Za-z0-9]|[A-Za-z0-9][A-Za-z0-9._-]*[A-Za-z0-9]")
_LONGEST = 24
_PACKAGES = {"jax", "jaxlib", "numpy", "pluggy", "pytest", "optax", "flax", "test", "tests", "src"}
_PLUGINS = {name.removeprefix("moduli-") for name in OURS} | {"none", "core", "moduli", "matrix"}
_FORMATS = {"safetensors", "npz", "orbax"}


@dataclasses.dataclass(frozen=True)
class Names:
    """The names in a new plugin.

    Attributes:
      distribution: what pip installs: ``moduli-running-scale``.
      package: what Python imports: ``moduli_running_scale``.
      stem: what its functions begin with: ``running_scale``.
      class_name: its layer: ``RunningScale``.
    """

    distribution: str
    package: str
    stem: str
    class_name: str


def names_of(name: str, parts: frozenset[str]) -> Names:
    """Returns the names that follow from that of a distribution.

    Args:
      name: as pip knows it; ``moduli-`` in front is no part of what it is about.
      parts: which parts it has.

    Raises:
      PluginError: pip or Python do not take it, or it is another's.
    """
    if not _PEP_508.fullmatch(name):
        near = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")
        raise errors.PluginError(
            f"{name!r} is no name of a distribution: letters, digits, and between them '-', '_' "
            f"and '.'{_hint(near)}"
        )
    package = canonical(name).replace("-", "_")
    stem = package.removeprefix("moduli_")
    if not _is_identifier(stem):
        stem = package
    class_name = "".join(word[:1].upper() + word[1:] for word in stem.split("_"))
    if len(stem) > _LONGEST:
        raise errors.PluginError(
            f"{name!r} is too long: its classes and functions are named after {stem!r}, which may "
            f"have {_LONGEST} characters and has {len(stem)}"
        )
    for word in (package, stem, class_name):
        if not _is_identifier(word):
            raise errors.PluginError(
                f"{name!r} would be {word!r} in Python, which is "
                f"{'a keyword' if keyword.iskeyword(word) else 'no identifier'}"
                f"{_hint(_other(stem))}"
            )
    _check_free(name, package, stem, class_name, parts)
    return Names(name, package, stem, class_name)


def _check_free(name: str, package: str, stem: str, class_name: str, parts: frozenset[str]) -> None:
    other = _other(stem)
    if package in sys.stdlib_module_names or package in _PACKAGES:
        raise errors.PluginError(
            f"{name!r} is imported as {package!r}, which is another package{_hint(other)}"
        )
    if canonical(name) in {*OURS, "moduli", "moduli-pytest", "moduli-matrix"} or stem in _PLUGINS:
        raise errors.PluginError(f"{name!r} is a name of moduli's own{_hint(other)}")
    if "layer" in parts and (owner := claims.owner(class_name)):
        raise errors.PluginError(
            f"{name!r} would have a layer {class_name!r}, and moduli.{class_name} is a name of "
            f"{owner}{_hint(other)}"
        )
    if "format" in parts and stem in _FORMATS:
        raise errors.PluginError(
            f"{name!r} would have a format {stem!r}, which is one of moduli's own{_hint(other)}"
        )


def _is_identifier(word: str) -> bool:
    return word.isidentifier() and word.isascii() and not keyword.iskeyword(word)


def _other(stem: str) -> str:
    return f"moduli-my-{stem.replace('_', '-')}"


def _hint(near: str) -> str:
    return f"; take {near!r}, say" if _PEP_508.fullmatch(near) else ""
