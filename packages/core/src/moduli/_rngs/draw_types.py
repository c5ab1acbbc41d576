"""What type checkers see of the draws of Rngs and RngStream; a program does not import it.

``rngs.normal`` takes what ``jax.random.normal`` takes after the key, and ``rngs.lecun_normal`` what
``jax.nn.initializers.lecun_normal`` takes; ``moduli._rngs.streams`` sets the methods.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

import jax
from jax.nn import initializers

__all__ = ["Draws"]

P = ParamSpec("P")
R = TypeVar("R")


class _Draw(Generic[P, R]):
    """A method that is a function of ``jax.random`` without its key."""

    def __init__(self, function: Callable[Concatenate[Any, P], R]) -> None: ...

    def __get__(self, instance: object, owner: type) -> Callable[P, R]: ...


class _Initializer(Generic[P]):
    """A method that makes an initializer which draws its key itself."""

    def __init__(self, factory: Callable[P, Any]) -> None: ...

    def __get__(self, instance: object, owner: type) -> Callable[P, Callable[..., jax.Array]]: ...


class Draws:
    """A base of Rngs and RngStream for type checkers."""

    ball = _Draw(jax.random.ball)
    bernoulli = _Draw(jax.random.bernoulli)
    beta = _Draw(jax.random.beta)
    binomial = _Draw(jax.random.binomial)
    bits = _Draw(jax.random.bits)
    categorical = _Draw(jax.random.categorical)
    cauchy = _Draw(jax.random.cauchy)
    chisquare = _Draw(jax.random.chisquare)
    choice = _Draw(jax.random.choice)
    dirichlet = _Draw(jax.random.dirichlet)
    double_sided_maxwell = _Draw(jax.random.double_sided_maxwell)
    exponential = _Draw(jax.random.exponential)
    f = _Draw(jax.random.f)
    gamma = _Draw(jax.random.gamma)
    generalized_normal = _Draw(jax.random.generalized_normal)
    geometric = _Draw(jax.random.geometric)
    gumbel = _Draw(jax.random.gumbel)
    laplace = _Draw(jax.random.laplace)
    loggamma = _Draw(jax.random.loggamma)
    logistic = _Draw(jax.random.logistic)
    lognormal = _Draw(jax.random.lognormal)
    maxwell = _Draw(jax.random.maxwell)
    multinomial = _Draw(jax.random.multinomial)
    multivariate_normal = _Draw(jax.random.multivariate_normal)
    normal = _Draw(jax.random.normal)
    orthogonal = _Draw(jax.random.orthogonal)
    pareto = _Draw(jax.random.pareto)
    permutation = _Draw(jax.random.permutation)
    poisson = _Draw(jax.random.poisson)
    rademacher = _Draw(jax.random.rademacher)
    randint = _Draw(jax.random.randint)
    rayleigh = _Draw(jax.random.rayleigh)
    t = _Draw(jax.random.t)
    triangular = _Draw(jax.random.triangular)
    truncated_normal = _Draw(jax.random.truncated_normal)
    uniform = _Draw(jax.random.uniform)
    wald = _Draw(jax.random.wald)
    weibull_min = _Draw(jax.random.weibull_min)
    delta_orthogonal = _Initializer(initializers.delta_orthogonal)
    glorot_normal = _Initializer(initializers.glorot_normal)
    glorot_uniform = _Initializer(initializers.glorot_uniform)
    he_normal = _Initializer(initializers.he_normal)
    he_uniform = _Initializer(initializers.he_uniform)
    kaiming_normal = _Initializer(initializers.kaiming_normal)
    kaiming_uniform = _Initializer(initializers.kaiming_uniform)
    lecun_normal = _Initializer(initializers.lecun_normal)
    lecun_uniform = _Initializer(initializers.lecun_uniform)
    variance_scaling = _Initializer(initializers.variance_scaling)
    xavier_normal = _Initializer(initializers.xavier_normal)
    xavier_uniform = _Initializer(initializers.xavier_uniform)
