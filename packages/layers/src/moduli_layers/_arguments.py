"""What the constructors of layers take, checked in one place and read off their annotations.

:func:`checked` wraps a constructor. Before it runs, every argument is brought to what its
annotation says: a size from NumPy or JAX becomes a Python int, a list of sizes a tuple, so that
layers of equal settings have equal structures. What has no such meaning is an error which names the
layer and the argument, and nothing is made. The table of annotations stands at the end; a
constructor whose annotation is not in it fails where the class is defined.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import numbers
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

import moduli
from moduli_layers import initializers
from moduli_layers.errors import ArgumentError

__all__ = ["checked"]

_Init = TypeVar("_Init", bound=Callable[..., None])
_Check = Callable[[Any], Any] | None


class _WrongError(Exception):
    """An argument that is refused: what to write instead, and what is wrong with it."""


def checked(init: _Init) -> _Init:
    """Makes a constructor check what it gets.

    Args:
      init: an ``__init__`` with annotations, written as text (``from __future__ import
        annotations``).

    Returns:
      The constructor that checks; of the same signature.

    Raises:
      TypeError: an annotation is not in the table.
    """
    signature = inspect.signature(init)
    checks: dict[str, Callable[[Any], Any]] = {}
    names = []
    defaults = {name: parameter.default for name, parameter in signature.parameters.items()}
    for name, parameter in list(signature.parameters.items())[1:]:
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            names.append(name)
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.annotation not in _CHECKS:
            raise TypeError(
                f"{init.__qualname__} annotates {name} as {parameter.annotation!r}, for which "
                f"{__name__} has no check"
            )
        check = _CHECKS[parameter.annotation]
        if check is not None:
            checks[name] = check

    @functools.wraps(init)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        given: dict[str, Any] = {}
        try:
            if len(args) <= len(names):
                args = tuple(
                    _brought(self, name, value, checks)
                    for name, value in zip(names, args, strict=False)
                )
                given.update(zip(names, args, strict=False))
            for name, value in kwargs.items():
                if name in checks:
                    kwargs[name] = _brought(self, name, value, checks)
            given.update(kwargs)
            init(self, *args, **kwargs)
        except ArgumentError as error:
            _name_initializer(self, error, {**defaults, **given})
            raise
        except TypeError as error:
            _say_remedy(error, signature, (self, *args), kwargs)
            raise

    return wrapped  # type: ignore[return-value]


def _brought(layer: Any, name: str, value: Any, checks: Mapping[str, Callable[[Any], Any]]) -> Any:
    """Returns an argument as its annotation says."""
    check = checks.get(name)
    if check is None:
        return value
    try:
        return check(value)
    except _WrongError as wrong:
        remedy, *faults = wrong.args
        fault = "".join(f", {fault}" for fault in faults)
        raise ArgumentError(
            f"{type(layer).__name__} got {name}={_short(value)}{fault}; write {remedy}"
        ) from None


def _name_initializer(layer: Any, error: ArgumentError, given: Mapping[str, Any]) -> None:
    """Says in an error about an initializer which argument of which layer it was."""
    culprit = getattr(error, "initializer", None)
    if culprit is None:
        return
    for name, value in given.items():
        if value is culprit:
            error.args = (f"{type(layer).__name__} got {name}={error.reason}",)  # type: ignore[attr-defined]
            return


def _say_remedy(
    error: TypeError, signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Adds to Python's error about a call what to write, if the call was what is wrong."""
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        pass
    else:
        return
    names = signature.parameters
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    needs_rngs = "rngs" in names and names["rngs"].default is inspect.Parameter.empty
    remedies = []
    for name in kwargs.keys() - names.keys():
        likely = "rngs" if name in _RNGS else "".join(difflib.get_close_matches(name, names, 1))
        if likely and likely != "rngs" and likely not in given:
            remedies.append(f"{likely}=... in the place of {name}=...")
    if needs_rngs and "rngs" not in kwargs:
        remedies.insert(0, "rngs=moduli.Rngs(0)")
    if remedies:
        error.args = (f"{error}; write {' and '.join(remedies)}",)


_RNGS = ("rng", "key", "seed")


def _short(value: Any) -> str:
    """Writes a value for a message, in one line of bounded length."""
    if isinstance(value, Tracer):
        return f"a traced value of shape {value.shape} and dtype {value.dtype.name}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


# -- what each annotation means --------------------------------------------------------------------


def _scalar(value: Any) -> Any:
    """Returns the Python number that a NumPy scalar or an array of no axes holds."""
    if isinstance(value, Tracer):
        return value
    held = isinstance(value, (np.generic, np.ndarray, jax.Array)) and np.ndim(value) == 0
    return value.item() if held and jnp.issubdtype(value.dtype, np.generic) else value


def _size(value: Any) -> int:
    if type(value) is int:
        return value
    value = _scalar(value)
    if isinstance(value, Tracer):
        raise _WrongError("a Python int: sizes are structure, and known before anything is traced")
    try:
        if isinstance(value, bool):
            raise TypeError
        return int(operator.index(value))
    except TypeError:
        whole = isinstance(value, float) and value.is_integer()
        raise _WrongError(f"an int{f', as {int(value)}' if whole else ''}") from None


def _several(value: Any) -> list[Any] | None:
    """Returns the items of an iterable or of an array with axes; None for anything else."""
    if isinstance(value, Tracer):
        return None
    if isinstance(value, (np.ndarray, jax.Array)):
        return list(np.asarray(value)) if value.ndim else None
    if isinstance(value, (str, bytes, Mapping, np.generic, moduli.Variable)):
        return None
    return list(value) if isinstance(value, Iterable) else None


def _sizes(value: Any) -> tuple[int, ...]:
    items = _several(value)
    if items is None:
        raise _WrongError("a tuple of ints")
    try:
        return tuple(_size(item) for item in items)
    except _WrongError:
        raise _WrongError("a tuple of ints") from None


def _unroll(value: Any) -> int | bool:
    return value if isinstance(value, bool) else _size(value)


def _size_or_sizes(value: Any) -> int | tuple[int, ...]:
    items = _several(value)  # once: an iterator has its items but once
    try:
        return _size(value) if items is None else _sizes(items)
    except _WrongError as wrong:
        text = str(wrong)
        raise _WrongError(
            f"{text}, or a tuple of ints" if text.startswith("an int") else text
        ) from None


def _groups(value: Any) -> tuple[tuple[int, ...], ...]:
    items = _several(value)
    if items is None:
        raise _WrongError("a tuple of tuples of ints")
    return tuple(_sizes(item) for item in items)


def _padding(value: Any) -> Any:
    if isinstance(value, str):
        return value
    items = _several(value)
    try:
        return _size(value) if items is None else tuple(map(_size_or_sizes, items))
    except _WrongError:
        raise _WrongError(
            "a name such as padding='SAME', an int, or for each dimension an int or a pair "
            "(before, after)"
        ) from None


def _sizes_by_axis(value: Any) -> dict[int, int]:
    try:
        return {_size(axis): _size(size) for axis, size in dict(value).items()}
    except (TypeError, ValueError, _WrongError):
        raise _WrongError("a dict of axes and their sizes, as {0: 8}") from None


def _flag(value: Any) -> bool:
    if type(value) is bool:
        return value
    value = _scalar(value)
    if value is None or (isinstance(value, (int, float)) and value in (0, 1)):
        return bool(value)
    raise _WrongError("True or False")


def _number(value: Any) -> Any:
    value = _scalar(value)
    if isinstance(value, (Tracer, np.ndarray, jax.Array, moduli.Variable)):
        return value  # one for each feature, or one that is learned or set later
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return float(value)
    raise _WrongError("a number")


def _stored_dtype(value: Any) -> Any:
    """Checks a dtype of parameters; None is JAX's default, as in :mod:`jax.numpy`."""
    return jnp.result_type(float) if value is None else _dtype(value)


def _dtype(value: Any) -> Any:
    try:
        if value is None or isinstance(value, (np.ndarray, np.generic, jax.Array)):
            raise TypeError
        if jnp.issubdtype(jnp.dtype(value), np.number) or jnp.dtype(value) == jnp.bool_:
            return value
    except TypeError:
        pass
    raise _WrongError("a dtype such as jnp.float32 or 'float32'")


def _callable(value: Any) -> Any:
    if callable(value):
        return value
    raise _WrongError("a function")


def _function(value: Any) -> Any:
    if callable(value):
        return value
    raise _WrongError("a function such as moduli.relu", "which cannot be called")


def _network(value: Any) -> Any:
    if callable(value):
        return value
    raise _WrongError("a layer such as moduli.RNN(cell)", "which cannot be called")


def _initializer(value: Any) -> Any:
    if callable(value):
        return value
    named = isinstance(value, str) and hasattr(initializers, value)
    example = value if named else "constant(0.1)" if isinstance(value, (int, float)) else "normal"
    if "(" not in example and example not in ("zeros", "ones"):
        example += "()"
    raise _WrongError(f"an initializer, as initializers.{example}")


def _metadata(value: Any) -> Any:
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return value
    raise _WrongError("a dict with names as keys, as {'sharding': ('model',)}")


def _axis_metadata(value: Any) -> Any:
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return value
    raise _WrongError("a dict, as {moduli.PARTITION_NAME: 'layers'}")


def _name(value: Any) -> Any:
    """Checks a name, or names: axes of ``vmap`` may have any that can be hashed."""
    value = tuple(value) if isinstance(value, list) else value
    try:
        hash(value)
    except TypeError:
        value = None
    if value is None or isinstance(value, (bool, numbers.Number)):
        raise _WrongError("a name, a str")
    return value


@functools.lru_cache
def _is_precision(value: Any) -> bool:
    one = jax.ShapeDtypeStruct((1,), jnp.float32)
    try:
        jax.eval_shape(functools.partial(lax.dot, precision=value), one, one)
    except (TypeError, ValueError, NotImplementedError):
        return False
    return True


def _precision(value: Any) -> Any:
    value = tuple(value) if isinstance(value, list) else value
    try:
        if _is_precision(value):
            return value
    except TypeError:  # it has no hash
        pass
    raise _WrongError("a precision such as 'highest', see jax.lax.Precision")


def _kind(value: Any) -> Any:
    if isinstance(value, type) and issubclass(value, moduli.Variable):
        return value
    raise _WrongError("a class of Variables, as moduli.Param")


def _module(value: Any) -> Any:
    if isinstance(value, moduli.Module):
        return value
    raise _WrongError("a layer, a Module")


def _or_none(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else check(value)


_CHECKS: dict[str, _Check] = {
    "int": _size,
    "int | None": _or_none(_size),
    "int | bool": _unroll,
    "Sequence[int]": _sizes,
    "int | Sequence[int]": _size_or_sizes,
    "int | Sequence[int] | None": _or_none(_size_or_sizes),
    "Axes": _size_or_sizes,
    "Axes | None": _or_none(_size_or_sizes),
    "Sequence[Sequence[int]] | None": _or_none(_groups),
    "Mapping[int, int]": _sizes_by_axis,
    "Padding": _padding,
    "bool": _flag,
    "bool | None": _or_none(_flag),
    "float": _number,
    "float | ArrayLike": _number,
    "DTypeLike": _stored_dtype,
    "DTypeLike | None": _or_none(_dtype),
    "initializers.Initializer": _initializer,
    "initializers.Initializer | None": _or_none(_initializer),
    "Mapping[str, Any]": _metadata,
    "Mapping[str, Any] | None": _or_none(_axis_metadata),
    "lax.PrecisionLike": _or_none(_precision),
    "PromoteDtype": _callable,
    "Callable[..., Any]": _function,
    "Callable[..., jax.Array]": _callable,
    "Callable[[Any, Any], Any]": _callable,
    "Callable[..., jax.Array] | None": _or_none(_callable),
    "Callable[[], Callable[..., jax.Array]] | None": _or_none(_callable),
    "Callable[[jax.Array, jax.Array], jax.Array] | None": _or_none(_callable),
    "Callable[..., bool] | None": _or_none(_callable),
    "str": _name,
    "str | None": _or_none(_name),
    "type[moduli.Variable[Any]]": _kind,
    "moduli.Module": _module,
    # what the constructors look at themselves, and what has no wrong value
    "ArrayLike | None": None,
    "Any": None,
    "SupportsIndex": None,
    "Callable[..., Any] | None": None,
    "Callable[..., M]": None,
    "Callable[..., moduli.Module] | None": None,
    "Literal['row', 'batch']": None,
    'Literal["row", "batch"]': None,
    "Mapping[Any, Any] | None": None,
    "Network": _network,
    "RNNCellBase": None,
    "Streams | bool": None,
    "moduli.Rngs": None,
    "moduli.Rngs | None": None,
    "moduli.Rngs | moduli.RngStream | None": None,
}
