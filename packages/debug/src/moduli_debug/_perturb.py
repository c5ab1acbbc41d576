"""perturb: add zeros to an intermediate, whose gradient is the intermediate's gradient."""

from __future__ import annotations

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import moduli
from moduli import errors, plugins
from moduli_debug._values import MISSING, check_name, unboxed
from moduli_debug._wanted import Perturbed, innermost

__all__ = ["perturb"]


@moduli.hookimpl(specname="moduli_perturb")
def perturb(
    module: moduli.Module,
    name: str,
    value: Any,
    variable_type: type[moduli.Variable[Any]],
    capture_noop: bool,
) -> Any:
    """Returns ``value`` plus the perturbation in the module's attribute ``name``.

    The first run makes the perturbation: zeros of the value's structure, shapes and dtypes. While
    a capture runs, perturbations come from it: those given as ``init``, and new zeros if the kind
    is captured.

    Args:
      module: the module that perturbs.
      name: the attribute's name.
      value: an array, a number, or a pytree of these.
      variable_type: the kind of Variable.
      capture_noop: return the value as it is while no capture runs.

    Returns:
      The sum, leaf by leaf.

    Raises:
      StructureError: if the attribute exists and is not a Variable of this kind.
      ShapeError: if the perturbation there has another structure, shape or dtype than the value.
      VariableError: if the value holds something other than numbers, or nothing.
    """
    check_name(name, "perturb")
    value = unboxed(value, f"perturb: the value {name!r} of {type(module).__name__}")
    _check_numbers(module, name, value)
    found = innermost(module)
    if found is not None:
        recording, wanted, path = found
        key = plugins.Place(path, None, Perturbed(variable_type, name))
        perturbation = recording.given_at(key)
        if perturbation is not None:
            _check_fits(module, variable_type, name, perturbation, value, captured=True)
            return jax.tree.map(operator.add, value, perturbation)
        if wanted.number_of(variable_type) is not None:
            zeros = jax.tree.map(jnp.zeros_like, value)
            recording.record_at(key, zeros, absent=0.0)
            return value
        if not isinstance(getattr(module, name, MISSING), variable_type):
            return value
    elif capture_noop:
        return value
    existing = getattr(module, name, MISSING)
    if existing is MISSING:
        existing = variable_type(jax.tree.map(jnp.zeros_like, value))
        setattr(module, name, existing)
    _check_existing(module, variable_type, name, existing)
    _check_fits(module, variable_type, name, existing.value, value, captured=found is not None)
    return jax.tree.map(operator.add, value, existing.value)


def _check_numbers(module: moduli.Module, name: str, value: Any) -> None:
    pairs, _ = jax.tree_util.tree_flatten_with_path(value)
    where = f"perturb: the value {name!r} of {type(module).__name__}"
    if not pairs:
        raise errors.VariableError(
            f"{where} is {value!r}, which holds no array; perturb the arrays that the model "
            "computes with"
        )
    for path, leaf in pairs:
        numeric = isinstance(leaf, (jax.Array, np.ndarray, np.generic, int, float, complex))
        if not numeric or jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.extended):
            place = jax.tree_util.keystr(path)
            raise errors.VariableError(
                f"{where} holds {leaf!r}{f' at {place}' if place else ''}, and only numbers have "
                "a gradient; perturb the arrays alone"
            )


def _check_existing(
    module: moduli.Module, variable_type: type[moduli.Variable[Any]], name: str, existing: Any
) -> None:
    if isinstance(existing, variable_type):
        return
    kind, owner = variable_type.__name__, type(module).__name__
    if isinstance(existing, moduli.Variable):
        raise errors.StructureError(
            f"perturb: `{name}` of {owner} is a Variable of kind {type(existing).__name__}; "
            f"expected kind {kind}. Use another name for the perturbation"
        )
    raise errors.StructureError(
        f"perturb: `{name}` of {owner} is a {type(existing).__name__}; expected a Variable of kind "
        f"{kind}, or nothing yet. Use another name, such as `self.perturb('{name}_grad', value)`"
    )


def _check_fits(
    module: moduli.Module,
    variable_type: type[moduli.Variable[Any]],
    name: str,
    perturbation: Any,
    value: Any,
    *,
    captured: bool,
) -> None:
    if _shapes(perturbation) == _shapes(value):
        return
    kind = variable_type.__name__
    if not captured:
        remedy = (
            f"Remove it with `moduli.pop(model, moduli.{kind})`; the next run makes one that fits"
        )
    else:
        remedy = (
            f"Make one that fits with `moduli.capture(model, moduli.{kind})` on an input of this "
            "shape, and pass it as init"
        )
    raise errors.ShapeError(
        f"perturb: the {kind} `{name}` of {type(module).__name__} was made for "
        f"{_text(perturbation)}, and the value is now {_text(value)}. {remedy}"
    )


def _shapes(value: Any) -> Any:
    leaves, treedef = jax.tree.flatten(value)
    return treedef, [(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves]


def _text(value: Any) -> str:
    def describe(leaf: Any) -> _Verbatim:
        return _Verbatim(f"{jnp.result_type(leaf)}[{','.join(map(str, jnp.shape(leaf)))}]")

    return repr(jax.tree.map(describe, value))


class _Verbatim(str):
    """A text whose repr has no quotes."""

    def __repr__(self) -> str:
        return str(self)
