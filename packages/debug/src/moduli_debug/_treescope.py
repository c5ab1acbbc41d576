"""How treescope draws modules, Variables and States; imported where treescope is installed.

treescope's registries stay as they are: what it has to know of moduli is given to it for the length
of one drawing.
"""

from __future__ import annotations

from typing import Any

import moduli

__all__ = ["Drawn"]


class Drawn:
    """An object, drawn by treescope for a notebook.

    Args:
      value: the object.
      text: what stands for it where a notebook cannot show HTML.
    """

    def __init__(self, value: Any, text: str):
        import treescope

        self._text = text
        with (
            treescope.active_renderer.set_scoped(
                treescope.active_renderer.get().extended_with(handlers=[_draw])
            ),
            treescope.active_autovisualizer.set_scoped(treescope.ArrayAutovisualizer()),
        ):
            self._html = treescope.render_to_html(value, ignore_exceptions=True)

    def __repr__(self) -> str:
        return self._text

    def _repr_html_(self) -> str:
        return self._html


def _draw(node: Any, path: str | None, subtree_renderer: Any) -> Any:
    from treescope import formatting_util, repr_lib

    if isinstance(node, moduli.Variable):
        attributes = {"value": node.get_raw_value(), **node.get_metadata()}
    elif isinstance(node, moduli.State):
        return repr_lib.handle_custom_mapping(node, path, subtree_renderer)
    elif isinstance(node, moduli.Pytree) and not isinstance(node, (list, dict)):
        attributes = {name: v for name, v in vars(node).items() if not name.startswith("_moduli")}
    else:
        return NotImplemented
    color = formatting_util.color_from_string(type(node).__qualname__)
    return repr_lib.render_object_constructor(
        object_type=type(node),
        attributes=attributes,
        path=path,
        subtree_renderer=subtree_renderer,
        color=color if isinstance(node, moduli.Module) else None,
    )
