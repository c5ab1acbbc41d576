"""The five distributions move in lockstep, and each imports only what it says it needs.

import-linter forbids what is on a list; here everything that is not declared is forbidden.
"""

from __future__ import annotations

import ast
import pathlib
import re
import sys
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
EXTENSIONS = ("layers", "debug", "train", "interop")
PACKAGES = ("core", *EXTENSIONS)
IMPORT_NAMES = {
    "orbax-checkpoint": "orbax",
    "dm-haiku": "haiku",
}  # where it is not the distribution's name
BY_WAY_OF_CORE = {"jax", "jaxlib", "numpy"}
TESTING_TOOLS = {"hypothesis", "pytest"}  # moduli.testing takes them when a test asks for them


def project(package: str) -> dict[str, Any]:
    text = (ROOT / "packages" / package / "pyproject.toml").read_text()
    return tomllib.loads(text)["project"]


def import_names(requirements: list[str]) -> set[str]:
    """The modules that requirements bring; moduli's own extensions are nobody's to import."""
    names = {re.split(r"[^\w.-]", text, maxsplit=1)[0] for text in requirements}
    return {IMPORT_NAMES.get(name, name) for name in names if not name.startswith("moduli-")}


def is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imports(node: ast.AST, in_function: bool = False) -> Iterator[tuple[str, int, bool]]:
    """Yields each import that runs: its top-level module, its line, whether it waits for a call."""
    for child in ast.iter_child_nodes(node):
        if is_for_types_only(child):
            for alternative in child.orelse:
                yield from imports(ast.Module([alternative], []), in_function)
            continue
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield alias.name.partition(".")[0], child.lineno, in_function
        elif isinstance(child, ast.ImportFrom) and child.level == 0 and child.module:
            yield child.module.partition(".")[0], child.lineno, in_function
        is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        yield from imports(child, in_function or is_function)


def undeclared(package: str, source: str, path: pathlib.PurePath) -> list[str]:
    """Returns the imports of a file that its package does not declare, as ``file:line module``."""
    about = project(package)
    own = "moduli" if package == "core" else f"moduli_{package}"
    required = {own, *sys.stdlib_module_names, *import_names(about["dependencies"])}
    later = set[str]()
    if package == "core":
        later |= TESTING_TOOLS if "testing" in path.parts else set()
        required |= {"pytest", "moduli_pytest"} if "moduli_pytest" in path.parts else set()
    else:
        required |= BY_WAY_OF_CORE
        for extra in about.get("optional-dependencies", {}).values():
            later |= import_names(extra)
    return [
        f"{path}:{line} {module}"
        for module, line, in_function in imports(ast.parse(source))
        if module not in required and not (in_function and module in later)
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_imports_only_what_it_declares(package: str) -> None:
    files = sorted((ROOT / "packages" / package / "src").rglob("*.py"))
    assert files
    found = [
        fault
        for file in files
        for fault in undeclared(package, file.read_text(), file.relative_to(ROOT))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("package", "source", "path"),
    [
        ("core", "import scipy", "src/moduli/a.py"),
        ("core", "def f():\n    from moduli_layers import Linear", "src/moduli/a.py"),
        ("core", "def f():\n    import hypothesis", "src/moduli/a.py"),
        ("core", "import hypothesis", "src/moduli/testing/a.py"),
        ("core", "import pytest", "src/moduli/testing/a.py"),
        ("layers", "from moduli_train.metrics import Average", "src/moduli_layers/a.py"),
        ("layers", "class A:\n    import optax", "src/moduli_layers/a.py"),
        ("debug", "import matplotlib.pyplot", "src/moduli_debug/a.py"),
        ("debug", "if TYPE_CHECKING:\n    pass\nelse:\n    import treescope", "src/a.py"),
    ],
)
def test_an_undeclared_import_is_seen(package: str, source: str, path: str) -> None:
    assert len(undeclared(package, source, pathlib.PurePosixPath(path))) == 1


@pytest.mark.parametrize(
    ("package", "source", "path"),
    [
        (
            "core",
            "import os, jax.numpy, numpy as np\nfrom moduli._graph.state import State",
            "src/a.py",
        ),
        ("core", "def f():\n    from hypothesis import strategies", "src/moduli/testing/a.py"),
        ("core", "def f():\n    import pytest", "src/moduli/testing/a.py"),
        ("core", "if TYPE_CHECKING:\n    from moduli_layers import Linear", "src/moduli/a.py"),
        ("debug", "def f():\n    import matplotlib.pyplot", "src/moduli_debug/a.py"),
        ("interop", "def f():\n    import orbax.checkpoint", "src/moduli_interop/a.py"),
        ("train", "import optax\nfrom . import _plugin", "src/moduli_train/a.py"),
    ],
)
def test_a_declared_import_is_allowed(package: str, source: str, path: str) -> None:
    assert undeclared(package, source, pathlib.PurePosixPath(path)) == []


def test_all_versions_move_in_lockstep() -> None:
    about = {package: project(package) for package in PACKAGES}
    (version,) = {metadata["version"] for metadata in about.values()}
    for package in EXTENSIONS:
        needs = [n for n in about[package]["dependencies"] if n.startswith("moduli")]
        assert needs == [f"moduli=={version}"]
    pins = {package: [f"moduli-{package}=={version}"] for package in EXTENSIONS}
    everything = [pin for package in EXTENSIONS for pin in pins[package]]
    assert about["core"]["optional-dependencies"] == {**pins, "all": everything}
