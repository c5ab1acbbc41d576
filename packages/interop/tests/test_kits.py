"""``check_format`` and ``check_bridge``: each check fails on what is broken in its way."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import time
from typing import Any

import jax.numpy as jnp
import pytest

import moduli as nnx
from moduli.bridge import Bridge, LayerRule
from moduli.testing import (
    BridgeCase,
    FormatCase,
    check_bridge,
    check_format,
    parametrize_with_checks,
)
from moduli_interop import CheckpointError, Format
from moduli_interop._npz.layout import is_ours
from moduli_interop._npz.read import read
from moduli_interop._npz.write import write

# -- formats ---------------------------------------------------------------------------------------

HEAD = b"mine\n"


def save_mine(path: str, checkpoint: Any) -> None:
    """npz under another name and head, written whole or not at all."""
    write(path + ".part", checkpoint)
    content = pathlib.Path(path + ".part").read_bytes()
    pathlib.Path(path + ".part").write_bytes(HEAD + content)
    pathlib.Path(path + ".part").replace(path)


def load_mine(path: str) -> Any:
    content = pathlib.Path(path).read_bytes()
    if not content.startswith(HEAD):
        raise CheckpointError(f"{path} does not begin with {HEAD!r}")
    inner = pathlib.Path(path + ".inner")
    inner.write_bytes(content[len(HEAD) :])
    try:
        checkpoint = read(str(inner))
        leaves = [
            dataclasses.replace(leaf, value=_in_memory(leaf.value)) for leaf in checkpoint.leaves
        ]
        return dataclasses.replace(checkpoint, leaves=tuple(leaves))
    finally:
        inner.unlink()


def _in_memory(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_in_memory, value))
    bits = value.read_bits()
    return dataclasses.replace(value, read=lambda: bits, owned=False)


def is_mine(path: str) -> bool:
    file = pathlib.Path(path)
    return file.is_file() and file.read_bytes().startswith(HEAD)


def mine(**changes: Any) -> Format:
    made = Format("mine_of_kit", (".mine",), save_mine, load_mine, is_mine)
    return dataclasses.replace(made, **changes)


def save_halves(path: str, checkpoint: Any) -> None:
    """Keeps floats in float32 and loses the rest."""
    leaves = {}
    for leaf in checkpoint.leaves:
        if not hasattr(leaf.value, "read_bits") or leaf.value.key_impl:
            raise CheckpointError("only arrays")
        leaves["/".join(map(str, leaf.path))] = leaf.value.read_bits().tolist()
    pathlib.Path(path).write_text(json.dumps(leaves))


def forgets_metadata(path: str, checkpoint: Any) -> None:
    save_mine(path, dataclasses.replace(checkpoint, metadata={}))


def trusts_bytes(path: str) -> Any:
    content = bytearray(pathlib.Path(path).read_bytes())
    return load_mine(path) if len(content) > 10 else ValueError


def raises_others(path: str) -> Any:
    try:
        return load_mine(path)
    except CheckpointError as error:
        raise KeyError("leaf") from error


def writes_in_place(path: str, checkpoint: Any) -> None:
    pathlib.Path(path).write_bytes(b"")
    save_mine(path, checkpoint)


def writes_in_place_when_all_is_read(path: str, checkpoint: Any) -> None:
    aside = pathlib.Path(f"{path}.aside")
    save_mine(str(aside), checkpoint)
    content = aside.read_bytes()
    aside.unlink()
    pathlib.Path(path).write_bytes(content)


SHARED: dict[str, Any] = {}


def races(path: str, checkpoint: Any) -> None:
    SHARED["path"] = path
    time.sleep(0.01)
    save_mine(SHARED["path"], checkpoint)


BROKEN_FORMATS = [
    ("claims_own_names", FormatCase(mine(suffixes=".mine"), name="suffixes")),
    ("claims_own_names", FormatCase(mine(suffixes=("mine",)), name="no dot")),
    ("claims_own_names", FormatCase(mine(suffixes=(".npz",)), name="suffix of ours")),
    ("claims_own_names", FormatCase(mine(name="npz"), name="name of ours")),
    ("keeps_every_bit", FormatCase(mine(save=save_halves), name="lossy")),
    ("keeps_kinds_and_sharing", FormatCase(mine(save=forgets_metadata), name="no metadata")),
    ("is_found_by_suffix_and_content", FormatCase(mine(recognizes=lambda p: True), name="all")),
    ("is_found_by_suffix_and_content", FormatCase(mine(recognizes=lambda p: False), name="none")),
    (
        "is_found_by_suffix_and_content",
        FormatCase(
            mine(recognizes=lambda p: pathlib.Path(p).read_bytes()[:5] == HEAD), name="folders"
        ),
    ),
    ("refuses_damage", FormatCase(mine(load=raises_others), name="KeyError")),
    ("refuses_damage", FormatCase(mine(load=trusts_bytes), name="not a checkpoint")),
    ("keeps_the_old_file", FormatCase(mine(save=writes_in_place), name="in place")),
    (
        "keeps_the_old_file",
        FormatCase(mine(save=writes_in_place_when_all_is_read), name="in place, at the end"),
    ),
    ("runs_in_threads", FormatCase(mine(save=races), name="races")),
]


@parametrize_with_checks([FormatCase("npz"), FormatCase(mine())])
def test_a_good_format_passes(case: FormatCase, check: Any) -> None:
    check(case)


@pytest.mark.parametrize(
    ("name", "case"), BROKEN_FORMATS, ids=[f"{c.title()}-{n}" for n, c in BROKEN_FORMATS]
)
def test_each_check_fails_on_a_format_broken_so(name: str, case: FormatCase) -> None:
    (check,) = (check for check in case.checks() if check.__name__ == name)
    with pytest.raises((AssertionError, CheckpointError, OSError)) as caught:
        check(case)
    assert str(caught.value)


def test_every_check_has_a_broken_format() -> None:
    assert {c.__name__ for c in FormatCase("npz").checks()} == {n for n, _ in BROKEN_FORMATS}
    with pytest.raises(AssertionError, match="no installed plugin has a format 'zzz'"):
        check_format("zzz")
    assert not is_ours("nowhere")


# -- bridges ---------------------------------------------------------------------------------------


@dataclasses.dataclass
class Scale:
    factor: float

    def __call__(self, x: Any) -> Any:
        return self.factor * x


@dataclasses.dataclass
class Chain:
    parts: list[Any]

    def __call__(self, x: Any) -> Any:
        for part in self.parts:
            x = part(x)
        return x


class Scaled(nnx.Module):
    def __init__(self, factor: Any):
        self.factor = nnx.Param(factor)

    def __call__(self, x: Any) -> Any:
        return self.factor.value * x


class Chained(nnx.Module):
    def __init__(self, parts: list[Any]):
        self.parts = parts

    def __call__(self, x: Any) -> Any:
        for part in self.parts:
            x = part(x)
        return x


def build() -> Any:
    return Chained([Scaled(jnp.array(2.0)), Scaled(jnp.array(3.0))])


CHAIN = LayerRule(
    Chained,
    Chain,
    lambda theirs, convert: Chained([convert(x, "parts", n) for n, x in enumerate(theirs.parts)]),
    lambda ours, convert: Chain([convert(x, "parts", n) for n, x in enumerate(ours.parts)]),
)


def bridge(
    back: Any = lambda theirs, convert: Scaled(theirs.factor),
    over: Any = lambda ours, convert: Scale(jnp.array(ours.factor.value)),
    **changes: Any,
) -> Bridge:
    rules = [LayerRule(Scaled, Scale, back, over), CHAIN]
    made = Bridge("scales_of_kit", "dataclasses", "scales", lambda: rules)
    return dataclasses.replace(made, **changes)


def case_of(bridge: Bridge, **options: Any) -> BridgeCase:
    return BridgeCase(bridge, build, jnp.array([1.0, -2.0]), **options)


KEPT: dict[int, Any] = {}


def keeps_ours(ours: Any, convert: Any) -> Scale:
    made = Scale(ours.factor.value)
    KEPT[id(made)] = (made, ours)
    return made


def halves(ours: Any, convert: Any) -> Scale:
    value, ours.factor.value = ours.factor.value, ours.factor.value / 2
    return Scale(value)


BROKEN_BRIDGES = [
    ("declares_rules", bridge(package="no_such_package_of_kit")),
    ("declares_rules", bridge(back=None, over=None)),
    ("declares_rules", bridge(install="")),
    ("goes_and_comes_back", bridge(lambda theirs, convert: Scaled(theirs.factor + 1))),
    ("goes_and_comes_back", bridge(back=None)),
    ("computes_the_same", bridge(over=lambda ours, convert: Scale(ours.factor.value + 1))),
    ("leaves_the_model", bridge(over=halves)),
    ("leaves_the_model", bridge(lambda theirs, convert: KEPT[id(theirs)][1], keeps_ours)),
    ("names_what_it_does_not_know", None),
    ("keeps_shared_layers", None),
]


def without_names(model: Any) -> Any:
    """Converts without a walk: no place is named and nothing is shared."""
    if isinstance(model, (list, nnx.List)):
        return [without_names(x) for x in model]
    if isinstance(model, Chained):
        return Chain([Scale(part.factor.value) for part in model.parts])
    if isinstance(model, Chain):
        return Chained([Scaled(part.factor) for part in model.parts])
    raise nnx.BridgeError("unknown")


@parametrize_with_checks([case_of(bridge())])
def test_a_good_bridge_passes(case: BridgeCase, check: Any) -> None:
    check(case)


@pytest.mark.parametrize(("name", "broken"), BROKEN_BRIDGES)
def test_each_check_fails_on_a_bridge_broken_so(name: str, broken: Bridge | None) -> None:
    if broken is None:
        case = case_of(bridge(), over=without_names, back=without_names)
    else:
        case = case_of(broken)
    (check,) = (check for check in case.checks() if check.__name__ == name)
    with pytest.raises((AssertionError, nnx.BridgeError)) as caught:
        check(case)
    assert str(caught.value)


def test_every_check_has_a_broken_bridge() -> None:
    assert {c.__name__ for c in case_of(bridge()).checks()} == {n for n, _ in BROKEN_BRIDGES}
    with pytest.raises(AssertionError, match="scales_of_kit fails 1 of 6 checks"):
        check_bridge(bridge(install=""), build, jnp.ones(2))
