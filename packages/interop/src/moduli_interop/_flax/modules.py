"""The submodules of flax.nnx as modules of moduli, made of the table when they are asked for.

``from moduli.nn.linear import Linear`` gives ``moduli.Linear``: a submodule holds no object of its
own, and imports nothing before one of its names is used.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import types
from typing import Any

import moduli
from moduli_interop._flax.table import ALIASES, HOMES, MODULES, SAME

__all__ = ["FlaxModule", "submodule"]


class FlaxModule(types.ModuleType):
    """A submodule of flax.nnx, without a file: its names are looked up as they are used."""

    def __init__(self, path: str) -> None:
        """Makes the submodule.

        Args:
          path: its path from ``moduli``, ``"nn.linear"``.
        """
        name = f"moduli.{path}"
        super().__init__(name, f"The names of flax.nnx.{path}, as they are in moduli.")
        self.__path__ = []  # a package: its submodules are attributes
        self.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        self.__all__ = sorted({*MODULES[path].split(), *_below(path)})

    def __getattr__(self, name: str) -> Any:
        """Finds a name of the table, and remembers it."""
        if name not in self.__all__:
            raise AttributeError(
                f"module {self.__name__!r} has no attribute {name!r}; it has "
                f"{', '.join(self.__all__) or 'none'}",
                name=name,
            )
        path = f"{self.__name__.removeprefix('moduli.')}.{name}"
        value = submodule(path) if path in _PATHS else _named(path)
        setattr(self, name, value)
        return value

    def __dir__(self) -> list[str]:
        """Returns the names of the table."""
        return [*super().__dir__(), *self.__all__]


_made: dict[str, types.ModuleType] = {}


def submodule(path: str) -> types.ModuleType:
    """Returns the submodule at a path, the same one at each call.

    Args:
      path: its path from ``moduli``, ``"nn.linear"``.

    Raises:
      AttributeError: there is none.

    Example:
      >>> from moduli_interop._flax.modules import submodule
      >>> import moduli as nnx
      >>> submodule("nn.linear").Linear is nnx.Linear
      True
    """
    path = ALIASES.get(path, path)
    if path not in _PATHS:
        raise AttributeError(f"flax.nnx has no public submodule {path!r}", name=path)
    if path not in _made:
        _made[path] = _loaded(SAME[path]) if path in SAME else FlaxModule(path)
    return _made[path]


def __getattr__(name: str) -> types.ModuleType:
    """Gives the entry points of ``moduli.names`` the submodules by their names."""
    return submodule(name)


_PATHS = frozenset({*MODULES, *SAME, *ALIASES})


def _below(path: str) -> set[str]:
    """Returns the names of the submodules of a submodule."""
    nested = [other.rpartition(".") for other in _PATHS]
    return {name for parent, _, name in nested if parent == path}


def _named(path: str) -> Any:
    name = path.rpartition(".")[2]
    home = HOMES.get(path) or HOMES.get(name)
    return _loaded(home) if home else getattr(moduli, name)


def _loaded(target: str) -> Any:
    """Imports what ``"module:attribute"`` names."""
    home, _, attributes = target.partition(":")
    value = importlib.import_module(home)
    for attribute in attributes.split("."):
        value = getattr(value, attribute)
    return value
