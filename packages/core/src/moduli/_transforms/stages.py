"""Ahead-of-time compilation: what ``trace``, ``lower`` and ``compile`` of a jitted function give.

Each stage wraps JAX's own and has its attributes; a compiled one is called with modules.
"""

from __future__ import annotations

from typing import Any

from moduli import errors
from moduli._transforms.arguments import Function
from moduli._transforms.lift import bind

__all__ = ["Compiled", "Lowered", "Traced"]


class _Stage:
    def __init__(self, stage: Any, program: Any, signature: Any, function: Function):
        self._stage, self._program = stage, program
        self._signature, self._function = signature, function

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._stage, name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *dir(self._stage)})

    def __repr__(self) -> str:
        return f"<moduli {type(self).__name__} of {self._function.name}>"


class Traced(_Stage):
    """A traced function: a ``jax.stages.Traced`` of its pure function."""

    def lower(self, **options: Any) -> Lowered:
        """Lowers it; the options are those of ``jax.stages.Traced.lower``."""
        lowered = self._stage.lower(**options)
        return Lowered(lowered, self._program, self._signature, self._function)


class Lowered(_Stage):
    """A lowered function: a ``jax.stages.Lowered`` of its pure function."""

    def compile(self, *args: Any, **options: Any) -> Compiled:
        """Compiles it; the arguments are those of ``jax.stages.Lowered.compile``."""
        compiled = self._stage.compile(*args, **options)
        return Compiled(compiled, self._program, self._signature, self._function)


class Compiled(_Stage):
    """A compiled function of modules: call it with arguments of the structure it was made for."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the program, without the static arguments, and updates the modules.

        Raises:
          StructureError: if the arguments have another structure.
        """
        args, kwargs = self._function.complete(args, kwargs)
        binding = bind(args, kwargs)
        if binding.signature != self._signature:
            raise errors.StructureError(
                f"the program compiled from {self._function.name} was called with arguments of "
                "another structure than it was lowered for (a module with other attributes, or "
                "other arguments); call the jitted function, which compiles again"
            )
        values = binding.values()
        packed = self._stage(*self._program.arguments(values, binding.plain))
        effects, out, outputs = self._program.unpack(packed)
        return effects.apply(binding.flats, values, out, outputs)
