"""Windows of convolutions and pools, in the terms of other frameworks."""

from __future__ import annotations

from typing import Any

__all__ = ["conv_pairs", "transposed_pairs"]


def conv_pairs(padding: Any, spans: Any) -> Any:
    """Returns the padding of a convolution as pairs, where that needs no inputs; else its name.

    Args:
      padding: of our Conv, as its ``_window`` returns it.
      spans: for each axis how far a window reaches from its first entry.
    """
    if padding == "VALID":
        return ((0, 0),) * len(spans)
    if padding == "CAUSAL":
        return tuple((span, 0) for span in spans)
    return padding


def transposed_pairs(padding: Any, spans: Any, strides: Any) -> Any:
    """Returns how many zeros stand around the spread inputs of a transposed convolution.

    Args:
      padding: of our ConvTranspose, as its ``_window`` returns it.
      spans: for each axis how far a window reaches from its first entry.
      strides: how far the inputs are spread.

    Returns:
      A pair for each axis; None if that is not how it pads.
    """
    if not isinstance(padding, str):
        return padding
    found = []
    for span, stride in zip(spans, strides, strict=True):
        whole = {
            "SAME": span + stride - 1,
            "VALID": span + stride - 1 + max(span + 1 - stride, 0),
            "CAUSAL": span + stride - 1,
        }.get(padding)
        if whole is None:
            return None
        before = -(-whole // 2) if padding == "SAME" and stride <= span else span
        found.append((before, whole - before))
    return tuple(found)
