"""Writes what core knows of the extension packages' names, from their entry points.

``python tools/sync_names.py`` writes ``moduli/_facade/extension_names.py``; with ``--check`` it
only says whether the file is up to date. A test runs the check.
"""

from __future__ import annotations

import pathlib
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = ROOT / "packages/core/src/moduli/_facade/extension_names.py"
PACKAGES = ("layers", "debug", "train", "interop")
# Its attributes are modules that a `__getattr__` makes, which checkers believe in stubs alone.
MADE_WHEN_USED = "moduli_interop._flax.modules"

HEAD = '''"""The names that moduli's own extension packages add to ``moduli``.

Written by tools/sync_names.py from the packages' entry points; do not edit. Type checkers read the
imports; the table tells which package to install for a name that is missing.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import types as _types

'''


def render() -> str:
    """Returns the text of the file."""
    imports: list[str] = []
    table: list[str] = []
    for package in PACKAGES:
        text = (ROOT / "packages" / package / "pyproject.toml").read_text()
        names = tomllib.loads(text)["project"]["entry-points"].get("moduli.names", {})
        for name, target in sorted(names.items()):
            module, _, attribute = target.partition(":")
            if module == MADE_WHEN_USED:
                imports.append(f"    {name}: _types.ModuleType")
                continue
            parent, _, last = module.rpartition(".")
            imports.append(
                f"    from {module} import {attribute} as {name}"
                if attribute
                else f"    from {parent} import {last} as {name}"
            )
        listed = "".join(f'        "{name}",\n' for name in sorted(names))
        table.append(f'    "{package}": (\n{listed}    ),\n')
    body = "\n".join(imports)
    return f"{HEAD}{body}\n\nPROVIDED: dict[str, tuple[str, ...]] = {{\n" + "".join(table) + "}\n"


def main() -> int:
    """Writes or checks the file; returns the exit status."""
    text = render()
    if "--check" in sys.argv[1:]:
        return 0 if TARGET.read_text() == text else 1
    TARGET.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
