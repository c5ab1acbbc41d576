"""What every test run shares: devices, compiled programs, strict dtypes, docs as tests.

The tests run on what the environment asks for: ``JAX_PLATFORMS``, ``JAX_NUM_CPU_DEVICES`` (or
``XLA_FLAGS``) and ``JAX_ENABLE_X64``. Where it asks for nothing they run on four CPU devices.
"""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.pop("COLUMNS", None)  # else tables have the width of the terminal that started the tests
# Most of the tests' time is XLA compiling small programs, each of them in every process that needs
# it. Here they share them, and a second run finds those of the first.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax
import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

ASKED_FOR_DEVICES = (
    "JAX_NUM_CPU_DEVICES" in os.environ
    or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
)
if not ASKED_FOR_DEVICES:  # before anything starts a backend; `nox -s long` has a mesh of 4 times 2
    jax.config.update("jax_num_cpu_devices", 8 if os.environ.get("EVERY_ROW") else 4)

collect_ignore = ["tests/onnx", "docs/conf.py"]  # for sessions with packages of their own

STRICT = ("packages/core/", "packages/layers/", "tests/test_layer")


def is_jaxs_own(item: pytest.Item) -> bool:
    """Returns whether an example stands in the docstring of a function of JAX's that we wrap."""
    if not item.nodeid.startswith("packages/layers/src/moduli_layers/__init__.py::"):
        return False
    import moduli_layers

    function = getattr(moduli_layers, item.name.rpartition(".")[2], None)
    wrapped = getattr(function, "__wrapped__", None)
    return str(getattr(wrapped, "__module__", "")).startswith("jax")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts files with slow tests first: at the end one worker would wait for the other."""
    items[:] = [item for item in items if not is_jaxs_own(item)]
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Takes what exists before the first test out of the collector's sight: it stays anyway.

    With all tests collected these are 750,000 objects. To walk through them takes 0.4 s of CPU
    each time that a test or an error that looks for a model asks the collector.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Frees what JAX compiled for a file: no other file asks for it, and a worker keeps it all.

    Without this a worker that runs the tests of train alone grows to 3.4 GB (1.0 GB with it), and
    each test that collects garbage walks through all of it.
    """
    if nextitem is not None and nextitem.path != item.path:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(autouse=True)
def strict_promotion(request: pytest.FixtureRequest) -> Iterator[None]:
    """Core and layers rely on no implicit promotion of dtypes; optax does, and so do its users.

    With x64, arrays of JAX's own are float64 where nothing else is asked for, and parameters are
    float32 as always: every program that does not name its dtypes has both.
    """
    path = request.path.relative_to(request.config.rootpath).as_posix()
    strict = path.startswith(STRICT) and not jax.config.read("jax_enable_x64")
    mode = "strict" if strict else "standard"
    with jax.numpy_dtype_promotion(mode):
        yield


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["README.md", "packages/*/README.md", "docs/*.md", "docs/**/*.md"],
).pytest()
