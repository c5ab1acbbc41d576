"""``import moduli.nn.linear``: submodules that are attributes, and not files.

An extension package may declare a module as a name of ``moduli`` (``metrics``, ``nn``). This makes
the import statement agree with the attribute: both give the one object.
"""

from __future__ import annotations

import importlib.machinery
import sys
import types
from collections.abc import Sequence
from typing import Any

__all__ = ["install"]


class _Loader:
    """Puts a module that exists under one more name."""

    def __init__(self, module: types.ModuleType) -> None:
        self.module = module

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None  # else the import system writes its spec over the module's own

    def exec_module(self, module: types.ModuleType) -> None:
        sys.modules[module.__name__] = self.module


class _Finder:
    """Finds what no file has: asked last, and reads nothing for names outside of moduli."""

    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        parent, _, name = fullname.rpartition(".")
        if parent.partition(".")[0] != "moduli" or name.startswith("_"):
            return None
        package = sys.modules.get(parent)
        if parent != "moduli" and getattr(package, "__file__", None):
            return None  # a package with files has its submodules among them
        try:
            module = getattr(package, name)
        except AttributeError as error:
            from moduli import errors

            if not isinstance(error, errors.ModuliError):
                return None
            from moduli._facade.claims import owner

            missing = owner(name).replace("-", "_")
            if not missing or not isinstance(error, errors.MissingPluginError):
                raise ImportError(str(error), name=fullname) from error.__cause__
            # With the name of what was asked for, `from moduli import Linear` would drop the text.
            raise ModuleNotFoundError(str(error), name=missing) from None
        if not isinstance(module, types.ModuleType):
            return None
        loader: Any = _Loader(module)  # of importlib.abc only in form: that costs more to import
        return importlib.machinery.ModuleSpec(fullname, loader)


def install() -> None:
    """Lets Python's import system find moduli's submodules; once is enough."""
    if not any(getattr(finder, "__module__", "") == __name__ for finder in sys.meta_path):
        sys.meta_path.append(_Finder)
