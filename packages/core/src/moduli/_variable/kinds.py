"""The kinds of Variables: what filters, optimizers and checkpoints tell apart."""

from __future__ import annotations

from moduli._base.type_variables import A
from moduli._variable.box import Variable

__all__ = [
    "BatchStat",
    "Cache",
    "Intermediate",
    "Param",
    "Perturbation",
    "RngCount",
    "RngKey",
    "RngState",
]


class Param(Variable[A]):
    """A parameter that training changes: kernels, biases, scales."""

    __slots__ = ()


class BatchStat(Variable[A]):
    """A running statistic of the batches seen, such as BatchNorm's mean and variance."""

    __slots__ = ()


class Cache(Variable[A]):
    """A value kept from step to step, such as attention's keys and values when decoding."""

    __slots__ = ()


class Intermediate(Variable[A]):
    """A value inside the model, stored by ``Module.sow`` for looking at it later."""

    __slots__ = ()


class Perturbation(Intermediate[A]):
    """Zeros added by ``Module.perturb``, whose gradient is that of the value they are added to."""

    __slots__ = ()


class RngState(Variable[A]):
    """State of a random stream; base of :class:`RngKey` and :class:`RngCount`."""

    __slots__ = ()


class RngKey(RngState[A]):
    """The key from which a random stream derives its keys."""

    __slots__ = ()


class RngCount(RngState[A]):
    """How many keys a random stream has given (uint32)."""

    __slots__ = ()
