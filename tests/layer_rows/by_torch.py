"""A reference from PyTorch: a layer's ``torch_counterpart`` with its parameters, in float64."""

from __future__ import annotations

import functools
import importlib
import warnings
from typing import Any

import numpy as np
import pytest


def torch_module(layer: Any, *inputs: Any) -> Any:
    """Builds the counterpart of a layer, in float64, with the layer's parameters and mode.

    Args:
      layer: a layer whose class has a ``torch_counterpart``, or what reads like one.
      *inputs: what it will be called with; needed where their rank decides on the class.

    Returns:
      A ``torch.nn.Module``.
    """
    torch = pytest.importorskip("torch")
    counterpart = layer.torch_counterpart
    whole = counterpart.name_for(inputs[0]) if inputs else counterpart.name
    package, _, name = whole.rpartition(".")
    module = getattr(importlib.import_module(package), name)(**counterpart.arguments(layer))
    module = module.double()
    tensors = counterpart.to_theirs(layer)
    mine = {key for key in module.state_dict() if not key.endswith("num_batches_tracked")}
    assert set(tensors) == mine, f"{counterpart.name} has {sorted(mine)}, got {sorted(tensors)}"
    values = {k: torch.tensor(np.array(v, np.float64)) for k, v in tensors.items()}
    module.load_state_dict(values, strict=False)
    evaluating = getattr(layer, "use_running_average", None) or getattr(
        layer, "deterministic", None
    )
    return module.eval() if evaluating else module.train()


def by_torch(layer: Any, *inputs: Any) -> np.ndarray:
    """Computes a layer's output by PyTorch; for the ``reference`` of a row.

    Args:
      layer: see :func:`torch_module`.
      *inputs: arrays in our layout (features last); floats are computed in float64.

    Returns:
      The output in our layout.
    """
    return run_torch(torch_module(layer, *inputs), layer, *inputs)


def run_torch(module: Any, layer: Any, *inputs: Any) -> np.ndarray:
    """Runs a module of PyTorch on arrays in our layout; see :func:`by_torch`."""
    import torch

    axis = layer.torch_counterpart.feature_axis
    to = functools.partial(_moved, source=-1, target=axis)
    tensors = [torch.tensor(np.array(to(_wide(x)))) for x in inputs]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that something is slow
        output = module(*tensors)
    if layer.torch_counterpart.output is not None:
        output = layer.torch_counterpart.output(output)
    return _moved(output.numpy(), source=axis, target=-1)


def _wide(array: Any) -> np.ndarray:
    array = np.asarray(array)
    if array.dtype.kind == "f" or array.dtype.name == "bfloat16":
        return array.astype(np.float64)
    return array.astype(np.int64) if array.dtype.kind in "iu" else array


def _moved(array: np.ndarray, source: int, target: int) -> np.ndarray:
    return array if source == target else np.moveaxis(array, source, target)
