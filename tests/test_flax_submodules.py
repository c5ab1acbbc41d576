"""``from moduli.nn.linear import Linear``: flax.nnx's submodules are importable and lazy."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys
import typing

import pytest

import moduli as nnx
from moduli_interop._flax import table
from moduli_interop._flax.modules import submodule

PATHS = sorted({*table.MODULES, *table.SAME, *table.ALIASES})


def fresh(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.parametrize("path", PATHS)
def test_the_import_statement_and_the_attribute_give_one_module(path: str) -> None:
    module = importlib.import_module(f"moduli.{path}")
    assert module is submodule(path)
    place = nnx
    for name in path.split("."):
        assert name in dir(place)
        place = getattr(place, name)
    assert place is module
    assert module.__spec__ is not None  # of the module itself, not of the alias
    assert module.__spec__.name == module.__name__


@pytest.mark.parametrize(
    "statement",
    [
        "import moduli.nn.linear; assert moduli.nn.linear.Linear is moduli.Linear",
        "import moduli.nn.linear as linear; assert linear.default_kernel_init",
        "from moduli.nn.linear import Linear, first_from; import moduli as m\n"
        "assert Linear is m.Linear",
        "from moduli.nn import linear; from moduli import nn; assert nn.linear is linear",
        "from moduli.rnglib import Rngs; import moduli; assert Rngs is moduli.Rngs",
        "import moduli.metrics as a, moduli.training.metrics as b, moduli_train.metrics as c; "
        "assert a is b is c and c.__spec__.name == 'moduli_train.metrics'",
        "from moduli.nn.activations import *; import moduli; assert relu is moduli.relu",
        "import pickle, moduli.nn.linear as m; "
        "assert pickle.loads(pickle.dumps(m.Linear)) is m.Linear",
        "import moduli.errors, moduli.testing, moduli.filterlib; from moduli import hookspecs",
    ],
)
def test_each_spelling_of_an_import_in_a_fresh_process(statement: str) -> None:
    fresh(statement)


def test_a_submodule_imports_nothing_before_a_name_is_used() -> None:
    code = (
        "import sys, moduli\n"
        "own = ('moduli_layers', 'moduli_debug', 'moduli_train', 'moduli_interop', 'optax')\n"
        "assert not [n for n in own if n in sys.modules]\n"
        "import moduli.nn.linear, moduli.training.optimizer\n"
        "assert [n for n in own if n in sys.modules] == ['moduli_interop']\n"
        "from moduli.nn.linear import Linear\n"
        "assert 'moduli_layers._linear' in sys.modules and 'optax' not in sys.modules\n"
    )
    fresh(code)


@pytest.mark.parametrize("name", ["moduli.nothing", "moduli.nn.nothing", "moduli.Module"])
def test_what_is_no_submodule_is_not_found(name: str) -> None:
    with pytest.raises(ModuleNotFoundError, match=name.replace(".", r"\.")):
        importlib.import_module(name)


def test_a_package_with_files_gets_no_submodules_of_its_attributes() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("moduli.testing.jax")


def test_an_unknown_name_of_a_submodule_says_what_there_is() -> None:
    with pytest.raises(AttributeError, match=r"'moduli\.nn\.dtypes' has no attribute 'nothing'"):
        _ = importlib.import_module("moduli.nn.dtypes").nothing
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        exec("from moduli.nn.dtypes import nothing")


def test_a_submodule_of_a_package_that_is_missing_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from moduli._facade import resolve

    monkeypatch.setattr(resolve, "_declared", dict)
    monkeypatch.delitem(vars(nnx), "statelib", raising=False)
    monkeypatch.delitem(sys.modules, "moduli.statelib", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "moduli\[interop\]"'):
        importlib.import_module("moduli.statelib")


# What flax's files define and its users do not import: how its transforms and its repr are made.
# A file that is not here, or a name that is neither here nor in the table, is new in flax.
ONLY_FLAX: dict[str, str] = {
    "bridge.module": "MODULE_CONTEXT ModuleBase ModuleContext ModuleMeta ModuleStackEntry "
    "ModuleState Scope has_setup",
    "bridge.variables": "NNXMeta get_col_name is_vanilla_variable linen_vars_to_nnx_attrs "
    "sort_variable_types",
    "bridge.wrappers": "current_linen_module linen_rngs_dict",
    "extract": "* extract",
    "filterlib": "HasTag filters_to_predicates",
    "graph": "*",
    "graphlib": "* Static",
    "helpers": "ModuleDefApply has_keyword_arg",
    "ids": "*",
    "module": "ModuleMeta tuple_init tuple_reduce",
    "pytreelib": "ArrayRepr AttributeStatus BUILDING_DOCS DATA_REGISTRY DataAnnotation "
    "MutableArrayRepr OBJECT_CONTEXT ObjectContext ObjectMeta PytreeMeta PytreeState "
    "StaticAnnotation VariableRepr",
    "reprlib": "COLOR Color NO_COLOR REPR_CONTEXT ReprContext colorized supports_color",
    "rnglib": "KeylessInitializer NotKey",
    "statelib": "NestedStateRepr create_path_filters diff",
    "summary": "*",
    "training.optimizer": "MISSING",
    "transforms.autodiff": "*",
    "transforms.compilation": "*",
    "transforms.general": "*",
    "transforms.iteration": "*",
    "transforms.transforms": "*",
    "variablelib": "*",
    "visualization": "in_ipython render_object_constructor",
}
PUBLIC = {name for name in dir(nnx) if not name.startswith("_")}


def defined(module: object) -> list[str]:
    """Returns the public names that a file of flax's defines."""
    found = []
    for name, value in vars(module).items():
        home = getattr(value, "__module__", None)
        own = inspect.isclass(value) or inspect.isfunction(value)
        hidden = isinstance(value, (typing.TypeVar, typing.ParamSpec)) or inspect.ismodule(value)
        here = home == module.__name__ or (not own and (home or "flax.nnx").startswith("flax.nnx"))
        if here and not hidden and not name.startswith("_"):
            found.append(name)
    return found


def test_the_table_has_the_names_of_the_installed_flax() -> None:
    flax_nnx = pytest.importorskip("flax.nnx")
    newer = []
    for info in pkgutil.walk_packages(flax_nnx.__path__, "flax.nnx."):
        path = info.name.removeprefix("flax.nnx.")
        if path.startswith("scripts"):
            continue
        theirs = importlib.import_module(info.name)
        inside = ONLY_FLAX.get(path, "").split()
        ours = None if path == "ids" else importlib.import_module(f"moduli.{path}")
        for name in defined(theirs):
            known = name in inside or ("*" in inside and name not in PUBLIC)
            if not known and not hasattr(ours, name) and not path.startswith("bridge"):
                newer.append(f"{path}.{name}")
    assert newer == [], "flax.nnx has names that the table lacks"


@pytest.mark.parametrize("path", sorted(table.MODULES))
def test_every_name_of_the_table_is_found(path: str) -> None:
    module = submodule(path)
    missing = [name for name in table.MODULES[path].split() if not hasattr(module, name)]
    if path.startswith("bridge"):
        pytest.skip(f"to come: {missing}") if missing else None
    assert missing == []
