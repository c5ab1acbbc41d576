"""haiku: transformed functions as modules of ours, and modules of ours as transformed functions.

haiku has no objects that hold values: a model is a pair of functions, and its values are a dict of
dicts. So what crosses is the model as a whole, with the values under haiku's own names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

import moduli
from moduli.errors import StructureError
from moduli_interop._bridges.frameworks import import_framework

__all__ = ["HaikuModule", "from_haiku", "to_haiku"]

Values = Mapping[str, Mapping[str, Any]]


def from_haiku(
    transformed: Any,
    params: Values,
    state: Values | None = None,
    *,
    rngs: moduli.Rngs | None = None,
) -> HaikuModule:
    """Makes a module of ours from what ``hk.transform`` or ``hk.transform_with_state`` returned.

    Args:
      transformed: the pair of functions.
      params: the parameters, as its ``init`` returned them; they become Params.
      state: the state, likewise; its values become BatchStats, or Variables for integers. What a
        call changes in it is written there.
      rngs: where the keys of calls come from (stream ``default``); None passes none.

    Returns:
      The module.

    Raises:
      MissingFrameworkError: haiku is not installed.
      StructureError: a state is missing, or there is one that the functions do not take.

    Example:
      >>> import haiku as hk, jax, jax.numpy as jnp, moduli as nnx
      >>> net = hk.transform(lambda x: hk.Linear(4)(x))
      >>> params = net.init(jax.random.key(0), jnp.ones((1, 3)))
      >>> model = nnx.from_haiku(net, params)
      >>> model(jnp.ones((2, 3))).shape, model.params["linear"]["w"].shape
      ((2, 4), (3, 4))
    """
    return HaikuModule(transformed, params, state, rngs=rngs)


class HaikuModule(moduli.Module):
    """A transformed function of haiku as a module of ours; see :func:`from_haiku`."""

    __module__ = "moduli_interop.bridge"

    def __init__(
        self,
        transformed: Any,
        params: Values,
        state: Values | None = None,
        *,
        rngs: moduli.Rngs | None = None,
    ) -> None:
        haiku = import_framework("haiku", "haiku")
        stateful = isinstance(transformed, haiku.TransformedWithState)
        if stateful != (state is not None):
            raise StructureError(
                f"{type(transformed).__name__} "
                + (
                    "takes a state: write `from_haiku(transformed, params, state)`"
                    if stateful
                    else "takes no state: write `from_haiku(transformed, params)`"
                )
            )
        self.transformed = moduli.static(transformed)
        self.stateful = stateful
        self.params = {
            module: {name: moduli.Param(jnp.asarray(x)) for name, x in values.items()}
            for module, values in params.items()
        }
        self.state = {
            module: {name: _kept(jnp.asarray(x)) for name, x in values.items()}
            for module, values in (state or {}).items()
        }
        self.rngs = None if rngs is None else rngs.fork()

    def values(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the parameters and the state as haiku has them."""
        return _plain(self.params), _plain(self.state)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function."""
        key = None if self.rngs is None else self.rngs()
        params, state = self.values()
        transformed: Any = self.transformed
        if not self.stateful:
            return transformed.apply(params, key, *args, **kwargs)
        out, state = transformed.apply(params, state, key, *args, **kwargs)
        for module, values in state.items():
            for name, value in values.items():
                self.state[module][name].value = value
        return out


def _kept(value: jax.Array) -> moduli.Variable[Any]:
    floating = jnp.issubdtype(value.dtype, jnp.floating)
    return moduli.BatchStat(value) if floating else moduli.Variable(value)


def _plain(held: Any) -> dict[str, Any]:
    return {
        module: {name: variable.value for name, variable in values.items()}
        for module, values in held.items()
    }


def to_haiku(model: moduli.Module) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Makes a transformed function of haiku, with parameters and state, from a model of ours.

    Params are haiku's parameters, other Variables its state, under the names of their paths:
    ``params["layers/0"]["kernel"]``. ``apply`` leaves the model as it is and returns the new state.
    If it gets a key, the model's random streams begin anew from it.

    Args:
      model: the model.

    Returns:
      ``(transformed, params, state)``: an ``hk.TransformedWithState``, whose ``init`` returns these
      values too, and the values.

    Raises:
      MissingFrameworkError: haiku is not installed.

    Example:
      >>> import jax.numpy as jnp, moduli as nnx
      >>> net, params, state = nnx.to_haiku(nnx.Linear(3, 4, rngs=nnx.Rngs(0)))
      >>> out, state = net.apply(params, state, None, jnp.ones((2, 3)))
      >>> out.shape, sorted(params["~"])
      ((2, 4), ['bias', 'kernel'])
    """
    haiku = import_framework("haiku", "haiku")
    graphdef, whole = moduli.split(moduli.clone(model))
    flat = moduli.to_flat_state(whole)
    places = [_place(path) for path, _ in flat]
    kinds = [leaf for _, leaf in flat]
    params: dict[str, Any] = {}
    state: dict[str, Any] = {}
    for (module, name), leaf in zip(places, kinds, strict=True):
        group = params if isinstance(leaf, moduli.Param) else state
        if name in group.setdefault(module, {}):
            raise StructureError(f"two values of the model are `{module}/{name}` in haiku")
        group[module][name] = leaf.get_raw_value() if isinstance(leaf, moduli.Variable) else leaf

    def init(rng: Any, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return jax.tree.map(lambda x: x, (params, state))

    def apply(params: Any, state: Any, rng: Any, *args: Any, **kwargs: Any) -> Any:
        leaves = []
        for number, ((module, name), leaf) in enumerate(zip(places, kinds, strict=True)):
            value = (params if isinstance(leaf, moduli.Param) else state)[module][name]
            if rng is not None and isinstance(leaf, moduli.RngKey):
                value = jnp.broadcast_to(jax.random.fold_in(rng, number), value.shape)
            elif rng is not None and isinstance(leaf, moduli.RngCount):
                value = jnp.zeros_like(value)
            leaves.append(leaf.replace(value) if isinstance(leaf, moduli.Variable) else value)
        paths = [path for path, _ in flat]
        copy = moduli.merge(graphdef, moduli.from_flat_state(zip(paths, leaves, strict=True)))
        out = copy(*args, **kwargs)
        after = dict(moduli.to_flat_state(moduli.state(copy)))
        new: dict[str, Any] = {}
        for (module, name), path, leaf in zip(places, paths, kinds, strict=True):
            if not isinstance(leaf, moduli.Param):
                now = after[path]
                value = now.get_raw_value() if isinstance(now, moduli.Variable) else now
                new.setdefault(module, {})[name] = value
        return out, new

    return haiku.TransformedWithState(init, apply), params, state


def _place(path: tuple[Any, ...]) -> tuple[str, str]:
    """Returns haiku's names of a module and a value for a path; ``~`` is the model itself."""
    *module, name = map(str, path)
    return "/".join(module) or "~", name
