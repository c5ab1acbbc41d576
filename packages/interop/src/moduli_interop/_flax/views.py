"""view_info: which modes the modules of a model have."""

from __future__ import annotations

import inspect
import re
from typing import Any

import moduli
from moduli.plugins import collect

__all__ = ["view_info"]


def view_info(node: Any, /, *, only: Any = ..., graph: bool | None = None) -> str:
    """Describes what :func:`moduli.view` can set in the modules of a model.

    Args:
      node: a Module or another graph node.
      only: a filter that selects the modules.
      graph: accepted, as everywhere.

    Returns:
      For each class of module, sorted by name, the arguments of its ``set_view``, or else those of
      its attributes that are modes, each with its type and default.

    Example:
      >>> import moduli as nnx
      >>> print(nnx.view_info(nnx.Dropout(0.5, rngs=nnx.Rngs(0))))
      Dropout:
        deterministic: bool | None = None
          whether the inputs are returned as they are; None leaves it.
    """
    selects = moduli.filterlib.to_predicate(only)
    modes = {
        name
        for mode in ("train", "eval")
        for _, attributes in collect("moduli_mode_attributes", mode=mode)
        for name in attributes
    }
    lines: dict[type, list[str]] = {}
    for path, module in moduli.iter_modules(node):
        if type(module) not in lines and selects(path, module):
            lines[type(module)] = _lines(module, modes)
    text = []
    for cls, found in sorted(lines.items(), key=lambda item: item[0].__qualname__):
        if found:
            text += [f"{cls.__qualname__}:", *(f"  {line}" for line in found)]
    return "\n".join(text)


def _lines(module: Any, modes: set[str]) -> list[str]:
    method = getattr(module, "set_view", None)
    if method is None:
        found = {name: getattr(module, name) for name in sorted(modes) if hasattr(module, name)}
        return [
            f"{name}: {type(value).__name__} = {value!r}"
            if value is not None
            else f"{name}: bool | None = None"
            for name, value in found.items()
        ]
    text = inspect.getdoc(method) or ""
    lines = []
    for name, parameter in inspect.signature(method).parameters.items():
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            lines.append(str(parameter).replace("'", ""))
            described = re.search(rf"^ *{name}: (.*(?:\n(?! *\w+:)[^\n]+)*)", text, re.MULTILINE)
            if described:
                lines.append("  " + " ".join(described.group(1).split()))
    return lines
