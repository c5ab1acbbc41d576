"""flax.nnx is moduli: every way to import it, who gets the real one, and the three ways to say so.

Each program runs in a process of its own: what was imported cannot be taken back.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("flax")

HEAD = """
import moduli
from moduli_interop import as_flax
as_flax()
"""


def run(program: str, *options: str, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [sys.executable, *options, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        cwd=cwd,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_way_to_import_it() -> None:
    run(
        HEAD
        + """
import importlib, pickle, sys
import flax
assert flax.nnx is moduli and getattr(flax, "nnx") is moduli and hasattr(flax, "nnx")
from flax import nnx, linen
assert nnx is moduli and linen.__name__ == "flax.linen"
import flax.nnx
assert flax.nnx is moduli
import flax.nnx as nnx
assert nnx is moduli
from flax.nnx import Linear, filterlib
assert Linear is moduli.Linear and filterlib is moduli.filterlib
from flax.nnx import *
import flax.nnx.filterlib
import flax.nnx.filterlib as filters
assert flax.nnx.filterlib is moduli.filterlib is filters
from flax.nnx.filterlib import to_predicate
assert importlib.import_module("flax.nnx") is moduli
assert importlib.import_module("flax.nnx.filterlib") is moduli.filterlib
assert __import__("flax.nnx", fromlist=["Linear"]) is moduli
assert sys.modules["flax.nnx"] is moduli
exec("import moduli; from flax import nnx; assert nnx is moduli", {})
assert pickle.loads(b"cflax.nnx\\nLinear\\n.") is moduli.Linear
assert moduli.__name__ == "moduli" and moduli.__spec__.name == "moduli"
for missing in ("flax.nnx.nowhere", "flax.nowhere"):
    try:
        importlib.import_module(missing)
    except ModuleNotFoundError as error:
        assert missing in str(error), error
    else:
        raise AssertionError(missing)
try:
    from flax.nnx import nowhere
except ImportError as error:
    pass
"""
    )


def test_flax_and_its_like_get_the_real_one(tmp_path: Path) -> None:
    """Packages of these names, which ask in every way; and one whose name only begins so."""
    asks = """
        import flax, flax.nnx, importlib
        from flax import nnx
        import flax.nnx as alias
        from flax.nnx import Module
        from flax.nnx.module import Module as Again
        import flax.nnx.nn.linear
        def later():
            from flax.nnx import Linear
            return Linear, flax.nnx.nn.linear.Linear
        found = [flax.nnx, nnx, alias]
    """
    for name in ("chex", "optaxis"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("from . import inner\n")
        text = textwrap.dedent(asks)
        if name == "optaxis":
            text = text.replace("from flax.nnx.module import Module as Again", "Again = Module")
            text = text.replace("import flax.nnx.nn.linear", "").replace(
                "flax.nnx.nn.linear", "nnx"
            )
        (tmp_path / name / "inner.py").write_text(text)
    run(
        HEAD
        + """
import sys
sys.path.insert(0, ".")
import chex.inner, optaxis.inner
real = chex.inner.nnx
assert real is not moduli and real.__file__.replace("\\\\", "/").endswith("flax/nnx/__init__.py")
assert all(item is real for item in chex.inner.found)
assert chex.inner.Module is chex.inner.Again is real.Module
assert chex.inner.later() == (real.Linear, real.Linear)
assert all(item is moduli for item in optaxis.inner.found)
assert optaxis.inner.Module is moduli.Module
assert optaxis.inner.later()[0] is moduli.Linear
from flax import nnx
assert nnx is moduli and sys.modules["flax.nnx"] is moduli
assert not [name for name, m in sys.modules.items() if name.startswith("flax.nnx.") and "flax" in
            (getattr(m, "__file__", "") or "").replace("\\\\", "/").split("/")[-4:]]
real.Linear(2, 3, rngs=real.Rngs(0))
""",
        cwd=tmp_path,
    )


def test_it_is_refused_after_flax_nnx() -> None:
    out = run(
        """
        import flax.nnx, types, sys
        sys.modules["my_models"] = types.ModuleType("my_models")
        sys.modules["my_models"].nnx = flax.nnx
        real = flax.nnx
        from moduli_interop import AsFlaxError, as_flax
        try:
            as_flax()
        except AsFlaxError as error:
            print(error)
        assert flax.nnx is real
        """
    )
    assert "already imported, by __main__, my_models" in out and "as-flax" in out


def test_calling_it_again_does_nothing() -> None:
    run(
        HEAD
        + "import builtins; f = builtins.__import__; as_flax(); assert builtins.__import__ is f"
    )


def test_without_flax_there_is_nnx_alone() -> None:
    run(
        """
        import importlib.util, sys
        find = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *a: None if name == "flax" else find(name, *a)
        from moduli_interop import as_flax
        as_flax()
        import moduli
        from flax import nnx
        assert nnx is moduli
        """
    )


PROGRAM = """
import sys
from flax import nnx
if __name__ == "__main__":
    print(nnx.__name__, sys.argv[1:], helper.VALUE if (helper := __import__("helper")) else 0)
    sys.exit(int(sys.argv[-1]))
"""


def make_program(folder: Path) -> Path:
    (folder / "program.py").write_text(PROGRAM)
    (folder / "helper.py").write_text("VALUE = 'beside it'\n")
    return folder / "program.py"


@pytest.mark.parametrize("how", ["script", "module"])
def test_the_command(how: str, tmp_path: Path) -> None:
    script = make_program(tmp_path)
    target, cwd = (str(script), None) if how == "script" else ("program", tmp_path)
    code = (
        "from moduli._facade import command_line, resolve\n"
        "import moduli_interop, sys\n"
        "command_line.resolve = lambda name: getattr(moduli_interop, name)\n"
        f"sys.exit(command_line.main(['as-flax', {target!r}, '--steps', '3']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd)
    assert done.stdout == "moduli ['--steps', '3'] beside it\n", done.stderr
    assert done.returncode == 3


def test_the_option_of_pytest(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("from flax import nnx\nKIND = nnx.__name__\n")
    (tmp_path / "test_it.py").write_text(
        "from flax import nnx\ndef test_it():\n    assert nnx.__name__ == 'moduli'\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    if not plugin_is_installed():
        command += ["-p", "moduli_pytest"]
    for options, passes in (([], False), (["--moduli-as-flax"], True)):
        done = subprocess.run([*command, *options], capture_output=True, text=True, cwd=tmp_path)
        assert (done.returncode == 0) is passes, done.stdout + done.stderr


def plugin_is_installed() -> bool:
    from importlib.metadata import entry_points

    return any(point.value == "moduli_pytest" for point in entry_points(group="pytest11"))


def test_the_option_costs_nothing_where_it_is_not_used() -> None:
    assert run("import moduli_pytest, sys; print('jax' in sys.modules)") == "False\n"
