"""haiku's own layers with their parameters as layers of ours, and the other way.

A layer of haiku can be made inside of a transformed function alone, so what crosses is a function
that makes it, beside the values. Models with functions of their own cross as a whole, by
:func:`~moduli.from_haiku` and :func:`~moduli.to_haiku`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

import moduli
from moduli_interop._bridges.bridge import Conversion
from moduli_interop._bridges.errors import BridgeError
from moduli_interop._bridges.frameworks import import_framework, makers
from moduli_interop._bridges.haiku_values import Reading, Values, Writing

__all__ = ["as_haiku_layers", "from_haiku_layers"]


def from_haiku_layers(
    make: Callable[[], Any],
    params: Values,
    state: Values | None = None,
    *,
    prefix: str = "",
    rngs: moduli.Rngs | None = None,
) -> Any:
    """Makes a model of ours from layers of haiku and their parameters; the values are copied.

    Args:
      make: makes the layer, as inside of a transformed function: ``lambda: hk.Linear(4)``, or one
        that returns a list, tuple or dict of layers.
      params: the parameters, by the names that the layers have there.
      state: the state, likewise.
      prefix: what stands before these names, for layers that are part of a larger model:
        ``"encoder/~/"``.
      rngs: where the random numbers of dropout come from; it is needed for training.

    Returns:
      Our layers. A ``data_format`` with the channels first becomes a
      :class:`~moduli_interop.bridge.ChannelsFirst`, a core a
      :class:`~moduli_interop.bridge.HaikuCore`.

    Raises:
      BridgeError: a layer, or one of its settings, has no counterpart, or values are missing or
        left over.
      MissingFrameworkError: haiku is not installed.

    Example:
      >>> import haiku as hk, jax, jax.numpy as jnp, moduli as nnx
      >>> net = hk.transform(lambda x: hk.nets.MLP([4, 2])(x))
      >>> params = net.init(jax.random.key(0), jnp.ones((1, 3)))
      >>> model = nnx.bridge.from_haiku_layers(lambda: hk.nets.MLP([4, 2]), params)
      >>> type(model).__name__, model.layers[0].kernel.shape
      ('MLP', (3, 4))
    """
    haiku = import_framework("haiku", "haiku")

    def fallback(part: Any, convert: Conversion) -> Any:
        return part if callable(part) and not isinstance(part, haiku.Module) else NotImplemented

    convert = Conversion(
        "haiku",
        makers("haiku", "from"),
        wanted="layer of moduli",
        advice=(
            "call the whole model with `moduli.from_haiku(hk.transform_with_state(f), params, "
            "state)`, or add a rule for the class with the hook moduli_bridges"
        ),
        fallback=fallback,
    )
    held = convert.kept["haiku"] = Reading(params, {} if state is None else state, prefix)
    convert.kept["rngs"] = rngs
    made: list[Any] = []
    haiku.transform_with_state(lambda: made.append(convert(make()))).init(None)
    left = sorted(({*held.params} | {*held.state}) - held.used)
    if left and not prefix:
        raise BridgeError(
            f"of the values, {', '.join(map(repr, left[:10]))}{', ...' * (len(left) > 10)} belong "
            "to no layer that `make` made; make those layers too, or leave their values out"
        )
    return made[0]


def as_haiku_layers(
    model: Any, *inputs: Any
) -> tuple[Callable[[], Any], dict[str, Any], dict[str, Any]]:
    """Makes layers of haiku, with parameters and state, from a model of ours; values are copied.

    Args:
      model: a layer of ours, a Sequential of these, or lists, tuples and dicts of layers.
      *inputs: what it is called with. They are needed where haiku's parameters have as many axes
        as the inputs: a BatchNorm, a norm with its features first or on several axes.

    Returns:
      ``(make, params, state)``. ``make()`` makes the layer inside of a transformed function, where
      it is called as ours: ``hk.transform_with_state(lambda x: make()(x)).apply(params, state,
      None, x)``.

    Raises:
      BridgeError: a layer, or one of its settings, has no counterpart in haiku.
      MissingFrameworkError: haiku is not installed.

    Example:
      >>> import haiku as hk, jax.numpy as jnp, moduli as nnx
      >>> make, params, state = nnx.bridge.as_haiku_layers(nnx.Linear(3, 4, rngs=nnx.Rngs(0)))
      >>> net = hk.transform(lambda x: make()(x))
      >>> net.apply(params, None, jnp.ones((2, 3))).shape, sorted(params["linear"])
      ((2, 4), ['b', 'w'])
    """
    haiku = import_framework("haiku", "haiku")
    rules = makers("haiku", "to")
    rules[moduli.List] = lambda part, convert: [convert(item, n) for n, item in enumerate(part)]
    rules[moduli.Dict] = lambda part, convert: {key: convert(x, key) for key, x in part.items()}
    params: dict[str, Any] = {}
    state: dict[str, Any] = {}
    held = Writing(params, state)
    haiku.transform_with_state(lambda: _made(_converted(model, rules, held))).init(None)
    twin = _without_values(model)
    probe = Writing(initializes=True)
    if inputs:

        def init(*inputs: Any) -> Any:
            return _converted(twin, rules, probe)(*inputs)

        net = haiku.transform_with_state(init)
        wanted = jax.eval_shape(net.init, jax.random.key(0), *inputs)
        params, state = (_shaped(*p) for p in zip((params, state), wanted, strict=True))
    elif held.depend:
        path, kind = held.depend[0]
        at = f"`{moduli.errors.format_path(path)}`" if path else "the root"
        raise BridgeError(
            f"at {at} of the model stands a {kind}, whose arrays have as many axes in haiku as the "
            "inputs; give those too: `as_haiku_layers(model, x)`"
        )
    return lambda: _converted(twin, rules, Writing()), params, state


def _made(layers: Any) -> None:
    """Takes what a transformed function would return, which are arrays alone."""


def _converted(model: Any, rules: Any, held: Writing) -> Any:
    def fallback(part: Any, convert: Conversion) -> Any:
        return part if callable(part) and not isinstance(part, moduli.Module) else NotImplemented

    convert = Conversion(
        "haiku",
        rules,
        wanted="layer of haiku",
        advice=(
            "`moduli.to_haiku(model)` runs the model as it is in haiku; or add a rule for the "
            "class with the hook moduli_bridges"
        ),
        fallback=fallback,
    )
    convert.kept["haiku"] = held
    return convert(model)


def _without_values(model: Any) -> Any:
    """Returns a copy with shapes in the place of the Variables' arrays."""
    held = moduli.clone([model])
    for _, node in list(moduli.iter_graph(held)):
        if isinstance(node, moduli.Variable):
            value = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), node.get_value())
            node.set_raw_value(value)
    return held[0]


def _shaped(values: Any, wanted: Any) -> Any:
    """Returns values in the shapes that haiku's own have."""
    return {
        module: {name: x.reshape(wanted[module][name].shape) for name, x in arrays.items()}
        for module, arrays in values.items()
    }
