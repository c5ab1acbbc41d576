"""Every error that moduli raises on purpose.

Each class derives from :class:`ModuliError` and from the builtin exception that a Python
programmer would expect, so ``except ValueError`` and ``except ModuliError`` both work. A message
says what was got, where (the path in the model) and what to write instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, ClassVar

__all__ = [
    "BrokenNameError",
    "ClassDefinitionError",
    "ClosedOverWarning",
    "DonatedError",
    "DroppedWriteWarning",
    "DtypeChangeWarning",
    "LayoutError",
    "ModuliAttributeError",
    "ModuliError",
    "MissingPluginError",
    "MissingStreamError",
    "MissingStreamWarning",
    "NameClashError",
    "PathError",
    "PluginError",
    "RecompilationWarning",
    "RngError",
    "ShapeError",
    "StructureError",
    "TraceError",
    "VariableError",
]


class ModuliError(Exception):
    """Base of all errors that moduli raises on purpose.

    Attributes:
      says_place: whether the message of an error that leaves a module's call ends with the module's
        place in the model; for errors about a layer's arguments.
    """

    says_place: ClassVar[bool] = False


class ModuliAttributeError(ModuliError, AttributeError):
    """An object has no such attribute, or takes none."""


class StructureError(ModuliError, ValueError):
    """A model, a GraphDef or a State does not have the structure that was asked for."""


class ClassDefinitionError(StructureError, TypeError):
    """A class of modules is written in a way whose attributes the graph could not see."""


class PathError(ModuliError, LookupError):
    """A path, a name or an attribute does not exist in the model."""


class TraceError(ModuliError, RuntimeError):
    """A Variable or a Module was changed from a JAX trace to which it does not belong."""


class VariableError(ModuliError, TypeError):
    """A Variable was used in a way that its kind or its value does not allow."""


class ShapeError(ModuliError, ValueError):
    """An input or a stored array has another shape than the model expects."""

    says_place = True


class LayoutError(ModuliError, AssertionError):
    """Values are not laid out over devices as they should be."""


class DonatedError(ModuliError, RuntimeError, ValueError):
    """An array was used whose buffer an earlier call has taken over, or was donated twice."""


class RngError(ModuliError, ValueError):
    """A random stream is missing, or a seed is not one."""

    says_place = True


class PluginError(ModuliError, RuntimeError):
    """A plugin could not be loaded, or failed in a hook."""


class NameClashError(AttributeError, PluginError):
    """Two plugins claim the same public name."""


class BrokenNameError(AttributeError, PluginError):
    """A package declares a name of ``moduli`` and fails to load it."""


class MissingStreamError(RngError, AttributeError):
    """Rngs have no stream of this name and no default stream."""


class MissingStreamWarning(UserWarning):
    """A seed was given for a random stream that the model has not."""


class MissingPluginError(ModuliError, AttributeError):
    """A feature belongs to a package that is not installed; the text is the pip command."""


class ClosedOverWarning(UserWarning):
    """A compiled function read a Variable through a closure, and the Variable was written since."""


class RecompilationWarning(UserWarning):
    """A function is made anew, and so compiled anew, at each step of a loop."""


class DtypeChangeWarning(UserWarning):
    """Values of another precision than the model's were written into it."""


class DroppedWriteWarning(UserWarning):
    """A function under a raw JAX transform wrote into a copy of a module, and the write is lost."""


def format_path(path: Iterable[object]) -> str:
    """Formats a path as every message, table and checkpoint does: ``blocks/0/linear/kernel``.

    Decision 10 (``docs/decisions/0010-paths.md``) says how each kind of part is written. What takes
    a path from a user understands this text, and ``blocks[0].linear.kernel`` too.

    Args:
      path: attribute names, keys and indices from the root to the place; or JAX's key entries.

    Returns:
      The path as text; ``"the model itself"`` for the empty path.

    Example:
      >>> from moduli.errors import format_path
      >>> format_path(("blocks", 0, "linear", "kernel"))
      'blocks/0/linear/kernel'
      >>> print(format_path(("tables", "a/b", "0", (1, "x"))))
      tables/'a/b'/'0'/[(1, 'x')]
      >>> format_path(())
      'the model itself'
    """
    return "/".join(map(_format_part, path)) or _ROOT


def format_code(path: Iterable[object]) -> str:
    """Formats a path as one writes it in Python after the name of the model.

    Args:
      path: attribute names, keys and indices from the root to the place.

    Returns:
      Attributes with dots, everything else in brackets.

    Example:
      >>> from moduli.errors import format_code
      >>> "model" + format_code(("blocks", 0, "linear", "kernel"))
      'model.blocks[0].linear.kernel'
    """
    return "".join(
        f".{part}" if isinstance(part, str) and part.isidentifier() else f"[{part!r}]"
        for part in path
    )


_ROOT = "the model itself"
# what could be taken for something else: a number, a key in brackets, several parts, a pattern
_ODD_NAME = re.compile(r"-?\d+|\[.*|.*[/'\"\\*?|\0-\x1f`].*|", re.DOTALL)
# the attribute of each of JAX's key entries; JAX is not imported for that
_KEY_ENTRIES = {"DictKey": "key", "FlattenedIndexKey": "key", "SequenceKey": "idx"} | {
    "GetAttrKey": "name"
}


def _format_part(part: Any) -> str:
    if type(part) is str or type(part) is int:
        text = str(part)
        odd = type(part) is str and (_ODD_NAME.fullmatch(text) or text == _ROOT)
        return repr(text) if odd else text
    entry = _KEY_ENTRIES.get(type(part).__name__)
    if entry is not None and hasattr(part, entry):
        return _format_part(getattr(part, entry))
    return f"[{part!r}]"
