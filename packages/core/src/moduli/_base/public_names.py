"""Public objects say their public path: ``moduli.Param``, not ``moduli._variable.box.Param``.

Tracebacks, ``repr`` of classes and pickles then name what users write, and files may move.
"""

from __future__ import annotations

import types
from typing import Any

__all__ = ["claim_public_names"]


def claim_public_names(namespace: dict[str, Any]) -> None:
    """Sets ``__module__`` of the classes and functions of a package's map to the package.

    Args:
      namespace: the globals of the package's ``__init__``.
    """
    package = namespace["__name__"]
    for name, value in namespace.items():
        if (
            isinstance(value, (type, types.FunctionType))
            and value.__module__.startswith(f"{package}._")
            and value.__name__ == name
        ):
            value.__module__ = package
