"""The packages' maps: what type checkers read is what is there, and using one name loads little."""

import ast
import importlib
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = ["moduli_layers", "moduli_debug", "moduli_train", "moduli_interop"]
OURS = ("moduli", *PACKAGES)

# A first module needs each plugin's entry point and what its hooks need. Raise this number only
# for a file that a hook cannot do without.
AT_MOST = 24


def typed(package: str) -> dict[str, str]:
    """Returns the module of each name under ``if TYPE_CHECKING:`` of a package's ``__init__``."""
    tree = ast.parse(Path(str(importlib.import_module(package).__file__)).read_text())
    (block,) = [
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    return {
        alias.name: str(node.module)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name  # what a checker takes as exported
    }


def fresh(code: str) -> str:
    """Returns what a program prints in a process of its own."""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.parametrize("package", PACKAGES)
def test_the_names_for_type_checkers_are_those_of_the_package(package: str) -> None:
    module = importlib.import_module(package)
    assert sorted(typed(package)) == module.__all__
    assert {name for name in dir(module) if not name.startswith("_")} >= set(module.__all__)
    for name, home in typed(package).items():
        here = importlib.import_module(home)
        expected = (
            importlib.import_module(f"{home}.{name}") if home == package else getattr(here, name)
        )
        assert getattr(module, name) is expected


def test_the_names_that_core_imports_when_they_are_asked_for() -> None:
    import moduli

    assert sorted(set(typed("moduli")) - {"hookspecs", "testing", "*"}) == moduli._OWN_NAMES
    code = (
        "import sys, moduli\n"
        "early = [n for n in sys.modules if n.startswith('moduli._transforms.')]\n"
        "assert not early, early\n"
        "names = set(moduli._OWN_NAMES)\n"
        "assert names <= set(dir(moduli)) and not names & set(vars(moduli))\n"
        "from moduli import *\n"
        "for name in names - {'PARTITION_NAME'}:\n"
        "    value = globals()[name]\n"
        "    assert value is vars(moduli)[name], name\n"
        "    assert value.__module__ == 'moduli', (name, value.__module__)\n"
    )
    fresh(code)


@pytest.mark.parametrize("package", PACKAGES)
def test_an_untouched_package_lists_its_names_and_loads_them_all_by_a_star(package: str) -> None:
    code = (
        f"import sys, {package} as package\n"
        "loaded = set(sys.modules)\n"
        "names = [name for name in dir(package) if not name.startswith('_')]\n"
        f"assert not {{name for name in loaded if name.startswith('{package}.')}}\n"
        "assert set(names) == set(package.__all__), names\n"
        f"from {package} import *\n"
        "assert all(globals()[name] is getattr(package, name) for name in names)\n"
        "assert package.__version__\n"
    )
    fresh(code)


@pytest.mark.parametrize("package", PACKAGES)
def test_an_unknown_name_is_an_attribute_error(package: str) -> None:
    module = importlib.import_module(package)
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        _ = module.nothing
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        exec(f"from {package} import nothing")


@pytest.mark.parametrize(
    "program",
    [
        "import moduli_debug; assert moduli_debug.reducers.__name__ == 'moduli_debug.reducers'",
        "import moduli_train; assert moduli_train.metrics.Average",
        "import moduli_layers.initializers as a, moduli_layers as b; assert a is b.initializers",
        "from moduli_debug import errors; assert errors.SownGrowthWarning",
        "from moduli_layers import _linear; assert _linear.Linear",
    ],
)
def test_submodules_are_reached_in_each_spelling(program: str) -> None:
    fresh(program)


def test_a_class_is_unpickled_where_its_package_is_untouched() -> None:
    from moduli_layers import Linear

    text = pickle.dumps(Linear)
    assert fresh(f"import pickle; print(pickle.loads({text!r}).__name__)") == "Linear\n"


def test_the_first_module_of_a_process_loads_little() -> None:
    code = (
        "import sys, jax, moduli as nnx\n"
        "before = set(sys.modules)\n"
        "class Model(nnx.Module):\n"
        "    def __init__(self): self.x = 1\n"
        "Model()\n"
        "print(*sorted(set(sys.modules) - before))\n"
    )
    new = fresh(code).split()
    ours = [name for name in new if name.partition(".")[0] in OURS]
    assert {"moduli_debug._plugin", "moduli_interop._plugin"} <= set(ours)
    assert len(ours) <= AT_MOST, ours
    foreign = {name.partition(".")[0] for name in new} - set(OURS) - set(sys.stdlib_module_names)
    assert not foreign, sorted(foreign)  # no optax, no rich, and nothing of jax's: pallas
