"""Optimizer: an optax gradient transformation and its state, next to a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic

import jax
import jax.numpy as jnp

import moduli
from moduli.errors import StructureError, VariableError
from moduli.lowlevel import folded
from moduli_train._forms import FORMS, Encoding, initialize
from moduli_train._gradients import is_variable, match_gradients, raw_value
from moduli_train._meshes import update_on_mesh
from moduli_train._misuse import MISSING, check_transformation, check_update
from moduli_train._of_model import bound_to
from moduli_train._opt_state import (
    as_optax_made_it,
    box_replaced,
    check_made_for,
    check_same_parameters,
    new_values,
    to_opt_state,
    unwrap,
    write,
)
from moduli_train._variables import OptState

if TYPE_CHECKING:
    import optax
    from typing_extensions import TypeVar

    M = TypeVar("M", default=Any)
else:
    from typing import TypeVar

    M = TypeVar("M")

__all__ = ["ModelAndOptimizer", "Optimizer"]


class Optimizer(moduli.Pytree, Generic[M]):
    """Updates the parameters of a model with an optax gradient transformation.

    It holds the state of the transformation, not the model. It is a node of a graph like a module:
    pass it to ``moduli.jit``, save it in a checkpoint, ``split`` it.

    Args:
      model: the model whose parameters it will update.
      tx: an optax gradient transformation, such as ``optax.adam(1e-3)``.
      wrt: a filter that selects the Variables to update. Take gradients with respect to the same
        filter.
      graph: accepted, without an effect: a mode of flax.nnx.

    Attributes:
      step: how many updates were made, an OptState (uint32).
      tx: the gradient transformation.
      opt_state: its state. Where optax keeps a value for each parameter there is a State of
        :class:`OptVariable`, with the parameters' paths and metadata.

    Raises:
      StructureError: if ``wrt`` selects nothing of the model.
      VariableError: (a TypeError) if ``tx`` is no gradient transformation.

    Note:
      optax is given the parameters as a State. If ``tx.init`` raises for it, as for masks or labels
      that are plain dicts or lists, it is given nested dicts (or lists) from then on.

    Example:
      >>> import moduli as nnx, optax
      >>> class Model(nnx.Module):
      ...     def __init__(self):
      ...         self.w = nnx.Param(3.0)
      >>> model = Model()
      >>> optimizer = nnx.Optimizer(model, optax.sgd(0.5), wrt=nnx.Param)
      >>> grads = nnx.grad(lambda model: model.w.value**2)(model)
      >>> updates = optimizer.update(model, grads)
      >>> float(model.w), int(optimizer.step)
      (0.0, 1)
    """

    _form: str = FORMS[0]
    _may_carry = frozenset(("tx", "wrt"))  # masks, labels and filters; nothing of it is trained

    def __init__(
        self,
        model: M,
        tx: optax.GradientTransformation,
        *,
        wrt: Any = moduli.Param,
        graph: bool | None = None,
    ):
        check_transformation(model, tx)
        try:
            params = moduli.state(model, wrt)
        except StructureError as error:
            if not isinstance(wrt, str):  # it is not about the filter
                raise
            raise StructureError(f"Optimizer got wrt={wrt!r}: {error}") from None
        if not params:
            kinds = sorted({type(leaf).__name__ for leaf in _leaves(moduli.state(model))})
            raise StructureError(
                f"the filter wrt={wrt!r} selects nothing of the {type(model).__name__}, which "
                f"holds {kinds or 'no values'}; there would be nothing to update"
            )
        self.step = OptState(jnp.zeros((), jnp.uint32))
        self.tx = tx
        form, state = initialize(tx.init, params)
        if form != FORMS[0]:  # most optimizers have no such attribute, and flax's have none
            self._form = form
        self.opt_state = moduli.data(to_opt_state(state, params))
        self.wrt = tuple(wrt) if isinstance(wrt, list) else wrt

    @folded
    def update(self, model: M = MISSING, grads: Any = MISSING, /, **kwargs: Any) -> Any:
        """Makes one step: changes the model's parameters, the optimizer's state and ``step``.

        Args:
          model: the model that was given to the constructor, or one of the same structure.
          grads: the gradients, a State as ``moduli.grad`` returns it. What ``wrt`` does not select
            is left out, so that one gradient may serve several optimizers.
          **kwargs: more arguments of ``tx.update``, for transformations that take some, such as
            the ``value`` for ``optax.contrib.reduce_on_plateau``. Variables in them are replaced
            by their values. A function of the parameters, such as the ``value_fn`` of a line
            search, is made of one of a model by :func:`of_model`.

        Returns:
          The updates that were added to the parameters, a State of plain arrays.

        Raises:
          StructureError: if the gradients, the model and the optimizer's state do not fit
            together; nothing is changed then.
          VariableError: (a TypeError) if arguments are missing or swapped.
        """
        import optax

        check_update(model, grads, kwargs)
        params = moduli.state(model, self.wrt)
        if not all(map(is_variable, jax.tree.leaves(self.opt_state, is_leaf=is_variable))):
            self.opt_state = moduli.data(box_replaced(self.opt_state, params))
        gradients = match_gradients(params, grads, model, self.wrt)
        leaves, treedef = jax.tree.flatten(params, is_leaf=is_variable)
        values = treedef.unflatten(map(raw_value, leaves))
        form = Encoding(params, self._form) if self._form != FORMS[0] else None
        encode, decode = (form.encode, form.decode) if form else (_same, _same)
        more = unwrap(bound_to(model, self.wrt, kwargs)) if kwargs else {}
        try:
            updates, opt_state = update_on_mesh(
                self.tx.update,
                encode(treedef.unflatten(gradients)),
                unwrap(as_optax_made_it(self.opt_state)),
                encode(values),
                form.arguments(more) if form else more,
            )
        except (TypeError, ValueError):
            check_same_parameters(self.opt_state, params)
            check_made_for(self.opt_state, self.tx.init, encode(params), params)
            raise
        updates = decode(updates)
        pairs = new_values(self.opt_state, opt_state)
        new_params = treedef.flatten_up_to(optax.apply_updates(values, updates))
        _write_params(model, params, leaves, new_params)
        write(pairs)
        self.step.value = self.step.value + 1
        return updates


class ModelAndOptimizer(Optimizer[M]):
    """An optimizer that holds its model, so that a training step has one argument.

    Args:
      model: the model whose parameters it will update.
      tx: an optax gradient transformation.
      wrt: a filter that selects the Variables to update.

    Attributes:
      model: the model.

    Example:
      >>> import moduli as nnx, optax
      >>> trainer = nnx.ModelAndOptimizer(nnx.Dict({"w": nnx.Param(3.0)}), optax.sgd(0.5))
      >>> grads = nnx.grad(lambda model: model["w"].value**2)(trainer.model)
      >>> updates = trainer.update(grads)
      >>> float(trainer.model["w"])
      0.0
    """

    model: M

    def __init__(
        self,
        model: M,
        tx: optax.GradientTransformation,
        *,
        wrt: Any = moduli.Param,
        graph: bool | None = None,
    ):
        super().__init__(model, tx, wrt=wrt)
        self.model = model

    def update(self, grads: Any = MISSING, /, *more: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Makes one step; see :meth:`Optimizer.update`."""
        if more or grads is MISSING:
            raise VariableError(
                f"{type(self).__name__}.update got {len(more) + (grads is not MISSING)} positional "
                "arguments; it holds its model, so write `optimizer.update(grads)`"
            )
        return super().update(self.model, grads, **kwargs)


def _same(tree: Any) -> Any:
    return tree


def _leaves(state: moduli.State) -> list[Any]:
    return jax.tree.leaves(state, is_leaf=is_variable)


def _write_params(model: Any, params: moduli.State, leaves: list[Any], new: list[Any]) -> None:
    if all(map(is_variable, leaves)):
        for variable, value in zip(leaves, new, strict=True):
            variable.set_raw_value(value)
        return
    boxed = [
        leaf.replace(value) if is_variable(leaf) else value
        for leaf, value in zip(leaves, new, strict=True)
    ]
    treedef = jax.tree.structure(params, is_leaf=is_variable)
    moduli.update(model, treedef.unflatten(boxed))
