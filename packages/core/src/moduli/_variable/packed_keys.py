"""Typed PRNG keys in pickles."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moduli._base.compat import is_key_array

__all__ = ["pack_keys", "unpack_keys"]


class _PackedKey:
    """Typed PRNG keys as plain data: numpy cannot pickle their dtype."""

    __slots__ = ("data", "impl")

    def __init__(self, data: np.ndarray, impl: str):
        self.data, self.impl = data, impl


def pack_keys(value: Any) -> Any:
    """Returns a value with plain data in the place of typed keys."""

    def pack(leaf: Any) -> Any:
        if not is_key_array(leaf):
            return leaf
        return _PackedKey(np.asarray(jax.random.key_data(leaf)), str(jax.random.key_impl(leaf)))

    return jax.tree.map(pack, value)


def unpack_keys(value: Any) -> Any:
    """Returns what :func:`pack_keys` was given."""

    def unpack(leaf: Any) -> Any:
        if not isinstance(leaf, _PackedKey):
            return leaf
        return jax.random.wrap_key_data(jnp.asarray(leaf.data), impl=leaf.impl)

    return jax.tree.map(unpack, value)
