"""Activation functions: JAX's own, from :mod:`jax.nn`, under the names of flax.nnx.

Each takes a Variable where it takes an array.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from moduli_layers import _variables

celu = _variables.takes_variables(jax.nn.celu)
elu = _variables.takes_variables(jax.nn.elu)
gelu = _variables.takes_variables(jax.nn.gelu)
glu = _variables.takes_variables(jax.nn.glu)
hard_sigmoid = _variables.takes_variables(jax.nn.hard_sigmoid)
hard_silu = _variables.takes_variables(jax.nn.hard_silu)
hard_tanh = _variables.takes_variables(jax.nn.hard_tanh)
identity = _variables.takes_variables(jax.nn.identity)
leaky_relu = _variables.takes_variables(jax.nn.leaky_relu)
log_sigmoid = _variables.takes_variables(jax.nn.log_sigmoid)
log_softmax = _variables.takes_variables(jax.nn.log_softmax)
logsumexp = _variables.takes_variables(jax.nn.logsumexp)
mish = _variables.takes_variables(jax.nn.mish)
one_hot = _variables.takes_variables(jax.nn.one_hot)
relu = _variables.takes_variables(jax.nn.relu)
relu6 = _variables.takes_variables(jax.nn.relu6)
selu = _variables.takes_variables(jax.nn.selu)
sigmoid = _variables.takes_variables(jax.nn.sigmoid)
silu = _variables.takes_variables(jax.nn.silu)
soft_sign = _variables.takes_variables(jax.nn.soft_sign)
softmax = _variables.takes_variables(jax.nn.softmax)
softplus = _variables.takes_variables(jax.nn.softplus)
squareplus = _variables.takes_variables(jax.nn.squareplus)
standardize = _variables.takes_variables(jax.nn.standardize)
tanh = _variables.takes_variables(jnp.tanh)
hard_swish = hard_silu
swish = silu
