"""Writes a new plugin: all of its files, or none."""

from __future__ import annotations

import contextlib
import importlib.resources
import os
import pathlib
import shutil
import tempfile
from collections.abc import Collection, Iterator

import moduli
from moduli import errors
from moduli._facade.new_plugin.names import Names, names_of
from moduli.hookspecs import VERSION

__all__ = ["PARTS", "files", "generate"]

PARTS = ("layer", "tool", "format", "bridge", "transform")
"""What a plugin can have."""

_HOOKED = frozenset(("layer", "format", "bridge"))  # parts that moduli finds by hooks


def generate(
    name: str, parts: Collection[str] = (), into: str | os.PathLike[str] = "."
) -> pathlib.Path:
    """Writes a new plugin into a folder of its name.

    Args:
      name: the name of its distribution.
      parts: of :data:`PARTS`; by default a layer and a tool.
      into: the folder in which the plugin's own is made.

    Returns:
      The plugin's folder.

    Raises:
      PluginError: the name does not do, or there is something of its name already. Nothing is
        written then.
      OSError: the files cannot be written. Nothing remains then.
    """
    chosen = frozenset(parts or ("layer", "tool"))
    made = files(names_of(name, chosen), chosen)
    parent = pathlib.Path(into)
    target = parent / name
    if not parent.is_dir():
        raise errors.PluginError(f"there is no folder {str(parent)!r} to make the plugin in")
    _check_absent(target)
    with _temporary(parent) as folder:
        for path, text in made.items():
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8", newline="\n")
        _check_absent(target)
        os.rename(folder, target)
    return target


def files(names: Names, parts: frozenset[str]) -> dict[str, str]:
    """Returns the text of each file of a plugin, by its path."""
    major, minor = map(int, moduli.__version__.split(".")[:2])
    values = {
        "@distribution@": names.distribution,
        "@package@": names.package,
        "@stem@": names.stem,
        "@Class@": names.class_name,
        "@minimum@": f"{major}.{minor}",
        "@limit@": f"{major + 1}" if major else f"0.{minor + 1}",
        "@hooks@": ", ".join(map(str, VERSION)),
    }
    found = {}
    for path, template in _templates():
        wanted = path.rpartition("/")[2].removesuffix(".py").lstrip("_")
        if wanted in PARTS and wanted not in parts:
            continue
        if wanted == "plugin" and not parts & _HOOKED:
            continue
        text = _filled(template, values, parts)
        path = path.replace("src/", f"src/{names.package}/").replace("tests/", "tests/test_")
        found[path.replace("gitignore", ".gitignore")] = text
    return {**found, f"src/{names.package}/py.typed": ""}


def _templates() -> Iterator[tuple[str, str]]:
    root = importlib.resources.files("moduli._facade.new_plugin") / "templates"
    for folder in ("", "src", "tests"):
        place = root / folder if folder else root
        for item in sorted(place.iterdir(), key=lambda item: item.name):
            if item.name.endswith(".tmpl"):
                prefix = f"{folder}/" if folder else ""
                yield prefix + item.name.removesuffix(".tmpl"), item.read_text(encoding="utf-8")


def _filled(template: str, values: dict[str, str], parts: frozenset[str]) -> str:
    """Returns a template's text.

    ``@if a b`` begins lines for plugins with one of these parts, ``@only a b`` for those with no
    others, ``@end`` ends them.
    """
    lines: list[str] = []
    shown = [True]
    for line in template.splitlines():
        word, *wanted = line.split() or [""]
        if word == "@if":
            shown.append(shown[-1] and bool(parts & set(wanted)))
        elif word == "@only":
            shown.append(shown[-1] and parts <= set(wanted))
        elif word == "@end":
            shown.pop()
        elif shown[-1]:
            lines.append(line)
    text = "\n".join(lines) + "\n"
    for key, value in values.items():
        text = text.replace(key, value)
    return text


def _check_absent(target: pathlib.Path) -> None:
    if os.path.lexists(target):
        raise errors.PluginError(
            f"{str(target)!r} is there already, and nothing is overwritten; move it away, or take "
            "another name or folder (--into)"
        )


@contextlib.contextmanager
def _temporary(parent: pathlib.Path) -> Iterator[pathlib.Path]:
    """Makes a folder that is gone after the block, unless it was renamed."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix=".new-plugin-", dir=parent))
    try:
        inner = folder / "plugin"
        inner.mkdir()
        yield inner
    finally:
        shutil.rmtree(folder, ignore_errors=True)
