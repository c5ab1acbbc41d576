"""Ahead-of-time compilation: what ``trace``, ``lower`` and ``compile`` of a jitted function give.

Each stage wraps JAX's own and has its attributes; a compiled one is called with modules.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax

from moduli import errors
from moduli._call.bind import Binding, bind, owners
from moduli._call.function import Function
from moduli._call.signature import Signature
from moduli._graph.deleted import deleted_in_call
from moduli._graph.graphdef import NODE

if TYPE_CHECKING:
    from typing import Self

    # what wraps a stage of JAX's reads like one, and jax.export takes it
    from jax.stages import Compiled as _JaxCompiled
    from jax.stages import Lowered as _JaxLowered
    from jax.stages import Traced as _JaxTraced
else:
    _JaxCompiled = _JaxLowered = _JaxTraced = object

__all__ = ["Compiled", "Lowered", "Traced"]


class _Stage:
    def __init__(self, stage: Any, program: Any, signature: Any, function: Function):
        self._stage, self._program = stage, program
        self._signature, self._function = signature, function

    def bound_to(self, module: Any) -> Self:
        """Returns the stage with its function's first argument filled in: a module's method."""
        function = copy.copy(self._function)
        function.bound = (module,)
        return type(self)(self._stage, self._program, self._signature, function)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._stage, name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *dir(self._stage)})

    def __repr__(self) -> str:
        return f"<moduli {type(self).__name__} of {self._function.name}>"


class Traced(_Stage, _JaxTraced):
    """A traced function: a ``jax.stages.Traced`` of its pure function.

    Attributes:
      over_pytrees: traces the function as one of JAX's pytrees, for :mod:`jax.export`.
    """

    over_pytrees: Callable[[], Any] | None = None

    def lower(self, **options: Any) -> Any:
        """Lowers it; the options are those of ``jax.stages.Traced.lower``."""
        if self.over_pytrees is not None and any(name.startswith("_") for name in options):
            # jax.export reads how JAX's own stages take arguments and return results
            self._stage = self.over_pytrees()
            return self._stage.lower(**options)
        lowered = self._stage.lower(**options)
        return Lowered(lowered, self._program, self._signature, self._function)


class Lowered(_Stage, _JaxLowered):
    """A lowered function: a ``jax.stages.Lowered`` of its pure function."""

    def compile(self, *args: Any, **options: Any) -> Compiled:
        """Compiles it; the arguments are those of ``jax.stages.Lowered.compile``."""
        compiled = self._stage.compile(*args, **options)
        return Compiled(compiled, self._program, self._signature, self._function)


class Compiled(_Stage, _JaxCompiled):
    """A compiled function of modules: call it with arguments of the structure it was made for."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the program, without the static arguments, and updates the modules.

        Raises:
          StructureError: if the arguments have another structure.
          TraceError: if a Variable that the program reads through a closure was written since.
          DonatedError: if the arguments hold arrays that were donated before.
        """
        args, kwargs = self._function.complete(args, kwargs)
        closed_over = self._program.closed_over
        if closed_over:
            closed_over.check()
        binding = bind(args, kwargs, recorded=False)  # it was compiled as it is
        name = self._function.name
        if binding.signature != self._signature:
            raise errors.StructureError(
                f"the program compiled from {name} {_difference(self._signature, binding)}; pass "
                "what it was lowered with, without the static arguments, or call the jitted "
                "function, which compiles again"
            )
        values = binding.values()
        given = self._program.arguments(values, binding.plain)
        try:
            packed = self._stage(*given)
        except TypeError:
            self._check_types(binding, values, given)
            raise
        except Exception as error:
            gone = deleted_in_call(error, self._function.call, args, kwargs)
            if gone is not None:
                raise gone from gone.__cause__
            raise
        effects, out, outputs = self._program.unpack(packed)
        return effects.apply(binding.flats, values, out, outputs)

    def _check_types(self, binding: Binding, values: Any, given: Any) -> None:
        """Raises with the place of the first value that has another shape or dtype."""
        expected = jax.tree.leaves(self._stage.args_info[0])
        spots = jax.tree.leaves(self._program.arguments(*_spots(binding, values)))
        for info, value, spot in zip(expected, jax.tree.leaves(given), spots, strict=False):
            got = jax.typeof(value)
            if (got.shape, got.dtype) != (info.shape, info.dtype):
                raise errors.ShapeError(
                    f"the program compiled from {self._function.name} was called with {spot} of "
                    f"{got.dtype}{list(got.shape)}, but lowered for {info.dtype}{list(info.shape)}"
                    "; pass values of the same shapes and dtypes, or call the jitted function, "
                    "which compiles again"
                ) from None


def _spots(binding: Binding, values: Any) -> tuple[Any, Any]:
    """Text in the place of each value: where it stands."""
    signature = Signature(binding)
    many = len(binding.roots) > 1
    count = len(binding.template) - len(binding.names)
    names = [f"argument {n}" for n in range(count)] + [f"argument {n!r}" for n in binding.names]
    owned = [names[owner] for owner in owners(binding.template)[1]]

    def say(number: int, index: int) -> str:
        text, root, path = signature.describe((number, index))
        spot = f"`{errors.format_path(path)}`" + (f" of module {root}" if many else "")
        return f"the {text} at {spot}"

    groups = [
        [jax.tree.map(lambda _: say(n, i), value) for i, value in enumerate(group)]  # noqa: B023
        for n, group in enumerate(values)
    ]
    plain = [
        jax.tree_util.tree_map_with_path(
            lambda path, _: owner + jax.tree_util.keystr(path),  # noqa: B023
            value,
        )
        for owner, value in zip(owned, binding.plain, strict=True)
    ]
    return groups, plain


def _difference(expected: tuple[Any, ...], binding: Binding) -> str:
    """Says how the arguments of a call differ from those that a program was lowered for."""
    template, names, *graphdefs = expected
    if (len(template), names) != (len(binding.template), binding.names):
        return (
            f"takes {_count(template, names)}, and was called with "
            f"{_count(binding.template, binding.names)}"
        )
    for old, flat in zip(graphdefs, binding.flats, strict=False):
        new = flat.graphdef
        if old is new:
            continue
        before, after = set(old.path_to_leaf), set(new.path_to_leaf)
        for verb, paths in (("has no", before - after), ("also has a", after - before)):
            if paths:
                spot = errors.format_path(min(paths, key=str))
                return f"was called with a module that {verb} value at `{spot}`"
        for path, one, two in zip(old.object_paths, old.objects, new.objects, strict=False):
            if one == two:
                continue
            if one[:2] == two[:2] and one[0] == NODE:
                changed = sorted({key for key, _ in {*one[2]} ^ {*two[2]}}, key=str)
                path = (*path, *changed[:1])
            return (
                "was called with a module that has another static attribute, type or metadata at "
                f"`{errors.format_path(path)}`"
            )
    return "was called with arguments of another structure than it was lowered for"


def _count(template: Any, names: tuple[str, ...]) -> str:
    text = f"{len(template) - len(names)} positional arguments"
    return text + (f" and {list(names)}" if names else "")
