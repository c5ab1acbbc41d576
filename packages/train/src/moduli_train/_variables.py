"""The kinds of Variable that training adds: an optimizer's state and a metric's."""

from __future__ import annotations

from moduli import A, Variable

__all__ = ["MetricState", "OptArray", "OptState", "OptVariable"]


class OptState(Variable[A]):
    """State of an optimizer; base of :class:`OptArray` and :class:`OptVariable`."""

    __slots__ = ()


class OptArray(OptState[A]):
    """State of an optimizer that belongs to no single parameter, such as a step count."""

    __slots__ = ()


class OptVariable(OptState[A]):
    """State of an optimizer for one parameter, such as its momentum; has its metadata."""

    __slots__ = ()


class MetricState(Variable[A]):
    """What a metric has summed up so far."""

    __slots__ = ()
