"""What the docs list is what there is."""

from __future__ import annotations
import __future__

import importlib
import inspect
import pathlib
import re
import types

import pytest

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


OBJECT = re.compile(r"\.\. (?:auto)?(?:class|function|exception|data):: (\w+)")


def listed_in_the_api() -> dict[str, str]:
    """Returns the names that the pages in docs/api document, with the module of each."""
    names = {}
    for page in (DOCS / "api").glob("*.md"):
        module = ""
        for line in page.read_text().splitlines():
            if found := re.match(r"\.\. currentmodule:: (\S+)$", line):
                module = found[1]
            elif found := re.match(r"\.\. automodule:: (\S+)$", line):
                documented = importlib.import_module(found[1])
                names |= dict.fromkeys(public_names(documented), found[1])
            elif found := re.match(
                r"\.\. (?:auto)?(?:class|function|exception|data):: (\w+)", line
            ):
                names[found[1]] = module
    return names


def public_names(module: types.ModuleType) -> set[str]:
    """Returns the names of a module that are neither private nor modules themselves."""
    names = getattr(module, "__all__", None) or dir(module)
    found = {name for name in names if not name.startswith("_") and hasattr(module, name)}
    things = {name: getattr(module, name) for name in found - set(__future__.all_feature_names)}
    return {name for name, thing in things.items() if not inspect.ismodule(thing)}


PUBLIC = """moduli moduli.errors moduli.filterlib moduli.plugins moduli.testing moduli.lowlevel
moduli_layers moduli_layers.errors moduli_layers.initializers moduli_layers.counterparts
moduli_debug moduli_debug.errors moduli_debug.reducers moduli_train moduli_train.metrics
moduli_train.hookspecs moduli_interop moduli_interop.bridge moduli_matrix""".split()


@pytest.mark.parametrize("name", PUBLIC)
def test_the_api_lists_every_public_name(name):
    module = importlib.import_module(name)
    listed = listed_in_the_api()
    assert public_names(module) <= set(listed), sorted(public_names(module) - set(listed))


def test_what_the_api_lists_exists_and_has_a_signature():
    without = set()
    for name, module in listed_in_the_api().items():
        thing = getattr(importlib.import_module(module), name)
        if callable(thing) and not (isinstance(thing, type) and issubclass(thing, Exception)):
            try:
                inspect.signature(thing)
            except (TypeError, ValueError):
                without.add(name)
    # two names for types, two classes made as list and dict are, and a method written in C
    assert without <= {"Predicate", "Check", "Summary", "PureState", "recordings"}


def pages_below(page: pathlib.Path) -> set[pathlib.Path]:
    """Returns the pages that the tables of contents of a page lead to."""
    found = set()
    for block in re.findall(r"^```{toctree}\n(.*?)^```$", page.read_text(), re.M | re.S):
        for line in block.splitlines():
            if line and not line.startswith(":"):
                below = set(page.parent.glob(f"{line}.md"))
                assert below, f"{page.name} lists {line}, which is no page"
                found |= below | {end for each in below for end in pages_below(each)}
    return found


def test_every_page_is_reachable_from_the_index():
    pages = {page for page in DOCS.rglob("*.md") if "_build" not in page.parts}
    assert pages_below(DOCS / "index.md") == pages - {DOCS / "index.md"}


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
