"""What the docs list is what there is."""

from __future__ import annotations

import inspect
import pathlib
import re

import pytest

import moduli
import moduli_layers
from moduli import hookspecs

DOCS = pathlib.Path(__file__).resolve().parent.parent / "docs"


def test_the_page_on_hooks_names_every_hook_and_no_other():
    hooks = {name for name in hookspecs.__all__ if name.startswith("moduli_")}
    table = re.findall(
        r"^\| `(moduli_[a-z_]+)\(([a-z_, ]*)\)`", (DOCS / "hooks.md").read_text(), re.M
    )
    assert {name for name, _ in table} == hooks
    for name, arguments in table:
        parameters = inspect.signature(getattr(hookspecs, name)).parameters
        assert arguments == ", ".join(parameters), name


def test_the_api_page_lists_every_transform():
    listed = set(re.findall(r"^\.\. auto\w+:: (\w+)$", (DOCS / "api.md").read_text(), re.M))
    rooms = re.compile(r"/moduli/(_transforms/|_call/|_graph/trees)")
    transforms = {
        name
        for name in dir(moduli)
        if (code := getattr(inspect.unwrap(getattr(moduli, name)), "__code__", None))
        and rooms.search(pathlib.Path(code.co_filename).as_posix())
    }
    assert len(transforms) >= 23
    assert transforms <= listed


def test_every_page_is_reachable_from_the_index():
    index = (DOCS / "index.md").read_text()
    for page in DOCS.rglob("*.md"):
        name = page.relative_to(DOCS).as_posix()
        if name != "index.md":
            assert f"({name})" in index, name
            assert f"\n{name.removesuffix('.md')}\n" in index, name


def test_the_page_on_layers_lists_every_name_and_says_which_are_not_flaxs():
    nnx = pytest.importorskip("flax.nnx")
    rows = re.findall(r"^\| \w.*\|$", (DOCS / "layers.md").read_text(), re.M)
    names = re.findall(r"(\*?)`(\w+)`", "\n".join(row.split("|")[2] for row in rows))
    listed = {name: bool(own) for own, name in names if hasattr(moduli_layers, name)}
    public = {name for name in dir(moduli_layers) if not name.startswith("_")} - {"errors"}
    assert set(listed) == public
    families = [nnx, *(thing for thing in vars(nnx.nn).values() if inspect.ismodule(thing))]
    newer = {"RoPE", "dot_product_attention_with_rope"}  # from flax 0.12.12, Python 3.12 on
    for name, own in listed.items():
        theirs = name in newer or any(hasattr(family, name) for family in families)
        assert own == (not theirs), name


def test_contributing_says_which_tests_guard_each_room_and_package():
    root = DOCS.parent
    text = (root / "CONTRIBUTING.md").read_text().split("## Which tests guard what")[1]
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", text.split("\n## ")[0], re.M)
    packages = {path.name for path in (root / "packages").iterdir() if path.is_dir()}
    source = root / "packages" / "core" / "src" / "moduli"
    rooms = {path.parent.name for path in source.glob("_*/__init__.py")}
    assert {name for name, _ in rows} == packages | rooms
    for name, files in rows:
        folder = root / "packages" / (name if name in packages else "core") / "tests"
        named = re.findall(r"(debug's )?`([\w/*.]+\.py)`", files)
        assert named, name
        for of_debug, pattern in named:
            where = root / "packages" / "debug" / "tests" if of_debug else folder
            where = root if "/" in pattern else where
            assert list(where.glob(pattern)), (name, pattern)
