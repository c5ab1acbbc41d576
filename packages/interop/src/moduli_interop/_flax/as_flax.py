"""as_flax: ``flax.nnx`` is moduli, for everything but flax itself and what flax is made of."""

from __future__ import annotations

import builtins
import importlib.util
import sys
import types
from collections.abc import Iterator

from moduli_interop._errors import AsFlaxError
from moduli_interop._flax.import_hook import Hook

__all__ = ["as_flax"]


def as_flax() -> None:
    """Makes ``flax.nnx`` moduli in this process, so that code written for it runs unchanged.

    ``from flax import nnx``, ``import flax.nnx as nnx``, ``from flax.nnx.nn.linear import Linear``
    and ``importlib.import_module("flax.nnx")`` give moduli from now on. Whatever else stands in
    flax (``flax.linen``, ``flax.serialization``) stays, and the code of flax, optax, orbax, chex
    and treescope, which builds on the real classes, gets the real ``flax.nnx`` when it asks for it.
    No installed file is changed, and the next process starts as ever.

    Write it at the top of a program, before whatever imports ``flax.nnx``. Without a line in the
    program: ``python -m moduli as-flax train.py --steps 10``, or ``pytest --moduli-as-flax``.
    Calling it again does nothing. Without flax installed, ``flax`` is a package with ``nnx`` alone.

    Raises:
      AsFlaxError: ``flax.nnx`` is imported already: who did so has its classes, and a model made of
        both would be neither.

    Example:
      >>> import subprocess, sys
      >>> program = (
      ...     "import moduli_interop; moduli_interop.as_flax(); "
      ...     "from flax import nnx; print(nnx.__name__)"
      ... )
      >>> subprocess.run([sys.executable, "-c", program], capture_output=True).stdout.strip()
      b'moduli'
    """
    if isinstance(getattr(builtins.__import__, "__self__", None), Hook):
        return
    if "flax.nnx" in sys.modules:
        users = sorted(_users(sys.modules["flax.nnx"]))
        by = (
            f", by {', '.join(users[:4])}{' and others' if len(users) > 4 else ''}" if users else ""
        )
        raise AsFlaxError(
            f"flax.nnx is already imported{by}, and a model made of its classes and of moduli's "
            "would be neither. Call `moduli.as_flax()` before these imports, at the top of the "
            "program, or start it with `python -m moduli as-flax program.py`"
        )
    Hook(_flax()).install()


def _flax() -> types.ModuleType:
    """Returns the package flax; one with nothing in it if flax is not installed."""
    if "flax" not in sys.modules and importlib.util.find_spec("flax") is None:
        flax = types.ModuleType("flax", "Stands for flax, which is not installed: flax.nnx alone.")
        flax.__path__ = []
        sys.modules["flax"] = flax
    return importlib.import_module("flax")


def _users(nnx: types.ModuleType) -> Iterator[str]:
    """Yields the names of modules that hold flax.nnx, flax's own left out."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "flax" or not isinstance(module, types.ModuleType):
            continue
        if any(value is nnx for value in list(vars(module).values())):
            yield name
