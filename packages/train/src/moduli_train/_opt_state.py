"""Puts an optax state into Variables and takes it out again.

optax knows nothing of Variables. Its ``init`` is given the State of the parameters, and JAX carries
each Variable's kind and metadata into whatever optax builds in its place; these become
:class:`OptVariable`. Everything else that optax keeps becomes :class:`OptArray`.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any

import jax
import jax.numpy as jnp

import moduli
from moduli.errors import StructureError, format_code, format_path
from moduli.lowlevel import fitted_metadata
from moduli_train._gradients import is_variable, raw_value
from moduli_train._own_arrays import copy_if_shared
from moduli_train._variables import OptArray, OptVariable

__all__ = [
    "as_optax_made_it",
    "box_replaced",
    "check_made_for",
    "check_same_parameters",
    "new_values",
    "to_opt_state",
    "unwrap",
    "write",
]

_HOOKS = ("on_get_value", "on_set_value", "on_create_value")


def to_opt_state(tree: Any, params: moduli.State) -> Any:
    """Puts every Variable and array of a state in a Variable of an optimizer's kind.

    Args:
      tree: the state that optax made, with Variables where it keeps something of a parameter.
      params: the parameters.

    Returns:
      The state; names of axes are carried over to what has another shape than its parameter, such
      as adafactor's rows and columns. It shares no array with the parameters.
    """
    shapes = {
        tuple(map(str, path)): getattr(raw_value(leaf), "shape", None)
        for path, leaf in moduli.to_flat_state(params)
    }
    own = copy_if_shared(params)

    def convert(key_path: Any, leaf: Any) -> Any:
        keys = tuple(str(_key(entry)) for entry in key_path)
        found = (shapes[keys[n:]] for n in range(len(keys)) if keys[n:] in shapes)
        converted = _to_opt_state(leaf, next(found, None))
        converted.set_raw_value(jax.tree.map(own, converted.get_raw_value()))
        return converted

    return jax.tree_util.tree_map_with_path(convert, tree, is_leaf=is_variable)


def _to_opt_state(leaf: Any, shape: Any) -> Any:
    """Puts a leaf in a Variable, given the shape of its parameter."""
    if not isinstance(leaf, moduli.Variable):
        return OptArray(leaf)
    # The parameter's hooks are about its own value, not about its momentum.
    metadata = {k: v for k, v in leaf.get_metadata().items() if k not in _HOOKS}
    if "optimizer_sharding" in metadata:
        metadata["out_sharding"] = metadata.pop("optimizer_sharding")
    value: Any = leaf.get_raw_value()
    own = getattr(value, "shape", None)
    if metadata and shape is not None and own is not None:
        metadata = fitted_metadata(metadata, shape, own)
    return OptVariable(value, **metadata)


def _key(entry: Any) -> Any:
    """What an entry of one of JAX's paths says: a key, an index, or the name of an attribute."""
    for name in ("key", "idx", "name"):
        if hasattr(entry, name):
            return getattr(entry, name)
    return entry


def box_replaced(tree: Any, params: Any = None) -> Any:
    """Puts into Variables what the user wrote in their place, in the same containers.

    ``optimizer.opt_state.hyperparams["learning_rate"] = 0.1`` leaves a plain number behind.

    Args:
      tree: the state of an optimizer, or a part of it.
      params: the parameters to which the part belongs, a State or a Variable; None if unknown.

    Returns:
      The tree; another one where a tuple had to be made again.
    """
    if isinstance(tree, (moduli.Variable, moduli.Pytree)):
        return tree
    if isinstance(tree, MutableMapping):
        for key, old in list(tree.items()):
            inner = params if isinstance(tree, moduli.State) else None
            new = box_replaced(old, inner.get(key) if isinstance(inner, moduli.State) else None)
            if new is not old:
                tree[key] = new
        return tree
    children, treedef = jax.tree.flatten(tree, is_leaf=lambda part: part is not tree)
    if len(children) == 1 and children[0] is tree:
        value = jnp.asarray(tree, jnp.result_type(tree))  # not of a weak type
        if isinstance(params, moduli.Variable):
            shape = getattr(raw_value(params), "shape", None)
            return _to_opt_state(params.replace(value), shape)
        return OptArray(value)
    boxed = [box_replaced(child, params) for child in children]
    if all(new is old for new, old in zip(boxed, children, strict=True)):
        return tree
    return treedef.unflatten(boxed)


def as_optax_made_it(opt_state: Any) -> Any:
    """Returns the state of an optimizer as its transformation knows it, still in Variables.

    A state that is a plain dict or list has become a node of the optimizer, with all containers
    below it; any other stays what it is.
    """
    if isinstance(opt_state, (moduli.Dict, moduli.List)):
        return _plain(opt_state)
    return opt_state


def _plain(tree: Any) -> Any:
    if isinstance(tree, moduli.Dict):
        return {key: _plain(item) for key, item in tree.items()}
    if isinstance(tree, moduli.List):
        return [_plain(item) for item in tree]
    if isinstance(tree, (moduli.State, moduli.Variable, moduli.Pytree)):
        return tree
    children, treedef = jax.tree.flatten(tree, is_leaf=lambda part: part is not tree)
    if len(children) == 1 and children[0] is tree:
        return tree
    return treedef.unflatten(map(_plain, children))


def unwrap(tree: Any) -> Any:
    """Returns the pytree with values in place of Variables; modules in it stay as they are."""
    return jax.tree.map(
        raw_value, tree, is_leaf=lambda leaf: isinstance(leaf, (moduli.Variable, moduli.Pytree))
    )


def new_values(opt_state: Any, new: Any) -> list[tuple[Any, Any]]:
    """Pairs each Variable of an optimizer's state with its new value.

    Args:
      opt_state: the state, in Variables.
      new: the new state as optax returned it.

    Raises:
      StructureError: if optax changed the structure of the state, or a shape in it.
    """
    variables, treedef = jax.tree.flatten(as_optax_made_it(opt_state), is_leaf=is_variable)
    try:
        values = treedef.flatten_up_to(new)
    except ValueError as error:
        raise StructureError(
            "the gradient transformation returned a state of another structure than its "
            f"`init` made, so it cannot be kept between steps: {error}"
        ) from error
    pairs = list(zip(variables, values, strict=True))
    for variable, value in pairs:
        old = getattr(raw_value(variable), "shape", None)
        if old is not None and getattr(value, "shape", old) != old:
            raise StructureError(
                f"the optimizer's state for {_path_of(opt_state, variable)} has shape {old} and "
                f"would become {value.shape}; the parameter's shape has changed since the "
                "optimizer was made: make a new Optimizer(model, tx)"
            )
    return pairs


def write(pairs: list[tuple[Any, Any]]) -> None:
    """Writes the pairs that :func:`new_values` gave."""
    for variable, value in pairs:
        variable.set_raw_value(value)


def check_same_parameters(opt_state: Any, params: moduli.State) -> None:
    """Raises if an optimizer's state was made for other parameters than these.

    Raises:
      StructureError: naming the parameters that are new or gone.
    """
    now = set(moduli.to_flat_state(params).keys())
    for state in _states(opt_state):
        then = set(moduli.to_flat_state(state).keys())
        if now != then:
            new = ", ".join(sorted(f"`{format_path(path)}`" for path in now - then))
            gone = ", ".join(sorted(f"`{format_path(path)}`" for path in then - now))
            text = "; ".join(
                clause
                for clause in (new and f"it has no state for {new}", gone and f"{gone} is gone")
                if clause
            )
            raise StructureError(
                f"the model's parameters are not those for which the optimizer was made: {text}. "
                "Make a new Optimizer(model, tx) after changing the model, or give it a filter "
                "`wrt` that selects what both have"
            )


def check_made_for(opt_state: Any, init: Any, given: Any, params: moduli.State) -> None:
    """Raises if an optimizer's state has other shapes than one that is made now.

    Args:
      opt_state: the state.
      init: the transformation's ``init``.
      given: the parameters in the form that ``init`` takes.
      params: the parameters.

    Raises:
      StructureError: naming the parameters.
    """
    try:
        expected = jax.eval_shape(lambda: unwrap(init(given)))
    except Exception:  # then it is not the state that is to blame
        return
    then, old = jax.tree_util.tree_flatten_with_path(unwrap(opt_state))
    now, new = jax.tree_util.tree_flatten_with_path(expected)
    shapes = {path: jnp.shape(leaf) for path, leaf in then}
    wrong = {
        _parameter(path, params): (shapes.get(path), leaf.shape)
        for path, leaf in now
        if shapes.get(path) != leaf.shape
    }
    if wrong:
        listed = ", ".join(
            f"`{format_path(name)}` ({'no state' if was is None else was}, now needs {now})"
            for name, (was, now) in wrong.items()
        )
        first = next((name for name in wrong if name[0] != "opt_state"), None)
        example = "" if first is None else f", such as `model{format_code(first)}`"
    elif old != new:
        listed, example = "a parameter that is gone", ""
    else:
        return
    raise StructureError(
        "the model's parameters are not those for which the optimizer was made; its state differs "
        f"for {listed}. Make a new Optimizer(model, tx) after changing the model{example}"
    )


def _parameter(path: Any, params: moduli.State) -> tuple[Any, ...]:
    keys = [str(getattr(entry, "key", getattr(entry, "idx", ""))) for entry in path]
    for known in moduli.to_flat_state(params).keys():  # noqa: SIM118
        if keys[-len(known) :] == list(map(str, known)):
            return known
    return ("opt_state", *path)


def _states(opt_state: Any) -> Iterator[moduli.State]:
    def is_state(leaf: object) -> bool:
        return isinstance(leaf, moduli.State)

    for leaf in jax.tree.leaves(opt_state, is_leaf=is_state):
        if is_state(leaf):
            yield leaf


def _path_of(opt_state: Any, variable: Any) -> str:
    pairs, _ = jax.tree_util.tree_flatten_with_path(opt_state, is_leaf=is_variable)
    for path, leaf in pairs:
        if leaf is variable:
            return f"`{format_path(('opt_state', *path))}`"
    return "`opt_state`"
