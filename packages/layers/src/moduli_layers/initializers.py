"""Initializers: functions ``(key, shape, dtype) -> array`` that fill a new parameter.

All give the arrays of JAX's own (:mod:`jax.nn.initializers`), to the bit. Those that draw from a
distribution compile a handful of programs for all shapes of a model, where JAX compiles one for
each. ``zeros_init`` and ``ones_init`` return an initializer, as the others' factories do.

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
from jax.nn.initializers import ones as ones
from jax.nn.initializers import orthogonal as orthogonal
from jax.nn.initializers import zeros as zeros

from moduli_layers._drawn import drawn

glorot_normal = drawn("glorot_normal")
glorot_uniform = drawn("glorot_uniform")
he_normal = drawn("he_normal")
he_uniform = drawn("he_uniform")
kaiming_normal = he_normal
kaiming_uniform = he_uniform
lecun_normal = drawn("lecun_normal")
lecun_uniform = drawn("lecun_uniform")
normal = drawn("normal")
truncated_normal = drawn("truncated_normal")
uniform = drawn("uniform")
variance_scaling = drawn("variance_scaling")
xavier_normal = glorot_normal
xavier_uniform = glorot_uniform


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
