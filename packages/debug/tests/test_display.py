"""display: text, and treescope's trees in a notebook."""

from __future__ import annotations

import dataclasses
import sys
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moduli as nnx
from moduli_debug import display


class Tied(nnx.Module):
    def __init__(self) -> None:
        self.first = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        self.again = self.first
        self.parts = [nnx.Param(jnp.arange(4.0))]
        self.name = "tied"


def test_modules_are_printed_as_their_tree(capsys: pytest.CaptureFixture[str]) -> None:
    model = Tied()
    display(model, nnx.state(model))
    assert capsys.readouterr().out == f"{model!r}\n{nnx.state(model)!r}\n"


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclasses.dataclass
class Result:
    values: dict[str, Any]
    size: int


def test_nested_values_are_a_tree_of_shapes(capsys: pytest.CaptureFixture[str]) -> None:
    result = Result({"a": Pair(jnp.ones((4, 3), jnp.float32), np.int8(3)), "empty": []}, 2)
    display(
        [result, nnx.Dict(w=nnx.Param(jnp.ones(2, jnp.float32)))],
        (jax.ShapeDtypeStruct((5,), jnp.int32),),
    )
    assert capsys.readouterr().out == (
        "[\n"
        "  Result(\n"
        "    values={\n"
        "      'a': Pair(\n"
        "        left=float32[4, 3],\n"
        "        right=np.int8(3),\n"
        "      ),\n"
        "      'empty': [],\n"
        "    },\n"
        "    size=2,\n"
        "  ),\n"
        "  Dict(  # Param: 2 (8 B)\n"
        "    'w': Param(float32[2] [1., 1.])\n"
        "  ),\n"
        "]\n"
        "(\n"
        "  int32[5],\n"
        ")\n"
    )


def test_single_numbers_keys_and_tracers(capsys: pytest.CaptureFixture[str]) -> None:
    display(jnp.array(2.5, jnp.float32), jax.random.key(0))
    jax.eval_shape(display, jnp.array(1, jnp.int32))
    assert capsys.readouterr().out == "float32[] 2.5\nkey<fry>[] [0, 0]\nint32[]\n"


def test_a_list_in_itself_ends(capsys: pytest.CaptureFixture[str]) -> None:
    items: list[Any] = [1]
    items.append(items)
    display(items)
    assert capsys.readouterr().out == "[\n  1,\n  ...,\n]\n"


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a notebook's IPython was given to show."""
    pytest.importorskip("treescope")
    shown: list[Any] = []
    shell = types.SimpleNamespace(kernel=object())
    ipython, shows = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    ipython.get_ipython = lambda: shell  # type: ignore[attr-defined]
    shows.display = shown.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", shows)
    return shown


def test_a_notebook_gets_treescopes_trees(
    shown: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    import treescope

    model = Tied()
    before, renderer = nnx.graphdef(model), treescope.active_renderer.get()
    display(model, {"x": 1})
    assert capsys.readouterr().out == ""
    assert repr(shown[0]) == repr(model)
    assert len(shown) == 2 and "<treescope-container" in shown[0]._repr_html_()
    assert nnx.graphdef(model) is before
    assert treescope.active_renderer.get() is renderer


def test_what_a_tree_holds(shown: list[Any]) -> None:
    from moduli_debug._treescope import _draw

    treescope = pytest.importorskip("treescope")
    renderer = treescope.active_renderer.get().extended_with(handlers=[_draw])
    model = Tied()
    model.parts[0].set_metadata(note="mine")
    model.me = model  # type: ignore[attr-defined]
    text = renderer.to_text(model)
    for part in ("Tied(", "first=Linear(", "kernel=Param(", "note='mine'", "name='tied'"):
        assert part in text
    assert "float32(2, 3)" in text and "<cyclic reference" in text.lower()
    assert "_moduli" not in text and "PyTree children" not in text
    state = renderer.to_text(nnx.state(nnx.Dict(a=nnx.Param(1.0))))
    assert state.replace("\n", "").replace(" ", "") == "State({'a':Param(value=1.0)})"


def test_without_treescope_a_notebook_gets_text(
    shown: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    display({"x": 1})
    assert shown == [] and capsys.readouterr().out == "{\n  'x': 1,\n}\n"
