"""Every name that flax.nnx's layers have is there, with flax's arguments, in order, by default."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import pytest

import moduli

nnx = pytest.importorskip("flax.nnx")

FAMILIES = {module.name for module in pkgutil.iter_modules(nnx.nn.__path__, "flax.nnx.nn.")}
ELSEWHERE = {"flax.linen.pooling", "flax.nnx.helpers"}  # pooling and Sequential
METHODS = ("__init__", "__call__", "attend", "init_cache", "initialize_carry")
RENAMED = {("LoRALinear.__call__", "x"): "inputs"}  # it is a Linear, and is called like one
OTHERS = {"LoRAParam", "Dict", "List", "TrainState"}  # no layers: core's, or not ported


def layer_names() -> list[str]:
    """Returns the public names of flax.nnx that come from its files of layers and activations."""
    found = ["with_partitioning"]  # with_metadata takes flax's hooks among its **metadata
    for name, thing in vars(nnx).items():
        known = getattr(thing, "__module__", None) in FAMILIES | ELSEWHERE
        by_jax = callable(thing) and getattr(jax.nn, name, None) is thing
        if not name.startswith("_") and name not in OTHERS and (known or by_jax):
            found.append(name)
    return sorted(found)


LAYERS = layer_names()


def signatures(name: str) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """Yields flax's and our parameters of a function, or of each of a class's methods."""
    theirs, ours = getattr(nnx, name), getattr(moduli, name)
    if not inspect.isclass(theirs):
        yield name, inspect.signature(theirs).parameters, inspect.signature(ours).parameters
        return
    for method in METHODS:
        if hasattr(theirs, method):
            pair = [inspect.signature(getattr(kind, method)) for kind in (theirs, ours)]
            yield f"{name}.{method}", pair[0].parameters, pair[1].parameters


def plain(value: Any) -> Any:
    """Returns what can be compared of a default: a number, a word, a dtype, a sequence; or None."""
    if callable(value) and not inspect.isclass(value):
        return None  # a function of each library's own, compared by what it does elsewhere
    return {} if isinstance(value, Mapping) else getattr(value, "__name__", value)


def test_the_families_were_found() -> None:
    some = {
        "Linear",
        "RNN",
        "MultiHeadAttention",
        "Sequential",
        "avg_pool",
        "relu",
        "make_causal_mask",
    }
    assert some <= set(LAYERS)


@pytest.mark.parametrize("name", LAYERS)
def test_arguments_are_flaxs(name: str) -> None:
    for place, theirs, ours in signatures(name):
        renamed = {key: RENAMED.get((place, key), key) for key in theirs}
        assert set(renamed.values()) <= set(ours), place
        for key, parameter in theirs.items():
            mine = ours[renamed[key]]
            assert mine.kind == parameter.kind, (place, key)
            assert (mine.default is mine.empty) == (parameter.default is parameter.empty)
            assert repr(plain(mine.default)) == repr(plain(parameter.default)), (place, key)
        in_order = [renamed[key] for key, p in theirs.items() if p.kind == p.POSITIONAL_OR_KEYWORD]
        assert list(ours)[: len(in_order)] == in_order, place


def test_initializers_have_flaxs_names() -> None:
    theirs = {name for name in vars(nnx.initializers) if not name.startswith("_")}
    assert theirs - set(vars(moduli.initializers)) <= {"tp", "DtypeLikeInexact", "annotations"}
