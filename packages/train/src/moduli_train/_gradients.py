"""Matches gradients with the parameters that an optimizer updates, or says why they do not fit."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

import moduli
from moduli.errors import StructureError, format_path

__all__ = ["is_variable", "match_gradients", "raw_value"]

Path = tuple[Any, ...]


def is_variable(value: object) -> bool:
    """Returns whether pytree traversal should stop at ``value`` because it is a Variable."""
    return isinstance(value, moduli.Variable)


def raw_value(value: Any) -> Any:
    """Returns what a Variable holds, and anything else as it is. No hook runs."""
    return value.get_raw_value() if isinstance(value, moduli.Variable) else value


def match_gradients(params: moduli.State, grads: Any, model: Any, wrt: Any) -> list[Any]:
    """Returns one gradient for each parameter, in the order of the parameters.

    Args:
      params: the parameters that the optimizer updates.
      grads: a State, a nested mapping, or a module that holds gradients in place of parameters.
        It may hold more than the optimizer updates, as when one gradient serves two optimizers.
      model: the model, to tell what the gradients were taken with respect to.
      wrt: the optimizer's filter, for the message.

    Raises:
      StructureError: if a gradient is missing, belongs to no place in the model, or has another
        shape than its parameter. The text lists the paths.
    """
    leaves, treedef = jax.tree.flatten(params, is_leaf=is_variable)
    grad_leaves, grad_treedef = jax.tree.flatten(grads, is_leaf=is_variable)
    if treedef != grad_treedef:
        grad_leaves = _by_path(params, _flat(grads), model, wrt)
    values = list(map(raw_value, grad_leaves))
    for position, (leaf, grad) in enumerate(zip(leaves, values, strict=True)):
        shape, expected = getattr(grad, "shape", ()), getattr(raw_value(leaf), "shape", ())
        if shape != expected:
            path = format_path(_leaf_paths(params)[position])
            raise StructureError(
                f"the gradient of `{path}` has shape {shape}, and the parameter has {expected}; "
                "take gradients of the model that you update"
            )
    return values


def _flat(grads: Any) -> dict[Path, Any]:
    if isinstance(grads, moduli.Pytree):
        grads = moduli.state(grads)
    if not isinstance(grads, Mapping):
        raise StructureError(
            f"got a {type(grads).__name__} as gradients; pass the State that `moduli.grad(loss)"
            "(model, ...)` returns: `optimizer.update(model, grads)`"
        )
    return dict(moduli.to_flat_state(grads).items())


def _leaf_paths(params: moduli.State) -> list[Path]:
    pairs, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_variable)
    return [tuple(entry.key for entry in path) for path, _ in pairs]


def _by_path(params: moduli.State, grads: Mapping[Path, Any], model: Any, wrt: Any) -> list[Any]:
    paths = _leaf_paths(params)
    missing = [path for path in paths if path not in grads]
    known = dict(moduli.to_flat_state(moduli.state(model)).items())
    unknown = [path for path in grads if path not in known]
    if missing or unknown:
        raise StructureError(_explain(missing, unknown, grads, known, wrt))
    return [grads[path] for path in paths]


def _explain(
    missing: Sequence[Path],
    unknown: Sequence[Path],
    grads: Mapping[Path, Any],
    known: Mapping[Path, Any],
    wrt: Any,
) -> str:
    lines = []
    if missing:
        lines.append(
            f"the optimizer updates what the filter wrt={_filter_text(wrt)} selects, but these "
            f"have no gradient: {_list(missing, known)}."
        )
    if unknown:
        near = difflib.get_close_matches(format_path(unknown[0]), map(format_path, known), n=1)
        hint = f" (did you mean `{near[0]}`?)" if near else ""
        lines.append(
            f"These gradients belong to no value of the model{hint}: {_list(unknown, grads)}."
        )
    extra = [path for path in grads if path not in missing and path in known]
    if missing and extra:
        lines.append(f"The gradients given are those of: {_list(extra, known)}.")
    lines.append(
        f"Take them with respect to the same filter: `moduli.grad(loss, "
        f"argnums=moduli.DiffState(0, {_filter_text(wrt)}))(model, ...)`, or make the optimizer "
        "with another `wrt`."
    )
    return "gradients and optimizer do not fit: " + "\n".join(lines)


def _list(paths: Iterable[Path], values: Mapping[Path, Any]) -> str:
    return ", ".join(f"`{format_path(path)}` ({type(values[path]).__name__})" for path in paths)


def _filter_text(filter: Any) -> str:
    if filter is Ellipsis:
        return "..."
    if isinstance(filter, type):
        return filter.__name__
    if isinstance(filter, tuple):
        return f"({', '.join(map(_filter_text, filter))})"
    return repr(filter)
