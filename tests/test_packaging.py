"""The distributions move in lockstep, import only what they say they need, and are complete.

import-linter forbids what is on a list; here everything that is not declared is forbidden. What
needs clean environments is short here: ``nox -s packages`` has all subsets, from built wheels.
"""

from __future__ import annotations

import ast
import os
import pathlib
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from typing import Any

import distributions
import pytest
from clean_environments import SUBSET

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


def test_the_matrix_has_the_version_of_the_others_and_needs_nox_alone() -> None:
    about = project("matrix")
    assert about["version"] == project("core")["version"]
    assert [re.split(r"\W", need)[0] for need in about["dependencies"]] == ["nox"]
    for package, module in [("core", "moduli"), ("matrix", "moduli_matrix")]:
        source = (ROOT / "packages" / package / "src" / module / "__init__.py").read_text()
        assert f'__version__ = "{about["version"]}"' in source


@pytest.mark.parametrize("package", [*PACKAGES, "matrix"])
def test_metadata_is_complete(package: str) -> None:
    about, folder = project(package), ROOT / "packages" / package
    assert about["readme"] == "README.md" and (folder / "README.md").stat().st_size > 300
    assert about["license"] == "Apache-2.0" and about["license-files"] == ["LICENSE"]
    assert (folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert about["requires-python"] == ">=3.11" and about["authors"] and about["keywords"]
    assert "Typing :: Typed" in about["classifiers"]
    assert not [line for line in about["classifiers"] if line.startswith("License ::")]  # PEP 639
    assert len(about["description"]) < 100
    # a page of the index shows the README alone: a link to a file beside it leads nowhere there
    links = re.findall(r"\]\(([^)]+)\)", (folder / "README.md").read_text())
    assert [link for link in links if not link.startswith(("https://", "#"))] == []


def test_one_command_sets_the_version_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import set_version

    places = set_version.places()
    texts = {path: set_version.changed(path, "9.8.7rc1") for path in places}
    old = project("core")["version"]
    for path, text in texts.items():
        assert "9.8.7rc1" in text, path
        assert not re.search(rf'(==|version = |version__ = )"?{re.escape(old)}"', text), path
    modules = {path.parent.name for path in places if path.suffix == ".py"}
    assert modules == {"moduli", *(f"moduli_{name}" for name in (*EXTENSIONS, "matrix"))}
    with pytest.raises(SystemExit, match=r"'1\.0' is no version"):
        set_version.main("1.0")


def test_fragments_of_the_changelog_are_named_and_written_as_towncrier_reads_them() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["towncrier"]
    kinds = "|".join(settings["fragment"])
    assert settings["start_string"] in (ROOT / "CHANGELOG.md").read_text()
    for path in (ROOT / settings["directory"]).iterdir():
        if path.name in settings["ignore"]:
            continue
        assert re.fullmatch(rf"(\d+|\+[\w-]+)\.({kinds})(\.\d+)?\.md", path.name), path.name
        text = path.read_text()
        assert text.endswith(".\n") and not text.startswith(("-", "*", "#")), path.name


@pytest.mark.slow
def test_the_same_bytes_each_time(tmp_path: pathlib.Path) -> None:
    """The short form of ``nox -s packages``: one package."""
    found = distributions.build_twice(tmp_path / "a", tmp_path / "b", "matrix")
    wheel, sdist = sorted(found, reverse=True, key=lambda name: name.endswith(".whl"))
    inside = zipfile.ZipFile(tmp_path / "a" / wheel).namelist()
    assert any(name.endswith("licenses/LICENSE") for name in inside)
    assert not [name for name in inside if "test" in name]
    with tarfile.open(tmp_path / "a" / sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames()}
    assert {"README.md", "LICENSE", "pyproject.toml", "PKG-INFO"} <= names


@pytest.fixture(scope="module")
def without_moduli(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with all that is installed here, except moduli's packages."""
    folder = tmp_path_factory.mktemp("others")
    for place in dict.fromkeys(sysconfig.get_paths()[key] for key in ("purelib", "platlib")):
        for path in pathlib.Path(place).iterdir():
            is_ours = "moduli" in path.name.lower()
            if not is_ours and path.suffix != ".pth" and not (folder / path.name).exists():
                (folder / path.name).symlink_to(path)
    return folder


def install(folder: pathlib.Path, package: str) -> None:
    """Puts a package into a folder as an installation would: its modules and its metadata."""
    about = project(package)
    for module in (ROOT / "packages" / package / "src").iterdir():
        (folder / module.name).symlink_to(module)
    info = folder / f"{about['name'].replace('-', '_')}-{about['version']}.dist-info"
    info.mkdir()
    needs = "".join(f"Requires-Dist: {need}\n" for need in about["dependencies"])
    name = f"Metadata-Version: 2.1\nName: {about['name']}\nVersion: {about['version']}\n"
    (info / "METADATA").write_text(name + needs)
    lines = [
        "\n".join([f"[{group}]", *(f"{key} = {value}" for key, value in points.items())])
        for group, points in about.get("entry-points", {}).items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("package", EXTENSIONS)
def test_core_with_one_package_has_its_names_and_hints_for_the_rest(
    package: str, without_moduli: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """The short form of ``nox -s packages``: four of the sixteen subsets, from the sources."""
    install(tmp_path, "core")
    install(tmp_path, package)
    keep = {k: v for k, v in os.environ.items() if not k.startswith("MODULI_")}
    paths = os.pathsep.join([str(tmp_path), str(without_moduli)])
    done = subprocess.run(
        [sys.executable, "-S", "-W", "error", "-c", SUBSET, package],
        env={**keep, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "1"
