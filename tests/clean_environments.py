"""Distributions built from this checkout, and empty environments to install them in."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import venv

ROOT = pathlib.Path(__file__).resolve().parent.parent
EXTENSIONS = ("layers", "debug", "train", "interop")
PACKAGES = ("core", *EXTENSIONS)

CLOSURE = """
import importlib.metadata as m, json, re, sys
from packaging.requirements import Requirement
def norm(name): return re.sub(r"[-_.]+", "-", name).lower()
def closure(names):
    todo, seen = list(names), set()
    while todo:
        name = norm(todo.pop())
        if name in seen: continue
        try: dist = m.distribution(name)
        except m.PackageNotFoundError: continue
        seen.add(name)
        for text in dist.requires or ():
            need = Requirement(text)
            if need.marker is None or need.marker.evaluate({"extra": ""}): todo.append(need.name)
    return seen
installed = {norm(d.metadata["Name"]) for d in m.distributions()}
print(json.dumps([sorted(installed), sorted(closure(sys.argv[1:]))]))
"""


def environment() -> dict[str, str]:
    """The environment without what would let this checkout's packages in."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("MODULI_", "PYTHONPATH"))}
    return {**keep, "JAX_PLATFORMS": "cpu"}


def run(
    command: list[str], check: bool = True, **variables: str
) -> subprocess.CompletedProcess[str]:
    env = {**environment(), **variables}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False, cwd=ROOT)
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def uv() -> list[str] | None:
    if shutil.which("uv"):
        return ["uv"]
    return [sys.executable, "-m", "uv"] if importlib.util.find_spec("uv") else None


class Environment:
    """A virtual environment with nothing in it."""

    def __init__(self, path: pathlib.Path):
        venv.create(path, with_pip=uv() is None)
        scripts = "Scripts" if os.name == "nt" else "bin"
        self.python = str(path / scripts / "python")

    def install(self, *arguments: str) -> None:
        tool = uv()
        if tool is not None:
            run([*tool, "pip", "install", "--python", self.python, *arguments])
        else:
            run([self.python, "-m", "pip", "install", *arguments])

    def run(self, code: str, *arguments: str) -> str:
        return run([self.python, "-W", "error", "-c", code, *arguments]).stdout

    def distributions(self, *roots: str) -> tuple[set[str], set[str]]:
        """Returns what is installed, and what the roots need."""
        installed, needed = json.loads(self.run(CLOSURE, *roots))
        tools = {"pip", "setuptools", "wheel", "packaging"}
        return set(installed) - tools, set(needed) - tools


def build(target: pathlib.Path, *names: str, wheels_only: bool = False, **variables: str) -> None:
    """Builds wheels and sdists of packages of this checkout into a folder."""
    tool = uv()
    for name in names:
        source = f"./packages/{name}"
        if tool is not None:
            kind = ["--wheel"] if wheels_only else []
            run([*tool, "build", *kind, "--out-dir", str(target), source], **variables)
        elif wheels_only:
            command = ["pip", "wheel", "--no-deps", "-w", str(target), source]
            run([sys.executable, "-m", *command], **variables)
        else:
            run([sys.executable, "-m", "build", "--outdir", str(target), source], **variables)


SUBSET = """
import importlib, importlib.metadata as m, sys, moduli
have = set(sys.argv[1:])
some = {
    "layers": ["Linear", "relu", "initializers"], "debug": ["capture", "tabulate"],
    "train": ["Optimizer", "metrics"], "interop": ["save", "load"],
}
for package, names in some.items():
    try:
        m.distribution(f"moduli-{package}")
    except m.PackageNotFoundError:
        assert package not in have, package
    else:
        assert package in have, package
    for name in names:
        try:
            getattr(moduli, name)
        except AttributeError as error:
            assert package not in have, (name, error)
            assert f'pip install "moduli[{package}]"' in str(error), error
        else:
            assert package in have, name
for package in have:
    points = m.distribution(f"moduli-{package}").entry_points
    for point in points:
        if point.group == "moduli.names":
            assert getattr(moduli, point.name) is not None
        elif point.group != "pytest11":
            point.load()
print(len(have))
"""
