"""Every public name of flax.nnx 0.12 is in moduli, or its error says what to write instead."""

from __future__ import annotations

import re
from typing import Any

import pytest

import moduli
from moduli._facade.flax_names import INSTEAD


@pytest.fixture(scope="module")
def flax_nnx() -> Any:
    pytest.importorskip("flax")
    import flax

    if not flax.__version__.startswith("0.12."):
        pytest.skip(f"the table is of flax 0.12; this is {flax.__version__}")
    import flax.nnx

    return flax.nnx


def test_no_name_of_flax_is_without_an_answer(flax_nnx: Any) -> None:
    public = [name for name in dir(flax_nnx) if not name.startswith("_")]
    assert len(public) > 200
    unanswered = [n for n in public if not hasattr(moduli, n) and n not in INSTEAD]
    assert unanswered == []


@pytest.mark.parametrize("name", sorted(INSTEAD))
def test_what_to_write_instead_is_said_and_exists(name: str) -> None:
    with pytest.raises(AttributeError) as caught:
        getattr(moduli, name)
    assert str(caught.value) == f"module 'moduli' has no attribute {name!r}: {INSTEAD[name]}"
    for mentioned in re.findall(r"moduli\.([A-Za-z_]+)", INSTEAD[name]):
        assert hasattr(moduli, mentioned), mentioned


def test_other_names_of_flax_are_the_same_functions() -> None:
    assert moduli.variables is moduli.state
    assert moduli.iter_module_children is moduli.iter_children
