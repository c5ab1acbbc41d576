"""The import hook of ``as_flax``: who asks for ``flax.nnx`` decides which one they get.

Python asks for a module in three ways, and each tells who asks:

- ``import flax.nnx``, ``from flax.nnx import x`` and relative imports call ``__import__`` with the
  importer's globals;
- ``from flax import nnx`` and ``flax.nnx.x`` read an attribute of ``flax`` in the importer's frame;
- ``importlib.import_module("flax.nnx")`` and unpickling look into ``sys.modules`` and do not tell;
  they get moduli. For submodules that nobody has imported yet, they ask the finders.

So there are a function in the place of ``builtins.__import__``, a property in the place of the
attribute, moduli under flax's names in ``sys.modules``, and a finder. The real ``flax.nnx`` is
imported when one of flax's own asks for it, and kept here.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import threading
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import moduli

__all__ = ["OWN", "Hook"]

OWN = frozenset(("flax", "optax", "orbax", "chex", "treescope"))
"""The packages whose code gets the real flax.nnx."""
_NNX = "flax.nnx"


def _is_nnx(name: str) -> bool:
    return name == _NNX or name.startswith(_NNX + ".")


def _is_own(namespace: Mapping[str, Any] | None) -> bool:
    """Returns whether the code with these globals belongs to flax or what it is made of."""
    name = (namespace or {}).get("__name__")
    return isinstance(name, str) and name.partition(".")[0] in OWN


def _ours(name: str) -> types.ModuleType:
    """Returns the module of moduli that stands for one of flax.nnx."""
    try:
        module = importlib.import_module("moduli" + name.removeprefix(_NNX))
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"No module named {name!r}: it is moduli here (as-flax), which has none of that name",
            name=name,
        ) from error
    sys.modules[name] = module
    return module


class Hook:
    """The hook.

    Args:
      flax: the package flax.
    """

    def __init__(self, flax: types.ModuleType):
        self._flax = flax
        self._original: Callable[..., Any] = builtins.__import__
        self._real: dict[str, types.ModuleType] = {}
        self._lock = threading.RLock()
        self._importing: int | None = None  # the thread that imports the real flax.nnx

    def install(self) -> None:
        """Puts everything in its place."""
        hook = self

        class Flax(type(self._flax)):  # type: ignore[misc]
            """The package flax, whose nnx depends on who asks."""

            @property
            def nnx(self) -> types.ModuleType:
                """The real one for flax's own code, moduli for all others."""
                if _is_own(sys._getframe(1).f_globals):
                    return hook._real_module(_NNX)
                return moduli

            @nnx.setter
            def nnx(self, module: types.ModuleType) -> None:
                """Takes nothing: importing the real one sets this attribute of its parent."""

        vars(self._flax).pop("nnx", None)
        self._flax.__class__ = Flax
        sys.modules[_NNX] = moduli
        sys.meta_path.insert(0, self)  # type: ignore[arg-type]  # a finder: it has find_spec
        builtins.__import__ = self.import_module

    # -- `import` statements ---------------------------------------------------------------------

    def import_module(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        """Does what ``builtins.__import__`` does."""
        if level == 0:
            absolute = name
        else:
            package = (globals or {}).get("__package__") or ""
            absolute = ""
            if package.partition(".")[0] == "flax":
                absolute = importlib.util.resolve_name("." * level + name, package)
        if not _is_nnx(absolute) or self._importing == threading.get_ident():
            return self._original(name, globals, locals, fromlist, level)
        find = self._real_module if _is_own(globals) else _ours
        module = find(absolute)
        if not fromlist:
            return self._flax
        for item in fromlist:
            if item != "*" and not hasattr(module, item):
                with contextlib.suppress(ModuleNotFoundError):  # the statement says what is missing
                    find(f"{absolute}.{item}")
        return module

    # -- importlib.import_module -----------------------------------------------------------------

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Finds moduli's module for one of flax.nnx."""
        if not _is_nnx(fullname) or self._importing == threading.get_ident():
            return None
        return importlib.machinery.ModuleSpec(fullname, _Loader(_ours(fullname)))

    # -- the real one ----------------------------------------------------------------------------

    def _real_module(self, name: str) -> types.ModuleType:
        """Returns a module of the real flax.nnx; imports it at the first time."""
        known = self._real.get(name)
        if known is not None:
            return known
        if self._importing == threading.get_ident():  # it asks for itself
            return importlib.import_module(name)
        with self._lock:
            ours = _take_out()
            sys.modules.update(self._real)
            self._importing = threading.get_ident()
            try:
                return importlib.import_module(name)
            finally:
                self._importing = None
                self._real.update(_take_out())
                sys.modules.update(ours)


def _take_out() -> dict[str, types.ModuleType]:
    """Takes the modules of flax.nnx out of ``sys.modules``."""
    return {name: sys.modules.pop(name) for name in list(sys.modules) if _is_nnx(name)}


class _Loader(importlib.abc.Loader):
    """Puts a module that exists under one more name."""

    def __init__(self, module: types.ModuleType):
        self._module = module

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        """Leaves it to Python: what is made here is given up for the module that exists."""

    def exec_module(self, module: types.ModuleType) -> None:
        """Puts it there."""
        sys.modules[module.__name__] = self._module
