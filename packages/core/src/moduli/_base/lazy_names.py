"""A package's map whose files are imported when one of their names is asked for.

Finding the plugins imports each installed package; with such a map that costs its entry point and
what its hooks need, not every file of the package.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

__all__ = ["lazy_names"]


def lazy_names(
    package: str, files: Mapping[str, Iterable[str]], submodules: Iterable[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Makes ``__getattr__``, ``__dir__`` and ``__all__`` of a package's ``__init__``.

    What type checkers read stands beside it as plain imports under ``if TYPE_CHECKING:``; a test
    of the package should compare the two, because nothing else does.

    Args:
      package: the package's ``__name__``.
      files: the public names of each submodule, by the submodule's name in the package.
      submodules: public submodules of the package.

    Returns:
      The three, to be bound in the package under those names.

    Example:
      >>> import sys, types
      >>> from moduli.plugins import lazy_names
      >>> package = sys.modules["boxes"] = types.ModuleType("boxes")
      >>> file = sys.modules["boxes._lid"] = types.ModuleType("boxes._lid")
      >>> file.Lid = "a lid"
      >>> package.__getattr__, package.__dir__, package.__all__ = lazy_names(
      ...     "boxes", {"_lid": ["Lid"]}
      ... )
      >>> package.Lid
      'a lid'
      >>> del sys.modules["boxes"], sys.modules["boxes._lid"]
    """
    homes = {name: f"{package}.{file}" for file, names in files.items() for name in names}
    modules = {name: f"{package}.{name}" for name in submodules}

    def __getattr__(name: str) -> Any:
        if name in homes:
            value = getattr(importlib.import_module(homes[name]), name)
        elif name in modules:
            value = importlib.import_module(modules[name])
        else:
            raise AttributeError(
                f"module {package!r} has no attribute {name!r}", name=name, obj=sys.modules[package]
            )
        setattr(sys.modules[package], name, value)
        return value

    def __dir__() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes, *modules} - {"TYPE_CHECKING"})

    return __getattr__, __dir__, sorted({*homes, *modules})
