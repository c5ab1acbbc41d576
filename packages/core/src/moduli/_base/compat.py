"""The one place for what differs between the JAX versions that moduli supports."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax.core import Tracer

__all__ = [
    "PyTreeDef",
    "Tracer",
    "eager_trace_state",
    "is_eager",
    "is_key_array",
    "is_staged",
    "trace_state",
    "varying_axes",
]

_get_trace_state: Callable[[], Any] | None = None
_eager: Any = None
_probe: Callable[[], bool] | None = None


def trace_state() -> Any:
    """Returns a token that is equal only while the same JAX trace is the innermost one."""
    return (_get_trace_state or _find_trace_state())()


def _find_trace_state() -> Callable[[], Any]:
    """Finds it at the first need: ``jax.extend`` brings Pallas, which ``import jax`` does not."""
    global _get_trace_state
    with warnings.catch_warnings():  # jax 0.10 warns of the name that costs no import
        warnings.simplefilter("ignore", DeprecationWarning)
        _get_trace_state = getattr(jax.core, "get_opaque_trace_state", None)
    if _get_trace_state is None:  # jax >= 0.11
        from jax.extend.core import get_opaque_trace_state

        _get_trace_state = get_opaque_trace_state
    return _get_trace_state


def eager_trace_state() -> Any:
    """Returns the token of no trace at all: that of a new thread, where none has begun."""
    global _eager
    if _eager is None:
        tokens: list[Any] = []
        thread = threading.Thread(target=lambda: tokens.append(trace_state()))
        thread.start()
        thread.join()
        _eager = tokens[0]
    return _eager


def is_eager() -> bool:
    """Returns whether no JAX trace is running."""
    return (_get_trace_state or _find_trace_state())() == (_eager or eager_trace_state())


def is_staged() -> bool:
    """Returns whether operations are written down here for a program, instead of being run.

    So it is under ``jit`` and in the body of a loop, also if ``grad`` or ``vmap`` stand inside; not
    so under ``grad`` or ``vmap`` alone.
    """
    return not is_eager() and (_probe or _make_probe())()


class _Staged(Exception):
    """The probe would be written down."""


def _make_probe() -> Callable[[], bool]:
    """Makes an operation without inputs; where it is staged, JAX asks for its shape."""
    global _probe
    primitive = type(jax.lax.add_p)("moduli_is_staged")  # of the class in jax.extend, not imported

    def shape() -> Any:
        raise _Staged

    def probe() -> bool:
        try:
            return bool(primitive.bind())
        except _Staged:
            return True

    primitive.def_impl(lambda: False)
    primitive.def_abstract_eval(shape)
    _probe = probe
    return probe


PyTreeDef = jax.tree_util.PyTreeDef


def is_key_array(value: object) -> bool:
    """Returns whether ``value`` is an array of typed PRNG keys."""
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def draws_alike_in_any_shape() -> bool:
    """Returns whether XLA computes random functions alike in arrays of any shape, on a CPU.

    Compared bit by bit with the versions that are tested; from JAX 0.11 on, XLA's code depends on
    the shape in the last bit.
    """
    return jax.__version_info__ < (0, 11)


_NOWHERE: frozenset[Any] = frozenset()


def varying_axes(value: Any) -> frozenset[Any]:
    """Returns the axes of a mesh over which a value differs, inside of ``jax.shard_map``."""
    aval: Any = jax.typeof(value)
    kind = getattr(aval, "manual_axis_type", None)  # jax >= 0.10
    return getattr(aval, "vma", _NOWHERE) if kind is None else kind.varying
