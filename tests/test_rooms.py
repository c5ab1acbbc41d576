"""The rooms of core: imports run one way, and the pages that name files name files that exist."""

import importlib.util
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent
SOURCE = ROOT / "packages/core/src/moduli"
spec = importlib.util.spec_from_file_location("draw_rooms", ROOT / "tools/draw_rooms.py")
draw_rooms = importlib.util.module_from_spec(spec)
spec.loader.exec_module(draw_rooms)


def test_no_room_imports_one_above_it():
    found = draw_rooms.edges()
    assert found["_transforms", "_call"] > 0, "the script sees no imports"
    assert draw_rooms.upward() == []


def test_every_folder_is_a_room_of_the_contract_and_says_what_it_holds():
    folders = {p.name for p in SOURCE.iterdir() if p.is_dir() and re.match(r"_[a-z]", p.name)}
    assert folders == set(draw_rooms.rooms())
    for room in folders:
        text = (SOURCE / room / "__init__.py").read_text()
        assert text.count("\n- ") >= 2, f"{room} has no rules"
    single = {p.name for p in SOURCE.glob("_*.py")} - {"__init__.py", "__main__.py"}
    assert not single, f"private files outside of the rooms: {single}"


def test_the_files_that_the_pages_name_exist():
    for page in ("inside.md", "how_it_works.md"):
        text = (ROOT / "docs" / page).read_text()
        for path in re.findall(r"`(?:moduli/)?(_[a-z_]+/[a-z_]+\.py)`", text):
            assert (SOURCE / path).is_file(), f"{page} names {path}"
