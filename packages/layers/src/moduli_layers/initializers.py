"""Initializers: functions ``(key, shape, dtype) -> array`` that fill a new parameter.

All are JAX's own (:mod:`jax.nn.initializers`), gathered here under the names that flax.nnx users
know; ``zeros_init`` and ``ones_init`` return an initializer, as the others' factories do.

Example:
  >>> import jax, moduli_layers.initializers as initializers
  >>> initializers.lecun_normal()(jax.random.key(0), (3, 4)).shape
  (3, 4)
  >>> float(initializers.zeros_init()(jax.random.key(0), (2,)).sum())
  0.0
"""

from __future__ import annotations

from jax.nn.initializers import Initializer as Initializer
from jax.nn.initializers import constant as constant
from jax.nn.initializers import delta_orthogonal as delta_orthogonal
from jax.nn.initializers import glorot_normal as glorot_normal
from jax.nn.initializers import glorot_uniform as glorot_uniform
from jax.nn.initializers import he_normal as he_normal
from jax.nn.initializers import he_uniform as he_uniform
from jax.nn.initializers import kaiming_normal as kaiming_normal
from jax.nn.initializers import kaiming_uniform as kaiming_uniform
from jax.nn.initializers import lecun_normal as lecun_normal
from jax.nn.initializers import lecun_uniform as lecun_uniform
from jax.nn.initializers import normal as normal
from jax.nn.initializers import ones as ones
from jax.nn.initializers import orthogonal as orthogonal
from jax.nn.initializers import truncated_normal as truncated_normal
from jax.nn.initializers import uniform as uniform
from jax.nn.initializers import variance_scaling as variance_scaling
from jax.nn.initializers import xavier_normal as xavier_normal
from jax.nn.initializers import xavier_uniform as xavier_uniform
from jax.nn.initializers import zeros as zeros


def zeros_init() -> Initializer:
    """Returns the initializer that fills with zeros.

    Returns:
      :func:`jax.nn.initializers.zeros`.
    """
    return zeros


def ones_init() -> Initializer:
    """Returns the initializer that fills with ones.

    Returns:
      :func:`jax.nn.initializers.ones`.
    """
    return ones
