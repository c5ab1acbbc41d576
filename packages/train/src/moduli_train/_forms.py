"""The forms in which optax may see the parameters: a State, or plain nested containers.

optax matches masks and labels with the parameters as pytrees, so a plain dict of labels matches no
State. A transformation that refuses the State is given the same values in plain containers, and
what it returns goes back into a State. A gradient transformation is opaque: that its ``init``
raises is the only sign that it wants another form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

import moduli
from moduli_train._gradients import is_variable

__all__ = ["FORMS", "Encoding", "initialize"]

FORMS = ("state", "dict", "list", "str")
"""State; dicts with int keys for lists; lists; dicts with ints written as str."""


class Encoding:
    """Turns States with the structure of the parameters into a form and back.

    Args:
      params: the parameters.
      form: one of :data:`FORMS`.
    """

    def __init__(self, params: moduli.State, form: str):
        self.form = form
        leaves, self._treedef = jax.tree.flatten(params, is_leaf=is_variable)
        numbered = self._treedef.unflatten(range(len(leaves)))
        # "10" sorts before "2": the forms need not keep the order of the leaves.
        self._order, self._encoded = jax.tree.flatten(_plain(numbered, form))

    def encode(self, tree: Any) -> Any:
        """Returns the form of a State with the parameters' structure; anything else as it is."""
        if self.form == "state" or not isinstance(tree, moduli.State):
            return tree
        leaves, treedef = jax.tree.flatten(tree, is_leaf=is_variable)
        if treedef != self._treedef:
            return tree
        return self._encoded.unflatten([leaves[number] for number in self._order])

    def decode(self, tree: Any) -> Any:
        """Returns the State of something encoded."""
        if self.form == "state":
            return tree
        parts = self._encoded.flatten_up_to(tree)
        return self._treedef.unflatten(
            part for _, part in sorted(zip(self._order, parts, strict=True), key=lambda p: p[0])
        )

    def arguments(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Returns more arguments of ``tx.update``: States encoded, functions given States."""
        if self.form == "state":
            return dict(kwargs)
        return {
            name: self._given_states(value) if callable(value) else self.encode(value)
            for name, value in kwargs.items()
        }

    def _given_states(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def with_state(params: Any, *args: Any, **kwargs: Any) -> Any:
            return function(self.decode(params), *args, **kwargs)

        return with_state


def initialize(init: Callable[[Any], Any], params: moduli.State) -> tuple[str, Any]:
    """Returns the first form that a transformation takes, and the state that it makes of it.

    Raises:
      Exception: what it raises for a State, if it takes no form.
    """
    try:
        return FORMS[0], init(params)
    except Exception as error:
        for form in FORMS[1:]:
            try:
                return form, init(Encoding(params, form).encode(params))
            except Exception:  # the first error is the one to show
                continue
        error.add_note(_hint(params))
        raise


def _plain(tree: Any, form: str) -> Any:
    if not isinstance(tree, Mapping):
        return tree
    inner = {key: _plain(value, form) for key, value in tree.items()}
    if form == "list" and inner and set(inner) == set(range(len(inner))):
        return [inner[number] for number in range(len(inner))]
    if form == "str":
        return {str(key) if isinstance(key, int) else key: inner[key] for key in inner}
    return inner


def _hint(params: moduli.State) -> str:
    names = ", ".join(map(repr, params))
    return (
        "raised by the `init` of the gradient transformation. Labels and masks have the structure "
        "of the parameters, or of their upper part: a nested dict, `nnx.State({...})`, or a "
        f"function of the parameters that returns one. The parameters begin with {names}; "
        "`nnx.to_pure_dict(nnx.state(model, wrt))` shows them all"
    )
