"""What users see of types: mypy on their programs, and signatures at run time."""

import dataclasses
import importlib
import inspect
import runpy
import subprocess
import sys
import typing
from pathlib import Path

import jax
import pytest

import moduli as nnx
from moduli._facade.resolve import names

sys.path.insert(0, str(Path(__file__).parent / "typing"))

from checkers import MISTAKES, PROGRAM, every_name, expected, mypy


def test_mypy_knows_the_types_and_finds_the_mistakes(tmp_path):
    found = mypy(tmp_path, PROGRAM, MISTAKES, every_name(tmp_path))
    assert {place: found[place] for place in found.keys() - expected()} == {}
    assert expected() - found.keys() == set()


def test_the_types_are_true_when_the_program_runs(monkeypatch):
    count = 0

    def check(value, kind):
        nonlocal count
        count += 1
        assert isinstance(value, typing.get_origin(kind) or kind), (value, kind)
        return value

    monkeypatch.setattr(typing, "assert_type", check)
    runpy.run_path(str(PROGRAM))
    assert count > PROGRAM.read_text().count("assert_type(") / 2


def public_classes():
    found = {name: getattr(nnx, name) for name in sorted({*vars(nnx), *names()})}
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, type) and issubclass(value, nnx.Pytree)
    }


def plain(cls):
    """A class with the same constructor and no base of ours, for Python to inspect."""
    for base in cls.__mro__:
        if base in (nnx.Pytree, object):
            return inspect.Signature()
        if "__init__" in vars(base):
            constructor = vars(base)["__init__"]
            return inspect.signature(type(cls.__name__, (), {"__init__": constructor}))
    raise AssertionError


@pytest.mark.parametrize("name", public_classes())
def test_a_class_shows_the_signature_of_its_constructor(name):
    cls = public_classes()[name]
    shown = inspect.signature(cls)
    assert shown.parameters == plain(cls).parameters
    assert (
        cls in (nnx.Pytree, nnx.Module)
        or list(shown.parameters) != ["args", "kwargs"]
        or (cls is nnx.Dict)
    )


class Bare(nnx.Module):
    def __call__(self, x, *, scale=1.0):
        return x * scale


class Sized(Bare):
    def __init__(self, size: int, *, rngs: nnx.Rngs):
        self.size = size


class Below(Sized):
    pass


class Made(nnx.Module):
    def __new__(cls, size: int):
        return super().__new__(cls)


class Named(nnx.Module):
    __signature__ = inspect.Signature([])

    def __init__(self, *args):
        pass


class Mixin:
    def __init__(self, width: int):
        self.width = width


class Mixed(nnx.Module, Mixin):
    pass


class Callable_(typing.Protocol):
    def __call__(self, x): ...


class Keeps(nnx.Module, Callable_):
    def __call__(self, x):
        return x


@nnx.dataclass
class Fields(nnx.Module):
    factor: nnx.Param
    steps: int = nnx.static(default=2)


@dataclasses.dataclass
class PlainFields(nnx.Module):
    factor: nnx.Param
    steps: int = 2


@pytest.mark.parametrize(
    ("cls", "text"),
    [
        (Bare, "()"),
        (Sized, "(size: int, *, rngs: moduli.Rngs)"),
        (Below, "(size: int, *, rngs: moduli.Rngs)"),
        (Made, "(size: int)"),
        (Named, "()"),
        (Mixed, "(width: int)"),
        (Keeps, "()"),
        (Fields, "(factor: moduli.Param, steps: int = 2)"),
        (PlainFields, "(factor: moduli.Param, steps: int = 2)"),
    ],
)
def test_classes_of_users_show_their_constructors(cls, text):
    assert str(inspect.signature(cls)).removesuffix(" -> None") == text


def test_an_instance_shows_the_signature_of_its_call():
    assert str(inspect.signature(Sized(3, rngs=nnx.Rngs(0)))) == "(x, *, scale=1.0)"
    assert not hasattr(Sized(3, rngs=nnx.Rngs(0)), "__signature__")
    with pytest.raises(TypeError, match="not a callable"):
        inspect.signature(nnx.Dict())


def test_every_package_says_that_it_is_typed():
    root = Path(__file__).parent.parent
    typed = {path.parent.parent.parent.name for path in root.glob("packages/*/src/*/py.typed")}
    assert typed == {path.name for path in (root / "packages").iterdir() if path.is_dir()}


def test_what_only_checkers_read_is_not_imported():
    code = (
        "import sys, moduli as nnx; nnx.Linear(2, 2, rngs=nnx.Rngs(0)); nnx.jit(lambda x: x)(1);"
        "print(sorted(m for m in sys.modules if m.startswith('moduli') and m.endswith('_types')))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_checkers_know_every_draw():
    found = vars(importlib.import_module("moduli._rngs.draw_types").Draws)
    streams = importlib.import_module("moduli._rngs.streams")
    drawn = {name for name in streams._RANDOM if hasattr(jax.random, name)}
    assert {name for name in found if not name.startswith("_")} == {*drawn, *streams._INITIALIZERS}
