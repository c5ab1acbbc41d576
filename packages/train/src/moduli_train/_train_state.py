"""TrainState: structure, parameters and the optimizer's state as one immutable pytree."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Generic, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp

import moduli
from moduli.errors import StructureError
from moduli_train._own_arrays import copy_if_shared

if TYPE_CHECKING:
    from typing import Self

    import optax

__all__ = ["TrainState"]

M = TypeVar("M")


@dataclass_transform(frozen_default=True)
class _Record:
    """Base of frozen dataclasses that are JAX pytrees; each subclass becomes one."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclasses.dataclass(frozen=True)(cls)  # type: ignore[call-overload]
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]
        static = [f.name for f in fields if not f.metadata.get("pytree_node", True)]
        jax.tree_util.register_dataclass(
            cls, data_fields=[f.name for f in fields if f.name not in static], meta_fields=static
        )

    def replace(self, **updates: Any) -> Self:
        """Returns a copy with other values of some fields."""
        return dataclasses.replace(self, **updates)  # type: ignore[type-var]


class TrainState(_Record, Generic[M]):
    """What a training step in functional style takes and returns; made by :meth:`create`.

    A subclass may have more fields, such as ``batch_stats: nnx.State``: it is a frozen dataclass
    and a pytree like this one. A field with ``metadata={"pytree_node": False}`` is static.

    Attributes:
      graphdef: the model's structure.
      params: its parameters.
      opt_state: the optimizer's state.
      step: how many updates were made.
      tx: the optax gradient transformation.

    Example:
      >>> import jax, optax, moduli as nnx
      >>> graphdef, params = nnx.split(nnx.Dict({"w": nnx.Param(jax.numpy.array(3.0))}))
      >>> state = nnx.TrainState.create(graphdef, params=params, tx=optax.sgd(0.5))
      >>> @jax.jit
      ... def step(state):
      ...     def loss(params):
      ...         return nnx.merge(state.graphdef, params)["w"].value ** 2
      ...     return state.apply_gradients(jax.grad(loss)(state.params))
      >>> state = step(state)
      >>> float(state.params["w"].value), int(state.step)
      (0.0, 1)
    """

    graphdef: moduli.GraphDef[M]
    params: moduli.State
    opt_state: Any
    step: jax.Array
    tx: optax.GradientTransformation = dataclasses.field(metadata={"pytree_node": False})

    @classmethod
    def create(
        cls,
        graphdef: moduli.GraphDef[M],
        *,
        params: moduli.State,
        tx: optax.GradientTransformation,
        step: int = 0,
        **kwargs: Any,
    ) -> Self:
        """Makes the first state.

        Args:
          graphdef: the model's structure.
          params: its parameters.
          tx: an optax gradient transformation.
          step: how many updates were made before.
          **kwargs: values of a subclass's own fields.

        Returns:
          The state. Its arrays are copies, and none stands in it twice: it may be donated, which
          deletes none of the model's.
        """
        params, kwargs = jax.tree.map(_copied_array, (params, kwargs))
        return cls(
            graphdef=graphdef,
            params=params,
            opt_state=jax.tree.map(copy_if_shared(params), tx.init(params)),  # type: ignore[arg-type]
            step=jnp.asarray(step),
            tx=tx,
            **kwargs,
        )

    if TYPE_CHECKING:  # the fields of a subclass

        def __getattr__(self, key: str) -> Any: ...

    def apply(self, state: moduli.State | str, /, *states: moduli.State | str) -> Any:
        """Calls the model: ``state.apply("params")(x)`` returns the result and what it left.

        Args:
          state: a State, or the name of a field that holds one.
          *states: more of them; together they are all of the model.

        Returns:
          What is called like the model or a method of it; see :meth:`moduli.GraphDef.apply`.

        Raises:
          StructureError: a field of that name holds no State.
        """
        return self.graphdef.apply(*[self._state(item) for item in (state, *states)])

    def _state(self, item: moduli.State | str) -> Any:
        if not isinstance(item, str):
            return item
        value = getattr(self, item)
        if not isinstance(value, moduli.State):
            raise StructureError(
                f"apply takes States and names of fields that hold one; {type(self).__name__}."
                f"{item} holds a {type(value).__name__}"
            )
        return value

    def apply_gradients(self, grads: moduli.State, **kwargs: Any) -> Self:
        """Returns the state after one update.

        Args:
          grads: the gradients of :attr:`params`.
          **kwargs: new values of other fields.
        """
        import optax

        updates, opt_state = self.tx.update(grads, self.opt_state, self.params)  # type: ignore[arg-type]
        params = optax.apply_updates(self.params, updates)  # type: ignore[arg-type]
        return self.replace(params=params, opt_state=opt_state, step=self.step + 1, **kwargs)


def _copied_array(value: Any) -> Any:
    return jnp.copy(value) if isinstance(value, jax.Array) else value
