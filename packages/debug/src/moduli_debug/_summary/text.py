"""Short text for values, sizes and large numbers."""

from __future__ import annotations

import re
from typing import Any

__all__ = [
    "count_text",
    "describe",
    "describe_arguments",
    "inline",
    "number_text",
    "short_dtypes",
    "size_text",
]


def describe(value: Any) -> str:
    """Formats a value in which ``jax.ShapeDtypeStruct`` stands for arrays, one line an entry.

    Args:
      value: an array or a pytree of arrays.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from moduli_debug._summary.text import describe
      >>> x = jax.ShapeDtypeStruct((2, 3), jnp.float32)
      >>> print(describe({"hidden": x, "pair": (x, None)}))
      hidden: float32[2,3]
      pair: (float32[2,3], None)
    """
    if isinstance(value, dict) and value:
        return "\n".join(f"{key}: {inline(item)}" for key, item in value.items())
    if type(value) in (tuple, list) and value:
        return "\n".join(map(inline, value))
    return inline(value)


def describe_arguments(args: tuple[Any, ...], kwargs: dict[str, Any], join: str = ", ") -> str:
    """Formats the arguments of a call: ``float32[2,3], train=True``."""
    parts = [*map(inline, args), *(f"{name}={inline(item)}" for name, item in kwargs.items())]
    return join.join(parts)


def inline(value: Any) -> str:
    """Formats a value in one line; see :func:`describe`."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {inline(item)}" for key, item in value.items()) + "}"
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        names = type(value)._fields  # type: ignore[attr-defined]
        inner = ", ".join(f"{n}={inline(v)}" for n, v in zip(names, value, strict=True))
        return f"{type(value).__name__}({inner})"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(inline, value)) + (",)" if len(value) == 1 else ")")
    if isinstance(value, list):
        return "[" + ", ".join(map(inline, value)) + "]"
    text = value.__name__ if isinstance(value, type) else repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def short_dtypes(text: str) -> str:
    """Formats the dtypes of arrays in fewer letters.

    Example:
      >>> from moduli_debug._summary.text import short_dtypes
      >>> short_dtypes("(float32[2], bfloat16[3], uint8[])")
      '(f32[2], bf16[3], u8[])'
    """
    return re.sub(
        r"\b(float|bfloat|int|uint|complex)(\d+)\[",
        lambda found: f"{_SHORT[found[1]]}{found[2]}[",
        text,
    )


_SHORT = {"float": "f", "bfloat": "bf", "int": "i", "uint": "u", "complex": "c"}


def count_text(count: float) -> str:
    """Formats a whole number with separators: ``1,234,567``."""
    return f"{count:,.0f}"


def size_text(size: int) -> str:
    """Formats a number of bytes.

    Example:
      >>> from moduli_debug._summary.text import size_text
      >>> size_text(12), size_text(16_896), size_text(2_500_000_000)
      ('12 B', '16.9 kB', '2.5 GB')
    """
    return f"{size} B" if size < 1000 else f"{_scaled(size, 1)}B"


def number_text(number: float) -> str:
    """Formats a number of operations in four characters or so.

    Example:
      >>> from moduli_debug._summary.text import number_text
      >>> number_text(960), number_text(4_087_136_256), number_text(3.2e17)
      ('960', '4.09 G', '320 P')
    """
    return f"{number:.0f}" if number < 1000 else _scaled(number, 2)


def _scaled(number: float, digits: int) -> str:
    for unit in ("k", "M", "G", "T", "P", "E"):
        number /= 1000
        if number < 999.5 or unit == "E":
            break
    if digits == 2:
        digits = 2 if number < 9.995 else 1 if number < 99.95 else 0
    return f"{number:.{digits}f} {unit}"
