"""Draws the rooms of core and who imports whom, from the code, to docs/images/rooms.png.

``python tools/draw_rooms.py`` draws; with ``--check`` it prints the imports between rooms and fails
if one goes up. The order of the rooms is that of the import contract in pyproject.toml.
"""

from __future__ import annotations

import ast
import collections
import pathlib
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent
SOURCE = ROOT / "packages/core/src/moduli"
TARGET = ROOT / "docs/images/rooms.png"
CONTRACT = "The rooms of core know those below them"


def rooms() -> list[str]:
    """Returns the rooms, from the ground up: the packages in the import contract."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = settings["tool"]["importlinter"]["contracts"]
    layers = next(c["layers"] for c in contracts if c["name"] == CONTRACT)
    names = [part.strip() for layer in layers for part in layer.split(":")]
    found = [name.removeprefix("moduli.") for name in names]
    return [name for name in reversed(found) if (SOURCE / name).is_dir() and name[0] == "_"]


def _imported(tree: ast.AST) -> list[str]:
    """Lists the modules of core that a file imports, but for those that only types need."""
    skipped = {
        node
        for check in ast.walk(tree)
        if isinstance(check, ast.If) and "TYPE_CHECKING" in ast.unparse(check.test)
        for part in check.body
        for node in ast.walk(part)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node not in skipped and node.module:
            if node.module == "moduli":
                found += [alias.name for alias in node.names]
            elif node.module.startswith("moduli."):
                found.append(node.module.removeprefix("moduli."))
    return found


def edges() -> dict[tuple[str, str], int]:
    """Counts the imports from each room to each other one."""
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    known = rooms()
    for room in known:
        for file in sorted((SOURCE / room).rglob("*.py")):
            for name in _imported(ast.parse(file.read_text())):
                other = name.partition(".")[0]
                if other in known and other != room:
                    counts[room, other] += 1
    return dict(counts)


def upward() -> list[tuple[str, str]]:
    """Lists the imports that go from a room to one above it."""
    order = {room: number for number, room in enumerate(rooms())}
    return sorted(pair for pair in edges() if order[pair[1]] > order[pair[0]])


def _sentence(room: str) -> str:
    text = ast.get_docstring(ast.parse((SOURCE / room / "__init__.py").read_text())) or ""
    return text.partition("\n")[0].replace("`", "")


def draw() -> None:
    """Writes the picture."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names, counts = rooms(), edges()
    figure, axes = plt.subplots(figsize=(11, 0.78 * len(names) + 0.6))
    for level, room in enumerate(names):
        files = len(list((SOURCE / room).rglob("*.py"))) - 1
        axes.text(
            0.0,
            level,
            room,
            va="center",
            fontsize=12,
            family="monospace",
            weight="bold",
            bbox={"boxstyle": "round,pad=0.45", "facecolor": "#e8eef7", "edgecolor": "#4c6a92"},
        )
        axes.text(1.75, level + 0.13, _sentence(room), va="center", fontsize=9.5, color="#222222")
        axes.text(1.75, level - 0.2, f"{files} files", va="center", fontsize=8, color="#777777")
    most = max(counts.values())
    for (room, other), count in sorted(counts.items()):
        start, stop = names.index(room), names.index(other)
        axes.annotate(
            "",
            xy=(-0.06, stop),
            xytext=(-0.06, start),
            arrowprops={
                "arrowstyle": "-|>",
                "color": "#b03030" if stop > start else "#4c6a92",
                "alpha": 0.35 + 0.5 * count / most,
                "linewidth": 0.6 + 2.4 * count / most,
                "connectionstyle": f"arc3,rad={0.28 if stop < start else -0.28}",
            },
        )
    axes.set_xlim(-1.9, 9.2)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_axis_off()
    figure.text(
        0.13, 0.06, "arrows: imports, thicker for more of them", fontsize=8, color="#777777"
    )
    TARGET.parent.mkdir(exist_ok=True)
    figure.savefig(TARGET, dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    if "--check" in sys.argv:
        for (room, other), count in sorted(edges().items()):
            sys.stdout.write(f"{room} -> {other}: {count}\n")
        sys.exit(f"upward: {upward()}" if upward() else 0)
    draw()
