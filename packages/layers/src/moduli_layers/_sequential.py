"""A chain of callables."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import moduli
from moduli.errors import StructureError
from moduli_layers._dropout import Dropout
from moduli_layers.counterparts import Tensor, TensorNames, names_of

__all__ = ["Sequential"]


class Sequential(moduli.Module):
    """Calls layers and functions in order, each with what the one before returned.

    A tuple is passed on as several positional arguments and a dict as keyword arguments;
    everything else is one argument. The first callable gets the arguments of the call.

    Attributes:
      layers: List of the callables; ``append`` adds one, ``model.layers[0]`` is the first.

    Args:
      *fns: the callables, Modules or functions.

    Raises:
      StructureError: one of them is not callable.

    Example:
      >>> import jax.numpy as jnp, moduli
      >>> from moduli_layers import Linear, Sequential, relu
      >>> rngs = moduli.Rngs(0)
      >>> model = Sequential(Linear(2, 8, rngs=rngs), relu, Linear(8, 3, rngs=rngs))
      >>> model(jnp.ones((5, 2))).shape
      (5, 3)
    """

    __module__ = "moduli_layers"

    def __init__(self, *fns: Callable[..., Any]) -> None:
        for index, fn in enumerate(fns):
            if not callable(fn):
                raise StructureError(
                    f"{type(self).__name__} expects callables, got {_short(fn)} of type "
                    f"{type(fn).__name__} as argument {index}; {_remedy(self, fn)}"
                )
            if isinstance(fn, type) and issubclass(fn, moduli.Module):
                raise StructureError(
                    f"{type(self).__name__} got the class {fn.__name__} as argument {index}, which "
                    f"makes a layer and is none; write {fn.__name__}(...)"
                )
        self.layers = list(fns)

    @property
    def torch_names(self) -> tuple[TensorNames, ...]:
        """The layers' numbers, without ``layers``; or those of one recurrent layer of several.

        Dropout between them is a setting of PyTorch's layer. Which of the two is written depends on
        which of them PyTorch can have: its recurrent layers return more than one of it takes.
        """
        each = TensorNames(children={"layers": ""})
        joined: dict[str, Tensor] = {}
        kinds = []
        for place, layer in enumerate(self.layers):
            if isinstance(layer, Dropout):
                continue
            names = [n.tensors for n in names_of(layer) if any("_l0" in name for name in n.tensors)]
            if not names:
                return (each,)
            for name, tensor in names[0].items():
                number = f"_l{len(kinds)}"
                joined[name.replace("_l0", number)] = tensor.below(f"layers.{place}.")
            kinds.append(set(names[0]))
        if len(kinds) > 1 and all(kind == kinds[0] for kind in kinds):
            return TensorNames(joined), each
        return each, TensorNames(joined)

    def __call__(self, *args: Any, rngs: moduli.Rngs | None = None, **kwargs: Any) -> Any:
        """Calls the chain.

        Args:
          *args: positional arguments for the first callable.
          rngs: passed on to every callable that has a parameter named ``rngs`` or takes any keyword
            (``**kwargs``).
          **kwargs: keyword arguments for the first callable.

        Returns:
          What the last callable returns; without any callable, the positional arguments (the one,
          or a tuple of several), else the keyword arguments, else None.
        """
        output: Any = args[0] if len(args) == 1 else args or kwargs or None
        for index, fn in enumerate(self.layers):
            if index:
                args, kwargs = _as_arguments(output)
            if rngs is not None and _takes_rngs(fn):
                kwargs = {**kwargs, "rngs": rngs}
            output = fn(*args, **kwargs)
        return output


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def _remedy(layer: Sequential, given: Any) -> str:
    name = type(layer).__name__
    if isinstance(given, (list, tuple)):
        return f"write {name}(*layers) to pass the layers of a list"
    return "write a Module or a function"


def _as_arguments(output: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Turns one callable's output into the next one's arguments."""
    if isinstance(output, tuple):
        return output, {}
    if isinstance(output, dict):
        return (), dict(output)
    return (output,), {}


def _takes_rngs(fn: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(fn).parameters
    except (TypeError, ValueError):  # some builtins have no signature, and take no rngs
        return False
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return any(
        parameter.kind is inspect.Parameter.VAR_KEYWORD
        or (name == "rngs" and parameter.kind in by_name)
        for name, parameter in parameters.items()
    )
