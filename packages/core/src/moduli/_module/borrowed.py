"""A layer's call on an object that is no module, as in ``Conv.__call__(namespace, x)``."""

from __future__ import annotations

import inspect
from typing import Any

__all__ = ["Borrowed"]


class Borrowed:
    """An object as a class of layers sees it: what the object lacks is the class's.

    Whoever calls a layer's ``__call__`` with an object of another kind gives it the attributes that
    flax's layer has, and cannot know the methods by which this one is written. An attribute of ours
    alone is as the constructor has it by default.

    Args:
      cls: the class of the layer.
      lender: the object; what is written to the layer is written to it.
    """

    def __init__(self, cls: type, lender: object):
        vars(self).update(_cls=cls, _lender=lender)

    def __getattr__(self, name: str) -> Any:
        cls, lender = vars(self)["_cls"], vars(self)["_lender"]
        try:
            return getattr(lender, name)
        except AttributeError:
            found = inspect.getattr_static(cls, name, _MISSING)
            if found is _MISSING:
                parameter = inspect.signature(cls).parameters.get(name)
                if parameter is None or parameter.default is parameter.empty:
                    raise
                return parameter.default
            get = getattr(type(found), "__get__", None)
            return found if get is None else get(found, self, cls)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(vars(self)["_lender"], name, value)


_MISSING = object()
