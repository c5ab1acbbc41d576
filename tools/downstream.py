"""Runs the tests of libraries that are built on flax.nnx, with flax and with moduli in its place.

``python -m nox -s downstream`` (or ``-- gpjax qwix`` for some of them) downloads each library's
source distribution, makes an environment of its own for it, and runs its own tests twice: as they
are, and with ``--moduli-as-flax``. It prints a table of how many of the tests that pass with flax
pass with moduli, names the others, and exits with 1 if they are more than 1 %. Of libraries whose
source distributions have no tests it imports every module. Then it trains small models of theirs
for a few steps (``downstream_steps.py``) and compares losses and times. Nothing of the
libraries comes into this repository: what is theirs stays in the folder that ``--into`` names.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
OURS = [ROOT / "packages" / name for name in ("core", "layers", "debug", "train", "interop")]
ALLOWED = 0.01
"""How much of what passes with flax may fail with moduli."""


@dataclasses.dataclass(frozen=True)
class Library:
    """A library and its tests.

    Attributes:
      name: the name of its distribution.
      version: which one; results are comparable for one version alone.
      tests: the paths of its tests in the source distribution.
      chosen: why these tests, if they are not all.
      python: which Python it wants, if not every one that moduli runs on.
      needs: what its tests need and its metadata does not say.
      options: further options of pytest.
      steps: the programs of ``downstream_steps.py`` that train a model of its.
    """

    name: str
    version: str
    tests: tuple[str, ...] = ("tests",)
    chosen: str = ""
    python: str = ""
    needs: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()


TUNIX = ("google-tunix", "google-tunix, Qwen2", "google-tunix, Llama3", "google-tunix, LoRA")

GPJAX = tuple(
    f"tests/test_{name}.py"
    for name in (
        "citations", "dataset", "dtype", "fit", "gaussian_distribution", "heteroscedastic",
        "imports", "integrators", "jit_compatibility", "likelihoods", "linalg", "mean_functions",
        "numerical_stability", "numpyro_extras", "parameters", "scan",
    )
)  # fmt: skip

DANTINOX = tuple(
    f"tests/test_{name}.py"
    for name in (
        "model", "lora", "mla", "moe", "differential_attention", "core_invariants",
        "improvements",
    )
)  # fmt: skip

LIBRARIES = (
    Library(
        "bijx",
        "1.3.2",
        chosen="without `solvers` and `lie`, for time",
        needs=("flowjax", "hypothesis", "scipy"),
        options=("--ignore=tests/test_solvers.py", "--ignore=tests/test_lie.py"),
    ),
    Library("blaxbird", "0.2.0", tests=("blaxbird",), needs=("pytest-cov",)),
    Library(
        "gpjax",
        "0.13.6",
        tests=GPJAX,
        chosen="sixteen of its test files, for time",
        needs=("hypothesis", "mktestdocs", "networkx", "pandas", "scipy"),
    ),
    Library("mamba2-jax", "1.1.2", steps=("mamba2-jax",)),
    Library("nnx-ppo", "0.3.0", tests=("nnx_ppo",)),
    Library("zlynx", "0.1.11"),
    Library("avitai-artifex", python="3.12", version="0.1.15", tests=()),
    Library("calibrax", python="3.12", version="0.1.14", tests=()),
    Library("canvit-nnx", python="3.12", version="0.2.0", tests=()),
    Library(
        "dantinox",
        "0.4.14",
        tests=DANTINOX,
        chosen="seven of its test files",
        needs=("hypothesis",),
    ),
    Library("datarax", python="3.12", version="0.1.17", tests=()),
    Library("google-tunix", "0.1.7", tests=(), steps=TUNIX),
    Library("jraphx", "0.1.0", tests=()),
    Library("mamba3-jax", "1.0.0", needs=("absl-py",), steps=("mamba3-jax",)),
    Library("opifex", python="3.12", version="0.2.10", tests=()),
    Library("qwix", "0.1.8", tests=(), steps=("qwix", "qwix, after training", "qwix, LoRA")),
    Library("substrax", python="3.12", version="0.1.22", tests=()),
    Library("synecdoche", "0.2.0", tests=(), steps=("synecdoche",)),
)
"""What is run. Those without tests have none in their source distribution: for them every module is
imported, which is where code written for flax.nnx meets missing names first. mamba3-jax 1.0.1 has
none either, 1.0.0 has. The source distribution of jax-bonsai is empty."""


@dataclasses.dataclass
class Outcome:
    """What came out of one library's tests.

    Attributes:
      flax: the names of the tests that pass with flax.
      moduli: those that pass with moduli.
      seconds: how long both took.
      steps: for each program the time of a train step with both in ms, and whether the losses are
        the same.
      note: what kept the tests from running, if something did.
    """

    flax: set[str] = dataclasses.field(default_factory=set)
    moduli: set[str] = dataclasses.field(default_factory=set)
    seconds: tuple[float, float] = (0.0, 0.0)
    steps: dict[str, tuple[float, float, bool]] = dataclasses.field(default_factory=dict)
    note: str = ""

    @property
    def lost(self) -> list[str]:
        """The tests that pass with flax alone."""
        return sorted(self.flax - self.moduli)


def run(*command: object, cwd: pathlib.Path | None = None, log: pathlib.Path, limit: int) -> bool:
    """Runs a command, with its output in a file; returns whether it went well in time."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": ""}
    with log.open("ab") as file:
        try:
            done = subprocess.run(
                [str(part) for part in command],
                cwd=cwd,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=limit,
            )
        except subprocess.TimeoutExpired:
            file.write(f"\nstopped after {limit} s\n".encode())
            return False
    return done.returncode == 0


def unpack(library: Library, folder: pathlib.Path, log: pathlib.Path) -> pathlib.Path | None:
    """Downloads and unpacks a source distribution; returns its folder."""
    wanted = f"{library.name}=={library.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", library.name]
    if not any(folder.glob("*.tar.gz")):
        run(*command, "-d", folder, wanted, log=log, limit=600)
    for archive in folder.glob("*.tar.gz"):
        shutil.rmtree(folder / "source", ignore_errors=True)
        with tarfile.open(archive) as file:
            file.extractall(folder / "source", filter="data")
        return next((folder / "source").iterdir())
    return None


def install(library: Library, source: pathlib.Path, log: pathlib.Path) -> pathlib.Path | None:
    """Makes an environment with a library, moduli, and the JAX and flax that the library wants."""
    environment = source.parent.parent / "environment"
    python = environment / "bin" / "python"
    if python.exists():
        return python
    ours = [part for path in OURS for part in ("-e", path)]
    needs = [*library.needs, "pytest>=8.3", "pytest-xdist>=3.7", "optax"]
    wanted = library.python or sys.executable
    made = run("uv", "venv", "-q", "--python", wanted, environment, log=log, limit=100)
    install = ("uv", "pip", "install", "-q", "--python", python)
    if made and run(*install, source, *needs, *ours, log=log, limit=1800):
        return python
    shutil.rmtree(environment, ignore_errors=True)
    return None


def test(
    library: Library, python: pathlib.Path, source: pathlib.Path, name: str, limit: int
) -> tuple[set[str], float]:
    """Runs a library's tests; returns the names of those that pass, and the seconds they took."""
    report = source.parent.parent / f"{name}.xml"
    report.unlink(missing_ok=True)
    options = ["--moduli-as-flax"] if name == "moduli" else []
    run(
        python, "-m", "pytest", "-q", *library.tests, *library.options, *options,
        f"--junitxml={report}", "-p", "no:cacheprovider", "-o", "junit_family=xunit1",
        "--continue-on-collection-errors",
        cwd=source, log=report.with_suffix(".log"), limit=limit,
    )  # fmt: skip
    if not report.exists():
        return set(), 0.0
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    passed = {
        f"{case.get('classname')}::{case.get('name')}"
        for case in suite.iter("testcase")
        if not any(child.tag in ("failure", "error", "skipped") for child in case)
    }
    return passed, float(suite.get("time", "0"))


def imported(
    python: pathlib.Path, source: pathlib.Path, name: str, limit: int
) -> tuple[set[str], float]:
    """Imports every module of a library; returns the names of those for which that went well."""
    report = source.parent.parent / f"{name}.txt"
    report.unlink(missing_ok=True)
    start = "import moduli_interop; moduli_interop.as_flax()" if name == "moduli" else ""
    code = IMPORT_ALL.format(start=start, library=source.parent.parent.name, report=str(report))
    run(python, "-c", code, log=report.with_suffix(".log"), limit=limit)
    return set(report.read_text().split()) if report.exists() else set(), 0.0


IMPORT_ALL = """
{start}
import importlib, importlib.metadata, pathlib
found = importlib.metadata.files({library!r})
files = [file for file in found if file.suffix == ".py" and not file.name.startswith("__main")]
with pathlib.Path({report!r}).open("w") as report:
    for file in files:
        parts = [part for part in file.with_suffix("").parts if part != "__init__"]
        try:
            importlib.import_module(".".join(parts))
        except BaseException as error:
            print(parts, repr(error))
        else:
            print(".".join(parts), file=report, flush=True)
"""


def steps(library: Library, python: pathlib.Path, folder: pathlib.Path, limit: int) -> Any:
    """Runs the programs of a library; returns what :class:`Outcome` keeps of them."""
    outcome = {}
    for title in library.steps:
        found = []
        for option in ((), ("--moduli",)):
            log = folder / "steps.log"
            log.unlink(missing_ok=True)
            script = pathlib.Path(__file__).with_name("downstream_steps.py")
            run(python, script, title, *option, log=log, limit=limit)
            last = (log.read_text().splitlines() or [""])[-1]
            found.append(json.loads(last) if last.startswith("{") else None)
        if found[0] is None or found[1] is None:
            outcome[title] = (math.nan, math.nan, False)
        else:
            pairs = zip(found[0]["losses"], found[1]["losses"], strict=True)
            same = all(math.isclose(a, b, rel_tol=1e-5) for a, b in pairs)
            outcome[title] = (found[0]["ms"], found[1]["ms"], same)
    return outcome


def last_line(log: pathlib.Path) -> str:
    """Returns what a command said last, for a cell of a table."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return (["it said nothing", *filter(None, lines)][-1])[:100].replace("|", "/")


def examine(library: Library, into: pathlib.Path, limit: int) -> Outcome:
    """Downloads and installs a library, and runs its tests twice."""
    folder = into / library.name
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "install.log"
    source = unpack(library, folder, log)
    if source is None:
        return Outcome(note=f"no source distribution: {last_line(log)}")
    python = install(library, source, log)
    if python is None:
        return Outcome(note=f"could not be installed: {last_line(log)}")
    if library.tests:
        flax, with_flax = test(library, python, source, "flax", limit)
        moduli, with_moduli = test(library, python, source, "moduli", limit)
    else:
        flax, with_flax = imported(python, source, "flax", limit)
        moduli, with_moduli = imported(python, source, "moduli", limit)
    note = "" if flax else "nothing passes with flax"
    found = steps(library, python, folder, limit)
    return Outcome(flax, moduli, (with_flax, with_moduli), found, note)


def main() -> int:
    """Runs the command line; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="which libraries; all by default")
    parser.add_argument("--into", type=pathlib.Path, default=pathlib.Path("out/downstream"))
    parser.add_argument("--limit", type=int, default=3600, help="seconds for a run of tests")
    options = parser.parse_args()
    unknown = set(options.names) - {library.name for library in LIBRARIES}
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    chosen = [library for library in LIBRARIES if library.name in (options.names or {library.name})]
    print("| library | with flax | with moduli | seconds, flax | seconds, moduli |")
    print("|---|---|---|---|---|")
    passed = lost = 0
    losses = []
    times: dict[str, tuple[float, float, bool]] = {}
    for library in chosen:
        try:
            outcome = examine(library, options.into.resolve(), options.limit)
        except Exception as error:  # one library is one row: the others are still run
            outcome = Outcome(note=f"{type(error).__name__}: {error}"[:100])
        both = len(outcome.flax) - len(outcome.lost)
        seconds = " | ".join(f"{number:.0f}" for number in outcome.seconds)
        title = f"{library.name} {library.version}"
        title += f" ({library.chosen})" if library.chosen else ""
        title += "" if library.tests else ": modules imported"
        print(f"| {title} | {outcome.note or len(outcome.flax)} | {both} | {seconds} |", flush=True)
        if library.tests:
            passed, lost = passed + len(outcome.flax), lost + len(outcome.lost)
        losses += [f"{library.name}: {name}" for name in outcome.lost]
        times |= outcome.steps
    if passed:
        kept = 100 * (passed - lost) / passed
        print(f"| all tests | {passed} | {passed - lost}, {kept:.1f} % | | |")
    print("\n| a train step | flax, ms | moduli, ms | losses |\n|---|---|---|---|")
    for title, (flax, moduli, same) in times.items():
        said = "the same" if same else "one did not run" if math.isnan(flax) else "DIFFER"
        print(f"| {title} | {flax:.1f} | {moduli:.1f} | {said} |")
    if losses:
        print("\nPass with flax and not with moduli:\n")
        print("\n".join(f"- {name}" for name in losses))
    wrong = lost > ALLOWED * passed or len(losses) > lost or not all(s for *_, s in times.values())
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
