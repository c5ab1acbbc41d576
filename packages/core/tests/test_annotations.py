"""``Data[...]`` and ``Static[...]`` in a class say what an attribute is, as text too."""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import pytest

import moduli as nnx
from moduli import Data

if TYPE_CHECKING:
    from nowhere import Hidden  # type: ignore[import-not-found]


class Annotated(nnx.Module):
    count: nnx.Data[int]
    plain: Data[float]
    hidden: nnx.Data[Hidden]
    sizes: nnx.Static[Any]
    names: list[nnx.Data[int]]  # of the list's items, not of the attribute

    def __init__(self) -> None:
        self.count, self.plain, self.hidden = 1, 2.0, 3
        self.sizes = jnp.float32
        self.other = 4


class Below(Annotated):
    more: nnx.Data[int]

    def __init__(self) -> None:
        super().__init__()
        self.more = 5


def without_text(name: str) -> Any:
    """Returns a module whose annotations are objects, not text."""
    code = (
        "import moduli as nnx\n"
        "class Model(nnx.Module):\n"
        "    count: nnx.Data[int]\n"
        "    def __init__(self): self.count, self.other = 7, 8\n"
    )
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(code, vars(module))
    return module.Model


def test_annotated_attributes_are_data_or_static() -> None:
    assert sorted(jax.tree.leaves(Annotated())) == [1, 2.0, 3]
    assert sorted(jax.tree.leaves(Below())) == [1, 2.0, 3, 5]
    assert jax.tree.leaves(without_text("without_text")()) == [7]


def test_the_status_stays_when_the_attribute_is_set_again() -> None:
    model = Annotated()
    model.count = 10
    assert 10 in jax.tree.leaves(model)
    model = nnx.clone(model)
    model.count = 11
    assert 11 in jax.tree.leaves(model)


def test_a_data_attribute_is_traced_and_comes_back() -> None:
    model = Annotated()

    @nnx.jit
    def count(model):
        model.count += 1

    for _ in range(3):
        count(model)
    assert int(model.count) == 4


def test_a_field_of_a_dataclass_may_say_it_too() -> None:
    @nnx.dataclass
    class Field(nnx.Pytree):
        count: nnx.Data[int]
        sizes: nnx.Static[Any] = ()
        both: nnx.Data[int] = nnx.static(default=3)  # what the field says counts

    assert jax.tree.leaves(Field(1)) == [1]


def test_static_data_is_an_error_as_with_static() -> None:
    class Wrong(nnx.Module):
        kernel: nnx.Static[Any]

        def __init__(self) -> None:
            self.kernel = nnx.Param(jnp.ones(2))

    class Same(nnx.Module):
        def __init__(self) -> None:
            self.kernel = nnx.static(nnx.Param(jnp.ones(2)))

    def outcome(make: Any) -> str:
        try:
            nnx.split(make())
        except Exception as error:
            return type(error).__name__
        return "none"

    assert outcome(Wrong) == outcome(Same)


@pytest.mark.parametrize("name", ["on_set_value", "on_get_value", "on_create_value"])
def test_hooks_come_with_the_metadata_of_an_initializer(name: str) -> None:
    given = nnx.VariableMetadata(1.0, **{name: lambda variable, value: value + 1})
    param = nnx.Param(given)
    param.value = param.value * 10
    assert (
        param.value == {"on_set_value": 11.0, "on_get_value": 21.0, "on_create_value": 20.0}[name]
    )
